"""`obelisk service …`: what a person or a program is told, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from service_samples import World, in_memory

from obelisk.cli import services
from obelisk.cli.main import _parser
from obelisk.errors import InputError, StateError
from obelisk.instance.service import Means, Services
from obelisk.model.service import Phase, Terms

SHOP = Terms("shop", 8080, 80, memory_bytes=1 << 30, state_bytes=1 << 30, check="/up", health_s=0, keep_s=7200, drain_s=60)
CREATE = (
    "create",
    "shop",
    "--port",
    "8080:80",
    "--memory",
    "1G",
    "--state",
    "1G",
    "--check",
    "/up",
    "--health",
    "0s",
    "--keep",
    "2h",
    "--drain",
    "1m",
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine without a service; its images are called as their ids."""
    world = World(tmp_path, SHOP)
    in_memory(monkeypatch, world)
    means = Means(world, world, lambda: world.time, world.answers)
    monkeypatch.setattr(services, "_kept", lambda _arguments, sink: Services(tmp_path / "services", means, sink))
    monkeypatch.setattr("obelisk.cli.services.time.time", lambda: float(world.time))
    monkeypatch.setattr("obelisk.cli.services.os.geteuid", lambda: 0)
    monkeypatch.setattr(services, "open_store", lambda _arguments: None)
    named = lambda _store, name: SimpleNamespace(id=name, manifest=SimpleNamespace(label=name))  # noqa: E731
    monkeypatch.setattr(services, "find_machine", named)
    return world


def run(*words: str) -> int:
    arguments = _parser().parse_args(["service", *words])
    return services.service(arguments)


def test_a_service_is_made_with_what_is_declared_and_deployed_at_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CREATE, "--image", "one") == 0
    assert world.service.terms == SHOP
    said = capsys.readouterr().out
    assert "port 8080 of this machine is that of shop" in said
    assert "one serves" in said
    assert "current   100 %" in said


def test_status_tells_shares_connections_times_and_reasons(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run(*CREATE, "--image", "one")
    run("deploy", "shop", "two")
    with pytest.raises(StateError):
        run("deploy", "shop", "bad")
    run("deploy", "shop", "three", "--canary", "10%")
    world.open[world.there["shop-1-1"].address] = 4
    capsys.readouterr()
    run("status", "shop")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shop: port 8080, to port 80 of instances; two serves, three 10 % of it"
    assert [line.split() for line in lines[1:3]] == [
        ["1", "one", "kept", "0", "%", "4", "open", "for", "2", "h", "0", "min", "more"],
        ["2", "two", "current", "90", "%", "0", "open"],
    ]
    assert "gone" in lines[3]
    assert "gave no good answer to GET /up" in lines[3]


def test_programs_get_all_of_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run(*CREATE, "--image", "one", "--json")
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["event"], said["service"]["terms"]["port"], said["open_connections"]) == ("result", 8080, {"1": 0})
    run("list", "--json")
    assert json.loads(capsys.readouterr().out)["services"][0]["iterations"][0]["phase"] == "current"
    assert world.images_led() == {"one"}


def test_promote_rollback_tend_and_retire(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run(*CREATE, "--image", "one")
    run("deploy", "shop", "two", "--canary", "25%")
    run("promote", "shop", "--to", "50")
    assert [share.percent for share in world.shares] == [50, 50]
    run("promote", "shop")
    run("rollback", "shop", "--with-state")
    assert (world.images_led(), world.image(Phase.KEPT)) == ({"one"}, "two")
    world.time += SHOP.keep_s
    assert run("tend") == 0
    assert world.image(Phase.DRAINING) == "two"
    world.time += SHOP.drain_s
    run("tend", "shop")
    assert set(world.there) == {"shop-1-1"}
    world.ending = True
    run("retire", "shop")
    run("list")
    assert capsys.readouterr().out.endswith("shop is retired\nthere is no service\n")


def test_a_service_that_somebody_works_on_is_no_trouble_to_those_who_tend_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*CREATE)

    def busy(_self: Services, _name: str) -> None:
        raise StateError("busy", code="service-busy")

    monkeypatch.setattr(Services, "tend", busy)
    assert run("tend") == 0
    with pytest.raises(StateError):
        run("tend", "shop")
    assert world.services.names() == ("shop",)


@pytest.mark.parametrize(
    "words", [("create", "shop", "--port", "http"), ("deploy", "shop", "one", "--canary", "some"), ("promote", "shop", "--to", "0%")]
)
def test_what_cannot_be_meant_is_refused(world: World, words: tuple[str, ...]) -> None:
    run(*CREATE)
    with pytest.raises((InputError, StateError)):
        run(*words)
    assert world.there == {}


def test_others_than_root_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obelisk.cli.services.os.geteuid", lambda: 1000)
    with pytest.raises(StateError) as error:
        run("list")
    assert error.value.code == "service-root"
