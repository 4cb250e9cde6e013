"""Volumes: file systems that are files, so that what they hold has a bound, whatever the file system around them can do.

The file is sparse: it takes what is in it, and gives back what is removed. Only root mounts one.

Source: mkfs.ext4(8), e2fsck(8), resize2fs(8), mount(8).
"""

import time
from pathlib import Path

from obelisk.errors import CommandError, StateError
from obelisk.system import loops
from obelisk.system.command import find_program, run
from obelisk.system.files import sync_directory
from obelisk.system.filesystem import sync_filesystem

_BLOCK_BYTES = 4096
_PROGRAMS = ("mkfs.ext4", "e2fsck", "resize2fs")
_CORRECTED = 1
_ENDING_S = 5.0
_SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES, _BLOCK_COUNTS = 1024, 1024, (0x4, 0x150)
# The device goes with its last mount, and with a mount that is cut.
_OPTIONS = "loop,nosuid,nodev,discard"


def fault(*, is_root: bool) -> str:
    """Why this user cannot have volumes on this machine; nothing when they can."""
    if not is_root:
        return "only root mounts volumes"
    if not Path("/dev/loop-control").exists():
        return "load the kernel module loop"
    return "" if all(map(find_program, _PROGRAMS)) else "install e2fsprogs"


def make(file: Path, size_bytes: int) -> None:
    """Make an empty volume. What is at `file` goes."""
    file.unlink(missing_ok=True)
    with file.open("xb") as made:
        file.chmod(0o600)
        made.truncate(_whole(size_bytes))
    run(["mkfs.ext4", "-q", "-F", "-b", str(_BLOCK_BYTES), "-m", "0", "-E", "nodiscard", file], timeout_s=300)


def size_of(file: Path) -> int:
    """The bytes of the file system, which a cut may have left smaller than its file.

    Source: the kernel's filesystems/ext4, "Super Block".
    """
    with file.open("rb") as volume:
        volume.seek(_SUPERBLOCK_OFFSET)
        block = volume.read(_SUPERBLOCK_BYTES)
    low, high = (int.from_bytes(block[place : place + 4], "little") for place in _BLOCK_COUNTS)
    return (high << 32 | low) * _BLOCK_BYTES


def is_used(file: Path) -> bool:
    """Whether a volume is mounted anywhere, in a namespace of somebody else's included. Its last users may be about to end."""
    deadline = time.monotonic() + _ENDING_S
    while loops.devices(file):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False


def have_mounted(file: Path, place: Path, size_bytes: int) -> None:
    """Have a volume of that size mounted at `place`. May be repeated.

    Raises:
        StateError: it has another size and is in use, or holds more than that, or is damaged.
    """
    if place.is_mount():
        if size_of(file) == _whole(size_bytes):
            return
        run(["umount", place], timeout_s=300)
    # A volume that is still mounted elsewhere, or does not fit, is mounted again as it is; the former by the same device.
    used = bool(loops.devices(file))
    fits = not used and _fit(file, _whole(size_bytes))
    run(["mount", "-t", "ext4", "-o", _OPTIONS, file, place], timeout_s=120)
    loops.read_directly(file)
    if used and size_of(file) != _whole(size_bytes):
        raise StateError(f"{place} is in use, and its volume has another size now", code="volume-used", hint="end what uses it first")
    if not used and not fits:
        raise StateError(
            f"what {place} holds does not fit into {size_bytes >> 20} MiB", code="volume-full", hint="allow more, or remove some"
        )


def _fit(file: Path, whole: int) -> bool:
    """Check a volume and give it a size; False where it holds more than that, and is as it was."""
    size = size_of(file)
    check = ["-f", "-p"] if size != whole else ["-p"]
    try:
        run(["e2fsck", *check, file], timeout_s=3600)
    except CommandError as error:
        if error.status > _CORRECTED:
            raise StateError(
                f"the volume {file} is damaged: {error.output.strip()}", code="volume-damaged", hint=f"see what e2fsck {file} makes of it"
            ) from error
    if size == whole:
        return True
    if size < whole:
        with file.open("r+b") as grown:
            grown.truncate(whole)
    try:
        run(["resize2fs", file, f"{whole // 1024}K"], timeout_s=3600)
    except CommandError:
        return False
    with file.open("r+b") as cut:
        cut.truncate(whole)
    sync_filesystem(file)
    sync_directory(file.parent)
    return True


def _whole(size_bytes: int) -> int:
    return size_bytes // _BLOCK_BYTES * _BLOCK_BYTES
