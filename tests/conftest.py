"""What holds for every tier: nothing is skipped, nothing runs for ever, and a run that is told to stop still cleans up behind itself."""

import ctypes
import fcntl
import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase
from tool import Tool
from xdist.workermanage import NodeManager  # type: ignore[import-untyped]

HERE = Path(__file__).parent
_PR_SET_PDEATHSIG = 1
_FIXTURES_S = 60  # what processes that share a run have to clean up in, once they are told to stop
TIMEOUT_S = {"lint": 300, "unit": 120, "system": 600, "vm": 1800}

# Seconds are for ./bench: on a busy machine a deadline fails examples that are right.
_EXAMPLES = DirectoryBasedExampleDatabase(HERE.parent / ".cache" / "hypothesis")
hypothesis.settings.register_profile("obelisk", deadline=None, database=_EXAMPLES)
hypothesis.settings.load_profile("obelisk")


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """examples/web, locked and built: the tools and the base that other builds start from. Nobody changes it: work on a copy.

    The processes of a run share it. The first that asks makes it, the last that is done with it takes it away.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    home, made = place / "workshop", place / "workshop.made"
    tool = Tool(home, home / "web")
    with (place / "workshop.used").open("w") as used, (place / "workshop.lock").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        if not made.exists():
            subprocess.run(["rm", "-rf", home], check=True)
            home.mkdir()
            Tool.with_example(home, "web").run("lock", str(tool.spec))
            tool.build()
            made.touch()
        fcntl.flock(used, fcntl.LOCK_SH)
        fcntl.flock(making, fcntl.LOCK_UN)
        yield tool
        fcntl.flock(making, fcntl.LOCK_EX)
        with suppress(BlockingIOError):
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.unlink()
            subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="session")
def applications(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """A copy of the workshop into which this process builds applications."""
    home = tmp_path_factory.mktemp("applications")
    tool = workshop.copied_to(home)
    tool.build()
    yield tool
    subprocess.run(["rm", "-rf", home], check=True)


def pytest_configure(config: pytest.Config) -> None:
    """Turn the signals that ask for an end into one that lets fixtures finish; only SIGKILL leaves that to the tool under test."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    # A shell has what it starts in the background ignore this one, and so would the programs that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):  # one of the processes that share a run
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    elif config.getoption("dist") != "no":
        NodeManager.EXIT_TIMEOUT = _FIXTURES_S
        signal.signal(signal.SIGTERM, _stop_all)
        signal.signal(signal.SIGHUP, _stop_all)


def _stop_all(number: int, frame: FrameType | None) -> NoReturn:
    for worker in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(worker), signal.SIGTERM)
    _stop(number, frame)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    pytest.exit(f"stopped by {signal.Signals(number).name}", returncode=128 + number)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test its tier's time limit, unless it has its own, and refuse a tier without tests."""
    filled = set()
    for item in items:
        tier = item.path.relative_to(HERE).parts[0]
        filled.add(tier)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[tier]))
    for argument in config.args:
        path = Path(argument).resolve()
        if path.parent == HERE and path.name in TIMEOUT_S and path.name not in filled:
            message = f"the tier {path.name} has no tests"
            raise pytest.UsageError(message)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips itself: what cannot be tested here is not known to work here."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that skips itself."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (a skip counts as a failure here)"
