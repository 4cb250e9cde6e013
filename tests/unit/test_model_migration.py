"""Decisions about moving a running machine."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.errors import StateError
from obelisk.model.migration import (
    MIB,
    Converge,
    Decision,
    GiveUp,
    GoOn,
    Load,
    PostCopy,
    Presence,
    Sample,
    Settlement,
    Side,
    SwitchOver,
    Terms,
    Wanted,
    decide,
    expect,
    obstacles,
    settle,
)

TERMS = Terms(pause_s=1.0, limit_s=600)
RATE = 10 * MIB


def passes(*sizes: int, rate: int = RATE, throttle: int = 0) -> list[Sample]:
    """Samples of a migration whose passes have these sizes, one at the beginning of each and one near its end."""
    found, at, moved = [], 0.0, 0
    for number, size in enumerate(sizes, start=1):
        found.append(Sample(at, memory_moved=moved, memory_left=size, rate=rate, passes=number, throttle=throttle))
        at, moved = at + size / rate, moved + size
        found.append(Sample(at - 0.01, memory_moved=moved - 1, memory_left=1, rate=rate, passes=number, throttle=throttle))
    return found


STALLED = passes(200 * MIB, 50 * MIB, 48 * MIB, 49 * MIB)


@pytest.mark.parametrize(
    ("samples", "terms", "decision"),
    [
        (passes(200 * MIB, 100 * MIB, 50 * MIB, 25 * MIB), TERMS, GoOn()),
        (passes(200 * MIB, 50 * MIB, 50 * MIB), TERMS, GoOn()),  # once is not twice
        (passes(200 * MIB, 8 * MIB, 8 * MIB, 8 * MIB), TERMS, SwitchOver(1.0)),
        (passes(200 * MIB, 2 * MIB, 2 * MIB, 2 * MIB), TERMS, GoOn()),  # 0.2 s: QEMU ends it
        (STALLED, replace(TERMS, post_copy=True), PostCopy()),
        (STALLED, replace(TERMS, post_copy=True, slow_down=True), PostCopy()),
        (STALLED, replace(TERMS, slow_down=True), Converge(0)),
        (STALLED, replace(TERMS, pause_s=5.0), SwitchOver(5.0)),
    ],
)
def test_what_is_done(samples: list[Sample], terms: Terms, decision: Decision) -> None:
    assert decide(samples, terms, pause_s=0.3) == decision


def test_a_machine_that_writes_too_fast_stays_and_says_what_it_would_take() -> None:
    given_up = decide(STALLED, TERMS, pause_s=0.3)
    assert isinstance(given_up, GiveUp)
    assert "the network carries 10" in given_up.why
    assert "stand still for 4.9 s" in given_up.why


def test_a_machine_that_cannot_be_slowed_down_any_further_stays() -> None:
    samples = [replace(each, throttle=99) for each in STALLED]
    assert isinstance(decide(samples, replace(TERMS, slow_down=True), pause_s=0.3), GiveUp)


def test_a_link_that_carries_nothing_is_given_up() -> None:
    samples = [Sample(float(at), disk_moved=5, disk_total=10) for at in range(31)]
    assert decide(samples, TERMS, pause_s=0.3) == GoOn()
    samples.append(Sample(31.0, disk_moved=5, disk_total=10))
    assert decide(samples, TERMS, pause_s=0.3) == GiveUp("nothing has moved for 31 s")


def test_time_is_limited_but_not_after_the_machine_has_gone() -> None:
    late = Sample(601.0, memory_moved=5, memory_left=100, rate=RATE, passes=2)
    assert isinstance(decide([late], TERMS, pause_s=0.3), GiveUp)
    assert decide([replace(late, post_copy=True)], TERMS, pause_s=0.3) == GoOn()


def test_a_quiet_machine_is_expected_to_move_once() -> None:
    expected = expect(Load(1000 * MIB, MIB, 200 * MIB), 100 * MIB, TERMS)
    assert expected.passes == 1
    assert expected.pause_s == pytest.approx(0.1)
    assert expected.moved_bytes == 1210 * MIB
    assert expected.seconds == pytest.approx(12.1)


def test_the_hopeless_is_refused_with_what_would_help() -> None:
    load = Load(1000 * MIB, 200 * MIB, 0)
    with pytest.raises(StateError, match="writes 200 MiB of memory a second, the network carries 100") as refused:
        expect(load, 100 * MIB, TERMS)
    assert "--pause 12.0" in refused.value.hint
    assert expect(load, 100 * MIB, replace(TERMS, pause_s=12.0)).passes == 1
    assert expect(load, 100 * MIB, replace(TERMS, post_copy=True)).post_copy
    assert expect(load, 100 * MIB, replace(TERMS, slow_down=True)).slowed


@given(st.integers(1, 1 << 36), st.integers(0, 1 << 32), st.integers(0, 1 << 36), st.integers(1 << 10, 1 << 33))
def test_what_is_expected_keeps_to_the_terms(memory: int, dirty: int, state: int, rate: int) -> None:
    try:
        expected = expect(Load(memory, dirty, state), rate, TERMS)
    except StateError:
        assert dirty * memory / rate > 0
        return
    assert expected.pause_s <= TERMS.pause_s
    assert expected.moved_bytes >= memory + state - 1


SIDE = Side(
    host="north",
    libvirt="11.3.0",
    machine_types=frozenset({"pc-q35-10.0"}),
    processors=frozenset({"Nehalem"}),
    accelerations=frozenset({"kvm"}),
    memory_free=1 << 30,
    room_free=1 << 30,
    networks=frozenset({"obelisk"}),
    machines={"mail": "other"},
    files=frozenset({"a"}),
)
WANTED = Wanted("web", "own", "pc-q35-10.0", "Nehalem", "kvm", 512 * MIB, 500 * MIB, ("obelisk",), {"a": 400 * MIB, "b": 400 * MIB})


@pytest.mark.parametrize(
    ("wanted", "side", "codes"),
    [
        (WANTED, SIDE, []),
        (WANTED, replace(SIDE, machines={"web": "own"}), []),
        (WANTED, replace(SIDE, machines={"web": "other"}), ["name-taken"]),
        (WANTED, replace(SIDE, files=frozenset()), ["host-space"]),
        (WANTED, replace(SIDE, memory_free=575 * MIB), ["host-memory"]),
        (WANTED, replace(SIDE, networks=frozenset()), ["host-network"]),
        (WANTED, replace(SIDE, accelerations=frozenset({"qemu"})), ["host-acceleration"]),
        (WANTED, replace(SIDE, processors=frozenset(), machine_types=frozenset()), ["host-machine-type", "host-processor"]),
    ],
)
def test_what_a_host_must_have(wanted: Wanted, side: Side, codes: list[str]) -> None:
    found = obstacles(wanted, side)
    assert [each.code for each in found] == codes
    assert all(each.message.startswith("north ") and each.hint for each in found)


@pytest.mark.parametrize(
    ("source", "target", "settlement"),
    [
        # Before the target runs, the source has it.
        (Presence.RUNNING, Presence.ABSENT, Settlement.KEEP_SOURCE),
        (Presence.RUNNING, Presence.WAITING, Settlement.KEEP_SOURCE),
        (Presence.WAITING, Presence.WAITING, Settlement.RESUME_SOURCE),
        (Presence.WAITING, Presence.ABSENT, Settlement.RESUME_SOURCE),
        # Its QEMU was killed there.
        (Presence.OFF, Presence.WAITING, Settlement.START_SOURCE),
        (Presence.OFF, Presence.ABSENT, Settlement.START_SOURCE),
        # From when the target runs, the target has it.
        (Presence.WAITING, Presence.RUNNING, Settlement.KEEP_TARGET),
        (Presence.OFF, Presence.RUNNING, Settlement.KEEP_TARGET),
        (Presence.ABSENT, Presence.RUNNING, Settlement.KEEP_TARGET),
        # It has run there, and ended.
        (Presence.ABSENT, Presence.OFF, Settlement.START_TARGET),
        (Presence.WAITING, Presence.OFF, Settlement.START_TARGET),
        (Presence.OFF, Presence.OFF, Settlement.START_TARGET),
        (Presence.ABSENT, Presence.WAITING, Settlement.RESUME_TARGET),
        # Both: libvirt decided at the source.
        (Presence.RUNNING, Presence.RUNNING, Settlement.KEEP_SOURCE),
        # In post-copy.
        (Presence.TORN, Presence.TORN, Settlement.RECOVER),
        (Presence.OFF, Presence.TORN, Settlement.START_TARGET),
        (Presence.TORN, Presence.ABSENT, Settlement.START_TARGET),
        # Nobody acts on what it cannot see.
        (Presence.UNKNOWN, Presence.ABSENT, Settlement.WAIT),
        (Presence.UNKNOWN, Presence.RUNNING, Settlement.WAIT),
        (Presence.UNKNOWN, Presence.WAITING, Settlement.WAIT),
        (Presence.WAITING, Presence.UNKNOWN, Settlement.WAIT),
        (Presence.OFF, Presence.UNKNOWN, Settlement.WAIT),
        (Presence.ABSENT, Presence.ABSENT, Settlement.LOST),
    ],
)
def test_who_has_the_machine(source: Presence, target: Presence, settlement: Settlement) -> None:
    assert settle(source, target) is settlement


def test_every_pair_is_settled_and_none_that_is_not_seen_is_started_beside() -> None:
    for source, target in product(Presence, Presence):
        settled = settle(source, target)
        starts = settled in {Settlement.RESUME_SOURCE, Settlement.START_SOURCE, Settlement.RESUME_TARGET, Settlement.START_TARGET}
        assert not (starts and Presence.RUNNING in (source, target))
        assert not (starts and Presence.UNKNOWN in (source, target))
