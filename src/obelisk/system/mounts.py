"""mount(8) and umount(8), for as long as a block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obelisk.system.command import run


@contextmanager
def mounted(device: Path, place: Path, kind: str, *options: str) -> Iterator[Path]:
    """`device` mounted at `place`, a directory that is made when missing. Unmounted, and so durable, when the block ends."""
    place.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", kind, "-o", ",".join(("nosuid", "nodev", "noexec", *options)), device, place], timeout_s=120)
    try:
        yield place
    finally:
        run(["umount", place], timeout_s=300)
