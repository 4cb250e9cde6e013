"""Applications that a machine has: what is installed, how another version comes in its place, and how it goes back.

    KEPT/<name>/state.json            which image is installed, which was before, and what is being tried; written durably
               /images/<id>/          the image: manifest.json and its parts
               /incoming/<id>/        one that is coming from a channel (`obelisk.sandbox.channel`), which is moved from here
               /icon.png              of a program with windows, whose desktop entry names it
               /lock                  held by who changes it
    RUN/installed/<name>              a link to the plan of the version that runs; its unit starts through it

    put in place ──> rehearse ──> note the trial ──> stop ──> save data ──> link, units, start ──healthy──> note it as installed ──> sweep
                        │               │                                          │
                        │               └───── cut anywhere: the next look at it ──┴── not healthy: stop, data back, old one again
                        └── not healthy beside the one that runs (`obelisk.sandbox.rehearsal`): nothing was touched

The state file decides. Until it says so in one rename, the version before is the installed one, whatever runs at the moment; `settle`
makes the machine agree with it, and is the first thing that every command does, and the unit itself after a restart.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from obelisk.errors import ObeliskError, StateError, TrustError
from obelisk.events import Sink, task
from obelisk.model.application import Service
from obelisk.model.canonical import Json, canonical
from obelisk.model.image import parse_manifest
from obelisk.sandbox import entries
from obelisk.sandbox.data import Data, How
from obelisk.sandbox.entries import Description
from obelisk.sandbox.units import Seat
from obelisk.store import StoredImage
from obelisk.store.images import MANIFEST
from obelisk.system.files import clone_or_copy, locked, sync_directory, write_durably
from obelisk.system.filesystem import sync_filesystem
from obelisk.system.namespace import remove_tree
from obelisk.system.systemctl import Unit

SCHEMA = "obelisk.installed/1"
INCOMING = "incoming"
_DRAFT = ".draft"
_FAILED = 8  # a channel's versions only grow: of those that failed, the last few are all that it can bring


class Manager(Protocol):
    """What is asked of systemd; `obelisk.system.systemctl` does it."""

    def require(self) -> None:
        """Find out whether it is there."""

    def reload(self) -> None:
        """Read unit files anew."""

    def enable(self, *units: str) -> None:
        """Start units with the machine."""

    def disable(self, *units: str) -> None:
        """Start them no longer of themselves."""

    def start(self, *units: str) -> None:
        """Start units."""

    def stop(self, *units: str) -> None:
        """Stop units."""

    def forget(self, *units: str) -> None:
        """Do not tell any more that units have failed."""

    def restart_later(self, *units: str) -> None:
        """Start units anew when this process has ended."""

    def look(self, unit: str) -> Unit:
        """How a unit is."""


class Maker(Protocol):
    """Makes a version ready."""

    def __call__(self, image: StoredImage, *, in_use: bool = False) -> "Made":
        """Have everything in place; data that is `in_use` by another version stays as it is."""


class Rehearsals(Protocol):
    """Where a version runs beside the installed one; `obelisk.sandbox.rehearsal` has it."""

    @property
    def next(self) -> Seat:
        """The seat of what is rehearsed."""

    def rehearse(self, image: StoredImage) -> bool:
        """Run it until it is healthy, or raise StateError; False where it cannot run beside another."""

    def clear(self) -> None:
        """Have nothing left of a rehearsal."""


@dataclass(frozen=True, slots=True)
class Trial:
    """An image that runs, or is about to, without being installed yet. `saved`: the data before it is."""

    image: str
    saved: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What is installed, by the ids of images; empty for none.

    `failed` are those that did not become healthy here, or that somebody went back from: no channel brings them again by itself.
    """

    current: str = ""
    prior: str = ""
    trial: Trial | None = None
    failed: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The state as it is stored."""
        trial: Json = None if self.trial is None else {"image": self.trial.image, "saved": self.trial.saved}
        failed: dict[str, Json] = {"failed": list(self.failed)} if self.failed else {}
        return canonical({"schema": SCHEMA, "current": self.current, "prior": self.prior, "trial": trial, **failed})

    def settled_at(self, target: str) -> "State":
        """The state once that image is the installed one."""
        return State(target, self.current, failed=tuple(each for each in self.failed if each != target))

    def without(self, image: str) -> "State":
        """The state in which no channel brings that image again by itself. Where nothing is installed, that is not kept."""
        if not self.current:
            return self
        others = [each for each in self.failed if each != image]
        return replace(self, failed=(*others, image)[-_FAILED:])


def parse_state(data: bytes) -> State:
    """The state in stored bytes.

    Raises:
        TrustError: they are none that this version reads.
    """
    try:
        raw: Mapping[str, Any] = json.loads(data)
        known = raw["schema"] == SCHEMA
        trial = None if raw["trial"] is None else Trial(raw["trial"]["image"], raw["trial"]["saved"])
        state = State(raw["current"], raw["prior"], trial, tuple(map(str, raw.get("failed", ()))))
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError(f"the note of what is installed is damaged: {error}", code="installed-damaged", hint="install it again") from error
    if not known:
        raise TrustError("what is installed was noted by another version of obelisk", code="installed-schema", hint="use that version")
    return state


@dataclass(frozen=True, slots=True)
class Made:
    """A version that is ready to start: where its plan is, and what it is to the machine. Without a `service` it is a command.

    `shown` is what a desktop entry says of it; None: it has none.
    """

    plan: Path
    units: Mapping[str, str]
    program: str
    service: Service | None
    shown: Description | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """Directories: what is `kept` of this application, unit files, programs that people start, and desktop entries.

    `subvolumes`: where the file system has such, its data may be one, of which snapshots are taken.
    """

    kept: Path
    units: Path
    programs: Path
    entries: Path
    subvolumes: bool = True


@dataclass(frozen=True, slots=True)
class Changed:
    """What came of a change: which image is installed now and which was before, and how its data was saved."""

    current: str
    prior: str
    how: How


class Installation:
    """One application of the machine.

    `make` makes a version ready and `clear` undoes that; `healthy` waits until it is healthy, or raises StateError.
    """

    def __init__(  # noqa: PLR0913 - keywords name what a test of it plays
        self,
        seat: Seat,
        places: Places,
        systemd: Manager,
        *,
        make: Maker,
        clear: Callable[[StoredImage], object],
        healthy: Callable[[Made], None],
        rehearsals: Rehearsals,
        sink: Sink,
    ) -> None:
        self.seat = seat
        self.places = places
        self._systemd = systemd
        self._make = make
        self._clear = clear
        self._healthy = healthy
        self._rehearsals = rehearsals
        self._sink = sink
        self._data = Data(seat.data, subvolumes=places.subvolumes)

    @property
    def next(self) -> Seat:
        """The seat of a version that is rehearsed."""
        return self._rehearsals.next

    @property
    def state(self) -> State:
        """What the state file says; an empty state where there is none."""
        file = self.places.kept / "state.json"
        return parse_state(file.read_bytes()) if file.exists() else State()

    def image(self, image_id: str) -> StoredImage:
        """A version that is kept here.

        Raises:
            TrustError: it is damaged.
        """
        directory = self.places.kept / "images" / image_id
        try:
            return StoredImage(image_id, parse_manifest((directory / MANIFEST).read_bytes(), image_id=image_id), directory, 0)
        except FileNotFoundError as error:
            raise TrustError(f"the image {image_id[:12]} is gone", code="installed-damaged", hint="install it again") from error

    @contextmanager
    def changing(self) -> Iterator[State]:
        """The state, settled; nobody else changes it during the block."""
        self.places.kept.mkdir(parents=True, exist_ok=True)
        with locked(self.places.kept / "lock"):
            yield self._settle(self.state)

    def install(self, image: StoredImage, state: State, *, rehearsed: bool = True) -> Changed:
        """Put an image in the place of the installed one, or there as the first. Call it within `changing`.

        Where it can run beside the installed one it does so first, unless `rehearsed` is false.

        Raises:
            StateError: it did not become healthy, and what was installed before is again, or has gone on.
        """
        self._keep(image)
        if image.id == state.current:
            return self._renew(state)
        return self._change(state, image.id, put_back=False, rehearsed=rehearsed)

    def rollback(self, state: State, *, with_data: bool) -> Changed:
        """Put the prior version in the place of the installed one, with its data as it left it or with what there is.

        Raises:
            StateError: there is none before, or it did not become healthy and the installed one runs again.
        """
        if not state.prior:
            raise StateError(f"no version of {self.seat.name} was installed before", code="no-prior", hint="install the one that you want")
        if with_data and not self._data.has(state.prior):
            raise StateError(
                f"no data is kept as the prior version of {self.seat.name} left it",
                code="no-prior-data",
                hint="go back without --with-data",
            )
        return self._change(state, state.prior, put_back=with_data, leaving=True)

    def remove(self, *, with_data: bool) -> None:
        """Undo all of it. Data stays unless it is told to go."""
        with self._moving():
            self._withdraw(())
            self._put_program(None)
        # From here on nothing is installed; what a cut leaves is swept by the next removal or installation.
        (self.places.kept / "state.json").unlink(missing_ok=True)
        sync_directory(self.places.kept)
        if with_data:
            self._data.remove()
        else:
            self._data.keep_only("")
            self._data.rest()
        self._sweep(State())
        remove_tree(self.places.kept)

    def prepare(self) -> None:
        """Have the installed version ready to start after a restart of the machine. Its own unit, or program, runs this.

        Nothing of the application runs then, so a trial that was cut is undone without a word to systemd.

        Raises:
            StateError: nothing is installed; or its units were another version's, and it starts again with its own.
        """
        if not (self.places.kept / "state.json").exists():
            raise StateError(f"{self.seat.name} is not installed", code="not-installed", hint="obelisk app list")
        with locked(self.places.kept / "lock"), self._moving():
            state = self._data_settled(self.state)
            if not state.current:
                raise StateError(f"{self.seat.name} is not installed", code="not-installed", hint="install it again")
            made = self._make(self.image(state.current))
            differ = self._write_units(made.units)
            self._link(made)
        if differ:
            self._systemd.reload()
            self._systemd.restart_later(*made.units)
            raise StateError(
                f"the units of {self.seat.name} were another version's", code="units-renewed", hint="it starts again by itself"
            )

    # The transition, step by step

    def _rehearse(self, state: State, target: str) -> None:
        """Nothing is stopped for a version that does not become healthy beside the one that runs."""
        if self._systemd.look(self.seat.service).active != "active":
            return
        image = self.image(target)
        with task(self._sink, "app/rehearse", f"{self.seat.name}: {image.manifest.version} beside the one that runs") as running:
            try:
                if not self._rehearsals.rehearse(image):
                    running.detail = "cannot run beside it"
            except (ObeliskError, OSError) as error:
                after = state.without(target) if isinstance(error, StateError) else state  # else it is not to blame
                self._save(after)
                self._sweep(after)
                raise StateError(
                    f"{self.seat.name} was not changed: {error}; what was installed before has gone on",
                    code="app-unhealthy",
                    hint=f"journalctl --unit {self.next.service}",
                ) from error

    def _change(self, state: State, target: str, *, put_back: bool, leaving: bool = False, rehearsed: bool = False) -> Changed:
        made = self._make(self.image(target), in_use=True)
        if made.service is not None:
            self._systemd.require()
            if rehearsed:
                self._rehearse(state, target)
        with task(self._sink, "app/change", f"{self.seat.name}: {self.image(target).manifest.version}") as running:
            self._save(replace(state, trial=Trial(target)))
            started = False
            try:
                with self._moving():
                    self._stop()
                    how = self._data.save(state.current) if state.current else How.NOTHING
                    self._data.begin()
                    self._save(replace(state, trial=Trial(target, saved=how is not How.NOTHING)))
                    if put_back:
                        self._data.put_back(target)
                    made = self._make(self.image(target))  # now with its data
                    self._put(made)
                if made.service is not None:
                    started = True
                    self._start(made)
                    self._healthy(made)
            except KeyboardInterrupt:
                self._settle(self.state)
                raise
            except (ObeliskError, OSError) as error:
                settled = self._settle(self.state)
                if started:  # else it is not to blame
                    self._save(settled.without(target))
                before = "what was installed before is again" if state.current else "nothing is installed"
                raise StateError(
                    f"{self.seat.name} was not changed: {error}; {before}",
                    code="app-unhealthy",
                    hint=f"journalctl --unit {self.seat.service}",
                ) from error
            running.detail = f"data: {how}" if state.current else ""
        after = state.settled_at(target)
        after = after.without(state.current) if leaving else after
        self._save(after)
        self._sweep(after)
        return Changed(after.current, after.prior, how)

    def _renew(self, state: State) -> Changed:
        """The same image once more: what the operator's files or the machine have changed takes effect."""
        self._make(self.image(state.current), in_use=True)
        with self._moving():
            self._stop()
            made = self._make(self.image(state.current))
            self._put(made)
        if made.service is not None:
            self._systemd.require()
            self._start(made)
            self._healthy(made)
        return Changed(state.current, state.prior, How.NOTHING)

    def _settle(self, state: State) -> State:
        """Undo a trial that was cut or that failed."""
        self._rehearsals.clear()
        if state.trial is not None:
            made = self._make(self.image(state.current), in_use=True) if state.current else None
            with self._moving():
                self._stop()
                if made is None:
                    self._withdraw(())
                    self._put_program(None)
                else:
                    self._put(made)
                state = self._data_settled(state)
                if made is not None:
                    self._make(self.image(state.current))
            if made is not None and made.service is not None:
                self._start(made)
        self._sweep(state)
        return state

    def _data_settled(self, state: State) -> State:
        """The data as the installed version left it, and the trial no longer noted."""
        if state.trial is None:
            return state
        if state.trial.saved:
            self._data.put_back(state.current)
        settled = replace(state, trial=None)
        self._save(settled)
        return settled

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Nothing starts the application during the block: its unit waits for the lock, and finds no link before."""
        self.seat.moving.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.seat.moving):
            self._unlink()
            yield

    def _stop(self) -> None:
        """The service alone: the sockets, if any, stay open, and connections wait."""
        if (self.places.units / self.seat.service).exists():
            self._systemd.stop(self.seat.service)

    def _put(self, made: Made) -> None:
        socket = self.places.units / self.seat.socket
        same_ports = socket.exists() and socket.read_text() == made.units.get(self.seat.socket)
        # The sockets stay open, unless they are others now, or none.
        self._withdraw([name for name in made.units if name != self.seat.socket or same_ports])
        if self._write_units(made.units):
            self._systemd.reload()
        self._put_program(made)
        self._link(made)

    def _put_program(self, made: Made | None) -> None:
        """Have the program by which people start this version, and its entry on desktops; or neither."""
        program, entry, icon = self.places.programs / self.seat.name, self.places.entries / self.seat.entry, self.places.kept / "icon.png"
        if made is None or made.service is not None:
            program.unlink(missing_ok=True)
        else:
            program.parent.mkdir(parents=True, exist_ok=True)
            write_durably(program, made.program.encode(), mode=0o755)
        if made is None or made.shown is None:
            entry.unlink(missing_ok=True)
            icon.unlink(missing_ok=True)
            return
        if made.shown.icon:
            write_durably(icon, made.shown.icon)
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_durably(entry, entries.text(self.seat.name, program, made.shown, icon if made.shown.icon else None).encode())

    def _withdraw(self, staying: Sequence[str]) -> None:
        """Stop and forget the units that are there and do not stay."""
        going = [name for name in (self.seat.socket, self.seat.service) if name not in staying and (self.places.units / name).exists()]
        if going:
            self._systemd.disable(*going)
            self._systemd.stop(*going)
            self._systemd.forget(*going)
            for name in going:
                (self.places.units / name).unlink()
            self._systemd.reload()

    def _start(self, made: Made) -> None:
        self._systemd.enable(*made.units)
        self._systemd.start(*sorted(made.units, reverse=True))  # the socket before its service

    def _write_units(self, units: Mapping[str, str]) -> bool:
        """Have these unit files and no others; whether any was different."""
        differ = False
        for name in (self.seat.service, self.seat.socket):
            file = self.places.units / name
            there = file.read_text() if file.exists() else None
            if there == units.get(name):
                continue
            differ = True
            if name in units:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_durably(file, units[name].encode())
            else:
                file.unlink(missing_ok=True)
        return differ

    def _link(self, made: Made) -> None:
        link = self.seat.start.parent
        link.parent.mkdir(parents=True, exist_ok=True)
        draft = link.with_name(f".{link.name}.new")
        draft.unlink(missing_ok=True)
        draft.symlink_to(made.plan)
        draft.rename(link)

    def _unlink(self) -> None:
        self.seat.start.parent.unlink(missing_ok=True)

    def _save(self, state: State) -> None:
        if state == State():
            (self.places.kept / "state.json").unlink(missing_ok=True)
            sync_directory(self.places.kept)
            return
        write_durably(self.places.kept / "state.json", state.to_bytes())

    def _keep(self, image: StoredImage) -> None:
        """A copy of the image that nothing else removes: complete, or not there."""
        target = self.places.kept / "images" / image.id
        if target.exists():
            return
        if image.directory.parent == self.places.kept / INCOMING:  # it came here for this
            target.parent.mkdir(parents=True, exist_ok=True)
            sync_filesystem(image.directory)
            image.directory.rename(target)
            sync_directory(target.parent)
            return
        draft = target.with_name(_DRAFT)
        remove_tree(draft)
        draft.mkdir(parents=True)
        for part in image.manifest.parts:
            clone_or_copy(image.directory / part.file, draft / part.file)
        shutil.copyfile(image.directory / MANIFEST, draft / MANIFEST)
        sync_filesystem(draft)
        draft.rename(target)
        sync_directory(target.parent)

    def _sweep(self, state: State) -> None:
        """Forget what neither is installed nor was just before."""
        self._data.keep_only(state.prior)
        for each in (self.places.kept / "images").glob("*"):
            if each.name not in {state.current, state.prior}:
                if each.name != _DRAFT and (each / MANIFEST).exists():
                    self._clear(self.image(each.name))
                remove_tree(each)
