"""rclone(1): copies a directory of files that are whole or not there, from and to object stores, S3 and its like.

A target is `rclone:REMOTE:PATH`, where REMOTE is one of rclone's configuration, or is spelled out in rclone's way.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from obelisk.errors import CommandError, TransportError
from obelisk.system.command import MINIMAL_ENVIRONMENT, Completed, OnLine, run

_PREFIX = "rclone:"
_PASSED = ("HOME", "USER", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_PASSED_GROUPS = ("RCLONE_", "AWS_")
_IDLE_S = 120
_NOT_THERE = {3, 4}  # no such directory, no such file
_HIDDEN = "--filter=- .*"


def is_target(text: str) -> bool:
    """Whether that names a place for rclone."""
    return text.startswith(_PREFIX) and ":" in text.removeprefix(_PREFIX)


def push(source: Path, target: str, names: Sequence[str], *, named_by_content: bool, on_line: OnLine | None = None) -> None:
    """Make these files and directories below `target` what they are below `source`.

    What is `named_by_content` is left alone where it has the right size. Names that begin with a dot stay here.

    Raises:
        TransportError: it could not be done; trying again goes on from there.
        MissingFeatureError: rclone is not installed.
    """
    # Not every store tells digests, and of times and sizes neither says that a file is the same.
    how = "--size-only" if named_by_content else "--ignore-times"
    _run(["copy", how, *_only(source, names), str(source), _remote(target)], on_line)


def remove(source: Path, target: str, names: Sequence[str]) -> None:
    """Take away what is below these directories of `target` and not of `source`; what else differs has been sent before.

    Raises:
        TransportError, MissingFeatureError: as `push`.
    """
    _run(["sync", "--size-only", *_only(source, names), str(source), _remote(target)], None)


def pull(target: str, place: Path, *, by_content: str, known: Path, on_line: OnLine | None = None) -> None:
    """A copy of `target` in `place`, which is empty, but for names that begin with a dot.

    What is below the directory `by_content` is named by its content: where `known` has it, it is shared with that.

    Raises:
        TransportError, MissingFeatureError: as `push`.
    """
    _run(["copy", _HIDDEN, f"--filter=- /{by_content}/**", _remote(target), str(place)], on_line)
    there = _run(
        ["lsf", "--recursive", "--files-only", "--format=sp", "--separator=/", _HIDDEN, f"{_remote(target)}/{by_content}"],
        None,
        may_lack=True,
    )
    for line in there.stdout.splitlines() if there else ():
        size, _, name = line.partition("/")
        mine, copy = known / by_content / name, place / by_content / name
        if mine.is_file() and mine.stat().st_size == int(size):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(mine)
    _run(["copy", "--size-only", _HIDDEN, f"--filter=+ /{by_content}/**", "--filter=- *", _remote(target), str(place)], on_line)


def fetch(target: str, name: str) -> bytes | None:
    """The bytes of one small file; None when it is not there.

    Raises:
        TransportError: nobody answers.
        MissingFeatureError: rclone is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="obelisk-rclone-") as scratch:
        copy = Path(scratch) / "file"
        _run(["copyto", f"{_remote(target)}/{name}", str(copy)], None, may_lack=True)
        return copy.read_bytes() if copy.is_file() else None


def _remote(target: str) -> str:
    return target.removeprefix(_PREFIX)


def _only(source: Path, names: Sequence[str]) -> list[str]:
    chosen = [f"--filter=+ /{name}/**" if (source / name).is_dir() else f"--filter=+ /{name}" for name in names]
    return [_HIDDEN, *chosen, "--filter=- *"]


def _run(words: Sequence[str], on_line: OnLine | None, *, may_lack: bool = False) -> Completed | None:
    """Without a result where something is not there, and `may_lack`."""
    passed = {name: value for name, value in os.environ.items() if name.upper() in _PASSED or name.startswith(_PASSED_GROUPS)}
    argv = ["rclone", f"--timeout={_IDLE_S}s", "--contimeout=30s", "--retries=2", "--verbose", "--ask-password=false", *words]
    try:
        return run(argv, env=MINIMAL_ENVIRONMENT | passed, timeout_s=24 * 3600, on_line=on_line)
    except CommandError as error:
        if may_lack and error.status in _NOT_THERE:
            return None
        lines = [line for line in error.output.strip().splitlines() if "ERROR" in line or "Failed" in line or "CRITICAL" in line]
        raise TransportError(
            f"rclone failed with status {error.status} between {words[-2]} and {words[-1]}: {lines[-1] if lines else ''}",
            code="rclone-failed",
            hint="see that `rclone lsf` of that place works, then try again",
        ) from error
