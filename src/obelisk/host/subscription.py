"""What the running image's spec says of releases; sealed in the image as /usr/lib/obelisk/release/.

root.json   the repository's root metadata, with which trust begins
conf        KEY=VALUE lines: channel; repository, once for each mirror; bandwidth, in bytes a second, and proxy where they are given
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import StateError

PLACE = Path("/usr/lib/obelisk/release")


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a host follows. `root` is TUF root metadata. `bandwidth_bytes_s` None: no limit; `proxy` empty: as the environment says."""

    channel: str
    repositories: tuple[str, ...]
    root: bytes
    bandwidth_bytes_s: int | None = None
    proxy: str = ""


def read(place: Path = PLACE) -> Subscription | None:
    """What the running image follows; None when it follows nothing."""
    try:
        lines = [line.partition("=") for line in (place / "conf").read_text().splitlines()]
        root = (place / "root.json").read_bytes()
    except FileNotFoundError:
        return None
    values = {key: value for key, _, value in lines}
    repositories = tuple(value for key, _, value in lines if key == "repository")
    bandwidth = int(values["bandwidth"]) if "bandwidth" in values else None
    return Subscription(values["channel"], repositories, root, bandwidth, values.get("proxy", ""))


def require(others: Sequence[str] = (), place: Path = PLACE) -> Subscription:
    """What the running image follows, at `others` in the place of its repositories when there are any.

    Raises:
        StateError: it follows nothing, so there is nothing with which trust could begin.
    """
    found = read(place)
    if found is None:
        raise StateError(
            "this image was built without a [release] table, so it knows no repository that it could trust",
            code="no-subscription",
            hint="add [release] with `channel`, `repositories` and `root` to the spec; or upgrade from a directory: "
            "obelisk host upgrade /mnt/IMAGE",
        )
    return Subscription(found.channel, tuple(others) or found.repositories, found.root, found.bandwidth_bytes_s, found.proxy)
