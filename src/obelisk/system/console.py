"""The consoles of this machine: what whoever stands before it sees."""

from contextlib import suppress
from pathlib import Path

_ACTIVE = Path("/sys/class/tty/console/active")


def say(line: str) -> None:
    """Show a line on every console of the kernel. One that cannot be written is passed over."""
    for name in _ACTIVE.read_text().split():
        with suppress(OSError), Path("/dev", name).open("w") as console:
            console.write(f"\r\n{line}\r\n")
