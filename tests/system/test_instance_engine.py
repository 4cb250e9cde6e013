"""The embedded engine with machines in which nothing runs: the contract of engines, and hundreds of operations, many of them killed."""

from collections.abc import Iterator

import pytest
from engine_contract import EngineContract, Subject
from hollow import Hollow, hollow
from machines import Story
from tool import Tool

from obelisk.cli.making import tools_room
from obelisk.events import silent
from obelisk.model.instance import Kind, Wanted
from obelisk.store import Store


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
