"""A machine, its client, and instances, as network namespaces: real connections without VMs.

    client ── 192.168.77.0/24 ── machine ── bridge 10.77.0.0/24 ── one namespace for each instance, with a small HTTP server in it

Run as a program, it is the command line of a service on that machine: `homes.py TOP deploy|promote|rollback|tend|retire …`.
"""

import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from obelisk.errors import ObeliskError, StateError
from obelisk.events import silent
from obelisk.instance.embedded import Embedded
from obelisk.instance.lodging import Lodging
from obelisk.instance.proving import Seen
from obelisk.instance.records import Bootable, Images, Records
from obelisk.instance.service import Instances, Means, Services
from obelisk.instance.traffic import PacketFilter
from obelisk.model.service import Share, Terms
from obelisk.system.bubblewrap import Room

PORT = 8080
MACHINE, CLIENT, BRIDGE = "192.168.77.1", "192.168.77.2", "10.77.0.1"
SHOP = Terms("shop", PORT, 80, check="/health", health_s=30, keep_s=0, drain_s=20)
_HERE = Path(__file__)
_END_S = 5.0
_PASSING_S = 0.2  # about as long as one that is deployed takes to serve
_PREFIX = "obelisk-homes-"


class Homes:
    """Instances in namespaces of the network: `Instances`. What there is of them is below `top`, one directory each."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.prefix = _PREFIX + top.name

    def create(self, name: str, image: str, terms: Terms, *, state: tuple[str, str] | None) -> None:
        assert state is None
        place = self.top / "instances" / name
        (place / "state").mkdir(parents=True, exist_ok=True)
        if self.look(name).running:
            return
        space, number = f"{self.prefix}-{name}", self._number(place)
        with suppress(subprocess.CalledProcessError):
            ip("netns", "delete", space)
        ip("netns", "add", space)
        inner, outer = f"i{number}", f"o{number}"
        with suppress(subprocess.CalledProcessError):
            inside(self.machine, "ip", "link", "delete", outer)
        inside(self.machine, "ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
        inside(self.machine, "ip", "link", "set", outer, "master", "homes", "up")
        # Where the kernel has bridges obey the packet filter, an instance reaches itself by the service only so.
        inside(self.machine, "ip", "link", "set", outer, "type", "bridge_slave", "hairpin", "on")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"10.77.0.{number}/24", "dev", inner),
            ("link", "set", inner, "up"),
            ("route", "add", "default", "via", BRIDGE),
        ):
            inside(space, "ip", *words)
        server = [*within(space), sys.executable, "-I", str(_HERE.with_name("home.py")), image, str(terms.guest_port), str(place)]
        with (place / "log").open("ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def look(self, name: str, /) -> Seen:
        place = self.top / "instances" / name
        if not _running(place):
            return Seen(running=False)
        return Seen(running=True, address=f"10.77.0.{(place / 'number').read_text()}:{SHOP.guest_port}", healthy=True)

    def save(self, name: str, snapshot: str) -> None:
        shutil.copytree(self.state(name), self.top / "instances" / name / snapshot, dirs_exist_ok=True)

    def forget(self, name: str, snapshot: str) -> None:
        shutil.rmtree(self.top / "instances" / name / snapshot, ignore_errors=True)

    def restore(self, name: str, snapshot: str) -> None:
        shutil.rmtree(self.state(name))
        shutil.copytree(self.top / "instances" / name / snapshot, self.state(name))

    def retire(self, name: str) -> None:
        place = self.top / "instances" / name
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _END_S
            while _running(place) and time.monotonic() < deadline:
                for pid in _processes(place):
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(0.02)
        with suppress(subprocess.CalledProcessError):
            ip("netns", "delete", f"{self.prefix}-{name}")
        shutil.rmtree(place, ignore_errors=True)

    def state(self, name: str) -> Path:
        """Where the state of an instance is."""
        return self.top / "instances" / name / "state"

    @property
    def machine(self) -> str:
        """The namespace of the machine."""
        return f"{self.prefix}-machine"

    @property
    def client(self) -> str:
        """The namespace of somebody elsewhere."""
        return f"{self.prefix}-client"

    def _number(self, place: Path) -> str:
        """What tells its devices and its address from those of others, whoever is killed meanwhile: none is given twice."""
        file = place / "number"
        if not file.exists() or not file.read_text():
            number = next(each for each in range(2, 250) if self._claims(each))
            file.write_text(str(number))
        return file.read_text()

    def _claims(self, number: int) -> bool:
        try:
            (self.top / "numbers" / str(number)).mkdir(parents=True)
        except FileExistsError:
            return False
        return True


class Street(Homes):
    """The machine while a test lasts, and what is done on it."""

    def run(self, *words: str, terms: Terms = SHOP) -> subprocess.CompletedProcess[str]:
        """A command about the service, in a process of its own on the machine."""
        return subprocess.run(self.words(*words, terms=terms), capture_output=True, text=True, check=False, timeout=300)

    def ok(self, *words: str, terms: Terms = SHOP) -> None:
        """The same, which has to succeed."""
        done = self.run(*words, terms=terms)
        assert done.returncode == 0, done.stderr

    def words(self, *words: str, terms: Terms = SHOP) -> list[str]:
        """The words of such a process."""
        told = json.dumps(terms.to_json())
        return [*within(self.machine), sys.executable, "-I", str(_HERE), str(self.top), told, *words]

    def services(self) -> Services:
        """What is stored, for reading."""
        return Services(self.top / "services", Means(self, PacketFilter(), lambda: int(time.time())), silent)

    def get(self, where: str, address: str = MACHINE, path: str = "/") -> str:
        """What somebody in that namespace is answered on a connection of its own."""
        return inside(where, "python3", "-I", "-c", _GET, f"http://{address}:{PORT}{path}", "1").strip()

    def gets(self, where: str, count: int) -> list[str]:
        """The same so many times."""
        return inside(where, "python3", "-I", "-c", _GET, f"http://{MACHINE}:{PORT}/", str(count)).split()


@contextmanager
def street(top: Path) -> Iterator[Street]:
    """A machine without a service, with a client beside it; nothing is left of it."""
    made = Street(top)
    try:
        for space in (made.machine, made.client):
            ip("netns", "add", space)
            inside(space, "ip", "link", "set", "lo", "up")
        inside(made.machine, "ip", "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", made.client)
        inside(made.machine, "ip", "link", "add", "homes", "type", "bridge")
        # Else it has that of its lowest port, and changes it while they come and go.
        inside(made.machine, "ip", "link", "set", "homes", "address", "52:54:00:00:00:01")
        for space, device, address in ((made.machine, "out", MACHINE), (made.client, "in", CLIENT), (made.machine, "homes", BRIDGE)):
            inside(space, "ip", "address", "add", f"{address}/24", "dev", device)
            inside(space, "ip", "link", "set", device, "up")
        yield made
    finally:
        for place in sorted((top / "instances").glob("*")):
            made.retire(place.name)
        for space in (made.machine, made.client):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", space)


def _running(place: Path) -> bool:
    """Whether the instance at that place runs: its processes have a log that is locked.

    A process that is becoming another program has no command for a moment, so those do not tell.
    """
    with suppress(FileNotFoundError), (place / "log").open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _processes(place: Path) -> list[int]:
    """The processes of the instance at that place, as far as they tell."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(place) in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def ip(*words: str) -> str:
    """What the program of that name says."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def within(space: str) -> list[str]:
    """What begins a command that is to run in a namespace, with the mounts of all others."""
    return ["nsenter", f"--net=/run/netns/{space}", "--"]


def inside(space: str, *words: str) -> str:
    """What a program says in a namespace."""
    return subprocess.run([*within(space), *words], capture_output=True, text=True, check=True, timeout=120).stdout


_GET = """\
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for _ in range(int(sys.argv[2])):
    print(opener.open(sys.argv[1], timeout=10).read().decode())
"""


@dataclass(frozen=True)
class Machines:
    """In the place of namespaces: virtual machines, which all start from `bootable`, by the tools in `room`."""

    room: Room
    bootable: Bootable

    def lodging(self, top: Path) -> Lodging:
        """Instances below `top`."""
        images: Images = lambda image: replace(self.bootable, id=image, label=image)  # noqa: E731
        return Lodging(Embedded(Records(top / "machines.d"), lambda: self.room, images, silent))


def instances_of(top: Path) -> Instances:
    """What there are instances by."""
    file = top / "machines"
    if not file.exists():
        return Homes(top)
    machines = pickle.loads(file.read_bytes())  # noqa: S301 - of this run
    assert isinstance(machines, Machines)
    return machines.lodging(top)


def keep(top: Path, terms: Terms, words: Sequence[str]) -> int:
    """One command about the service shop."""
    services = Services(top / "services", Means(instances_of(top), PacketFilter(), lambda: int(time.time())), silent)
    try:
        match words:
            case ["create"]:
                services.create(terms)
            case ["deploy", image, *percent]:
                services.deploy("shop", image, image, percent=int(percent[0]) if percent else 100)
            case ["promote"]:
                services.promote("shop")
            case ["rollback", *with_state]:
                services.rollback("shop", with_state=bool(with_state))
            case ["tend"]:
                services.tend("shop")
            case ["pass", name]:  # an instance comes and goes, and no service has to do with it
                instances = instances_of(top)
                instances.create(name, name, terms, state=None)
                time.sleep(_PASSING_S)
                instances.retire(name)
            case ["lead", address]:
                PacketFilter().lead(SHOP, (Share(address, 100),))
            case ["retire"]:
                services.retire("shop")
            case _:
                raise StateError(" ".join(words), code="unknown")
    except ObeliskError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(_HERE.parent))
    import homes  # what was pickled is of this module by its name

    sys.exit(homes.keep(Path(sys.argv[1]), Terms.from_json(json.loads(sys.argv[2])), sys.argv[3:]))
