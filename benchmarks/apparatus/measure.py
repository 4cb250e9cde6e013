"""Measures commands of ours, and writes down what was measured: a table for people, JSON for programs."""

import fcntl
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import CommandError, InputError, StateError
from obelisk.system.namespace import remove_tree

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/bench"
_SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a command: wall time, and the largest resident set of the process itself, its children left out."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should stay at or below."""

    name: str
    value: float
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.value <= self.limit


def obelisk(*words: str, log: Path) -> Measured:
    """Run `./obelisk` to its end, with the benchmarks' own store and keys.

    Raises:
        CommandError: it failed; the message has the end of its output.
    """
    env = {**os.environ, "OBELISK_STORE": str(CACHE / "store"), "OBELISK_KEYS": str(CACHE / "keys")}
    peak = 0
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [ROOT / "obelisk", *words], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
        try:
            # The kernel's own account of a finished process would mix its children in; this one begins anew with each exec.
            while process.poll() is None:
                peak = max(peak, _peak_bytes(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_SAMPLE_S)
        except BaseException:
            os.killpg(process.pid, 9)
            process.wait()
            raise
        seconds = time.monotonic() - began
    if process.returncode != 0:
        raise CommandError(("obelisk", *words), process.returncode, log.read_text(errors="replace"))
    return Measured(seconds, peak)


@contextmanager
def workplace(name: str) -> Iterator[Path]:
    """An empty directory for one benchmark, removed at its end; what a killed one left is removed first.

    Raises:
        StateError: another benchmark runs, which would disturb this one.
    """
    place = CACHE / f"{name}.work"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError("another benchmark is running", code="bench-busy", hint="wait for its end") from error
        remove_tree(place)
        place.mkdir()
        try:
            yield place
        finally:
            remove_tree(place)


def median(values: Sequence[float]) -> float:
    """The median, and zero of nothing."""
    return statistics.median(values) if values else 0.0


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with aligned columns; the first is text, the others are figures."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (head, rule, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")


def conclude(name: str, figures: Mapping[str, object], goals: Sequence[Goal]) -> int:
    """Write the figures to .cache/bench/NAME.json, print the goals, and return the exit status: 1 when a goal was missed."""
    written = CACHE / f"{name}.json"
    judged = [{"goal": g.name, "value": round(g.value, 4), "limit": g.limit, "unit": g.unit, "met": g.met} for g in goals]
    written.write_text(json.dumps({"benchmark": name, "processors": os.cpu_count(), **figures, "goals": judged}, indent=2) + "\n")
    print()
    for goal in goals:
        unit = f" {goal.unit}" if goal.unit else ""
        print(f"{'met   ' if goal.met else 'MISSED'}  {goal.name}: {goal.value:.3g}{unit}, goal {goal.limit:g}{unit}")
    print(f"\n{written}")
    return 0 if all(goal.met for goal in goals) else 1


def require_root() -> None:
    """Say at the start that mkosi's own sandbox wants root rights here.

    Raises:
        InputError: this is not root.
    """
    if os.geteuid() != 0:
        raise InputError("the comparison runs mkosi, which needs root rights inside another sandbox", code="bench-root", hint="use sudo")


def _peak_bytes(pid: int) -> int:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
