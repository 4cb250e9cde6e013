"""`obelisk instance …` for instances on hosts: what a person types and is told."""

import json
from pathlib import Path

import pytest
from fake_libvirt import World

from obelisk.cli import main
from obelisk.system.virsh import State


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("OBELISK_HOSTS", str(tmp_path / "hosts.json"))
    monkeypatch.setenv("OBELISK_INSTANCES", str(tmp_path / "instances"))
    monkeypatch.setenv("OBELISK_STORE", str(tmp_path / "store"))
    return World(tmp_path, monkeypatch)


def test_a_plan_tells_time_standstill_and_bytes_and_where_the_rate_is_from(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.create()
    assert main(["instance", "migrate", "web", "--to", "south", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "web from north to south: about 1.0 s, stands still for 0.01 s" in said
    assert "100.0 MiB in use, 1.0 MiB written a second" in said
    assert "assumed: nothing has moved between them yet" in said
    assert world.runs_on() == ["north"]
    main(["instance", "migrate", "web", "--to", "south", "--plan", "--rate", "50", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["rate"], told["rate_measured"], told["target"]) == (50 << 20, True, "south")


def test_what_moved_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.create()
    assert main(["instance", "migrate", "web", "--to", "south"]) == 0
    assert "web runs on south: " in capsys.readouterr().out
    assert world.runs_on() == ["south"]
    main(["instance", "list", "--json"])
    (listed,) = json.loads(capsys.readouterr().out.splitlines()[-1])["on_hosts"]
    assert (listed["name"], listed["host"], listed["state"]) == ("web", "south", "running")


def test_the_hopeless_is_refused_with_a_remedy(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.create()
    world.daemons["north"].dirty_mib = 500
    assert main(["instance", "migrate", "web", "--to", "south"]) == 5
    said = capsys.readouterr().err
    assert "it would never end: the machine writes 500 MiB of memory a second, the network carries 100" in said
    assert "--post-copy" in said
    assert main(["instance", "migrate", "web", "--to", "south", "--pause", "0"]) == 2


def test_show_puts_right_what_a_killed_command_left(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    placement = world.create()
    world.leave_on_its_way(placement, "south")
    assert main(["instance", "show", "web", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["host"], told["to"], told["state"]) == ("north", "", "running")
    world.leave_on_its_way(placement, "south")
    world.daemons["south"].up = False
    world.daemons["north"].machines["web"].state = State(3, 2)
    assert main(["instance", "show", "web"]) == 5
    assert "it cannot be said which of them has it" in capsys.readouterr().err
    with world.remote.placements.owned("web"):
        assert main(["instance", "show", "web"]) == 0
    assert "web: on its way to south, on north" in capsys.readouterr().out


def test_hosts_are_added_listed_and_removed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.create()
    world.daemons["west"].up = False
    assert main(["instance", "hosts"]) == 0
    north, south, west = capsys.readouterr().out.splitlines()
    assert "1 instances, 8.0 GiB of memory and 8.0 GiB of room free" in north
    assert "0 instances" in south
    assert "does not answer" in west
    assert main(["instance", "hosts", "remove", "north"]) == 5
    assert "north has web" in capsys.readouterr().err
    assert main(["instance", "hosts", "remove", "west"]) == 0
    assert main(["instance", "hosts", "add", "west", "192.0.2.3", "--peer", "198.51.100.3"]) == 4
    world.daemons["west"].up = True
    assert main(["instance", "hosts", "add", "west", "192.0.2.3", "--peer", "198.51.100.3", "--bridge", "br7"]) == 0
    assert world.remote.hosts.get("west").peer == "198.51.100.3"
    assert world.daemons["west"].done[-2:] == ["pool obelisk", "network obelisk br7"]
    assert main(["instance", "hosts", "add", "east"]) == 2
    assert main(["instance", "hosts", "remove"]) == 2


def test_a_host_is_drained_and_comes_back(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.create()
    world.daemons["west"].memory = 1 << 30
    assert main(["host", "drain", "north", "--plan"]) == 0
    assert capsys.readouterr().out == "web goes to south\n"
    assert main(["host", "drain", "north"]) == 0
    assert "north is empty, and nothing new comes to it" in capsys.readouterr().out
    assert main(["host", "undrain", "north"]) == 0
    assert world.runs_on() == ["north"]
    # What cannot leave now is named, and the rest has left.
    world.daemons["south"].fault = world.refusing("prepare")
    capsys.readouterr()
    assert main(["host", "drain", "north"]) == 1
    assert "web stays where it is: " in capsys.readouterr().out
    assert world.runs_on() == ["north"]


def test_switching_and_retiring_reach_the_host(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.create()
    assert main(["instance", "stop", "web", "--now"]) == 0
    assert world.runs_on() == []
    assert main(["instance", "start", "web"]) == 0
    assert world.runs_on() == ["north"]
    assert main(["instance", "retire", "web"]) == 0
    assert world.daemons["north"].files == {}
    assert "web is gone" in capsys.readouterr().out
