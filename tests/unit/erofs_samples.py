"""A small EROFS image, made by hand: compact and extended inodes, directories with their entries inline, files in blocks of their own."""

import struct
from pathlib import PurePosixPath

BLOCK = 4096
_MAGIC = 0xE0F5E1E2
_PLAIN, _INLINE = 0, 2
_DIRECTORY, _FILE = 0o040755, 0o100644


def erofs(files: dict[str, bytes], *, time: int = 0, layout: int = _PLAIN, features: int = 0) -> bytes:
    """An image with these files: path -> content. Everything else lies in blocks before them; `time` is in each inode."""
    paths = sorted(files)
    directories = sorted({str(parent) for path in paths for parent in PurePosixPath(path).parents}, key=lambda path: (len(path), path))
    names = [*directories, *paths]
    slots, used = {}, 0
    children = {
        directory: [name for name in names if name != "/" and str(PurePosixPath(name).parent) == directory] for directory in directories
    }
    listings = {}
    for name in names:
        # An extended inode, then what is inline; none may cross a block.
        size = 64 + (_listing_bytes(children[name]) if name in children else 0)
        slot_count = -(-size // 32)
        if used % 128 + slot_count > 128:
            used += 128 - used % 128
        slots[name], used = used, used + slot_count
    metadata_blocks = -(-used * 32 // BLOCK)
    for directory in directories:
        parent = str(PurePosixPath(directory).parent)
        listings[directory] = _listing(
            [(".", directory, 2), ("..", parent, 2), *((_name(c), c, 2 if c in children else 1) for c in children[directory])], slots
        )
    metadata = bytearray(metadata_blocks * BLOCK)
    data, block = [], 1 + metadata_blocks
    for number, name in enumerate(names):
        at = slots[name] * 32
        if name in children:
            metadata[at : at + 64] = _inode(_DIRECTORY, len(listings[name]), 0, number, time, _INLINE)
            metadata[at + 64 : at + 64 + len(listings[name])] = listings[name]
        else:
            content = files[name]
            metadata[at : at + 64] = _inode(_FILE, len(content), block if content else 0, number, time, layout)
            data.append(content + bytes(-len(content) % BLOCK))
            block += len(data[-1]) // BLOCK
    head = struct.pack(
        "<IIIBBHQQIIII16s16sI", _MAGIC, 0, 0, 12, 0, slots["/"], len(names), 0, 0, block, 1, 0, bytes(16), bytes(16), features
    )
    first = bytearray(BLOCK)
    first[1024 : 1024 + len(head)] = head
    return bytes(first) + bytes(metadata) + b"".join(data)


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _listing_bytes(children: list[str]) -> int:
    return 12 * (2 + len(children)) + 3 + sum(len(_name(child)) for child in children)


def _listing(entries: list[tuple[str, str, int]], slots: dict[str, int]) -> bytes:
    entries = sorted(entries)
    at = 12 * len(entries)
    table, names = b"", b""
    for name, path, kind in entries:
        table += struct.pack("<QHBx", slots[path], at + len(names), kind)
        names += name.encode()
    return table + names


def _inode(mode: int, size: int, block: int, number: int, time: int, layout: int) -> bytes:
    return struct.pack("<HHHHQIIIIQII16x", 1 | layout << 1, 0, mode, 0, size, block, number, 0, 0, time, 0, 1)
