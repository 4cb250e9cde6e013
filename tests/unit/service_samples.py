"""A machine with services on it, whose instances, network and time are played, and which can be cut at any instant."""

import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from obelisk.errors import StateError
from obelisk.events import silent
from obelisk.instance import service
from obelisk.instance.proving import Seen
from obelisk.instance.service import Means, Services
from obelisk.model.service import Phase, Service, Shares, Terms

SHOP = Terms("shop", 8080, 80, health_s=0, keep_s=100, drain_s=50)
STATEFUL = Terms("shop", 8080, 80, instances=2, carries=True, health_s=0, keep_s=100, drain_s=50)


SICK = ("bad", "dead", "ill", "mute")


class CutError(BaseException):
    """The power goes, or the process is killed."""


@dataclass
class Played:
    """An instance. `state` is all that was ever written to it."""

    image: str
    address: str
    state: str
    running: bool = True
    snapshots: dict[str, str] = field(default_factory=dict)


class World:
    """A machine. Images called `bad` do not answer, `dead` do not stay up, `ill` find themselves not healthy, and `mute` never say."""

    def __init__(self, top: Path, terms: Terms = SHOP) -> None:
        self.terms = terms
        self.there: dict[str, Played] = {}
        self.shares: Shares = ()
        self.open: dict[str, int] = {}
        self.time = 1_000_000
        self.ailing: set[str] = set()
        self.refusing: set[str] = set()
        self.said: list[str] = []
        self.left: int | None = None
        self.ending = False
        self._addresses = (f"10.0.{number // 250}.{number % 250 + 2}:80" for number in itertools.count())
        self.services = Services(top / "services", Means(self, self, lambda: self.time, self.answers), silent)

    # Cutting

    def point(self, said: str = "") -> None:
        """An instant at which all may end."""
        if said:
            self.said.append(said)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise CutError

    @contextmanager
    def cut_after(self, points: int | None) -> Iterator[None]:
        """The enclosed command ends after that many instants, if it lasts so long."""
        self.left = points
        try:
            yield
        except CutError:
            pass
        finally:
            self.left = None

    # The engine's part

    def create(self, name: str, image: str, terms: Terms, *, state: tuple[str, str] | None) -> None:
        assert terms == self.terms
        self.point(f"create {name}")
        self.refuse("create")
        if name not in self.there:
            begins = "" if state is None else self.there[state[0]].snapshots[state[1]]
            self.there[name] = Played(image, next(self._addresses), begins, running=False)
            self.point()
        self.there[name].running = not image.startswith("dead")
        self.point()

    def look(self, name: str, /) -> Seen:
        found = self.there.get(name)
        if found is None:
            return Seen(running=False)
        return Seen(found.running, found.address, {"ill": False, "mute": None}.get(found.image.rstrip("0123456789"), True))

    def save(self, name: str, snapshot: str) -> None:
        self.point(f"save {name}")
        self.refuse("save")
        self.there[name].snapshots[snapshot] = self.there[name].state
        self.point()

    def forget(self, name: str, snapshot: str) -> None:
        self.point(f"forget {name}")
        self.refuse("forget")
        if name in self.there:
            self.there[name].snapshots.pop(snapshot, None)
        self.point()

    def restore(self, name: str, snapshot: str) -> None:
        self.point(f"restore {name}")
        assert self.there[name].address not in self.led, "the state of an instance is exchanged that takes connections"
        self.there[name].running = False
        self.point()
        self.refuse("restore")
        self.there[name].state = self.there[name].snapshots[snapshot]
        self.point()

    def retire(self, name: str) -> None:
        self.point(f"retire {name}")
        self.refuse("retire")
        if name in self.there:
            assert self.there[name].address not in self.led, "an instance is removed that takes connections"
        self.there.pop(name, None)
        self.point()

    # The network's part

    @property
    def led(self) -> set[str]:
        """The addresses that new connections go to."""
        return {share.address for share in self.shares}

    def require(self, terms: Terms) -> None:
        assert terms == self.terms
        self.refuse("require")

    def lead(self, terms: Terms, shares: Shares) -> None:
        assert terms == self.terms
        self.point("lead")
        self.refuse("lead")
        if not self.ending:
            healthy = {each.address for each in self.there.values() if not each.image.startswith(SICK)}
            assert {share.address for share in shares} <= healthy, "connections are led to what was not shown to be healthy"
            assert not shares or sum(share.percent for share in shares) == 100
            assert shares or not self.shares, "a service that has served ends"
        self.shares = shares
        self.point()

    def leads(self, terms: Terms, shares: Shares) -> bool:
        assert terms == self.terms
        return self.shares == shares

    def open_connections(self, addresses: Collection[str]) -> Mapping[str, int]:
        return {address: self.open.get(address, 0) for address in addresses}

    def release(self, address: str, *, open_too: bool) -> None:
        assert not open_too or address not in {each.address for each in self.there.values()}, "connections of an instance that lives end"
        self.point()
        if open_too:
            self.open.pop(address, None)

    def answers(self, address: str, terms: Terms) -> bool:
        assert terms == self.terms
        self.point()
        image = next(each.image for each in self.there.values() if each.address == address)
        return not image.startswith("bad") and image not in self.ailing

    def refuse(self, what: str) -> None:
        """Fail, if that is to fail."""
        if what in self.refusing:
            message = f"{what} is refused"
            raise StateError(message, code="played")

    # What a test asks

    @property
    def service(self) -> Service:
        """What is stored."""
        return self.services.look("shop")

    def image(self, phase: Phase) -> str:
        """The image of the iteration in that phase; empty for none."""
        found = self.service.standing(phase)
        return found.image if found is not None else ""

    def images_led(self) -> set[str]:
        """Which images new connections go to."""
        return {each.image for each in self.there.values() if each.address in self.led}

    def deploy(self, image: str, percent: int = 100) -> None:
        self.services.deploy("shop", image, image, percent=percent)

    def state(self, image: str) -> set[str]:
        """The states of all instances of an image."""
        return {each.state for each in self.there.values() if each.image == image}

    def write(self, image: str, text: str) -> None:
        """Have the instances of an image write to their state."""
        for each in self.there.values():
            each.state += text if each.image == image else ""


def in_memory(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Spare the disk, wait for nothing, and let writes be cut before and after."""

    def write(path: Path, data: bytes) -> None:
        world.point()
        path.write_bytes(data)
        world.point()

    monkeypatch.setattr(service, "write_durably", write)
    monkeypatch.setattr(service, "sync_directory", lambda _path: None)
    monkeypatch.setattr("obelisk.instance.proving.time.sleep", lambda _seconds: None)
