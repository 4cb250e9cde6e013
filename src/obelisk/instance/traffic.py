"""Leads connections to instances: one table of the packet filter for each service.

    table ip obelisk_service_<name>
      map homes      0 … 99 : address . port      which instance each of 100 connections that follow each other gets
      chain turn     takes the next entry of the map; both of the following come here
      chain arriving, own                         connections from elsewhere, and from this machine itself, to the service's port
      chain leaving                               gives connections the machine's address that would else be answered past it
      chain guard                                 nobody comes from elsewhere to the loopback, which is opened towards instances, or past
                                                  the service to an instance that is at an address of this machine

Only the first packet of a connection comes to such a chain: all others, either way, follow what the kernel's table of connections says. So
a change of the map leaves open connections where they are. The map, and all around it, is changed in one transaction: a packet sees what
was before or what is after.

Source: nft(8), sections "NAT statements", "numgen expression", "Map statements"; kernel documentation, ip-sysctl (route_localnet).
"""

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from obelisk.errors import StateError
from obelisk.model.service import ALL, Shares, Terms, slots
from obelisk.system import conntrack, iproute, nft, ports

_SETTINGS = Path("/proc/sys/net/ipv4")
_LOOPBACK = "lo"
HOME = "198.18.0.1"
"""An address that every machine here has on its loopback, for ports that engines lead into instances. Source: RFC 2544, appendix C.2.2."""


class Traffic(Protocol):
    """What a service asks of the network of its machine. All of it may be repeated."""

    def require(self, terms: Terms) -> None:
        """Find out, before anything is made, whether connections to the service's port can be led elsewhere.

        Raises:
            StateError: the port is taken, or the user may not.
            MissingFeatureError: a program is not installed, or the kernel cannot.
        """

    def lead(self, terms: Terms, shares: Shares) -> None:
        """Lead new connections there, at one instant; without shares, to nowhere.

        Raises:
            CommandError: it cannot be done, and is as it was.
        """

    def leads(self, terms: Terms, shares: Shares) -> bool:
        """Whether it is so now."""

    def open_connections(self, addresses: Collection[str]) -> Mapping[str, int]:
        """How many connections are open, by the `address:port`, of those given, that answers."""

    def release(self, address: str, *, open_too: bool) -> None:
        """Lead nobody to that `address:port` because of a connection of before; without `open_too`, of one that both ends have closed.

        Clients use their ports again: else the kernel would take the first packet of a new connection for one of the old.
        """


class PacketFilter:
    """The kernel's own: `Traffic` of this machine."""

    def require(self, terms: Terms) -> None:
        """See `Traffic.require`."""
        nft.require()
        iproute.have(HOME, _LOOPBACK)
        if ports.is_taken(terms.port):
            raise StateError(
                f"a program of this machine listens at port {terms.port}",
                code="port-taken",
                hint=f"name another port, or end that program: `ss -ltnp sport = {terms.port}` names it",
            )

    def lead(self, terms: Terms, shares: Shares) -> None:
        """See `Traffic.lead`."""
        if not shares:
            nft.load(without(terms))
            return
        links = tuple(dict.fromkeys(iproute.towards(share.address.rpartition(":")[0]) for share in shares))
        for link in links:
            if link.device != _LOOPBACK:
                _set("ip_forward")
                _set(f"conf/{link.device}/route_localnet")
        nft.load(rules(terms, shares, tuple(dict.fromkeys(network for link in links for network in link.networks))))

    def leads(self, terms: Terms, shares: Shares) -> bool:
        """See `Traffic.leads`."""
        found = nft.elements(table(terms), "homes")
        return found == (dict(enumerate(slots(shares))) if shares else None)

    def open_connections(self, addresses: Collection[str]) -> Mapping[str, int]:
        """See `Traffic.open_connections`."""
        return conntrack.open_connections(addresses)

    def release(self, address: str, *, open_too: bool) -> None:
        """See `Traffic.release`."""
        conntrack.forget(address, open_too=open_too)


def table(terms: Terms) -> str:
    """The name of the service's table."""
    return f"obelisk_service_{terms.name.replace('-', '_')}"


def without(terms: Terms) -> str:
    """The script, for nft, that removes the table, if any."""
    return f"add table ip {table(terms)}\ndelete table ip {table(terms)}\n"


def rules(terms: Terms, shares: Shares, networks: Sequence[str]) -> str:
    """The script that makes the table be as it is to be, whatever it was. `networks` are those that the instances are in."""
    name, port = table(terms), terms.port
    chosen = ", ".join(f"{index} : {address.replace(':', ' . ')}" for index, address in enumerate(slots(shares)))
    to_port = f"fib daddr type local tcp dport {port}"
    # A kernel before 6.17 may miss an element of a map in the instant of a change; the second look finds it.
    turn = [f"meta l4proto tcp dnat ip to numgen inc mod {ALL} map @homes"] * 2
    # Without this, answers to the machine's loopback, or to a neighbour on the instances' own network, would not come back through here.
    near = "".join(f", {network}" for network in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, networks)))
    # To HOME they stay on the loopback, which may have no address that others could answer.
    far = f"ip saddr {{ 127.0.0.0/8{near} }} ip daddr != {HOME}"
    hidden = f"meta l4proto tcp ct status dnat ct original proto-dst {port} {far} masquerade"
    chains = {
        "turn": ("", turn),
        "arriving": ("{ type nat hook prerouting priority dstnat; }", [f"{to_port} jump turn"]),
        "own": ("{ type nat hook output priority -100; }", [f"{to_port} jump turn"]),
        "leaving": ("{ type nat hook postrouting priority srcnat; }", [hidden]),
        "guard": ("{ type filter hook prerouting priority raw; }", [f'iifname != "lo" ip daddr {{ 127.0.0.0/8, {HOME} }} drop']),
    }
    lines = [f"add table ip {name}", f"add map ip {name} homes {{ typeof numgen inc mod {ALL} : ip daddr . tcp dport; }}"]
    lines += [f"add chain ip {name} {chain} {hook}".rstrip() for chain, (hook, _rules) in chains.items()]
    for chain, (_hook, wanted) in chains.items():
        lines += [f"flush chain ip {name} {chain}", *(f"add rule ip {name} {chain} {rule}" for rule in wanted)]
    return "\n".join([*lines, f"flush map ip {name} homes", f"add element ip {name} homes {{ {chosen} }}", ""])


def _set(name: str) -> None:
    """Switch a setting of the kernel on, unless it is."""
    file = _SETTINGS / name
    if file.read_text().strip() == "1":
        return
    try:
        file.write_text("1")
    except OSError as error:
        raise StateError(
            f"the kernel's setting net.ipv4.{name.replace('/', '.')} cannot be switched on: {error.strerror}",
            code="service-root",
            hint="use sudo; in a container, set it from outside",
        ) from error
