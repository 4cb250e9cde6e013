"""The graph: keys by inputs, each step once, side by side where independent, nothing started after a failure."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from obelisk.build.graph import Step, execute
from obelisk.errors import InputError
from obelisk.events import Task, silent


class MemoryStore:
    """A step store that keeps outputs in a directory and counts what was produced."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.produced: list[str] = []

    def find_step(self, key: str) -> Path | None:
        path = self.place / key
        return path if path.exists() else None

    def build_step(self, key: str, produce: Callable[[Path], None]) -> tuple[Path, bool]:
        work = self.place / f"{key}.work"
        work.mkdir()
        produce(work)
        self.produced.append(key)
        return work.rename(self.place / key), False


def step(name: str, *needs: Step, option: str = "", fail: bool = False, meet: threading.Barrier | None = None) -> Step:
    def produce(work: Path, outputs: Mapping[str, Path], _task: Task) -> None:
        if meet is not None:
            meet.wait(timeout=10)
        if fail:
            message = "no"
            raise InputError(message, code="no")
        text = "".join((outputs[need.name] / "text").read_text() for need in needs)
        (work / "text").write_text(f"{name}{option}({text})")

    return Step(name, name, {"option": option}, needs, produce)


def test_a_key_changes_with_each_input_and_with_nothing_else() -> None:
    base = step("base")
    assert step("root", base).key == step("root", step("base")).key
    assert step("root", base).key != step("root", base, option="x").key
    assert step("root", base).key != step("root", step("base", option="x")).key
    assert step("root", base).key != step("disk", base).key


def test_outputs_of_needs_are_given_and_each_step_runs_once(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    a = step("a")
    b, c = step("b", a), step("c", a)
    d = step("d", b, c)
    outputs = execute((a, b, c, d), store, silent)
    assert (outputs["d"] / "text").read_text() == "d(b(a())c(a()))"
    assert len(store.produced) == 4
    execute((a, b, c, d), store, silent)
    assert len(store.produced) == 4


def test_a_change_redoes_only_what_follows_it(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    a, other = step("a"), step("other")
    execute((a, other, step("b", a)), store, silent)
    changed = step("b", a, option="x")
    execute((a, other, changed), store, silent)
    assert store.produced.count(a.key) == store.produced.count(other.key) == 1
    assert store.produced[-1] == changed.key


def test_independent_steps_run_side_by_side(tmp_path: Path) -> None:
    meet = threading.Barrier(2)  # each waits for the other: one after the other would never end
    execute((step("a", meet=meet), step("b", meet=meet)), MemoryStore(tmp_path), silent, jobs=2)


def test_what_follows_a_finished_step_does_not_wait_for_a_running_one(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    done = step("done")
    execute((done,), store, silent)
    meet = threading.Barrier(2)
    execute((done, step("other", meet=meet), step("after", done, meet=meet)), store, silent, jobs=2)


def test_a_failure_is_raised_and_what_follows_it_never_starts(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    bad = step("bad", fail=True)
    after = step("after", bad)
    with pytest.raises(InputError, match="no"):
        execute((bad, after), store, silent)
    assert store.find_step(after.key) is None
