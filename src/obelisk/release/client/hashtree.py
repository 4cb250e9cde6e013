"""dm-verity's hash tree, read outside the kernel: which blocks of a device are what the root hash promises.

The tree names every block of an image by its digest, so it is the list of what a slot has to hold: blocks that are right already need not
be written, and a slot is right when none is wrong. One product has one salt, so equal blocks have equal digests in all its versions.

Source: Linux, Documentation/admin-guide/device-mapper/verity.rst; cryptsetup, the format of the superblock.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from obelisk.errors import TrustError
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice
from obelisk.system.forked import in_parallel

DIGEST_BYTES = 32
_CHUNK_BLOCKS = CHUNK_BYTES // BLOCK_BYTES
_WORTH_FORKING = 16  # chunks
GROUP_BLOCKS = BLOCK_BYTES // DIGEST_BYTES
"""How many digests one block of the tree holds: so many blocks of data have one digest above them."""
SUPERBLOCK_BYTES = 512
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s")

Run = range
"""Numbers of blocks that lie side by side."""


@dataclass(frozen=True, slots=True)
class HashTree:
    """A tree whose every level was checked against the root hash. `leaves` are the digests of the data blocks, in order."""

    salt: bytes
    data_blocks: int
    leaves: bytes
    superblock: bytes

    def leaf(self, block: int) -> bytes:
        """The digest of a data block."""
        return self.leaves[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]


def parse(data: bytes, root_hash: str) -> HashTree:
    """The tree in `data`, a file or partition that begins with it.

    Raises:
        TrustError: it is not the tree of that root hash.
    """
    wrong = TrustError(
        f"the hash tree is not that of the root hash {root_hash[:16]}…", code="tree-damaged", hint="take the image from its source again"
    )
    try:
        salt, count = read_superblock(data)
    except ValueError:
        raise wrong from None
    if len(data) < BLOCK_BYTES:
        raise wrong
    levels = []
    blocks = count
    while blocks > 1:
        blocks = -(-blocks // GROUP_BLOCKS)
        levels.append(blocks)
    # The level next to the root comes first, and the leaves last.
    position = BLOCK_BYTES
    expected = [bytes.fromhex(root_hash)]
    for size in reversed(levels):
        level = data[position : position + size * BLOCK_BYTES]
        position += size * BLOCK_BYTES
        if len(level) < size * BLOCK_BYTES or wrong_blocks(level, salt, b"".join(expected)):
            raise wrong
        expected = [level]
    leaves = b"".join(expected)[: count * DIGEST_BYTES]
    return HashTree(salt, count, leaves, data[:SUPERBLOCK_BYTES])


def read_superblock(data: bytes) -> tuple[bytes, int]:
    """The salt and the number of data blocks that a tree's beginning tells of; ValueError when it is none that we know."""
    if len(data) < SUPERBLOCK_BYTES:
        raise ValueError(len(data))
    magic, version, kind, _uuid, algorithm, data_size, hash_size, count, salt_bytes, salt = _SUPERBLOCK.unpack_from(data)
    known = (magic, version, kind, algorithm.rstrip(b"\0"), data_size, hash_size)
    if known != (b"verity\0\0", 1, 1, b"sha256", BLOCK_BYTES, BLOCK_BYTES) or salt_bytes > len(salt) or not count:
        raise ValueError(known)
    return salt[:salt_bytes], count


def crown(superblock: bytes, level: bytes) -> bytes:
    """What comes before the leaves in a tree's file or partition, when `level` are the digests of all groups of them."""
    salt, _blocks = read_superblock(superblock)
    levels = []
    while len(level) > DIGEST_BYTES:
        levels.append(level + bytes(-len(level) % BLOCK_BYTES))
        level = digests(levels[-1], salt)
    return superblock.ljust(BLOCK_BYTES, b"\0") + b"".join(reversed(levels))


def parents(leaves: bytes, salt: bytes) -> bytes:
    """The level above the leaves: a digest for each group of 128. A single leaf stands for itself, as in the tree."""
    if len(leaves) <= DIGEST_BYTES:
        return leaves
    return digests(leaves + bytes(-len(leaves) % BLOCK_BYTES), salt)


def group_digest(leaves: bytes, salt: bytes, blocks: int) -> bytes:
    """The digest above the leaves of one group, in the tree over so many blocks."""
    return leaves if blocks == 1 else digests(leaves + bytes(-len(leaves) % BLOCK_BYTES), salt)


def root_over(level: bytes, salt: bytes) -> bytes:
    """The root hash of the tree that has this level."""
    while len(level) > DIGEST_BYTES:
        level = parents(level, salt)
    return level


def tree_bytes(data_blocks: int) -> int:
    """The size of the tree over that many blocks, superblock included."""
    total, blocks = 1, data_blocks
    while blocks > 1:
        blocks = -(-blocks // GROUP_BLOCKS)
        total += blocks
    return total * BLOCK_BYTES


def digests(data: bytes | memoryview, salt: bytes) -> bytes:
    """The digests of whole blocks, one after the other."""
    fresh = hashlib.sha256(salt).copy
    found = []
    for start in range(0, len(data) // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES):
        hasher = fresh()
        hasher.update(data[start : start + BLOCK_BYTES])
        found.append(hasher.digest())
    return b"".join(found)


def wrong_blocks(data: bytes | memoryview, salt: bytes, expected: bytes) -> list[int]:
    """Which of the blocks in `data`, counted from 0, do not have the digest that stands at their place in `expected`."""
    found = digests(data, salt)
    if found == expected:
        return []
    places = range(0, len(found), DIGEST_BYTES)
    return [at // DIGEST_BYTES for at in places if found[at : at + DIGEST_BYTES] != expected[at : at + DIGEST_BYTES]]


def find_wrong(device: BlockDevice, tree: HashTree, *, runs: list[Run] | None = None, on_bytes: Callable[[int], None]) -> list[Run]:
    """The blocks of `device` that are not what the tree says, or cannot be read: of all, or of those in `runs`."""
    wanted = [range(tree.data_blocks)] if runs is None else runs
    chunks = [run[at : at + _CHUNK_BLOCKS] for run in wanted for at in range(0, len(run), _CHUNK_BLOCKS)]

    def look(index: int, count: int) -> Iterator[str]:
        for chunk in chunks[index::count]:
            yield " ".join(map(str, (len(chunk), *_wrong_in(device, tree, chunk))))

    wrong = []
    for line in in_parallel(look) if len(chunks) >= _WORTH_FORKING else look(0, 1):
        blocks, *found = map(int, line.split())
        wrong += found
        on_bytes(blocks * BLOCK_BYTES)
    return as_runs(sorted(wrong))


def _wrong_in(device: BlockDevice, tree: HashTree, chunk: Run) -> list[int]:
    try:
        data = device.read(chunk.start * BLOCK_BYTES, len(chunk) * BLOCK_BYTES)
    except OSError:
        if len(chunk) == 1:
            return [chunk.start]
        return [block for single in chunk for block in _wrong_in(device, tree, range(single, single + 1))]
    read = len(data) // BLOCK_BYTES
    expected = tree.leaves[chunk.start * DIGEST_BYTES : (chunk.start + read) * DIGEST_BYTES]
    beyond = range(chunk.start + read, chunk.stop)  # the device's end
    return [*(chunk.start + number for number in wrong_blocks(data, tree.salt, expected)), *beyond]


def as_runs(blocks: list[int]) -> list[Run]:
    """Ascending numbers, put together where they follow each other."""
    runs: list[Run] = []
    for block in blocks:
        if runs and runs[-1].stop == block:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs
