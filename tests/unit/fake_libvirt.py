"""Hosts in memory that answer as libvirt daemons do, as far as `obelisk.instance` asks them."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from obelisk.errors import CommandError, ObeliskError, StateError, TransportError
from obelisk.events import silent
from obelisk.instance import domain as domains
from obelisk.instance import moving
from obelisk.instance import remote as remotes
from obelisk.instance.hosts import Host, Hosts
from obelisk.instance.placement import Placement, Placements
from obelisk.instance.remote import Boot, New, Remote, state_volume
from obelisk.model.instance import MACHINE_TYPE, PROCESSOR
from obelisk.system.virsh import Ended, Migration, State

RUNNING = State(1, 1)
OFF = State(5, 1)
INCOMING = State(3, 2)
OUTGOING = State(3, 2)
TORN_SOURCE = State(3, 13)
TORN_TARGET = State(1, 11)

_CAPABILITIES = "<capabilities><guest><arch name='x86_64'><domain type='kvm'/></arch></guest></capabilities>"
_OFFERS = f"""<domainCapabilities><machine>{MACHINE_TYPE}</machine>
<cpu><mode name='custom'><model usable='yes'>{PROCESSOR}</model></mode></cpu></domainCapabilities>"""


@dataclass
class Machine:
    """A domain: its XML and its state."""

    xml: str
    uuid: str
    state: State = OFF


@dataclass
class FakeDaemon:
    """A host's daemon. `fault` is asked before each thing that is done, by its name, and may raise, or change the world.

    `peers` are the daemons that a machine can be sent to, by the address under which peers reach them.
    """

    host: str
    peers: "dict[str, FakeDaemon]" = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    up: bool = True
    memory: int = 8 << 30
    room_bytes: int = 8 << 30
    network: bool = True
    dirty_mib: int = 1
    under_way: str = ""
    done: list[str] = field(default_factory=list)
    fault: Callable[[str], None] = lambda _what: None

    def _do(self, what: str) -> None:
        if not self.up:
            raise TransportError(f"{self.host} does not answer", code="host-unreachable")
        self.fault(what)
        self.done.append(what)

    def _machine(self, name: str) -> Machine:
        if name not in self.machines:
            raise StateError(f"{self.host} has no such machine", code="domain-missing")
        return self.machines[name]

    def versions(self) -> dict[str, str]:
        self._do("versions")
        return {"daemon": "11.3.0"}

    def capabilities(self) -> str:
        return _CAPABILITIES

    def domain_capabilities(self, _acceleration: str, _machine_type: str) -> str:
        return _OFFERS

    def free_memory(self) -> int:
        return self.memory

    def room(self, _pool: str) -> int:
        return self.room_bytes

    def networks(self) -> frozenset[str]:
        return frozenset({"obelisk"} if self.network else ())

    def pool_of(self, pool: str, _directory: str) -> None:
        self._do(f"pool {pool}")

    def network_of(self, network: str, bridge: str) -> None:
        self._do(f"network {network} {bridge}")

    def states(self) -> dict[str, State]:
        self._do("states")
        return {name: machine.state for name, machine in self.machines.items()}

    def uuids(self) -> dict[str, str]:
        self._do("uuids")
        return {name: machine.uuid for name, machine in self.machines.items()}

    def xml(self, domain: str) -> str:
        self._do("xml")
        return self._machine(domain).xml

    def define(self, xml: str) -> None:
        self._do("define")
        needs = domains.needs(xml)
        state = self.machines[needs.name].state if needs.name in self.machines else OFF
        self.machines[needs.name] = Machine(xml, needs.uuid, state)

    def start(self, domain: str) -> None:
        self._do("start")
        self._machine(domain).state = RUNNING

    def shut_down(self, domain: str) -> None:
        self._do("shut_down")
        self._machine(domain).state = OFF

    def destroy(self, domain: str) -> None:
        self._do("destroy")
        machine = self._machine(domain)
        if machine.state in {INCOMING, TORN_TARGET} and machine.xml == "":
            del self.machines[domain]  # it was never defined there
        elif machine.state == OFF:
            raise CommandError((self.host,), 1, "domain is not running")
        else:
            machine.state = OFF

    def undefine(self, domain: str) -> None:
        self._do("undefine")
        if self._machine(domain).state == OFF:
            del self.machines[domain]

    def resume(self, domain: str) -> None:
        self._do("resume")
        self._machine(domain).state = RUNNING

    def measure_dirty_rate(self, _domain: str, _seconds: int) -> None:
        self._do("measure")

    def statistics(self, _domain: str, *_kinds: str) -> dict[str, str]:
        return {"dirtyrate.calc_status": "2", "dirtyrate.megabytes_per_second": str(self.dirty_mib), "balloon.rss": str(100 << 10)}

    def job(self, domain: str) -> dict[str, int]:
        self._do("job")
        self._machine(domain)
        return {"memory_iteration": 1, "memory_processed": 1} if self.under_way == domain else {}

    def completed(self, _domain: str) -> dict[str, int]:
        return {"downtime": 200, "memory_bps": 50 << 20, "memory_processed": 100 << 20}

    def abort(self, _domain: str) -> None:
        self._do("abort")
        self.under_way = ""

    def allow_pause(self, _domain: str, _seconds: float) -> None:
        self._do("allow_pause")

    @contextmanager
    def migrating(self, migration: Migration) -> Iterator[Callable[[], Ended | None]]:
        """As libvirt does it: each step may fail, and then the source has the machine as long as the target has not run it."""
        yield lambda: Ended(self._migrate(migration))

    def _migrate(self, migration: Migration) -> ObeliskError | None:
        peer = self.peers[migration.to]
        machine = self._machine(migration.domain)
        try:
            self._do("migrate")
            peer._do("prepare")
            peer.machines[migration.domain] = Machine("", machine.uuid, INCOMING)
            self._do("perform")
            machine.state = OUTGOING
            peer._do("finish")
            peer.machines[migration.domain] = Machine(machine.xml, machine.uuid, RUNNING)
            self._do("confirm")
            del self.machines[migration.domain]
        except ObeliskError as error:
            return error
        return None

    def volumes(self, _pool: str) -> frozenset[str]:
        self._do("volumes")
        return frozenset(self.files)

    def volume_bytes(self, _pool: str, volume: str) -> tuple[int, int]:
        return len(self.files[volume]), len(self.files[volume])

    def make_volume(self, _pool: str, volume: str, _size: int) -> None:
        self._do("make_volume")
        self.files[volume] = b""

    def make_disk(self, _pool: str, volume: str, _size: int) -> None:
        self._do("make_disk")
        self.files[volume] = b"state"

    def delete_volume(self, _pool: str, volume: str) -> None:
        self._do("delete_volume")
        del self.files[volume]

    def upload(self, _pool: str, volume: str, source: Path) -> None:
        self._do("upload")
        self.files[volume] = source.read_bytes()

    def download(self, _pool: str, volume: str, target: Path) -> None:
        self._do("download")
        target.write_bytes(self.files[volume])


class NoTime:
    """A clock for loops that wait: each wait passes at once."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def digest(content: bytes) -> str:
    """The name of a file of an image."""
    return hashlib.sha256(content).hexdigest()


class World:
    """Three hosts, and what is made on them."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.daemons = {name: FakeDaemon(name) for name in ("north", "south", "west")}
        hosts = Hosts(place / "hosts.json")
        for name, daemon in self.daemons.items():
            host = Host(name, name, name)
            hosts.put(host)
            daemon.peers = {f"qemu+tls://{other}/system": peer for other, peer in self.daemons.items()}
        clock = NoTime()
        monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # no power is cut here
        monkeypatch.setattr(Host, "daemon", lambda host: self.daemons[host.name])
        monkeypatch.setattr(remotes, "time", clock)
        monkeypatch.setattr(moving, "time", clock)
        self.place = place
        self.remote = Remote(hosts, Placements(place / "instances/.placements"), silent)
        for name in ("kernel", "initrd", "root"):
            (place / name).write_text(name)

    def host(self, name: str) -> Host:
        return self.remote.hosts.get(name)

    def new(self, name: str = "web") -> New:
        boot = Boot(self.place / "kernel", self.place / "initrd", "quiet", self.place / "root")
        return New(name, "image", boot, 512 << 20, state_bytes=1 << 30)

    def create(self, name: str = "web", host: str = "north") -> Placement:
        return self.remote.create(self.new(name), self.host(host))

    def runs_on(self, name: str = "web") -> list[str]:
        return [host for host, daemon in self.daemons.items() if name in daemon.machines and daemon.machines[name].state.runs]

    def knows(self, name: str = "web") -> list[str]:
        """Hosts that have anything of the instance but files of its image."""
        uuid = next((each.uuid for each in self.remote.placements.all() if each.name == name), "")
        return [host for host, daemon in self.daemons.items() if name in daemon.machines or state_volume(uuid) in daemon.files]

    def leave_on_its_way(self, placement: Placement, to: str) -> None:
        """As a command that was killed leaves it."""
        self.remote.placements.put(replace(placement, to=to))

    def refusing(self, at: str) -> Callable[[str], None]:
        """A fault: `at` is refused, each time."""

        def fault(what: str) -> None:
            if what == at:
                raise CommandError(("libvirt",), 1, f"{at} is refused")

        return fault
