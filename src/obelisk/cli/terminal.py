"""What people and programs are told: progress bars on a terminal, plain lines in a pipe or a log, JSON lines for programs.

With `--json`, standard output is nothing but JSON, an object a line: events as they happen, and last `{"event": "result", …}`. Errors are
one object on standard error.
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from time import monotonic

from obelisk.events import Event, Failed, Finished, Note, Output, Progress, Sink, Started

_EVERY_S = 0.2
_TELLING_S = 2.0
"""After so long, the speed so far says something about the rest."""


@contextmanager
def reporting(*, json_wanted: bool) -> Iterator[Sink]:
    """The sink that suits where standard error leads."""
    if json_wanted:
        yield _json_lines
    elif sys.stderr.isatty():
        with _bars() if find_spec("rich") else _percent() as sink:
            yield sink
    else:
        yield _plain_lines()


def answer(text: str = "", *, json_wanted: bool, **result: object) -> None:
    """Print what came of a command: `text` for people, `result` for programs. It is out when this returns: the next step may be the end."""
    if json_wanted:
        print(json.dumps({"event": "result", **result}), flush=True)
    elif text:
        print(text, flush=True)


def _json_lines(event: Event) -> None:
    print(json.dumps({"event": type(event).__name__.lower(), **asdict(event)}), flush=True)


def _plain_lines() -> Sink:
    titles: dict[str, str] = {}
    last: dict[str, str] = {}

    def sink(event: Event) -> None:
        match event:
            case Started(task, title):
                titles[task] = title
                print(f"… {title}", file=sys.stderr, flush=True)
            case Finished(task, seconds, cached, detail):
                print(f"✓ {titles.get(task, task)}{_how(seconds, cached=cached, detail=detail)}", file=sys.stderr, flush=True)
            case Failed(task):
                print(f"✗ {titles.get(task, task)}", file=sys.stderr, flush=True)
                if task in last:
                    print(f"  last output: {last[task]}", file=sys.stderr, flush=True)
            case Output(task, line):
                last[task] = line
            case Note(message):
                print(f"· {message}", file=sys.stderr, flush=True)
            case Progress():
                pass

    return sink


@contextmanager
def _bars() -> Iterator[Sink]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.fields[said]}", style="dim"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, TimeRemainingColumn(compact=True), console=console, transient=True) as bars:
        known: dict[str, tuple[TaskID, str]] = {}
        lock = threading.Lock()

        def sink(event: Event) -> None:
            with lock:
                match event:
                    case Started(task, title, total):
                        known[task] = (bars.add_task(title, total=total, said=""), title)
                    case Progress(task, done, total) if task in known:
                        bars.update(known[task][0], completed=done, total=total if total is not None else bars.tasks[0].total)
                    case Output(task, line) if task in known:
                        bars.update(known[task][0], said=line.strip()[: max(console.width - 70, 10)])
                    case Finished(task, seconds, cached, detail) if task in known:
                        number, title = known.pop(task)
                        bars.remove_task(number)
                        console.print(f"[green]✓[/] {title}[dim]{_how(seconds, cached=cached, detail=detail)}[/]")
                    case Failed(task) if task in known:
                        number, title = known.pop(task)
                        bars.remove_task(number)
                        console.print(f"[red]✗[/] {title}")
                    case Note(message):
                        console.print(f"[dim]·[/] {message}")
                    case _:
                        pass

        yield sink


@contextmanager
def _percent() -> Iterator[Sink]:
    """For hosts, which have no library for bars: one line that moves, of the task that said something last."""
    begun: dict[str, _Begun] = {}
    shown = ("", 0.0)

    def line(text: str, *, end: str) -> None:
        print(f"\r\033[K{text}", end=end, file=sys.stderr, flush=True)

    def sink(event: Event) -> None:
        nonlocal shown
        match event:
            case Started(task, title, total, unit):
                begun[task] = _Begun(title, monotonic(), total, unit)
                line(f"… {title}", end="")
            case Progress(task, done, total) if task in begun and (of := total or begun[task].total):
                # Consoles are slow: each line costs what a few hundred blocks do.
                now = monotonic()
                if shown[0] != task or now - shown[1] >= _EVERY_S:
                    shown = task, now
                    line(f"… {begun[task].title} {_how_far(done, of, begun[task].unit, now - begun[task].since)}", end="")
            case Finished(task, seconds, cached, detail):
                line(f"✓ {_title(begun, task)}{_how(seconds, cached=cached, detail=detail)}", end="\n")
            case Failed(task):
                line(f"✗ {_title(begun, task)}", end="\n")
            case Note(message):
                line(f"· {message}", end="\n")
            case _:
                pass

    yield sink


@dataclass(frozen=True, slots=True)
class _Begun:
    """A task under way: since when, by the monotonic clock, and how much of what there is to do."""

    title: str
    since: float
    total: int | None
    unit: str


def _title(begun: dict[str, _Begun], task: str) -> str:
    return begun[task].title if task in begun else task


def _how_far(done: int, total: int, unit: str, seconds: float) -> str:
    """What is done, in hundredths and, where the unit is bytes, in bytes; and how long the rest takes at the pace so far."""
    words = [f"{100 * done // total} %"]
    if unit == "B":
        words.append(f"{size(done)} of {size(total)}")
    if done and seconds > _TELLING_S:
        left = round(seconds * (total - done) / done)
        words.append(f"{left // 60}:{left % 60:02} left")
    return ", ".join(words)


def _how(seconds: float, *, cached: bool, detail: str) -> str:
    words = ["already done" if cached else f"{seconds:.1f} s"]
    if detail:
        words.append(detail)
    return f" ({', '.join(words)})"


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":  # noqa: PLR2004
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return ""
