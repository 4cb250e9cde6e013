"""losetup(8): ranges of a file as block devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def detach_all(file: Path) -> None:
    """Undo what a killed process has left attached of a file. May be repeated."""
    for device in run(["losetup", "--noheadings", "--output", "NAME", "--associated", file], timeout_s=60).stdout.split():
        _detach(Path(device))


def _detach(device: Path) -> None:
    run(["losetup", "--detach", device], timeout_s=60)
