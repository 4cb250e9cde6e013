"""A service: iterations of it that replace each other behind one port, and what is to be done next. Pure.

    deploy ──> making ──> proving ──healthy──> ready ──> canary ──promote──> current ──replaced──> kept ──> draining ──> gone
                  │           │                  │          │                   ^                   │
                  └─ failed ──┴──────────────────┘          └──> draining       └──── rollback ─────┘
                        └──> leaving

A value of `Service` is the whole truth about a service, and is what is stored. Orders (`deploy`, `promote`, `rollback`, `retire`) change
what is wanted; `steps` says what has to be done for it; `begun` and `ended` (or `failed`) are the value before and after a step. Every
step may be cut anywhere and done again, so whoever finds a value that somebody left calls `recovered` and goes on.

Rules that hold at every moment: new connections go to iterations alone that have answered as healthy; the shares of all add up to 100; one
iteration is current from the first deploy that succeeded on; an instance is removed only when no new connection can reach it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from obelisk.errors import InputError, StateError
from obelisk.model.canonical import Json

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_LAST_PORT = 65535
_MOST_INSTANCES = 50
ALL = 100
"""Shares are per cent of new connections."""
REMEMBERED = 20
"""So many iterations that are gone are remembered, with the reasons."""
_SETTLES_S = 1  # a connection that chose its instance an instant before a shift is counted after that time at the latest


@dataclass(frozen=True, slots=True)
class Terms:
    """What a service is declared to be.

    Connections to `port` of this machine lead to `guest_port` of its instances. `carries`: a new iteration begins with a copy of the state
    of the one before, else with none. `check` is the path that has to answer by HTTP with a status below 400, or empty: then the port has
    to accept connections. `health_s` is how long a new iteration may take to be healthy, `keep_s` how long a replaced one stays for a
    rollback, `drain_s` how long connections may then stay open before they are cut.
    """

    name: str
    port: int
    guest_port: int
    instances: int = 1
    memory_bytes: int = 512 << 20
    cpus: int = 1
    state_bytes: int = 2 << 30
    carries: bool = False
    check: str = ""
    health_s: int = 180
    keep_s: int = 3600
    drain_s: int = 600

    def to_json(self) -> dict[str, Json]:
        """As it is stored."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> "Terms":
        """The terms in stored JSON."""
        fields: dict[str, object] = {name: _int(raw[name]) for name in cls.__slots__ if name not in {"name", "check", "carries"}}
        fields |= {"name": str(raw["name"]), "check": str(raw["check"]), "carries": bool(raw["carries"])}
        return cls(**fields)  # type: ignore[arg-type]


class Phase(StrEnum):
    """Where an iteration is. In the first three somebody's command is at work on it."""

    MAKING = "making"  # its instances are created and started
    PROVING = "proving"  # it has to answer as healthy
    READY = "ready"  # it has; new connections are about to be led to it
    CANARY = "canary"  # has its share of new connections
    CURRENT = "current"  # has all others
    KEPT = "kept"  # has none, and can be gone back to
    DRAINING = "draining"  # has none, and goes when its open connections have ended
    LEAVING = "leaving"  # is being removed
    GONE = "gone"


class Saved(StrEnum):
    """How far the snapshot is that was taken of the iteration before."""

    NONE = "none"
    BEGUN = "begun"
    DONE = "done"


_AT_WORK = frozenset({Phase.MAKING, Phase.PROVING, Phase.READY})
CUT = "its command was cut short"


@dataclass(frozen=True, slots=True)
class Iteration:
    """Instances of one image.

    `back` is the phase to which it returns when what is done to it fails or is cut; `target` the share that it is to have then, `share`
    the one that a canary has. `made` are the instances whose creation has begun, `up` those that are there. `origin` is the number of the
    iteration that it replaces, 0 for none, and `saved` the snapshot of that one's state, named `before-NUMBER`. `restoring` is the name of
    a snapshot to which its own state is set back. `since` is when it came into its phase, `until` when that ends (seconds since 1970).
    """

    number: int
    image: str
    label: str
    instances: tuple[str, ...]
    phase: Phase
    since: int
    back: Phase = Phase.LEAVING
    target: int = ALL
    share: int = 0
    made: tuple[str, ...] = ()
    up: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    origin: int = 0
    saved: Saved = Saved.NONE
    restoring: str = ""
    until: int = 0
    reason: str = ""

    @property
    def stands(self) -> Phase:
        """Its phase while nobody is at work on it."""
        return self.back if self.phase in _AT_WORK else self.phase

    def to_json(self) -> dict[str, Json]:
        """As it is stored."""
        fields: dict[str, Json] = {name: getattr(self, name) for name in self.__slots__}
        return fields | {name: list(getattr(self, name)) for name in _TUPLES}

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> "Iteration":
        """The iteration in stored JSON."""
        fields: dict[str, object] = {name: raw[name] for name in cls.__slots__}
        fields |= {"phase": Phase(str(raw["phase"])), "back": Phase(str(raw["back"])), "saved": Saved(str(raw["saved"]))}
        fields |= {name: tuple(map(str, _list(raw[name]))) for name in _TUPLES}
        return cls(**fields)  # type: ignore[arg-type]


_TUPLES = ("instances", "made", "up", "addresses")


@dataclass(frozen=True, slots=True)
class Share:
    """So many of every 100 new connections go to this `address:port`."""

    address: str
    percent: int


Shares = tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """All that is known of a service. `applied`: what the kernel was last told; None where that was begun, or was undone by others."""

    terms: Terms
    iterations: tuple[Iteration, ...] = ()
    applied: Shares | None = ()
    retiring: bool = False
    next_number: int = 1

    def to_json(self) -> dict[str, Json]:
        """As it is stored."""
        applied: Json = None if self.applied is None else [[share.address, share.percent] for share in self.applied]
        return {
            "terms": self.terms.to_json(),
            "iterations": [iteration.to_json() for iteration in self.iterations],
            "applied": applied,
            "retiring": self.retiring,
            "next_number": self.next_number,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> "Service":
        """The service in stored JSON; KeyError, TypeError, ValueError when it is none."""
        applied = raw["applied"]
        return cls(
            Terms.from_json(_mapping(raw["terms"])),
            tuple(Iteration.from_json(_mapping(each)) for each in _list(raw["iterations"])),
            None if applied is None else tuple(Share(str(_list(each)[0]), _int(_list(each)[1])) for each in _list(applied)),
            bool(raw["retiring"]),
            _int(raw["next_number"]),
        )

    def find(self, number: int) -> Iteration:
        """The iteration of that number."""
        return next(iteration for iteration in self.iterations if iteration.number == number)

    def standing(self, phase: Phase) -> Iteration | None:
        """The last iteration that stands in that phase."""
        return next((iteration for iteration in reversed(self.iterations) if iteration.stands is phase), None)

    @property
    def at_work(self) -> Iteration | None:
        """The iteration that a command is, or was, at work on."""
        return next((iteration for iteration in self.iterations if iteration.phase in _AT_WORK), None)


@dataclass(frozen=True, slots=True)
class Create:
    """Have an instance of the iteration, and have it run. `state`: a new one begins with a copy of that instance's snapshot."""

    number: int
    instance: str
    state: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Prove:
    """Wait until all instances are healthy; what comes of it is `Healthy` or an error."""

    number: int


@dataclass(frozen=True, slots=True)
class Save:
    """Take a snapshot of the state of each instance, in the place of one of the same name."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete those snapshots again."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Set the state of each instance back to that snapshot."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Shift:
    """Lead new connections there, all at once; open ones stay where they are. Without shares there is no service at the port."""

    shares: Shares


@dataclass(frozen=True, slots=True)
class Retire:
    """Have that instance no longer, nor its state and its snapshots."""

    number: int
    instance: str


Step = Create | Prove | Save | Forget | Restore | Shift | Retire


@dataclass(frozen=True, slots=True)
class Healthy:
    """What comes of `Prove`: where the instances, in their order, are reached, as `address:port`."""

    addresses: tuple[str, ...]


def check_terms(terms: Terms) -> None:
    """Refuse what cannot be.

    Raises:
        InputError: a name or number is out of bounds.
    """
    if not _NAME.fullmatch(terms.name):
        raise InputError(
            f"{terms.name!r} cannot be the name of a service",
            code="service-name",
            hint="use small letters, digits and hyphens, up to 41 of them, and begin with a letter",
        )
    for port in (terms.port, terms.guest_port):
        if not 0 < port <= _LAST_PORT:
            raise InputError(f"there is no port {port}", code="port", hint="give one from 1 to 65535, for example --port 8080:80")
    if not 0 < terms.instances <= _MOST_INSTANCES:
        raise InputError(
            f"a service cannot have {terms.instances} instances", code="service-instances", hint=f"give 1 to {_MOST_INSTANCES}"
        )
    if terms.check and not re.fullmatch(r"/[!-~]*", terms.check):
        raise InputError(f"{terms.check!r} is no path", code="service-check", hint="begin with a slash, for example --check /health")


# Orders


def deploy(service: Service, image: str, label: str, *, percent: int = ALL, now: int) -> Service:
    """An iteration more: of `image`, which is to have `percent` of new connections. A first one has all.

    Raises:
        StateError: a canary is under way.
        InputError: that is no share.
    """
    _require_share(percent)
    if service.standing(Phase.CANARY) is not None:
        raise StateError(
            f"a canary of {service.terms.name} is under way",
            code="service-canary",
            hint=f"obelisk service promote|rollback {service.terms.name}",
        )
    current = service.standing(Phase.CURRENT)
    number = service.next_number
    names = tuple(f"{service.terms.name}-{number}-{index}" for index in range(1, service.terms.instances + 1))
    target = percent if current is not None else ALL
    made = Iteration(number, image, label, names, Phase.MAKING, now, target=target, origin=current.number if current is not None else 0)
    return replace(service, iterations=(*service.iterations, made), next_number=number + 1)


def promote(service: Service, *, percent: int = ALL, now: int) -> Service:
    """The canary is to have `percent` of new connections; with all, it becomes the current iteration. It has to prove itself again.

    Raises:
        StateError: there is none.
        InputError: that is no share.
    """
    _require_share(percent)
    canary = service.standing(Phase.CANARY)
    if canary is None:
        raise StateError(
            f"{service.terms.name} has no canary", code="no-canary", hint=f"obelisk service deploy {service.terms.name} IMAGE --canary 10%"
        )
    # The state has gone on since it was deployed.
    saved = Saved.BEGUN if canary.saved is Saved.DONE and percent == ALL else canary.saved
    return _put(service, replace(canary, phase=Phase.PROVING, back=Phase.CANARY, target=percent, saved=saved, since=now))


def rollback(service: Service, *, with_state: bool = False, now: int) -> Service:
    """Without the canary again or, where there is none, with the kept iteration as the current one, which itself is kept then.

    Raises:
        StateError: there is nothing to go back to, or no snapshot of its state.
    """
    canary = service.standing(Phase.CANARY)
    if canary is not None:
        if with_state:
            raise StateError("a canary has replaced no state", code="no-snapshot", hint="go back without --with-state")
        return _put(service, _draining(service, canary, now, "rolled back"))
    kept, current = service.standing(Phase.KEPT), service.standing(Phase.CURRENT)
    if kept is None or current is None:
        raise StateError(
            f"{service.terms.name} keeps no iteration to go back to",
            code="no-kept",
            hint=f"deploy the image before once more: `obelisk service status {service.terms.name}` names it",
        )
    if with_state and (current.origin != kept.number or current.saved is not Saved.DONE):
        raise StateError(f"no snapshot was taken of the state of {kept.label}", code="no-snapshot", hint="go back without --with-state")
    restoring = _snapshot(current) if with_state else ""
    return _put(service, replace(kept, phase=Phase.MAKING, back=Phase.KEPT, target=ALL, up=(), restoring=restoring, reason="", since=now))


def retire(service: Service) -> Service:
    """No service at the port, and no instances."""
    return _tidied(replace(service, retiring=True, iterations=tuple(_leaving(each) for each in service.iterations)))


def lost(service: Service, number: int, *, now: int) -> Service:
    """Instances of an iteration that serves are found not to run: they are started again."""
    found = service.find(number)
    target = found.share or ALL
    return _put(service, replace(found, phase=Phase.MAKING, back=found.phase, target=target, up=(), since=now))


def withdrawn(service: Service, number: int, reason: str, *, now: int) -> Service:
    """A canary is found not to be healthy: it has no share any more."""
    return _put(service, _draining(service, service.find(number), now, reason))


# What time and other people do


def aged(service: Service, open_connections: Mapping[str, int], *, now: int) -> Service:
    """The service after time has gone by; `open_connections` are counted by address."""
    for iteration in service.iterations:
        if iteration.phase is Phase.KEPT and iteration.until <= now:
            service = _put(service, _draining(service, iteration, now, iteration.reason))
    for iteration in service.iterations:
        if iteration.phase is Phase.DRAINING and service.applied == wanted(service):
            idle = not any(open_connections.get(address, 0) for address in iteration.addresses) and now > iteration.since + _SETTLES_S
            if idle or iteration.until <= now:
                service = _put(service, _leaving(iteration))
    return service


def recovered(service: Service, *, image: str = "", now: int) -> Service:
    """What another command makes of work that was cut: connections that were being led elsewhere are, anything else is undone.

    With `image`, the deploy of that one goes on from where it is.
    """
    found = service.at_work
    if found is None or (found.phase is Phase.READY and service.applied is None):
        return service
    if image and found.image == image and found.back is Phase.LEAVING:
        return service
    return _put(service, _undone(found, CUT if found.back is Phase.LEAVING else "", now))


# Steps


def wanted(service: Service) -> Shares:
    """Where new connections are to go."""
    if service.retiring:
        return ()
    at_work, current, canary = service.at_work, service.standing(Phase.CURRENT), service.standing(Phase.CANARY)
    taking = at_work if at_work is not None and at_work.phase is Phase.READY else None
    some: Iteration | None
    if taking is not None:
        some, percent = taking, taking.target
    elif canary is not None:
        some, percent = canary, canary.share
    else:
        some, percent = current, ALL
    shares = () if some is None else _split(some.addresses, percent)
    return shares if percent == ALL or current is None else (*shares, *_split(current.addresses, ALL - percent))


def steps(service: Service) -> Iterator[Step]:
    """What is to be done, the first of it first. Only the first may be relied on: what follows is for when that one cannot be done now."""
    at_work = service.at_work
    if service.applied != (shares := wanted(service)) or (at_work is not None and at_work.phase is Phase.READY):
        yield Shift(shares)
    for iteration in service.iterations:
        if iteration.restoring:
            yield Restore(iteration.number, iteration.restoring)
    if at_work is not None and at_work.phase is not Phase.READY:
        yield _work(service, at_work)
    for iteration in service.iterations:
        if iteration.phase is Phase.LEAVING:
            for instance in reversed(iteration.made):
                yield Retire(iteration.number, instance)
            if iteration.saved is not Saved.NONE:
                yield Forget(iteration.origin, _snapshot(iteration))


def _work(service: Service, iteration: Iteration) -> Step:
    """The next step for an iteration that is being made or proved."""
    origin = next((each for each in service.iterations if each.number == iteration.origin and each.phase is not Phase.GONE), None)
    replaces = origin is not None and iteration.back in {Phase.LEAVING, Phase.CANARY}
    if origin is not None and replaces and iteration.saved is not Saved.DONE:
        return Save(origin.number, _snapshot(iteration))
    if iteration.phase is Phase.PROVING:
        return Prove(iteration.number)
    index = next(index for index, instance in enumerate(iteration.instances) if instance not in iteration.up)
    if origin is None or not replaces or not service.terms.carries:
        return Create(iteration.number, iteration.instances[index])
    before = origin.instances[index % len(origin.instances)]
    return Create(iteration.number, iteration.instances[index], (before, _snapshot(iteration)))


def begun(service: Service, step: Step) -> Service:
    """The service once a step has begun: whatever becomes of it, it is known that it may have had effects."""
    match step:
        case Create(number, instance):
            iteration = service.find(number)
            return _put(service, replace(iteration, made=(*(each for each in iteration.made if each != instance), instance)))
        case Save():
            at_work = service.at_work
            return service if at_work is None else _put(service, replace(at_work, saved=Saved.BEGUN))
        case Shift():
            return replace(service, applied=None)
        case Prove() | Forget() | Restore() | Retire():
            return service


def ended(service: Service, step: Step, *, healthy: Healthy | None = None, now: int) -> Service:
    """The service once a step is done; `healthy` is what came of `Prove`."""
    at_work = service.at_work
    match step:
        case Create(number, instance):
            iteration = service.find(number)
            up = (*iteration.up, instance)
            phase = Phase.PROVING if set(up) >= set(iteration.instances) else iteration.phase
            changed = replace(iteration, up=up, phase=phase, since=now)
        case Prove(number) if healthy is not None:
            iteration = service.find(number)
            stays = iteration.back is Phase.CURRENT or (iteration.back is Phase.CANARY and iteration.target == iteration.share)
            phase = iteration.back if stays else Phase.READY
            changed = replace(iteration, phase=phase, addresses=healthy.addresses, reason="", since=now)
        case Save() if at_work is not None:
            changed = replace(at_work, saved=Saved.DONE)
        case Forget(number, name):
            iteration = next(each for each in service.iterations if each.origin == number and _snapshot(each) == name)
            changed = replace(iteration, saved=Saved.NONE)
        case Restore(number):
            changed = replace(service.find(number), restoring="")
        case Retire(number, instance):
            iteration = service.find(number)
            changed = replace(iteration, made=tuple(each for each in iteration.made if each != instance))
        case Shift(shares):
            return _shifted(replace(service, applied=shares), now)
        case _:
            return service
    return _put(service, changed)


def failed(service: Service, step: Step, reason: str, *, now: int) -> Service | None:
    """The service once a step has failed; None when all that can be done is to do it again, later."""
    match step:
        case Restore(number):  # its state may be half the one and half the other
            return _put(service, _leaving(replace(service.find(number), reason=reason)))
        case Create(number) | Prove(number):
            iteration = service.find(number)
            if iteration.back is Phase.CANARY:
                return _put(service, _draining(service, iteration, now, reason))
            return _put(service, _undone(iteration, reason, now))
        case Save() | Shift():
            at_work = service.at_work
            return None if at_work is None else _put(service, _undone(at_work, reason, now))
        case Forget() | Retire():
            return None


def _shifted(service: Service, now: int) -> Service:
    """New connections are where the iteration that is ready wants them."""
    taking = service.at_work
    if taking is None or taking.phase is not Phase.READY:
        return service
    if taking.target < ALL:
        return _put(service, replace(taking, phase=Phase.CANARY, share=taking.target, reason="", since=now))
    for before in service.iterations:
        if before.number != taking.number and before.phase is Phase.KEPT:
            service = _put(service, _draining(service, before, now, before.reason))
        elif before.number != taking.number and before.phase is Phase.CURRENT:
            service = _put(service, replace(before, phase=Phase.KEPT, since=now, until=now + service.terms.keep_s))
    return _put(service, replace(taking, phase=Phase.CURRENT, share=0, reason="", since=now, until=0))


def _draining(service: Service, iteration: Iteration, now: int, reason: str) -> Iteration:
    return replace(iteration, phase=Phase.DRAINING, share=0, since=now, until=now + service.terms.drain_s, reason=reason)


def _leaving(iteration: Iteration) -> Iteration:
    return iteration if iteration.phase is Phase.GONE else replace(iteration, phase=Phase.LEAVING, share=0, restoring="")


def _undone(iteration: Iteration, reason: str, now: int) -> Iteration:
    # What was there before goes on to be there, also where it is to be set back to a snapshot: that may have begun.
    undone = replace(iteration, reason=reason, since=now)
    return _leaving(undone) if iteration.back is Phase.LEAVING else replace(undone, phase=iteration.back)


def _put(service: Service, changed: Iteration) -> Service:
    return _tidied(replace(service, iterations=tuple(changed if each.number == changed.number else each for each in service.iterations)))


def _tidied(service: Service) -> Service:
    """Iterations of which nothing is left are gone, their snapshots with them, and the oldest are forgotten."""
    there = {each.number for each in service.iterations if each.phase is not Phase.GONE and not _is_empty(each)}
    found = []
    for each in service.iterations:
        kept = replace(each, saved=Saved.NONE) if each.origin not in there else each
        gone = kept.phase is Phase.LEAVING and not kept.made and kept.saved is Saved.NONE
        found.append(replace(kept, phase=Phase.GONE, up=()) if gone else kept)
    old = [each.number for each in found if each.phase is Phase.GONE][:-REMEMBERED]
    return replace(service, iterations=tuple(each for each in found if each.number not in old))


def _is_empty(iteration: Iteration) -> bool:
    return iteration.phase is Phase.LEAVING and not iteration.made


def _snapshot(iteration: Iteration) -> str:
    return f"before-{iteration.number}"


def _split(addresses: tuple[str, ...], percent: int) -> Shares:
    """The share of an iteration, shared among its instances as evenly as whole numbers allow."""
    count = len(addresses)
    parts = (Share(address, percent * (index + 1) // count - percent * index // count) for index, address in enumerate(addresses))
    return tuple(part for part in parts if part.percent)


def slots(shares: Shares) -> tuple[str, ...]:
    """Which address each of 100 connections goes to that follow each other: every share is spread over all of them."""
    credit = dict.fromkeys(shares, 0)
    chosen = []
    for _slot in range(ALL if shares else 0):
        credit = {share: due + share.percent for share, due in credit.items()}
        best = max(shares, key=lambda share: credit[share])
        credit[best] -= ALL
        chosen.append(best.address)
    return tuple(chosen)


def _require_share(percent: int) -> None:
    if not 1 <= percent <= ALL:
        raise InputError(f"{percent} % is no share of connections", code="share-invalid", hint="from 1% to 100%")


def _mapping(raw: object) -> Mapping[str, object]:
    if not isinstance(raw, Mapping):
        raise TypeError
    return raw


def _list(raw: object) -> list[object]:
    if not isinstance(raw, list):
        raise TypeError
    return raw


def _int(raw: object) -> int:
    if not isinstance(raw, int):
        raise TypeError
    return raw
