"""A service: iterations that replace each other behind one port, and shares of its connections. Pure.

A value of `Service` is the whole truth about a service, and is what is stored; `obelisk.model.rollout` says what becomes of it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from obelisk.errors import InputError, TrustError
from obelisk.model.canonical import Json

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_LAST_PORT = 65535
_MOST_INSTANCES = 50
SERVICES, SERVICE_FILE = Path("/var/lib/obelisk/services"), "service.json"
"""Where a machine keeps what is known of its services, unless $OBELISK_SERVICES says otherwise: a directory for each, with that file."""
ALL = 100
"""Shares are per cent of new connections."""
REMEMBERED = 20
"""So many iterations that are gone are remembered, with the reasons."""


SCHEMA = "obelisk.service/1"


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


def parse_service(data: bytes, file: Path) -> Service:
    """The service in the stored bytes of a file.

    Raises:
        TrustError: they are none that this version reads.
    """
    name = file.parent.name
    try:
        raw = json.loads(data)
        if raw["schema"] != SCHEMA:
            raise TrustError(f"{name} was stored by another version of obelisk", code="service-schema", hint="use that version")
        return Service.from_json(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError(
            f"what is stored of the service {name} is damaged: {error!r}", code="service-damaged", hint=f"bring {file} back from a backup"
        ) from error
