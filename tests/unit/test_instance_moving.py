"""Instances on hosts in memory: made, moved, cut off anywhere, and settled."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from fake_libvirt import INCOMING, OFF, OUTGOING, RUNNING, TORN_SOURCE, TORN_TARGET, Machine, World, digest

from obelisk.errors import CommandError, InputError, ObeliskError, StateError, TransportError, TrustError
from obelisk.instance import draining
from obelisk.instance.moving import move, plan
from obelisk.instance.remote import state_volume
from obelisk.model.migration import Presence, Terms
from obelisk.system.virsh import State


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def failing(at: str, error: Callable[[], BaseException], *, times: int = 1) -> Callable[[str], None]:
    """A fault: the first `times` that `at` is done."""
    left = times

    def fault(what: str) -> None:
        nonlocal left
        if what == at and left:
            left -= 1
            raise error()

    return fault


def test_an_instance_is_made_with_its_image_and_runs(world: World) -> None:
    placement = world.create()
    assert world.runs_on() == ["north"]
    assert world.remote.placements.get("web") == placement
    files = world.daemons["north"].files
    assert {digest(content.encode()) for content in ("kernel", "initrd", "root")} <= files.keys()
    # The second brings nothing but its state.
    world.daemons["north"].done.clear()
    world.create("mail")
    assert "upload" not in world.daemons["north"].done


def test_what_is_empty_in_a_disk_needs_no_room(world: World) -> None:
    with (world.place / "root").open("r+b") as root:
        root.truncate(32 << 20)
    world.daemons["north"].room_bytes = (1 << 30) + (65 << 20)
    world.create()
    assert world.runs_on() == ["north"]


@pytest.mark.parametrize("at", ["upload", "make_volume", "make_disk", "define", "start"])
def test_what_could_not_be_made_leaves_nothing_and_can_be_made_again(world: World, at: str) -> None:
    world.daemons["north"].fault = failing(at, lambda: CommandError(("north",), 1, "it failed"))
    with pytest.raises(CommandError):
        world.create()
    assert world.knows() == []
    assert world.remote.placements.find("web") is None
    world.create()
    assert world.runs_on() == ["north"]


def test_a_killed_creation_is_undone_by_the_next_command(world: World) -> None:
    placement = world.create()
    world.remote.placements.put(replace(placement, coming=True))
    with pytest.raises(InputError, match="was never completed, and has been taken away"):
        world.remote.start("web")
    assert world.knows() == []
    placement = world.create()
    world.remote.placements.put(replace(placement, coming=True))
    assert world.create().uuid != placement.uuid
    assert world.runs_on() == ["north"]


def test_names_are_taken_once(world: World) -> None:
    world.create()
    with pytest.raises(InputError, match="there is an instance web already, on north"):
        world.create(host="south")
    world.daemons["south"].machines["mail"] = Machine("<domain/>", "somebody's", RUNNING)
    with pytest.raises(InputError, match="south has another machine with the name mail"):
        world.create("mail", "south")
    assert world.daemons["south"].machines["mail"].state is RUNNING


def test_switched_off_on_and_retired(world: World) -> None:
    world.create()
    world.remote.stop("web")
    assert world.runs_on() == []
    with pytest.raises(StateError, match="web does not run on north"):
        move(world.remote, "web", world.host("south"), Terms())
    world.remote.start("web")
    assert world.runs_on() == ["north"]
    world.remote.stop("web", now=True)
    world.remote.retire("web")
    assert world.knows() == []
    assert len(world.remote.sweep(world.host("north"))) == 3
    assert world.daemons["north"].files == {}


def test_it_moves_and_leaves_nothing(world: World) -> None:
    world.create()
    moved = move(world.remote, "web", world.host("south"), Terms())
    assert moved.placement.host == "south"
    assert moved.pause_s == 0.2
    assert moved.moved_bytes == (100 << 20) + len(b"state")
    assert world.runs_on() == world.knows() == ["south"]
    # What the network carried is known to the next plan.
    assert plan(world.remote, "web", world.host("north"), Terms()).measured is False
    move(world.remote, "web", world.host("north"), Terms())
    assert plan(world.remote, "web", world.host("south"), Terms()).rate == 50 << 20


def test_a_file_of_the_image_that_is_damaged_on_the_source_goes_nowhere(world: World) -> None:
    world.create()
    world.daemons["north"].files[digest(b"root")] = b"damaged"
    with pytest.raises(TrustError, match="north has a file of the image that is damaged"):
        move(world.remote, "web", world.host("south"), Terms())
    assert world.runs_on() == world.knows() == ["north"]
    assert digest(b"root") not in world.daemons["south"].files


def test_checks_come_before_anything_happens(world: World) -> None:
    world.create()
    south = world.daemons["south"]
    south.network, south.memory = False, 1 << 20
    with pytest.raises(StateError, match=r"south has no network 'obelisk' that is up; south has 1\.0 MiB of memory free"):
        move(world.remote, "web", world.host("south"), Terms())
    south.network, south.memory = True, 8 << 30
    world.daemons["north"].dirty_mib = 500
    with pytest.raises(StateError, match="it would never end"):
        move(world.remote, "web", world.host("south"), Terms())
    world.remote.hosts.mark("south", draining=True)
    with pytest.raises(StateError, match="south is being emptied"):
        move(world.remote, "web", world.host("south"), Terms())
    with pytest.raises(InputError, match="web is on north already"):
        move(world.remote, "web", world.host("north"), Terms())
    assert south.files == {}
    assert world.remote.placements.get("web").to == ""


_STEPS = [("north", "migrate"), ("south", "prepare"), ("north", "perform"), ("south", "finish"), ("north", "confirm")]
_BEFORE = [("north", "download"), ("south", "upload"), ("south", "make_disk")]


@pytest.mark.parametrize(("host", "at"), [*_BEFORE, *_STEPS])
@pytest.mark.parametrize(
    "error", [lambda: CommandError(("x",), 1, "it failed"), lambda: TransportError("gone", code="host-unreachable"), KeyboardInterrupt]
)
def test_a_failure_at_any_step_leaves_one_running_and_the_next_try_works(
    world: World, host: str, at: str, error: Callable[[], BaseException]
) -> None:
    world.create()
    world.daemons[host].fault = failing(at, error)
    with suppress(ObeliskError, KeyboardInterrupt):
        move(world.remote, "web", world.host("south"), Terms())
    here = world.remote.placements.get("web").host
    assert world.runs_on() == world.knows() == [here]
    # From when the target runs, it has it.
    assert here == ("south" if at == "confirm" else "north")
    other = "north" if here == "south" else "south"
    assert move(world.remote, "web", world.host(other), Terms()).placement.host == other
    assert world.runs_on() == world.knows() == [other]


@pytest.mark.parametrize(("host", "at"), _STEPS)
@pytest.mark.parametrize("dies", ["north", "south"])
def test_a_machine_that_dies_at_any_step_runs_again_on_one_host(world: World, host: str, at: str, dies: str) -> None:
    world.create()

    def kill() -> BaseException:
        machine = world.daemons[dies].machines.get("web")
        if machine is not None and machine.xml:
            machine.state = OFF
        elif machine is not None:
            del world.daemons[dies].machines["web"]
        return CommandError((dies,), 1, "qemu unexpectedly closed the monitor")

    world.daemons[host].fault = failing(at, kill)
    with suppress(ObeliskError):
        move(world.remote, "web", world.host("south"), Terms())
    here = world.remote.placements.get("web").host
    assert world.runs_on() == world.knows() == [here]


_PRESENCES: dict[Presence, State | None] = {
    Presence.ABSENT: None,
    Presence.OFF: OFF,
    Presence.RUNNING: RUNNING,
    Presence.WAITING: OUTGOING,
    Presence.TORN: TORN_SOURCE,
}


@pytest.mark.parametrize(("source", "target"), list(product(_PRESENCES, _PRESENCES)))
def test_whatever_a_killed_command_left_is_one_machine_after_the_next(world: World, source: Presence, target: Presence) -> None:
    placement = world.create()
    machine = world.daemons["north"].machines.pop("web")
    for name, presence in (("north", source), ("south", target)):
        state = _PRESENCES[presence]
        if state is not None:
            state = TORN_TARGET if state is TORN_SOURCE and name == "south" else state
            world.daemons[name].machines["web"] = Machine(machine.xml, machine.uuid, state)
        world.daemons[name].files[state_volume(placement.uuid)] = b"state"
    world.remote.placements.put(replace(placement, to="south"))
    if source is target is Presence.ABSENT:
        with pytest.raises(StateError, match="neither on north nor on south"):
            world.remote.start("web")
        return
    if {source, target} <= {Presence.TORN, Presence.WAITING} and Presence.TORN in (source, target):
        # Post-copy goes on where it was: in memory it then arrives at once.
        world.daemons["north"].machines["web"].state = OUTGOING
    world.remote.start("web")
    settled = world.remote.placements.get("web")
    assert settled.to == ""
    assert world.runs_on() == world.knows() == [settled.host]


def test_nobody_acts_on_what_it_cannot_see(world: World) -> None:
    placement = world.create()
    world.remote.placements.put(replace(placement, to="south"))
    south = world.daemons["south"]
    south.machines["web"] = Machine("", placement.uuid, INCOMING)
    world.daemons["north"].machines["web"].state = OUTGOING
    south.up = False
    with pytest.raises(StateError, match="it cannot be said which of them has it") as unsettled:
        world.remote.start("web")
    assert unsettled.value.code == "migration-unsettled"
    assert world.daemons["north"].machines["web"].state is OUTGOING
    south.up = True
    world.remote.start("web")
    assert world.runs_on() == world.knows() == ["north"]


def test_a_host_that_is_gone_does_not_keep_a_running_machine_but_is_remembered(world: World) -> None:
    placement = world.create()
    world.remote.placements.put(replace(placement, to="south"))
    south = world.daemons["south"]
    south.files[state_volume(placement.uuid)] = b"half"
    south.up = False
    world.remote.start("web")
    assert world.remote.placements.get("web").to == "south"
    with pytest.raises(StateError, match="south does not answer, and still has something of web"):
        move(world.remote, "web", world.host("west"), Terms())
    south.up = True
    assert move(world.remote, "web", world.host("west"), Terms()).placement.host == "west"
    assert world.knows() == ["west"]


def test_a_host_that_was_removed_is_waited_for_no_longer(world: World) -> None:
    placement = world.create()
    world.remote.placements.put(replace(placement, to="south"))
    world.daemons["south"].up = False
    world.remote.hosts.remove("south")
    assert move(world.remote, "web", world.host("west"), Terms()).placement.host == "west"


def test_a_migration_whose_command_was_killed_is_ended_first(world: World) -> None:
    placement = world.create()
    world.remote.placements.put(replace(placement, to="south"))
    world.daemons["north"].under_way = "web"
    world.remote.start("web")
    assert "abort" in world.daemons["north"].done
    assert world.remote.placements.get("web").to == ""


def test_a_host_is_emptied_and_what_left_comes_back(world: World) -> None:
    for name in ("web", "mail", "off"):
        world.create(name)
    world.remote.stop("off")
    world.daemons["west"].memory = 600 << 20
    emptied = draining.drain(world.remote, world.host("north"), Terms())
    assert sorted(moved.placement.host for moved in emptied.moved) == ["south", "south"]
    assert emptied.stayed == ()
    assert world.host("north").draining
    with pytest.raises(StateError, match="north is being emptied"):
        world.create("new")
    # What is emptied next sends on what is only a guest there.
    world.daemons["west"].memory = 8 << 30
    draining.drain(world.remote, world.host("south"), Terms())
    assert world.runs_on("web") == ["west"]
    draining.undrain(world.remote, world.host("south"), Terms())
    assert world.runs_on("web") == ["west"]
    draining.undrain(world.remote, world.host("north"), Terms())
    assert world.runs_on("web") == world.runs_on("mail") == ["north"]
    assert all(each.home == "" for each in world.remote.placements.all())


def test_a_host_whose_machines_fit_nowhere_is_left_as_it_is(world: World) -> None:
    world.create()
    for name in ("south", "west"):
        world.daemons[name].memory = 1 << 20
    with pytest.raises(StateError, match="no host can take web"):
        draining.drain(world.remote, world.host("north"), Terms())
    assert not world.host("north").draining
    assert world.runs_on() == ["north"]
