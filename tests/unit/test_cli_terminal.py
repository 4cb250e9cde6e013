"""What a terminal shows of work that goes by bytes."""

import subprocess
import sys

import pytest

from obelisk.cli import terminal
from obelisk.events import Failed, Finished, Note, Progress, Started


def test_bytes_are_told_with_how_many_there_are_and_when_the_rest_comes() -> None:
    assert terminal._how_far(1, 4, "", 1.0) == "25 %"
    assert terminal._how_far(1, 4, "", 60.0) == "25 %, 3:00 left"
    assert terminal._how_far(1 << 20, 4 << 20, "B", 0.5) == "25 %, 1.0 MiB of 4.0 MiB"
    assert terminal._how_far(1 << 20, 4 << 20, "B", 5.0) == "25 %, 1.0 MiB of 4.0 MiB, 0:15 left"
    assert terminal._how_far(0, 4 << 20, "B", 5.0) == "0 %, 0 B of 4.0 MiB"


def test_a_line_moves_with_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal._percent() as sink:
        sink(Started("a", "Fetching", 4 << 20, "B"))
        sink(Progress("a", 2 << 20))
        sink(Progress("unknown", 1))
        sink(Started("b", "Writing", None, "B"))
        sink(Progress("b", 1, 2))
        sink(Note("one mirror is down"))
        sink(Finished("a", 2.0, detail="enough"))
        sink(Failed("b", "no"))
    lines = capsys.readouterr().err.replace("\r\033[K", "\n").splitlines()
    assert [line for line in lines if line] == [
        "… Fetching",
        "… Fetching 50 %, 2.0 MiB of 4.0 MiB",
        "… Writing",
        "… Writing 50 %, 1 B of 2 B",
        "· one mirror is down",
        "✓ Fetching (2.0 s, enough)",
        "✗ Writing",
    ]


def test_an_answer_is_out_before_whatever_follows_ends_the_program() -> None:
    code = "from obelisk.cli import terminal; import os; terminal.answer('ready', json_wanted=False); os.kill(os.getpid(), 15)"
    ended = subprocess.run([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("ready\n", -15)
