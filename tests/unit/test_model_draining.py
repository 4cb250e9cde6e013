"""Which machine of a host that is emptied goes where."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.errors import StateError
from obelisk.model.draining import Move, assign
from obelisk.model.migration import MIB, Side, Wanted

SIDE = Side(
    "north", "11.3.0", frozenset({"q35"}), frozenset({"Nehalem"}), frozenset({"kvm"}), 1024 * MIB, 1024 * MIB, frozenset({"obelisk"})
)
MACHINE = Wanted("web", "1", "q35", "Nehalem", "kvm", 256 * MIB, 10 * MIB, ("obelisk",), {"image": 400 * MIB})


def machine(name: str, memory: int) -> Wanted:
    """A machine of that name and memory, in MiB."""
    return replace(MACHINE, name=name, uuid=name, memory_bytes=memory * MIB)


def test_the_largest_goes_first_and_where_the_most_memory_is() -> None:
    sides = (SIDE, replace(SIDE, host="south", memory_free=800 * MIB))
    assert assign((machine("a", 100), machine("b", 600), machine("c", 300)), sides) == (
        Move("b", "north"),
        Move("c", "south"),
        Move("a", "south"),
    )


def test_an_image_is_brought_once() -> None:
    side = replace(SIDE, room_free=(400 + 64 + 3 * 10) * MIB)
    assert len(assign([machine(name, 100) for name in "abc"], [side])) == 3
    with pytest.raises(StateError, match="no host can take d: north has room for 64 MiB, and 74 are needed"):
        assign([machine(name, 100) for name in "abcd"], [side])


def test_what_fits_nowhere_is_named_with_what_each_host_lacks() -> None:
    sides = (replace(SIDE, networks=frozenset()), replace(SIDE, host="south", memory_free=100 * MIB))
    with pytest.raises(StateError, match=r"no host can take web: north has no network .*; south has 100 MiB of memory free") as refused:
        assign([MACHINE], sides)
    assert refused.value.code == "drain-no-place"
    with pytest.raises(StateError, match="there is no other host"):
        assign([MACHINE], [])


@given(st.lists(st.integers(1, 900), max_size=8), st.lists(st.integers(0, 2000), min_size=1, max_size=4))
def test_no_host_gets_more_than_it_has(sizes: list[int], free: list[int]) -> None:
    machines = [machine(f"m{number}", size) for number, size in enumerate(sizes)]
    sides = [replace(SIDE, host=f"h{number}", memory_free=size * MIB) for number, size in enumerate(free)]
    try:
        moves = assign(machines, sides)
    except StateError:
        return
    assert sorted(move.name for move in moves) == sorted(each.name for each in machines)
    memory = {each.name: each.memory_bytes for each in machines}
    for side in sides:
        assert sum(memory[move.name] for move in moves if move.target == side.host) <= side.memory_free
