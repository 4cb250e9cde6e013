"""Who may become root in a namespace, found out before anything hangs."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "import sys; from pathlib import Path; from obelisk.system.namespace import _gains_privileges as g; print(g(Path(sys.argv[1])))"


@pytest.mark.parametrize(
    ("program", "words", "gains"),
    [
        ("/usr/bin/su", [], "True"),
        ("/usr/bin/su", ["setpriv", "--no-new-privs"], "False"),
        ("/usr/bin/true", [], "False"),
    ],
)
def test_a_program_gains_privileges_by_its_mode_unless_the_process_gave_that_up(program: str, words: list[str], gains: str) -> None:
    said = subprocess.run([*words, sys.executable, "-c", PROGRAM, str(Path(program))], check=True, capture_output=True, text=True).stdout
    assert said.strip() == gains
