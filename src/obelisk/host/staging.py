"""Brings the blocks of an image into a slot: only those that differ are written, and all are known to be right in the end.

The slot is read once, and each block compared with its digest in the image's hash tree; what is wrong is copied from the source, checked
on the way, and read back from the disk. Done again after an interruption, there is less to do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from obelisk.errors import TrustError
from obelisk.model.image import PartKind
from obelisk.release.client import hashtree
from obelisk.release.client.hashtree import HashTree, Run
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice

if TYPE_CHECKING:
    from obelisk.host.source import DirectorySource, Source


def write_image(root: Path, tree: Path, source: "DirectorySource", *, on_bytes: Callable[[int], None]) -> tuple[int, list[Run]]:
    """Make the devices `root` and `tree` hold the image; return the bytes written, and the blocks of the root among them.

    `on_bytes` is told how many bytes of the root have been read. Durable when this returns; may be repeated.

    Raises:
        TrustError: the source is not what its hash tree says.
    """
    with BlockDevice(tree, writable=True) as target:
        written = _write_changed(target, source.path(PartKind.VERITY).read_bytes())
        target.flush()
    with BlockDevice(root, writable=True) as target, BlockDevice(source.path(PartKind.ROOT)) as given:
        wrong = hashtree.find_wrong(target, source.tree, on_bytes=on_bytes)
        written += _copy_runs(given, target, wrong, source.tree)
        target.flush()
    return written, wrong


def check_image(root: Path, tree: Path, source: "Source", runs: list[Run] | None, *, on_bytes: Callable[[int], None]) -> None:
    """Read the tree and these blocks of the root (None: all) from the disk, and compare them with the root hash.

    Raises:
        TrustError: something reads back wrong.
    """
    with BlockDevice(tree) as device:
        found = read_tree(device, source.manifest.part(PartKind.ROOT).size_bytes // BLOCK_BYTES, source.manifest.root_hash)
    with BlockDevice(root) as device:
        wrong = hashtree.find_wrong(device, found, runs=runs, on_bytes=on_bytes)
    if wrong:
        raise TrustError(
            f"{root} does not keep what is written to it: {sum(len(run) for run in wrong)} blocks read back wrong",
            code="slot-damaged",
            hint="the disk may be failing: look at the kernel's messages",
        )


def read_tree(device: BlockDevice, data_blocks: int, root_hash: str) -> HashTree:
    """The hash tree of a slot, checked against the root hash.

    Raises:
        TrustError: it is damaged.
    """
    size = min(hashtree.tree_bytes(data_blocks), device.size_bytes)
    data = b"".join(bytes(device.read(at, min(CHUNK_BYTES, size - at))) for at in range(0, size, CHUNK_BYTES))
    return hashtree.parse(data, root_hash)


def _copy_runs(given: BlockDevice, target: BlockDevice, runs: list[Run], tree: HashTree) -> int:
    """Copy blocks, each checked before it is written; return how many bytes."""
    per_chunk = CHUNK_BYTES // BLOCK_BYTES
    for run in runs:
        for at in range(run.start, run.stop, per_chunk):
            chunk = range(at, min(at + per_chunk, run.stop))
            data = given.read(chunk.start * BLOCK_BYTES, len(chunk) * BLOCK_BYTES)
            digests = tree.leaves[chunk.start * hashtree.DIGEST_BYTES : chunk.stop * hashtree.DIGEST_BYTES]
            if len(data) < len(chunk) * BLOCK_BYTES or hashtree.wrong_blocks(data, tree.salt, digests):
                raise TrustError(f"{given.path} is not what its hash tree says", code="part-damaged", hint="copy the image again, whole")
            target.write(chunk.start * BLOCK_BYTES, data)
    return sum(len(run) for run in runs) * BLOCK_BYTES


def _write_changed(target: BlockDevice, data: bytes) -> int:
    """Make the beginning of `target` be `data`, writing only blocks that differ; return how many bytes that were."""
    written = 0
    for at in range(0, len(data), CHUNK_BYTES):
        wanted = data[at : at + CHUNK_BYTES]
        found = bytes(target.read(at, len(wanted)))
        for block in range(0, len(wanted), BLOCK_BYTES):
            piece = wanted[block : block + BLOCK_BYTES]
            if found[block : block + BLOCK_BYTES] != piece:
                target.write(at + block, piece)
                written += len(piece)
    return written
