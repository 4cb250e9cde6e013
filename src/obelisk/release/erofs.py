"""Where the files of an uncompressed EROFS image lie, read from the image itself: an edge follows files, not offsets.

Only what mkfs.erofs makes of our specs is understood: whole blocks of a regular file side by side. For anything else the answer is that
it is not understood, and an edge is made without knowing files. Source: Linux, fs/erofs/erofs_fs.h.
"""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from obelisk.system.blocks import BLOCK_BYTES

_SUPERBLOCK_AT = 1024
_MAGIC = 0xE0F5E1E2
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sI")
_FOREIGN = ~0x07  # incompatible features beyond zero padding, compression of single files, and chunks; those show in the inodes
_SLOT_BYTES = 32
_COMPACT = struct.Struct("<HHHHIIIIHHI")
_EXTENDED = struct.Struct("<HHHHQIIIIQII16x")
_ENTRY = struct.Struct("<QHBx")
_PLAIN, _INLINE = 0, 2  # layouts of data
_NAME = "surrogateescape"


@dataclass(frozen=True, slots=True)
class Extent:
    """A file of the image: its data are `size_bytes` in the blocks of `blocks`."""

    path: str
    blocks: range
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Inode:
    mode: int
    size: int
    layout: int
    block: int
    inline_at: int


def read_files(image: memoryview) -> tuple[Extent, ...] | None:
    """The regular files with whole blocks of their own, in the order in which they lie; None when the image is not understood.

    A file of several names is there once. What belongs to no file is metadata: inodes, directories, links, tails.
    """
    try:
        found = {extent.blocks.start: extent for extent in _walk(image) if extent.blocks}
    except (struct.error, IndexError, ValueError, RecursionError):
        return None
    extents = tuple(found[start] for start in sorted(found))
    limit = len(image) // BLOCK_BYTES
    ends = [0, *(extent.blocks.stop for extent in extents)]
    sound = all(end <= extent.blocks.start for end, extent in zip(ends, extents, strict=False)) and ends[-1] <= limit
    return extents if sound else None


def _walk(image: memoryview) -> Iterator[Extent]:
    magic, _sum, _compatible, bits, _slots, root, _count, _time, _ns, _blocks, metadata, _x, _id, _name, features = _SUPERBLOCK.unpack_from(
        image, _SUPERBLOCK_AT
    )
    if magic != _MAGIC or 1 << bits != BLOCK_BYTES or features & _FOREIGN:
        raise ValueError(magic)
    waiting, seen = [("", root)], {root}
    while waiting:
        path, number = waiting.pop()
        inode = _inode(image, metadata * BLOCK_BYTES + number * _SLOT_BYTES)
        if stat.S_ISREG(inode.mode):
            whole = inode.size // BLOCK_BYTES if inode.layout == _INLINE else -(-inode.size // BLOCK_BYTES)
            if inode.layout not in {_PLAIN, _INLINE}:
                raise ValueError(path)
            yield Extent(path, range(inode.block, inode.block + whole), min(inode.size, whole * BLOCK_BYTES))
        elif stat.S_ISDIR(inode.mode):
            for name, child in _entries(image, inode):
                if child not in seen:
                    seen.add(child)
                    waiting.append((f"{path}/{name}", child))


def _inode(image: memoryview, at: int) -> _Inode:
    (form,) = struct.unpack_from("<H", image, at)
    if form & 1:
        _form, attributes, mode, _r, size, block, *_rest = _EXTENDED.unpack_from(image, at)
        header = _EXTENDED.size
    else:
        _form, attributes, mode, _links, size, _r, block, *_rest = _COMPACT.unpack_from(image, at)
        header = _COMPACT.size
    beside = 12 + 4 * (attributes - 1) if attributes else 0
    return _Inode(mode, size, form >> 1 & 7, block, at + header + beside)


def _entries(image: memoryview, inode: _Inode) -> Iterator[tuple[str, int]]:
    if inode.layout not in {_PLAIN, _INLINE}:
        raise ValueError(inode)
    for start in range(0, inode.size, BLOCK_BYTES):
        length = min(BLOCK_BYTES, inode.size - start)
        tail = inode.layout == _INLINE and length < BLOCK_BYTES
        at = inode.inline_at if tail else inode.block * BLOCK_BYTES + start
        block = image[at : at + length]
        if len(block) < length:
            raise ValueError(at)
        count = _ENTRY.unpack_from(block)[1] // _ENTRY.size
        entries = [_ENTRY.unpack_from(block, index * _ENTRY.size) for index in range(count)]
        ends = [*(entry[1] for entry in entries[1:]), length]
        for (number, begin, _kind), end in zip(entries, ends, strict=True):
            name = bytes(block[begin:end]).split(b"\0", 1)[0].decode(errors=_NAME)
            if name not in {".", ".."}:
                yield name, number
