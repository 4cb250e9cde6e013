"""An edge: one file that makes a new image out of an old one.

    magic, 8 bytes; for each stream its size, 8 bytes; size of the digests, 8 bytes; size of the plan unpacked, 8 bytes
    the streams, one after the other (`solid.Stream`)
    the digests of groups of 128 blocks that hold anything but copies of old blocks, in order

The plan says, block after block, where the new image comes from: copied from the old one; the next blocks of a file's unit; the next
blocks of a unit of metadata (`patch`). The kernel image follows the root in the same way, out of the old kernel image.

Nothing in it is believed. The digests of all groups, given or computed from the old image's own, must lead to the root hash, and a group
is written only when what was made has its digest; so the file may be damaged or hostile, and at worst nothing comes of it.
"""

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from obelisk.errors import TrustError
from obelisk.release.client import hashtree, patch, varint
from obelisk.release.client.hashtree import DIGEST_BYTES, GROUP_BLOCKS, HashTree, Run
from obelisk.release.client.solid import Reader, Stream
from obelisk.release.client.writing import Slot
from obelisk.system.blocks import BLOCK_BYTES, BlockDevice

MAGIC = b"OBLKEDG1"
HEADER = struct.Struct(f"<8s{len(Stream) + 2}Q")
_PLAN_BYTES_PER_BLOCK = 16
_PLAN_BYTES = 1 << 20
_WINDOWS_PER_BLOCK = 16  # of the new image: how many blocks all windows together may have, so that reading them comes to an end
_WINDOWS = 1 << 16
_AHEAD = 4  # groups that are made and not yet written


class Kind(IntEnum):
    """Where the next blocks come from."""

    COPY = 0
    FILE = 1
    METADATA = 2


NEW_STREAMS = (Stream.CODE, Stream.TEXT, Stream.OTHER)


@dataclass(frozen=True, slots=True)
class Old:
    """The image that is there: its root, whose tree was checked, and its kernel image, which an application does not have."""

    root: Path
    tree: HashTree
    uki: Path | None


@dataclass(frozen=True, slots=True)
class Uki:
    """The kernel image that is to come: where to, and what its manifest says of it."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class New:
    """The image that is to come: the devices that get it, its root hash and its size. Without `uki` the kernel image is left out."""

    root: Path
    tree: Path
    root_hash: str
    root_bytes: int
    uki: Uki | None


def apply(edge: Path, old: Old, new: New, *, on_bytes: Callable[[int], None]) -> tuple[int, list[Run]]:
    """Make the devices hold the new image; return the bytes written, and the blocks of the root among them.

    What is right already is not written again. `on_bytes` is told how many bytes of the root are known to be right. Durable when this
    returns; may be repeated.

    Raises:
        TrustError: file or old image are not what they must be; the slot then has new blocks in it that are right, and is incomplete.
    """
    descriptor = os.open(edge, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _Edge(descriptor, edge, new).apply(old, on_bytes)
    except ValueError as error:
        raise _damaged(edge, str(error)) from error
    finally:
        os.close(descriptor)


def _damaged(edge: Path, why: str) -> TrustError:
    return TrustError(
        f"{edge} does not make the new image: {why}",
        code="edge-damaged",
        hint="fetch the image block by block; should that fail too, check the running slot with `obelisk host verify`",
    )


class _Source(Protocol):
    """Old data, by blocks."""

    def read(self, blocks: Run) -> bytes: ...


class _Root:
    def __init__(self, device: BlockDevice, count: int) -> None:
        self._device = device
        self._count = count

    def read(self, blocks: Run) -> bytes:
        if blocks.stop > self._count:
            raise ValueError("it copies what lies beyond the old image")
        found = []
        for at in range(blocks.start, blocks.stop, GROUP_BLOCKS):
            length = min(GROUP_BLOCKS, blocks.stop - at) * BLOCK_BYTES
            found.append(bytes(self._device.read(at * BLOCK_BYTES, length)))
        return b"".join(found)


class _File:
    """A kernel image, which is opened when it is first wanted."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self, blocks: Run) -> bytes:
        size = len(blocks) * BLOCK_BYTES
        if self._path is None:
            raise ValueError("it wants an old kernel image, of which there is none")
        try:
            with self._path.open("rb") as file:
                if blocks.stop > -(-os.fstat(file.fileno()).st_size // BLOCK_BYTES):
                    raise ValueError("it copies what lies beyond the old kernel image")
                file.seek(blocks.start * BLOCK_BYTES)
                return file.read(size).ljust(size, b"\0")
        except OSError as error:
            raise ValueError(f"the old kernel image cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Piece:
    """Some blocks of the new image. `source` is where they are in the old one, when they are copied."""

    kind: Kind
    count: int
    source: int = 0


class _Edge:
    """An open edge file, whose beginning is sound."""

    def __init__(self, descriptor: int, path: Path, new: New) -> None:
        self.path = path
        self.new = new
        head = os.pread(descriptor, HEADER.size, 0)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise ValueError("it is no edge")
        _magic, *sizes, digest_bytes, plan_bytes = HEADER.unpack(head)
        blocks = new.root_bytes // BLOCK_BYTES
        if HEADER.size + sum(sizes) + digest_bytes != os.fstat(descriptor).st_size:
            raise ValueError("it is cut short")
        if plan_bytes > blocks * _PLAN_BYTES_PER_BLOCK + _PLAN_BYTES or digest_bytes > (blocks + GROUP_BLOCKS) // 2:
            raise ValueError("its plan is longer than any")
        at = HEADER.size
        self.streams: dict[Stream, Reader] = {}
        for stream, size in zip(Stream, sizes, strict=True):
            self.streams[stream] = Reader(stream, descriptor, at, size)
            at += size
        self.digests = os.pread(descriptor, digest_bytes, at)
        plan = varint.Reader(self.streams[Stream.PLAN].read(plan_bytes))
        self.superblock = plan.raw(hashtree.SUPERBLOCK_BYTES)
        self.pieces, self.files, self.metadata, self.uki_pieces = (plan.raw(plan.number()) for _ in range(4))
        self.salt, self.blocks = hashtree.read_superblock(self.superblock)
        if self.blocks != blocks or new.root_bytes % BLOCK_BYTES:
            raise ValueError("it makes an image of another size")

    def apply(self, old: Old, on_bytes: Callable[[int], None]) -> tuple[int, list[Run]]:
        level = self._level(old.tree)
        uki = _File(old.uki)
        with BlockDevice(old.root) as device, Slot(self.new.root, self.new.tree, self.superblock, level) as slot:
            sources = (_Root(device, old.tree.data_blocks), uki)
            budget = self.blocks * _WINDOWS_PER_BLOCK + _WINDOWS
            makers = {
                Kind.FILE: _Units(varint.Reader(self.files), sources, self._rebuild, budget),
                Kind.METADATA: _Units(varint.Reader(self.metadata), sources[:1], self._rebuild_metadata, budget),
            }
            self._make_root(slot, sources[0], makers, on_bytes)
            if self.new.uki is not None:
                _write_uki(self.new.uki, self._make(self.uki_pieces, -(-self.new.uki.size_bytes // BLOCK_BYTES), uki, makers))
            return slot.finish()

    def _level(self, tree: HashTree) -> bytes:
        """The digests of all groups, which lead to the root hash."""
        found, given, filled = list[bytes](), 0, 0
        leaves: list[bytes] | None = []
        for piece in self._pieces(self.pieces, self.blocks):
            if piece.kind is Kind.COPY and piece.source + piece.count > tree.data_blocks:
                raise ValueError("it copies what lies beyond the old image")
            done = 0
            while done < piece.count:
                count = min(piece.count - done, GROUP_BLOCKS - filled)
                if piece.kind is not Kind.COPY or tree.salt != self.salt:
                    leaves = None
                elif leaves is not None:
                    start = piece.source + done
                    leaves.append(tree.leaves[start * DIGEST_BYTES : (start + count) * DIGEST_BYTES])
                done, filled = done + count, filled + count
                if filled == GROUP_BLOCKS or len(found) * GROUP_BLOCKS + filled == self.blocks:
                    if leaves is None:
                        found.append(self.digests[given : given + DIGEST_BYTES])
                        given += DIGEST_BYTES
                    else:
                        found.append(hashtree.group_digest(b"".join(leaves), self.salt, self.blocks))
                    leaves, filled = [], 0
        level = b"".join(found)
        if given != len(self.digests) or hashtree.root_over(level, self.salt).hex() != self.new.root_hash:
            raise ValueError("its digests do not lead to the root hash")
        return level

    def _make_root(self, slot: Slot, source: _Source, makers: "dict[Kind, _Units]", on_bytes: Callable[[int], None]) -> None:
        """Put the root together group by group, while those before are checked and written."""
        waiting: deque[Future[int]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for number, group in enumerate(_grouped(self._make(self.pieces, self.blocks, source, makers))):
                if len(waiting) == _AHEAD:
                    on_bytes(waiting.popleft().result())
                waiting.append(pool.submit(slot.put, number, group))
            for future in waiting:
                on_bytes(future.result())

    def _make(self, pieces: bytes, blocks: int, source: _Source, makers: "dict[Kind, _Units]") -> Iterator[bytes]:
        for piece in self._pieces(pieces, blocks):
            if piece.kind is Kind.COPY:
                for at in range(0, piece.count, GROUP_BLOCKS):
                    start = piece.source + at
                    yield source.read(range(start, min(start + GROUP_BLOCKS, piece.source + piece.count)))
            else:
                yield from makers[piece.kind].take(piece.count * BLOCK_BYTES)

    @staticmethod
    def _pieces(data: bytes, blocks: int) -> Iterator[Piece]:
        """The pieces that make so many blocks."""
        reader = varint.Reader(data)
        made = expected = 0
        while made < blocks:
            number = reader.number()
            kind, count = Kind(number & 3), number >> 2
            made += count
            if not count or made > blocks:
                raise ValueError("its plan makes another number of blocks")
            if kind is Kind.COPY:
                source = expected + reader.signed()
                expected = source + count
                if source < 0:
                    raise ValueError("it copies what lies before the old image")
                yield Piece(kind, count, source)
            else:
                yield Piece(kind, count)

    def _rebuild(self, unit: "_Unit", old: bytes) -> Iterator[bytes]:
        steps = patch.read_steps(self.streams[Stream.CONTROL], unit.steps)
        return patch.rebuild(steps, old, unit.blocks, self.streams[Stream.DIFFERENCE], self.streams[NEW_STREAMS[unit.new]])

    def _rebuild_metadata(self, unit: "_Unit", old: bytes) -> Iterator[bytes]:
        steps = patch.read_steps(self.streams[Stream.METADATA_CONTROL], unit.steps)
        return patch.rebuild(steps, old, unit.blocks, self.streams[Stream.METADATA_DIFFERENCE], self.streams[Stream.METADATA])


@dataclass(frozen=True, slots=True)
class _Unit:
    blocks: int
    source: int
    new: int
    steps: int
    windows: tuple[Run, ...]


class _Units:
    """The blocks that units make, one unit after the other."""

    def __init__(
        self, reader: varint.Reader, sources: tuple[_Source, ...], rebuild: "Callable[[_Unit, bytes], Iterator[bytes]]", budget: int
    ) -> None:
        self._reader = reader
        self._sources = sources
        self._rebuild = rebuild
        self._expected = [0] * len(sources)
        self._budget = budget
        self._running: Iterator[bytes] = iter(())
        self._left = b""

    def take(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes."""
        while size:
            if not self._left:
                self._left = next(self._running, b"")
                if not self._left:
                    unit = self._next()
                    self._running = self._rebuild(unit, b"".join(self._sources[unit.source].read(window) for window in unit.windows))
                    continue
            found, self._left = self._left[:size], self._left[size:]
            size -= len(found)
            yield found

    def _next(self) -> _Unit:
        read = self._reader.number
        blocks, form, steps, count = read(), read(), read(), read()
        source, new = form & 1, form >> 1
        if not 0 < blocks <= patch.UNIT_BLOCKS or source >= len(self._sources) or new >= len(NEW_STREAMS) or steps > patch.STEPS:
            raise ValueError("it has a unit out of bounds")
        windows, total = [], 0
        for _ in range(min(count, patch.WINDOW_BLOCKS + 1)):
            start = self._expected[source] + self._reader.signed()
            length = read()
            total += length
            if start < 0 or total > min(patch.WINDOW_BLOCKS, self._budget):
                raise ValueError("it has a window out of bounds")
            self._expected[source] = start + length
            windows.append(range(start, start + length))
        if len(windows) != count:
            raise ValueError("it has too many windows")
        self._budget -= total
        return _Unit(blocks, source, new, steps, tuple(windows))


def encode_unit(expected: int, blocks: int, form: tuple[int, int], steps: int, windows: tuple[Run, ...]) -> tuple[bytes, int]:
    """A unit as the plan has it, and where the next one's windows are expected. `form` is the source and the place in `NEW_STREAMS`."""
    numbers = [blocks, form[0] | form[1] << 1, steps, len(windows)]
    for window in windows:
        numbers += (varint.zigzag(window.start - expected), len(window))
        expected = window.stop
    return varint.encode(numbers), expected


def encode_pieces(pieces: list[Piece]) -> bytes:
    """Pieces as the plan has them."""
    numbers, expected = [], 0
    for piece in pieces:
        numbers.append(piece.count << 2 | piece.kind)
        if piece.kind is Kind.COPY:
            numbers.append(varint.zigzag(piece.source - expected))
            expected = piece.source + piece.count
    return varint.encode(numbers)


def _grouped(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, by groups of 128 blocks."""
    size = GROUP_BLOCKS * BLOCK_BYTES
    group: list[bytes] = []
    filled = 0
    for part in parts:
        rest = part
        while filled + len(rest) >= size:
            group.append(rest[: size - filled])
            yield b"".join(group)
            rest = rest[size - filled :]
            group, filled = [], 0
        if rest:
            group.append(rest)
            filled += len(rest)
    if filled:
        yield b"".join(group)


def _write_uki(wanted: Uki, parts: Iterator[bytes]) -> None:
    """Write the kernel image, which has its name only when it is right."""
    draft = wanted.path.with_name(f".{wanted.path.name}.new")
    hasher = hashlib.sha256()
    left = wanted.size_bytes
    try:
        with draft.open("wb") as file:
            for part in parts:
                data = part[:left]
                left -= len(data)
                hasher.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if hasher.hexdigest() != wanted.sha256:
            raise ValueError("the kernel image that comes of it is another")
        draft.rename(wanted.path)
    finally:
        draft.unlink(missing_ok=True)
