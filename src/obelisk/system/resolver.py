"""A resolver for one network, which answers for granted names alone and opens the way to the addresses that it tells: its own program.

    python -I resolver.py NFT UPSTREAM NAME:PORT… -- COMMAND…

It listens at 127.0.0.1:53 of the network in which it is started, goes on as COMMAND, and answers from a child that ends with that. An
answer is asked of UPSTREAM, which rules of nftables let only packets with the mark `MARK` reach. Each address in it is an element of the
sets `names4` or `names6` of the table `obelisk` for its time to live, before the answer is given; what is not granted is refused, and so
are addresses that no name has on a network: loopback, link-local, multicast. Only the standard library is used, and no other module.

Source: RFC 1035, section 4 (messages), 3.2 (types); RFC 3596 (AAAA); nft(8), element commands.
"""

import ctypes
import ipaddress
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

MARK = 0x6F62656C
PORT = 53
_LISTENING = ("127.0.0.1", PORT)
_A, _CNAME, _AAAA, _INTERNET = 1, 5, 28, 1
_FORMAT, _FAILED, _NO_NAME, _REFUSED = 1, 2, 3, 5
_RESPONSE, _OPCODE, _WANTED, _AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080
_MESSAGE_BYTES = 512  # of a response that fits into any buffer
_SIZES = {_A: 4, _AAAA: 16}
_MOST_ALIASES = 16
_MOST_LABELS = 127
_LONGEST_LABEL, _REFERENCE = 63, 0xC0
_LEAST_TTL_S, _MOST_TTL_S = 10, 86400  # a connection follows its answer by a moment
_TIMEOUT_S = 2.0
_TRIES = 2
_PR_SET_PDEATHSIG = 1

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Granted = Mapping[str, tuple[int, ...]]
"""Names in lower case, and their ports."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the number of the query, the name in lower case, and the type; and the bytes of the question as they came."""

    number: int
    name: str
    kind: int
    wire: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What is told: an error of DNS or 0, and addresses with the seconds that they hold."""

    error: int
    addresses: tuple[Address, ...] = ()
    ttl_s: int = _LEAST_TTL_S


class MessageError(ValueError):
    """A message that is none, or no answer to the question."""


def question(message: bytes) -> Question:
    """The question of a query.

    Raises:
        MessageError: it is no query of one name.
    """
    number, flags, count = _head(message)
    if flags & (_RESPONSE | _OPCODE) or count != 1:
        raise MessageError("no query of one name")
    name, at = _name(message, 12)
    kind, family = _fields(message, at, ">HH")
    if family != _INTERNET:
        raise MessageError("not of the internet")
    return Question(number, name, kind, message[12 : at + 4])


def query(name: str, kind: int, number: int) -> bytes:
    """A query for an address of a name."""
    labels = b"".join(bytes((len(label),)) + label.encode("ascii") for label in name.split("."))
    return struct.pack(">6H", number, _WANTED, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, _INTERNET)


def answer(message: bytes, name: str, kind: int, number: int) -> Answer:
    """What a response tells of the addresses of a name, by way of its aliases.

    Raises:
        MessageError: it is no response to that query.
    """
    found, flags, count = _head(message)
    if found != number or not flags & _RESPONSE or count != 1:
        raise MessageError("no response to the query")
    asked, at = _name(message, 12)
    if (asked, *_fields(message, at, ">HH")) != (name, kind, _INTERNET):
        raise MessageError("a response to another question")
    error = flags & 0xF
    if error:
        return Answer(error if error == _NO_NAME else _FAILED)
    most = (_MESSAGE_BYTES - at - 4) // (12 + _SIZES[kind])
    aliases: dict[str, tuple[str, int]] = {}
    told: dict[str, list[tuple[Address, int]]] = {}
    for owner, record, ttl_s, start, size in _records(message, at + 4, struct.unpack_from(">H", message, 6)[0]):
        if record == _CNAME:
            aliases.setdefault(owner, (_name(message, start)[0], ttl_s))
        elif record == kind and size == _SIZES[kind]:
            told.setdefault(owner, []).append((ipaddress.ip_address(message[start : start + size]), ttl_s))
    least_s = _MOST_TTL_S
    for _ in range(_MOST_ALIASES):
        if name not in aliases:
            break
        name, ttl_s = aliases[name]
        least_s = min(least_s, ttl_s)
    held = [(address, ttl_s) for address, ttl_s in told.get(name, []) if is_reachable(address)][:most]
    ttl_s = max(min([least_s, *(ttl_s for _, ttl_s in held)]), _LEAST_TTL_S)
    return Answer(0, tuple(address for address, _ in held), ttl_s)


def is_reachable(address: Address) -> bool:
    """Whether an address can be one of another machine."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    real = mapped or address
    odd = real.is_loopback or real.is_link_local or real.is_multicast or real.is_unspecified
    return not odd and int(real) != (1 << 32) - 1 and mapped is None


def response(asked: Question, told: Answer) -> bytes:
    """The message that tells an answer."""
    count = len(told.addresses)
    head = struct.pack(">6H", asked.number, _RESPONSE | _WANTED | _AVAILABLE | told.error, 1, count, 0, 0)
    kinds = {4: _A, 6: _AAAA}
    records = (
        struct.pack(">HHHIH", 0xC00C, kinds[address.version], _INTERNET, told.ttl_s, len(address.packed)) + address.packed
        for address in told.addresses
    )
    return head + asked.wire + b"".join(records)


def elements(told: Answer, ports: Sequence[int]) -> str:
    """The words for nft by which the way to addresses is open for their time to live, whether it was before or not."""
    lines = []
    for address in told.addresses:
        for way in ("tcp", "udp"):
            for port in ports:
                known = f"names{address.version} {{ {address} . {way} . {port}"
                # Only what is new gets the time; to add before makes the deletion one of something that is there.
                lines += [f"add element inet obelisk {known} }}", f"delete element inet obelisk {known} }}"]
                lines.append(f"add element inet obelisk {known} timeout {told.ttl_s}s }}")
    return "".join(f"{line}\n" for line in lines)


def _head(message: bytes) -> tuple[int, int, int]:
    number, flags, count = _fields(message, 0, ">HHH")
    return number, flags, count


def _fields(message: bytes, at: int, form: str) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, message, at)
    except struct.error as error:
        raise MessageError("the message ends early") from error


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name at `at` in lower case, and where what follows begins. References go back, so that they end."""
    labels: list[str] = []
    after = 0
    end = len(message)
    while True:
        (size,) = _fields(message, at, ">B")
        if size >= _REFERENCE:
            (reference,) = _fields(message, at, ">H")
            after = after or at + 2
            if reference & 0x3FFF >= min(at, end):
                raise MessageError("a reference that goes forward")
            at = end = reference & 0x3FFF
        elif size > _LONGEST_LABEL or at + 1 + size > len(message) or len(labels) > _MOST_LABELS or b"." in message[at + 1 : at + 1 + size]:
            raise MessageError("no label")
        elif size:
            labels.append(message[at + 1 : at + 1 + size].decode("latin-1").lower())
            at += 1 + size
        else:
            return ".".join(labels), after or at + 1


def _records(message: bytes, at: int, count: int) -> Iterator[tuple[str, int, int, int, int]]:
    """Owner, type, time to live, and start and size of the data of each record of the internet's."""
    for _ in range(count):
        owner, at = _name(message, at)
        kind, family, ttl_s, size = _fields(message, at, ">HHIH")
        at += 10 + size
        if at > len(message):
            raise MessageError("the message ends early")
        if family == _INTERNET:
            yield owner, kind, min(ttl_s, _MOST_TTL_S), at - size, size


# The program


def main(words: Sequence[str]) -> None:
    """Listen, leave a child to answer, and go on as the command."""
    nft, upstream, *rest = words
    granted: dict[str, tuple[int, ...]] = {}
    for each in rest[: rest.index("--")]:
        name, _, port = each.rpartition(":")
        granted[name] = (*granted.get(name, ()), int(port))
    command = rest[rest.index("--") + 1 :]
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.bind(_LISTENING)
    starter = os.getpid()
    if os.fork():
        listening.close()
        os.execv(command[0], command)  # noqa: S606 - an argument list
    # It ends with its starter, whose process becomes the application's bubblewrap.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != starter:
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    serve(listening, nft, upstream, granted)


def serve(listening: socket.socket, nft: str, upstream: str, granted: Granted) -> None:
    """Answer for ever."""
    while True:
        message, sender = listening.recvfrom(4096)
        try:
            asked = question(message)
        except MessageError:
            continue
        told = _found(asked, nft, upstream, granted)
        try:
            listening.sendto(response(asked, told), sender)
        except OSError:
            continue  # who has asked is gone


def _found(asked: Question, nft: str, upstream: str, granted: Granted) -> Answer:
    if asked.name not in granted:
        return Answer(_REFUSED)
    if asked.kind not in {_A, _AAAA}:
        return Answer(0)
    try:
        told = _asked(upstream, asked.name, asked.kind)
        if told.addresses:
            words = elements(told, granted[asked.name]).encode()
            subprocess.run([nft, "-f", "-"], input=words, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return Answer(_FAILED)
    return told


def _asked(upstream: str, name: str, kind: int) -> Answer:
    for _ in range(_TRIES):
        number = secrets.randbelow(1 << 16)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            asking.settimeout(_TIMEOUT_S)
            asking.connect((upstream, PORT))
            asking.send(query(name, kind, number))
            try:
                while True:
                    try:
                        return answer(asking.recv(4096), name, kind, number)
                    except MessageError:
                        continue  # somebody else's word
            except OSError:
                continue
    return Answer(_FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
