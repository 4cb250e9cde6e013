"""Programs that are a list of system calls: they do what the list says, in order, and stop where a call fails."""

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from obelisk.system.program import FAILED, Beside, Call, Data, Execute, Kept, Pair, assemble, becoming, text
from obelisk.system.syscalls import NUMBERS

SHOW = Execute("/usr/bin/env", ("env", "printf", "<%s>"), ("A=1", "B=two"))


def run(place: Path, calls: Sequence[Call | Beside], then: Execute, *words: str) -> subprocess.CompletedProcess[bytes]:
    program = place / "program"
    program.write_bytes(assemble(calls, then))
    program.chmod(0o755)
    return subprocess.run([program, *words], capture_output=True, check=False, timeout=20)


@pytest.mark.parametrize("words", [(), ("a",), ("a", "b c", ""), tuple(str(n) for n in range(500))])
def test_the_next_program_gets_its_own_words_and_then_those_that_were_given(tmp_path: Path, words: tuple[str, ...]) -> None:
    finished = run(tmp_path, [], SHOW, *words)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout.decode() == ("".join(f"<{word}>" for word in words) if words else "<>")


def test_nothing_else_is_in_the_environment(tmp_path: Path) -> None:
    assert run(tmp_path, [], Execute("/usr/bin/env", ("env",), ("A=1", "B=two"))).stdout == b"A=1\nB=two\n"
    assert run(tmp_path, [], Execute("/usr/bin/env", ("env",))).stdout == b""


def test_calls_are_made_in_order_and_see_the_results_of_those_before(tmp_path: Path) -> None:
    written = Data((b"hello\n",))
    calls = [
        Call(NUMBERS["open"], (text(str(tmp_path / "out")), 0o101, 0o600), "open", keep="file"),
        Call(NUMBERS["write"], (Kept("file"), written, 6), "write"),
        # A pointer in a structure, to a structure with a result in it: poll(2) of the file says that it can be written.
        Call(NUMBERS["writev"], (Kept("file"), Data((Data((b"again\n",)), struct.pack("<Q", 6))), 1), "write again"),
        Call(NUMBERS["poll"], (Data((Kept("file"), struct.pack("<hh", 4, 0))), 1, 0), "poll", keep="ready"),
        Call(NUMBERS["ftruncate"], (Kept("file"), 8), "truncate"),
        Call(NUMBERS["dup2"], (Kept("ready"), 9), "see one ready file"),
    ]
    finished = run(tmp_path, calls, Execute("/usr/bin/readlink", ("readlink", "/proc/self/fd/9")))
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "out").read_bytes() == b"hello\nag"
    assert finished.stdout.startswith(b"pipe:")  # descriptor 1, which is what poll(2) returned


def test_a_call_that_fails_ends_it_before_anything_else_happens(tmp_path: Path) -> None:
    calls = [
        Call(NUMBERS["rmdir"], (text("/does/not/exist"),), "remove what is not there"),
        Call(NUMBERS["mkdir"], (text(str(tmp_path / "made")), 0o700), "make a directory"),
    ]
    finished = run(tmp_path, calls, SHOW)
    assert (finished.returncode, finished.stdout) == (FAILED, b"")
    assert finished.stderr == b"obelisk: cannot remove what is not there\n"
    assert not (tmp_path / "made").exists()


def test_a_call_that_may_fail_is_passed_over(tmp_path: Path) -> None:
    finished = run(tmp_path, [Call(NUMBERS["rmdir"], (text("/does/not/exist"),), "")], SHOW, "on")
    assert finished.stdout == b"<on>"


def piped(*beside: Call) -> list[Call | Beside]:
    """A process beside, and a wait for a byte from it."""
    return [
        Call(NUMBERS["pipe2"], (Pair("from", "to"), 0), "make a pipe"),
        Beside(beside),
        Call(NUMBERS["close"], (Kept("to"),), "close its end"),
        Call(NUMBERS["read"], (Kept("from"), Data((bytes(1),)), 1), "hear from it", least=1),
    ]


def test_a_process_beside_makes_calls_of_its_own_and_gets_none_of_the_words_that_were_given(tmp_path: Path) -> None:
    shell = Execute("/bin/sh", ("sh", "-c", 'echo "$# $A $(readlink /proc/self/fd/0)" >&9', "sh"), ("A=beside",))
    calls = piped(
        Call(NUMBERS["dup2"], (Kept("to"), 9), "keep its end"),
        Call(NUMBERS["open"], (text("/dev/null"), 0), "open nothing", keep="nothing"),
        Call(NUMBERS["dup2"], (Kept("nothing"), 0), "read nothing"),
        becoming(shell),
    )
    rest = Execute("/bin/sh", ("sh", "-c", 'cat <&"$0"; echo "$@"', "3"))
    finished = run(tmp_path, calls, rest, "given", "words")
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == b" beside /dev/null\ngiven words\n"  # of "0", the first byte was read


def test_what_waits_for_a_process_beside_that_fails_fails_too(tmp_path: Path) -> None:
    finished = run(tmp_path, piped(becoming(Execute("/does/not/exist", ("x",)))), SHOW)
    assert (finished.returncode, finished.stdout) == (FAILED, b"")
    assert finished.stderr == b"obelisk: cannot start /does/not/exist\nobelisk: cannot hear from it\n"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    finished = run(tmp_path, [], Execute("/does/not/exist", ("x",)))
    assert (finished.returncode, finished.stderr) == (FAILED, b"obelisk: cannot start /does/not/exist\n")


def test_the_same_calls_make_the_same_bytes() -> None:
    calls = [Call(NUMBERS["getpid"], (), "", keep="pid"), Call(NUMBERS["kill"], (Kept("pid"), 0), "find itself")]
    assert assemble(calls, SHOW) == assemble(list(calls), SHOW)
