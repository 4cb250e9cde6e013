"""The embedded engine with little guests, for tests that run machines; and operations that chance chooses, some of them killed.

machines.py ROOT TREE OPERATION WORDS…     one operation in a process of its own, which the story kills
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine_contract import Subject
from little import IMAGE, ask

from obelisk.errors import InputError, StateError
from obelisk.events import silent
from obelisk.instance.embedded import Embedded
from obelisk.instance.records import Bootable, Records
from obelisk.model.instance import Copy, Kind, Port, Wanted
from obelisk.system.bubblewrap import Room
from obelisk.system.resident import Resident

_UP_S = 90.0


def engine_of(root: Path, room: Room, image: Bootable | None = None) -> Embedded:
    """An engine that knows one image."""

    def images(wanted: str) -> Bootable:
        if image is None or wanted != image.id:
            raise InputError(f"there is no image {wanted}", code="image-missing")
        return image

    return Embedded(Records(root), lambda: room, images, silent)


class Machines(Subject):
    """Machines below a directory."""

    kind = "little"
    image = IMAGE

    def __init__(self, root: Path, room: Room, image: Bootable) -> None:
        self.embedded = engine_of(root, room, image)
        self.engine = self.embedded
        self.root = root
        self.room = room

    def ask(self, name: str, path: str) -> list[str]:
        """What it answers; waits until it does."""
        port = self.engine.instance(name).wish.ports[0].host
        deadline = time.monotonic() + _UP_S
        while True:
            try:
                return ask(port, path)
            except OSError:
                if time.monotonic() > deadline or not self.engine.status(name).running:
                    raise
                time.sleep(0.05)

    def set_words(self, name: str, *, memory: str, state: str) -> None:
        assert self.ask(name, f"set?{memory}&{state}")[0] == "set"

    def words(self, name: str) -> tuple[str, str]:
        memory, state, *_ = self.ask(name, "words")
        return memory, state

    def spoil(self, name: str, snapshot: str) -> None:
        file = self.root / name / "snapshots" / snapshot / "memory"
        file.chmod(0o600)
        with file.open("r+b") as memory:
            memory.seek(-5000, 2)
            memory.write(b"spoilt")

    def busy(self, name: str) -> AbstractContextManager[object]:
        return self.embedded.records.owned(name)

    def processes(self) -> list[int]:
        """All machines below the directory, whoever knows of them."""
        return sorted({process for running in self.root.glob("**/running") for process in Resident(running.parent).processes()})

    def clear(self) -> None:
        """Retire everything."""
        for each in self.engine.instances():
            self.engine.retire(each.name)
        self.embedded.records.sweep()
        assert self.processes() == []


@dataclass
class _Known:
    """What an instance should hold. `memory` None: it does not run."""

    memory: str | None
    state: str
    kept: dict[str, tuple[str | None, str]] = field(default_factory=dict)


class Story:
    """Instances, and what they should be."""

    def __init__(self, machines: Machines, seed: int) -> None:
        self.machines = machines
        self.engine = machines.engine
        self.chance = random.Random(seed)
        self.known: dict[str, _Known] = {}
        self.number = 0
        self.done: dict[str, int] = {}

    def run(self, operations: int, tell: Callable[[str], None] = lambda _line: None) -> None:
        """Do that many, and compare after each."""
        self._create()
        steps = (
            (6, self._write),
            (5, self._snapshot),
            (4, self._restore),
            (3, self._copy),
            (3, self._delete),
            (1, self._stop),
            (2, self._retire),
            (6, self._kill),
        )
        for number in range(operations):
            step = self.chance.choices([step for _, step in steps], [weight for weight, _ in steps])[0]
            what = step()
            self.done[step.__name__] = self.done.get(step.__name__, 0) + 1
            tell(f"{number + 1} {what}")
            self._compare(what)

    # Steps; each says what it did

    def _create(self) -> str:
        name = self._fresh()
        self.engine.create(self.machines.wish(name, keep=4))
        self._boot(name)
        self.known[name] = _Known("", "")
        return f"create {name}"

    def _write(self) -> str:
        name, known = self._any()
        self._running(name, known)
        known.memory, known.state = f"m{self.number}", f"s{self.number}"
        self.number += 1
        self.machines.set_words(name, memory=known.memory, state=known.state)
        return f"write {name}"

    def _snapshot(self) -> str:
        name, known = self._any()
        kind = Kind.STATE if known.memory is None else self.chance.choice(list(Kind))
        made = self.engine.snapshot(name, Wanted(kind))
        known.kept[made.id] = (known.memory if kind is Kind.MEMORY else None, known.state)
        self._expire(name, known)
        return f"snapshot {name} {kind.value}"

    def _restore(self) -> str:
        name, known = self._any()
        if not known.kept:
            return self._snapshot()
        chosen = self.chance.choice(list(known.kept))
        self.engine.restore(name, chosen)
        self._went_back(known, chosen)
        return f"restore {name} {chosen}"

    def _copy(self) -> str:
        if len(self.known) >= 4:
            return self._retire()
        name, known = self._any()
        self._running(name, known)
        fresh = self._fresh()
        self.engine.fork(name, [Copy(fresh, (Port(0, 80),))])
        self.known[fresh] = _Known(known.memory, known.state)
        return f"fork {name} {fresh}"

    def _delete(self) -> str:
        name, known = self._any()
        if not known.kept:
            return self._snapshot()
        chosen = self.chance.choice(list(known.kept))
        self.engine.delete(name, chosen)
        del known.kept[chosen]
        return f"delete {name} {chosen}"

    def _stop(self) -> str:
        name, known = self._any()
        self.engine.stop(name, timeout_s=0)
        known.memory = None
        return f"stop {name}"

    def _retire(self) -> str:
        if len(self.known) < 2:
            return self._write()
        name, _ = self._any()
        self.engine.retire(name)
        del self.known[name]
        return f"retire {name}"

    def _kill(self) -> str:
        """Kill the command in the middle of an operation: what it did is whole, or was not begun."""
        name, known = self._any()
        self._running(name, known)
        what = self.chance.choice(["snapshot", "restore", "fork", "stop"])
        if what == "restore" and not known.kept:
            what = "snapshot"
        fresh = self._fresh() if what == "fork" else ""
        if what == "fork" and len(self.known) >= 4:
            what = "snapshot"
        chosen = self.chance.choice(list(known.kept)) if what == "restore" else ""
        words = {"snapshot": [name], "restore": [name, chosen], "fork": [name, fresh], "stop": [name]}[what]
        place = [str(self.machines.root), str(self.machines.room.tree)]
        argv = [sys.executable, "-s", __file__, self.machines.kind, *place, what, *words]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(__file__).parent / each) for each in ("", "unit"))}
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(self.chance.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ended = process.returncode == 0
        self._start_next(name)
        if what == "stop" and not self._still(name, known):
            known.memory = ""
        if what == "restore" and not self._still(name, known):
            self._went_back(known, chosen)
            known.memory = known.memory or ""
        if what == "snapshot":
            new = {each.id for each in self.engine.snapshots(name)} - known.kept.keys()
            known.kept |= dict.fromkeys(new, (known.memory, known.state))
            self._expire(name, known)
        if fresh and fresh in {each.name for each in self.engine.instances()}:
            self.known[fresh] = _Known(known.memory, known.state)
        return f"kill {what} {name}{' (it had ended)' if ended else ''}"

    def _start_next(self, name: str) -> None:
        """The next command on it, which finishes or undoes what was left."""
        deadline = time.monotonic() + 10
        while True:
            try:
                self.engine.start(name)
            except StateError as error:
                # A program that the killed command was about to start has its lock for a moment yet, until it is that program.
                if error.code != "instance-busy" or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    # What they share

    def _compare(self, what: str) -> None:
        assert {each.name for each in self.engine.instances()} == self.known.keys(), what
        for name, known in self.known.items():
            assert self.engine.status(name).running is (known.memory is not None), f"{what}: {name}"
            assert {each.id for each in self.engine.snapshots(name)} == known.kept.keys(), f"{what}: {name}"
            if known.memory is not None:
                assert self.machines.words(name) == (known.memory, known.state), f"{what}: {name}"
        running = sum(known.memory is not None for known in self.known.values())
        assert len(self.machines.processes()) == running, what

    def _still(self, name: str, known: _Known) -> bool:
        return self.machines.words(name) == (known.memory, known.state)

    def _went_back(self, known: _Known, chosen: str) -> None:
        memory, state = known.kept[chosen]
        was_on = known.memory is not None
        known.state = state
        known.memory = memory if memory is not None else ("" if was_on else None)

    def _running(self, name: str, known: _Known) -> None:
        if known.memory is None:
            self._boot(name)
            known.memory = ""

    def _boot(self, name: str) -> None:
        """Until it answers: before, it cannot be forked."""
        self.engine.start(name)
        self.machines.words(name)

    def _expire(self, name: str, known: _Known) -> None:
        """Retention is the model's business, which has tests of its own."""
        have = {each.id for each in self.engine.snapshots(name)}
        assert len(have) == min(len(known.kept), 4)
        for gone in list(known.kept)[: len(known.kept) - 4 if len(known.kept) > 4 else 0]:
            del known.kept[gone]

    def _any(self) -> tuple[str, _Known]:
        name = self.chance.choice(sorted(self.known))
        return name, self.known[name]

    def _fresh(self) -> str:
        self.number += 1
        return f"i{self.number}"


@contextmanager
def machines_at(root: Path, room: Room, image: Bootable) -> Iterator[Machines]:
    """Machines, all of which are gone in the end."""
    found = Machines(root, room, image)
    try:
        yield found
    finally:
        found.clear()


def main() -> None:
    """One operation."""
    kind, root, tree, what, name, *more = sys.argv[1:]
    if kind == "hollow":
        from hollow import hollow  # noqa: PLC0415 - which imports this one

        hollow(pytest.MonkeyPatch())
    engine = engine_of(Path(root), Room(Path(tree)))
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    match what:
        case "snapshot":
            engine.snapshot(name, Wanted())
        case "restore":
            engine.restore(name, more[0])
        case "fork":
            engine.fork(name, [Copy(more[0], (Port(0, 80),))])
        case "stop":
            engine.stop(name, timeout_s=0)
        case _:
            raise AssertionError(what)


if __name__ == "__main__":
    main()
