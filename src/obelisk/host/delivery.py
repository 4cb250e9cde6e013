"""How a release comes to this host: by a precomputed edge from an image in one of its slots, or block by block from whatever is here."""

from collections.abc import Sequence

from obelisk.host.here import Here
from obelisk.host.ways import Way
from obelisk.model.image import Manifest
from obelisk.model.release import Release
from obelisk.release.client.remote import Mirrors


def ways(here: Here, release: Release, manifest: Manifest, mirrors: Mirrors) -> Sequence[Way]:
    """All ways in which a release can come here. Reads the slots, and what of the repository tells the costs."""
    raise NotImplementedError(here, release, manifest, mirrors)
