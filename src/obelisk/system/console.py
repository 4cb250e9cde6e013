"""The consoles of this machine: what whoever stands before it sees; and the terminal at which a command was typed."""

import sys
from contextlib import suppress
from pathlib import Path

_ACTIVE = Path("/sys/class/tty/console/active")


def ask_secret(prompt: str) -> str:
    """A line that is typed at the terminal without being shown; where there is no terminal, the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    from getpass import getpass  # noqa: PLC0415 - seldom wanted

    return getpass(prompt)


def say(line: str) -> None:
    """Show a line on every console of the kernel. One that cannot be written is passed over."""
    for name in _ACTIVE.read_text().split():
        with suppress(OSError), Path("/dev", name).open("w") as console:
            console.write(f"\r\n{line}\r\n")
