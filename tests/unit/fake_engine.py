"""An engine of instances without machines: all of it in memory, the same promises.

Each instance holds a word in memory and one in state.
"""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from obelisk.errors import InputError, StateError, TrustError
from obelisk.model.instance import (
    Consistency,
    Copy,
    Damage,
    File,
    Instance,
    Kind,
    Phase,
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


@dataclass
class _Words:
    """What an instance holds. `memory` is None while it does not run."""

    state: str = ""
    memory: str | None = None


@dataclass
class _Held:
    instance: Instance
    words: _Words = field(default_factory=_Words)
    snapshots: dict[str, tuple[Snapshot, _Words]] = field(default_factory=dict)
    healthy: bool | None = True


class FakeEngine:
    """See `obelisk.instance.engine`. `images` are those that it has, `memory_bytes` what all that run may have together."""

    def __init__(self, images: Sequence[str] = ("image",), memory_bytes: int = 4 << 30, state_bytes: int = 1 << 40) -> None:
        self.powers = frozenset({Power.MEMORY, Power.FORK})
        self._images = set(images)
        self._free = memory_bytes
        self._room = state_bytes
        self._all: dict[str, _Held] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._clock = 0

    def instances(self) -> tuple[Instance, ...]:
        return tuple(self._all[name].instance for name in sorted(self._all))

    def instance(self, name: str) -> Instance:
        return self._held(name).instance

    def status(self, name: str) -> Status:
        held = self._held(name)
        if held.words.memory is None:
            return Status(Phase.STOPPED)
        ports = held.instance.wish.ports
        return Status(Phase.RUNNING, f"{ports[0].address}:{ports[0].host}" if ports else "", held.healthy, process=1)

    def create(self, wish: Wish, *, state: Snapshot | None = None) -> Instance:
        check_wish(wish)
        if wish.name in self._all:
            raise InputError(f"there is an instance {wish.name} already", code="name-taken")
        if wish.image not in self._images:
            raise InputError(f"there is no image {wish.image}", code="image-missing")
        if wish.state_bytes > self._room:
            raise StateError("no room", code="no-space")
        if wish.memory_bytes > self._free:
            raise StateError("no memory", code="no-memory")
        origin = f"{state.instance.name}/{state.id}" if state is not None else ""
        held = _Held(self._new(wish, origin))
        if state is not None:
            held.words.state = self._kept(state).state
        self._all[wish.name] = held
        return held.instance

    def start(self, name: str) -> Status:
        with self.owned(name) as held:
            if held.words.memory is None:
                running = [each.instance for each in self._all.values() if each.words.memory is not None]
                taken = {(port.address, port.host) for each in running for port in each.wish.ports}
                for port in held.instance.wish.ports:
                    if (port.address, port.host) in taken:
                        raise StateError(f"{port} is taken", code="port-taken")
                used = sum(each.wish.memory_bytes for each in running)
                if used + held.instance.wish.memory_bytes > self._free:
                    raise StateError("no memory", code="no-memory")
                held.words.memory = ""
                held.instance = replace(held.instance, on=True)
        return self.status(name)

    def stop(self, name: str, *, timeout_s: float = 90.0, to_return: bool = False) -> bool:  # noqa: ARG002 - as the protocol has it
        with self.owned(name) as held:
            held.words.memory = None
            held.instance = replace(held.instance, on=to_return and held.instance.on)
        return True

    def retire(self, name: str) -> None:
        with self.owned(name):
            del self._all[name]

    def snapshot(self, name: str, wanted: Wanted) -> Snapshot:
        with self.owned(name) as held:
            check_wanted(wanted, self.snapshots(name))
            if wanted.kind is Kind.MEMORY and held.words.memory is None:
                raise StateError(f"{name} is not running", code="not-running")
            if wanted.kind is Kind.MEMORY:
                consistency = Consistency.WHOLE
            else:
                consistency = Consistency.OFF if held.words.memory is None else Consistency.CRASH
            have = self.snapshots(name)
            made = Snapshot(
                id=uuid.uuid4().hex[:12],
                instance=held.instance,
                kind=wanted.kind,
                consistency=consistency,
                at=self._now(),
                name=wanted.name,
                description=wanted.description,
                parent=have[-1].id if have else "",
                files=(File("words", len(held.words.state), ""),),
            )
            words = replace(held.words) if wanted.kind is Kind.MEMORY else _Words(held.words.state)
            held.snapshots[made.id] = (made, words)
            for old in expired(self.snapshots(name), held.instance.wish.keep):
                del held.snapshots[old.id]
        return made

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        return tuple(sorted((made for made, _ in self._held(name).snapshots.values()), key=lambda each: each.at))

    def restore(self, name: str, snapshot: str) -> Status:
        with self.owned(name) as held:
            made = chosen(snapshot, self.snapshots(name))
            words = self._kept(made)
            was_on = held.words.memory is not None
            held.words = replace(words)
            if made.kind is Kind.STATE and was_on:
                held.words.memory = ""
            held.instance = replace(held.instance, on=held.words.memory is not None)
        return self.status(name)

    def delete(self, name: str, snapshot: str) -> None:
        with self.owned(name) as held:
            del held.snapshots[chosen(snapshot, self.snapshots(name)).id]

    def verify(self, name: str) -> tuple[Damage, ...]:
        return tuple(Damage(made.id, "words", "changed") for made, _ in self._held(name).snapshots.values() if not made.files)

    def restore_as(self, name: str, snapshot: str, copy: Copy) -> Instance:
        made = chosen(snapshot, self.snapshots(name))
        if made.kind is Kind.STATE:
            return self.create(replace(made.instance.wish, name=copy.name, ports=copy.ports), state=made)
        words = self._kept(made)
        held = self._all[self._copied(made.instance, f"{name}/{made.id}", copy)]
        held.words = replace(words)
        return held.instance

    def fork(self, name: str, copies: Sequence[Copy]) -> tuple[Instance, ...]:
        with self.owned(name) as held:
            if held.words.memory is None:
                raise StateError(f"{name} is not running", code="not-running")
            for copy in copies:
                if copy.name in self._all:
                    raise InputError(f"there is an instance {copy.name} already", code="name-taken")
            for copy in copies:
                self._all[self._copied(held.instance, name, copy)].words = replace(held.words)
        return tuple(self._all[copy.name].instance for copy in copies)

    # What tests do to it, which no engine offers.

    @contextmanager
    def owned(self, name: str) -> Iterator[_Held]:
        """As a command that works on an instance."""
        held = self._held(name)
        with self._lock:
            if name in self._busy:
                raise StateError(f"another command works on {name}", code="instance-busy", hint="wait for it to finish")
            self._busy.add(name)
        try:
            yield held
        finally:
            self._busy.discard(name)

    def damage(self, name: str, snapshot: str) -> None:
        """Spoil a snapshot."""
        held = self._held(name)
        made, words = held.snapshots[chosen(snapshot, self.snapshots(name)).id]
        held.snapshots[made.id] = (replace(made, files=()), words)

    def set_healthy(self, name: str, *, healthy: bool | None) -> None:
        """What the checks of its image say from now on."""
        self._held(name).healthy = healthy

    def words(self, name: str) -> _Words:
        """What the instance holds."""
        return self._held(name).words

    def _held(self, name: str) -> _Held:
        if name not in self._all:
            raise InputError(f"there is no instance {name}", code="instance-unknown", hint="obelisk instance list")
        return self._all[name]

    def _kept(self, snapshot: Snapshot) -> _Words:
        for held in self._all.values():
            if snapshot.id in held.snapshots:
                made, words = held.snapshots[snapshot.id]
                if not made.files:
                    raise TrustError(f"the file words of {made.id} is damaged", code="snapshot-damaged")
                return words
        raise InputError(f"there is no snapshot {snapshot.id}", code="snapshot-unknown")

    def _copied(self, original: Instance, origin: str, copy: Copy) -> str:
        wish = replace(original.wish, name=copy.name, ports=copy.ports)
        check_wish(wish)
        if copy.name in self._all:
            raise InputError(f"there is an instance {copy.name} already", code="name-taken")
        self._all[copy.name] = _Held(replace(self._new(wish, origin), on=True))
        return copy.name

    def _new(self, wish: Wish, origin: str) -> Instance:
        used = {port.host for held in self._all.values() for port in held.instance.wish.ports}
        free = iter(number for number in range(40000, 50000) if number not in used)
        wish = replace(wish, ports=tuple(port if port.host else replace(port, host=next(free)) for port in wish.ports))
        number = uuid.uuid4()
        mac = "52:54:00:" + ":".join(number.hex[at : at + 2] for at in (0, 2, 4))
        return Instance(wish, str(number), mac, str(uuid.uuid4()), self._now(), origin=origin)

    def _now(self) -> datetime:
        self._clock += 1
        return datetime.fromtimestamp(1_800_000_000 + self._clock, UTC)
