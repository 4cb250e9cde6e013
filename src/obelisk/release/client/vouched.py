"""What is checked of a release before anything of it is used, by a host and by a machine that installs applications alike."""

from datetime import UTC, datetime, timedelta

from obelisk.errors import StateError, TrustError
from obelisk.events import Sink, task
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.model.release import Channel, File, Listing, Release
from obelisk.release.client import proof, trust
from obelisk.release.client.remote import Mirrors

_LARGEST_SMALL_BYTES = 16 << 20
_CLOCK_SLACK = timedelta(days=1)


def require_clock(channel: Channel, now: datetime) -> None:
    """Metadata that has expired looks valid to a clock that is behind. What was released was released in the past.

    Raises:
        StateError: this machine's clock is behind.
    """
    newest = max((_time(listing.at) for listing in channel.listings), default=now)
    if newest > now + _CLOCK_SLACK:
        raise StateError(
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, and the newest release is of {newest:%Y-%m-%d %H:%M} UTC",
            code="clock-behind",
            hint="set the clock (timedatectl): with a wrong one, this host cannot tell whether what it is told is still valid",
        )


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def released(repository: trust.Repository, listing: Listing) -> Release:
    """The release that a channel lists.

    Raises:
        TrustError: it is another one, or cannot be believed.
        TransportError: it cannot be had.
    """
    release = repository.release(listing.image)
    if release.version != listing.version:
        raise TrustError(
            f"the channel lists {listing.version}, and its image was released as {release.version}",
            code="target-mixed",
            hint="tell whoever runs the repository",
        )
    return release


def proven(release: Release, repository: trust.Repository, mirrors: Mirrors, sink: Sink) -> Manifest:
    """The manifest of a release that has a proof which counts.

    Raises:
        TrustError: it has none, or is not what its document says.
        TransportError: it cannot be fetched.
    """
    with task(sink, "upgrade/proof", f"Checking the proof of {release.name} {release.version}"):
        proofs = (_small(mirrors, file) for file in release.proofs)
        proof.accept(proofs, repository.testers(), release.image)
        return manifest(release, mirrors)


def manifest(release: Release, mirrors: Mirrors) -> Manifest:
    """The manifest of a release, whose proof was checked before, or does not matter.

    Raises:
        TrustError: it is not what the release's document says.
        TransportError: it cannot be fetched.
    """
    found = parse_manifest(_small(mirrors, release.manifest), image_id=release.image)
    said = (release.name, release.version, release.root_hash, release.root_bytes)
    if (found.name, found.version, found.root_hash, found.part(PartKind.ROOT).size_bytes) != said:
        raise TrustError(
            f"the release of {release.name} {release.version} says something else than its image's manifest",
            code="target-mixed",
            hint="tell whoever runs the repository",
        )
    return found


def _small(mirrors: Mirrors, file: File) -> bytes:
    if file.size_bytes > _LARGEST_SMALL_BYTES:
        raise TrustError(f"{file.path} is said to have {file.size_bytes} bytes, which cannot be", code="file-wrong")
    return mirrors.read_file(file)
