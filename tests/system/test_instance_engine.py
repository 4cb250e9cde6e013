"""The embedded engine with machines in which nothing runs: the contract of engines, and hundreds of operations, many of them killed."""

from collections.abc import Iterator

import pytest
from engine_contract import EngineContract, Subject
from hollow import Hollow, hollow
from machines import Story
from tool import Tool

from obelisk.cli.making import tools_room
from obelisk.events import silent
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
