"""How iterations of a service replace each other: orders, and the steps that follow from them. Pure.

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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from obelisk.errors import InputError, StateError
from obelisk.model.service import ALL, CUT, REMEMBERED, Iteration, Phase, Saved, Service, Share, Shares

_SETTLES_S = 1  # a connection that chose its instance an instant before a shift is counted after that time at the latest


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
    """The service after time has gone by; `open_connections` of those that drain are counted by address."""
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


def _require_share(percent: int) -> None:
    if not 1 <= percent <= ALL:
        raise InputError(f"{percent} % is no share of connections", code="share-invalid", hint="from 1% to 100%")
