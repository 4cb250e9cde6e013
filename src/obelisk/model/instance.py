"""Instances: machines that run from images, what is remembered of them, and the moments of theirs that are kept.

    Wish ──create──> Instance ──snapshot──> Snapshot ──restore, fork──> Instance

The files of an image are shared and never written. What an instance writes is its state, a disk of its own. Names are unique on a machine.
"""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any

from obelisk.errors import InputError, StateError
from obelisk.model.canonical import Json, canonical

SCHEMA = "obelisk.instance/1"
SNAPSHOT_SCHEMA = "obelisk.snapshot/1"

MACHINE_TYPE = "pc-q35-10.0"
"""What the machine is made of, pinned: memory that was saved on one version of QEMU is read by later ones."""
PROCESSOR = "Nehalem"
"""The oldest that has all of x86-64-v2: every server of the last fifteen years, of either maker, can be one."""
STATE_SERIAL = "obelisk-state"
"""The serial number of the disk with the state of an instance, by which its image finds it."""
IDENTITY_PORT = "obelisk.identity"
"""The virtio-serial port by which a copy of a machine is told who it is. See `Identity`."""
HOST_NAME = "system.hostname"
"""The credential that has a machine's host name. Source: systemd.system-credentials(7)."""
AGENT_PORT = "org.qemu.guest_agent.0"

MIB = 1 << 20
LEAST_MEMORY_BYTES = 64 * MIB
LEAST_STATE_BYTES = 128 * MIB  # less, Btrfs cannot be made in
MOST_CPUS = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PORT = re.compile(r"(?:(?:(?P<address>[0-9.]+):)?(?P<host>[0-9]+):)?(?P<guest>[0-9]+)")
_LAST_PORT = 65535
_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Power(StrEnum):
    """What not every engine can do."""

    MEMORY = "memory"
    """snapshots of memory and state together"""
    FORK = "fork"
    MIGRATE = "migrate"


class Kind(StrEnum):
    """What a snapshot holds."""

    MEMORY = "memory+state"
    STATE = "state"


class Consistency(StrEnum):
    """What a copy of the state can be relied on for."""

    WHOLE = "whole"
    """memory and state of one moment: programs go on as if nothing had been"""
    OFF = "off"
    """the instance was switched off"""
    FROZEN = "frozen"
    """file systems were written out and held still by the guest's agent"""
    CRASH = "crash"
    """as a power cut would have left it; journalling file systems and databases come back from that"""


class Phase(StrEnum):
    """What an instance is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port `host` at an address of this machine that leads to the port `guest` of an instance. `host` 0: one that is free."""

    host: int
    guest: int
    address: str = "127.0.0.1"

    def __str__(self) -> str:
        return f"{self.address}:{self.host}:{self.guest}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `image` is an image's id; `credentials` are systemd's, by name; `keep`: so many snapshots without a name."""

    name: str
    image: str
    memory_bytes: int = 512 * MIB
    cpus: int = 1
    state_bytes: int = 2 << 30
    ports: tuple[Port, ...] = ()
    credentials: tuple[tuple[str, str], ...] = ()
    keep: int = 8


@dataclass(frozen=True, slots=True)
class Instance:
    """What is remembered of an instance. `uuid`, `mac` and `generation` are its own alone; `on`: it is meant to run.

    `accel` is how its processors are made, `kvm` or `tcg`. `origin` says of what it is a copy, `INSTANCE/SNAPSHOT`; empty for none.
    """

    wish: Wish
    uuid: str
    mac: str
    generation: str
    created: datetime
    label: str = ""
    machine: str = MACHINE_TYPE
    processor: str = PROCESSOR
    accel: str = "tcg"
    on: bool = False
    origin: str = ""

    @property
    def name(self) -> str:
        """Its name."""
        return self.wish.name


@dataclass(frozen=True, slots=True)
class Status:
    """How an instance is at the moment. `address` is where its first port answers, empty without one, or while it does not run.

    `healthy`: what the checks of its image say; None as long as they say nothing.
    """

    phase: Phase
    address: str = ""
    healthy: bool | None = None
    process: int = 0

    @property
    def running(self) -> bool:
        """Whether there is a machine."""
        return self.phase is not Phase.STOPPED


@dataclass(frozen=True, slots=True)
class File:
    """One file of a snapshot, by its name in the snapshot's directory. See `obelisk.system.files.hash_sparse` for the digest."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of an instance that is kept. `files` are all that it needs, so it depends on no other; `parent` is the one before."""

    id: str
    instance: Instance
    kind: Kind
    consistency: Consistency
    at: datetime
    name: str = ""
    description: str = ""
    parent: str = ""
    files: tuple[File, ...] = ()
    paused_ms: int = 0

    @property
    def size_bytes(self) -> int:
        """What its files hold; those of the state are shared with other snapshots."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A snapshot that is asked for. The name is unique among the snapshots of an instance; empty for none."""

    kind: Kind = Kind.MEMORY
    name: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of an instance that is asked for. Its ports lead to other ports of this machine than the original's."""

    name: str
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a snapshot that is not what it was."""

    snapshot: str
    file: str
    what: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What a copy is told before it serves anybody: who it is, and what time it is."""

    name: str
    uuid: str
    mac: str
    seed: str = field(repr=False)

    def to_line(self, now: datetime) -> bytes:
        """One line of words: name, machine id, MAC, seconds since 1970, and 64 hexadecimal digits of randomness."""
        return f"{self.name} {self.uuid.replace('-', '')} {self.mac} {int(now.timestamp())} {self.seed}\n".encode()


def check_wish(wish: Wish) -> None:
    """Refuse what cannot be.

    Raises:
        InputError: a name, number or credential is out of bounds.
    """
    if not _NAME.fullmatch(wish.name):
        raise InputError(
            f"{wish.name!r} cannot be the name of an instance",
            code="instance-name",
            hint="use small letters, digits and hyphens, up to 63 of them, and begin with no hyphen",
        )
    for what, value, least in (("memory", wish.memory_bytes, LEAST_MEMORY_BYTES), ("state", wish.state_bytes, LEAST_STATE_BYTES)):
        if value < least or value % MIB:
            raise InputError(
                f"an instance cannot have {value} bytes of {what}",
                code=f"instance-{what}",
                hint=f"give whole mebibytes, {least // MIB}M at least",
            )
    if not 0 < wish.cpus <= MOST_CPUS:
        raise InputError(f"an instance cannot have {wish.cpus} processors", code="instance-cpus", hint=f"give 1 to {MOST_CPUS}")
    if wish.keep < 1:
        raise InputError("an instance keeps one snapshot without a name at least", code="instance-keep", hint="give 1 or more")
    places = [(port.address, port.host) for port in wish.ports if port.host]
    if len(set(places)) != len(places):
        raise InputError("a port of this machine leads to one place alone", code="port-twice", hint="give each forward its own port")
    if len({name for name, _ in wish.credentials}) != len(wish.credentials):
        raise InputError("a credential was given twice", code="credential-twice", hint="give each name once")


def check_wanted(wanted: Wanted, have: Iterable[Snapshot]) -> None:
    """Refuse a snapshot whose name cannot be, or is taken.

    Raises:
        InputError: that.
    """
    if not wanted.name:
        return
    if not _SNAPSHOT_NAME.fullmatch(wanted.name):
        raise InputError(
            f"{wanted.name!r} cannot be the name of a snapshot",
            code="snapshot-name",
            hint="use letters, digits, dots, hyphens, underscores",
        )
    if any(wanted.name in {each.name, each.id} for each in have):
        raise InputError(
            f"there is a snapshot {wanted.name} already", code="snapshot-taken", hint="choose another name, or delete that one first"
        )


def chosen(name: str, have: Sequence[Snapshot]) -> Snapshot:
    """The snapshot of that name or id; the beginning of an id will do where it means one.

    Raises:
        InputError: there is none, or several begin so.
    """
    exact = [each for each in have if name and name in {each.name, each.id}]
    found = exact or [each for each in have if name and each.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(each.name or each.id for each in have)
    raise InputError(
        f"{name!r} means {len(found)} snapshots" if found else f"there is no snapshot {name!r}",
        code="snapshot-ambiguous" if found else "snapshot-unknown",
        hint=f"there are {known}" if known else "there is none yet: obelisk instance snapshot NAME",
    )


def expired(have: Iterable[Snapshot], keep: int) -> tuple[Snapshot, ...]:
    """The snapshots that retention removes: those without a name, but for the newest `keep`. Oldest first."""
    unnamed = sorted((each for each in have if not each.name), key=lambda each: (each.at, each.id))
    return tuple(unnamed[: max(len(unnamed) - keep, 0)])


def copies_of(name: str, count: int, taken: Iterable[str]) -> tuple[str, ...]:
    """Names for `count` copies of `name`: NAME-1, NAME-2, … that are free."""
    busy = set(taken)
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        if (candidate := f"{name}-{number}") not in busy:
            names.append(candidate)
    return tuple(names)


def parse_size(text: str) -> int:
    """Bytes as people write them: 512M, 2G, 1048576.

    Raises:
        InputError: it is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r} is no size", code="size", hint="write a number and K, M, G or T, such as 512M")
    return int(found[1]) * _UNITS[found[2]]


def parse_port(text: str) -> Port:
    """A forward as people write it: GUEST, HOST:GUEST or ADDRESS:HOST:GUEST (IPv4). GUEST alone: a free port of this machine.

    Raises:
        InputError: it is none of these.
    """
    found = _PORT.fullmatch(text)
    with suppress(ValueError):  # of an address
        if found is not None:
            port = Port(int(found["host"] or 0), int(found["guest"]), str(IPv4Address(found["address"] or "127.0.0.1")))
            if port.host <= _LAST_PORT and 0 < port.guest <= _LAST_PORT:
                return port
    raise InputError(f"{text!r} is no port", code="port", hint="write HOST:GUEST, for example 8080:80; or ADDRESS:HOST:GUEST")


def instance_json(instance: Instance) -> Json:
    """The plain form."""
    wish = instance.wish
    return {
        "schema": SCHEMA,
        "wish": {
            "name": wish.name,
            "image": wish.image,
            "memory": wish.memory_bytes,
            "cpus": wish.cpus,
            "state": wish.state_bytes,
            "ports": [[port.address, port.host, port.guest] for port in wish.ports],
            "credentials": dict(wish.credentials),
            "keep": wish.keep,
        },
        "label": instance.label,
        "uuid": instance.uuid,
        "mac": instance.mac,
        "generation": instance.generation,
        "created": instance.created.isoformat(),
        "machine": instance.machine,
        "processor": instance.processor,
        "accel": instance.accel,
        "on": instance.on,
        "origin": instance.origin,
    }


def read_instance(raw: dict[str, Any]) -> Instance:
    """An instance from its plain form.

    Raises:
        StateError: it is none that this version reads.
    """
    try:
        _expect(raw, SCHEMA)
        wish = raw["wish"]
        return Instance(
            wish=Wish(
                name=wish["name"],
                image=wish["image"],
                memory_bytes=wish["memory"],
                cpus=wish["cpus"],
                state_bytes=wish["state"],
                ports=tuple(Port(host, guest, address) for address, host, guest in wish["ports"]),
                credentials=tuple(sorted(wish["credentials"].items())),
                keep=wish["keep"],
            ),
            uuid=raw["uuid"],
            mac=raw["mac"],
            generation=raw["generation"],
            created=_time(raw["created"]),
            label=raw["label"],
            machine=raw["machine"],
            processor=raw["processor"],
            accel=raw["accel"],
            on=raw["on"],
            origin=raw["origin"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"the record of an instance is damaged: {error}", code="instance-damaged", hint="bring its directory back from a backup"
        ) from error


def snapshot_bytes(snapshot: Snapshot) -> bytes:
    """The file that describes a snapshot."""
    return canonical(
        {
            "schema": SNAPSHOT_SCHEMA,
            "id": snapshot.id,
            "instance": instance_json(snapshot.instance),
            "kind": snapshot.kind.value,
            "consistency": snapshot.consistency.value,
            "at": snapshot.at.isoformat(),
            "name": snapshot.name,
            "description": snapshot.description,
            "parent": snapshot.parent,
            "files": [[file.name, file.size_bytes, file.sha256] for file in snapshot.files],
            "paused_ms": snapshot.paused_ms,
        }
    )


def read_snapshot(data: bytes) -> Snapshot:
    """A snapshot from its file.

    Raises:
        StateError: it is none that this version reads.
    """
    try:
        raw: dict[str, Any] = json.loads(data)
        _expect(raw, SNAPSHOT_SCHEMA)
        return Snapshot(
            id=raw["id"],
            instance=read_instance(raw["instance"]),
            kind=Kind(raw["kind"]),
            consistency=Consistency(raw["consistency"]),
            at=_time(raw["at"]),
            name=raw["name"],
            description=raw["description"],
            parent=raw["parent"],
            files=tuple(File(name, size, sha256) for name, size, sha256 in raw["files"]),
            paused_ms=raw["paused_ms"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"the description of a snapshot is damaged: {error}", code="snapshot-damaged", hint="delete it, and take another"
        ) from error


def _expect(raw: dict[str, Any], schema: str) -> None:
    if raw["schema"] != schema:
        raise StateError(f"schema {raw['schema']!r} is not {schema!r}", code="instance-schema", hint="use the version that wrote it")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
