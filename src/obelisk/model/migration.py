"""Moving a running machine from one host to another: every decision about it, over values alone.

Memory goes by pre-copy: all of it once, then again what was written meanwhile, and so on, until the rest is so small that the machine may
stand still for it. That ends by itself only where the machine writes slower than the network carries. `expect` says beforehand what that
comes to; `decide` says during it what is to be done; `settle` says afterwards, and after any failure, which of two hosts has the machine.

Source: QEMU, docs/devel/migration; libvirt, "Guest migration".
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from obelisk.errors import InputError, ObeliskError, StateError

MIB = 1 << 20
ASSUMED_RATE = 100 * MIB
"""Bytes a second between two hosts of which nothing is known: nearly what a network of 1 Gbit/s carries."""
_SHRINKS = 0.8  # of a pass, the next: less than that, and the end comes near
_IDLE_S = 30.0
_PASSES = 3
_MOST_PASSES = 30
_SPARE_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator allows. `pause_s` is for how long the machine may stand still, `limit_s` how long it all may take.

    `post_copy`: the machine may go on at the other side with memory that is not there yet. It then always gets there, but a host that
    fails meanwhile takes its memory with it. `slow_down`: the machine may be given less of the processor.
    """

    pause_s: float = 0.3
    limit_s: float = 1800.0
    post_copy: bool = False
    slow_down: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """How far it is. Sizes in bytes, rates in bytes a second; `passes` counts from 1 when memory begins to move.

    `dirty_rate` is 0 as long as it is not known. `throttle` is how much less of the processor the machine gets, in per cent.
    """

    at_s: float
    disk_moved: int = 0
    disk_total: int = 0
    memory_moved: int = 0
    memory_left: int = 0
    memory_total: int = 0
    pages: int = 0
    rate: int = 0
    dirty_rate: int = 0
    passes: int = 0
    throttle: int = 0
    post_copy: bool = False

    @property
    def moved(self) -> int:
        """All that has gone over so far."""
        return self.disk_moved + self.memory_moved

    @property
    def total(self) -> int:
        """All that there is to move, as far as it is known."""
        return self.disk_total + self.memory_moved + self.memory_left

    @property
    def left_s(self) -> float | None:
        """How much longer this pass takes; None while nothing tells."""
        return (self.disk_total - self.disk_moved + self.memory_left) / self.rate if self.rate else None


@dataclass(frozen=True, slots=True)
class GoOn:
    """Wait: it comes nearer, or a way to make it has been taken already."""


@dataclass(frozen=True, slots=True)
class SwitchOver:
    """Let the machine stand still for as long as the rest takes, which the terms allow."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Converge:
    """Wait while QEMU gives the machine less and less of the processor."""

    throttle: int


@dataclass(frozen=True, slots=True)
class PostCopy:
    """Let the machine go on at the other side now; what is missing follows."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stay where it is."""

    why: str


Decision = GoOn | SwitchOver | Converge | PostCopy | GiveUp


def decide(  # noqa: PLR0911 - a rule a line
    samples: Sequence[Sample], terms: Terms, *, pause_s: float
) -> Decision:
    """What is to be done, after these samples of one migration in their order. `pause_s` is what QEMU is told now.

    A pass that is not much smaller than the one before, twice in a row, says that the machine writes as fast as the network carries.
    """
    now = samples[-1]
    if now.post_copy:
        return GoOn()  # it runs there already, so nothing can be taken back
    if now.at_s > terms.limit_s:
        return GiveUp(f"it has taken {terms.limit_s:.0f} s and has not come to an end")
    since = next((each.at_s for each in samples if each.moved == now.moved and each.passes == now.passes), now.at_s)
    if now.at_s - since > _IDLE_S:
        return GiveUp(f"nothing has moved for {now.at_s - since:.0f} s")
    sizes = _passes(samples)
    if len(sizes) < _PASSES or not all(after >= _SHRINKS * before for before, after in itertools.pairwise(sizes[-_PASSES:])):
        return GoOn()
    rate = now.rate or max(each.rate for each in samples)
    needed = sizes[-1] / rate if rate else terms.limit_s
    if needed <= pause_s:
        return GoOn()  # QEMU ends it by itself
    if needed <= terms.pause_s:
        return SwitchOver(terms.pause_s)
    if terms.post_copy:
        return PostCopy()
    if terms.slow_down and now.throttle < _MOST_THROTTLE:
        return Converge(now.throttle)
    return GiveUp(
        f"the machine writes {_mib(now.dirty_rate or sizes[-1] / _length(samples, now))} MiB of memory a second, the network carries "
        f"{_mib(rate)}; to end it, it would have to stand still for {needed:.1f} s"
    )


_MOST_THROTTLE = 99


def _passes(samples: Sequence[Sample]) -> list[int]:
    """What was left to move when each pass began, as far as a sample shows it; the first pass, which is all of the memory, left out."""
    most: dict[int, int] = {}
    for sample in samples:
        if sample.passes > 1:
            most[sample.passes] = max(most.get(sample.passes, 0), sample.memory_left)
    return [most[number] for number in sorted(most)]


def _length(samples: Sequence[Sample], now: Sample) -> float:
    """How long the pass before the present one took, about."""
    first = {number: next(each.at_s for each in samples if each.passes == number) for number in {each.passes for each in samples}}
    numbers = sorted(first)
    return max(first[numbers[-1]] - first[numbers[-2]], 0.1) if len(numbers) > 1 else max(now.at_s, 0.1)


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to move. `memory_bytes` is what the machine has touched, `dirty_rate` how much of it it writes, in bytes a second."""

    memory_bytes: int
    dirty_rate: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What it will take. `post_copy`: it ends only by that. `slowed`: only by giving the machine less of the processor."""

    seconds: float
    pause_s: float
    moved_bytes: int
    passes: int
    post_copy: bool = False
    slowed: bool = False


def expect(load: Load, rate: int, terms: Terms) -> Expected:
    """What the migration will take at `rate` bytes a second.

    Raises:
        StateError: it cannot come to an end on these terms.
    """
    left, moved, passes = float(load.memory_bytes), float(load.state_bytes), 0
    for passes in range(1, _MOST_PASSES + 1):
        moved += left
        # A machine cannot have written more than it has.
        left = min(load.dirty_rate * left / rate, load.memory_bytes)
        if left / rate <= terms.pause_s:
            moved += left
            return Expected(moved / rate, left / rate, int(moved), passes)
    if terms.post_copy:
        once = load.state_bytes + load.memory_bytes * 2
        return Expected(once / rate, _POST_COPY_PAUSE_S, once, 2, post_copy=True)
    if terms.slow_down:
        return Expected(moved / rate, terms.pause_s, int(moved), passes, slowed=True)
    raise StateError(
        f"it would never end: the machine writes {_mib(load.dirty_rate)} MiB of memory a second, the network carries {_mib(rate)}, and the "
        f"rest would take {left / rate:.1f} s each time, where it may stand still for {terms.pause_s:.1f} s",
        code="migration-hopeless",
        hint=f"allow it more (--pause {left / rate * 1.2:.1f}), or --post-copy, or --slow-down; or wait until it does less",
    )


_POST_COPY_PAUSE_S = 0.75  # what clients were seen to wait, not what QEMU calls downtime


@dataclass(frozen=True, slots=True)
class Side:
    """What a host is and has, as far as a machine that is to run there asks. Sizes in bytes."""

    host: str
    libvirt: str
    machine_types: frozenset[str]
    processors: frozenset[str]
    accelerations: frozenset[str]
    memory_free: int
    room_free: int
    networks: frozenset[str]
    machines: Mapping[str, str] = field(default_factory=dict)  # names to uuids
    files: frozenset[str] = frozenset()  # the digests of what it has of images


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the machine asks of a host. `files` are what it needs of its image: digests, and the room that they take."""

    name: str
    uuid: str
    machine_type: str
    processor: str
    acceleration: str
    memory_bytes: int
    state_bytes: int
    networks: tuple[str, ...]
    files: Mapping[str, int]


def obstacles(wanted: Wanted, side: Side) -> tuple[ObeliskError, ...]:
    """All that keeps the machine from running on that host; none when it can."""
    found: list[ObeliskError] = []

    def refuse(message: str, code: str, hint: str, kind: type[StateError | InputError] = StateError) -> None:
        found.append(kind(f"{side.host} {message}", code=code, hint=hint))

    if wanted.machine_type not in side.machine_types:
        refuse(f"has no machine type {wanted.machine_type}", "host-machine-type", "install a QEMU there that is no older than this host's")
    if wanted.acceleration not in side.accelerations:
        refuse(f"cannot run machines by {wanted.acceleration}", "host-acceleration", "choose a host with the same kind of processor")
    if wanted.processor not in side.processors:
        refuse(f"cannot run a processor {wanted.processor}", "host-processor", "choose a host with a newer processor")
    for network in wanted.networks:
        if network not in side.networks:
            refuse(f"has no network {network!r} that is up", "host-network", f"obelisk instance hosts add {side.host} … --bridge BRIDGE")
    if wanted.memory_bytes + _SPARE_BYTES > side.memory_free:
        refuse(
            f"has {_mib(side.memory_free)} MiB of memory free, and {_mib(wanted.memory_bytes + _SPARE_BYTES)} are needed",
            "host-memory",
            "move something else away from it, or choose another host",
        )
    lacking = sum(size for digest, size in wanted.files.items() if digest not in side.files)
    if wanted.state_bytes + lacking + _SPARE_BYTES > side.room_free:
        refuse(
            f"has room for {_mib(side.room_free)} MiB, and {_mib(wanted.state_bytes + lacking + _SPARE_BYTES)} are needed: "
            f"{_mib(wanted.state_bytes)} for the state, {_mib(lacking)} for the image",
            "host-space",
            "make room there, or choose another host",
        )
    owner = side.machines.get(wanted.name)
    if owner is not None and owner != wanted.uuid:
        refuse(f"has another machine with the name {wanted.name}", "name-taken", "retire that one, or choose another host", InputError)
    return tuple(found)


class Presence(StrEnum):
    """How a machine is on one of two hosts."""

    ABSENT = "absent"
    OFF = "off"  # defined, and not running
    RUNNING = "running"  # also in post-copy, as long as that goes on
    WAITING = "waiting"  # there, and standing still: before it leaves, or before it has come
    TORN = "torn"  # standing still in the middle of post-copy, with memory missing
    UNKNOWN = "unknown"  # the host does not answer


class Settlement(StrEnum):
    """What makes exactly one running machine of two halves. Each begins with the side that is to have it."""

    KEEP_SOURCE = "keep source"  # it runs there; the other side forgets it
    RESUME_SOURCE = "resume source"
    START_SOURCE = "start source"  # it ended there: from its state, as after a power cut
    KEEP_TARGET = "keep target"
    RESUME_TARGET = "resume target"
    START_TARGET = "start target"  # from the state that was mirrored
    RECOVER = "recover"  # go on with post-copy
    WAIT = "wait"  # the host that may run it does not answer
    LOST = "lost"


def settle(source: Presence, target: Presence) -> Settlement:
    """Who has the machine, when no migration is under way any more.

    libvirt lets the source go only after the target runs, and on the source that a migration failed is known before the machine goes on
    there. So of two that run, the source's is the one that was decided for.
    """
    return _SETTLEMENTS[source, target]


def _settlements() -> dict[tuple[Presence, Presence], Settlement]:
    absent, off, running = Presence.ABSENT, Presence.OFF, Presence.RUNNING
    waiting, torn, unknown = Presence.WAITING, Presence.TORN, Presence.UNKNOWN
    table: dict[tuple[Presence, Presence], Settlement] = {(running, each): Settlement.KEEP_SOURCE for each in Presence}
    table |= {(each, running): Settlement.KEEP_TARGET for each in (absent, off, waiting, torn)}
    table |= {(waiting, each): Settlement.RESUME_SOURCE for each in (absent, waiting)}
    table |= {(off, each): Settlement.START_SOURCE for each in (absent, waiting)}
    # What is defined on the target has run there, and what it wrote may have been seen: the source's disk is the older one.
    table |= {(each, off): Settlement.START_TARGET for each in (absent, off, waiting)}
    # Post-copy has begun: the machine has run on the target, so its disk there is the newer one.
    table |= {(each, torn): Settlement.START_TARGET for each in (absent, off)}
    table |= {(torn, each): Settlement.START_TARGET for each in (absent, off)}
    table |= {(each, torn): Settlement.RECOVER for each in (waiting, torn)} | {(torn, waiting): Settlement.RECOVER}
    table |= {(absent, absent): Settlement.LOST, (absent, waiting): Settlement.RESUME_TARGET}
    # Nobody acts on what it cannot see: the side that does not answer may run it.
    table |= {(unknown, each): Settlement.WAIT for each in Presence}
    table |= {(each, unknown): Settlement.WAIT for each in Presence if each is not running}
    return table


_SETTLEMENTS = _settlements()


def _mib(size: float) -> str:
    return f"{size / MIB:.0f}" if size >= 10 * MIB else f"{size / MIB:.1f}"
