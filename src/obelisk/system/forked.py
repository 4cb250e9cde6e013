"""Work for all processors at once in forked processes, which share memory as it was and report by lines.

For loops whose every step is small: threads would wait for each other at the interpreter's lock.
"""

import os
import selectors
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from obelisk.errors import StateError

_PIPE_BYTES = 1 << 16
_PER_PROCESSOR = 3


def in_parallel(work: Callable[[int, int], Iterator[str]]) -> Iterator[str]:
    """The lines, without their ends, that `work(index, count)` gives in each of `count` processes, in the order in which they come.

    `work` reads and computes; what it changes in memory is lost. Where this ends early, the processes do. There are more of them than
    processors, so that some compute while others wait for the disk.

    Raises:
        StateError: one of them failed; its error was written to standard error.
    """
    count = _PER_PROCESSOR * len(os.sched_getaffinity(0))
    children: dict[int, int] = {}
    try:
        for index in range(count):
            source, target = os.pipe()
            child = os.fork()
            if child == 0:
                for inherited in (source, *children):  # else nobody would notice that the parent listens no more
                    os.close(inherited)
                _run(work, index, count, target)
            os.close(target)
            children[source] = child
        yield from _lines(children)
    finally:
        for source in children:
            os.close(source)
        failed = [child for child in children.values() if os.waitpid(child, 0)[1] != 0]
    if failed:
        raise StateError(
            f"{len(failed)} of {count} processes that shared this work failed", code="worker-failed", hint="see what they said"
        )


def _run(work: Callable[[int, int], Iterator[str]], index: int, count: int, target: int) -> NoReturn:
    status = 1
    try:
        for line in work(index, count):
            os.write(target, f"{line}\n".encode())
        status = 0
    except BrokenPipeError:  # nobody listens any more
        pass
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        os._exit(status)  # nothing of the parent's is flushed or cleaned up twice


def _lines(children: dict[int, int]) -> Iterator[str]:
    rests = dict.fromkeys(children, b"")
    with selectors.DefaultSelector() as selector:
        for source in children:
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, _PIPE_BYTES)
                if not data:
                    selector.unregister(key.fd)
                    continue
                *lines, rests[key.fd] = (rests[key.fd] + data).split(b"\n")
                yield from (line.decode() for line in lines)
