"""Emptying a host: which of its machines goes where. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from obelisk.errors import StateError
from obelisk.model.migration import Side, Wanted, obstacles


@dataclass(frozen=True, slots=True)
class Move:
    """One machine, and the host that it goes to."""

    name: str
    target: str


def assign(machines: Sequence[Wanted], sides: Sequence[Side]) -> tuple[Move, ...]:
    """Where each machine goes, in the order in which they should: the largest first, each to the host that then has the most memory left.

    Raises:
        StateError: there is no host for one of them; it says which, and what each host lacks.
    """
    left = {side.host: side for side in sides}
    moves = []
    for machine in sorted(machines, key=lambda each: (-each.memory_bytes, each.name)):
        found = {host: obstacles(machine, side) for host, side in left.items()}
        fit = [host for host, against in found.items() if not against]
        if not fit:
            reasons = "; ".join(error.message for against in found.values() for error in against) or "there is no other host"
            raise StateError(
                f"no host can take {machine.name}: {reasons}",
                code="drain-no-place",
                hint="add a host, make room on one, or retire or stop what can be spared",
            )
        target = max(fit, key=lambda host: (left[host].memory_free, host))
        side = left[target]
        brought = {digest: size for digest, size in machine.files.items() if digest not in side.files}
        left[target] = replace(
            side,
            memory_free=side.memory_free - machine.memory_bytes,
            room_free=side.room_free - machine.state_bytes - sum(brought.values()),
            machines={**side.machines, machine.name: machine.uuid},
            files=side.files | brought.keys(),
        )
        moves.append(Move(machine.name, target))
    return tuple(moves)
