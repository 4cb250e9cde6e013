"""Makes an edge: the one file with which a host makes the new image out of the old (`client/edge.py` has its format).

Files are paired by path, by path with other numbers in it, and by name; what differs in them goes as bsdiff's differences, everything of
a kind in one solid stream. What belongs to no file (inodes, directories) is one long file for this purpose. Of an image whose files are
not understood, everything is.
"""

import mmap
import os
import re
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bsdiff4 import core

from obelisk.release import erofs
from obelisk.release.client import hashtree, patch, varint
from obelisk.release.client.edge import HEADER, MAGIC, NEW_STREAMS, Kind, Piece, encode_pieces, encode_unit
from obelisk.release.client.hashtree import DIGEST_BYTES, GROUP_BLOCKS, HashTree, Run
from obelisk.release.client.solid import Stream, Writer
from obelisk.release.erofs import Extent
from obelisk.system.blocks import BLOCK_BYTES

_STEP = struct.Struct("<3Q")  # of bsdiff's: sign and magnitude
_SIGN = 1 << 63
# Blocks that are equal, and yet part of a unit: each unit has its own window of old blocks to read, and the hosts' patience with windows
# has an end.
_JOINED = 1024
_TOO_LARGE = 8  # times larger than a file is what it can no longer be a version of
_PER_PROCESSOR = 2


@dataclass(frozen=True, slots=True)
class Image:
    """The parts of an image that an edge has to do with. `tree` was checked against the root hash; an application has no `uki`."""

    root: Path
    tree: HashTree
    uki: Path | None


@dataclass(frozen=True, slots=True)
class _Task:
    """A unit to be made: the blocks of the new image, and the windows of the old."""

    kind: Kind
    source: int
    name: str
    blocks: tuple[Run, ...]
    windows: tuple[Run, ...]

    @property
    def count(self) -> int:
        """How many blocks it makes."""
        return sum(map(len, self.blocks))


@dataclass(frozen=True, slots=True)
class _Made:
    task: _Task
    steps: patch.Steps
    difference: bytes
    new: bytes
    stream: Stream


def make_edge(old: Image, new: Image, out: Path, *, on_bytes: Callable[[int], None]) -> None:
    """Write to `out` the edge from one image to the other. `on_bytes` is told how many bytes of the new root are dealt with.

    Memory is bounded by what differs, processors are all used. Not durable; the same every time for the same images.
    """
    views = [_mapped(path) for path in (old.root, old.uki, new.root, new.uki)]
    tasks, pieces = _plan_root(views[0], views[2], _sources(old.tree, new.tree))
    uki_blocks = -(-len(views[3]) // BLOCK_BYTES)
    tasks += _windows_in_step(uki_blocks, -(-len(views[1]) // BLOCK_BYTES))
    writing = _Writing()
    for made in _differences(tasks, views[:2], views[2:]):
        writing.add(made)
        on_bytes(0 if made.task.source else made.task.count * BLOCK_BYTES)
    on_bytes(sum(piece.count for piece in pieces if piece.kind is Kind.COPY) * BLOCK_BYTES)
    uki_pieces = [Piece(Kind.FILE, uki_blocks)] if uki_blocks else []
    digests = _given_digests(new.tree, pieces, same_salt=new.tree.salt == old.tree.salt)
    writing.finish(out, new.tree.superblock, (pieces, uki_pieces), digests)


class _Writing:
    """An edge that is being put together."""

    def __init__(self) -> None:
        self._streams = {stream: Writer(stream) for stream in Stream}
        self._units = {Kind.FILE: bytearray(), Kind.METADATA: bytearray()}
        self._expected = defaultdict[tuple[Kind, int], int](int)

    def add(self, made: _Made) -> None:
        """Add a unit, in the order of the plan."""
        task = made.task
        of_metadata = task.kind is Kind.METADATA
        form = task.source, NEW_STREAMS.index(made.stream)
        expected = self._expected[task.kind, task.source]
        data, self._expected[task.kind, task.source] = encode_unit(expected, task.count, form, len(made.steps), task.windows)
        self._units[task.kind] += data
        self._streams[Stream.METADATA_CONTROL if of_metadata else Stream.CONTROL].write(patch.pack_steps(made.steps))
        self._streams[Stream.METADATA_DIFFERENCE if of_metadata else Stream.DIFFERENCE].write(made.difference)
        self._streams[Stream.METADATA if of_metadata else made.stream].write(made.new)

    def finish(self, out: Path, superblock: bytes, pieces: tuple[list[Piece], list[Piece]], digests: bytes) -> None:
        """Write the file, with the pieces of the root and of the kernel image."""
        units = bytes(self._units[Kind.FILE]), bytes(self._units[Kind.METADATA])
        parts = encode_pieces(pieces[0]), *units, encode_pieces(pieces[1])
        plan = superblock + b"".join(varint.encode([len(part)]) + part for part in parts)
        self._streams[Stream.PLAN].write(plan)
        finished = [self._streams[stream].finish() for stream in Stream]
        with out.open("wb") as file:
            file.write(HEADER.pack(MAGIC, *map(len, finished), len(digests), len(plan)))
            file.writelines((*finished, digests))


def _mapped(path: Path | None) -> memoryview:
    if path is None or not path.stat().st_size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _sources(old: HashTree, new: HashTree) -> list[int]:
    """For each block of the new image a block of the old one that is equal, or -1; runs go on where they can."""
    if old.salt != new.salt:
        return [-1] * new.data_blocks
    first: dict[bytes, int] = {}
    for block in range(old.data_blocks):
        first.setdefault(old.leaf(block), block)
    found = []
    previous = -2
    for block in range(new.data_blocks):
        leaf = new.leaf(block)
        follows = previous + 1
        at = follows if 0 < follows < old.data_blocks and old.leaf(follows) == leaf else first.get(leaf, -1)
        previous = at if at >= 0 else -2
        found.append(at)
    return found


def _plan_root(old: memoryview, new: memoryview, sources: Sequence[int]) -> tuple[list[_Task], list[Piece]]:
    """Units, in the order in which their kinds come, and the pieces of the root."""
    old_files, new_files = erofs.read_files(old), erofs.read_files(new)
    if old_files is None or new_files is None:
        old_files = new_files = ()
    kinds = [Kind.COPY if source >= 0 else Kind.METADATA for source in sources]
    pairs = _Pairs(old_files)
    tasks = []
    for extent in new_files:
        for run in _changed(extent.blocks, sources):
            partner = pairs.find(extent)
            for at in range(run.start, run.stop, patch.UNIT_BLOCKS):
                part = range(at, min(at + patch.UNIT_BLOCKS, run.stop))
                windows = (_window(part, extent, partner),) if partner else ()
                tasks.append(_Task(Kind.FILE, 0, extent.path, (part,), windows))
                for block in part:
                    kinds[block] = Kind.FILE
    metadata = _metadata_tasks(old, old_files, kinds)
    return [*tasks, *metadata], _pieces(kinds, sources)


def _changed(blocks: Run, sources: Sequence[int]) -> Iterator[Run]:
    """Runs of blocks that the old image does not have, with short stretches between them that it has."""
    start = stop = -1
    for block in blocks:
        if sources[block] < 0:
            if start >= 0 and block - stop > _JOINED:
                yield range(start, stop)
                start = -1
            if start < 0:
                start = block
            stop = block + 1
    if start >= 0:
        yield range(start, stop)


def _window(part: Run, extent: Extent, partner: Extent) -> Run:
    """The blocks of the old file where its new version's most probably come from."""
    whole = partner.blocks
    if len(whole) <= patch.WINDOW_BLOCKS:
        return whole
    middle = (part.start + part.stop) // 2 - extent.blocks.start
    # Measured from the nearer end: what was inserted is rather in one place than spread.
    if middle > len(extent.blocks) // 2:
        middle += len(whole) - len(extent.blocks)
    start = min(max(middle - patch.WINDOW_BLOCKS // 2, 0), len(whole) - patch.WINDOW_BLOCKS)
    return range(whole.start + start, whole.start + start + patch.WINDOW_BLOCKS)


def _metadata_tasks(old: memoryview, old_files: Sequence[Extent], kinds: Sequence[Kind]) -> Iterator[_Task]:
    """Units of what belongs to no file, against all of that in the old image which is about there."""
    count = len(old) // BLOCK_BYTES
    of_files = bytearray(count)
    for extent in old_files:
        of_files[extent.blocks.start : extent.blocks.stop] = b"\1" * len(extent.blocks)
    there = [block for block in range(count) if not of_files[block]]
    wanted = [block for block, kind in enumerate(kinds) if kind is Kind.METADATA]
    for at in range(0, len(wanted), patch.UNIT_BLOCKS):
        part = wanted[at : at + patch.UNIT_BLOCKS]
        nearest = sum(block < part[len(part) // 2] for block in there)
        start = max(min(nearest - patch.WINDOW_BLOCKS // 2, len(there) - patch.WINDOW_BLOCKS), 0)
        window = hashtree.as_runs(there[start : start + patch.WINDOW_BLOCKS])
        yield _Task(Kind.METADATA, 0, "", tuple(hashtree.as_runs(part)), tuple(window))


def _windows_in_step(blocks: int, old_blocks: int) -> Iterator[_Task]:
    """Units of a kernel image, against about the same place of the old one."""
    for at in range(0, blocks, patch.UNIT_BLOCKS):
        part = range(at, min(at + patch.UNIT_BLOCKS, blocks))
        start = max(min(at - patch.UNIT_BLOCKS // 2, old_blocks - patch.WINDOW_BLOCKS), 0)
        window = range(start, min(start + patch.WINDOW_BLOCKS, old_blocks))
        yield _Task(Kind.FILE, 1, "uki", (part,), (window,) if window else ())


def _pieces(kinds: Sequence[Kind], sources: Sequence[int]) -> list[Piece]:
    found: list[Piece] = []
    for block, kind in enumerate(kinds):
        source = sources[block] if kind is Kind.COPY else 0
        last = found[-1] if found else None
        if last is not None and last.kind is kind and (kind is not Kind.COPY or last.source + last.count == source):
            found[-1] = Piece(kind, last.count + 1, last.source)
        else:
            found.append(Piece(kind, 1, source))
    return found


def _given_digests(tree: HashTree, pieces: Sequence[Piece], *, same_salt: bool) -> bytes:
    """The digests of groups that a host cannot compute from the tree that it has."""
    level = hashtree.parents(tree.leaves, tree.salt)
    given, at = set[int](), 0
    for piece in pieces:
        if piece.kind is not Kind.COPY or not same_salt:
            given.update(range(at // GROUP_BLOCKS, (at + piece.count - 1) // GROUP_BLOCKS + 1))
        at += piece.count
    return b"".join(level[group * DIGEST_BYTES : (group + 1) * DIGEST_BYTES] for group in sorted(given))


@dataclass
class _Pairs:
    """Finds to a file of the new image the file of the old one that it most resembles."""

    files: Sequence[Extent]
    _paths: dict[str, Extent] = field(init=False)
    _shapes: dict[str, list[Extent]] = field(init=False)
    _names: dict[str, list[Extent]] = field(init=False)

    def __post_init__(self) -> None:
        self._paths = {extent.path: extent for extent in self.files}
        self._shapes, self._names = defaultdict(list), defaultdict(list)
        for extent in self.files:
            self._shapes[_shape(extent.path)].append(extent)
            self._names[_shape(PurePosixPath(extent.path).name)].append(extent)

    def find(self, wanted: Extent) -> Extent | None:
        """Its earlier version."""
        exact = self._paths.get(wanted.path)
        limit = _TOO_LARGE * (len(wanted.blocks) + 1)
        if exact is not None and len(exact.blocks) <= limit:
            return exact
        name = _shape(PurePosixPath(wanted.path).name)
        found = self._shapes.get(_shape(wanted.path)) or self._names.get(name) or []
        candidates = [extent for extent in found if len(extent.blocks) <= limit]
        return min(candidates, key=lambda extent: (abs(extent.size_bytes - wanted.size_bytes), extent.path), default=None)


def _shape(path: str) -> str:
    return re.sub(r"[0-9]+", "0", path)


def _differences(tasks: Sequence[_Task], old: Sequence[memoryview], new: Sequence[memoryview]) -> Iterator[_Made]:
    """The units, in the order of their tasks; some are made ahead, on all processors."""
    processors = len(os.sched_getaffinity(0))
    waiting: deque[Future[_Made]] = deque()
    # bsdiff lets other threads run while it works.
    with ThreadPoolExecutor(processors) as pool:
        for task in tasks:
            if len(waiting) >= processors * _PER_PROCESSOR:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_difference, task, old[task.source], new[task.source]))
        while waiting:
            yield waiting.popleft().result()


def _gather(view: memoryview, runs: Sequence[Run]) -> bytes:
    data: bytes = b"".join(view[run.start * BLOCK_BYTES : run.stop * BLOCK_BYTES] for run in runs)
    return data + bytes(sum(map(len, runs)) * BLOCK_BYTES - len(data))


def _difference(task: _Task, old: memoryview, new: memoryview) -> _Made:
    before, after = _gather(old, task.windows), _gather(new, task.blocks)
    steps = patch.Steps([0], [len(after)], [0])
    fresh_data = after
    if before:
        # Its own difference, one of bytes, is not what goes into the edge.
        control, _difference_of_bytes, fresh_data = core.diff(before, after)
        steps = _merged(_STEP.iter_unpack(control))
    difference, at, used = [], 0, 0
    for plan, size in patch.pieces(steps, before, len(after)):
        fresh = sum(length for place, length in plan if place < 0)
        predicted = patch.predict(plan, before, fresh_data[used : used + fresh])
        difference.append(patch.subtract(after[at : at + size], predicted))
        at, used = at + size, used + fresh
    return _Made(task, steps, b"".join(difference), fresh_data, _stream(after, fresh_data))


def _merged(control: Iterator[tuple[int, ...]]) -> patch.Steps:
    """Bsdiff's steps without those that do nothing but move on."""
    rows: list[list[int]] = []
    for copied, added, move in control:
        seek = move if move < _SIGN else _SIGN - move
        if copied or added or not rows:
            rows.append([copied, added, seek])
        else:
            rows[-1][2] += seek
    return patch.Steps(*(tuple(column) for column in zip(*rows, strict=True)))


def _stream(content: bytes, new: bytes) -> Stream:
    """Which stream new data of a file go into."""
    if content.startswith(b"\x7fELF"):
        return Stream.CODE
    sample = new[:4096]
    plain = len(sample) - len(sample.translate(None, delete=bytes(range(32, 127)) + b"\t\n\r"))
    return Stream.TEXT if plain * 10 > len(sample) * 9 else Stream.OTHER
