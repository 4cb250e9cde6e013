"""How a rehearsal's machine is watched, on files in the place of what a guest says."""

from pathlib import Path

import pytest

from obelisk.errors import CommandError
from obelisk.events import Task, silent
from obelisk.host import rehearsal
from obelisk.host.here import Here
from obelisk.model.rehearsal import END, Healthy, Unfit, Verdict

RUNNING = Task(silent, "rehearse/boot")


@pytest.fixture
def here(tmp_path: Path) -> Here:
    made = Here("shop", "1", "cd" * 32, tmp_path / "disk", tmp_path / "host", "boot-1", tmp_path / "run")
    made.rehearsal.mkdir(parents=True)
    (made.rehearsal / "qemu.log").write_text("no such machine\n")
    return made


def watched(here: Here, status: int | None = None, *, deadline_s: int = 60) -> Verdict:
    """What comes of a machine that has ended with that status, or still runs."""
    return rehearsal._watch(here, lambda: status, RUNNING, deadline_s=deadline_s)


def test_a_report_ends_the_wait(here: Here) -> None:
    (here.rehearsal / "said").write_bytes(b'[{"name":"page","ok":true}]\n' + END)
    assert watched(here) == Healthy()
    (here.rehearsal / "said").write_bytes(b'[{"name":"page","ok":false}]\n' + END)
    assert watched(here) == Unfit("failed: page")


def test_so_does_the_deadline(here: Here) -> None:
    assert watched(here, deadline_s=-1) == Unfit("not healthy after -1 seconds")


def test_a_machine_that_ends_well_has_switched_itself_off(here: Here) -> None:
    assert watched(here, 0) == Unfit("it switched itself off or restarted before it was healthy")


def test_a_machine_that_fails_says_nothing_about_the_image(here: Here) -> None:
    (here.rehearsal / "console").write_text("Kernel panic - not syncing: anything")
    for status in (1, -9):
        with pytest.raises(CommandError, match="no such machine"):
            watched(here, status)


def test_a_console_that_would_fill_the_disk_ends_it(here: Here) -> None:
    with (here.rehearsal / "console").open("wb") as file:
        file.truncate(rehearsal._MOST_SAID_BYTES + 1)
    assert watched(here) == Unfit("it said more than 64 MiB on its console")


def test_of_what_a_failed_rehearsal_said_the_end_is_kept(here: Here) -> None:
    (here.rehearsal / "console").write_bytes(b"x" * (3 << 20) + b"the end")
    (here.rehearsal / "said").write_bytes(b'[{"name":"page","ok":false}]\njournal' + END)
    place = rehearsal._keep_evidence(here, "shop_2")
    assert sorted(path.name for path in place.iterdir()) == ["console.txt", "health.json", "journal.txt", "qemu.log"]
    assert (place / "console.txt").read_bytes().endswith(b"xthe end")
    assert (place / "console.txt").stat().st_size <= 2 << 20
    assert (place / "journal.txt").read_text() == "journal"
