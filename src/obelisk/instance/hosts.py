"""Hosts that run instances: their names, how they are reached, and what they have.

A host is reached by its libvirt daemon alone, over TLS; nothing of Obelisk is installed there. It has one directory for instances, which
libvirt knows as a pool, and one network, which is a bridge:

    /var/lib/libvirt/obelisk/<SHA-256>         a file of an image: root, hash tree, kernel, initrd; read-only, shared by its instances
                             <SHA-256>.whole   it came here whole, and was checked before it was sent
                             <uuid>.state      the state of the instance with that uuid

The names are kept here in one file, hosts.json, which is replaced as a whole.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from obelisk.errors import CommandError, InputError, StateError
from obelisk.model.instance import MACHINE_TYPE
from obelisk.model.migration import Side
from obelisk.system import virsh
from obelisk.system.files import locked, write_durably
from obelisk.system.virsh import Virsh

POOL = "obelisk"
NETWORK = "obelisk"
DIRECTORY = PurePosixPath("/var/lib/libvirt/obelisk")
WHOLE = ".whole"
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_LEAST_LIBVIRT = (11,)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Host:
    """A host by its name. `address` is where this machine reaches it, `peer` where other hosts do.

    `certificates` is a directory with cacert.pem, clientcert.pem and clientkey.pem of this machine; empty: where libvirt looks for them.
    Nothing is placed on a host that is `draining`.
    """

    name: str
    address: str
    peer: str
    certificates: str = ""
    draining: bool = False

    def daemon(self) -> Virsh:
        """The host's libvirt daemon."""
        return Virsh(self.name, virsh.address(self.address, certificates=Path(self.certificates) if self.certificates else None))

    @property
    def daemon_for_peers(self) -> str:
        """The same for another host, with its own certificate."""
        return virsh.address(self.peer, certificates=None)

    @property
    def data_for_peers(self) -> str:
        """Where another host sends a machine to."""
        return f"tcp://[{self.peer}]" if ":" in self.peer else f"tcp://{self.peer}"


class Hosts:
    """The hosts that `file` names."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def all(self) -> tuple[Host, ...]:
        """All of them, by name.

        Raises:
            InputError: the file is damaged.
        """
        try:
            raw: dict[str, Any] = json.loads(self.file.read_bytes())
            return tuple(Host(name=name, **values) for name, values in sorted(raw["hosts"].items()))
        except FileNotFoundError:
            return ()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"not a list of hosts: {error}", place=str(self.file), code="hosts-damaged", hint="add the hosts again"
            ) from error

    def get(self, name: str) -> Host:
        """The host of that name.

        Raises:
            InputError: there is none.
        """
        for host in self.all():
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.all()) or "none"
        raise InputError(
            f"there is no host {name!r}", code="host-unknown", hint=f"obelisk instance hosts add {name} ADDRESS (known: {known})"
        )

    def put(self, host: Host) -> None:
        """Have this host, in the place of one with its name.

        Raises:
            InputError: it has no name that a host can have.
        """
        if not _NAME.fullmatch(host.name):
            raise InputError(f"{host.name!r} is no name for a host", code="host-name", hint="small letters, digits, dots and dashes")
        self._change(lambda known: {**known, host.name: host})

    def remove(self, name: str) -> None:
        """Forget a host. Nothing on it changes.

        Raises:
            InputError: there is none.
        """
        self.get(name)
        self._change(lambda known: {other: host for other, host in known.items() if other != name})

    def mark(self, name: str, *, draining: bool) -> Host:
        """Note whether the host is being emptied."""
        host = replace(self.get(name), draining=draining)
        self.put(host)
        return host

    def _change(self, change: Callable[[dict[str, Host]], dict[str, Host]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.file.with_name(f".{self.file.name}.lock")):
            after = change({host.name: host for host in self.all()})
            values = {name: {key: value for key, value in asdict(host).items() if key != "name"} for name, host in sorted(after.items())}
            write_durably(self.file, json.dumps({"hosts": values}, indent=2).encode() + b"\n")


def prepare(host: Host, bridge: str) -> None:
    """Make the host ready for instances: their directory, and the bridge as their network. May be repeated.

    Raises:
        StateError: its libvirt is too old.
        CommandError, TransportError, TrustError: see `Virsh`.
    """
    daemon = host.daemon()
    require_version(host, daemon.versions())
    daemon.pool_of(POOL, str(DIRECTORY))
    daemon.network_of(NETWORK, bridge)


def require_version(host: Host, versions: dict[str, str]) -> None:
    """Refuse a libvirt that is older than the one that this was tried with.

    Raises:
        StateError: it is.
    """
    have = versions.get("daemon", "0")
    if tuple(int(part) for part in have.split(".")) < _LEAST_LIBVIRT:
        raise StateError(
            f"{host.name} has libvirt {have}, and 11 is the oldest that works", code="host-libvirt", hint="install it, as in Debian 13"
        )


def survey(host: Host, *, acceleration: str | None = None) -> Side:
    """What the host is and has now. `acceleration` is what a machine has that exists; else the best that the host offers.

    Raises:
        StateError: it has not been prepared, or is too old.
        CommandError, TransportError, TrustError: see `Virsh`.
    """
    daemon = host.daemon()
    versions = daemon.versions()
    require_version(host, versions)
    accelerations = frozenset(offered(daemon.capabilities()))
    wanted = acceleration or best(accelerations)
    machine_types, processors = frozenset[str](), frozenset[str]()
    with suppress(CommandError):  # it has no such machine type
        machine_types, processors = offers(daemon.domain_capabilities(wanted, MACHINE_TYPE))
    volumes = daemon.volumes(POOL)
    return Side(
        host=host.name,
        libvirt=versions.get("daemon", ""),
        machine_types=machine_types,
        processors=processors,
        accelerations=accelerations,
        memory_free=daemon.free_memory(),
        room_free=daemon.room(POOL),
        networks=daemon.networks(),
        machines=daemon.uuids(),
        files=whole(volumes),
    )


def best(accelerations: Iterable[str]) -> str:
    """Hardware virtualisation where there is any."""
    return "kvm" if "kvm" in accelerations else "qemu"


def offered(capabilities: str) -> tuple[str, ...]:
    """The ways in which the host can run 64-bit machines: `kvm`, `qemu` for emulation."""
    root = ET.fromstring(capabilities)  # noqa: S314 - of a daemon whose certificate was verified
    return tuple(each.get("type", "") for arch in root.findall("guest/arch[@name='x86_64']") for each in arch.findall("domain"))


def offers(domain_capabilities: str) -> tuple[frozenset[str], frozenset[str]]:
    """The machine type that was asked about, and the processors that such a machine can have there."""
    root = ET.fromstring(domain_capabilities)  # noqa: S314 - of a daemon whose certificate was verified
    models = root.findall("cpu/mode[@name='custom']/model")
    return frozenset({root.findtext("machine") or ""}), frozenset(each.text or "" for each in models if each.get("usable") != "no")


def whole(volumes: Iterable[str]) -> frozenset[str]:
    """The digests of the files of images that are in a pool, as far as they are whole."""
    names = frozenset(volumes)
    return frozenset(name for name in names if _DIGEST.fullmatch(name) and f"{name}{WHOLE}" in names)
