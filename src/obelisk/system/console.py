"""The consoles of this machine: what whoever stands before it sees; and the terminal at which a command was typed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ACTIVE = Path("/sys/class/tty/console/active")


def ask_secret(prompt: str) -> str:
    """A line that is typed at the terminal without being shown; where there is no terminal, the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    from getpass import getpass  # noqa: PLC0415 - seldom wanted

    return getpass(prompt)


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Pass each key on as it is typed, for the block, where standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # noqa: PLC0415 - seldom wanted
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def say(line: str) -> None:
    """Show a line on every console of the kernel. One that cannot be written is passed over."""
    for name in _ACTIVE.read_text().split():
        with suppress(OSError), Path("/dev", name).open("w") as console:
            console.write(f"\r\n{line}\r\n")
