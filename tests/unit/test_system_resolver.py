"""The resolver of granted names: what it takes for a question and an answer, what it tells, and what it opens."""

import ipaddress
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.system import resolver
from obelisk.system.resolver import Answer, MessageError, Question

A, CNAME, AAAA = 1, 5, 28
Record = tuple[bytes, int, int, bytes]
"""Owner as it is on the wire, type, time to live, data."""


def wire(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


def told(name: str, kind: int, records: Sequence[Record], *, number: int = 7, flags: int = 0x8180) -> bytes:
    """A response."""
    head = struct.pack(">6H", number, flags, 1, len(records), 0, 0) + wire(name) + struct.pack(">HH", kind, 1)
    return head + b"".join(owner + struct.pack(">HHIH", record, 1, ttl, len(data)) + data for owner, record, ttl, data in records)


def v4(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def test_a_question_is_read_and_its_answer_can_be_read_again() -> None:
    asked = resolver.question(resolver.query("Example.ORG", A, 99))
    assert asked == Question(99, "example.org", A, wire("Example.ORG") + bytes((0, 1, 0, 1)))
    answer = Answer(0, (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")), 60)
    assert resolver.answer(resolver.response(asked, answer), "example.org", A, 99) == answer
    assert resolver.response(asked, Answer(5))[3] & 15 == 5


def test_addresses_are_those_of_the_name_or_of_what_it_is_an_alias_for() -> None:
    records = [
        (wire("example.org"), CNAME, 90, wire("a.net")),
        (wire("b.net"), A, 60, v4("192.0.2.1")),
        (wire("A.net"), CNAME, 30, wire("b.net")),
        (wire("b.net"), AAAA, 60, bytes(16)),
        (wire("stranger.net"), A, 60, v4("192.0.2.9")),
    ]
    assert resolver.answer(told("example.org", A, records), "example.org", A, 7) == Answer(0, (ipaddress.ip_address("192.0.2.1"),), 30)
    loop = [(wire("example.org"), CNAME, 90, wire("a.net")), (wire("a.net"), CNAME, 90, wire("example.org"))]
    assert resolver.answer(told("example.org", A, loop), "example.org", A, 7).addresses == ()


def test_references_are_followed_back_and_never_forward() -> None:
    back = told("example.org", A, [(b"\xc0\x0c", A, 60, v4("192.0.2.1"))])
    assert resolver.answer(back, "example.org", A, 7).addresses == (ipaddress.ip_address("192.0.2.1"),)
    at = len(told("example.org", A, []))
    for owner in (struct.pack(">H", 0xC000 | at), struct.pack(">H", 0xC000 | at + 4), b"\xc0", b"\x40a\0", b"\x80\0"):
        with pytest.raises(MessageError):
            resolver.answer(told("example.org", A, [(owner, A, 60, v4("192.0.2.1"))]), "example.org", A, 7)


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "ff02::1", "::ffff:10.0.0.1"],  # noqa: S104
)
def test_what_no_other_machine_has_is_no_address(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not resolver.is_reachable(address)
    kind = A if address.version == 4 else AAAA
    assert resolver.answer(told("a.org", kind, [(wire("a.org"), kind, 60, address.packed)]), "a.org", kind, 7) == Answer(0, (), 86400)


@pytest.mark.parametrize("text", ["10.0.0.1", "192.0.2.1", "8.8.8.8", "2001:db8::1", "fd00::1"])
def test_what_another_machine_may_have_is(text: str) -> None:
    assert resolver.is_reachable(ipaddress.ip_address(text))


def test_a_response_to_something_else_is_none() -> None:
    right = told("a.org", A, [(wire("a.org"), A, 60, v4("192.0.2.1"))])
    for message in (
        told("a.org", A, [], number=8),
        told("b.org", A, []),
        told("a.org", AAAA, []),
        told("a.org", A, [], flags=0x0180),
        right[:-1],
        right[:11],
        b"",
    ):
        with pytest.raises(MessageError):
            resolver.answer(message, "a.org", A, 7)
    assert resolver.answer(told("a.org", A, [], flags=0x8183), "a.org", A, 7) == Answer(3)
    assert resolver.answer(told("a.org", A, [], flags=0x8185), "a.org", A, 7) == Answer(2)


def test_a_label_with_a_dot_in_it_is_not_taken_for_two() -> None:
    hidden = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + b"\x05a.org\0" + struct.pack(">HH", A, 1)
    with pytest.raises(MessageError):
        resolver.question(hidden)


def test_times_to_live_are_kept_within_bounds_and_the_shortest_counts() -> None:
    for ttls, wanted in (((0,), 10), ((60, 30), 30), ((1 << 31,), 86400)):
        records = [(wire("a.org"), A, ttl, v4(f"192.0.2.{number}")) for number, ttl in enumerate(ttls, start=1)]
        assert resolver.answer(told("a.org", A, records), "a.org", A, 7).ttl_s == wanted


def test_so_many_addresses_are_told_as_fit_and_no_more_are_opened() -> None:
    name = ".".join(["a" * 49] * 5)
    records = [(wire(name), A, 60, v4(f"10.0.0.{number}")) for number in range(1, 100)]
    found = resolver.answer(told(name, A, records), name, A, 7)
    asked = resolver.question(resolver.query(name, A, 1))
    assert 0 < len(resolver.response(asked, found)) <= 512
    assert resolver.elements(found, (443,)).count("timeout") == 2 * len(found.addresses)


def test_what_is_opened_is_the_addresses_at_the_ports_for_the_time() -> None:
    words = resolver.elements(Answer(0, (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")), 60), (443, 80))
    lines = words.splitlines()
    assert "add element inet obelisk names4 { 192.0.2.1 . tcp . 443 timeout 60s }" in lines
    assert "add element inet obelisk names6 { 2001:db8::1 . udp . 80 timeout 60s }" in lines
    assert sum("timeout" in line for line in lines) == 8
    assert [line.split()[0] for line in lines] == ["add", "delete", "add"] * 8  # of each element, whether it was there or not


@given(st.binary(max_size=80), st.integers(0, 40), st.sampled_from((A, AAAA)))
def test_no_message_is_more_than_refused(noise: bytes, at: int, kind: int) -> None:
    whole = told("a.org", kind, [(b"\xc0\x0c", CNAME, 5, wire("b.org")), (wire("b.org"), kind, 60, bytes(4 if kind == A else 16))])
    for message in (noise, whole[:at] + noise, whole[:at] + noise + whole[at + len(noise) :]):
        for read in (resolver.question, lambda message: resolver.answer(message, "a.org", kind, 7)):
            try:
                read(message)
            except MessageError:
                continue
