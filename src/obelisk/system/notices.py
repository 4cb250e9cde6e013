"""System calls that a filter puts before an observer, instead of deciding alone (seccomp user notification).

A filter that was installed with a listener stops the calling thread and tells of the call; the observer answers with an error, or lets
the call go on. What the caller's arguments point to is read from its memory.

Source: seccomp_unotify(2); linux/seccomp.h.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")
_GO_ON = 1
_PATIENCE_MS = 200


@dataclass(frozen=True, slots=True)
class Notice:
    """One call: which thread made it (as this process sees its number), the call's number, its arguments."""

    thread: int
    number: int
    arguments: tuple[int, ...]

    def text(self, argument: int, *, most: int = 4096) -> str:
        """The string that an argument points to; empty when it cannot be read."""
        content = self.memory(argument, most)
        return content.partition(b"\0")[0].decode(errors="replace")

    def memory(self, argument: int, size: int) -> bytes:
        """Up to `size` bytes at what an argument points to, page by page as far as they can be read."""
        address, content = self.arguments[argument], b""
        with suppress(OSError), Path(f"/proc/{self.thread}/mem").open("rb", buffering=0) as memory:
            while len(content) < size:
                memory.seek(address + len(content))
                part = memory.read(min(size - len(content), 4096 - (address + len(content)) % 4096))
                if not part:
                    break
                content += part
                if b"\0" in part:
                    break
        return content

    def link(self, name: str) -> str:
        """Where a link of the thread below /proc leads, such as `cwd`; empty when that cannot be told."""
        with suppress(OSError):
            return str(Path(f"/proc/{self.thread}/{name}").readlink())
        return ""


Answer = Callable[[Notice], int]
"""The error with which a call is refused, or 0 to let it go on."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Both ends of the way on which a listener arrives; `theirs` is the number of the end that the program inherits."""

    ours: socket.socket
    theirs: socket.socket

    @classmethod
    def open(cls) -> "Channel":
        """A new one."""
        return cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))


def run_observed(
    argv: Sequence[str | Path], channel: Channel, answer: Answer, *, output: IO[bytes] | None = None, timeout_s: float | None = None
) -> int:
    """Run a program whose filter sends its listener by `channel`, answer for as long as it lives, and give its exit status.

    `output` gets what it says on both streams; without it, these are ours. What overruns its time is killed.
    """
    both = None if output is None else output.fileno()
    words = [str(word) for word in argv]
    process = subprocess.Popen(
        words, pass_fds=[channel.theirs.fileno()], stdout=both, stderr=both, process_group=None if output is None else 0
    )
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    channel.theirs.close()
    listener = -1
    try:
        with channel.ours:
            # The end that the program inherited is closed when it has sent its listener, or has ended without.
            _data, descriptors, _flags, _address = socket.recv_fds(channel.ours, 1, 1)
        if descriptors:
            listener = descriptors[0]
            _answer_all(listener, process, answer, deadline)
    finally:
        if listener >= 0:
            os.close(listener)  # what still waits goes on with ENOSYS
        if deadline is not None and time.monotonic() > deadline:
            process.kill()
        status = process.wait()
    return status


def _answer_all(listener: int, process: subprocess.Popen[bytes], answer: Answer, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        ready = poll.poll(_PATIENCE_MS)
        if deadline is not None and time.monotonic() > deadline:
            return
        if any(event & select.POLLHUP for _descriptor, event in ready) or (not ready and process.poll() is not None):
            return
        if ready:
            _answer_one(listener, answer)


def _answer_one(listener: int, answer: Answer) -> None:
    raw = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, raw)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EINTR}:
            return  # the caller was killed meanwhile
        raise
    identity, thread, _flags, number, _architecture, _at, *arguments = _NOTICE.unpack(raw)
    refusal = answer(Notice(thread, number, tuple(arguments)))
    with suppress(OSError):  # likewise
        fcntl.ioctl(listener, _SEND, _ANSWER.pack(identity, 0, -refusal, 0 if refusal else _GO_ON))
