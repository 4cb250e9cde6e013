"""`obelisk install`: an image's disk onto a device, or into a file that becomes one.

Only what the disk has is written; its first boot completes it (slot B, state). What is written is read back from the device. The end of the
device is cleared, where an older partition table would have its second copy.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from obelisk.build import slots
from obelisk.build.image import disk_of
from obelisk.errors import InputError, StateError, TrustError
from obelisk.events import Sink, task
from obelisk.store import Store, StoredImage
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice
from obelisk.system.bubblewrap import Room
from obelisk.system.files import written_by_name


def install(image: StoredImage, target: Path, *, erase: str | None, store: Store, room: Room, sink: Sink) -> int:
    """Write the image's disk to `target` and return how many bytes that were. `erase` has to be the name of what is overwritten.

    Raises:
        InputError: the target would be overwritten and was not named, or is neither a device nor a file.
        StateError: it is in use, or too small.
        TrustError: it does not keep what is written to it.
    """
    layout = slots.layout_of(image.manifest)
    wanted = slots.host_disk_bytes(layout, state=slots.STATE_LEAST_BYTES)
    device = _look(target, erase, image)
    with store.workspace() as work:
        raw = disk_of(image, store, room, work)
        if not device:
            draft = target.with_name(f".{target.name}.new")
            with written_by_name(target):
                draft.unlink(missing_ok=True)
                with draft.open("wb") as file:
                    file.truncate(slots.host_disk_bytes(layout))
            try:
                written = _write(raw, draft, image.manifest.label, sink)
                draft.rename(target)
            finally:
                draft.unlink(missing_ok=True)
            return written
        with BlockDevice(target) as found:
            size = found.size_bytes
        if size < wanted:
            raise StateError(
                f"{target} has {size >> 20} MiB, a host of {image.manifest.label} needs {wanted >> 20}",
                code="disk-small",
                hint="take a larger disk, or a smaller `size_budget`",
            )
        return _write(raw, target, image.manifest.label, sink)


def _look(target: Path, erase: str | None, image: StoredImage) -> bool:
    """Whether the target is a device, after making sure that it may be overwritten."""
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
            hint=f"all that is on it will be gone; if you mean that: obelisk install {image.manifest.label} {target} --erase {target.name}",
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


def _write(raw: Path, target: Path, label: str, sink: Sink) -> int:
    extents = list(_extents(raw))
    total = sum(length for _, length in extents)
    with BlockDevice(raw) as source, BlockDevice(target, writable=True) as device:
        with task(sink, "install", f"Writing {label} to {target}", total=total, unit="B") as running:
            device.write((device.size_bytes - CHUNK_BYTES) // BLOCK_BYTES * BLOCK_BYTES, bytes(CHUNK_BYTES))
            done = 0
            for at, length in extents:
                device.write(at, source.read(at, length))
                done += length
                running.progress(done)
            device.flush()
        with task(sink, "install/verify", "Reading it back", total=total, unit="B") as running:
            done = 0
            for at, length in extents:
                if bytes(source.read(at, length)) != device.read(at, length):
                    raise TrustError(f"{target} does not keep what is written to it", code="disk-damaged", hint="take another disk")
                done += length
                running.progress(done)
    return total


def _extents(raw: Path) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data: offsets and lengths, each at most a chunk, in whole blocks."""
    with raw.open("rb") as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES
            except OSError:  # only a hole is left
                return
            end = -(-os.lseek(file.fileno(), start, os.SEEK_HOLE) // BLOCK_BYTES) * BLOCK_BYTES
            for at in range(start, end, CHUNK_BYTES):
                yield at, min(CHUNK_BYTES, end - at)
            position = end
