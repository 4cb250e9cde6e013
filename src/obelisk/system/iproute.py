"""ip(8): addresses of this machine, and through which device others are reached."""

import ipaddress
import json
from dataclasses import dataclass

from obelisk.errors import CommandError, StateError
from obelisk.system.command import run

_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Link:
    """A device of this machine, and the IPv4 networks that it is in."""

    device: str
    networks: tuple[str, ...]


def towards(address: str) -> Link:
    """The device through which an IPv4 address is reached.

    Raises:
        StateError: there is no way to it.
        MissingFeatureError: ip is not installed.
    """
    try:
        device = str(json.loads(run(["ip", "-json", "route", "get", address], timeout_s=_TIMEOUT_S).stdout)[0]["dev"])
        shown = json.loads(run(["ip", "-json", "-4", "address", "show", "dev", device], timeout_s=_TIMEOUT_S).stdout)
    except CommandError as error:
        raise StateError(f"no network of this machine leads to {address}", code="no-route", hint="ip route get") from error
    found = (f"{each['local']}/{each['prefixlen']}" for link in shown for each in link.get("addr_info", ()))
    return Link(device, tuple(str(ipaddress.ip_network(each, strict=False)) for each in found))


def have(address: str, device: str) -> None:
    """Have an IPv4 address of one's own, which is nobody else's and is announced to nobody. It may be repeated.

    Raises:
        CommandError: it cannot be had.
        MissingFeatureError: ip is not installed.
    """
    run(["ip", "address", "replace", f"{address}/32", "dev", device, "scope", "host"], timeout_s=_TIMEOUT_S)
