"""Control groups by this machine's kernel: a start enters the group that was made for it, and one in use is not taken away."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from obelisk.system import cgroups
from obelisk.system.cgroups import Way
from obelisk.system.confine import Owner
from obelisk.system.program import FAILED, Execute, assemble

ROOT = Owner(0, 0)


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """The machine's groups of version 2, wherever else they are mounted; with a group of this test's own."""
    place = tmp_path / "groups"
    place.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", place], check=True)
    try:
        own = place / f"obelisk-test-{os.getpid()}"
        own.mkdir()
        try:
            (own / "obelisk/app").mkdir(parents=True)
            yield own
        finally:
            for group in (own / "obelisk/app", own / "obelisk", own):
                if group.exists():
                    group.rmdir()
    finally:
        subprocess.run(["umount", place], check=True)


def started(top: Path, name: str, *words: str) -> subprocess.Popen[str]:
    start = top.parent.parent / "start"
    start.write_bytes(assemble(cgroups.enter(name, top=top), Execute(words[0], words)))
    start.chmod(0o755)
    return subprocess.Popen([start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_start_goes_on_in_its_group_and_ends_where_there_is_none(top: Path) -> None:
    said, _ = started(top, "app", "/bin/cat", "/proc/self/cgroup").communicate()
    assert f"0::/{top.name}/obelisk/app" in said.splitlines()
    missing = started(top, "other", "/bin/true")
    assert "cannot enter its control group other: make it ready again" in missing.communicate()[1]
    assert missing.returncode == FAILED


def test_a_group_goes_when_nothing_runs_in_it(top: Path) -> None:
    running = started(top, "app", "/bin/cat", "/dev/zero")
    assert running.stdout is not None
    running.stdout.read(1)  # it is there
    cgroups.remove(Way.DIRECT, "app", ROOT, top=top)
    assert (top / "obelisk/app").exists()
    running.kill()
    running.communicate()
    cgroups.remove(Way.DIRECT, "app", ROOT, top=top)
    assert not (top / "obelisk/app").exists()
