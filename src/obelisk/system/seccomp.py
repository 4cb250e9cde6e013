"""seccomp(2): filters that decide about system calls by number and arguments, as programs of classic BPF for x86-64.

`without_synchronising` is for builds: dpkg makes each of its steps durable by itself, which in a tree that is thrown away unless it
becomes complete, and then is synchronised as a whole, only costs time. `Filter` is for sandboxes: what it does not allow is refused.
"""

import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# x86-64; elsewhere the filter lets everything pass. Source: arch/x86/entry/syscalls/syscall_64.tbl of Linux.
_AUDIT_ARCH_X86_64 = 0xC000003E
_SYNCHRONISING = {"msync": 26, "fsync": 74, "fdatasync": 75, "sync": 162, "sync_file_range": 277, "syncfs": 306}

# Instructions of classic BPF, and what a filter may return. Source: linux/bpf_common.h, linux/seccomp.h.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ALLOW, _ERRNO_0 = 0x7FFF0000, 0x00050000
_ASK, _KILL = 0x7FC00000, 0x80000000  # SECCOMP_RET_USER_NOTIF, SECCOMP_RET_KILL_PROCESS
_GO, _JUMP_ABOVE, _AND = 0x05, 0x35, 0x54
_ARGUMENTS = 16  # offset; 8 bytes each, the low half first
_WHOLE = 0xFFFFFFFF


def without_synchronising() -> bytes:
    """A filter under which every call that waits for the disk succeeds at once, and does nothing."""
    calls = sorted(_SYNCHRONISING.values())
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 0, len(calls) + 1, _AUDIT_ARCH_X86_64), (_LOAD, 0, 0, _NUMBER)]
    program += [(_JUMP_EQUAL, len(calls) - index, 0, number) for index, number in enumerate(calls)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO_0)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


@contextmanager
def as_file(program: bytes) -> Iterator[int]:
    """A descriptor from which another program can read `program`."""
    descriptor = os.memfd_create("filter")
    try:
        os.write(descriptor, program)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Check:
    """A condition on the low half of one argument: `argument & mask` is one of `values`, or with `not_one` none of them.

    A call whose condition does not hold is refused with `error`. With `among`, the condition is asked only when that argument has that
    value. All arguments that checks are for are `int` or flags, of which the kernel itself takes the low half alone.
    """

    argument: int
    values: tuple[int, ...]
    error: int
    mask: int = _WHOLE
    not_one: bool = False
    among: tuple[int, int] | None = None

    def holds(self, arguments: Sequence[int]) -> bool:
        """Whether a call with these arguments passes."""
        if self.among is not None and arguments[self.among[0]] & _WHOLE != self.among[1]:
            return True
        return ((arguments[self.argument] & self.mask) in self.values) is not self.not_one


_Instruction = tuple[int, int, int, int]
_Fate = tuple[Check, ...] | int | None


@dataclass(frozen=True, slots=True)
class Filter:
    """What is allowed: numbers of calls with the conditions for each. `errors` are answers to other known calls; the rest is `ENOSYS`.

    `ENOSYS` is what an older kernel says of a call that it does not have, and what programs are prepared for.
    """

    allowed: Mapping[int, tuple[Check, ...]]
    errors: Mapping[int, int]

    def refusal(self, number: int, arguments: Sequence[int]) -> int:
        """The error with which a call is refused; 0 when it is allowed."""
        if number not in self.allowed:
            return self.errors.get(number, errno.ENOSYS)
        return next((check.error for check in self.allowed[number] if not check.holds(arguments)), 0)

    def program(self, *, ask: bool = False, watched: frozenset[int] = frozenset()) -> bytes:
        """The program. Calls by another architecture's numbers end the process.

        With `ask`, what is refused, and every call in `watched`, is put before whoever holds the filter's listener.
        """
        body = self._search(self._ranges(watched), ask=ask)
        begin = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in (*begin, *body))

    def _ranges(self, watched: frozenset[int]) -> list[tuple[int, _Fate]]:
        """The first number of each run of calls that fare alike; the last run has no end."""
        ranges: list[tuple[int, _Fate]] = []
        for number in range(max({0, *self.allowed, *self.errors}) + 2):
            fate: _Fate
            if number in watched:
                fate = None
            elif number in self.allowed:
                fate = self.allowed[number]
            else:
                fate = self.errors.get(number, errno.ENOSYS)
            if not ranges or ranges[-1][1] != fate:
                ranges.append((number, fate))
        return ranges

    def _search(self, ranges: Sequence[tuple[int, _Fate]], *, ask: bool) -> list[_Instruction]:
        if len(ranges) == 1:
            return _leaf(ranges[0][1], ask=ask)
        middle = len(ranges) // 2
        low, high = self._search(ranges[:middle], ask=ask), self._search(ranges[middle:], ask=ask)
        # A conditional jump reaches 255 instructions, an unconditional one any number.
        return [(_JUMP_ABOVE, 0, 1, ranges[middle][0]), (_GO, 0, 0, len(low)), *low, *high]


def _leaf(fate: _Fate, *, ask: bool) -> list[_Instruction]:
    if fate is None:
        return [(_RETURN, 0, 0, _ASK)]
    if isinstance(fate, int):
        return [(_RETURN, 0, 0, _ASK if ask else _ERRNO_0 | fate)]
    return [instruction for check in fate for instruction in _test(check, ask=ask)] + [(_RETURN, 0, 0, _ALLOW)]


def _test(check: Check, *, ask: bool) -> list[_Instruction]:
    """Refuse when the condition does not hold, else go on behind the last instruction."""
    count = len(check.values)
    test: list[_Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * check.argument), (_AND, 0, 0, check.mask)]
    if check.not_one:
        test += [(_JUMP_EQUAL, count - index, 0, value) for index, value in enumerate(check.values)]
        test.append((_GO, 0, 0, 1))
    else:
        test += [(_JUMP_EQUAL, count - index, 0, value) for index, value in enumerate(check.values)]
    test.append((_RETURN, 0, 0, _ASK if ask else _ERRNO_0 | check.error))
    if check.among is not None:
        argument, value = check.among
        test = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_JUMP_EQUAL, 0, len(test), value), *test]
    return test
