"""`obelisk app install|rollback|remove|list|prepare`: what a person or a program is told, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from installed_samples import COMMAND, PORT, SERVED, World, in_memory

from obelisk.cli import installing
from obelisk.cli.main import _parser
from obelisk.errors import InputError, StateError, TrustError
from obelisk.model.policy import Listen, policy
from obelisk.sandbox.installed import Installation
from obelisk.store import StoredImage
from obelisk.system.systemctl import Unit

SECRET = replace(SERVED, credentials=("password",))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine on which nothing is installed, with images in a store that are found by their versions."""
    in_memory(monkeypatch)
    world = World(tmp_path)

    def installation(name: str, _systemd: object, _sink: object) -> Installation:
        assert name == "shop"
        return world.installation()

    def found(_store: object, name: str) -> StoredImage:
        app, granted = {
            "1": (SERVED, PORT),
            "2": (SERVED, policy([Listen(8080), Listen(9090)])),
            "3": (COMMAND, policy()),
            "4": (SECRET, PORT),
        }[name]
        return world.image(name, app, granted)

    names = lambda: sorted(path.parent.name for path in (tmp_path / "installed").glob("*/state.json"))  # noqa: E731
    ground = SimpleNamespace(installation=installation, names=names, machine=SimpleNamespace(is_root=True))
    monkeypatch.setattr(installing, "_ground", lambda _arguments, _sink: ground)
    monkeypatch.setattr(installing, "_systemd", lambda _ground: world)
    monkeypatch.setattr("obelisk.cli.places.open_store", lambda _arguments: None)
    monkeypatch.setattr("obelisk.cli.places.find_image", found)
    monkeypatch.setattr(installing, "application_of", lambda image: world.apps[image.id][0])
    monkeypatch.setattr(installing, "policy_of", lambda image: world.apps[image.id][1])
    return world


def run(*words: str) -> int:
    return installing.app(_parser().parse_args(["app", *words]))


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    last: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


def test_more_powers_are_refused_in_words_until_they_are_approved(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("install", "1") == 0
    with pytest.raises(StateError, match="accepts connections at TCP port 9090") as error:
        run("install", "2")
    assert error.value.code == "app-growth"
    assert world.settled().current == world.image("1").id
    capsys.readouterr()
    assert run("install", "2", "--approve", "--json") == 0
    result = told(capsys)
    assert (result["image"], result["prior"]) == (world.image("2").id, world.image("1").id)
    assert result["data_saved"] in {"copy", "reflink", "snapshot"}
    assert run("install", "1") == 0  # fewer need no word
    said = capsys.readouterr().out
    assert said == "shop_1 is installed as a service, which\n  accepts connections at TCP port 8080 of this machine\n"
    run("install", "3")
    assert capsys.readouterr().out == "shop_3 is installed as a command, without any grant\n"


def test_another_secret_is_a_power_more(world: World) -> None:
    assert run("install", "1") == 0
    with pytest.raises(StateError, match="reads the credential password"):
        run("install", "4")
    assert world.settled().current == world.image("1").id


def test_the_list_tells_versions_states_and_how_much_is_open(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    assert capsys.readouterr().out == "nothing is installed\n"
    run("install", "1")
    run("install", "3")
    capsys.readouterr()
    run("list", "--json")
    assert told(capsys)["installed"] == [
        {"name": "shop", "version": "3", "image": list(world.apps)[1], "state": "command", "score": 0, "prior": "1", "channel": None}
    ]
    run("rollback", "shop")
    capsys.readouterr()
    run("list")
    assert "running     5 of 100 open   before: 3" in capsys.readouterr().out
    world.look = lambda _unit: Unit("failed", 3, "exit-code")  # type: ignore[method-assign]
    run("list")
    assert " failed " in capsys.readouterr().out


@pytest.mark.parametrize("words", [("rollback", "shop"), ("remove", "shop"), ("rollback", "shop", "--with-data")])
def test_what_is_not_installed_is_named(world: World, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        run(*words)
    assert (error.value.code, error.value.hint) == ("not-installed", "nothing is")
    assert world.settled().current == ""


@pytest.mark.parametrize("data", [[], ["--data"]])
def test_removal_says_what_becomes_of_the_data(world: World, capsys: pytest.CaptureFixture[str], data: list[str]) -> None:
    run("install", "1")
    capsys.readouterr()
    assert run("remove", "shop", *data) == 0
    assert ("data is kept in" in capsys.readouterr().out) is not bool(data)
    assert world.content.exists() is not bool(data)


def test_the_unit_has_what_is_installed_prepared(world: World) -> None:
    run("install", "1")
    world.seat.start.parent.unlink()
    world.running = ""
    assert run("prepare", "shop") == 0
    assert world.linked() == world.image("1").id


def test_an_image_in_a_directory_is_installed_once_its_parts_were_checked(world: World) -> None:
    image = world.image("1")
    (image.directory / "shop.efi").write_bytes(b"uki!")
    with pytest.raises(TrustError, match=r"shop\.efi is not what the manifest says"):
        run("install", str(image.directory))
    (image.directory / "shop.efi").write_bytes(b"uki")
    assert run("install", str(image.directory)) == 0
    assert world.settled().current == image.id
