"""What a rehearsal needs, and what it comes to."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.errors import StateError
from obelisk.model.rehearsal import END, MIB, Healthy, Means, Report, Unfit, Verdict, Wanted, judge, obstacle, plan

MEANS = Means(8 << 30, 4 << 30, 4)
WANTED = Wanted(400 * MIB, 4 * MIB, 20 * MIB, 1000 * MIB)
# Image, the state and a tenth and 64 MiB more, what the guest writes, what is left alone.
NEEDED = (424 + 1164 + 256 + 256) * MIB


def health(*checks: tuple[str, bool]) -> bytes:
    """A health report as it comes through the port."""
    return json.dumps([{"name": name, "ok": ok} for name, ok in checks]).encode() + b"\n"


def test_a_host_without_room_is_told_how_much_is_missing_and_for_what() -> None:
    with pytest.raises(StateError, match=r"needs 2100 MiB .*\(424 for the image, 1164 for .*\), and 2099 are free") as refused:
        plan(replace(MEANS, free_bytes=NEEDED - 1), WANTED)
    assert "without --rehearse" in refused.value.hint
    plan(replace(MEANS, free_bytes=NEEDED), WANTED)


def test_a_host_without_memory_is_told_so() -> None:
    with pytest.raises(StateError, match="768 MiB; 1535 MiB are free"):
        plan(replace(MEANS, memory_bytes=1535 * MIB), WANTED)
    assert plan(replace(MEANS, memory_bytes=1536 * MIB), WANTED).memory_bytes == 768 * MIB


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 38), st.integers(1, 1 << 34))
def test_the_disk_never_takes_more_than_is_free_and_holds_what_it_is_for(free: int, state: int, root: int) -> None:
    wanted = Wanted(root, root // 100, 20 * MIB, state)
    try:
        stage = plan(replace(MEANS, free_bytes=free), wanted)
    except StateError:
        return
    ranges = (stage.esp, stage.root, stage.tree, stage.state)
    assert all(before.end_bytes == after.start_bytes for before, after in itertools.pairwise(ranges))
    assert all(each.size_bytes % MIB == 0 for each in ranges)
    assert stage.root.size_bytes >= root
    assert stage.state.size_bytes > state + state // 10
    assert stage.disk_bytes - stage.esp.size_bytes < free
    # `start` would make slots in more than this.
    assert stage.disk_bytes - stage.state.end_bytes < 64 * MIB


def test_an_image_that_encrypts_its_state_is_refused() -> None:
    assert obstacle({"deadline": "900"}) is None
    assert obstacle({"state_encryption": "none"}) is None
    refused = obstacle({"state_encryption": "tpm2"})
    assert refused is not None
    assert refused.code == "rehearsal-encrypted"


GOOD = Report.parse(health(("page", True)) + END)
BAD = Report.parse(health(("page", False), ("ssh", True)) + b"journal" + END)
BEGINNING = Report.parse(health(("page", False)) + b"jour")
STOPPED = "\r\nobelisk: STOPPED: the state volume holds ext4: empty it. This machine restarts in 60 seconds.\r\n"
PANIC = "[    1.0] Kernel panic - not syncing: VFS: no root\r\n[    1.1] CPU: 0"


@pytest.mark.parametrize(
    ("report", "console", "ended", "late_s", "verdict"),
    [
        (None, "", False, None, None),
        (GOOD, "", False, None, Healthy()),
        (GOOD, PANIC, True, 900, Healthy()),
        (BAD, "", False, None, Unfit("failed: page")),
        (BEGINNING, "", False, None, None),
        (BEGINNING, STOPPED, False, None, None),
        (BEGINNING, "", True, None, Unfit("failed: page")),
        (BEGINNING, "", False, 900, Unfit("failed: page")),
        (None, STOPPED, False, None, Unfit("stopped: the state volume holds ext4: empty it")),
        (None, PANIC, False, None, Unfit("Kernel panic - not syncing: VFS: no root")),
        (None, "login:", True, None, Unfit("it switched itself off or restarted before it was healthy")),
        (None, "login:", False, 900, Unfit("not healthy after 900 seconds")),
    ],
)
def test_a_rehearsal_comes_to_one_verdict(
    report: Report | None, console: str, *, ended: bool, late_s: int | None, verdict: Verdict
) -> None:
    assert judge(report, console, ended=ended, late_s=late_s) == verdict


def test_a_report_is_there_with_its_first_line_and_complete_with_its_end() -> None:
    whole = health(("page", False)) + b"line\nline\n" + END
    for length in range(len(whole)):
        report = Report.parse(whole[:length])
        assert (report is None) == (b"\n" not in whole[:length])
        assert report is None or not report.complete
    report = Report.parse(whole)
    assert report is not None
    assert (report.failing, report.complete, report.journal) == (("page",), True, b"line\nline\n")


@pytest.mark.parametrize("line", [b"nonsense\n", b"{}x\n", b'[{"name": "page"}]\n', b"[1]\n"])
def test_a_report_that_cannot_be_read_is_no_success(line: bytes) -> None:
    report = Report.parse(line)
    assert report is not None
    assert isinstance(judge(report, "", ended=True, late_s=None), Unfit)
