"""What a channel has for an installed application, or for one that is to be, and how it comes here.

As on hosts (`obelisk.host.channel`), and by the same checks: metadata, proof, manifest; then what it asks for, which is small; and then the
blocks that no installed version has. Nothing of a release is used before what vouches for it was checked.

    KEPT/<name>/follow.json           `Following`
               /trust/<root>/         what was learned of the repository, by the beginning of its first root's digest;
                                      see `obelisk.release.client.trust`
               /incoming/<image id>/  the release that is coming: its parts; manifest.json last, when it is whole. Resumed when it was cut
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from obelisk.errors import InputError, StateError, TransportError, TrustError
from obelisk.events import Note, Sink, task
from obelisk.model.canonical import canonical
from obelisk.model.following import Decision, Follower, Stay, Take, follow
from obelisk.model.image import PartKind
from obelisk.model.release import Channel, EdgeFile, File, Release
from obelisk.release.client import blocks, edge, hashtree, planning, trust, vouched
from obelisk.release.client.planning import Have
from obelisk.release.client.remote import Mirrors
from obelisk.sandbox.installed import INCOMING
from obelisk.store import StoredImage
from obelisk.store.images import MANIFEST
from obelisk.system.blocks import BLOCK_BYTES
from obelisk.system.files import hash_file, locked, write_durably, written_by_name
from obelisk.system.filesystem import space
from obelisk.system.namespace import remove_tree

SCHEMA = "obelisk.following/1"
_ARCHITECTURE = "amd64"
_SPARE_BYTES = 64 << 20  # for what else the machine writes meanwhile
_EDGE = "edge"
_AGAIN = "install it again, with --channel and --from"


@dataclass(frozen=True, slots=True)
class Following:
    """Which channel an application follows, at which mirrors, and the root metadata with which trust began.

    Without mirrors, or without root, those that the machine's own image follows.
    """

    channel: str
    repositories: tuple[str, ...] = ()
    root: bytes = b""

    def keep(self, kept: Path) -> None:
        """Note it, durably."""
        noted = {"schema": SCHEMA, "channel": self.channel, "repositories": list(self.repositories), "root": self.root.decode()}
        write_durably(kept / "follow.json", canonical(noted))


def following(kept: Path) -> Following | None:
    """What an application follows; None when it is nothing.

    Raises:
        TrustError: the note of it is damaged.
    """
    try:
        raw = json.loads((kept / "follow.json").read_bytes())
        known = raw["schema"] == SCHEMA
        found = Following(str(raw["channel"]), tuple(map(str, raw["repositories"])), str(raw["root"]).encode())
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError(f"the note of what it follows is damaged: {error}", code="following-damaged", hint=_AGAIN) from error
    if not known:
        raise TrustError("what it follows was noted by another version of obelisk", code="following-schema", hint=_AGAIN)
    return found


@dataclass(frozen=True, slots=True)
class Wish:
    """Which channel is asked, at which mirrors, and with which root metadata trust begins. `retry`: also for what failed here."""

    channel: str
    mirrors: Mirrors
    root: bytes
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What a channel has. `release` is that of a decision to take one."""

    channel: Channel
    decision: Decision
    release: Release | None
    repository: trust.Repository
    mirrors: Mirrors


def look(kept: Path, name: str, wish: Wish, follower: Follower | None, sink: Sink) -> Offer:
    """What a channel has for the application; `follower` is what is installed. Changes nothing but what is known of the repository.

    Raises:
        TrustError, TransportError: what the repository says cannot be had, or cannot be believed.
        StateError: this machine's clock is behind.
    """
    keep = kept / "trust" / sha256(wish.root).hexdigest()[:16]
    with task(sink, "upgrade/metadata", f"Asking what {wish.channel} has of {name}") as running:
        repository = trust.refresh(keep, wish.root, wish.mirrors)
        listed = repository.channel(name, wish.channel)
        now = datetime.now(UTC)
        vouched.require_clock(listed, now)
        if follower is not None:
            decision = follow(listed, follower, lambda listing: repository.release(listing.image).minimum, retry=wish.retry)
        elif listed.current is not None:
            decision = Take(listed.current, f"{listed.current.version} is the newest in {listed.channel}")
        else:
            decision = Stay(f"{listed.channel} has nothing to offer: all its releases are withdrawn, or there were none")
        release = vouched.released(repository, decision.listing) if isinstance(decision, Take) else None
        running.detail = listed.current.version if listed.current else "nothing"
    for warning in filter(None, (expiry.warning(now) for expiry in repository.expiries)):
        sink(Note(warning))
    return Offer(listed, decision, release, repository, wish.mirrors)


@contextmanager
def coming(kept: Path) -> Iterator[None]:
    """Nobody else brings a release of the application here during the block.

    Raises:
        StateError: somebody does.
    """
    kept.mkdir(parents=True, exist_ok=True)
    try:
        with locked(kept / "incoming.lock", wait=False):
            yield
    except StateError as error:
        if error.code != "locked":
            raise
        raise StateError(f"{kept.name} is being fetched already", code="app-busy", hint="wait until that is finished") from error


def accept(kept: Path, name: str, offer: Offer, sink: Sink) -> StoredImage:
    """The release that is to be taken, as far as it tells what it may do: its blocks are not here yet. Call it within `coming`.

    Raises:
        TrustError: it has no proof that counts, or is not what its document says.
        InputError: it is no application, or one for other machines.
        TransportError: it cannot be fetched.
    """
    release = _taken(offer)
    manifest = vouched.proven(release, offer.repository, offer.mirrors, sink)
    if not manifest.is_application or manifest.name != name:
        raise InputError(
            f"{manifest.label} is no application of the name {name}", code="not-application", hint="machines take it: obelisk host upgrade"
        )
    if manifest.architecture != _ARCHITECTURE:
        raise InputError(f"the image is for {manifest.architecture}, this machine is {_ARCHITECTURE}", code="architecture")
    if strange := [part.file for part in manifest.parts if "/" in part.file or part.file.startswith(".") or part.file == MANIFEST]:
        raise TrustError(f"{manifest.label} has a part named {strange[0]!r}", code="part-name", hint="tell whoever runs the repository")
    directory = kept / INCOMING / manifest.id
    discard(kept, but=manifest.id)
    with written_by_name(directory):
        directory.mkdir(parents=True, exist_ok=True)
    part = manifest.part(PartKind.APPLICATION)
    offer.mirrors.fetch(File(part.sha256, part.size_bytes), directory / part.file, _unseen)
    return StoredImage(manifest.id, manifest, directory, 0)


def bring(image: StoredImage, offer: Offer, there: Sequence[StoredImage], sink: Sink) -> int:
    """Have all of an accepted release here, and return how many bytes were fetched of its root. `there` are installed versions.

    Call it within `coming`. May be repeated: it is resumed.

    Raises:
        TrustError: it is not what its root hash promises.
        TransportError: it cannot be fetched; what came is kept.
        StateError: there is no room.
    """
    manifest, directory, release = image.manifest, image.directory, _taken(offer)
    if (directory / MANIFEST).exists():
        return 0
    for part in manifest.parts:
        if part.kind not in {PartKind.ROOT, PartKind.VERITY}:
            offer.mirrors.fetch(File(part.sha256, part.size_bytes), directory / part.file, _unseen)
    root, tree = image.part_path(PartKind.ROOT), image.part_path(PartKind.VERITY)
    _require_room(root, manifest.part(PartKind.ROOT).size_bytes + manifest.part(PartKind.VERITY).size_bytes)
    for path, kind in ((root, PartKind.ROOT), (tree, PartKind.VERITY)):
        with written_by_name(path), path.open("ab") as file:
            file.truncate(manifest.part(kind).size_bytes)
    with written_by_name(root):
        fetched = _write(_Coming(image, release, offer.mirrors, root, tree), _haves(there), sink)
    if hash_file(tree) != manifest.part(PartKind.VERITY).sha256:
        raise TrustError(
            f"the hash tree of {manifest.label} is not what its manifest says", code="file-wrong", hint="tell whoever runs the repository"
        )
    write_durably(directory / MANIFEST, manifest.to_bytes())
    return fetched


def discard(kept: Path, *, but: str = "") -> None:
    """Remove what has come of releases, but of that image."""
    for each in (kept / INCOMING).glob("*"):
        if each.name != but:
            remove_tree(each)


@dataclass(frozen=True, slots=True)
class _Coming:
    """A release on its way, and the files that are to be its root and hash tree."""

    image: StoredImage
    release: Release
    mirrors: Mirrors
    root: Path
    tree: Path


def _write(coming: _Coming, haves: dict[str, Have], sink: Sink) -> int:
    """Make the files hold the image, by a ready-made edge where that is the cheaper way, else block by block; the bytes fetched."""
    release, label = coming.release, coming.image.manifest.label
    wanted = planning.Wanted(release.root_hash, release.root_bytes, release.index)
    total = release.root_bytes
    with task(sink, "upgrade/plan", "Finding out which blocks are not here", total=total, unit="B") as running:
        ready = planning.plan(coming.mirrors, wanted, coming.root, [*haves.values()], on_bytes=running.counting(total))
    best = min((each for each in release.edges if each.from_image in haves), key=lambda each: each.file.size_bytes, default=None)
    if best is not None and best.file.size_bytes < ready.fetch_bytes:
        try:
            return _by_edge(coming, best, haves[best.from_image], sink)
        except (TransportError, TrustError) as error:
            sink(Note(f"{error.message}; going on with its blocks"))
            ready = planning.plan(coming.mirrors, wanted, coming.root, [*haves.values()], on_bytes=_unseen)
    title = f"Fetching {label}: {_size(ready.fetch_bytes)} of {_size(total)}, in {ready.requests} requests"
    with task(sink, "upgrade/fetch", title, total=ready.fetch_bytes, unit="B") as running:
        count = running.counting(ready.fetch_bytes)
        for tries in range(coming.mirrors.count, 0, -1):
            try:
                blocks.carry_out(coming.mirrors, ready, coming.root, coming.tree, [*haves.values()], on_bytes=count)
                break
            except TrustError as error:
                if tries == 1:
                    raise
                coming.mirrors.blame(error)
            ready = planning.plan(coming.mirrors, wanted, coming.root, [*haves.values()], on_bytes=_unseen)
    return ready.fetch_bytes


def _by_edge(coming: _Coming, way: EdgeFile, have: Have, sink: Sink) -> int:
    if have.root is None:
        raise AssertionError(have)
    file, release = coming.image.directory / _EDGE, coming.release
    title = f"Fetching what differs from {way.from_version}: {_size(way.file.size_bytes)} of {_size(release.root_bytes)}"
    with task(sink, "upgrade/fetch", title, total=way.file.size_bytes, unit="B") as running:
        coming.mirrors.fetch(way.file, file, running.counting(way.file.size_bytes))
    try:
        new = edge.New(coming.root, coming.tree, release.root_hash, release.root_bytes, None)
        edge.apply(file, edge.Old(have.root, have.tree, None), new, on_bytes=_unseen)
    finally:
        file.unlink()
    return way.file.size_bytes


def _haves(there: Sequence[StoredImage]) -> dict[str, Have]:
    """The installed versions, as far as they are sound enough to be of use, by the ids of their images."""
    found = {}
    for each in there:
        # A version that is damaged is no reason against the next; there are other places to have blocks from.
        with suppress(TrustError, OSError):
            tree = hashtree.parse(each.part_path(PartKind.VERITY).read_bytes(), each.manifest.root_hash)
            root = each.part_path(PartKind.ROOT)
            if root.stat().st_size == tree.data_blocks * BLOCK_BYTES:
                found[each.id] = Have(tree, root)
    return found


def _taken(offer: Offer) -> Release:
    if offer.release is None:
        message = f"there is nothing to take: {offer.decision}"
        raise AssertionError(message)
    return offer.release


def _require_room(root: Path, wanted_bytes: int) -> None:
    there = root.stat().st_blocks * 512 if root.exists() else 0
    wanted = max(wanted_bytes - there, 0) + _SPARE_BYTES
    free = space(root.parent).free_bytes
    if free < wanted:
        raise StateError(f"{root.parent} has {_size(free)} free, this takes {_size(wanted)}", code="state-full", hint="make room there")


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def _unseen(_count: int) -> None:
    return
