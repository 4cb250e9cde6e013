"""Runs the programs of `obelisk.build.inside` in the tools tree and turns their refusals into errors."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obelisk.errors import CommandError, InputError
from obelisk.events import Task
from obelisk.model.canonical import Json
from obelisk.system.bubblewrap import Bind, Room, read_only
from obelisk.system.command import NO_SPACE
from obelisk.system.namespace import is_root

CODE = Path(__file__).parent / "inside"
GUEST = Path(__file__).parent / "guest"

_HINTS = {
    "script-failed": "read the script's last lines above; what it needs belongs into `packages` or `tree`",
    "service": "check the unit's name and that its package is in `packages`",
}


@dataclass(frozen=True, slots=True)
class Overlay:
    """A writable view of `lower` at `inside`; changes land in `upper`, which lies beside the scratch directory `work`."""

    lower: Sequence[Path]
    upper: Path | None
    work: Path | None
    inside: str = "/tree"


def overlay_command(overlay: Overlay, command: Sequence[str | Path], *, user_namespace: bool) -> list[str | Path]:
    """The command that first mounts the overlay; for use as (namespaced) root in a room that binds the overlay's paths."""
    options = f"lowerdir={':'.join(str(path) for path in overlay.lower)}"
    if overlay.upper is not None:
        options += f",upperdir={overlay.upper},workdir={overlay.work}"
    if user_namespace:
        options += ",userxattr"
    script = 'mkdir -p "$1"; mount -t overlay overlay -o "$2" "$1"; shift 2; exec "$@"'
    return ["sh", "-euc", script, "overlay", overlay.inside, options, *command]


def run_program(  # noqa: PLR0913 - keywords name each
    room: Room,
    name: str,
    request: Json,
    *,
    binds: Sequence[Bind],
    running: Task,
    env: Mapping[str, str] | None = None,
    overlay: Overlay | None = None,
) -> dict[str, Any]:
    """Run `inside/NAME.py` with `request` and return the object it answers with (empty when it says nothing).

    Raises:
        InputError: it refused, with the reason that it gave.
        CommandError: it failed.
    """
    command: list[str | Path] = ["python3", "-I", f"/obelisk/inside/{name}.py"]
    if overlay is not None:
        command = overlay_command(overlay, command, user_namespace=not is_root())
    try:
        completed = room.run(
            command,
            binds=[read_only(CODE, "/obelisk/inside"), read_only(GUEST, "/obelisk/guest"), *binds],
            env=env,
            stdin=json.dumps(request).encode(),
            on_line=lambda line: None if line.startswith("{") else running.output(line),
        )
    except CommandError as error:
        refusal = re.search(r"^refused: ([\w-]+): (.*)$", error.output, re.MULTILINE)
        # What failed for want of room is not refused; a script of the spec's may have filled a place of its own.
        if refusal is None or (NO_SPACE in error.output and refusal[1] != "script-failed"):
            raise
        said = "\n".join(line for line in error.output.splitlines()[-15:] if not line.startswith("refused: "))
        message = refusal[2] + (f"\n{said}" if said and refusal[1] == "script-failed" else "")
        raise InputError(message, code=refusal[1], hint=_HINTS.get(refusal[1], "")) from error
    answer: dict[str, Any] = json.loads(completed.stdout) if completed.stdout.strip() else {}
    return answer
