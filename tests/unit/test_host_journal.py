"""A host's journal survives being cut anywhere."""

from pathlib import Path

from host_samples import record

from obelisk.host import journal
from obelisk.model.host import Event


def test_a_journal_cut_anywhere_keeps_every_record_before_the_cut_and_takes_more(tmp_path: Path) -> None:
    records = [record(event) for event in Event]
    for each in records:
        journal.append(tmp_path, each)
    whole = (tmp_path / journal.FILE).read_bytes()
    ends = [at + 1 for at in range(len(whole)) if whole[at : at + 1] == b"}"]
    for cut in range(len(whole)):
        (tmp_path / journal.FILE).write_bytes(whole[:cut])
        kept = journal.read(tmp_path)
        assert list(kept) == records[: sum(end <= cut for end in ends)]
        journal.append(tmp_path, record(Event.HEALTHY, "after"))
        assert journal.read(tmp_path) == (*kept, record(Event.HEALTHY, "after"))


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == ()


def test_lines_that_others_wrote_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / journal.FILE).write_bytes(b'\xff\xfe\n[1]\n{"event": "novel"}\n')
    journal.append(tmp_path, record(Event.BOOTED))
    assert journal.read(tmp_path) == (record(Event.BOOTED),)
