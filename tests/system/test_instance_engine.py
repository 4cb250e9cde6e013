"""The embedded engine with machines in which nothing runs: the contract of engines, and hundreds of operations, many of them killed."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from engine_contract import EngineContract, Subject
from hollow import Hollow, hollow
from machines import Story
from tool import Tool

from obelisk.cli.making import tools_room
from obelisk.errors import CommandError
from obelisk.events import silent
from obelisk.instance.embedded import Embedded
from obelisk.model.instance import Copy, Kind, Phase, Port, Wanted
from obelisk.store import Store
from obelisk.system.bubblewrap import Room
from obelisk.system.monitor import Monitor
from obelisk.system.resident import Resident, Setup


@pytest.fixture(scope="module")
def ground(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hollow]:
    """An engine without instances."""
    with Store.open(workshop.store) as store:
        room = tools_room(None, store, silent)
    with pytest.MonkeyPatch.context() as patch:
        hollow(patch)
        machines = Hollow(tmp_path_factory.mktemp("hollow"), room)
        yield machines
        machines.clear()


class TestHollow(EngineContract):
    """With machines without processors."""

    @pytest.fixture
    def subject(self, ground: Hollow) -> Iterator[Subject]:
        yield ground
        ground.clear()


@pytest.mark.parametrize(
    ("said", "words"),
    [("renewed", "-:80"), ("renewed 10.0.2.16", "-10.0.2.16:80"), ("renewed 10.0.2.16:80 x", "-:80")],
    ids=["none", "an address", "no address"],
)
def test_ports_lead_to_where_a_copy_says_it_is(ground: Hollow, monkeypatch: pytest.MonkeyPatch, said: str, words: str) -> None:
    forwards: list[str] = []
    monkeypatch.setattr(Resident, "tell_identity", lambda *_, **__: said)
    monkeypatch.setattr(Monitor, "forward", lambda _monitor, _network, forward: forwards.append(forward))
    ground.running("web", memory="one", state="first")
    (copy,) = ground.engine.fork("web", [Copy("web-1", (Port(0, 80),))])
    assert forwards == [f"tcp:127.0.0.1:{copy.wish.ports[0].host}{words}"]
    ground.clear()


def test_a_copy_has_its_own_name_also_when_it_boots_again(ground: Hollow) -> None:
    engine = ground.engine
    engine.create(replace(ground.wish("web"), credentials=(("mail.password", "s"), ("system.hostname", "web"))))
    engine.start("web")
    kept = engine.snapshot("web", Wanted())
    (copy,) = engine.fork("web", [Copy("web-1")])
    for made in (copy, engine.restore_as("web", kept.id, Copy("again"))):
        assert made.wish.credentials == (("mail.password", "s"), ("system.hostname", made.name))
    ground.clear()


def test_a_fork_that_fails_leaves_nothing_of_the_copies_that_have_started(ground: Hollow, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ground.engine
    ground.running("web", memory="one", state="first")
    started: list[Resident] = []
    start = Resident.start

    def note(machine: Resident, room: Room, setup: Setup) -> None:
        start(machine, room, setup)
        started.append(machine)

    def fail(*_: object) -> None:
        deadline = time.monotonic() + 30
        while not started:
            assert time.monotonic() < deadline, "copies wait for what they are to load"
            time.sleep(0.01)
        raise CommandError(("qemu",), 1, "no template")

    with monkeypatch.context() as patch:
        patch.setattr(Resident, "start", note)
        patch.setattr(Embedded, "_template", fail)
        with pytest.raises(CommandError, match="no template"):
            engine.fork("web", [Copy(f"web-{number}") for number in range(6)])
    assert [instance.name for instance in engine.instances()] == ["web"]
    assert not any(machine.is_running() for machine in started)
    assert engine.status("web").phase is Phase.RUNNING
    assert len(engine.fork("web", [Copy("web-1")])) == 1
    ground.clear()


def test_a_machine_that_ends_while_it_is_looked_at_is_started(ground: Hollow, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that a command ended which was killed then: it is there until its lock is gone, and its monitor no more."""
    ground.engine.create(ground.wish("web"))
    ground.engine.start("web")
    (before,) = ground.processes()
    real = Resident.monitor

    def ending(_machine: Resident) -> Monitor:
        monkeypatch.setattr(Resident, "monitor", real)
        os.kill(before, signal.SIGKILL)
        raise CommandError(("qemu-monitor", "connect"), 1, "Connection reset by peer", code="monitor-failed")

    monkeypatch.setattr(Resident, "monitor", ending)
    assert ground.engine.start("web").running
    assert ground.processes() != [before]
    ground.clear()


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_killed_nothing_is_lost(ground: Hollow, seed: int) -> None:
    story = Story(ground, seed)
    story.run(60)
    assert story.done["_kill"] > 5
    ground.clear()


def test_layers_are_joined_when_nothing_needs_them_apart(ground: Hollow) -> None:
    engine = ground.engine
    ground.running("web", memory="", state="first")
    place = ground.embedded.records.place("web")
    for number in range(18):
        ground.set_words("web", memory="", state=f"s{number}")
        engine.snapshot("web", Wanted(Kind.STATE, f"n{number}"))
    assert len(place.read().layers) == 19
    engine.stop("web", timeout_s=0)
    engine.start("web")
    assert len(place.read().layers) == len(list(place.layers.iterdir())) == 1  # of too many, one was made
    assert ground.words("web") == ("", "s17")
    for number in range(3):
        ground.set_words("web", memory="", state=f"x{number}")
        engine.snapshot("web", Wanted(Kind.STATE, f"x{number}"))
    for number in range(3):
        engine.delete("web", f"x{number}")
    engine.stop("web", timeout_s=0)
    engine.start("web")
    assert len(place.read().layers) == 1
    assert ground.words("web") == ("", "x2")
    for number in (0, 17):
        engine.restore("web", f"n{number}")
        assert ground.words("web") == ("", f"s{number}")
    ground.clear()
