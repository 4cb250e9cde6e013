"""Filters of system calls: the program decides as the description does, whatever the numbers and arguments are."""

import errno
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.system.seccomp import Check, Filter
from obelisk.system.syscalls import NUMBERS

X86_64, I386, X32 = 0xC000003E, 0x40000003, 0x40000000
ALLOW, ERRNO, ASK, KILL = 0x7FFF0000, 0x00050000, 0x7FC00000, 0x80000000


def outcome(program: bytes, number: int, arguments: Sequence[int] = (), architecture: int = X86_64) -> int:
    """What the kernel would return: an interpreter of the instructions that filters have. Source: linux/filter.h."""
    given_arguments = [*arguments, *[0] * 6][:6]
    memory = struct.pack("<IIQ6Q", number, architecture, 0, *(argument & (1 << 64) - 1 for argument in given_arguments))
    instructions = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, true, false, value = instructions[at]
        at += 1
        match code:
            case 0x20:
                accumulator = int.from_bytes(memory[value : value + 4], "little")
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += true if accumulator == value else false
            case 0x35:
                at += true if accumulator >= value else false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(code)


words = st.integers(0, (1 << 64) - 1) | st.sampled_from((0, 1, 2, 4, 6, 7, 1 << 32, (1 << 32) - 1))
small = st.integers(0, 7)
checks = st.builds(
    Check,
    st.integers(0, 5),
    st.lists(small, min_size=1, max_size=4, unique=True).map(tuple),
    st.integers(1, 100),
    st.sampled_from((3, 6, 0xFFFFFFFF)),
    st.booleans(),
    st.none() | st.tuples(st.integers(0, 5), small),
)
filters = st.builds(
    Filter,
    st.dictionaries(st.integers(0, 470), st.lists(checks, max_size=3).map(tuple), max_size=40),
    st.dictionaries(st.integers(0, 470), st.integers(1, 100), max_size=40),
)


@given(filters, st.data())
def test_the_program_decides_as_the_description_says(one: Filter, data: st.DataObject) -> None:
    number = data.draw(st.sampled_from(sorted({0, *one.allowed, *one.errors})) | st.integers(0, 1000))
    arguments = data.draw(st.lists(small | words, min_size=6, max_size=6))
    refused = one.refusal(number, arguments)
    assert outcome(one.program(), number, arguments) == (ERRNO | refused if refused else ALLOW)
    assert outcome(one.program(ask=True), number, arguments) == (ASK if refused else ALLOW)


@given(filters, st.integers(0, 470))
def test_what_is_watched_is_asked_about_whether_it_is_allowed_or_not(one: Filter, number: int) -> None:
    assert outcome(one.program(ask=True, watched=frozenset({number})), number) == ASK


@given(filters, st.integers(0, 1000))
def test_numbers_of_other_architectures_never_pass(one: Filter, number: int) -> None:
    assert outcome(one.program(), number, architecture=I386) == KILL
    assert outcome(one.program(), number | X32) == ERRNO | errno.ENOSYS


def test_the_high_half_of_an_argument_hides_nothing() -> None:
    ioctl = Filter({16: (Check(1, (0x5412,), errno.EPERM, not_one=True),)}, {})
    for high in (0, 1 << 32, 0xFFFFFFFF << 32):
        assert outcome(ioctl.program(), 16, (0, high | 0x5412)) == ERRNO | errno.EPERM
        assert outcome(ioctl.program(), 16, (0, high | 0x5401)) == ALLOW


@pytest.mark.parametrize(
    ("name", "number"),
    [("read", 0), ("mmap", 9), ("execve", 59), ("rseq", 334), ("pidfd_send_signal", 424), ("clone3", 435), ("landlock_add_rule", 445)],
)
def test_numbers_are_those_of_the_kernel(name: str, number: int) -> None:
    assert NUMBERS[name] == number
