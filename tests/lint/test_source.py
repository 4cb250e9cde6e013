"""The source is as the house wants it: style, form, types, layers, and locks that say what pyproject.toml asks for."""

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
GUEST = ROOT / "src" / "obelisk" / "build" / "guest"


def _shell_scripts(paths: Iterable[Path]) -> list[str]:
    starts = tuple(b"#!" + shell for shell in (b"/bin/sh", b"/usr/bin/sh", b"/bin/bash"))
    found = [path for path in paths if path.is_file() and (path.suffix == ".sh" or path.read_bytes().startswith(starts))]
    return sorted(str(path.relative_to(ROOT)) for path in found)


SHELL_SCRIPTS = _shell_scripts(path for place in (ROOT, ROOT / ".ci", ROOT / "scripts") for path in place.iterdir())
GUEST_SCRIPTS = _shell_scripts(GUEST.rglob("*"))


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache"],  # a cache does not know which modules are new
        ["ruff", "format", "--check"],
        ["mypy"],
        ["lint-imports", "--no-logo", "--cache-dir", ".cache/import-linter"],
        ["shellcheck", "--external-sources", *SHELL_SCRIPTS],
        ["shellcheck", "--exclude=SC1091,SC2016,SC2154", *GUEST_SCRIPTS],  # what they source is in a guest; some start other shells
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_source_passes(command: list[str]) -> None:
    finished = subprocess.run([PROGRAMS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        pytest.fail(finished.stdout + finished.stderr, pytrace=False)


def test_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = _pins("requirements.txt")
    development = _pins("requirements-dev.txt")
    assert runtime.items() <= development.items()
    for lock, wanted in ((runtime, project["project"]["dependencies"]), (development, project["dependency-groups"]["dev"])):
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement


def test_locks_name_no_hosts() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        assert "://" not in (ROOT / name).read_text()


def _pins(name: str) -> dict[str, str]:
    requirements = (line.removesuffix("\\") for line in (ROOT / name).read_text().splitlines() if "==" in line)
    parsed = [Requirement(line) for line in requirements]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in parsed}
