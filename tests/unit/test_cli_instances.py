"""`obelisk instance …` on this machine: what people and programs are told, and where a name leads."""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine

from obelisk.cli import instances, migrating
from obelisk.cli.main import _parser
from obelisk.errors import InputError, ObeliskError, StateError
from obelisk.events import silent
from obelisk.instance.placement import Placement, Placements


@dataclass
class World:
    """The command line before a fake engine."""

    engine: FakeEngine
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str, status: int = 0) -> str:
        """What a command says."""
        assert instances.instance(_parser().parse_args(["instance", *words])) == status
        return self.capsys.readouterr().out

    def json(self, *words: str, status: int = 0) -> dict[str, Any]:
        """The result for programs."""
        found: dict[str, Any] = json.loads(self.run(*words, "--json", status=status).splitlines()[-1])
        assert found["event"] == "result"
        return found

    def refused(self, *words: str) -> ObeliskError:
        """The error of a command."""
        with pytest.raises(ObeliskError) as caught:
            self.run(*words)
        return caught.value


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    monkeypatch.setenv("OBELISK_INSTANCES", str(tmp_path / "instances"))
    monkeypatch.setenv("OBELISK_STORE", str(tmp_path / "store"))
    engine = FakeEngine()
    vars(engine).update(sink=silent, records=SimpleNamespace(root=tmp_path / "instances"))
    monkeypatch.setattr(instances, "engine", lambda *_: engine)

    def found(_store: object, name: str) -> object:
        if name != "shop":
            raise InputError(f"there is no image {name}", code="image-missing")
        return SimpleNamespace(id="image")

    monkeypatch.setattr(instances, "find_machine", found)
    return World(engine, capsys)


def test_an_instance_is_made_with_what_is_asked_for(world: World) -> None:
    said = world.run("create", "web", "--image", "shop", "--memory", "256M", "--port", "8080:80", "--credential", "a=b", "--keep", "3")
    assert "127.0.0.1:8080 -> 80" in said
    wish = world.engine.instance("web").wish
    assert (wish.memory_bytes, wish.state_bytes, wish.keep) == (256 << 20, 2 << 30, 3)
    assert wish.credentials == (("a", "b"), ("system.hostname", "web"))
    assert world.json("show", "web")["phase"] == "running"
    world.run("create", "other", "--image", "shop", "--off", "--credential", "system.hostname=till")
    assert world.engine.instance("other").wish.credentials == (("system.hostname", "till"),)
    assert [(each["name"], each["phase"]) for each in world.json("list")["instances"]] == [("other", "stopped"), ("web", "running")]


def test_what_is_wrong_is_told_by_its_code(world: World) -> None:
    for words, code in (
        (("create", "web", "--image", "nothing"), "image-missing"),
        (("create", "web", "--image", "shop", "--memory", "much"), "size"),
        (("create", "web", "--image", "shop", "--port", "x"), "port"),
        (("create", "web", "--image", "shop", "--credential", "x"), "credential"),
        (("create", "WEB", "--image", "shop"), "instance-name"),
        (("show", "web"), "instance-unknown"),
        (("fork", "web", "--count", "0"), "fork-count"),
    ):
        assert world.refused(*words).code == code
    assert world.run("list") == "there are no instances\n"


def test_moments_are_kept_listed_brought_back_and_deleted(world: World) -> None:
    world.run("create", "web", "--image", "shop", "--port", "80")
    world.engine.words("web").state = "first"
    assert world.run("snapshot", "web", "--name", "before", "--why", "an import").startswith("before: memory+state, whole")
    assert world.json("snapshot", "web", "--state-only")["consistency"] == "crash"
    assert [each["name"] for each in world.json("snapshots", "web")["snapshots"]] == ["before", ""]
    assert "an import" in world.run("snapshots", "web")
    world.engine.words("web").state = "second"
    world.run("restore", "web", "before")
    assert world.engine.words("web").state == "first"
    made = world.json("restore", "web", "before", "--as", "then")
    assert made["ports"][0]["host"] != world.engine.instance("web").wish.ports[0].host
    assert world.json("restore", "web", "before", "--as", "again", "--port", "9000:80")["ports"][0]["host"] == 9000
    world.run("delete", "web", "before")
    assert world.refused("restore", "web", "before").code == "snapshot-unknown"


def test_damage_is_named_by_status_three(world: World) -> None:
    world.run("create", "web", "--image", "shop")
    world.run("snapshot", "web", "--name", "before")
    assert "as they were" in world.run("verify", "web")
    world.engine.damage("web", "before")
    assert "words changed" in world.run("verify", "web", status=3)


def test_copies_get_names_and_ports(world: World) -> None:
    world.run("create", "web", "--image", "shop", "--port", "8080:80")
    made = world.json("fork", "web", "--count", "2")["instances"]
    assert [each["name"] for each in made] == ["web-1", "web-2"]
    assert len({8080, *(each["ports"][0]["host"] for each in made)}) == 3
    assert [each["name"] for each in world.json("fork", "web")["instances"]] == ["web-3"]


def test_stopping_and_retiring(world: World) -> None:
    world.run("create", "web", "--image", "shop")
    assert world.run("stop", "web") == "web is off\n"
    assert world.refused("console", "web").code == "not-running"
    world.run("start", "web")
    world.run("retire", "web", "--now")
    assert world.run("list") == "there are no instances\n"


def test_a_name_leads_to_where_its_instance_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Placements(migrating.placements_directory()).put(Placement("far", "uuid", "image", "north"))
    led: list[str] = []

    def elsewhere(arguments: Namespace) -> int:
        led.append(arguments.action)
        return 0

    monkeypatch.setattr(migrating, "instance", elsewhere)
    for words in (("show", "far"), ("stop", "far"), ("create", "new", "--image", "shop", "--host", "north")):
        world.run(*words)
    assert led == ["show", "stop", "create"]
    assert world.refused("create", "far", "--image", "shop").code == "name-taken"


def test_only_one_command_at_a_time(world: World) -> None:
    world.run("create", "web", "--image", "shop")
    with world.engine.owned("web"), pytest.raises(StateError) as caught:
        world.run("snapshot", "web")
    assert caught.value.code == "instance-busy"


def test_all_that_ran_go_down_with_the_machine_and_come_back_with_it(world: World) -> None:
    for name in ("web", "till"):
        world.run("create", name, "--image", "shop")
    world.run("create", "spare", "--image", "shop", "--off")
    assert world.run("start", "--all") == "nothing is to be started\n"
    assert world.run("stop", "--all") == "till is stopped\nweb is stopped\n"
    assert world.json("stop", "--all")["stopped"] == []
    assert world.json("start", "--all")["started"] == ["till", "web"]
    world.run("stop", "web")
    world.run("stop", "--all")
    assert world.json("start", "--all")["started"] == ["till"]


def test_one_that_cannot_start_keeps_no_other_from_it(world: World) -> None:
    notes: list[object] = []
    vars(world.engine)["sink"] = notes.append
    for name in ("a", "b", "c"):
        world.run("create", name, "--image", "shop")
    world.run("stop", "--all")
    with world.engine.owned("b"):
        refused = world.refused("start", "--all")
    assert (refused.code, refused.message) == ("instances-failed", "of 3 instances, 1 could not be started: b")
    assert [str(note) for note in notes if "b: " in str(note)] != []
    assert [each["phase"] for each in world.json("list")["instances"]] == ["running", "stopped", "running"]
    assert world.json("start", "--all")["started"] == ["b"]


@pytest.mark.parametrize("words", [("start",), ("stop",), ("start", "web", "--all"), ("stop", "web", "--all")])
def test_either_one_is_named_or_all_are_meant(world: World, words: tuple[str, ...]) -> None:
    world.run("create", "web", "--image", "shop")
    assert world.refused(*words).code == "instance-which"
