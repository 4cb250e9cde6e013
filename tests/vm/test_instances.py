"""The embedded engine with real machines: the contract of engines, commands killed anywhere, and an image of ours that is forked."""

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_contract import EngineContract, Subject
from little import little_guest
from machines import Machines, Story, machines_at
from tool import Tool

from obelisk.cli.making import tools_room
from obelisk.errors import CommandError, StateError
from obelisk.events import silent
from obelisk.model.instance import Copy, Port, Wanted
from obelisk.store import Store

PAGE = "Hello from an image"


@pytest.fixture(scope="module")
def ground(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """An engine without instances."""
    home = tmp_path_factory.mktemp("machines")
    with Store.open(workshop.store) as store:
        room = tools_room(None, store, silent)
        guest = little_guest(room, store.image("web@1"), home / "guest")
    with machines_at(home / "instances", room, guest) as machines:
        yield machines


class TestEmbedded(EngineContract):
    """With little guests."""

    @pytest.fixture
    def subject(self, ground: Machines) -> Iterator[Subject]:
        yield ground
        ground.clear()


def test_a_copy_is_somebody_else_before_it_serves(ground: Machines) -> None:
    made = ground.running("web", memory="one", state="first")
    before = ground.ask("web", "who")
    ground.ask("web", "asks")
    time.sleep(2)
    kept = ground.engine.snapshot("web", Wanted())
    time.sleep(2)
    copies = ground.engine.fork("web", [Copy(name, (Port(0, 80),)) for name in ("web-1", "web-2")])
    again = ground.engine.restore_as("web", kept.id, Copy("again", (Port(0, 80),)))
    told = {}
    for each in (*copies, again):
        # The very first answer is already that of the other machine.
        name, machine_id, mac, now, told[each.name] = ground.ask(each.name, "who")
        assert (name, machine_id, mac) == (each.name, each.uuid.replace("-", ""), each.mac)
        assert abs(int(now) - time.time()) < 2
    assert len({*told.values(), ground.ask("web", "who")[4]}) == 4  # randomness of the same moment differs
    assert ground.ask("web", "who")[:3] == before[:3]
    ground.engine.restore("web", kept.id)
    assert abs(int(ground.ask("web", "who")[3]) - time.time()) < 2
    assert ground.engine.instance("web").generation != made.generation
    ground.clear()


def test_copies_share_memory_until_they_write(ground: Machines) -> None:
    ground.running("web", memory="one", state="first")
    copies = ground.engine.fork("web", [Copy(f"web-{number}", (Port(0, 80),)) for number in (1, 2, 3)])
    for each in copies:
        rollup = Path(f"/proc/{ground.engine.status(each.name).process}/smaps").read_text()
        at = rollup.index("/ram")
        mapped = {line.split(":")[0]: int(line.split()[1]) for line in rollup[at:].splitlines()[1:20] if line.endswith("kB")}
        assert mapped["Rss"] > 0
        assert mapped["Private_Dirty"] < 64 << 10  # of 128 MiB
    ground.clear()


def test_a_port_that_is_taken_is_told(ground: Machines) -> None:
    made = ground.running("web", memory="one", state="first")
    ground.engine.create(replace(ground.wish("other"), ports=made.wish.ports))
    with pytest.raises(StateError) as caught:
        ground.engine.start("other")
    assert caught.value.code == "port-taken"
    assert not ground.engine.status("other").running
    ground.clear()


def test_a_machine_that_ends_at_once_says_why(ground: Machines) -> None:
    ground.engine.create(ground.wish("web"))
    place = ground.embedded.records.place("web")
    (place.layers / f"{place.read().layers[-1]}.qcow2").write_bytes(b"no disk")
    with pytest.raises(CommandError) as caught:
        ground.engine.start("web")
    assert caught.value.code == "machine-failed"
    assert "qcow2" in caught.value.message
    assert not ground.engine.status("web").running
    ground.clear()


def test_whatever_is_killed_nothing_is_lost(ground: Machines) -> None:
    Story(ground, seed=5).run(20)
    ground.clear()


def test_an_image_runs_here_by_the_command_line_and_its_copies_are_others(workshop: Tool, tmp_path: Path) -> None:
    tool = workshop.copied_to(tmp_path)
    tool.run("build", str(tool.spec))
    tool = type(tool)(tool.home, tool.spec, ("env", f"OBELISK_INSTANCES={tmp_path}/instances"))
    try:
        assert tool.refused("instance", "create", "web", "--image", "nothing", status=2)["code"] == "image-unknown"
        tool.run("instance", "create", "web", "--image", "web@1", "--memory", "768M", "--state", "1G", "--port", "80", "--json")
        assert tool.refused("instance", "create", "web", "--image", "web@1", status=2)["code"] == "name-taken"
        found = _until_healthy(tool, "web")
        assert found["label"] == "web_1"
        assert PAGE in _page(found)
        tool.run("instance", "snapshot", "web", "--name", "up")
        tool.run("instance", "fork", "web", "--count", "1")
        copy = _until_healthy(tool, "web-1")
        assert copy["uuid"] != found["uuid"]
        assert PAGE in _page(copy)  # its network gave it another address
        console = (tmp_path / "instances/web-1/console.log").read_text(errors="replace")
        assert f"healthy renewed={str(copy['uuid']).replace('-', '')}" in console
        tool.run("instance", "stop", "web-1")
        tool.run("instance", "retire", "web-1")
        tool.run("instance", "retire", "web", "--now")
        assert json.loads(tool.run("instance", "list", "--json").splitlines()[-1])["instances"] == []
    finally:
        for record in (tmp_path / "instances").glob("*/record.json"):
            tool.run("instance", "retire", record.parent.name, "--now")


def _page(shown: dict[str, object]) -> str:
    with urllib.request.urlopen(f"http://{shown['address']}/", timeout=30) as answer:
        return str(answer.read().decode())


def _until_healthy(tool: Tool, name: str) -> dict[str, object]:
    deadline = time.monotonic() + 300
    while True:
        found: dict[str, object] = json.loads(tool.run("instance", "show", name, "--json").splitlines()[-1])
        if found["healthy"]:
            return found
        assert found["healthy"] is None
        assert found["phase"] == "running"
        assert time.monotonic() < deadline
        time.sleep(1)
