"""An instance that is moved to and fro between two hosts, with a fault in every third migration; and what has to hold after each.

After each migration, whatever happened in it: exactly one QEMU runs the guest, on the host that the record names; nothing of it is left on
the other; the guest answers, and has found no wrong byte in its memory or on its disk; a connection that was open before is still open,
unless the fault was the death of the machine itself, which nothing survives.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster import GUEST, Cluster, Host, Watch, guest

from obelisk.errors import ObeliskError
from obelisk.events import Sink, silent
from obelisk.instance import hosts as known
from obelisk.instance.moving import Moved, move
from obelisk.instance.placement import Placements
from obelisk.instance.remote import Boot, New, Remote, state_volume
from obelisk.model.migration import Presence, Terms

NAME = "web"
QEMU = "qemu-system-x86"
ROOT_BYTES, MEMORY_BYTES, STATE_BYTES = 64 << 20, 192 << 20, 256 << 20
_BOOT_S = 90
_DAEMON_S = 40
MEMORY_RATE, DISK_RATE = 1024, 64
"""KiB a second that the guest writes."""
WORDS = f"console=ttyS0 quiet mitigations=off panic=-1 memory=16 memory_rate={MEMORY_RATE} disk_rate={DISK_RATE}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a migration. `fatal`: the machine itself may die of it, and with it its connections."""

    name: str
    strike: "Callable[[Story, Host, Host], None]"
    fatal: bool = False
    heal: "Callable[[Story, Host, Host], None] | None" = None


def _kill_command(story: "Story", _source: Host, _target: Host) -> None:
    story.kill_command()


def _cut(story: "Story", _source: Host, target: Host) -> None:
    story.cluster.cut(target)


def _join(story: "Story", _source: Host, target: Host) -> None:
    story.cluster.cut(target, cut=False)


FAULTS = (
    Fault("the source's QEMU is killed", lambda _story, source, _target: _killed(source, QEMU), fatal=True),
    Fault("the target's QEMU is killed", lambda _story, _source, target: _killed(target, QEMU), fatal=True),
    Fault("the source's daemon is killed", lambda _story, source, _target: _killed(source, "libvirtd")),
    Fault("the target's daemon is killed", lambda _story, _source, target: _killed(target, "libvirtd")),
    Fault("the link is cut", _cut, heal=_join),
    Fault("the target is full", lambda _story, _source, target: target.fill(), heal=lambda _story, _source, target: target.unfill()),
    Fault("the command is killed", _kill_command),
)


def _killed(host: Host, program: str) -> None:
    host.kill(program)


@dataclass
class Tally:
    """What came of the migrations: how many arrived, what was refused or failed and why, and what must not be."""

    arrived: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    answered: int = 0
    connections: int = 0
    broken: int = 0


class Story:
    """Two hosts, the instance on one of them, and a connection to it that is held open."""

    def __init__(self, cluster: Cluster, place: Path, sink: Sink = silent, *, root_bytes: int = ROOT_BYTES) -> None:
        self.cluster = cluster
        self.place = place
        self.tally = Tally()
        self.remote = Remote(known.Hosts(place / "hosts.json"), Placements(place / "instances/.placements"), sink)
        self._command: subprocess.Popen[bytes] | None = None
        self._root_bytes = root_bytes
        self._uptime = 0.0
        self._watch: Watch | None = None

    def begin(self) -> None:
        """Make the hosts known, and the instance on the first."""
        for host in self.cluster.hosts:
            self.remote.hosts.put(known.Host(host.name, host.address, host.peer, str(self.place / "client")))
            self.until_it_answers(host)
            known.prepare(self.remote.hosts.get(host.name), "br0")
        files = guest(self.cluster.room.tree, self.place)
        root = self.place / "root"
        chance = random.Random(1)
        with root.open("wb") as file:
            for at in range(0, self._root_bytes, 1 << 20):
                file.write(chance.randbytes(min(1 << 20, self._root_bytes - at)))
        self.boot = Boot(files.kernel, files.initrd, WORDS, root)
        self.create()
        self.watch()

    def create(self) -> None:
        """Make the instance."""
        new = New(NAME, "", self.boot, MEMORY_BYTES, state_bytes=STATE_BYTES)
        self.remote.create(new, self.remote.hosts.get(self.cluster.hosts[0].name))
        self.until_it_serves()

    def until_it_answers(self, host: Host) -> None:
        """Wait until the daemon of that host is up."""
        deadline = time.monotonic() + _DAEMON_S
        while True:
            try:
                self.remote.hosts.get(host.name).daemon().versions()
            except ObeliskError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                return

    def until_it_serves(self) -> str:
        """Wait until the guest answers by HTTP; what it says of itself."""
        deadline = time.monotonic() + _BOOT_S
        while True:
            try:
                with urllib.request.urlopen(f"http://{GUEST}/cgi-bin/check", timeout=5) as answer:
                    return str(answer.read().decode())
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def hurry(self, rate: int = MEMORY_RATE) -> None:
        """Have the guest write so many KiB of memory a second."""
        with urllib.request.urlopen(f"http://{GUEST}/cgi-bin/rate?{rate}", timeout=30) as answer:
            assert int(answer.read()) == rate

    def watch(self) -> None:
        """Hold a new connection open."""
        self._watch = Watch()
        self._watch.__enter__()
        self.tally.connections += 1

    @property
    def here(self) -> Host:
        """The host that has the instance."""
        name = self.remote.placements.get(NAME).host
        return next(host for host in self.cluster.hosts if host.name == name)

    @property
    def other(self) -> Host:
        """The host that has not."""
        return next(host for host in self.cluster.hosts if host is not self.here)

    def migrate(
        self, fault: Fault | None = None, *, after_s: float = 0.0, terms: Terms | None = None, rate: int | None = None
    ) -> Moved | ObeliskError | None:
        """Move it to the other host, with this fault so long after the migration itself has begun. Then everything has to hold."""
        source, target = self.here, self.other
        began = time.monotonic()
        watch = self._watch
        assert watch is not None
        watch.longest_s = 0.0
        outcome: Moved | ObeliskError | None
        with self._striking(fault, source, target, after_s):
            try:
                if fault is not None and fault.strike is _kill_command:
                    self._as_command(target)
                    outcome = None
                else:
                    outcome = move(self.remote, NAME, self.remote.hosts.get(target.name), terms or Terms(), rate=rate)
            except ObeliskError as error:
                outcome = error
        what = f"{source.name} to {target.name}" + (f", {fault.name} after {after_s:.1f} s" if fault else "")
        if isinstance(outcome, Moved):
            self.tally.arrived += 1
            self.tally.seconds.append(time.monotonic() - began)
            self.tally.pauses_s += [outcome.pause_s] if outcome.pause_s is not None else []
        elif outcome is not None:
            self.tally.failed[outcome.code] = self.tally.failed.get(outcome.code, 0) + 1
            if fault is None:
                self.tally.wrong.append(f"{what}: it failed without a fault: {outcome}")
        self._judge(what, source, target, fatal=fault is not None and fault.fatal)
        if fault is None:
            self.tally.gaps_s.append(watch.longest_s)
        return outcome

    @contextmanager
    def _striking(self, fault: Fault | None, source: Host, target: Host, after_s: float) -> Iterator[None]:
        """Have the fault happen in the block, and everything as before after it."""
        if fault is None:
            yield
            return
        over = threading.Event()

        def strike() -> None:
            # Checks come first, which change nothing: the time counts from when the machine that comes is there.
            while not over.is_set() and not target.processes(QEMU):
                time.sleep(0.05)
            if not over.wait(after_s):
                fault.strike(self, source, target)
                if fault.heal is not None:
                    over.wait(12)
                    fault.heal(self, source, target)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for host in (source, target):
                self.until_it_answers(host)

    def _as_command(self, target: Host) -> None:
        """Move it in a process of its own, which can be killed; the next command then finds what that has left."""
        words = [sys.executable, __file__, str(self.place), target.name]
        self._command = subprocess.Popen(words, env={**os.environ})
        self._command.wait()
        with self.remote.placements.owned(NAME):
            self.remote.settled(NAME)

    def kill_command(self) -> None:
        """Kill the process that moves the instance."""
        if self._command is not None:
            self._command.send_signal(signal.SIGKILL)

    def _judge(self, what: str, source: Host, target: Host, *, fatal: bool) -> None:
        wrong = self.tally.wrong
        placement = self.remote.placements.get(NAME)
        if placement.to or placement.host not in {source.name, target.name}:
            wrong.append(f"{what}: not settled: {placement}")
            return
        winner, loser = (source, target) if placement.host == source.name else (target, source)
        found = [len(winner.processes(QEMU)), len(loser.processes(QEMU))]
        if found != [1, 0]:
            wrong.append(f"{what}: {found[0]} run on {winner.name}, which should have it, and {found[1]} on {loser.name}")
        if self.remote.presence(placement, winner.name) is not Presence.RUNNING:
            wrong.append(f"{what}: it does not run on {winner.name}")
        if self.remote.presence(placement, loser.name) is not Presence.ABSENT:
            wrong.append(f"{what}: {loser.name} still knows it")
        volume = state_volume(placement.uuid)
        if volume not in winner.files() or volume in loser.files():
            wrong.append(f"{what}: the state is not on {winner.name} alone")
        try:
            said = self.until_it_serves()
        except OSError as error:
            wrong.append(f"{what}: it does not answer: {error}")
            return
        first, second = said.splitlines()[:2]
        if first.split("wrong")[1].strip():
            wrong.append(f"{what}: the guest says {said!r}")
        uptime = float(second.split()[0])
        died, self._uptime = uptime < self._uptime, uptime
        if died and not fatal:
            wrong.append(f"{what}: the machine was started again")
        self._judge_connection(what, fatal=died)

    def _judge_connection(self, what: str, *, fatal: bool) -> None:
        watch = self._watch
        assert watch is not None
        before = watch.answered
        deadline = time.monotonic() + 10
        while not watch.wrong and watch.answered == before and time.monotonic() < deadline:
            time.sleep(0.1)
        if not fatal and (watch.wrong or watch.answered == before):
            self.tally.wrong.append(f"{what}: the connection: {watch.wrong or 'no more answers'}")
            self.tally.broken += 1
        if fatal or watch.wrong or watch.answered == before:
            self._end_watch()
            self.watch()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.__exit__()
            self.tally.answered += self._watch.answered

    def end(self) -> None:
        """Take the instance away; nothing may be left of it."""
        self._end_watch()
        self.remote.retire(NAME)
        for host in self.cluster.hosts:
            self.remote.sweep(self.remote.hosts.get(host.name))
            left = host.files()
            if left or host.processes(QEMU):
                self.tally.wrong.append(f"{host.name} keeps {left}")


def run(story: Story, count: int, seed: int, say: Callable[[str], None]) -> None:
    """So many migrations, every third with a fault, each fault as often as the others."""
    chance = random.Random(seed)
    order = list(FAULTS)
    chance.shuffle(order)
    for number in range(count):
        fault = order[number // 3 % len(order)] if number % 3 == 1 else None
        began = time.monotonic()
        outcome = story.migrate(fault, after_s=chance.uniform(0, 2.5) if fault else 0.0)
        came = f"{outcome.code}: {outcome}" if isinstance(outcome, ObeliskError) else ""
        came = f"arrived, {outcome.pause_s or 0:.3f} s" if isinstance(outcome, Moved) else came
        say(f"{number + 1:>3} {time.monotonic() - began:5.1f} s  {fault.name if fault else '':<32} on {story.here.name}; {came}")


def main() -> None:
    """Move the instance, as a process of its own."""
    place, target = Path(sys.argv[1]), sys.argv[2]
    remote = Remote(known.Hosts(place / "hosts.json"), Placements(place / "instances/.placements"), silent)
    with suppress(ObeliskError):
        move(remote, NAME, remote.hosts.get(target), Terms())


if __name__ == "__main__":
    main()
