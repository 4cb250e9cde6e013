"""The embedded engine: drives QEMU on this machine through its monitor, without a daemon.

    start     record says `on` ──> process, which holds the lock `running`
    snapshot  new layer ──> record names it ──> memory is written while the guest runs ──> it stands still ──> writes go to the new layer
              ──> it goes on ──> digests ──> description ──> one rename
    restore   digests are compared ──> record says `restoring` ──> process ends ──> new layer over the snapshot's ──> process, which
              loads memory ──> it is told who it is and what time it is ──> record says that this is done
    fork      a snapshot that nobody sees ──> a machine that only loads it into a file of memory, while those start that map this file, each
              for itself ──> they load the rest ──> each is told who it is ──> only then ports lead to it

A record names a new layer before anything is written to it: over the layer that was written until then it is always right, whether the
machine has come to use it or not.
"""

import secrets
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

from obelisk.errors import CommandError, ObeliskError, StateError
from obelisk.events import Note, Sink, Task, task
from obelisk.instance import moments
from obelisk.instance.records import TEMPLATE, Images, Place, Record, Records
from obelisk.model.instance import (
    HOST_NAME,
    IDENTITY_PORT,
    Consistency,
    Copy,
    Damage,
    Identity,
    Instance,
    Kind,
    Phase,
    Port,
    Power,
    Snapshot,
    Status,
    Wanted,
    Wish,
    check_wanted,
    check_wish,
    chosen,
    expired,
)
from obelisk.system import qemu
from obelisk.system.bubblewrap import Room
from obelisk.system.files import sync_directory, sync_file
from obelisk.system.filesystem import free_memory_bytes, space
from obelisk.system.monitor import Monitor
from obelisk.system.resident import IDENTITY, LAYER, LOADED, NETWORK, STATE, Memory, Resident, Setup, forward_words, free_port, refuse_taken

_OVERHEAD_BYTES = 64 << 20
"""What QEMU itself takes, besides the guest's memory."""
_SPARE_BYTES = 256 << 20
"""What a disk should have left."""
_PRESS_AGAIN_S = 10.0
_IDENTITY_S = 120.0
_LISTENING_S = 3.0
_POLL_S = 0.02
_ENDING_S = 5.0
_AT_ONCE = 4
_MANY_LAYERS = 16
"""Of so many, a start makes one; while it runs, an instance may have"""
_MOST_LAYERS = 100
_STANDING = {"postmigrate", "paused", "finish-migrate"}
_RAM, _DEVICES = "ram", "devices"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Instances below `records`. `room` gives the tools, of which making may take its time; `images` what machines start from."""

    records: Records
    room: Callable[[], Room]
    images: Images
    sink: Sink
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    powers: frozenset[Power] = frozenset({Power.MEMORY, Power.FORK})

    def instances(self) -> tuple[Instance, ...]:
        """See `Engine`."""
        return tuple(self.records.place(name).read().instance for name in self.records.names())

    def instance(self, name: str) -> Instance:
        """See `Engine`."""
        return self.records.place(name).read().instance

    def status(self, name: str) -> Status:
        """See `Engine`."""
        place = self.records.place(name)
        if not place.machine.is_running():
            return Status(Phase.STOPPED)
        ports = place.read().instance.wish.ports
        phase = Phase.RUNNING if place.machine.look() in {"running", ""} else Phase.PAUSED
        address = f"{ports[0].address}:{ports[0].host}" if ports else ""
        return Status(phase, address, place.machine.healthy(), next(iter(place.machine.processes()), 0))

    def create(self, wish: Wish, *, state: Snapshot | None = None) -> Instance:
        """See `Engine`."""
        check_wish(wish)
        self.records.refuse_taken(wish.name)
        image = self.images(wish.image)
        self._refuse_scarce(wish)
        origin = self.records.place(state.instance.name) if state is not None else None
        with self.records.coming(wish.name) as place:
            instance = self._new(wish, image.label, f"{state.instance.name}/{state.id}" if state is not None else "")
            self.records.take_image(image, place)
            layers: tuple[str, ...] = ()
            if state is not None and origin is not None:
                moments.refuse_damaged(origin, state)
                layers = moments.layers_of(state)
                place.link_layers(origin.snapshots / state.id, layers)
            place.write(Record(instance, image.command_line, (*layers, self._layer(place, wish.state_bytes, layers))))
        return instance

    def start(self, name: str) -> Status:
        """See `Engine`."""
        with self.records.owned(name) as place:
            record = self._settled(place)
            if not place.machine.is_running():
                self._refuse_scarce(record.instance.wish, state=False)
                for port in record.instance.wish.ports:
                    refuse_taken(port)
                record = place.set_on(self._shortened(place, record), on=True)
                with task(self.sink, f"start/{name}", f"Starting {name}"):
                    place.machine.start(self.room(), self._setup(place, record))
        return self.status(name)

    def stop(self, name: str, *, timeout_s: float = 90.0, to_return: bool = False) -> bool:
        """See `Engine`."""
        with self.records.owned(name) as place:
            record = self._settled(place, gently=timeout_s > 0)
            by_itself = True
            if place.machine.is_running():
                with task(self.sink, f"stop/{name}", f"Stopping {name}") as running:
                    by_itself = timeout_s > 0 and _power_off(place.machine, timeout_s)
                    place.machine.end()
                    running.detail = "" if by_itself else "by force"
            place.set_on(record, on=to_return and record.instance.on)
        return by_itself

    def retire(self, name: str) -> None:
        """See `Engine`."""
        with self.records.owned(name) as place, task(self.sink, f"retire/{name}", f"Retiring {name}"):
            self.records.remove(place)

    def snapshot(self, name: str, wanted: Wanted) -> Snapshot:
        """See `Engine`."""
        with self.records.owned(name) as place:
            record = self._settled(place)
            have = place.kept()
            check_wanted(wanted, have)
            if wanted.kind is Kind.MEMORY and not place.machine.is_running():
                raise StateError(
                    f"{name} does not run, so it has no memory", code="not-running", hint="say --state-only, or start it before"
                )
            with task(self.sink, f"snapshot/{name}", f"Snapshot of {name}", unit="B") as running:
                made = self._keep(place, record, wanted, running)
                running.detail = f"stood still for {made.paused_ms} ms" if made.paused_ms else made.consistency.value
            for old in expired(place.kept(), record.instance.wish.keep):
                moments.remove(place, old.id)
        return made

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        """See `Engine`."""
        return self.records.place(name).kept()

    def restore(self, name: str, snapshot: str) -> Status:
        """See `Engine`."""
        with self.records.owned(name) as place:
            record = self._settled(place)
            wanted = chosen(snapshot, place.kept())
            with task(self.sink, f"restore/{name}", f"Restoring {name}"):
                moments.refuse_damaged(place, wanted)
                on = wanted.kind is Kind.MEMORY or place.machine.is_running()
                record = replace(record, restoring=wanted.id, instance=replace(record.instance, on=on))
                place.write(record)
                self._bring_back(place, record)
        return self.status(name)

    def delete(self, name: str, snapshot: str) -> None:
        """See `Engine`."""
        with self.records.owned(name) as place:
            self._settled(place)
            broken = [each for each in place.damaged() if each == snapshot]
            moments.remove(place, broken[0] if broken else chosen(snapshot, place.kept()).id)

    def verify(self, name: str) -> tuple[Damage, ...]:
        """See `Engine`."""
        place = self.records.place(name)
        found = [Damage(each, "snapshot.json", "cannot be read") for each in place.damaged()]
        kept = place.kept()
        total = sum(file.size_bytes for each in kept for file in each.files)
        with task(self.sink, f"verify/{name}", f"Reading the snapshots of {name}", total=total, unit="B") as running:
            count = running.counting(total)
            for each in kept:
                found += moments.examine(place, each, on_bytes=count)
        return tuple(found)

    def restore_as(self, name: str, snapshot: str, copy: Copy) -> Instance:
        """See `Forks`."""
        with self.records.owned(name) as place:
            self._settled(place)
            wanted = chosen(snapshot, place.kept())
            wish = self._wish_of(wanted.instance, copy)
            if wanted.kind is Kind.STATE:
                return self.create(wish, state=wanted)
            check_wish(wish)
            self.records.refuse_taken(copy.name)
            moments.refuse_damaged(place, wanted)
            self._refuse_scarce(wish)
            with task(self.sink, f"restore/{copy.name}", f"Restoring {name} as {copy.name}"), self.records.coming(copy.name) as coming:
                layers, home = moments.layers_of(wanted), place.snapshots / wanted.id
                record = self._copied(place, coming, wanted.instance, wish, home, layers, origin=f"{name}/{wanted.id}")
                with self._loaded(coming, record, place.snapshots / wanted.id / moments.MEMORY) as monitor:
                    self._introduce(coming, record, monitor, must=True)
        return record.instance

    def fork(self, name: str, copies: Sequence[Copy]) -> tuple[Instance, ...]:
        """See `Forks`."""
        with self.records.owned(name) as place, ExitStack() as stack:
            record = self._settled(place)
            if not place.machine.is_running():
                raise StateError(f"{name} does not run", code="not-running", hint=f"obelisk instance start {name}")
            wishes: list[Wish] = []
            for copy in copies:
                wishes.append(self._wish_of(record.instance, copy, avoid=[port.host for wish in wishes for port in wish.ports]))
                check_wish(wishes[-1])
                self.records.refuse_taken(copy.name)
            # Of the memory of copies, only what they write is theirs; while they are made, there are two more of it.
            self._refuse_scarce(record.instance.wish)
            with place.machine.monitor() as monitor:
                if not monitor.is_open(IDENTITY):
                    raise _silent(name)
            running = stack.enter_context(task(self.sink, f"fork/{name}", f"Forking {name}", unit="B"))
            draft = stack.enter_context(moments.scratch(place))
            self._still(place, record, Wanted(), draft, running)
            empty = self._mould(place, draft, record)
            coming = [stack.enter_context(self.records.coming(wish.name)) for wish in wishes]
            memory = Memory(draft / _RAM, shared=False)

            def begin(at: Place, wish: Wish) -> Record:
                made = self._copied(place, at, record.instance, wish, place.layers, record.layers, origin=name, empty=empty)
                at.machine.start(self.room(), replace(self._setup(at, made), load=draft / _DEVICES, memory=memory))
                return made

            def finish(at: Place, begun: Future[Record]) -> Instance:
                made = begun.result()
                with self._received(at, memory) as monitor:
                    self._introduce(at, made, monitor, must=True)
                return made.instance

            with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
                # They start while what they are to load is made.
                starting = [pool.submit(begin, *each) for each in zip(coming, wishes, strict=True)]
                try:
                    self._template(draft, record, empty)
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                made = list(pool.map(finish, coming, starting))
        return tuple(made)

    # Steps

    def _settled(self, place: Place, *, gently: bool = True) -> Record:
        """Finish or undo what a killed command has left; what is remembered then. `gently`: a running machine goes on."""
        record = place.read()
        if record.restoring and gently:
            record = self._bring_back(place, record)
        elif gently and place.machine.is_running():
            try:
                _calm(place.machine)
            except CommandError:
                # Whoever was killed may have ended it just before: then its lock is the last of it to go.
                if not place.machine.wait_until_off(_ENDING_S):
                    raise
        place.remove_drafts()
        return record

    def _keep(self, place: Place, record: Record, wanted: Wanted, running: Task) -> Snapshot:
        with moments.drafted(place) as draft:
            snapshot = self._still(place, record, wanted, draft, running)
            return moments.publish(place, draft, snapshot, record.layers)

    def _still(self, place: Place, record: Record, wanted: Wanted, draft: Path, running: Task) -> Snapshot:
        """Have the present layers be written no more, and memory in `draft` where that is wanted; a snapshot without files."""
        wish = record.instance.wish
        if wanted.kind is Kind.MEMORY:
            self._refuse_full(wish.memory_bytes)
        if len(record.layers) >= _MOST_LAYERS:
            raise StateError(
                f"the state of {wish.name} lies in {len(record.layers)} layers, one for each moment that was kept",
                code="too-many-layers",
                hint=f"obelisk instance stop {wish.name}, then start: that joins them",
            )
        have = place.kept()
        layer = self._layer(place, wish.state_bytes, record.layers)
        place.write(replace(record, layers=(*record.layers, layer)))
        consistency, paused_ms = Consistency.OFF, 0
        if place.machine.is_running():
            with place.machine.monitor() as monitor:
                if wanted.kind is Kind.MEMORY:
                    consistency, paused_ms = Consistency.WHOLE, _save(monitor, draft / moments.MEMORY, place, layer, running)
                else:
                    began = time.monotonic()
                    with place.machine.frozen(monitor) as froze:
                        consistency = Consistency.FROZEN if froze else Consistency.CRASH
                        _put_over(monitor, layer)
                    paused_ms = _since(began) if froze else 0
        return Snapshot(
            id=draft.name.removeprefix("."),
            instance=record.instance,
            kind=wanted.kind,
            consistency=consistency,
            at=self.now(),
            name=wanted.name,
            description=wanted.description,
            parent=have[-1].id if have else "",
            paused_ms=paused_ms,
        )

    def _bring_back(self, place: Place, record: Record) -> Record:
        """What a record that says `restoring` asks for. May be cut anywhere, and be done again."""
        wanted = next((each for each in place.kept() if each.id == record.restoring), None)
        if wanted is None:  # its directory was taken away by hand
            record = replace(record, restoring="")
            place.write(record)
            return record
        place.machine.end()
        layers = moments.layers_of(wanted)
        place.link_layers(place.snapshots / wanted.id, layers)
        layer = self._layer(place, record.instance.wish.state_bytes, layers)
        instance = replace(record.instance, generation=str(uuid.uuid4()))
        record = replace(record, layers=(*layers, layer), instance=instance)
        place.write(record)
        try:
            if wanted.kind is Kind.MEMORY:
                with self._loaded(place, record, place.snapshots / wanted.id / moments.MEMORY) as monitor:
                    self._introduce(place, record, monitor, must=False)
            elif instance.on:
                place.machine.start(self.room(), self._setup(place, record))
        except ObeliskError:
            place.machine.end()
            place.write(replace(record, restoring="", instance=replace(instance, on=False)))
            raise
        record = replace(record, restoring="")
        place.write(record)
        return record

    def _mould(self, place: Place, draft: Path, record: Record) -> Path:
        """What a template will fill, so that copies can have it as their own before; an empty layer, as each of them needs one."""
        at = Place(draft / TEMPLATE)
        at.layers.mkdir(parents=True)
        at.link_layers(place.layers, record.layers)
        at.link_image(place)
        (draft / _DEVICES).touch(mode=0o600)
        with (draft / _RAM).open("xb") as ram:
            ram.truncate(record.instance.wish.memory_bytes)
        return at.layers / f"{self._layer(at, record.instance.wish.state_bytes, record.layers)}.qcow2"

    def _template(self, draft: Path, record: Record, empty: Path) -> None:
        """Turn saved memory into a file that machines can map, and their devices into another."""
        at = Place(draft / TEMPLATE)
        layer = self._layer(at, record.instance.wish.state_bytes, record.layers, like=empty)
        loading = replace(record, layers=(*record.layers, layer))
        try:
            with self._loaded(at, loading, draft / moments.MEMORY, memory=Memory(draft / _RAM, shared=True)) as monitor:
                monitor.set_capabilities(mapped_ram=False, x_ignore_shared=True)
                monitor.save(_DEVICES, _unseen)
        finally:
            at.machine.end()
        shutil.copyfile(at.directory / _DEVICES, draft / _DEVICES)

    def _copied(  # noqa: PLR0913 - where from, where to, and what
        self,
        place: Place,
        coming: Place,
        original: Instance,
        wish: Wish,
        home: Path,
        layers: tuple[str, ...],
        *,
        origin: str,
        empty: Path | None = None,
    ) -> Record:
        """Lay out a copy, which shares the layers in `home`."""
        coming.link_image(place)
        coming.link_layers(home, layers)
        made = replace(
            self._new(wish, original.label, origin),
            machine=original.machine,
            processor=original.processor,
            accel=original.accel,
            on=True,
        )
        record = Record(made, place.read().command_line, (*layers, self._layer(coming, wish.state_bytes, layers, like=empty)))
        coming.write(record)
        return record

    @contextmanager
    def _loaded(self, place: Place, record: Record, file: Path, *, memory: Memory | None = None) -> Iterator[Monitor]:
        """Start a machine that stands still with what the file holds; its monitor."""
        place.machine.start(self.room(), replace(self._setup(place, record), load=file, memory=memory))
        with self._received(place, memory) as monitor:
            yield monitor

    @contextmanager
    def _received(self, place: Place, memory: Memory | None) -> Iterator[Monitor]:
        """Have a machine that was started for it load its file; its monitor."""
        with ExitStack() as talking:
            try:
                monitor = talking.enter_context(place.machine.monitor())
                mapped = memory is None or memory.shared
                monitor.set_capabilities(mapped_ram=mapped, x_ignore_shared=not mapped)
                monitor.load(LOADED)
            except CommandError as error:
                said = (place.directory / "qemu.log").read_text(errors="replace")
                raise CommandError(error.argv, error.status, f"{said}\n{error.output}", code="machine-failed") from error
            yield monitor

    def _introduce(self, place: Place, record: Record, monitor: Monitor, *, must: bool) -> None:
        """Have a machine that was loaded run, tell it who it is and what time it is, and only then have ports lead to it.

        Raises:
            StateError: `copy-silent`: it `must` take that, and does not.
        """
        instance = record.instance
        identity = Identity(instance.name, instance.uuid, instance.mac, secrets.token_hex(32))
        monitor.resume()
        deadline = time.monotonic() + _LISTENING_S
        while not (listens := monitor.is_open(IDENTITY)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        said = place.machine.tell_identity(identity.to_line(self.now()), timeout_s=_IDENTITY_S) if listens else ""
        if not said and must:
            raise _silent(instance.name)
        if not said:
            self.sink(Note(f"{instance.name} does not listen on {IDENTITY_PORT}: its clock is that of the snapshot"))
        for port in instance.wish.ports:
            monitor.forward(NETWORK, forward_words(port, _address_in(said)))

    def _setup(self, place: Place, record: Record) -> Setup:
        root = "image/disk.raw" if (place.directory / "image/disk.raw").exists() else None
        return Setup(record.instance, "image/linux", "image/initrd", record.command_line, root, f"layers/{record.layers[-1]}.qcow2")

    def _layer(self, place: Place, size_bytes: int, below: tuple[str, ...], *, like: Path | None = None) -> str:
        """Make an empty layer, over the last of those below; its name. `like` is another one, of the same size and over the same."""
        name = secrets.token_hex(8)
        if like is not None:
            shutil.copyfile(like, place.layers / f"{name}.qcow2")
        else:
            qemu.make_layer(self.room(), place.layers, f"{name}.qcow2", size_bytes, below=f"{below[-1]}.qcow2" if below else "")
        sync_file(place.layers / f"{name}.qcow2")
        sync_directory(place.layers)
        return name

    def _shortened(self, place: Place, record: Record) -> Record:
        """The state in fewer layers, while nothing runs. Snapshots have links to all layers below them, so those that none has are last."""
        layers = list(record.layers)
        while len(layers) > 1 and all(_only_here(place, layer) for layer in layers[-2:]):
            qemu.join_layers(self.room(), place.layers, f"{layers[-1]}.qcow2")
            sync_file(place.layers / f"{layers[-2]}.qcow2")
            layers.pop()
        if len(layers) > _MANY_LAYERS:
            whole = secrets.token_hex(8)
            qemu.flatten_layers(self.room(), place.layers, f"{layers[-1]}.qcow2", f"{whole}.qcow2")
            sync_file(place.layers / f"{whole}.qcow2")
            sync_directory(place.layers)
            layers = [whole]
        if tuple(layers) != record.layers:
            record = replace(record, layers=tuple(layers))
            place.write(record)
            place.remove_drafts()
        return record

    def _new(self, wish: Wish, label: str, origin: str) -> Instance:
        number = uuid.uuid4()
        # Locally administered, as QEMU's own are.
        mac = "52:54:00:" + ":".join(number.hex[at : at + 2] for at in (0, 2, 4))
        return Instance(
            wish=replace(wish, ports=self._placed(wish.ports, ())),
            uuid=str(number),
            mac=mac,
            generation=str(uuid.uuid4()),
            created=self.now(),
            label=label,
            accel=qemu.acceleration(),
            origin=origin,
        )

    def _wish_of(self, original: Instance, copy: Copy, *, avoid: Sequence[int] = ()) -> Wish:
        credentials = tuple((name, copy.name if name == HOST_NAME else value) for name, value in original.wish.credentials)
        return replace(original.wish, name=copy.name, ports=self._placed(copy.ports, avoid), credentials=credentials)

    def _placed(self, ports: Sequence[Port], avoid: Sequence[int]) -> tuple[Port, ...]:
        """The ports, with numbers that are free where none was asked for, and that no other instance has, running or not."""
        taken = [port.host for instance in self.instances() for port in instance.wish.ports]
        taken += [*avoid, *(port.host for port in ports)]
        placed = []
        for port in ports:
            placed.append(port if port.host else replace(port, host=free_port(port.address, avoid=taken)))
            taken.append(placed[-1].host)
        return tuple(placed)

    def _refuse_scarce(self, wish: Wish, *, state: bool = True) -> None:
        """Refuse what this machine has no memory or disk for.

        Raises:
            StateError: `no-memory`, `no-space`.
        """
        have, need = free_memory_bytes(), wish.memory_bytes + _OVERHEAD_BYTES
        if have < need:
            raise StateError(
                f"{wish.name} needs {need >> 20} MiB of memory, and {have >> 20} MiB are free",
                code="no-memory",
                hint="stop another instance, or give it less --memory",
            )
        if state:
            self._refuse_full(wish.state_bytes)

    def _refuse_full(self, need: int) -> None:
        have = space(self.records.root).free_bytes - _SPARE_BYTES
        if have < need:
            raise StateError(
                f"{need >> 20} MiB are needed below {self.records.root}, and {max(have, 0) >> 20} MiB are free",
                code="no-space",
                hint="free some space there: obelisk instance delete, obelisk instance retire",
            )


def _save(monitor: Monitor, file: Path, place: Place, layer: str, running: Task) -> int:
    """Write memory to a file while the guest runs and, when it stands still at the end, have it write to a new layer; for how many ms."""
    monitor.set_capabilities(mapped_ram=True, x_ignore_shared=False)
    try:
        saved = monitor.save(str(file.relative_to(place.directory)), running.progress)
        began = time.monotonic()
        _put_over(monitor, layer)
    finally:
        if place.machine.is_running() and monitor.run_state() in _STANDING:
            monitor.resume()
    return saved.downtime_ms + _since(began)


def _only_here(place: Place, layer: str) -> bool:
    return (place.layers / f"{layer}.qcow2").stat().st_nlink == 1


def _put_over(monitor: Monitor, layer: str) -> None:
    monitor.put_layer_over(STATE, f"layers/{layer}.qcow2", f"{LAYER}-{layer}")


def _calm(machine: Resident) -> None:
    """Have a running machine go on that a killed command has left standing, frozen, or half saved."""
    with machine.monitor() as monitor:
        if not monitor.saved().ended:
            monitor.cancel_saving()
        machine.thaw(monitor)
        if monitor.run_state() in _STANDING:
            monitor.resume()
        monitor.drop_unused_layers(STATE, f"{LAYER}-")


def _power_off(machine: Resident, timeout_s: float) -> bool:
    """Press the power button now and then, for until the guest has found it nobody notices; whether it went down by itself."""
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        with suppress(CommandError), machine.monitor() as monitor:  # it may go down between the two looks at it
            monitor.press_power_button()
        if machine.wait_until_off(min(left, _PRESS_AGAIN_S)):
            return True
    return not machine.is_running()


def _address_in(said: str) -> str:
    """The address that a machine says it has; empty when it names none. Its words are anybody's: what is no address is none."""
    with suppress(ValueError):
        return str(IPv4Address(said.partition(" ")[2]))
    return ""


def _silent(name: str) -> StateError:
    return StateError(
        f"{name} does not take another identity: nothing in it answers on {IDENTITY_PORT}",
        code="copy-silent",
        hint="wait until it has booted; images of older versions of Obelisk cannot: build them again",
    )


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _unseen(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""
