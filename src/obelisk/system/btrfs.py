"""btrfs(8): subvolumes and their snapshots. Each operation is atomic: it is there as a whole after a power cut, or not at all."""

import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from obelisk.errors import CommandError
from obelisk.system.command import MINIMAL_ENVIRONMENT, run
from obelisk.system.mounts import whole_of

_ROOT_INODE = 256  # every subvolume's own directory. Source: btrfs(5)
_CHUNK_BYTES = 1 << 20


def make_volume(device: Path, label: str) -> None:
    """Make a volume that nobody minds to lose: its metadata is there once."""
    run(["mkfs.btrfs", "--quiet", "--metadata", "single", "--label", label, device], timeout_s=300)


def create(path: Path) -> None:
    """Make an empty subvolume."""
    run(["btrfs", "--quiet", "subvolume", "create", path], timeout_s=60)


def snapshot(source: Path, target: Path, *, read_only: bool) -> None:
    """Make `target` a snapshot of the subvolume `source`. Its content is durable when this returns."""
    run(["btrfs", "--quiet", "subvolume", "snapshot", *(["-r"] if read_only else []), source, target], timeout_s=300)
    sync(target.parent)


def delete(path: Path) -> None:
    """Remove a subvolume and all that is in it. Subvolumes in it are in the way."""
    run(["btrfs", "--quiet", "subvolume", "delete", "--commit-after", path], timeout_s=300)


def is_subvolume(path: Path) -> bool:
    """Whether there is a subvolume at `path`."""
    try:
        return path.is_dir() and path.stat().st_ino == _ROOT_INODE
    except OSError:
        return False


def subvolume_of(directory: Path) -> tuple[Path, Path] | None:
    """The subvolume that has a directory, and where in it that is, as far as it is mounted as a whole; None: on other file systems."""
    found = whole_of(directory)
    return found if found and is_subvolume(found[0]) else None


def sync(path: Path) -> None:
    """Make the whole file system durable that `path` is on."""
    run(["btrfs", "--quiet", "filesystem", "sync", path], timeout_s=300)


def reclaim(path: Path) -> None:
    """Give back what is set aside for data on the volume of `path` and holds none, so that metadata cannot run out before data does.

    The kernel does so by itself, but later. That it could not is no error: then the volume is full, or somebody else is at it.
    """
    sync(path)
    with suppress(CommandError):
        run(["btrfs", "--quiet", "balance", "start", "-dusage=0", path], timeout_s=300)


def copy(snapshot: Path, target: Path, *, on_bytes: Callable[[int], None]) -> None:
    """Make a copy of a read-only subvolume, of the same name, in a directory of another volume. `on_bytes` is told how much went over.

    Raises:
        CommandError: it cannot be read, or has no room there; what was copied is left.
    """
    send, receive = ["btrfs", "--quiet", "send", str(snapshot)], ["btrfs", "--quiet", "receive", str(target)]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(send, env=MINIMAL_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as sender,
        subprocess.Popen(receive, env=MINIMAL_ENVIRONMENT, stdin=subprocess.PIPE, stdout=said, stderr=said) as receiver,
    ):
        try:
            _pour(sender.stdout, receiver.stdin, on_bytes)
        except BaseException:
            sender.kill()
            receiver.kill()
            raise
        # A sender whose receiver has ended ends by that, so the receiver's status comes first.
        for process, argv in ((receiver, receive), (sender, send)):
            if process.wait() != 0:
                said.seek(0)
                raise CommandError(tuple(argv), process.returncode, said.read().decode(errors="replace"))


def _pour(source: IO[bytes] | None, target: IO[bytes] | None, on_bytes: Callable[[int], None]) -> None:
    if source is None or target is None:
        return
    with source, suppress(BrokenPipeError), target:
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)
            on_bytes(len(chunk))
