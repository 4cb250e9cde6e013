"""One stream of events that all long work reports to, passed explicitly as a `Sink`.

The terminal, `--json`, log files and dashboards are sinks of the same events. A task is named by a path-like string that is unique
among the tasks running at one time (`base`, `fetch`, `boot/1`). Sinks must be safe to call from several threads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True, slots=True)
class Started:
    """Work on `task` begins; `total` (in `unit`) is None when it is unknown."""

    task: str
    title: str
    total: int | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of the total that `Started` announced, or of a better known `total`."""

    task: str
    done: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One line that an external program said on behalf of `task`."""

    task: str
    line: str


@dataclass(frozen=True, slots=True)
class Finished:
    """`task` is done. `cached` when its result was there already; `detail` is a short human remark."""

    task: str
    seconds: float
    cached: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """`task` ended with an error, which is raised as well."""

    task: str
    message: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should know, outside any task."""

    message: str


Event = Started | Progress | Output | Finished | Failed | Note
Sink = Callable[[Event], None]


def silent(_event: Event) -> None:
    """A sink that drops everything."""


class Task:
    """Reports on one piece of work; made by `task`."""

    __slots__ = ("detail", "name", "sink")

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink = sink
        self.name = name
        self.detail = ""

    def progress(self, done: int, total: int | None = None) -> None:
        """Report that `done` units are complete."""
        self.sink(Progress(self.name, done, total))

    def counting(self, total: int) -> Callable[[int], None]:
        """Reports units of `total` as they are told of, some at a time."""
        done = 0

        def count(units: int) -> None:
            nonlocal done
            done = min(done + units, total)
            self.progress(done, total)

        return count

    def output(self, line: str) -> None:
        """Pass on one line of an external program."""
        self.sink(Output(self.name, line))


@contextmanager
def task(sink: Sink, name: str, title: str, *, total: int | None = None, unit: str = "") -> Iterator[Task]:
    """Report the enclosed block as one task: started, then finished or failed."""
    began = monotonic()
    sink(Started(name, title, total, unit))
    running = Task(sink, name)
    try:
        yield running
    except BaseException as error:
        sink(Failed(name, str(error) or type(error).__name__))
        raise
    sink(Finished(name, monotonic() - began, detail=running.detail))
