"""A disk, or a file in its place, that is about to be overwritten: only when it was named, never while in use, and read back.

The end of a device is cleared, where an older partition table would have its second copy.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import InputError, StateError, TrustError
from obelisk.events import Sink, task
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice

_BLKZEROOUT = 0x127F  # Source: linux/fs.h


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes (at most `CHUNK_BYTES`) of `source` from `start` on, which go to `target`. All are in whole blocks."""

    source: BlockDevice
    start: int
    target: int
    length: int


def is_device(target: Path, erase: str | None, *, again: str) -> bool:
    """Whether the target is a device; else it is a file, or will be one. `erase` has to be the name of what is overwritten.

    `again` is the command to repeat with `--erase`.

    Raises:
        InputError: it exists and was not named, or is neither a device nor a file.
        StateError: it is in use.
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise InputError(f"there is no directory {target.parent}", code="install-directory", hint="make it first") from None
        return False
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise InputError(f"{target} is neither a disk nor a file", code="install-target", hint="name a whole disk, such as /dev/sdb")
    if erase != target.name:
        given = f"--erase names {erase}" if erase else "it would be overwritten"
        raise InputError(
            f"{target} exists, and {given}",
            code="install-erase",
            hint=f"all that is on it will be gone; if you mean that: {again} --erase {target.name}",
        )
    if stat.S_ISBLK(mode):
        try:
            os.close(os.open(target, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            raise StateError(
                f"{target} is in use: {error.strerror}", code="disk-busy", hint="unmount its partitions, and stop what else uses them"
            ) from error
        if (Path("/sys/class/block") / target.resolve().name / "partition").exists():
            raise InputError(f"{target} is a partition", code="install-partition", hint="name the whole disk")
    return stat.S_ISBLK(mode)


def require_size(target: Path, wanted: int, label: str) -> None:
    """Make sure that a device has `wanted` bytes, as a host of the image `label` needs.

    Raises:
        StateError: it has not.
    """
    with BlockDevice(target) as device:
        size = device.size_bytes
    if size < wanted:
        raise StateError(
            f"{target} has {size >> 20} MiB, a host of {label} needs {wanted >> 20}",
            code="disk-small",
            hint="take a larger disk, or an image with a smaller `size_budget`",
        )


def overwrite(target: Path, pieces: Iterable[Piece], clear: int, label: str, sink: Sink) -> int:
    """Write the pieces to the target, whose first `clear` bytes are zeros elsewhere; return how many bytes were written. Durable.

    Raises:
        TrustError: it does not keep what is written to it.
    """
    todo = list(pieces)
    total = sum(piece.length for piece in todo)
    with BlockDevice(target, writable=True) as device:
        with task(sink, "install", f"Writing {label} to {target}", total=total, unit="B") as running:
            _zero(device, 0, clear)
            _zero(device, (device.size_bytes - CHUNK_BYTES) // BLOCK_BYTES * BLOCK_BYTES, CHUNK_BYTES)
            done = 0
            for piece in todo:
                device.write(piece.target, piece.source.read(piece.start, piece.length))
                done += piece.length
                running.progress(done)
            device.flush()
        with task(sink, "install/verify", "Reading it back", total=total, unit="B") as running:
            done = 0
            for piece in todo:
                if bytes(piece.source.read(piece.start, piece.length)) != device.read(piece.target, piece.length):
                    raise TrustError(f"{target} does not keep what is written to it", code="disk-damaged", hint="take another disk")
                done += piece.length
                running.progress(done)
    return total


def _zero(device: BlockDevice, start: int, length: int) -> None:
    """Make a range zeros, by the device itself where it can. Of a file, which is new, it is a hole."""
    if device.is_file:
        return
    try:
        fcntl.ioctl(device.fileno(), _BLKZEROOUT, struct.pack("QQ", start, length))
    except OSError as error:
        if error.errno not in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL}:
            raise
        for at in range(start, start + length, CHUNK_BYTES):
            device.write(at, bytes(min(CHUNK_BYTES, start + length - at)))
