"""A network of the application's own: pasta connects it to the machine's, nftables keeps it to what is granted. Pure.

pasta needs no rights: it speaks for the application with sockets of whoever started it. Its own ways around are closed: nothing of the
machine's loopback is reachable, neither by the gateway's address nor by ports, but for services that are granted by name. The rules are
loaded before the application exists, in a network that belongs to a user namespace above the application's, which therefore cannot change
them.

Source: passt(1), nft(8).
"""

import ipaddress
from collections.abc import Mapping, Sequence

from obelisk.model.policy import Connect, Contact, Listen, Policy, Reach
from obelisk.system.resolver import MARK

# $0 holds the rules, $1 is nft, $2 the first port that can be listened at without privileges.
_GUARD = '"$1" -f "$0"; echo "$2" >/proc/sys/net/ipv4/ip_unprivileged_port_start; shift 2; exec "$@"'
FIRST_FREE_PORT = 1024
LOOPBACK = "127.0.0.1"
_LINK = "net0"
"""The device in the application's network. Its name says nothing of the machine's own."""
_KINDS = {"names4": "ipv4_addr", "names6": "ipv6_addr"}
_SETS = {4: "ip daddr . meta l4proto . th dport @names4", 6: "ip6 daddr . meta l4proto . th dport @names6"}
# Neighbours have to find each other before anything else can be said.
_NEIGHBOURS = (
    "    meta l4proto ipv6-icmp icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, nd-router-solicit } accept"
)
# What never leaves is accepted below whatever it belongs to, so that following its connections would be work for nothing.
_UNTRACKED = ("  chain untracked {", "    type filter hook output priority raw;", '    oif "lo" notrack', "  }")
UPSTREAM = "192.0.2.53"
"""An address of nobody's, behind which pasta has the machine's own resolver."""
RESOLVER = "nameserver 127.0.0.1\n"
"""What names are asked of where some are granted: see `obelisk.system.resolver`."""


def is_wanted(policy: Policy) -> bool:
    """Whether the policy grants any network."""
    return bool(policy.of((Listen, Connect, Reach, Contact)))


def rules(policy: Policy, *, refused_at_once: bool) -> str:
    """The rules, as nft(8) reads them; nothing without a network.

    `refused_at_once`: another layer refuses connections that are not granted, and whoever tries need not be told so by these.
    """
    if not is_wanted(policy):
        return ""
    listens = [power.port for power in policy.of(Listen)]
    into = [f"    tcp dport {port} accept" for port in listens]
    out = [f"    {line} accept" for power in policy.of(Connect) for line in _destination(power)]
    named = bool(policy.of(Reach))
    followed = bool(out) or named
    if not followed:
        # Whoever only listens never sends the packet that opens a connection: with that one withheld, nobody has to remember those that are
        # open, which costs time for each packet, and a table that others could fill.
        out = [f"    tcp sport {port} tcp flags & (syn | ack) != syn accept" for port in listens]
        if refused_at_once:
            return _at_the_device(into, out)
    both = [_NEIGHBOURS, *(["    ct state established,related accept"] if followed else [])]
    # Nobody but the resolver speaks with the machine's, and nobody speaks in its name: a socket may be bound to any address.
    if named:
        out = [f"    ip daddr {UPSTREAM} udp dport 53 accept", *(f"    {_SETS[family]} accept" for family in _SETS), *out]
    return ("" if followed else _at_the_device(into)) + "\n".join(
        (
            "table inet obelisk {",
            *(f"  set {name} {{ type {kind} . inet_proto . inet_service; flags timeout; }}" for name, kind in _KINDS.items() if named),
            *((*_UNTRACKED, *_following(both, into, named=named)) if followed else ()),
            "  chain output {",
            "    type filter hook output priority 0; policy drop;",
            *([f"    ip saddr {UPSTREAM} drop", f"    ip daddr {UPSTREAM} meta mark != {MARK:#x} drop"] if named else []),
            '    oif "lo" accept',
            *both,
            *out,
            "    reject with icmpx type admin-prohibited",
            "  }",
            "}",
            "",
        )
    )


def _following(both: Sequence[str], into: Sequence[str], *, named: bool) -> tuple[str, ...]:
    """What may come in where connections are followed."""
    own = [f'    iif "lo" ip saddr {UPSTREAM} drop'] if named else []
    head = ("  chain input {", "    type filter hook input priority 0; policy drop;")
    return (*head, *own, '    iif "lo" accept', *both, *into, "  }")


def _at_the_device(into: Sequence[str], out: Sequence[str] | None = None) -> str:
    """What may come in where nobody follows connections, and what may go out: asked at the device, and not of what never leaves.

    What goes out may be asked elsewhere.
    """
    ways = [("input", "ingress", into), *([] if out is None else [("output", "egress", out)])]
    lines = ["table netdev obelisk {"]
    for name, hook, granted in ways:
        head = f'    type filter hook {hook} device "{_LINK}" priority 0; policy drop;'
        lines += [f"  chain {name} {{", head, "    meta protocol arp accept", _NEIGHBOURS, *granted, "  }"]
    return "\n".join((*lines, "}", ""))


def words(  # noqa: PLR0913 - keywords name each
    policy: Policy,
    rules_file: str,
    nft: str,
    command: Sequence[str],
    *,
    resolver: Sequence[str] = (),
    services: Sequence[int] = (),
    elsewhere: Mapping[int, int] | None = None,
) -> tuple[str, ...]:
    """The words of the pasta that runs `command` in the network; `resolver` is the program that answers for granted names.

    `services` are ports of this machine's loopback that are those of the application's as well; `elsewhere` has where at that loopback the
    ports are to be found that are not the machine's own.
    """
    listens = [power.port for power in policy.of(Listen)]
    moved = elsewhere or {}
    ports = ",".join(f"{LOOPBACK}/{moved[port]}:{port}" if port in moved else str(port) for port in listens) or "none"
    first = min((FIRST_FREE_PORT, *listens))
    settings: tuple[str, ...] = ("--ns-ifname", _LINK, "--config-net", "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra")
    closed = ("--tcp-ports", ports, "--udp-ports", "none", "--tcp-ns", ",".join(map(str, services)) or "none", "--udp-ns", "none")
    names = [str(power) for power in policy.of(Reach)]
    if names:
        settings = (*settings, "--dns-forward", UPSTREAM)
        command = (*resolver, nft, UPSTREAM, *names, "--", *command)
    return ("pasta", "--quiet", "--foreground", *settings, *closed, "--", "/bin/sh", "-euc", _GUARD, rules_file, nft, str(first), *command)


def _destination(power: Connect) -> tuple[str, ...]:
    family = "ip" if ipaddress.ip_network(power.network).version == 4 else "ip6"  # noqa: PLR2004 - of the protocol
    where = f"{family} daddr {power.network}"
    if not power.port:
        return (where,)
    return (f"{where} tcp dport {power.port}", f"{where} udp dport {power.port}")
