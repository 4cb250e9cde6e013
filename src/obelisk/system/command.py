"""Runs external programs: explicit argument lists and environment, a timeout, no shell, output passed on line by line.

A program is the leader of its own process group, which dies as a whole when it overruns its time or when this process is interrupted.
"""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from obelisk.errors import CommandError, MissingFeatureError

OnLine = Callable[[str], None]

NO_SPACE = "No space left on device"  # what programs say in MINIMAL_ENVIRONMENT's language

MINIMAL_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "TZ": "UTC",
}


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program left behind: its standard output, and both streams in the order in which they were read."""

    stdout: str
    output: str


def run(  # noqa: PLR0913 - keywords name each
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 3600,
    on_line: OnLine | None = None,
    stdin: bytes = b"",
    show: str = "",
    inherited: Sequence[int] = (),
) -> Completed:
    """Run `argv` to its end and return what it said.

    `env` replaces the environment (default: `MINIMAL_ENVIRONMENT`). `show` is the name for errors, where `argv[0]` is only a wrapper.
    `inherited` are open descriptors that the program gets under the same numbers.

    Raises:
        CommandError: the program failed or overran `timeout_s`; the message has the end of its output.
        MissingFeatureError: there is no such program.
    """
    words = tuple(str(word) for word in argv)
    named = (show, *words[1:]) if show else words
    try:
        process = subprocess.Popen(
            words,
            env=dict(MINIMAL_ENVIRONMENT if env is None else env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            pass_fds=inherited,
        )
    except FileNotFoundError as error:
        raise MissingFeatureError(
            f"{words[0]} is not installed", code="program-missing", hint=f"install the package that has {words[0]}"
        ) from error
    stdout: list[str] = []
    both: list[str] = []
    readers = [
        threading.Thread(target=_drain, args=(process.stdout, (stdout, both), None), daemon=True),
        threading.Thread(target=_drain, args=(process.stderr, (both,), on_line), daemon=True),
    ]
    if on_line is not None:
        readers[0] = threading.Thread(target=_drain, args=(process.stdout, (stdout, both), on_line), daemon=True)
    for reader in readers:
        reader.start()
    try:
        if process.stdin is not None:
            try:
                process.stdin.write(stdin)
                process.stdin.close()
            except BrokenPipeError:
                pass  # the program did not want all of it; its status tells whether that matters
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill_group(process)
        both.append(f"(stopped after {timeout_s:.0f} s)\n")
        raise CommandError(named, -signal.SIGKILL, "".join(both), code="command-timeout") from error
    except BaseException:
        _kill_group(process)
        raise
    for reader in readers:
        reader.join()
    output = "".join(both)
    if status != 0:
        raise CommandError(named, status, output)
    return Completed("".join(stdout), output)


def go_on_as(program: Path, words: Sequence[str]) -> NoReturn:
    """Become another program, with the same environment and open files.

    Raises:
        MissingFeatureError: it cannot be started.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, which is inherited, and which others do not expect
    try:
        os.execv(program, [program.name, *words])  # noqa: S606 - an argument list
    except OSError as error:
        raise MissingFeatureError(f"{program} cannot be started: {error.strerror}", code="program-missing") from error


def find_program(name: str) -> Path | None:
    """Where the program is on this machine, looked for where administrators' programs are too."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{MINIMAL_ENVIRONMENT['PATH']}")
    return Path(found) if found else None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _drain(stream: IO[bytes] | None, sinks: tuple[list[str], ...], on_line: OnLine | None) -> None:
    if stream is None:
        return
    with stream:
        for raw in stream:
            line = raw.decode(errors="replace")
            for sink in sinks:
                sink.append(line)
            if on_line is not None:
                on_line(line.rstrip("\n"))
