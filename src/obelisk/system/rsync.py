"""rsync(1): copies a directory of files that are whole or not there, from and to another machine.

A target is `host:path`, `user@host:path` or `rsync://host[:port]/module/path`. Each file has its name only when it is whole.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from obelisk.errors import CommandError, TransportError
from obelisk.system.command import MINIMAL_ENVIRONMENT, OnLine, run

_TARGET = re.compile(r"rsync://[^/]+/.+|[^/:]+:.+")
_PASSED = ("HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "RSYNC_RSH", "RSYNC_PASSWORD", "RSYNC_CONNECT_PROG")
_IDLE_S = 120
_WRITING = ("--relative", "--mkpath", "--times", "--exclude=.*", "--chmod=D755,F644")
_NOT_THERE = 23  # some files could not be transferred: here that what was asked for is not there


def is_target(text: str) -> bool:
    """Whether that names a place on another machine."""
    return _TARGET.fullmatch(text) is not None


def push(source: Path, target: str, names: Sequence[str], *, named_by_content: bool, on_line: OnLine | None = None) -> None:
    """Make these files and directories below `target` what they are below `source`.

    What is `named_by_content` is left alone where it has the right size. Names that begin with a dot stay here.

    Raises:
        TransportError: it could not be done; trying again goes on from there.
        MissingFeatureError: rsync is not installed.
    """
    how = "--size-only" if named_by_content else "--checksum"
    _run(["--recursive", how, *_WRITING, *(f"{source}/./{name}" for name in names), f"{target}/"], on_line)


def remove(source: Path, target: str, names: Sequence[str]) -> None:
    """Take away what is below these directories of `target` and not of `source`.

    Raises:
        TransportError, MissingFeatureError: as `push`.
    """
    words = ["--recursive", "--size-only", "--existing", "--ignore-existing", "--delete", *_WRITING]
    _run([*words, *(f"{source}/./{name}" for name in names), f"{target}/"], None)


def pull(target: str, place: Path, *, by_content: str, known: Path, on_line: OnLine | None = None) -> None:
    """A copy of `target` in `place`, which is empty, but for names that begin with a dot.

    What is below the directory `by_content` is named by its content: where `known` has it, it is shared with that.

    Raises:
        TransportError, MissingFeatureError: as `push`.
    """
    words = ["--recursive", "--times", "--exclude=.*"]
    _run([*words, f"--exclude=/{by_content}/", f"{target}/", f"{place}/"], on_line)
    shared = ["--size-only", f"--link-dest={known}", f"--include=/{by_content}/", "--exclude=/*"]
    _run([*words, *shared, f"{target}/", f"{place}/"], on_line)


def fetch(target: str, name: str) -> bytes | None:
    """The bytes of one small file; None when it is not there.

    Raises:
        TransportError: nobody answers.
        MissingFeatureError: rsync is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="obelisk-rsync-") as scratch:
        copy = Path(scratch) / "file"
        try:
            _run([f"{target}/{name}", str(copy)], None)
        except TransportError as error:
            cause = error.__cause__
            if isinstance(cause, CommandError) and cause.status == _NOT_THERE:
                return None
            raise
        return copy.read_bytes()


def _run(words: Sequence[str], on_line: OnLine | None) -> None:
    # Nobody is there to answer a question: keys, and machines that are known.
    environment = (
        MINIMAL_ENVIRONMENT | {"RSYNC_RSH": "ssh -o BatchMode=yes"} | {name: os.environ[name] for name in _PASSED if name in os.environ}
    )
    argv = ["rsync", f"--timeout={_IDLE_S}", "--no-motd", *words]
    try:
        run(argv, env=environment, timeout_s=24 * 3600, on_line=on_line)
    except CommandError as error:
        last = next(iter(reversed(error.output.strip().splitlines())), "")
        raise TransportError(
            f"rsync failed with status {error.status} between {words[-2]} and {words[-1]}: {last}",
            code="rsync-failed",
            hint="see that the other machine answers, then try again",
        ) from error
