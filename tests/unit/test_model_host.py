"""Entries, and the states of an upgrade: each line of the table of transitions, and what a cut journal leads to."""

import pytest
from host_samples import record
from hypothesis import given
from hypothesis import strategies as st

from obelisk.model.host import (
    PHASES,
    Entry,
    Event,
    Idle,
    Pending,
    Phase,
    Progress,
    Record,
    Trying,
    Underway,
    failed_images,
    known_good,
    next_phase,
    progress,
    unfit_images,
)

BEGUN = record(Event.BEGUN)
ALL_DONE = (BEGUN, *(record(Event.DONE, phase=phase) for phase in PHASES))
BOOTED = record(Event.BOOTED, boot="boot-2")
PENDING = Pending("shop_2", "id-shop_2", "boot-1")


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("shop_1.efi", Entry("shop", "1")),
        ("shop_1.2-3+3.efi", Entry("shop", "1.2-3", 3)),
        ("shop-web_2026.1+0-3.efi", Entry("shop-web", "2026.1", 0, 3)),
        ("shop_1+2-1.efi", Entry("shop", "1", 2, 1)),
    ],
)
def test_an_entry_is_read_from_its_name_and_written_back(file: str, entry: Entry) -> None:
    assert Entry.parse(file) == entry
    assert entry.file == file


@pytest.mark.parametrize("file", ["shop_1.new", "shop.efi", "Shop_1.efi", "shop_1+.efi", "shop_1+3-.efi", "shop_1.efi.efi~", "fedora.efi"])
def test_other_files_are_no_entries(file: str) -> None:
    assert Entry.parse(file) is None


@pytest.mark.parametrize(
    ("records", "state"),
    [
        ((), Idle()),
        ((BEGUN,), Underway("shop_2", "id-shop_2")),
        (ALL_DONE[:3], Underway("shop_2", "id-shop_2", (Phase.CHECK, Phase.SPACE))),
        ((*ALL_DONE[:3], BEGUN), Underway("shop_2", "id-shop_2")),
        ((*ALL_DONE[:3], record(Event.STOPPED)), Underway("shop_2", "id-shop_2", (Phase.CHECK, Phase.SPACE))),
        ((*ALL_DONE[:3], record(Event.BEGUN, "shop_3")), Underway("shop_3", "id-shop_3")),
        (ALL_DONE, PENDING),
        ((*ALL_DONE, record(Event.BOOTED, boot="boot-1")), PENDING),
        ((*ALL_DONE, record(Event.BOOTED, "shop_1", boot="boot-2")), PENDING),
        ((*ALL_DONE, BOOTED), Trying("shop_2", "id-shop_2", ("boot-2",))),
        ((*ALL_DONE, BOOTED, BOOTED), Trying("shop_2", "id-shop_2", ("boot-2",))),
        ((*ALL_DONE, BOOTED, record(Event.BOOTED, boot="boot-3")), Trying("shop_2", "id-shop_2", ("boot-2", "boot-3"))),
        ((*ALL_DONE, BOOTED, record(Event.BLESSED)), Idle("shop_2")),
        ((*ALL_DONE, record(Event.FELL_BACK)), Idle("shop_2")),
        ((*ALL_DONE, BOOTED, record(Event.FELL_BACK)), Idle("shop_2")),
        ((*ALL_DONE, BOOTED, record(Event.BLESSED, "shop_1")), Trying("shop_2", "id-shop_2", ("boot-2",))),
        ((*ALL_DONE, record(Event.ROLLED_BACK)), Idle("shop_2")),
        ((*ALL_DONE[:3], record(Event.UNFIT)), Idle("shop_2")),
        ((*ALL_DONE[:3], record(Event.UNFIT, "shop_3")), Underway("shop_2", "id-shop_2", (Phase.CHECK, Phase.SPACE))),
        ((*ALL_DONE[:3], record(Event.REHEARSED)), Underway("shop_2", "id-shop_2", (Phase.CHECK, Phase.SPACE))),
        ((*ALL_DONE, record(Event.UNFIT)), PENDING),
        ((record(Event.DONE, phase=Phase.PENDING),), Idle()),
    ],
)
def test_a_journal_leads_to_one_state(records: tuple[Record, ...], state: Progress) -> None:
    assert progress(records) == state


def test_the_phases_follow_each_other() -> None:
    seen = []
    for count in range(1, len(ALL_DONE)):
        state = progress(ALL_DONE[:count])
        assert isinstance(state, Underway)
        seen.append(next_phase(state, rehearse=True))
    assert tuple(seen) == PHASES


def test_a_rehearsal_is_the_last_phase_before_anything_is_written_and_only_where_it_is_asked_for() -> None:
    looked = Underway("shop_2", "id-shop_2", (Phase.CHECK, Phase.SPACE))
    assert next_phase(looked, rehearse=True) is Phase.REHEARSE
    assert next_phase(looked) is Phase.STAGE


def test_an_image_that_fell_back_is_failed_until_it_is_blessed() -> None:
    assert failed_images([record(Event.FELL_BACK)]) == {"id-shop_2"}
    assert failed_images([record(Event.FELL_BACK), record(Event.BLESSED)]) == frozenset()
    assert failed_images([record(Event.UNHEALTHY)]) == frozenset()


def test_an_image_whose_rehearsal_failed_is_unfit_until_one_succeeds_or_it_is_blessed() -> None:
    unfit = record(Event.UNFIT)
    assert unfit_images([unfit]) == {"id-shop_2"}
    assert unfit_images([unfit, record(Event.REHEARSED, "shop_3")]) == {"id-shop_2"}
    for event in (Event.REHEARSED, Event.BLESSED):
        assert unfit_images([unfit, record(event)]) == frozenset()
    assert unfit_images([record(Event.REHEARSED), unfit]) == {"id-shop_2"}
    assert failed_images([unfit]) == frozenset()
    assert failed_images([record(Event.FELL_BACK), record(Event.REHEARSED)]) == {"id-shop_2"}


def test_good_is_what_was_healthy_here() -> None:
    assert known_good([record(Event.BOOTED), record(Event.HEALTHY, "shop_1"), record(Event.BLESSED, "shop_3")]) == {"shop_1", "shop_3"}


@given(
    st.lists(
        st.sampled_from([*ALL_DONE, BOOTED, record(Event.BLESSED), record(Event.FELL_BACK), record(Event.BEGUN, "shop_3")]), max_size=30
    )
)
def test_every_journal_leads_somewhere_and_an_upgrade_never_becomes_pending_without_all_its_phases(records: list[Record]) -> None:
    state = progress(records)
    assert isinstance(state, (Idle, Underway, Pending, Trying))
    if isinstance(state, Underway):
        assert len(set(state.done)) == len(state.done)


def test_records_are_read_as_they_were_written() -> None:
    written = Record(Event.DONE, "2026-01-01T00:00:00+00:00", "boot", "shop_2", "id", Phase.STAGE, 1234, "detail")
    assert Record.from_json(written.to_json()) == written


@pytest.mark.parametrize("raw", [None, [], {}, {"event": "novel", "at": "", "boot": "", "image": ""}, {"event": "booted"}])
def test_what_is_no_record_is_none(raw: object) -> None:
    assert Record.from_json(raw) is None
