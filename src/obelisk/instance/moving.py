"""Moves a running instance to another host, without storage that both see.

    settle ──> check both ──> measure ──> expect ──> record ──> image ──> state volume ──> disk mirrored, memory by passes ──> settle
                    │                        │          │                                        │
             before the first byte      the hopeless    from here on, whatever ends this         └ `decide`, after each sample
                                        is refused      is put right by `Remote.settled`

The two daemons move the machine by themselves, with TLS between them (peer to peer): the command only watches, and may be killed. What to
do at each moment is decided in `obelisk.model.migration`.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from obelisk.errors import CommandError, InputError, ObeliskError, StateError, TransportError
from obelisk.events import Task, task
from obelisk.instance import domain as domains
from obelisk.instance.domain import DISK, Needs
from obelisk.instance.hosts import POOL, Host, survey
from obelisk.instance.placement import Placement
from obelisk.instance.remote import Remote, refuse, refuse_draining, state_volume
from obelisk.model.migration import (
    ASSUMED_RATE,
    MIB,
    Converge,
    Expected,
    GiveUp,
    Load,
    PostCopy,
    Presence,
    Sample,
    SwitchOver,
    Terms,
    Wanted,
    decide,
    expect,
    obstacles,
)
from obelisk.system.virsh import Ended, Migration, Virsh

_LOOK_S = 0.4
_MEASURE_S = 1
QEMU_PAUSE_S = 0.3
"""What QEMU allows itself when nobody says anything."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What moving an instance would take. `rate` is in bytes a second; `measured`: it was seen between these hosts, or given.

    `disk_bytes` is what the disk with the state seems to have.
    """

    source: str
    target: str
    wanted: Wanted
    disk_bytes: int
    load: Load
    lacking_bytes: int
    rate: int
    measured: bool
    expected: Expected


@dataclass(frozen=True, slots=True)
class Moved:
    """How it went; `moved_bytes` leaves the image out.

    `pause_s` is what libvirt says of how long the machine stood still; None after post-copy, of which it says nothing.
    """

    placement: Placement
    seconds: float
    pause_s: float | None
    moved_bytes: int
    post_copy: bool


def plan(remote: Remote, name: str, target: Host, terms: Terms, *, rate: int | None = None) -> Plan:
    """What it would take to move the instance there now. Nothing changes.

    Raises:
        InputError: it is there already.
        StateError: it does not run, cannot run there, or could never get there on these terms.
    """
    with remote.placements.owned(name):
        return _plan(remote, _at_rest(remote, name), target, terms, rate)


def move(remote: Remote, name: str, target: Host, terms: Terms, *, rate: int | None = None) -> Moved:
    """Move the instance there, while it runs.

    Raises:
        InputError, StateError: as `plan`; nothing has happened.
        ObeliskError: it failed on the way. It runs on one of the two hosts, nothing is left on the other, and it may be tried again; only
            where that cannot be known yet the code is `migration-unsettled`.
    """
    with remote.placements.owned(name):
        placement = _at_rest(remote, name)
        planned = _plan(remote, placement, target, terms, rate)
        remote.placements.put(replace(placement, to=target.name))
        source = remote.hosts.get(placement.host)
        began = time.monotonic()
        failure: ObeliskError | None = None
        watch: _Watch | None = None
        with task(remote.sink, f"move/{name}", f"Moving {name} from {source.name} to {target.name}", unit="B") as running:
            try:
                remote.deliver(target, {digest: remote.local(digest) for digest in planned.wanted.files}, source)
                target.daemon().make_disk(POOL, state_volume(placement.uuid), planned.disk_bytes)
                watch = _go(source, target, planned, terms, running, rate)
            except ObeliskError as error:
                failure = error
            except BaseException:
                remote.settled(name)
                raise
            after = remote.settled(name)
            if after.host != target.name:
                raise failure or StateError(
                    f"{name} stayed on {source.name}",
                    code="migration-failed",
                    hint="try again; `obelisk instance migrate --plan` says what to expect",
                )
            running.detail = f"on {target.name}"
        return _result(remote, after, source, watch, time.monotonic() - began)


def _at_rest(remote: Remote, name: str) -> Placement:
    placement = remote.settled(name)
    if placement.to:
        raise StateError(
            f"{placement.to} does not answer, and still has something of {name} from the last try",
            code="migration-unsettled",
            hint=f"see that {placement.to} is up, or remove it: obelisk instance hosts remove {placement.to}",
        )
    return placement


def _plan(remote: Remote, placement: Placement, target: Host, terms: Terms, rate: int | None) -> Plan:
    name = placement.name
    if placement.host == target.name:
        raise InputError(f"{name} is on {target.name} already", code="migration-pointless", hint="name another host")
    refuse_draining(target)
    source = remote.hosts.get(placement.host)
    if remote.presence(placement, source.name) is not Presence.RUNNING:
        raise StateError(f"{name} does not run on {source.name}", code="instance-off", hint=f"obelisk instance start {name}")
    with task(remote.sink, f"check/{name}", f"Checking {source.name} and {target.name}"):
        daemon = source.daemon()
        needs, wanted, size = wanted_by(placement, source)
        side = survey(target, acceleration=needs.acceleration)
        refuse(obstacles(wanted, side))
        if name in side.machines:
            raise StateError(
                f"{target.name} has a machine {name} of the same uuid", code="machine-stays", hint=f"virsh undefine {name}, there"
            )
        load = Load(*_memory(daemon, name, needs.memory_bytes), wanted.state_bytes)
    seen = rate or remote.placements.rate(source.name, target.name)
    expected = expect(load, seen or ASSUMED_RATE, terms)
    lacking = sum(each for digest, each in wanted.files.items() if digest not in side.files)
    return Plan(
        source.name,
        target.name,
        wanted,
        size,
        load,
        lacking,
        seen or ASSUMED_RATE,
        seen is not None,
        expected,
    )


def wanted_by(placement: Placement, host: Host) -> tuple[Needs, Wanted, int]:
    """What an instance on that host needs, what it would ask of another, and the size that its disk seems to have."""
    daemon = host.daemon()
    needs = domains.needs(daemon.xml(placement.name))
    files = {path.name: daemon.volume_bytes(POOL, path.name)[1] for path in needs.files}
    size, used = daemon.volume_bytes(POOL, state_volume(placement.uuid))
    wanted = Wanted(
        placement.name,
        placement.uuid,
        needs.machine_type,
        needs.processor,
        needs.acceleration,
        needs.memory_bytes,
        used,
        needs.networks,
        files,
    )
    return needs, wanted, size


def _memory(daemon: Virsh, name: str, most: int) -> tuple[int, int]:
    """How much memory the machine has touched, and how much of it it writes, in bytes and bytes a second."""
    daemon.measure_dirty_rate(name, _MEASURE_S)
    time.sleep(_MEASURE_S)
    deadline = time.monotonic() + 5 * _MEASURE_S
    while True:
        told = daemon.statistics(name, "balloon", "dirtyrate")
        if told.get("dirtyrate.calc_status") == "2" or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_S)
    touched = int(told.get("balloon.rss", most >> 10)) << 10
    return min(touched, most), int(told.get("dirtyrate.megabytes_per_second", 0)) * MIB


def _go(source: Host, target: Host, planned: Plan, terms: Terms, running: Task, rate: int | None) -> "_Watch":
    """Start it, watch it, and do what `decide` says, to its end; who has watched it.

    Raises:
        ObeliskError: it did not come to a good end.
    """
    name = planned.wanted.name
    migration = Migration(
        name,
        target.daemon_for_peers,
        target.data_for_peers,
        DISK,
        post_copy=terms.post_copy,
        slow_down=terms.slow_down and not terms.post_copy,
        rate=rate,
    )
    daemon = source.daemon()
    with daemon.migrating(migration) as ended:
        watch = _Watch(daemon, name, terms, running, ended)
        end = watch.to_the_end()
    if end.error is not None:
        raise watch.given_up or end.error
    return watch


class _Watch:
    """A migration that is watched. `samples` is what was seen, `given_up` why it was ended from here, `gone_over` whether by post-copy."""

    def __init__(self, daemon: Virsh, name: str, terms: Terms, running: Task, ended: Callable[[], Ended | None]) -> None:
        self.samples: list[Sample] = []
        self.given_up: StateError | None = None
        self._daemon, self._name, self._terms, self._running, self._ended = daemon, name, terms, running, ended
        self._began = time.monotonic()
        self._pause_s = QEMU_PAUSE_S
        self.gone_over = False

    def to_the_end(self) -> Ended:
        """Watch until it has ended."""
        while (end := self._ended()) is None:
            # The daemon may be gone for a moment, or the migration just over: how it ended is what counts.
            with suppress(TransportError, CommandError, StateError):
                self._look()
            time.sleep(_LOOK_S)
        return end

    def _look(self) -> None:
        numbers = self._daemon.job(self._name)
        if not numbers:
            return
        sample = replace(sample_of(numbers, time.monotonic() - self._began), post_copy=self.gone_over)
        self.samples.append(sample)
        self._running.progress(sample.moved, sample.total)
        self._running.output(said(sample))
        if sample.passes and self._terms.pause_s < self._pause_s:
            self._allow(self._terms.pause_s)
        match decide(self.samples, self._terms, pause_s=self._pause_s):
            case SwitchOver(pause_s):
                self._allow(pause_s)
            case PostCopy():
                self._daemon.go_over(self._name)
                self.gone_over = True
            case GiveUp(why):
                self.given_up = StateError(
                    f"{self._name} stays where it is: {why}",
                    code="migration-gave-up",
                    hint="allow it more (--pause, --time, --post-copy or --slow-down), or try when it does less",
                )
                self._daemon.abort(self._name)
            case Converge(throttle) if throttle:
                self._running.output(f"the machine is given {throttle} % less of its processors")
            case _:
                pass

    def _allow(self, pause_s: float) -> None:
        self._daemon.allow_pause(self._name, pause_s)
        self._pause_s = pause_s


def sample_of(numbers: dict[str, int], at_s: float) -> Sample:
    """A sample, of what libvirt says of a migration. Source: libvirt, VIR_DOMAIN_JOB_*."""
    page = numbers.get("memory_page_size", 4096)
    return Sample(
        at_s=at_s,
        disk_moved=numbers.get("disk_processed", 0),
        disk_total=numbers.get("disk_total", 0),
        memory_moved=numbers.get("memory_processed", 0),
        memory_left=numbers.get("memory_remaining", 0),
        memory_total=numbers.get("memory_total", 0),
        pages=numbers.get("memory_normal", 0),
        rate=numbers.get("memory_bps", 0) or numbers.get("disk_bps", 0),
        dirty_rate=numbers.get("memory_dirty_rate", 0) * page,
        passes=numbers.get("memory_iteration", 0),
        throttle=numbers.get("auto_converge_throttle", 0),
    )


def said(sample: Sample) -> str:
    """A sample in words: pages, rates, the time left."""
    if not sample.passes:
        return f"mirroring the state, {sample.disk_moved // MIB} of {sample.disk_total // MIB} MiB"
    words = [f"pass {sample.passes}", f"{sample.pages} pages", f"{sample.rate / MIB:.0f} MiB/s"]
    words += [f"{sample.dirty_rate / MIB:.0f} MiB/s written"] if sample.dirty_rate else []
    words += [f"{sample.left_s:.0f} s left"] if sample.left_s is not None else []
    return ", ".join(words)


def _result(remote: Remote, after: Placement, source: Host, watch: _Watch | None, seconds: float) -> Moved:
    target = remote.hosts.get(after.host)
    try:
        numbers = target.daemon().completed(after.name)
        # Of the mirror, libvirt counts what is empty too, which does not go over.
        _size, mirrored = target.daemon().volume_bytes(POOL, state_volume(after.uuid))
    except (TransportError, CommandError, StateError):
        numbers, mirrored = {}, 0  # how long it took is not worth an error
    if rate := numbers.get("memory_bps", 0):
        remote.placements.note_rate(source.name, target.name, rate)
    seen = max((each.memory_moved for each in watch.samples), default=0) if watch is not None else 0
    return Moved(
        after,
        seconds,
        numbers["downtime"] / 1000 if "downtime" in numbers else None,
        numbers.get("memory_processed", seen) + mirrored,
        post_copy=watch is not None and watch.gone_over,
    )
