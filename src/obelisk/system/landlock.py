"""Landlock: a process gives up access to files, TCP ports and other processes, for itself and all that it starts.

Rules are made from paths as the process sees them; what a rule gives holds for all that is below. Kernels differ in what they know (the
ABI, a number that grows); what one does not know is neither asked of it nor promised.

Source: Linux, Documentation/userspace-api/landlock.rst; include/uapi/linux/landlock.h.
"""

import ctypes
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag

from obelisk.system.program import Call, Data, Kept, text
from obelisk.system.syscalls import NUMBERS


class Files(IntFlag):
    """Rights over files and directories, by the kernel's bits."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Files.READ_FILE | Files.READ_DIR
CHANGE = (
    Files.WRITE_FILE
    | Files.REMOVE_DIR
    | Files.REMOVE_FILE
    | Files.MAKE_DIR
    | Files.MAKE_REG
    | Files.MAKE_SOCK
    | Files.MAKE_FIFO
    | Files.MAKE_SYM
    | Files.REFER
    | Files.TRUNCATE
)
_OF_FILES = Files.EXECUTE | Files.WRITE_FILE | Files.READ_FILE | Files.TRUNCATE | Files.IOCTL_DEV
_BIND, _CONNECT = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_PATH_BENEATH, _NET_PORT = 1, 2
NETWORK_SINCE, SCOPES_SINCE = 4, 6
_SINCE = {Files.REFER: 2, Files.TRUNCATE: 3, Files.IOCTL_DEV: 5}
_O_PATH = 0o10000000


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights over what is at and below a path; a file has only those that files can have."""

    path: str
    rights: Files
    is_file: bool = False


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is left to a process. `ports` None: TCP is not restricted in that direction."""

    rules: tuple[Rule, ...]
    bind: tuple[int, ...] | None = ()
    connect: tuple[int, ...] | None = ()

    def calls(self, version: int) -> list[Call]:
        """The system calls that restrict their process, on a kernel with that ABI. They need no_new_privs."""
        known = files_known(version)
        network = ((_BIND if self.bind is not None else 0) | (_CONNECT if self.connect is not None else 0)) * (version >= NETWORK_SINCE)
        scopes = (_ABSTRACT_SOCKETS | _SIGNALS) * (version >= SCOPES_SINCE)
        handled = struct.pack("<QQQ", known, network, scopes)[: 8 + 8 * (version >= NETWORK_SINCE) + 8 * (version >= SCOPES_SINCE)]
        calls = [Call(NUMBERS["landlock_create_ruleset"], (Data((handled,)), len(handled), 0), "make a Landlock ruleset", keep="rules")]
        for number, rule in enumerate(self.rules):
            file = Kept(f"path-{number}")
            rights = rule.rights & known & (_OF_FILES if rule.is_file else ~Files(0))
            attributes = Data((struct.pack("<Q", rights), file))
            calls += [
                Call(NUMBERS["open"], (text(rule.path), _O_PATH, 0), f"open {rule.path} for a Landlock rule", keep=file.name),
                Call(NUMBERS["landlock_add_rule"], (Kept("rules"), _PATH_BENEATH, attributes, 0), f"add a Landlock rule for {rule.path}"),
                Call(NUMBERS["close"], (file,), ""),
            ]
        if version >= NETWORK_SINCE:
            for port, either in _by_port(self.bind or (), self.connect or ()):
                attributes = Data((struct.pack("<QQ", either, port),))
                calls.append(
                    Call(NUMBERS["landlock_add_rule"], (Kept("rules"), _NET_PORT, attributes, 0), f"add a Landlock rule for port {port}")
                )
        calls.append(Call(NUMBERS["landlock_restrict_self"], (Kept("rules"), 0), "restrict itself by Landlock"))
        return [*calls, Call(NUMBERS["close"], (Kept("rules"),), "")]


def files_known(version: int) -> Files:
    """The rights over files that a kernel with that ABI can withhold."""
    return Files(sum(right for right in Files if _SINCE.get(right, 1) <= version))


def abi() -> int:
    """The ABI of the running kernel; 0 when it has no Landlock, or has it switched off."""
    library = ctypes.CDLL(None, use_errno=True)
    return max(0, int(library.syscall(NUMBERS["landlock_create_ruleset"], None, 0, 1)))


def _by_port(bind: Sequence[int], connect: Sequence[int]) -> Iterable[tuple[int, int]]:
    for port in sorted({*bind, *connect}):
        yield port, (_BIND if port in bind else 0) | (_CONNECT if port in connect else 0)
