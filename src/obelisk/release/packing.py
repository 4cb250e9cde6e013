"""Stores the blocks of a release: those that no pack has yet go into one new pack, and an index says where all of them are.

A pack is never changed. When what `retire` leaves needs little of one, that little is copied, frame by frame as it is, into a new pack,
and the indexes that need it are written anew; both are new files, so whoever reads the old ones goes on.
"""

import mmap
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

from obelisk.errors import TrustError
from obelisk.model.release import File
from obelisk.release.client import hashtree, index
from obelisk.release.client.hashtree import DIGEST_BYTES, HashTree
from obelisk.release.client.index import ZEROS, Frame, Index, Stretch
from obelisk.system import zstd
from obelisk.system.blocks import BLOCK_BYTES

FRAME_BLOCKS = 64
"""256 KiB: larger frames compress better, and cost more when little of them is wanted."""
LEVEL = 19
_AHEAD = 16  # frames that are compressed and not yet written, or being so


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that is to go into the repository, and where it lies now."""

    file: File
    path: Path


@dataclass(frozen=True, slots=True)
class Known:
    """An index with the leaves of its tree."""

    index: Index
    leaves: bytes


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a pack is needed. `live_bytes` are those of frames of which anything is."""

    pack: File
    live_bytes: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A block in a frame."""

    pack: File
    frame: Frame
    number: int


def store_blocks(
    root: Path, tree: HashTree, known: Sequence[Known], directory: Path, *, on_bytes: Callable[[int], None]
) -> tuple[Stored, Stored | None]:
    """The index of a root, and the pack of its new blocks, if there are any; both written into `directory` under names of their own.

    `known` are the indexes of the releases that the repository has, of the same product; of others nothing is shared. `on_bytes` is told
    how many bytes of the root are dealt with. All processors are used; not durable.
    """
    wanted = {tree.leaf(block) for block in range(tree.data_blocks)}
    places: dict[bytes, _Place] = {}
    for each in known:
        if each.index.salt == tree.salt:
            _look_up(each, wanted, places)
    found = Counter((place.pack, place.frame.offset) for place in places.values())
    # A frame of which hardly anything is wanted would be fetched for that: the little is stored once more.
    places = {leaf: p for leaf, p in places.items() if found[p.pack, p.frame.offset] * index.SPARSE >= p.frame.blocks}
    zeros = hashtree.digests(bytes(BLOCK_BYTES), tree.salt)
    fresh: list[int] = []
    numbers: dict[bytes, int] = {}
    for block in range(tree.data_blocks):
        leaf = tree.leaf(block)
        if leaf != zeros and leaf not in places and leaf not in numbers:
            numbers[leaf] = len(fresh)
            fresh.append(block)
    on_bytes((tree.data_blocks - len(fresh)) * BLOCK_BYTES)
    stored, frames = _write_pack(root, fresh, directory, on_bytes)
    used = {(place.pack, place.frame.offset): place.frame for place in places.values()}
    packs = list(dict.fromkeys(pack for pack, _offset in used))
    ordered: list[Frame] = []
    starts: dict[tuple[File, int], int] = {}
    total = 0
    for (pack, offset), frame in sorted(used.items(), key=lambda item: (packs.index(item[0][0]), item[0][1])):
        starts[pack, offset] = total
        total += frame.blocks
        ordered.append(replace(frame, pack=packs.index(pack)))
    if stored is not None:
        ordered += (replace(frame, pack=len(packs)) for frame in frames)
        packs.append(stored.file)

    def number(leaf: bytes) -> int:
        if leaf in numbers:
            return total + numbers[leaf]
        place = places.get(leaf)
        return ZEROS if place is None else starts[place.pack, place.frame.offset] + place.number

    stretches = _stretches(number(tree.leaf(block)) for block in range(tree.data_blocks))
    level = hashtree.parents(tree.leaves, tree.salt)
    made = Index(tree.superblock, tree.data_blocks, tuple(packs), tuple(ordered), tuple(stretches), level)
    return write_index(Known(made, tree.leaves), directory), stored


def write_index(known: Known, directory: Path) -> Stored:
    """Write an index into `directory`, under a name of its own."""
    data = index.encode(known.index, known.leaves)
    path = directory / f"index-{token_hex(8)}"
    path.write_bytes(data)
    return Stored(File(sha256(data).hexdigest(), len(data)), path)


def read_index(path: Path, root_hash: str, root_bytes: int) -> Known:
    """An index that lies on disk, whole.

    Raises:
        TrustError: it is damaged.
    """
    data = path.read_bytes()
    decoded = index.decode(data, root_hash, root_bytes)
    front = index.front_bytes(data)
    places = index.leaves_range(front, decoded.blocks, range(len(decoded.level) // DIGEST_BYTES))
    leaves = data[places.start : places.start + decoded.blocks * DIGEST_BYTES]
    if len(data) != places.stop or hashtree.parents(leaves, decoded.salt) != decoded.level:
        raise TrustError(f"{path} is damaged", code="index-damaged", hint="run `obelisk repo verify`")
    return Known(decoded, leaves)


def uses(indexes: Sequence[Index]) -> tuple[Use, ...]:
    """How much each pack is needed that any of these needs."""
    return tuple(Use(pack, sum(size for _offset, size in live)) for pack, live in _live(indexes).items())


def compact(
    indexes: Mapping[str, Known], open_pack: Callable[[File], Path], directory: Path, *, share: float = 0.5
) -> tuple[dict[str, Stored], Stored | None]:
    """Copy what is needed of packs of which less than `share` is: the new indexes by the names of the old, and the new pack.

    Nothing, when no pack is so. Frames are copied as they are, after a look at nothing: what a host makes of them it checks.
    """
    live = _live([known.index for known in indexes.values()])
    sparse = {pack for pack, frames in live.items() if sum(size for _offset, size in frames) < pack.size_bytes * share}
    if not sparse:
        return {}, None
    path = directory / f"pack-{token_hex(8)}"
    hasher, at = sha256(), 0
    moved: dict[tuple[File, int], int] = {}
    with path.open("wb") as out:
        for pack in (pack for pack in live if pack in sparse):
            with open_pack(pack).open("rb") as source:
                for offset, size in sorted(live[pack]):
                    source.seek(offset)
                    data = source.read(size)
                    hasher.update(data)
                    out.write(data)
                    moved[pack, offset] = at
                    at += size
    stored = Stored(File(hasher.hexdigest(), at), path)
    rewritten = {}
    for name, known in indexes.items():
        if sparse.intersection(known.index.packs):
            rewritten[name] = write_index(Known(_moved(known.index, stored.file, moved), known.leaves), directory)
    return rewritten, stored


def _live(indexes: Sequence[Index]) -> dict[File, set[tuple[int, int]]]:
    found: dict[File, set[tuple[int, int]]] = defaultdict(set)
    for each in indexes:
        for frame in each.frames:
            found[each.packs[frame.pack]].add((frame.offset, frame.size_bytes))
    return found


def _moved(old: Index, pack: File, moved: Mapping[tuple[File, int], int]) -> Index:
    """The index after frames have moved into `pack`; those of one pack stay together."""
    left = [other for other in old.packs if not any(key[0] == other for key in moved)]
    packs = (*left, pack)
    frames = []
    for frame in old.frames:
        source = old.packs[frame.pack]
        at = moved.get((source, frame.offset))
        place = packs.index(source) if at is None else len(left)
        frames.append(replace(frame, pack=place, offset=frame.offset if at is None else at))
    return replace(old, packs=packs, frames=tuple(frames))


def _look_up(known: Known, wanted: set[bytes], places: dict[bytes, _Place]) -> None:
    """Find where the wanted blocks are that are not found yet."""
    starts = known.index.starts()
    by_number = [(frame, start) for frame, start in zip(known.index.frames, starts, strict=False)]
    owner: list[int] = []
    for at, frame in enumerate(known.index.frames):
        owner += [at] * frame.blocks
    for block, number in enumerate(known.index.places()):
        leaf = known.leaves[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
        if number != ZEROS and leaf in wanted and leaf not in places:
            frame, start = by_number[owner[number]]
            places[leaf] = _Place(known.index.packs[frame.pack], frame, number - start)


def _write_pack(root: Path, blocks: Sequence[int], directory: Path, on_bytes: Callable[[int], None]) -> tuple[Stored | None, list[Frame]]:
    if not blocks:
        return None, []
    path = directory / f"pack-{token_hex(8)}"
    hasher, frames, at = sha256(), list[Frame](), 0
    with root.open("rb") as file, path.open("wb") as out:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for count, frame in _compressed(view, blocks):
            frames.append(Frame(0, at, len(frame), count))
            hasher.update(frame)
            out.write(frame)
            at += len(frame)
            on_bytes(count * BLOCK_BYTES)
    return Stored(File(hasher.hexdigest(), at), path), frames


def _compressed(view: memoryview, blocks: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Frames of the blocks, in their order, made on all processors."""

    def compress(some: Sequence[int]) -> tuple[int, bytes]:
        content = b"".join(view[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] for block in some)
        return len(some), zstd.compress(content, LEVEL)

    waiting: deque[Future[tuple[int, bytes]]] = deque()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for at in range(0, len(blocks), FRAME_BLOCKS):
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
            waiting.append(pool.submit(compress, blocks[at : at + FRAME_BLOCKS]))
        while waiting:
            yield waiting.popleft().result()


def _stretches(numbers: Iterator[int]) -> list[Stretch]:
    found: list[Stretch] = []
    for number in numbers:
        last = found[-1] if found else None
        if last is not None and number == (ZEROS if last.first == ZEROS else last.first + last.count):
            found[-1] = Stretch(last.count + 1, last.first)
        else:
            found.append(Stretch(1, number))
    return found
