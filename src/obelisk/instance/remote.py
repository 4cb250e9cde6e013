"""Instances on hosts: made, switched on and off, retired, and put right again after whatever went wrong.

Checked first, then done. A record is written before anything is made and after everything is there, so a command that is killed leaves
something that the next one finishes or undoes (`Remote.settled`).
"""

import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from obelisk.errors import CommandError, InputError, ObeliskError, StateError, TransportError, TrustError
from obelisk.events import Note, Sink, task
from obelisk.instance import domain as domains
from obelisk.instance.domain import Domain
from obelisk.instance.hosts import DIRECTORY, NETWORK, POOL, WHOLE, Host, Hosts, best, survey, whole
from obelisk.instance.placement import Placement, Placements
from obelisk.model.instance import MACHINE_TYPE, PROCESSOR
from obelisk.model.migration import Presence, Settlement, Wanted, obstacles, settle
from obelisk.system.files import hash_file, locked
from obelisk.system.virsh import Migration, State, Virsh

SETTLE_S = 90.0
_LOOK_S = 0.3
_LEFT_BEHIND_S = 15.0
_POWER_OFF_S = 60.0
_PAUSED_IN_POST_COPY = 12


@dataclass(frozen=True, slots=True)
class Boot:
    """What a machine starts from: files of this machine. `root` is a raw disk that it finds and does not change."""

    kernel: Path
    initrd: Path
    command_line: str
    root: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.kernel, self.initrd, *((self.root,) if self.root else ()))


@dataclass(frozen=True, slots=True)
class New:
    """An instance that is to be. `state_bytes` is how large its state may become."""

    name: str
    image: str
    boot: Boot
    memory_bytes: int
    state_bytes: int
    cpus: int = 1
    credentials: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remote:
    """Instances on hosts. `local` finds a file of an image in this machine's store by its digest; it may find none."""

    hosts: Hosts
    placements: Placements
    sink: Sink
    local: Callable[[str], Path | None] = lambda _digest: None

    def create(self, new: New, host: Host) -> Placement:
        """Make an instance there, and start it.

        Raises:
            InputError: the name is taken.
            StateError: the host cannot run it, or is being emptied; another command is at work on the name.
        """
        with self.placements.owned(new.name):
            found = self.placements.find(new.name)
            if found is not None and not found.coming:
                raise InputError(
                    f"there is an instance {new.name} already, on {found.host}", code="name-taken", hint="choose another name, or retire it"
                )
            if found is not None:
                self._forget(found)
            refuse_draining(host)
            side = survey(host)
            files = {path: hash_file(path) for path in new.boot.files}
            acceleration = best(side.accelerations)
            sizes = {digest: path.stat().st_blocks * 512 for path, digest in files.items()}
            wanted = Wanted(new.name, "", MACHINE_TYPE, PROCESSOR, acceleration, new.memory_bytes, new.state_bytes, (NETWORK,), sizes)
            refuse(obstacles(wanted, side))
            placement = Placement(new.name, str(uuid.uuid4()), new.image, host.name, coming=True)
            self.placements.put(placement)
            try:
                self._make(new, placement, files, acceleration)
            except BaseException:
                self._forget(placement)
                raise
            placement = replace(placement, coming=False)
            self.placements.put(placement)
            return placement

    def _make(self, new: New, placement: Placement, files: Mapping[Path, str], acceleration: str) -> None:
        host = self.hosts.get(placement.host)
        daemon = host.daemon()
        self.deliver(host, {digest: path for path, digest in files.items()})
        daemon.make_disk(POOL, state_volume(placement.uuid), new.state_bytes)
        at = {path: DIRECTORY / digest for path, digest in files.items()}
        machine = Domain(
            name=new.name,
            uuid=placement.uuid,
            mac=mac_of(placement.uuid),
            generation=str(uuid.uuid4()),
            memory_bytes=new.memory_bytes,
            cpus=new.cpus,
            kernel=at[new.boot.kernel],
            initrd=at[new.boot.initrd],
            command_line=new.boot.command_line,
            root=at[new.boot.root] if new.boot.root else None,
            state=DIRECTORY / state_volume(placement.uuid),
            network=NETWORK,
            acceleration=acceleration,
            credentials=new.credentials,
        )
        with task(self.sink, f"start/{new.name}", f"Starting {new.name} on {host.name}"):
            daemon.define(domains.to_xml(machine))
            daemon.start(new.name)

    def deliver(self, host: Host, files: Mapping[str, Path | None], source: Host | None = None) -> None:
        """Have these files of an image, by digest, on the host.

        What has no path is fetched from `source`, and is not passed on unless it has its digest.

        Raises:
            TrustError: a file is not what its digest says.
        """
        daemon = host.daemon()
        # Two commands that send the same file would write over each other.
        self.placements.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.placements.directory / f".{host.name}.files.lock"):
            volumes = daemon.volumes(POOL)
            lacking = [digest for digest in files if digest not in whole(volumes)]
            if not lacking:
                return
            with task(self.sink, f"send/{host.name}", f"Sending the image to {host.name}", total=len(lacking), unit="files") as running:
                for number, digest in enumerate(lacking, start=1):
                    for leftover in volumes & {digest, f"{digest}{WHOLE}"}:
                        daemon.delete_volume(POOL, leftover)
                    path = files[digest]
                    if path is not None:
                        _send(daemon, digest, path)
                    elif source is not None:
                        with tempfile.TemporaryDirectory(prefix="obelisk-image-") as scratch:
                            copy = Path(scratch) / digest
                            copy.touch()
                            source.daemon().download(POOL, digest, copy)
                            if hash_file(copy) != digest:
                                raise TrustError(
                                    f"{source.name} has a file of the image that is damaged: {digest[:12]}",
                                    code="image-damaged",
                                    hint="create the instance anew; what it wrote is in its state",
                                )
                            _send(daemon, digest, copy)
                    running.progress(number)

    def start(self, name: str) -> None:
        """Switch an instance on. One that runs stays as it is."""
        with self.placements.owned(name):
            placement = self.settled(name)
            daemon = self.hosts.get(placement.host).daemon()
            if self.presence(placement, placement.host) is Presence.OFF:
                daemon.start(name)
            self.placements.put(replace(placement, off=False))

    def stop(self, name: str, *, now: bool = False) -> None:
        """Switch an instance off: by its power button or, with `now` or when that has no effect for a minute, as a power cut does."""
        with self.placements.owned(name):
            placement = self.settled(name)
            self.placements.put(replace(placement, off=True))
            daemon = self.hosts.get(placement.host).daemon()
            deadline = time.monotonic() + (0 if now else _POWER_OFF_S)
            if not now and self.presence(placement, placement.host) is Presence.RUNNING:
                daemon.shut_down(name)
            while self.presence(placement, placement.host) is Presence.RUNNING:
                if time.monotonic() >= deadline:
                    _gone(lambda: daemon.destroy(name))
                    break
                time.sleep(_LOOK_S)

    def retire(self, name: str) -> None:
        """Take an instance away, with its state. One that is gone already is only forgotten."""
        with self.placements.owned(name):
            self._forget(self.placements.get(name))

    def _forget(self, placement: Placement) -> None:
        for each in filter(None, (placement.host, placement.to)):
            self.clear(placement, self.hosts.get(each))
        self.placements.remove(placement.name)

    def presence(self, placement: Placement, host: str) -> Presence:
        """How the instance is on that host."""
        try:
            daemon = self.hosts.get(host).daemon()
            states, uuids = daemon.states(), daemon.uuids()
        except TransportError:
            return Presence.UNKNOWN
        if uuids.get(placement.name) != placement.uuid:
            return Presence.ABSENT
        return presence_of(states.get(placement.name, State(0, 0)))

    def settled(self, name: str, *, within_s: float = SETTLE_S) -> Placement:
        """The record of an instance that is on one host: what a failed migration, or a killed command, has left is put right first.

        Only for the command that owns the instance.

        Raises:
            StateError: it cannot be known yet who has it (`migration-unsettled`), or post-copy cannot go on yet (`migration-torn`).
            StateError: it is nowhere (`instance-lost`).
        """
        placement = self.placements.get(name)
        if placement.coming:
            self._forget(placement)
            raise InputError(f"{name} was never completed, and has been taken away", code="instance-unknown", hint="create it again")
        if not placement.to:
            return placement
        if all(host.name != placement.to for host in self.hosts.all()):
            # Whoever removed it from the hosts has said that it does not come back.
            placement = replace(placement, to="")
            self.placements.put(placement)
            return placement
        source, target = self.hosts.get(placement.host), self.hosts.get(placement.to)
        with task(self.sink, f"settle/{name}", f"Finding out where {name} is, {source.name} or {target.name}") as running:
            began = time.monotonic()
            while True:
                self._end_job(placement, source, began + within_s)
                here, there = self.presence(placement, source.name), self.presence(placement, target.name)
                decision = settle(here, there)
                running.output(f"{source.name}: {here}, {target.name}: {there}; {decision}")
                failure = ""
                try:
                    done = self._apply(decision, placement, source, target)
                except (TransportError, CommandError) as error:
                    # A daemon that went away, or a machine that just changed: look again.
                    done, failure = None, f": {error.message}"
                if done is not None:
                    running.detail = f"on {done.host}"
                    self.placements.put(done)
                    return done
                waited = time.monotonic() - began
                if here is Presence.RUNNING and there is Presence.UNKNOWN and waited > _LEFT_BEHIND_S:
                    self.sink(Note(f"{target.name} does not answer: what was prepared there for {name} goes when it does"))
                    return placement
                if waited > within_s:
                    raise StateError(
                        f"{name} is on its way from {source.name} to {target.name}, and it cannot be said which of them has it{failure}",
                        code="migration-unsettled",
                        hint=f"see that both answer, then: obelisk instance show {name}",
                    )
                time.sleep(_LOOK_S)

    def _apply(self, decision: Settlement, placement: Placement, source: Host, target: Host) -> Placement | None:
        """Carry a settlement out; None when it has to be looked at again. May be repeated."""
        match decision:
            case Settlement.KEEP_SOURCE | Settlement.START_SOURCE:
                self.clear(placement, target)
                if decision is Settlement.START_SOURCE and not placement.off:
                    source.daemon().start(placement.name)
                    self.sink(Note(f"{placement.name} had ended on {source.name}, and was started again from its state"))
                return replace(placement, to="")
            case Settlement.KEEP_TARGET:
                self.clear(placement, source)
                return replace(placement, host=target.name, to="")
            case Settlement.RESUME_SOURCE | Settlement.RESUME_TARGET:
                (source if decision is Settlement.RESUME_SOURCE else target).daemon().resume(placement.name)
            case Settlement.START_TARGET:
                self._start_anew(placement, source, target)
            case Settlement.RECOVER:
                self._recover(placement, source, target)
            case Settlement.LOST:
                raise StateError(
                    f"{placement.name} is neither on {source.name} nor on {target.name}",
                    code="instance-lost",
                    hint=f"obelisk instance retire {placement.name}",
                )
            case Settlement.WAIT:
                pass
        return None

    def _start_anew(self, placement: Placement, source: Host, target: Host) -> None:
        """Start it on the target from the state there, for it has run there and its memory is lost."""
        daemon = target.daemon()
        there = self.presence(placement, target.name)
        if there is Presence.ABSENT:
            daemon.define(source.daemon().xml(placement.name))
        elif there is Presence.TORN:
            _gone(lambda: daemon.destroy(placement.name))
            if self.presence(placement, target.name) is Presence.ABSENT:
                daemon.define(source.daemon().xml(placement.name))
        daemon.start(placement.name)
        self.sink(Note(f"{placement.name} lost its memory on the way, and was started again on {target.name} from its state"))

    def _recover(self, placement: Placement, source: Host, target: Host) -> None:
        """Go on with post-copy where it was cut off."""
        migration = Migration(placement.name, target.daemon_for_peers, target.data_for_peers, None, post_copy=True, recovery=True)
        with source.daemon().migrating(migration) as ended:
            while (end := ended()) is None:
                time.sleep(_LOOK_S)
        if end.error is not None:
            raise end.error

    def _end_job(self, placement: Placement, source: Host, deadline: float) -> None:
        """Have no migration under way: one whose command is gone is ended, unless the machine has gone over already."""
        daemon = source.daemon()
        with suppress(TransportError, StateError, CommandError):
            while daemon.job(placement.name) and time.monotonic() < deadline:
                state = daemon.states().get(placement.name, State(0, 0))
                if state.reason != _PAUSED_IN_POST_COPY or state.runs:
                    with suppress(CommandError):  # it may have ended meanwhile
                        daemon.abort(placement.name)
                time.sleep(_LOOK_S)

    def clear(self, placement: Placement, host: Host) -> None:
        """Leave nothing of the instance on that host. Only of the one with its uuid. May be repeated."""
        daemon = host.daemon()
        name = placement.name
        if daemon.uuids().get(name) == placement.uuid:
            _gone(lambda: daemon.destroy(name))
            _gone(lambda: daemon.undefine(name))
            if daemon.uuids().get(name) == placement.uuid:
                raise StateError(f"{host.name} does not let {name} go", code="machine-stays", hint=f"virsh destroy {name}, on {host.name}")
        volume = state_volume(placement.uuid)
        if volume in daemon.volumes(POOL):
            daemon.delete_volume(POOL, volume)

    def sweep(self, host: Host) -> tuple[str, ...]:
        """Free what no machine on the host needs of images; the digests that went."""
        daemon = host.daemon()
        with locked(self.placements.directory / f".{host.name}.files.lock"):
            used = {path.name for name in daemon.states() for path in domains.needs(daemon.xml(name)).files}
            volumes = daemon.volumes(POOL)
            going = sorted(whole(volumes) - used)
            for digest in going:
                daemon.delete_volume(POOL, f"{digest}{WHOLE}")
                daemon.delete_volume(POOL, digest)
            return tuple(going)


def presence_of(state: State) -> Presence:
    """What the state of a domain says of the machine."""
    if state.torn:
        return Presence.TORN
    if state.runs:
        return Presence.RUNNING
    return Presence.OFF if state.is_off else Presence.WAITING


def refuse(found: Sequence[ObeliskError]) -> None:
    """Raise what keeps a machine from running on a host, all of it in one message."""
    if not found:
        return
    first = found[0]
    if len(found) == 1:
        raise first
    raise type(first)("; ".join(each.message for each in found), code=first.code, hint=first.hint)


def refuse_draining(host: Host) -> None:
    """Refuse a host that is being emptied.

    Raises:
        StateError: it is.
    """
    if host.draining:
        raise StateError(
            f"{host.name} is being emptied", code="host-draining", hint=f"choose another, or: obelisk host undrain {host.name}"
        )


def state_volume(instance: str) -> str:
    """The name of the volume with the state of the instance with that uuid."""
    return f"{instance}.state"


def mac_of(instance: str) -> str:
    """The hardware address of the instance with that uuid: of QEMU's range, and the same wherever it runs."""
    digits = uuid.UUID(instance).hex[-6:]
    return f"52:54:00:{digits[:2]}:{digits[2:4]}:{digits[4:]}"


def _send(daemon: Virsh, digest: str, path: Path) -> None:
    daemon.make_volume(POOL, digest, path.stat().st_size)
    daemon.upload(POOL, digest, path)
    daemon.make_volume(POOL, f"{digest}{WHOLE}", 0)


def _gone(act: Callable[[], None]) -> None:
    """Do what ends something that may have ended already."""
    with suppress(CommandError, StateError):
        act()
