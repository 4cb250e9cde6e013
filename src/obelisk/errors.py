"""One tree of errors, grouped by what the caller should do next.

Every error carries a message that names the place, a hint that names the remedy, and a stable code for programs. The class decides
the exit status. Only front ends catch `ObeliskError`; anything else that escapes is a bug and shows its traceback.
"""

from typing import ClassVar


class ObeliskError(Exception):
    """Something a person can act on. `code` is stable across releases; `hint` is the next action, empty when none is known."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InputError(ObeliskError):
    """The input is wrong: fix it and try again. `place` is `file:line:key` as far as it is known."""

    exit_status = 2

    def __init__(self, message: str, *, code: str, hint: str = "", place: str = "") -> None:
        super().__init__(f"{place}: {message}" if place else message, code=code, hint=hint)
        self.place = place


class TrustError(ObeliskError):
    """Bytes or signatures are not what they must be: never retry with the same bytes."""

    exit_status = 3


class TransportError(ObeliskError):
    """Something could not be fetched: trying again, or from elsewhere, may help."""

    exit_status = 4


class StateError(ObeliskError):
    """The right request at the wrong moment: something else has to happen first."""

    exit_status = 5


class CommandError(ObeliskError):
    """An external program failed; the message holds its name, its status and the end of what it said."""

    exit_status = 6

    def __init__(self, argv: tuple[str, ...], status: int, output: str, *, code: str = "command-failed", hint: str = "") -> None:
        tail = "\n".join(line for line in output.strip().splitlines()[-12:])
        ended = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        super().__init__(f"{argv[0]} {ended}" + (f":\n{tail}" if tail else ""), code=code, hint=hint)
        self.argv = argv
        self.status = status
        self.output = output


class MissingFeatureError(ObeliskError):
    """This machine lacks something: install it, or run elsewhere."""

    exit_status = 7
