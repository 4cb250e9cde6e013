"""What may be made available, promoted, withdrawn and discontinued: decisions over what a repository says, without touching it.

`Contents` is everything that a repository says. Each decision takes one and gives the next, or refuses with a reason.

Invariants. Versions in a channel only grow, also past what was retired. One version of a name is one image. A host of any version that
could reach a channel's current release before `retire` can afterwards. A withdrawn release stays listed until a newer one is current, so
that a host which runs it learns of it whenever it looks.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cmp_to_key

from obelisk.errors import InputError, StateError, TrustError
from obelisk.model.image import Manifest
from obelisk.model.release import TESTERS_TARGET, Channel, EdgeFile, Hosts, Listing, Release, Testers, channel_target, is_channel
from obelisk.model.version import compare

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that a repository says."""

    testers: Testers
    channels: tuple[Channel, ...] = ()
    releases: tuple[Release, ...] = ()

    def channel(self, name: str, channel: str) -> Channel:
        """The channel of that image name; an empty one when there is none yet."""
        target = channel_target(name, channel)
        return next((each for each in self.channels if each.target == target), Channel(name, channel))

    def of(self, name: str) -> tuple[Channel, ...]:
        """The channels of that image name."""
        return tuple(each for each in self.channels if each.name == name)

    def release(self, image: str) -> Release | None:
        """The release of an image by its whole id."""
        return next((each for each in self.releases if each.image == image), None)

    def find(self, version: str, name: str | None = None) -> Release:
        """The release of a version, or the current one of a channel of that name; `name` when the repository has several.

        Raises:
            InputError: there is none, or several.
        """
        found = [each for each in self.releases if each.version == version and name in {None, each.name}]
        if not found:
            current = [each.current for each in self.channels if each.channel == version and name in {None, each.name}]
            found = [release for listing in current if listing and (release := self.release(listing.image))]
        if len(found) != 1:
            names = ", ".join(sorted({f"{each.name} {each.version}" for each in found or self.releases})) or "nothing"
            raise InputError(
                f"the repository has {len(found)} releases of {version}",
                code="release-unknown",
                hint=f"it has: {names}" + ("; say which by --name" if found else ""),
            )
        return found[0]

    def documents(self) -> Mapping[str, bytes]:
        """What TUF signs: each document by its target path."""
        return {
            TESTERS_TARGET: self.testers.to_bytes(),
            **{each.target: each.to_bytes() for each in self.channels},
            **{each.target: each.to_bytes() for each in self.releases},
        }

    def with_channel(self, channel: Channel) -> "Contents":
        """The same with this channel in the place of what it was."""
        others = tuple(each for each in self.channels if each.target != channel.target)
        return replace(self, channels=tuple(sorted((*others, channel), key=lambda each: each.target)))

    def with_release(self, release: Release) -> "Contents":
        """The same with this release in the place of what it was."""
        others = tuple(each for each in self.releases if each.image != release.image)
        return replace(self, releases=tuple(sorted((*others, release), key=lambda each: each.image)))


@dataclass(frozen=True, slots=True)
class Act:
    """Who does something, when, and why. `at` has a time zone."""

    by: str
    at: datetime
    why: str = ""

    @property
    def stamp(self) -> str:
        """The time as documents hold it: RFC 3339 in UTC, whole seconds."""
        return self.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an image is released: the oldest version that can take it (empty: any), and whether a test key will do."""

    minimum: str = ""
    allow_test_key: bool = False


@dataclass(frozen=True, slots=True)
class Approval:
    """What an application may do that the release before it in a channel may not, in words, and why that is to be. Nothing: neither."""

    growth: tuple[str, ...] = ()
    why: str = ""


_NONE = Approval()


def approve(growth: tuple[str, ...], why: str, *, label: str, channel: str, before: str) -> Approval:
    """What is to be recorded of growing powers. `before` is the version that the channel has, or empty where all of it was withdrawn.

    Raises:
        StateError: nobody said why they are to grow.
    """
    if not growth:
        return Approval()
    if not why.strip():
        lines = "\n".join(f"  {line}" for line in growth)
        than = f"{before} in {channel}" if before else f"nothing, which is all that {channel} has left"
        raise StateError(
            f"{label} may do more than {than}:\n{lines}",
            code="release-growth",
            hint='say --approve-growth "WHY" when it is to, or ask for less in the spec',
        )
    return Approval(growth, why)


def admit(contents: Contents, manifest: Manifest, channel: str, terms: Terms) -> bool:
    """Whether the image is new in the channel; False when it is the channel's already, so that there is nothing to do.

    Raises:
        InputError: the channel's name or the minimum version makes no sense.
        TrustError: the image is signed by a test key.
        StateError: the version is taken or does not grow, or nobody in the channel could take it.
    """
    if not is_channel(channel):
        raise InputError(
            f"{channel!r} is no name of a channel", code="channel-name", hint="small letters, digits and hyphens, a letter first"
        )
    if not _NAME.fullmatch(manifest.name):
        raise InputError(
            f"{manifest.name!r} cannot be released under that name", code="release-name", hint="letters, digits, '.', '_' and '-'"
        )
    # An application is started by no firmware: nothing of it is signed by that key.
    if manifest.test_key and not manifest.is_application and not terms.allow_test_key:
        raise TrustError(
            f"{manifest.label} is signed by a test key, which anybody's Secure Boot may know",
            code="release-test-key",
            hint="make your own with `obelisk keys`, build and test again; or --allow-test-key for a trial",
        )
    here = contents.channel(manifest.name, channel)
    listed = next((each for each in here.listings if each.image == manifest.id), None)
    if listed is not None and not listed.withdrawn:
        return False
    _check_version(contents, here, manifest.version, manifest.id)
    _check_minimum(here, manifest.version, terms.minimum)
    known = contents.release(manifest.id)
    if known is not None and terms.minimum and terms.minimum != known.minimum:
        raise StateError(
            f"{manifest.label} is released with the minimum version {known.minimum or 'any'} already",
            code="release-minimum-differs",
            hint="leave --minimum out; another minimum needs another version",
        )
    return True


def _check_version(contents: Contents, here: Channel, version: str, image: str) -> None:
    for channel in contents.of(here.name):
        for listing in channel.listings:
            if listing.version == version and listing.image != image:
                raise StateError(
                    f"version {version} is another image in {channel.channel}: {listing.image[:12]}",
                    code="release-version-taken",
                    hint="give the spec a new version and build again",
                )
            if listing.image == image and listing.withdrawn:
                raise StateError(
                    f"{version} was withdrawn from {channel.channel}: {listing.withdrawn}",
                    code="release-withdrawn",
                    hint="make the next version: what was withdrawn stays so",
                )
    if here.highest and compare(version, here.highest) <= 0:
        raise StateError(
            f"{here.channel} had version {here.highest} already, and {version} is not newer",
            code="release-not-newer",
            hint="versions of a channel only grow: to go back to older content, release it under a new version",
        )


def _check_minimum(here: Channel, version: str, minimum: str) -> None:
    if not minimum:
        return
    if compare(minimum, version) >= 0:
        raise InputError(
            f"the minimum {minimum} is not older than {version}", code="release-minimum", hint="name the version to upgrade from"
        )
    if here.current and compare(here.current.version, minimum) < 0:
        raise StateError(
            f"hosts of {here.channel} run up to {here.current.version} and could not take a release that asks for {minimum}",
            code="release-minimum-strands",
            hint=f"first release a version that is at least {minimum} and takes older ones",
        )


def listed(contents: Contents, release: Release, channel: str, act: Act, *, source: str = "", approval: Approval = _NONE) -> Contents:
    """The release is what hosts of the channel are to run. It has been admitted."""
    here = contents.channel(release.name, channel)
    listing = Listing(release.version, release.image, act.stamp, act.by, act.why, source, growth=approval.growth, approved=approval.why)
    rest = tuple(each for each in here.listings if each.image != release.image)
    changed = replace(here, listings=(*rest, listing), highest=release.version)
    return contents.with_release(release).with_channel(changed)


def promotable(contents: Contents, version: str, source: str, target: str, *, name: str | None = None) -> Release:
    """The release that `version` is in the channel `source`, once it may be listed in `target` as well.

    Raises:
        InputError: it is not in `source`, or the name of the target is none.
        StateError: it was withdrawn, is in the target already, or is not newer than what the target had.
    """
    if not is_channel(target):
        raise InputError(
            f"{target!r} is no name of a channel", code="channel-name", hint="small letters, digits and hyphens, a letter first"
        )
    if source == target:
        raise InputError(f"{source} cannot be promoted to itself", code="promote-same", hint="name two channels")
    release = contents.find(version, name)
    here = contents.channel(release.name, source)
    listing = next((each for each in here.listings if each.image == release.image), None)
    if listing is None:
        raise InputError(
            f"{release.name} {version} is not in {source}",
            code="release-unknown",
            hint=f"{source} has: {', '.join(each.version for each in here.listings) or 'nothing'}",
        )
    there = contents.channel(release.name, target)
    if any(each.image == release.image and not each.withdrawn for each in there.listings):
        raise StateError(f"{target} has {version} already", code="release-listed")
    _check_version(contents, there, release.version, release.image)
    _check_minimum(there, release.version, release.minimum)
    return release


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What a withdrawal comes to: in which channels, and what each has from then on (empty: nothing)."""

    contents: Contents
    now_current: tuple[tuple[str, str], ...]


def withdraw(
    contents: Contents, version: str, act: Act, *, hosts: Hosts, channel: str | None = None, name: str | None = None
) -> Withdrawal:
    """The release of `version` is taken back from one channel, or from all of them; `act.why` says why.

    Raises:
        InputError: there is no such release, or no reason is given.
        StateError: it is withdrawn there already.
    """
    if not act.why.strip():
        raise InputError("a withdrawal needs a reason", code="withdraw-why", hint='add --why "what is wrong with it"')
    release = contents.find(version, name)
    places = [each for each in contents.of(release.name) if channel in {None, each.channel}]
    if not any(listing.image == release.image for each in places for listing in each.listings):
        raise InputError(
            f"{release.name} {version} is not in {channel}", code="release-unknown", hint="leave --channel out for all channels"
        )
    touched = []
    for place in places:
        listings = tuple(
            replace(each, withdrawn=act.why, hosts=hosts) if each.image == release.image and not each.withdrawn else each
            for each in place.listings
        )
        if listings != place.listings:
            changed = replace(place, listings=listings)
            contents = contents.with_channel(changed)
            touched.append((changed.channel, changed.current.version if changed.current else ""))
    if not touched:
        raise StateError(f"{version} is withdrawn already", code="release-withdrawn")
    return Withdrawal(contents, tuple(touched))


@dataclass(frozen=True, slots=True)
class Retirement:
    """What `retire` comes to: `delisted` are channel and version of what leaves a channel, `gone` the releases that no channel has."""

    contents: Contents
    delisted: tuple[tuple[str, str], ...]
    gone: tuple[Release, ...]


def retire(contents: Contents, *, keep: int, before: datetime) -> Retirement:
    """Discontinues what no channel and no supported upgrade needs.

    Each channel keeps its newest `keep` releases (at least 1) that are not withdrawn, those that were listed after `before`, and those
    which hosts of older versions have to go through to reach the current one. What was withdrawn goes at once, but its listing stays
    until a newer release is current.

    Raises:
        InputError: `keep` is less than 1.
    """
    if keep < 1:
        raise InputError(f"a channel cannot keep {keep} releases", code="retire-keep", hint="keep at least 1: what hosts are to run")
    after, delisted = contents, []
    for channel in contents.channels:
        kept = _kept(contents, channel, keep=keep, before=before)
        delisted += [(channel.channel, each.version) for each in channel.listings if each not in kept]
        after = after.with_channel(replace(channel, listings=kept))
    needed = {each.image for channel in after.channels for each in channel.listings if not each.withdrawn}
    gone = tuple(each for each in contents.releases if each.image not in needed)
    after = replace(after, releases=tuple(each for each in after.releases if each.image in needed))
    return Retirement(after, tuple(delisted), gone)


def _kept(contents: Contents, channel: Channel, *, keep: int, before: datetime) -> tuple[Listing, ...]:
    live = [each for each in channel.listings if not each.withdrawn]
    wanted = {each.image for each in live[-keep:]} | {each.image for each in live if datetime.fromisoformat(each.at) > before}
    wanted |= {each.image for each in _steps(contents, live, wanted)}
    newest = max((number for number, each in enumerate(channel.listings) if not each.withdrawn), default=-1)
    return tuple(each for number, each in enumerate(channel.listings) if (number > newest if each.withdrawn else each.image in wanted))


def _steps(contents: Contents, live: list[Listing], wanted: set[str]) -> list[Release]:
    """The releases by which hosts of the oldest version that can reach the last of `live` get there, those `wanted` anyway if possible."""
    releases = [release for each in live if (release := contents.release(each.image))]
    if not releases:
        return []
    steps: list[Release] = []
    bound = releases[-1].minimum
    while bound:
        farther = [each for each in releases if compare(each.version, bound) >= 0 and _older(each.minimum, bound)]
        if not farther:
            break
        best = min([each for each in farther if each.image in wanted] or farther, key=_BY_MINIMUM)
        steps.append(best)
        bound = best.minimum
    return steps


def _compare_minimums(first: Release, second: Release) -> int:
    if not (first.minimum and second.minimum):
        return bool(first.minimum) - bool(second.minimum)
    return compare(first.minimum, second.minimum)


_BY_MINIMUM = cmp_to_key(_compare_minimums)


def _older(minimum: str, bound: str) -> bool:
    return not minimum or compare(minimum, bound) < 0


def reaches(contents: Contents, channel: Channel, version: str) -> bool:
    """Whether a host of that version can come to the channel's current release, by way of others if need be."""
    releases = [release for each in channel.listings if not each.withdrawn and (release := contents.release(each.image))]
    if not releases:
        return False
    bound = releases[-1].minimum
    while bound and compare(version, bound) < 0:
        farther = [each.minimum for each in releases if compare(each.version, bound) >= 0 and _older(each.minimum, bound)]
        if not farther:
            return False
        bound = "" if "" in farther else min(farther, key=cmp_to_key(compare))
    return True


def edges_from(contents: Contents, release: Release, channel: str, wish: str) -> tuple[Release, ...]:
    """The releases from which a precomputed way to `release` is wanted and missing, the most wanted first.

    `wish` is a list, separated by commas, of `previous` (what this channel and every other has now), a number (the channel's last so
    many), versions (with a `@` before one that is a number), or `none`.

    Raises:
        InputError: a word is none of these.
    """
    here = contents.channel(release.name, channel)
    live = [each.image for each in reversed(here.listings) if not each.withdrawn]
    versions = {each.version: each.image for each in contents.releases if each.name == release.name}
    images: list[str] = []
    for word in filter(None, (part.strip() for part in wish.split(","))):
        if word == "none":
            continue
        if word == "previous":
            others = [each.current.image for each in contents.of(release.name) if each.current]
            last = [each.image for each in here.listings[-1:]]  # hosts may run it although it was withdrawn
            images += [*live[:1], *last, *others]
        elif word.isdecimal():
            images += live[: int(word)]
        elif word.removeprefix("@") in versions:
            images.append(versions[word.removeprefix("@")])
        else:
            raise InputError(
                f"no edge can be made from {word!r}", code="edges", hint="previous, a number, a version of the repository, or none"
            )
    have = {edge.from_image for edge in release.edges} | {release.image}
    return tuple(found for image in dict.fromkeys(images) if image not in have and (found := contents.release(image)))


def with_edges(release: Release, edges: Iterable[EdgeFile]) -> Release:
    """The release with these edges as well."""
    made = tuple(edges)
    old = {edge.from_image for edge in made}
    return replace(release, edges=(*(edge for edge in release.edges if edge.from_image not in old), *made))
