"""seccomp(2) filters for programs that need not wait for the disk.

dpkg makes each of its steps durable by itself. In a tree that is thrown away unless it becomes complete, and then is synchronised as a
whole, that only costs time.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# x86-64; elsewhere the filter lets everything pass. Source: arch/x86/entry/syscalls/syscall_64.tbl of Linux.
_AUDIT_ARCH_X86_64 = 0xC000003E
_SYNCHRONISING = {"msync": 26, "fsync": 74, "fdatasync": 75, "sync": 162, "sync_file_range": 277, "syncfs": 306}

# Instructions of classic BPF, and what a filter may return. Source: linux/bpf_common.h, linux/seccomp.h.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ALLOW, _ERRNO_0 = 0x7FFF0000, 0x00050000


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
