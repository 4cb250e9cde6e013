"""The kernel's table of connections, asked by netlink. It is that of the network namespace of this process.

Source: linux/netfilter/nfnetlink_conntrack.h (messages, attributes), nf_conntrack_tcp.h (states), netlink(7).
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from obelisk.errors import MissingFeatureError

_NETLINK_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # of the subsystem for connections
_ERROR, _DONE = 2, 3
_REQUEST_DUMP, _REQUEST_ACK = 0x301, 0x5
_REPLY, _PROTOCOL_INFO, _FILTER = 2, 4, 25
_REPLY_FLAGS = 2  # within the filter: which parts of the reply have to be as given
_SOURCE, _PROTOCOL, _SOURCE_PORT = 1, 1 << 3, 1 << 4
_NESTED = 0x8000
_TYPE = 0x3FFF
_OPEN = frozenset(range(1, 6))  # from SYN_SENT to CLOSE_WAIT: at least one end has not closed it yet
_BUFFER = 1 << 17


def open_connections(ends: Collection[str]) -> Mapping[str, int]:
    """How many TCP connections over IPv4 are open, by the `address:port`, of those given, that really answers.

    Raises:
        MissingFeatureError: the kernel does not tell.
    """
    with _asking() as asked:
        return {end: sum(_state(each) in _OPEN for each in _connections(asked, end)) for end in ends}


def forget(end: str, *, open_too: bool) -> None:
    """Have no connection known any more to which `address:port` answers; without `open_too`, none that both ends have closed.

    Who uses the addresses and ports of such a connection again is led as if there had been none.

    Raises:
        MissingFeatureError: the kernel does not tell.
    """
    with _asking() as asked:
        for attributes in [each for each in _connections(asked, end) if open_too or _state(each) not in _OPEN]:
            _delete(asked, attributes[_REPLY])


def _delete(asked: socket.socket, reply: bytes) -> None:
    """Delete a connection, if it is there still.

    It is named by the way back, in which the answering end is: a client may have used its port again by now, and on the way there what it
    has with another end looks the same.
    """
    asked.send(_request(_DELETE, _REQUEST_ACK, _nested(_REPLY, reply)))
    kind, number = struct.unpack_from("=4xH10xl", asked.recv(_BUFFER))
    if kind == _ERROR and number not in {0, -errno.ENOENT}:
        raise OSError(-number, os.strerror(-number))


@contextmanager
def _asking() -> Iterator[socket.socket]:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asked:
            asked.bind((0, 0))
            yield asked
    except OSError as error:
        raise MissingFeatureError(
            f"the kernel does not tell which connections are open: {error.strerror}",
            code="kernel-conntrack",
            hint="load nf_conntrack_netlink, as root",
        ) from error


def _request(kind: int, flags: int, attributes: bytes = b"") -> bytes:
    return struct.pack("=LHHLLBBH", 20 + len(attributes), kind, flags, 1, 0, socket.AF_INET, 0, 0) + attributes


def _connections(asked: socket.socket, end: str) -> Iterator[dict[int, bytes]]:
    """All attributes of each TCP connection that `address:port` answers.

    The kernel leaves out the others: there may be a hundred thousand. One before 5.8 does not.
    """
    address, _, port = end.rpartition(":")
    source = _nested(1, _attribute(1, socket.inet_aton(address)))
    protocol = _nested(2, _attribute(1, bytes([socket.IPPROTO_TCP])) + _attribute(2, struct.pack("!H", int(port))))
    flags = struct.pack("=L", _SOURCE | _PROTOCOL | _SOURCE_PORT)
    wanted = _nested(_REPLY, source + protocol) + _nested(_FILTER, _attribute(_REPLY_FLAGS, flags))
    asked.send(_request(_GET, _REQUEST_DUMP, wanted))
    for message in _messages(asked):
        attributes = dict(_attributes(message))
        if _answering(attributes) == end:
            yield attributes


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


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _nested(kind: int, data: bytes) -> bytes:
    return _attribute(_NESTED | kind, data)


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
