"""A service whose instances are virtual machines: their state goes from iteration to iteration, and comes back with a rollback."""

import pickle
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from homes import MACHINE, SHOP, Machines, Street, street
from little import little_guest
from tool import Tool

from obelisk.instance.traffic import HOME
from obelisk.model.service import Phase
from obelisk.store import Store
from obelisk.system.bubblewrap import Room

TERMS = replace(
    SHOP, check="/cgi-bin/words", carries=True, memory_bytes=128 << 20, state_bytes=128 << 20, health_s=240, keep_s=3600, drain_s=60
)


@pytest.fixture
def place(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """A machine that has a small guest for an image."""
    top = tmp_path_factory.mktemp("m")
    tools = next((workshop.store / "steps").glob("*/output/tree/usr/bin/ukify")).parents[2]
    with Store.open(workshop.store) as store:
        bootable = little_guest(Room(tools), store.image("web"), tmp_path_factory.mktemp("little"))
    (top / "machines").write_bytes(pickle.dumps(Machines(tools, bootable)))
    with street(top) as made:
        yield made
        made.run("retire", terms=TERMS)
    subprocess.run(["rm", "-rf", top], check=True)


def test_the_state_of_machines_goes_on_and_comes_back(place: Street) -> None:
    def said(path: str = "words") -> list[str]:
        return place.get(place.client, MACHINE, f"/cgi-bin/{path}").split("\n")

    place.ok("create", terms=TERMS)
    place.ok("deploy", "one", terms=TERMS)
    said("set?first&orders")
    assert said() == ["first", "orders"]
    place.ok("deploy", "two", terms=TERMS)
    assert said() == ["", "orders"]
    said("set?second&more")
    place.ok("rollback", terms=TERMS)
    assert said() == ["first", "orders"]
    said("set?first&late")
    place.ok("rollback", terms=TERMS)
    assert said() == ["second", "more"]
    # Now the first is kept: with the state of before the second took its place, it has to boot again.
    place.ok("rollback", "with state", terms=TERMS)
    assert said() == ["", "orders"]
    service = place.services().look("shop")
    assert service.standing(Phase.KEPT) is not None
    assert {share.address.partition(":")[0] for share in service.applied or ()} == {HOME}
    place.ok("retire", terms=TERMS)
    assert [path for path in (place.top / "machines.d").iterdir() if not path.name.startswith(".")] == []
