"""The index of a release: where in the repository's packs each block of its root lies, and enough of its hash tree to see what one lacks.

    magic, 8 bytes; size of the head, 4; size of the head unpacked, 4; number of blocks, 4
    the head, one zstd frame: superblock of the hash tree; packs; frames; runs
    the digests of all groups of 128 blocks, 32 bytes each, which lead to the root hash
    the beginnings of the digests of all blocks, 4 bytes each
    the leaves of the tree, as it has them: a block of 4096 bytes for each group

A pack is a row of zstd frames of some blocks each, that were new when it was made. The frames that this release needs are numbered from
0 in the order of the head, and so are the blocks in them; runs say which of these follow each other in the root. A run without a frame is
of zeros.

A host reads the front, which is all but the last two parts, then those beginnings of digests whose group none of its own trees has.
Nothing of it is believed: a block whose digest merely begins like one of ours gives a group with another digest than the one that the
root hash vouches for, and then the host reads that group's leaves. Who makes the next release reads all of them.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from obelisk.errors import TrustError
from obelisk.model.release import File
from obelisk.release.client import hashtree, varint
from obelisk.release.client.hashtree import DIGEST_BYTES, GROUP_BLOCKS
from obelisk.system import zstd
from obelisk.system.blocks import BLOCK_BYTES

MAGIC = b"OBLKIDX1"
HEADER = struct.Struct("<8sIII")
PREFIX_BYTES = 4
FRAME_BLOCKS = 64
"""The most blocks of a frame."""
SPARSE = 8
"""A release uses of its frames, all together, no less than one block in so many."""
_HEAD_BYTES_PER_BLOCK = 24
_HEAD_BYTES = 1 << 20
_LEVEL = 19
ZEROS = -1
"""In the place of a block's number: it is in no frame, for it is zeros."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Some blocks in a pack: `size_bytes` from `offset` on. `pack` counts in the index."""

    pack: int
    offset: int
    size_bytes: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks of the root that follow each other in frames too, from the block `first` on, or are zeros (-1)."""

    count: int
    first: int


@dataclass(frozen=True, slots=True)
class Index:
    """Where the blocks of a root are. `level` are the digests of its groups, checked against the root hash when it was read."""

    superblock: bytes
    blocks: int
    packs: tuple[File, ...]
    frames: tuple[Frame, ...]
    stretches: tuple[Stretch, ...]
    level: bytes

    @property
    def salt(self) -> bytes:
        """Of the hash tree."""
        return hashtree.read_superblock(self.superblock)[0]

    def group(self, number: int) -> bytes:
        """The digest of a group."""
        return self.level[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]

    def places(self) -> list[int]:
        """For each block of the root its number in the frames, or -1."""
        found: list[int] = []
        for stretch in self.stretches:
            found += [ZEROS] * stretch.count if stretch.first < 0 else range(stretch.first, stretch.first + stretch.count)
        return found

    def starts(self) -> list[int]:
        """The number of the first block of each frame, and of all blocks last."""
        return [0, *accumulate(frame.blocks for frame in self.frames)]


def level_bytes(blocks: int) -> int:
    """The size of the digests of groups."""
    return -(-blocks // GROUP_BLOCKS) * DIGEST_BYTES


def encode(index: Index, leaves: bytes) -> bytes:
    """The file of an index; `leaves` are the digests of all blocks."""
    numbers = [pack.size_bytes for pack in index.packs]
    numbers.append(len(index.frames))
    numbers += _frame_numbers(index.frames)
    numbers.append(len(index.stretches))
    expected = 0
    for stretch in index.stretches:
        # A run is expected to go on where the one before ended; zeros lie before everything.
        numbers += (stretch.count, varint.zigzag(stretch.first - expected))
        expected = expected if stretch.first < 0 else stretch.first + stretch.count
    names = b"".join(bytes.fromhex(pack.sha256) for pack in index.packs)
    head = index.superblock + varint.encode([len(index.packs)]) + names + varint.encode(numbers)
    packed = zstd.compress(head, _LEVEL)
    prefixes = b"".join(leaves[at : at + PREFIX_BYTES] for at in range(0, len(leaves), DIGEST_BYTES))
    padded = leaves + bytes(-len(leaves) % BLOCK_BYTES)
    return HEADER.pack(MAGIC, len(packed), len(head), index.blocks) + packed + index.level + prefixes + padded


def _frame_numbers(frames: Iterable[Frame]) -> Iterable[int]:
    expected = Frame(0, 0, 0, 0)
    for frame in frames:
        gap = frame.offset - (expected.offset + expected.size_bytes if frame.pack == expected.pack else 0)
        yield from (varint.zigzag(frame.pack - expected.pack), varint.zigzag(gap), frame.size_bytes, frame.blocks)
        expected = frame


def front_bytes(header: bytes) -> int:
    """How much of the file comes before the beginnings of digests, by its first bytes.

    Raises:
        TrustError: it is no index.
    """
    try:
        magic, packed, unpacked, blocks = HEADER.unpack_from(header)
    except struct.error as error:
        raise _damaged(str(error)) from error
    if magic != MAGIC or packed > unpacked + 1024 or unpacked > blocks * _HEAD_BYTES_PER_BLOCK + _HEAD_BYTES:
        raise _damaged("it begins as none does")
    size: int = HEADER.size + packed + level_bytes(blocks)
    return size


def prefix_range(front_size: int, blocks: range) -> range:
    """Where in the file the beginnings of these blocks' digests are."""
    return range(front_size + blocks.start * PREFIX_BYTES, front_size + blocks.stop * PREFIX_BYTES)


def leaves_range(front_size: int, blocks: int, groups: range) -> range:
    """Where in the file the leaves of these groups are, of so many blocks in all."""
    start = front_size + blocks * PREFIX_BYTES
    return range(start + groups.start * BLOCK_BYTES, start + groups.stop * BLOCK_BYTES)


def decode(front: bytes, root_hash: str, root_bytes: int) -> Index:
    """The index whose file begins with `front`, as far as `front_bytes` says.

    Raises:
        TrustError: it is none, or not that of this root.
    """
    size = front_bytes(front)
    _magic, packed, unpacked, blocks = HEADER.unpack_from(front)
    if len(front) < size or blocks * BLOCK_BYTES != root_bytes:
        raise _damaged("it is cut short, or of another image")
    try:
        index = _parse(
            zstd.decompress(front[HEADER.size : HEADER.size + packed], unpacked), blocks, front[size - level_bytes(blocks) : size]
        )
    except ValueError as error:
        raise _damaged(str(error)) from error
    if hashtree.root_over(index.level, index.salt).hex() != root_hash:
        raise _damaged("its digests do not lead to the root hash")
    return index


def _parse(head: bytes, blocks: int, level: bytes) -> Index:
    reader = varint.Reader(head)
    read = reader.number
    superblock = reader.raw(hashtree.SUPERBLOCK_BYTES)
    if hashtree.read_superblock(superblock)[1] != blocks:
        raise ValueError("it is of another image")
    count = read()
    names = reader.raw(count * DIGEST_BYTES)
    packs = tuple(File(names[at : at + DIGEST_BYTES].hex(), read()) for at in range(0, len(names), DIGEST_BYTES))
    frames: list[Frame] = []
    expected = Frame(0, 0, 0, 0)
    total = 0
    for _ in range(_bounded(read(), blocks)):
        pack = expected.pack + reader.signed()
        offset = reader.signed() + (expected.offset + expected.size_bytes if pack == expected.pack else 0)
        expected = Frame(pack, offset, read(), read())
        sound = 0 <= pack < count and offset >= 0 and 0 < expected.blocks <= FRAME_BLOCKS and expected.size_bytes
        if not sound or offset + expected.size_bytes > packs[pack].size_bytes:
            raise ValueError("it has a frame out of bounds")
        total += expected.blocks
        frames.append(expected)
    if total > SPARSE * blocks + FRAME_BLOCKS:
        raise ValueError("its frames are mostly of no use to it")
    stretches: list[Stretch] = []
    made = after = 0
    for _ in range(_bounded(read(), blocks)):
        stretch = Stretch(read(), after + reader.signed())
        if not stretch.count or stretch.first < ZEROS or (stretch.first >= 0 and stretch.first + stretch.count > total):
            raise ValueError("it has a run out of bounds")
        made += stretch.count
        after = after if stretch.first < 0 else stretch.first + stretch.count
        stretches.append(stretch)
    if made != blocks:
        raise ValueError("its runs make another number of blocks")
    return Index(superblock, blocks, packs, tuple(frames), tuple(stretches), level)


def _bounded(count: int, limit: int) -> int:
    if count > limit:
        raise ValueError("it has more frames or runs than blocks")
    return count


def _damaged(why: str) -> TrustError:
    return TrustError(f"the index of the release is damaged: {why}", code="index-damaged", hint="tell whoever runs the repository")
