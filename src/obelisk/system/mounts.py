"""mount(8) and umount(8), for as long as a block lasts; and who has something mounted."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from obelisk.errors import CommandError
from obelisk.system.command import run

_BUSY_S = 10.0


@contextmanager
def mounted(device: Path, place: Path, kind: str, *options: str) -> Iterator[Path]:
    """`device` mounted at `place`, a directory that is made when missing. Unmounted, and so durable, when the block ends."""
    place.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", kind, "-o", ",".join(("nosuid", "nodev", "noexec", *options)), device, place], timeout_s=120)
    try:
        yield place
    finally:
        run(["umount", place], timeout_s=300)


def unmount_all(place: Path) -> None:
    """Undo what killed processes have left mounted at `place`. Their last children may keep it busy for a moment. May be repeated."""
    deadline = time.monotonic() + _BUSY_S
    while place.is_mount():
        try:
            run(["umount", place], timeout_s=300)
        except CommandError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def is_shown_elsewhere(directory: Path) -> bool:
    """Whether a namespace other than this process's has a directory mounted, or something in it. For root.

    Source: proc_pid_mountinfo(5).
    """
    device, wanted = _located(directory, _mounts(Path("/proc/self")))
    here, seen = Path("/proc/self/ns/mnt").readlink(), set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            namespace = (process / "ns/mnt").readlink()
            if namespace == here or namespace in seen:
                continue
            seen.add(namespace)
            if any(mount[0] == device and _is_at(mount[1], wanted) for mount in _mounts(process)):
                return True
    return False


def whole_of(directory: Path) -> tuple[Path, Path] | None:
    """Where the file system, or subvolume, that has the directory is mounted from its top on, and where in it that is; None: nowhere."""
    mounts = _mounts(Path("/proc/self"))
    device, wanted = _located(directory, mounts)
    number = directory.stat().st_dev  # every subvolume has one of its own
    for mount in mounts:
        if mount[0] == device and _is_at(wanted, mount[1]):
            with suppress(OSError):  # something else may be mounted over it
                if Path(mount[2]).stat().st_dev == number:
                    return Path(mount[2]), Path(wanted.removeprefix(mount[1]).lstrip("/"))
    return None


def _located(directory: Path, mounts: Sequence[tuple[str, str, str]]) -> tuple[str, str]:
    """The device that has a directory, and where on it that is."""
    place = str(directory.resolve())
    inside = [mount for mount in mounts if _is_at(place, mount[2])]
    device, root, point = max(inside, key=lambda mount: len(mount[2]))
    return device, f"{root.rstrip('/')}/{place.removeprefix(point).lstrip('/')}"


def _mounts(process: Path) -> list[tuple[str, str, str]]:
    """What a process has mounted: the device, which directory of it, and where."""
    lines = (line.split(" ") for line in (process / "mountinfo").read_text().splitlines())
    return [(words[2], _plain(words[3]), _plain(words[4])) for words in lines]


def _plain(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _is_at(path: str, top: str) -> bool:
    """Whether `path` is `top` or below it."""
    return path == top or path.startswith(f"{top.rstrip('/')}/")
