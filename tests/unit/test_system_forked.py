"""Work that forked processes share."""

import os
from collections.abc import Iterator
from itertools import islice

import pytest

from obelisk.errors import StateError
from obelisk.system.forked import in_parallel


def test_every_line_of_every_process_arrives_whole() -> None:
    def work(index: int, count: int) -> Iterator[str]:
        for number in range(index, 5000, count):
            yield f"{number} {'x' * (number % 700)}"

    found = [line.split(" ") for line in in_parallel(work)]
    assert sorted(int(number) for number, _ in found) == list(range(5000))
    assert all(len(text) == int(number) % 700 for number, text in found)


def test_a_process_that_fails_is_not_taken_for_one_that_ended(capfd: pytest.CaptureFixture[str]) -> None:
    def work(index: int, _count: int) -> Iterator[str]:
        yield "begun"
        if index == 0:
            raise ValueError("of the worker")

    with pytest.raises(StateError, match="1 of"):
        list(in_parallel(work))
    assert "of the worker" in capfd.readouterr().err


def test_a_process_that_is_killed_is_not_taken_for_one_that_ended() -> None:
    def work(_index: int, _count: int) -> Iterator[str]:
        yield "begun"
        os.kill(os.getpid(), 9)

    with pytest.raises(StateError, match="processes that shared this work failed"):
        list(in_parallel(work))


def test_whoever_stops_listening_leaves_no_process_behind() -> None:
    def work(_index: int, _count: int) -> Iterator[str]:
        while True:
            yield "x" * 1000

    lines = in_parallel(work)
    assert list(islice(lines, 3)) == ["x" * 1000] * 3
    lines.close()  # type: ignore[attr-defined] # a generator
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
