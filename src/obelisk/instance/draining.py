"""Empties a host, so that it can be upgraded or taken away, and brings back what was on it.

A host is marked first, so nothing new comes to it; then its instances leave one after the other, each live. What is switched off stays: it
hinders nothing. Cut anywhere, the same command goes on.
"""

from dataclasses import dataclass, replace

from obelisk.errors import ObeliskError, StateError
from obelisk.events import Note
from obelisk.instance.hosts import Host, survey
from obelisk.instance.moving import Moved, move, wanted_by
from obelisk.instance.placement import Placement
from obelisk.instance.remote import Remote
from obelisk.model.draining import Move, assign
from obelisk.model.migration import Presence, Terms


@dataclass(frozen=True, slots=True)
class Emptied:
    """What came of it: what moved, and what is still there and why."""

    moved: tuple[Moved, ...]
    stayed: tuple[tuple[str, str], ...]


def plan(remote: Remote, host: Host) -> tuple[Move, ...]:
    """Where the instances that run on the host would go.

    Raises:
        StateError: one of them fits nowhere.
    """
    machines = [wanted_by(placement, host)[1] for placement in _running(remote, host)]
    others = [other for other in remote.hosts.all() if other.name != host.name and not other.draining]
    return assign(machines, [survey(other) for other in others] if machines else [])


def drain(remote: Remote, host: Host, terms: Terms) -> Emptied:
    """Move everything that runs on the host to others, and let nothing new come to it.

    Raises:
        StateError: one of them fits nowhere; then none has moved.
    """
    for placement in remote.placements.all():
        if host.name in {placement.host, placement.to} and (placement.to or placement.coming):
            with remote.placements.owned(placement.name):
                remote.settled(placement.name)
    moves = plan(remote, host)
    remote.hosts.mark(host.name, draining=True)
    done, stayed = [], []
    for each in moves:
        try:
            moved = move(remote, each.name, remote.hosts.get(each.target), terms)
        except ObeliskError as error:
            stayed.append((each.name, error.message))
            continue
        _at_home(remote, each.name, host.name)
        done.append(moved)
    return Emptied(tuple(done), tuple(stayed))


def undrain(remote: Remote, host: Host, terms: Terms) -> Emptied:
    """Let instances come to the host again, and bring back those that left it.

    Raises:
        StateError: it is not fit for machines yet; it stays marked.
        TransportError: it does not answer yet.
    """
    side = survey(host)
    if not side.networks:
        raise StateError(
            f"{host.name} has no network that is up", code="host-network", hint=f"obelisk instance hosts add {host.name} … --bridge BRIDGE"
        )
    remote.hosts.mark(host.name, draining=False)
    done, stayed = [], []
    for placement in remote.placements.all():
        if placement.home != host.name:
            continue
        if placement.host == host.name:
            _at_home(remote, placement.name, "")
            continue
        try:
            done.append(move(remote, placement.name, remote.hosts.get(host.name), terms))
        except ObeliskError as error:
            stayed.append((placement.name, error.message))
            remote.sink(Note(f"{placement.name} stays on {placement.host}: {error.message}"))
            continue
        _at_home(remote, placement.name, "")
    return Emptied(tuple(done), tuple(stayed))


def _at_home(remote: Remote, name: str, home: str) -> None:
    with remote.placements.owned(name):
        placement = remote.placements.get(name)
        # Emptied from one host after another, it belongs to the first.
        remote.placements.put(replace(placement, home=(placement.home or home) if home else ""))


def _running(remote: Remote, host: Host) -> list[Placement]:
    mine = [placement for placement in remote.placements.all() if placement.host == host.name]
    return [placement for placement in mine if remote.presence(placement, host.name) is Presence.RUNNING]
