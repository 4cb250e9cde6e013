"""mount(8) and umount(8), for as long as a block lasts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
