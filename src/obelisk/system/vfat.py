"""mkfs.vfat(8)."""

from pathlib import Path

from obelisk.system.command import find_program, run


def is_installed() -> bool:
    """Whether this machine can make such file systems."""
    return find_program("mkfs.vfat") is not None


def make(device: Path, label: str) -> None:
    """Make an empty file system."""
    run(["mkfs.vfat", "-n", label, device], timeout_s=60)
