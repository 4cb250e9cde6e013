"""`obelisk host upgrade CHANNEL`: what a channel has for this host, and how it comes here.

In this order: metadata, proof, manifest; then whether the image may come to this host at all; then the files. Nothing of a release is
used before what vouches for it was checked, and no slot is written before everything small is here.

    host/trust/                  see `obelisk.release.client.trust`
    host/incoming/<image id>/    on the state volume, in no snapshot: files of the release that is being installed
        uki                      the kernel image
        loader, update-db, …     what it brings to firmware and loader
        *.part                   what has come of a file
        …                        what else a way needs

Another image's files go when a new one is begun, and all do when it is installed.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from obelisk.errors import InputError, StateError, TransportError, TrustError
from obelisk.events import Note, Sink, task
from obelisk.host import admission, esp, firmware, journal
from obelisk.host.here import Here
from obelisk.host.subscription import Subscription
from obelisk.host.upgrade import SPARE_STATE_BYTES, gather, waiting
from obelisk.host.ways import Way
from obelisk.model import uki
from obelisk.model.following import Decision, Follower, GoBack, Refuse, Stay, Take, follow
from obelisk.model.host import failed_images, known_good, unfit_images
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.model.release import Channel, File, Listing, Release
from obelisk.model.version import compare
from obelisk.release.client import proof, trust
from obelisk.release.client.hashtree import Run
from obelisk.release.client.remote import Mirrors, MissingError, mirror
from obelisk.system.files import hash_file, written_by_name
from obelisk.system.filesystem import space
from obelisk.system.http import Client, Limits, Proxies

_LARGEST_SMALL_BYTES = 16 << 20
_CLOCK_SLACK = timedelta(days=1)
_UKI = "uki"

Ways = Callable[[Here, Release, Manifest, Mirrors, Sink], Sequence[Way]]
"""How a release can come to a host, the cheapest way first."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which channel is asked, at which mirrors, and with which root metadata trust begins.

    `retry` is the version of an image that failed here and is to be tried all the same; empty: none.
    """

    channel: str
    mirrors: Mirrors
    root: bytes
    retry: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a channel has for this host. `release` is that of a decision to take one."""

    channel: Channel
    decision: Decision
    release: Release | None
    repository: trust.Repository
    mirrors: Mirrors


@contextmanager
def mirrors(subscription: Subscription, sink: Sink) -> Iterator[Mirrors]:
    """The mirrors that a host follows, for as long as the block lasts.

    Raises:
        InputError: one of them is no address.
    """
    limits = Limits(bandwidth_bytes_s=subscription.bandwidth_bytes_s)
    with Client(limits, proxies=Proxies(subscription.proxy)) as client:
        found = [mirror(address, client) for address in subscription.repositories]
        yield Mirrors(found, say=lambda message: sink(Note(message)))


def look(here: Here, wish: Wish, sink: Sink) -> Offer:
    """What a channel has for this host. Changes nothing but what this host knows of the repository.

    Raises:
        TrustError, TransportError: what the repository says cannot be had, or cannot be believed.
        StateError: this machine's clock is behind.
    """
    channel, found = wish.channel, wish.mirrors
    with task(sink, "upgrade/metadata", f"Asking what {channel} has") as running:
        repository = trust.refresh(here.trust, wish.root, found)
        listed = repository.channel(here.name, channel)
        now = datetime.now(UTC)
        _require_clock(listed, now)
        decision = follow(listed, follower(here), lambda listing: repository.release(listing.image).minimum, retry=bool(wish.retry))
        release = _released(repository, decision.listing) if isinstance(decision, Take) else None
        running.detail = listed.current.version if listed.current else "nothing"
    for warning in filter(None, (expiry.warning(now) for expiry in repository.expiries)):
        sink(Note(warning))
    return Offer(listed, decision, release, repository, found)


def follower(here: Here) -> Follower:
    """This host, as `follow` wants to know it."""
    records = journal.read(here.keep)
    good = known_good(records)
    with here.esp() as place:
        entries = esp.entries(place)
        manifest = esp.manifest_of(place, here.label)
    slots = {slot.label for slot in here.slots()}
    fallback = ""
    for entry in entries:
        if entry.label != here.label and entry.label in good and entry.label in slots and compare(entry.version, fallback) > 0:
            fallback = entry.version
    return Follower(here.version, manifest.id if manifest else "", failed_images(records) | unfit_images(records), fallback)


@dataclass(frozen=True, slots=True)
class ChannelSource:
    """A release whose metadata, proof and manifest were checked. Its blocks come when they are written, in the cheapest of `ways`.

    There are none of it where it is installed already, and only waits for its first boot.
    """

    manifest: Manifest
    incoming: Path
    ways: tuple[Way, ...]
    sink: Sink

    def path(self, kind: PartKind) -> Path:
        """See `obelisk.host.source.Source`."""
        return self.incoming / (_UKI if kind is PartKind.UKI else kind.value)

    @property
    def write_bytes(self) -> int:
        """See `obelisk.host.source.Source`."""
        return self.ways[0].write_bytes

    def write(self, root: Path, tree: Path, *, on_bytes: Callable[[int], None]) -> tuple[int, list[Run]]:
        """See `obelisk.host.source.Source`."""
        if not self.ways:
            raise StateError(
                f"{self.manifest.label} was installed already, and is no longer",
                code="host-busy",
                hint="somebody else is at work; try again",
            )
        first, *others = self.ways
        try:
            outcome = first.write(self.incoming, root, tree, on_bytes=on_bytes)
        except TrustError as error:
            if not others:
                raise
            self.sink(Note(f"{error.message}; going on with {others[0].title}"))
            with task(self.sink, "upgrade/fetch", f"Fetching {others[0].title}", total=others[0].fetch_bytes, unit="B") as running:
                others[0].fetch(self.incoming, running.counting(others[0].fetch_bytes))
            outcome = others[0].write(self.incoming, root, tree, on_bytes=lambda _count: None)
        if uki.root_hash(self.path(PartKind.UKI).read_bytes()) != self.manifest.root_hash:
            raise TrustError(
                "the image's kernel starts another root than its manifest names",
                code="uki-foreign",
                hint="tell whoever runs the repository; nothing was switched",
            )
        return outcome


def obtain(here: Here, wish: Wish, sink: Sink, *, ways: Ways) -> ChannelSource | GoBack | Stay | Refuse:
    """The release that this host is to take, with all that has to be there before a slot is written; or what it is to do instead.

    Where a file has gone since the metadata was fetched, because its release was retired or rewritten, the metadata is fetched again.

    Raises:
        InputError: the channel has another version than the one that is to be tried again.
        See `look` and `prepare`.
    """
    try:
        return _obtain(here, wish, sink, ways)
    except MissingError as error:
        sink(Note(f"{error.message}; asking what is there now"))
    return _obtain(here, wish, sink, ways)


def _obtain(here: Here, wish: Wish, sink: Sink, ways: Ways) -> ChannelSource | GoBack | Stay | Refuse:
    offer = look(here, wish, sink)
    if not isinstance(offer.decision, Take):
        return offer.decision
    if wish.retry and wish.retry != (version := offer.decision.listing.version):
        raise InputError(f"--retry names {wish.retry}, {wish.channel} has {version}", code="retry-other", hint="name that, or none")
    return prepare(here, offer, sink, retry=bool(wish.retry), ways=ways)


def prepare(here: Here, offer: Offer, sink: Sink, *, retry: bool, ways: Ways) -> ChannelSource:
    """A release that may be installed here, with all that has to be there before a slot is written. May be repeated: it is resumed then.

    Raises:
        TrustError: it has no proof that counts, or is not what its document says.
        InputError, StateError: it must not be installed here, or there is no room.
        TransportError: it cannot be fetched; what came is kept.
    """
    release = offer.release
    if release is None:
        message = f"there is nothing to take: {offer.decision}"
        raise AssertionError(message)
    with here.alone():
        with task(sink, "upgrade/proof", f"Checking the proof of {release.name} {release.version}"):
            proofs = (_small(offer.mirrors, file) for file in release.proofs)
            proof.accept(proofs, offer.repository.testers(), release.image)
            manifest = _manifest(release, offer.mirrors)
        with here.esp() as place:
            facts = gather(here, esp.entries(place))
        if (reason := admission.refusal(facts, manifest, retry=retry)) is not None:
            raise reason
        incoming = here.incoming / manifest.id
        if waiting(facts, manifest) is not None:
            return ChannelSource(manifest, incoming, (), sink)
        _sweep(here, but=incoming)
        with written_by_name(incoming):
            incoming.mkdir(parents=True, exist_ok=True)
        left = list(ways(here, release, manifest, offer.mirrors, sink))
        while True:
            try:
                _fetch(here, incoming, left[0], manifest, sink)
                break
            except (TransportError, TrustError) as error:
                if len(left) == 1:
                    raise
                left.pop(0)
                sink(Note(f"{error.message}; going on with {left[0].title}"))
        with here.esp() as place:
            brought = firmware.wanted(place, manifest)
        for kind in brought:
            part = manifest.part(kind)
            offer.mirrors.fetch(File(part.sha256, part.size_bytes), incoming / kind.value, lambda _count: None)
    return ChannelSource(manifest, incoming, tuple(left), sink)


def _fetch(here: Here, incoming: Path, way: Way, manifest: Manifest, sink: Sink) -> None:
    _require_room(here, incoming, way)
    whole = sum(manifest.part(kind).size_bytes for kind in (PartKind.ROOT, PartKind.VERITY, PartKind.UKI))
    title = f"Fetching {way.title}: {_size(way.download_bytes)} of {_size(whole)}, in {way.requests} request{'s' * (way.requests != 1)}"
    with task(sink, "upgrade/fetch", title, total=way.fetch_bytes, unit="B") as running:
        way.fetch(incoming, running.counting(way.fetch_bytes))


def restore(
    here: Here, wish: Wish, label: str, sink: Sink, *, way: Callable[[Here, Release, Manifest, Mirrors, Sink], Way]
) -> ChannelSource:
    """An image that a slot holds, as the repository has it: to write again what is damaged of it.

    Raises:
        TrustError: the repository does not have it, or cannot be believed.
        TransportError: it cannot be fetched.
    """
    with task(sink, "repair/metadata", f"Looking for {label} in the repository"):
        repository = trust.refresh(here.trust, wish.root, wish.mirrors)
        with here.esp() as place:
            known = esp.manifest_of(place, label)
            entry = esp.find(place, label)
            program = esp.path_of(place, entry) if entry else None
            image = known.id if known else _listed(repository.channel(here.name, wish.channel), label)
            release = repository.release(image)
            manifest = _manifest(release, wish.mirrors)
            incoming = here.incoming / manifest.id
            with here.alone(), written_by_name(incoming):
                _sweep(here, but=incoming)
                incoming.mkdir(parents=True, exist_ok=True)
                # A kernel image that is sound need not be fetched.
                if program is not None and hash_file(program) == manifest.part(PartKind.UKI).sha256:
                    shutil.copyfile(program, incoming / _UKI)
    return ChannelSource(manifest, incoming, (way(here, release, manifest, wish.mirrors, sink),), sink)


def _listed(channel: Channel, label: str) -> str:
    for listing in channel.listings:
        if f"{channel.name}_{listing.version}" == label:
            return listing.image
    raise TrustError(
        f"{label} is not in {channel.channel}, and its manifest is gone from the ESP",
        code="target-missing",
        hint="repair it from the directory of the image, or upgrade: that writes the other slot anew",
    )


def discard(here: Here) -> None:
    """Remove the files of releases: they are installed, or nobody wants them any more."""
    if here.incoming.exists():
        with here.alone():
            _sweep(here, but=None)


def _sweep(here: Here, *, but: Path | None) -> None:
    for path in here.incoming.glob("*"):
        if path != but:
            shutil.rmtree(path)


def _released(repository: trust.Repository, listing: Listing) -> Release:
    release = repository.release(listing.image)
    if release.version != listing.version:
        raise TrustError(
            f"the channel lists {listing.version}, and its image was released as {release.version}",
            code="target-mixed",
            hint="tell whoever runs the repository",
        )
    return release


def _require_clock(channel: Channel, now: datetime) -> None:
    """Metadata that has expired looks valid to a clock that is behind. What was released was released in the past."""
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


def _small(found: Mirrors, file: File) -> bytes:
    if file.size_bytes > _LARGEST_SMALL_BYTES:
        raise TrustError(f"{file.path} is said to have {file.size_bytes} bytes, which cannot be", code="file-wrong")
    return found.read_file(file)


def _manifest(release: Release, found: Mirrors) -> Manifest:
    manifest = parse_manifest(_small(found, release.manifest), image_id=release.image)
    said = (release.name, release.version, release.root_hash, release.root_bytes)
    if (manifest.name, manifest.version, manifest.root_hash, manifest.part(PartKind.ROOT).size_bytes) != said:
        raise TrustError(
            f"the release of {release.name} {release.version} says something else than its image's manifest",
            code="target-mixed",
            hint="tell whoever runs the repository",
        )
    return manifest


def _require_room(here: Here, incoming: Path, way: Way) -> None:
    there = sum(path.stat().st_size for path in incoming.iterdir())
    wanted = max(way.room_bytes - there, 0) + SPARE_STATE_BYTES
    free = space(here.keep).free_bytes
    if free < wanted:
        raise StateError(
            f"the state volume has {_size(free)} free, this upgrade needs {_size(wanted)}",
            code="state-full",
            hint="make room: `obelisk host snapshot list`, `obelisk host drift`",
        )


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
