"""systemd-veritysetup(8): an image whose blocks the kernel compares with their hash tree whenever they are read (dm-verity)."""

from contextlib import suppress
from pathlib import Path

from obelisk.errors import CommandError
from obelisk.system.command import MINIMAL_ENVIRONMENT, run

_PROGRAM = Path("/usr/lib/systemd/systemd-veritysetup")
_DEVICES = Path("/dev/mapper")
# libdevmapper makes the node by itself, and waits for no rules of udev's, which a machine may not have.
_ENVIRONMENT = {**MINIMAL_ENVIRONMENT, "DM_DISABLE_UDEV": "1"}


def is_here() -> bool:
    """Whether this machine has it, and the kernel's device-mapper."""
    return _PROGRAM.exists() and (_DEVICES / "control").exists()


def attach(name: str, data: Path, tree: Path, root_hash: str) -> Path:
    """The device through which `data`, a file, is read; one of that name that is there already stays. Takes root rights.

    Raises:
        CommandError: the kernel refuses.
    """
    device = _DEVICES / name
    if not device.exists():
        run([_PROGRAM, "attach", name, data, tree, root_hash], env=_ENVIRONMENT, timeout_s=120)
    return device


def detach(name: str) -> None:
    """Remove such a device, if there is one. It stays while somebody has it mounted."""
    if (_DEVICES / name).exists():
        with suppress(CommandError):
            run([_PROGRAM, "detach", name], env=_ENVIRONMENT, timeout_s=120)
