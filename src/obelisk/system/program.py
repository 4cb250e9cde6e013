"""Small static programs for Linux on x86-64: system calls with fixed arguments, one after the other, then another program.

What has to happen between a start and an application, and must not cost the start of an interpreter or a shell, is decided beforehand and
written down as such a program. There are two branches in it: a call that fails ends it with a message and the status 126, so nothing
is ever started half confined; and a process beside it makes its own calls, the last of which turns it into another program.

Layout of the file: ELF header, two segments and a mark that the stack is not executable; code at 0x400000, read-only; data at 0x600000.

Source: System V ABI, AMD64 supplement (entry: argc, argv, envp on the stack); elf(5); syscall(2).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_CODE, _DATA = 0x400000, 0x600000
_PAGE = 4096
_HEADERS = 64 + 3 * 56
_FORK: Final = 57
_EXECVE: Final = 59
FAILED: Final = 126
"""The status with which a program ends of which a call failed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the call that kept its result under this name returned."""

    name: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a call puts two results of 4 bytes, as pipe2(2) does; they are kept under these names."""

    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes in memory. A part that is `Data` is a pointer to it (8 bytes), one that is `Kept` a result (4 bytes)."""

    parts: "tuple[bytes | Data | Kept, ...]"


Argument = int | Data | Kept | Pair


@dataclass(frozen=True, slots=True)
class Call:
    """One system call. `what` completes "cannot …" when it fails; empty when it may fail. `keep` names its result.

    It fails when its result is below `least`, at most 127.
    """

    number: int
    arguments: tuple[Argument, ...]
    what: str
    keep: str = ""
    least: int = 0


@dataclass(frozen=True, slots=True)
class Beside:
    """A process beside this one, which has what this one has. Its last call does not return: see `becoming`."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Execute:
    """The program that follows: `words` and then the words that this program was given; nothing else is in its environment."""

    path: str
    words: tuple[str, ...]
    environment: tuple[str, ...] = ()


def text(value: str) -> Data:
    """A string as C has it."""
    return Data((value.encode() + b"\0",))


def becoming(execute: Execute) -> Call:
    """The call by which a process beside goes on as another program. Words that this program was given are not for it."""
    words, environment = (Data((*map(text, parts), bytes(8))) for parts in (execute.words, execute.environment))
    return Call(_EXECVE, (text(execute.path), words, environment), f"start {execute.path}")


def assemble(calls: Sequence[Call | Beside], execute: Execute) -> bytes:
    """The program file."""
    return _Assembly().whole(calls, execute)


class _Assembly:
    """Code and data while they grow."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.data = bytearray()
        self.places: dict[Data, int] = {}
        self.slots: dict[str, int] = {}
        self.failures: list[int] = []  # where a jump to the common end has to be filled in

    def whole(self, calls: Sequence[Call | Beside], execute: Execute) -> bytes:
        for call in calls:
            if isinstance(call, Beside):
                self.beside(call)
            else:
                self.call(call)
        self.execute(execute)
        self.end()
        code = bytes(_HEADERS) + bytes(self.code)
        start = -(-len(code) // _PAGE) * _PAGE
        return _headers(len(code), start, len(self.data)) + code[_HEADERS:].ljust(start - _HEADERS, b"\0") + bytes(self.data)

    def call(self, call: Call) -> None:
        for argument in call.arguments:
            self.fill(argument)
        for argument, load in zip(call.arguments, _LOADS, strict=False):
            if isinstance(argument, Kept):
                self.code += load.from_memory + _word(self.slots[argument.name])
            elif isinstance(argument, Pair):
                at = self.reserve(bytes(8))
                self.slots |= {argument.first: at, argument.second: at + 4}
                self.code += load.constant + struct.pack("<Q", at)
            else:
                self.code += load.constant + struct.pack("<Q", self.place(argument) if isinstance(argument, Data) else argument & _MASK)
        self.code += b"\xb8" + _word(call.number) + b"\x0f\x05"  # mov eax, number; syscall
        if call.keep:
            self.slots[call.keep] = self.reserve(bytes(8))
            self.code += b"\x48\x89\x04\x25" + _word(self.slots[call.keep])  # mov [slot], rax
        if call.what:
            self.code += b"\x48\x83\xf8" + bytes([call.least])  # cmp rax, least
            self.fail_unless(b"\x7d", call.what)  # jge

    def beside(self, beside: Beside) -> None:
        self.call(Call(_FORK, (), "start a process beside"))
        self.code += b"\x85\xc0\x0f\x85" + bytes(4)  # test eax, eax; jnz
        at = len(self.code)
        for call in beside.calls:
            self.call(call)
        self.code[at - 4 : at] = _word(len(self.code) - at)

    def fail_unless(self, jump: bytes, what: str) -> None:
        """End with a message, unless the short `jump` is taken."""
        message = f"obelisk: cannot {what}\n".encode()
        failure = b"\xbe" + _word(self.place(Data((message,)))) + b"\xba" + _word(len(message)) + b"\xe9"  # esi, edx; jmp
        self.code += jump + bytes([len(failure) + 4]) + failure
        self.failures.append(len(self.code))
        self.code += bytes(4)

    def fill(self, argument: Argument) -> None:
        """Store the results that `argument`, or what it points to, is to hold."""
        if not isinstance(argument, Data):
            return
        at = self.place(argument)
        for part in argument.parts:
            if isinstance(part, Kept):
                self.code += b"\x8b\x04\x25" + _word(self.slots[part.name]) + b"\x89\x04\x25" + _word(at)  # mov eax, [slot]; mov [at], eax
                at += 4
            elif isinstance(part, Data):
                self.fill(part)
                at += 8
            else:
                at += len(part)

    def place(self, data: Data) -> int:
        """The address of `data`, which is laid down once."""
        if data not in self.places:
            content = b""
            for part in data.parts:
                if isinstance(part, Kept):
                    content += bytes(4)
                else:
                    content += struct.pack("<Q", self.place(part)) if isinstance(part, Data) else part
            self.places[data] = self.reserve(content)
        return self.places[data]

    def reserve(self, content: bytes) -> int:
        self.data += bytes(-len(self.data) % 8)
        at = _DATA + len(self.data)
        self.data += content
        return at

    def execute(self, execute: Execute) -> None:
        words = self.place(Data(tuple(text(word) for word in execute.words)))
        environment = self.place(Data((*(text(variable) for variable in execute.environment), bytes(8))))
        count = len(execute.words)
        self.code += b"\x48\x8b\x1c\x24"  # mov rbx, [rsp]: how many words this program has, its name included
        self.code += b"\x48\x85\xdb"  # test rbx, rbx
        self.fail_unless(b"\x75", "tell which words follow")  # jnz
        self.code += b"\x4c\x8d\x64\x24\x08"  # lea r12, [rsp+8]
        self.code += b"\x48\x8d\x04\xdd" + _word(8 * count + 16) + b"\x48\x29\xc4"  # lea rax, [rbx*8+…]; sub rsp, rax
        self.code += b"\x48\x89\xe7"  # mov rdi, rsp
        self.code += b"\x48\xbe" + struct.pack("<Q", words) + b"\xb9" + _word(count) + b"\xf3\x48\xa5"  # rsi, ecx; rep movsq
        self.code += b"\x49\x8d\x74\x24\x08\x48\x8d\x4b\xff\xf3\x48\xa5"  # lea rsi, [r12+8]; lea rcx, [rbx-1]; rep movsq
        self.code += b"\x48\xc7\x07" + _word(0) + b"\x48\x89\xe6"  # mov qword [rdi], 0; mov rsi, rsp
        self.code += b"\x48\xbf" + struct.pack("<Q", self.place(text(execute.path)))
        self.code += b"\x48\xba" + struct.pack("<Q", environment)
        self.code += b"\xb8" + _word(_EXECVE) + b"\x0f\x05\x48\x85\xc0"
        self.fail_unless(b"\x79", f"start {execute.path}")

    def end(self) -> None:
        """Write the message that esi and edx name, and exit."""
        for at in self.failures:
            self.code[at : at + 4] = struct.pack("<i", len(self.code) - at - 4)
        self.code += b"\xbf" + _word(2) + b"\xb8" + _word(1) + b"\x0f\x05"  # write(2, …)
        self.code += b"\xbf" + _word(FAILED) + b"\xb8" + _word(231) + b"\x0f\x05"  # exit_group


@dataclass(frozen=True, slots=True)
class _Load:
    """How a register is filled: `mov` with a constant of 8 bytes, and with 4 bytes from an address of 4."""

    constant: bytes
    from_memory: bytes


# rdi, rsi, rdx, r10, r8, r9
_LOADS = (
    _Load(b"\x48\xbf", b"\x8b\x3c\x25"),
    _Load(b"\x48\xbe", b"\x8b\x34\x25"),
    _Load(b"\x48\xba", b"\x8b\x14\x25"),
    _Load(b"\x49\xba", b"\x44\x8b\x14\x25"),
    _Load(b"\x49\xb8", b"\x44\x8b\x04\x25"),
    _Load(b"\x49\xb9", b"\x44\x8b\x0c\x25"),
)
_MASK = (1 << 64) - 1


def _word(value: int) -> bytes:
    return struct.pack("<I", value)


def _headers(code_bytes: int, data_at: int, data_bytes: int) -> bytes:
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _CODE + _HEADERS, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    read, write, run = 4, 2, 1
    code = struct.pack("<IIQQQQQQ", 1, read | run, 0, _CODE, _CODE, code_bytes, code_bytes, _PAGE)
    data = struct.pack("<IIQQQQQQ", 1, read | write, data_at, _DATA, _DATA, data_bytes, data_bytes, _PAGE)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, read | write, 0, 0, 0, 0, 0, 16)
    return elf + code + data + stack
