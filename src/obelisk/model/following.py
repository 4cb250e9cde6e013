"""What a host does that follows a channel: take a release, stay, go back, or be told why it cannot. A decision over values."""

from collections.abc import Callable
from dataclasses import dataclass

from obelisk.model.release import Channel, Hosts, Listing
from obelisk.model.version import compare


@dataclass(frozen=True, slots=True)
class Follower:
    """A host: what runs there. `failed` are ids of images that it does not take again; `fallback` is the version it could go back to.

    Empty `image`, `fallback`: not known, or none.
    """

    version: str
    image: str = ""
    failed: frozenset[str] = frozenset()
    fallback: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """Upgrade to this release."""

    listing: Listing
    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    """Nothing is to be done. `withdrawn`: what runs should not any more, and there is nothing better."""

    reason: str
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class GoBack:
    """Return to the fallback, of version `version`."""

    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """There is a release for this host, and it cannot take it. `remedy` says what to do; `code` is an error's."""

    code: str
    reason: str
    remedy: str


Decision = Take | Stay | GoBack | Refuse

Minimum = Callable[[Listing], str]
"""The oldest version that can take a release; empty: any."""


def follow(channel: Channel, host: Follower, minimum: Minimum, *, retry: bool = False) -> Decision:
    """What a host does about a channel. `minimum` is asked only for releases that come into question; `retry`: also of failed ones."""
    mine = next((each for each in channel.listings if each.version == host.version), None)
    withdrawn = mine is not None and bool(mine.withdrawn) and host.image in {"", mine.image}
    forward = _forward(channel, host, minimum, retry=retry)
    if mine is None or not withdrawn or isinstance(forward, Take):
        return forward
    why = f"{host.version} was withdrawn: {mine.withdrawn}"
    if mine.hosts is Hosts.BACK and host.fallback and not _is_withdrawn(channel, host.fallback):
        return GoBack(host.fallback, why)
    if isinstance(forward, Refuse):
        return Refuse(forward.code, f"{why}; {forward.reason}", forward.remedy)
    if mine.hosts is Hosts.BACK:
        return Stay(f"{why}; there is nothing to go back to, so it stays until there is a newer one", withdrawn=True)
    return Stay(f"{why}; it stays until there is a newer one ({forward.reason})", withdrawn=True)


def _forward(channel: Channel, host: Follower, minimum: Minimum, *, retry: bool) -> Take | Stay | Refuse:
    """What the channel's current release is to this host."""
    current = channel.current
    if current is None:
        reason = "all its releases are withdrawn" if channel.listings else "it has no releases"
        return Stay(f"{channel.channel} has nothing to offer: {reason}")
    order = compare(current.version, host.version)
    if order < 0:
        return Stay(f"{channel.channel} is at {current.version}, which is older than the running {host.version}")
    if order == 0:
        if host.image not in {"", current.image}:
            return Refuse(
                "same-version",
                f"{channel.channel} has another image of version {current.version} than the one that runs",
                "release it with a version of its own",
            )
        return Stay(f"{host.version} is the newest in {channel.channel}")
    if current.image in host.failed and not retry:
        return Refuse(
            "failed-before",
            f"{current.version}, the newest in {channel.channel}, was tried on this host and failed",
            f"`obelisk host history` says why; it waits for a newer one. To try it again: --retry {current.version}",
        )
    return _reachable(channel, host, current, minimum)


def _reachable(channel: Channel, host: Follower, current: Listing, minimum: Minimum) -> Take | Refuse:
    least = minimum(current)
    if not least or compare(host.version, least) >= 0:
        return Take(current, f"{current.version} is the newest in {channel.channel}")
    for each in reversed(channel.listings):
        if each.withdrawn or compare(each.version, host.version) <= 0 or compare(each.version, current.version) >= 0:
            continue
        if each.image not in host.failed and (not minimum(each) or compare(host.version, minimum(each)) >= 0):
            # A step on the way, which is itself a release of the channel.
            return Take(each, f"{current.version} can be taken from {least} on, and {each.version} leads there")
    return Refuse(
        "minimum-version",
        f"{current.version} can be taken from {least} on, this host runs {host.version}",
        f"no release in {channel.channel} leads there any more: upgrade from a directory with version {least} first, or install it anew",
    )


def _is_withdrawn(channel: Channel, version: str) -> bool:
    return any(each.version == version and each.withdrawn for each in channel.listings)
