"""What every engine of instances can do, and what only some can.

An engine runs machines and remembers them. Every method is safe to be killed at any instant: what it left is finished or undone by the next
one on the same instance. One command at a time works on an instance; a second one is refused with `instance-busy`. Errors that several
methods raise alike:

    InputError  instance-unknown      there is no instance of that name
    StateError  instance-busy         another command works on it
    StateError  instance-damaged      its record cannot be read

`tests/unit/engine_contract.py` has the cases that hold for each engine.
"""

from collections.abc import Sequence
from typing import Protocol

from obelisk.errors import StateError
from obelisk.model.instance import Copy, Damage, Instance, Power, Snapshot, Status, Wanted, Wish


class Engine(Protocol):
    """The life of instances, and snapshots of their state."""

    @property
    def powers(self) -> frozenset[Power]:
        """What it can do besides."""

    def instances(self) -> tuple[Instance, ...]:
        """All of them, by name."""

    def instance(self, name: str) -> Instance:
        """The one of that name."""

    def status(self, name: str) -> Status:
        """How it is. Never waits for a command that works on it."""

    def create(self, wish: Wish, *, state: Snapshot | None = None) -> Instance:
        """A new instance, switched off, with empty state or with a copy of that of a snapshot, of whichever instance and image.

        Raises:
            InputError: `check_wish` refuses it (see there); `name-taken`; `image-missing`: the engine has no such image.
            StateError: `no-memory`, `no-space`: this machine has too little.
        """

    def start(self, name: str) -> Status:
        """Have it run; nothing changes when it does. Returns when the machine has begun to boot.

        Raises:
            StateError: `no-memory`; `port-taken`: something else listens there.
            CommandError: `machine-failed`: it ended at once.
        """

    def stop(self, name: str, *, timeout_s: float = 90.0, to_return: bool = False) -> bool:
        """Have it not run: by its power button, and after `timeout_s` by force (0: at once). Whether it went down by itself.

        Nothing changes when it does not run; that is True. With `to_return`, it stays one that is to be `on`.
        """

    def retire(self, name: str) -> None:
        """End it, and remove it with its state and all its snapshots. Copies made of it stay whole."""

    def snapshot(self, name: str, wanted: Wanted) -> Snapshot:
        """Keep this moment, and delete what retention no longer keeps (`model.instance.expired`).

        Raises:
            InputError: `snapshot-name`, `snapshot-taken`.
            StateError: `not-running`: memory is asked for and there is none; `no-space`; `power-missing`: not by this engine.
        """

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        """Those of an instance, oldest first."""

    def restore(self, name: str, snapshot: str) -> Status:
        """Bring back a moment (by the snapshot's name or id) in the place of the present one, which is lost.

        With memory it runs on from there; with state alone it is switched off, or boots when it ran before.

        Raises:
            InputError: `snapshot-unknown`.
            TrustError: `snapshot-damaged`: the error names the file; nothing was changed.
        """

    def delete(self, name: str, snapshot: str) -> None:
        """Remove a snapshot and nothing else."""

    def verify(self, name: str) -> tuple[Damage, ...]:
        """Read all snapshots of an instance; what is damaged."""


class Forks(Engine, Protocol):
    """The power `FORK`: running copies."""

    def restore_as(self, name: str, snapshot: str, copy: Copy) -> Instance:
        """A new instance that goes on from a snapshot with memory, with an identity of its own before it serves; else as `create`.

        Raises:
            TrustError: `snapshot-damaged`.
            StateError: `copy-silent`: the guest did not take its new identity; the copy is gone again.
        """

    def fork(self, name: str, copies: Sequence[Copy]) -> tuple[Instance, ...]:
        """Running copies of a running instance as it is now, which share its memory and state until they write. All of them, or none.

        Raises:
            StateError: as `restore_as`; `not-running`.
        """


def require(engine: Engine, power: Power) -> None:
    """Refuse what an engine cannot do.

    Raises:
        StateError: it cannot.
    """
    if power not in engine.powers:
        raise StateError(
            f"this engine has not the power {power.value}", code="power-missing", hint="see which engine has it: docs/instances.md"
        )
