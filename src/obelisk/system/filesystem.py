"""File systems as a whole: what is free, what is taken, what is flushed, who holds a lock, which boot this is; and free memory.

Single durable files are the business of `obelisk.system.files`.
"""

import ctypes
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Space:
    """What a file system has left for this user. `free_inodes` is None where inodes are made as needed (Btrfs)."""

    mount_point: Path
    free_bytes: int
    total_bytes: int
    free_inodes: int | None


def space(path: Path) -> Space:
    """The space left on the file system that `path` (or its nearest existing parent) is on."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    numbers = os.statvfs(place)
    while not place.is_mount():
        place = place.parent
    return Space(
        mount_point=place,
        free_bytes=numbers.f_bavail * numbers.f_frsize,
        total_bytes=numbers.f_blocks * numbers.f_frsize,
        free_inodes=numbers.f_favail if numbers.f_files else None,
    )


def sync_filesystem(path: Path) -> None:
    """Make everything durable that was written so far to the file system that `path` is on.

    One call for a tree of any number of files; it costs what is still unwritten on that file system, whoever wrote it.

    Raises:
        OSError: the device could not take all of it. Linux 5.8 and newer report this; older kernels stay silent.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc().syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def tree_bytes(top: Path) -> int:
    """What the files below `top` take on the disk, each file once, without what is mounted there. It may change meanwhile."""
    device, total = top.stat().st_dev, 0
    linked: set[int] = set()
    places = [str(top)]
    while places:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(places.pop()) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_dev != device or found.st_ino in linked:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        places.append(entry.path)
                    elif found.st_nlink > 1:
                        linked.add(found.st_ino)
                    total += found.st_blocks * 512
    return total


def free_memory_bytes() -> int:
    """How much memory programs can have before this machine begins to swap. Source: proc_meminfo(5)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


@cache
def boot_id() -> str:
    """A name for the time since this kernel started, or "" where the kernel does not tell.

    What was written under the same id is still in the kernel's memory, flushed or not.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def lock_holders(path: Path) -> tuple[str, ...]:
    """The processes that hold an advisory lock on `path`, as `command line (process 123)`, as far as this process may know them.

    Source: proc_locks(5).
    """
    inode = path.stat().st_ino
    found = []
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        # "1: FLOCK ADVISORY READ 123 08:01:456 0 EOF"; waiting ones have "->" in the second place. The device is not compared:
        # Btrfs shows another one here than in stat(2).
        if words[1] != "FLOCK" or int(words[5].rpartition(":")[2]) != inode or int(words[4]) <= 0:
            continue
        found.append(f"{_command_line(int(words[4]))} (process {words[4]})")
    return tuple(dict.fromkeys(found))


def _command_line(process: int) -> str:
    try:
        raw = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return "a program"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()[:80] or "a program"


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
