"""losetup(8): files, and ranges of files, as block devices."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obelisk.errors import CommandError
from obelisk.system.command import run


@contextmanager
def attached(file: Path, start: int, size: int) -> Iterator[Path]:
    """The device that holds `size` bytes of a file from `start` on, for as long as the block lasts."""
    words: list[str | Path] = ["losetup", "--find", "--show", "--offset", str(start), "--sizelimit", str(size), file]
    device = Path(run(words, timeout_s=60).stdout.strip())
    try:
        yield device
    finally:
        _detach(device)


def devices(file: Path) -> tuple[Path, ...]:
    """The devices that hold a file or parts of it."""
    return tuple(map(Path, run(["losetup", "--noheadings", "--output", "NAME", "--associated", file], timeout_s=60).stdout.split()))


def read_directly(file: Path) -> None:
    """Have what its devices hold cached once and not twice, where the file system around the file can."""
    for device in devices(file):
        with suppress(CommandError):
            run(["losetup", "--direct-io=on", device], timeout_s=60)


def detach_all(file: Path) -> None:
    """Undo what a killed process has left attached of a file. May be repeated."""
    for device in devices(file):
        _detach(device)


def _detach(device: Path) -> None:
    run(["losetup", "--detach", device], timeout_s=60)
