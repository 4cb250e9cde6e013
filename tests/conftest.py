"""What holds for every tier: nothing is skipped, nothing runs for ever, and a run that is told to stop still cleans up behind itself."""

import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase
from tool import Tool

HERE = Path(__file__).parent
TIMEOUT_S = {"lint": 300, "unit": 120, "system": 600, "vm": 1800}

# Seconds are for ./bench: on a busy machine a deadline fails examples that are right.
_EXAMPLES = DirectoryBasedExampleDatabase(HERE.parent / ".cache" / "hypothesis")
hypothesis.settings.register_profile("obelisk", deadline=None, database=_EXAMPLES)
hypothesis.settings.load_profile("obelisk")


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """examples/web, locked and built: the tools and the base that other builds start from. Work on a copy of it."""
    home = tmp_path_factory.mktemp("workshop")
    tool = Tool.with_example(home, "web")
    tool.run("lock", str(tool.spec))
    tool.build()
    yield tool
    subprocess.run(["rm", "-rf", home], check=True)


def pytest_configure() -> None:
    """Turn the signals that ask for an end into one that lets fixtures finish; only SIGKILL leaves that to the tool under test."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)


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
