"""A version that runs beside the installed one shares nothing with it, and nothing is left of it, wherever it is cut."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from installed_samples import ALONE, PORT, SERVED, CutError, World

from obelisk.errors import StateError
from obelisk.model.application import Service
from obelisk.model.policy import Connect, Device, Limits, Listen, Own, Power, Read, Usb, Use, Write, policy
from obelisk.sandbox import rehearsal, units
from obelisk.sandbox.installed import Made
from obelisk.sandbox.rehearsal import Stage, may_rehearse, moved
from obelisk.sandbox.units import Seat
from obelisk.store import StoredImage
from obelisk.system import btrfs
from obelisk.system.systemctl import Unit


class Theatre:
    """A stage, and what is on it while a version is asked for its health."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.world = World(top)
        self.ill = False
        self.seen: dict[str, str] = {}
        self.said = (SERVED, PORT)
        self.stage = Stage(self.world.seat, top / "runtime-units", self, lambda _image: self.said, self.make, self.healthy)

    def make(self, _image: StoredImage, seat: Seat, place: Path) -> Made | None:
        assert place / "shop" == seat.data
        plan = self.top / "plans/next"
        plan.mkdir(parents=True)
        return Made(plan, units.texts(seat, "shop_2", SERVED, PORT, elsewhere={8080: 40001}), "", SERVED.service)

    def healthy(self, _made: Made, seat: Seat) -> None:
        self.seen = {file.name: file.read_text() for file in (self.top / "runtime-units").iterdir()}
        assert seat.start.parent.readlink() == self.top / "plans/next"
        if self.ill:
            raise StateError("it did not stay up", code="app-down")

    def left(self, *more: str) -> list[Path]:
        places = ("runtime-units/*", "run/*", "data/.next/*", *more)
        return [path for place in places for path in self.top.glob(place)]

    def reload(self) -> None:
        self.world.said.append("reload")

    def start(self, *names: str) -> None:
        self.world.said += [f"start {name}" for name in names]

    def stop(self, *names: str) -> None:
        self.world.said += [f"stop {name}" for name in names]

    def forget(self, *names: str) -> None:
        self.world.said += [f"forget {name}" for name in names]

    def never(self, *names: str) -> None:
        raise AssertionError(names)

    require = enable = disable = restart_later = never

    def look(self, unit: str) -> Unit:
        raise AssertionError(unit)


@pytest.fixture
def theatre(tmp_path: Path) -> Theatre:
    return Theatre(tmp_path)


def test_it_has_units_of_its_own_and_other_ports_and_is_gone_afterwards(theatre: Theatre) -> None:
    assert theatre.stage.rehearse(theatre.world.image("2"))
    assert set(theatre.seen) == {"obelisk-app-shop:next.service", "obelisk-app-shop:next.socket"}
    assert "ListenStream=127.0.0.1:40001\n" in theatre.seen["obelisk-app-shop:next.socket"]
    assert f"-{theatre.top}/data/.next/shop" in theatre.seen["obelisk-app-shop:next.service"]
    assert f"{theatre.top}/data/shop" not in theatre.seen["obelisk-app-shop:next.service"]
    assert theatre.world.said == [
        "reload",
        "start obelisk-app-shop:next.socket",
        "start obelisk-app-shop:next.service",
        "stop obelisk-app-shop:next.socket",
        "stop obelisk-app-shop:next.service",
        "forget obelisk-app-shop:next.socket",
        "forget obelisk-app-shop:next.service",
        "reload",
    ]
    assert theatre.left("plans/*") == []


def test_one_that_is_ill_says_so_and_is_gone_as_well(theatre: Theatre) -> None:
    theatre.ill = True
    with pytest.raises(StateError, match="did not stay up"):
        theatre.stage.rehearse(theatre.world.image("2"))
    assert theatre.left("plans/*") == []


def test_data_of_which_no_snapshot_can_be_taken_is_left_alone(theatre: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    theatre.world.content.parent.mkdir(parents=True)
    assert theatre.stage.rehearse(theatre.world.image("2"))  # none is there yet
    theatre.world.content.write_text("of the first")
    assert not theatre.stage.rehearse(theatre.world.image("2"))
    taken: list[tuple[Path, Path]] = []
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path == theatre.world.seat.data)
    monkeypatch.setattr(btrfs, "snapshot", lambda source, target, **_how: taken.append((source, target)))
    assert theatre.stage.rehearse(theatre.world.image("2"))
    assert taken == [(theatre.top / "data/shop", theatre.top / "data/.next/shop")]
    volume = theatre.top / "data/.volumes/shop"
    volume.parent.mkdir()
    volume.touch()
    assert not theatre.stage.rehearse(theatre.world.image("2"))
    assert theatre.world.content.read_text() == "of the first"
    theatre.said = (replace(SERVED, data=()), PORT)
    assert theatre.stage.rehearse(theatre.world.image("2"))  # which has no use for it
    assert len(taken) == 1


def test_what_cannot_run_beside_itself_is_not_even_made_ready(theatre: Theatre) -> None:
    theatre.said = (SERVED, policy([Write("/mnt/x")]))
    assert not theatre.stage.rehearse(theatre.world.image("2"))
    assert (theatre.seen, theatre.world.said, list(theatre.top.glob("plans/*"))) == ({}, [], [])


def test_cut_anywhere_the_next_command_leaves_nothing_of_it(tmp_path: Path) -> None:
    step, cut = 0, True
    while cut:
        step += 1
        theatre = Theatre(tmp_path / str(step))
        with pytest.MonkeyPatch.context() as patched:
            _cut_at(step, patched, theatre)
            try:
                theatre.stage.rehearse(theatre.world.image("2"))
                cut = False
            except CutError:
                pass
        theatre.stage.clear()  # a plan that nothing led to yet goes with its image
        assert theatre.left() == []
    assert step > 10


def _cut_at(step: int, patched: pytest.MonkeyPatch, theatre: Theatre) -> None:
    """Whatever has an effect counts; from that step on, nothing does."""
    count = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*given: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count >= step:
                raise CutError
            return function(*given, **named)

        return wrapped

    for name in ("write_durably", "remove_tree"):
        patched.setattr(rehearsal, name, counted(getattr(rehearsal, name)))
    for name in ("unlink", "symlink_to"):
        patched.setattr(Path, name, counted(getattr(Path, name)))
    for name in ("reload", "start", "stop", "forget"):
        patched.setattr(theatre, name, counted(getattr(theatre, name)))


@pytest.mark.parametrize("power", [Write("/mnt/x"), Use(Device.AUDIO), Usb("046d", "c31c"), Own("org.example.Shop")])
def test_what_two_would_be_in_each_others_way_with_is_not_shared(power: Power) -> None:
    assert may_rehearse(ALONE, policy([Listen(8080), Connect("10.0.0.0/8", 5432), Read("/mnt/x")]))
    assert not may_rehearse(ALONE, policy([power]))


def test_neither_a_command_nor_what_has_a_volume_runs_beside_itself() -> None:
    assert not may_rehearse(replace(ALONE, service=None), policy())
    assert not may_rehearse(ALONE, policy([], Limits(data_bytes=1 << 30)))


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        ("", ""),
        ("http://localhost:8080/up?x=1", "http://localhost:40001/up?x=1"),
        ("http://127.0.0.1/", "http://127.0.0.1:40002/"),
        ("http://localhost:9090/", None),
        ("http://192.0.2.1:8080/", None),
    ],
)
def test_its_health_is_asked_where_it_is(health: str, expected: str | None) -> None:
    found = moved(Service(health=health), {8080: 40001, 80: 40002})
    assert (found.health if found else None) == expected
