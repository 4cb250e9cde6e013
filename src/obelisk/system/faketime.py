"""faketime(1): a clock that stands still, for programs that put the time of day into what they make."""

from collections.abc import Sequence
from datetime import UTC, datetime


def at(epoch: int, command: Sequence[str]) -> list[str]:
    """The command that runs `command` at `epoch` (seconds since 1970) for as long as it takes; in a room with the time zone UTC."""
    moment = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return ["faketime", "-f", moment, *command]
