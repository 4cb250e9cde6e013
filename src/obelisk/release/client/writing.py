"""A slot that gets an image, group after group of 128 blocks: what is not what the root hash promises is not written.

A slot's tree is computed from what was written, and written last.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from obelisk.release.client import hashtree
from obelisk.release.client.hashtree import DIGEST_BYTES, GROUP_BLOCKS, Run
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice


class Slot:
    """The devices of root and tree; `level` are the digests of all groups, which lead to the root hash. Use it in a `with` block.

    Threads may put different groups.
    """

    def __init__(self, root: Path, tree: Path, superblock: bytes, level: bytes) -> None:
        self._paths = root, tree
        self._superblock = superblock
        self._salt, self._blocks = hashtree.read_superblock(superblock)
        self._level = level
        self._leaves = bytearray(self._blocks * DIGEST_BYTES)
        self._written: list[Run] = []

    def __enter__(self) -> Self:
        self._root = BlockDevice(self._paths[0], writable=True)
        try:
            self._tree = BlockDevice(self._paths[1], writable=True)
        except BaseException:
            self._root.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tree.__exit__(kind, error, trace)
        self._root.__exit__(kind, error, trace)

    def put(self, number: int, group: bytes) -> int:
        """Write a group, unless it is there already; return its size. Numbers count from 0.

        Raises:
            ValueError: it is not what the root hash promises.
        """
        self.accept(number, hashtree.digests(group, self._salt))
        first = number * GROUP_BLOCKS
        for run in write_changed(self._root, first, group):
            self._written.append(run)
        return len(group)

    def accept(self, number: int, leaves: bytes) -> None:
        """Know that a group has these leaves, and so is there already.

        Raises:
            ValueError: it is not what the root hash promises.
        """
        found = hashtree.group_digest(leaves, self._salt, self._blocks)
        if found != self._level[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
            raise ValueError(f"blocks from {number * GROUP_BLOCKS} on are not what the root hash promises")
        first = number * GROUP_BLOCKS * DIGEST_BYTES
        self._leaves[first : first + len(leaves)] = leaves

    def finish(self) -> tuple[int, list[Run]]:
        """Write the tree, when all groups are in, and make all of it durable: the bytes written, and the blocks of the root."""
        crown = hashtree.crown(self._superblock, self._level)
        written = self._write_tree(0, memoryview(crown))
        if self._blocks > 1:  # a single leaf is the root hash, and the tree has no block for it
            written += self._write_tree(len(crown) // BLOCK_BYTES, memoryview(self._leaves))
        self._root.flush()
        self._tree.flush()
        blocks = hashtree.as_runs(sorted(block for run in self._written for block in run))
        return (written + sum(map(len, blocks))) * BLOCK_BYTES, blocks

    def _write_tree(self, first: int, data: memoryview) -> int:
        """Make the blocks of the tree from `first` on be `data`, the last one filled up with zeros; return how many were written."""
        written = 0
        for at in range(0, len(data), CHUNK_BYTES):
            chunk = bytes(data[at : at + CHUNK_BYTES])
            chunk += bytes(-len(chunk) % BLOCK_BYTES)
            written += sum(map(len, write_changed(self._tree, first + at // BLOCK_BYTES, chunk)))
        return written


def write_changed(device: BlockDevice, first: int, data: bytes) -> list[Run]:
    """Make the blocks from `first` on be `data`, of at most a chunk, writing only those that differ; return which."""
    found = bytes(device.read(first * BLOCK_BYTES, len(data)))
    if found == data:
        return []
    places = range(0, len(data), BLOCK_BYTES)
    runs = hashtree.as_runs([at // BLOCK_BYTES for at in places if found[at : at + BLOCK_BYTES] != data[at : at + BLOCK_BYTES]])
    for run in runs:
        device.write((first + run.start) * BLOCK_BYTES, data[run.start * BLOCK_BYTES : run.stop * BLOCK_BYTES])
    return [range(first + run.start, first + run.stop) for run in runs]
