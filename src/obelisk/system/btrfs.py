"""btrfs(8): subvolumes and their snapshots. Each operation is atomic: it is there as a whole after a power cut, or not at all."""

from pathlib import Path

from obelisk.system.command import run

_ROOT_INODE = 256  # every subvolume's own directory. Source: btrfs(5)


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


def sync(path: Path) -> None:
    """Make the whole file system durable that `path` is on."""
    run(["btrfs", "--quiet", "filesystem", "sync", path], timeout_s=300)
