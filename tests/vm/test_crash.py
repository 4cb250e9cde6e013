"""No power cut, wherever it comes, leaves a host without an image to boot. `./bench crash` tries many more states than these."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from explorer import Explorer, Verdict
from host import Rack, build_versions
from story import VERSIONS, Story, inspect, tell
from tool import Tool

BOOTED = ("migrating", "swapping")
"""The phases of which one state each is really booted here."""


@pytest.fixture(scope="module")
def rack(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    home = tmp_path_factory.mktemp("crash")
    tool = workshop.copied_to(home)
    build_versions(tool, VERSIONS)
    (home / "rack").mkdir()
    yield Rack(tool, home / "rack")
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def story(rack: Rack) -> Story:
    return tell(rack)


@contextmanager
def explorer(story: Story, place: Path, *, seed: int) -> Iterator[Explorer]:
    """An explorer at the beginning of the story."""
    work = place / "work.raw"
    subprocess.run(["cp", "--sparse=always", story.before, work], check=True)
    walk = Explorer(work, story.log, story.images, seed=seed, windows=story.windows)
    yield walk
    walk.disk.close()
    work.unlink()


def test_the_old_or_the_new_image_boots_after_every_cut(story: Story, rack: Rack, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    frozen: dict[str, Path] = {}

    def keep(_index: int, verdict: Verdict) -> None:
        if not walk.disk.over or verdict.phase not in BOOTED:
            return
        seen[verdict.phase] += 1
        # A phase has few states or many, and little happens in its first.
        if seen[verdict.phase] in {1, 5, 25}:
            frozen[verdict.phase] = rack.place / f"{verdict.phase}.raw"
            walk.freeze(frozen[verdict.phase])

    with explorer(story, tmp_path, seed=2026) as walk:
        tally = walk.explore(torn=2, on_state=keep)
    assert tally.lost == []
    assert tally.total > 300
    assert set(tally.states) >= {"before", "staging", "labelled", "pending", "trying", "blessed"}
    assert set(frozen) == set(BOOTED)
    for phase, raw in frozen.items():
        variables = rack.place / "variables.fd"
        shutil.copyfile(story.variables, variables)
        assert inspect(rack, rack.over(raw, f"{phase}.qcow2"), variables) == ""
        raw.unlink()


def test_a_machine_that_never_flushed_would_be_lost(story: Story, tmp_path: Path) -> None:
    with explorer(story, tmp_path, seed=1) as walk:
        assert walk.explore(torn=60, flushes=False).lost
