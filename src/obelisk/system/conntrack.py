"""The kernel's table of connections, asked by netlink. It is that of the network namespace of this process.

Source: linux/netfilter/nfnetlink_conntrack.h (messages, attributes), nf_conntrack_tcp.h (states), netlink(7).
"""

import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator

from obelisk.errors import MissingFeatureError

_NETLINK_NETFILTER = 12
_GET = 1 << 8 | 1  # of the subsystem for connections
_ERROR, _DONE = 2, 3
_REQUEST_DUMP = 0x301
_REPLY, _PROTOCOL_INFO = 2, 4
_TYPE = 0x3FFF
_OPEN = frozenset(range(1, 7))  # from SYN_SENT to LAST_ACK: neither in TIME_WAIT nor closed
_BUFFER = 1 << 17


def open_connections() -> Counter[str]:
    """How many TCP connections over IPv4 are open, by the `address:port` that really answers.

    Raises:
        MissingFeatureError: the kernel does not tell.
    """
    counted: Counter[str] = Counter()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asked:
            asked.bind((0, 0))
            asked.send(struct.pack("=LHHLLBBH", 20, _GET, _REQUEST_DUMP, 1, 0, socket.AF_INET, 0, 0))
            for message in _messages(asked):
                attributes = dict(_attributes(message))
                end = _answering(attributes)
                if end is not None and _state(attributes) in _OPEN:
                    counted[end] += 1
    except OSError as error:
        raise MissingFeatureError(
            f"the kernel does not tell which connections are open: {error.strerror}",
            code="kernel-conntrack",
            hint="load nf_conntrack_netlink, as root",
        ) from error
    return counted


def _messages(asked: socket.socket) -> Iterator[bytes]:
    """The attributes of each connection, until the kernel has told of all."""
    while True:
        data = asked.recv(_BUFFER)
        while len(data) >= 16:  # noqa: PLR2004 - a header
            length, kind = struct.unpack_from("=LH", data)
            if kind == _DONE:
                return
            if kind == _ERROR:
                number = -struct.unpack_from("=l", data, 16)[0]
                raise OSError(number, os.strerror(number))
            yield data[20:length]
            data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:  # noqa: PLR2004 - length and type
        length, kind = struct.unpack_from("=HH", data)
        yield kind & _TYPE, data[4:length]
        data = data[(length + 3) & ~3 :]


def _answering(attributes: dict[int, bytes]) -> str | None:
    """Source address and port of the answers; None where it is no TCP."""
    reply = dict(_attributes(attributes.get(_REPLY, b"")))
    address, protocol = dict(_attributes(reply.get(1, b""))), dict(_attributes(reply.get(2, b"")))
    if 1 not in address or protocol.get(1) != bytes([socket.IPPROTO_TCP]):
        return None
    return f"{socket.inet_ntoa(address[1])}:{int.from_bytes(protocol[2], 'big')}"


def _state(attributes: dict[int, bytes]) -> int:
    tcp = dict(_attributes(dict(_attributes(attributes.get(_PROTOCOL_INFO, b""))).get(1, b"")))
    return tcp.get(1, b"\0")[0]
