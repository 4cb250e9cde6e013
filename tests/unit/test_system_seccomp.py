"""The filter under which nothing waits for the disk."""

import subprocess
import sys
from pathlib import Path

from obelisk.system.seccomp import as_file, without_synchronising

_PROGRAM = """
import os, sys, ctypes
bad = 10_000  # no descriptor: the real calls refuse it, the filtered ones never look at it
for call in (os.fsync, os.fdatasync):
    call(bad)
os.sync()
assert ctypes.CDLL(None).syncfs(bad) == 0
with open(sys.argv[1], "w") as file:
    file.write("other calls work")
"""


def test_calls_that_wait_for_the_disk_do_nothing_and_all_others_work(tmp_path: Path) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-I", "-c", _PROGRAM, str(target)]
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0  # without the filter
    with as_file(without_synchronising()) as descriptor:
        room = ["bwrap", "--seccomp", str(descriptor), "--dev-bind", "/", "/", "--", *command]
        subprocess.run(room, check=True, pass_fds=[descriptor])
    assert target.read_text() == "other calls work"
