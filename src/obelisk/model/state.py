"""The version of a host's state, and the ways between versions.

An image says which version of state it works with, and brings the migrations that lead there, one for each step; some have a way back.
State without a version is of the first. All that is decided here is decided from numbers alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

FIRST = 1


class Encryption(StrEnum):
    """Who opens the state volume: everybody, or this machine's TPM alone."""

    NONE = "none"
    TPM2 = "tpm2"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: from the version before `to` to `to`, and back again if it is `reversible`."""

    to: int
    reversible: bool


@dataclass(frozen=True, slots=True)
class Fits:
    """The state is of the image's version."""


@dataclass(frozen=True, slots=True)
class Change:
    """The state is to be made anew: from the snapshot of that number (None: from the present state), by migrations up to these versions."""

    source: int | None
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stuck:
    """The image cannot work with any state that there is."""

    reason: str


@dataclass(frozen=True, slots=True)
class Back:
    """The state goes back by the ways back of these migrations, in this order. Without any, it stays as it is."""

    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Irreversible:
    """The migration to this version has no way back that the image knows."""

    to: int


def way_up(held: int, wanted: int, migrations: Iterable[Migration]) -> tuple[int, ...] | None:
    """The migrations that lead from version `held` up to `wanted`; None where there is no such way."""
    steps = tuple(range(held + 1, wanted + 1))
    return steps if held <= wanted and {each.to for each in migrations}.issuperset(steps) else None


def at_boot(held: int, own: int, migrations: tuple[Migration, ...], kept: Iterable[tuple[int, int]]) -> Fits | Change | Stuck:
    """What an image that works with version `own` does about state of version `held`. `kept`: number and version of each snapshot.

    State of a later image is left aside: what comes in its place is the newest snapshot that this image can use.
    """
    if held == own:
        return Fits()
    if held < own:
        steps = way_up(held, own, migrations)
        return (
            Change(None, steps) if steps else Stuck(f"the state is of version {held}, from which this image has no way to its own, {own}")
        )
    usable = [(number, way) for number, version in kept if (way := way_up(version, own, migrations)) is not None]
    if not usable:
        return Stuck(f"the state is of version {held}, this image works with {own}, and there is no snapshot that it could go back to")
    return Change(*max(usable))


def way_back(held: int, wanted: int, migrations: Iterable[Migration]) -> Back | Irreversible:
    """How state of version `held` becomes state that an image of version `wanted` can use; that image itself knows the way up."""
    reversible = {each.to for each in migrations if each.reversible}
    steps = tuple(range(held, wanted, -1))
    return next((Irreversible(to) for to in steps if to not in reversible), Back(steps))
