"""Cuts the power of a host at every flush of its disk, and at torn states between them, and counts the states from which nothing boots.

A host in a VM lives through its first boot, two upgrades, a migration and a rollback with its state, while QEMU logs every write
(tests/story.py). The explorer (tests/explorer.py) then judges each state that a cut may leave: partition table, ESP, kernel image, every
block of the slot that would boot. Some states of each phase are also really booted; such a host has to settle with state that its image
knows, and the next upgrade has to go on from there.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from apparatus.measure import Goal, conclude, print_table, workplace

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from explorer import Explorer, Tally, Verdict  # noqa: E402 - found by the path above
from host import Rack, build_versions  # noqa: E402
from story import VERSIONS, Story, inspect, tell  # noqa: E402
from tool import Tool  # noqa: E402

_SIGN_OF_LIFE_S = 10
_CHANCE = 0.03  # that a torn state is booted, as long as its phase wants one


@dataclass
class Booted:
    """States that were really booted, by phase, and what was wrong with those that did not settle."""

    count: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./bench crash", description=__doc__.splitlines()[0])
    parser.add_argument("--torn", type=int, default=30, metavar="N", help="torn states after each flush (default: 30)")
    parser.add_argument("--boots", type=int, default=3, metavar="N", help="states of each phase that are really booted (default: 3)")
    parser.add_argument("--seed", type=int, default=2026, metavar="N", help="what the torn states are drawn with (default: 2026)")
    arguments = parser.parse_args()
    with workplace("crash") as home:
        tool = Tool.with_example(home, "web")
        _say("building three versions")
        build_versions(tool, VERSIONS)
        (home / "rack").mkdir()
        rack = Rack(tool, home / "rack")
        _say("recording a host's life")
        story = tell(rack)
        _say("cutting its power")
        began = time.monotonic()
        walk, tally, booted = _explore(rack, story, home, arguments)
    flushes = sum(write.flush for write in walk.writes)
    print(f"\n{len(walk.writes)} writes, {flushes} flushes, seed {arguments.seed}, {time.monotonic() - began:.0f} s\n")
    rows = [(phase, str(count), str(booted.count.get(phase, 0))) for phase, count in tally.states.items()]
    print_table(("phase", "states tried", "really booted"), rows)
    for line in (*tally.lost[:20], *booted.failed[:20]):
        print(f"  {line}")
    print(f"\nstates tried: {tally.total}, states lost: {len(tally.lost)}")
    figures = {
        "seed": arguments.seed,
        "writes": len(walk.writes),
        "flushes": flushes,
        "states": tally.states,
        "would_boot": tally.boots,
        "lost": tally.lost,
        "booted": booted.count,
        "failed": booted.failed,
    }
    goals = (Goal("states lost", len(tally.lost), 0), Goal("boots that failed", len(booted.failed), 0))
    return conclude("crash", figures, goals)


def _say(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


def _explore(rack: Rack, story: Story, home: Path, arguments: argparse.Namespace) -> tuple[Explorer, Tally, Booted]:
    work = home / "work.raw"
    subprocess.run(["cp", "--sparse=always", story.before, work], check=True)
    walk = Explorer(work, story.log, story.images, seed=arguments.seed, windows=story.windows)
    draw = random.Random(arguments.seed)  # noqa: S311 - a sample that can be drawn again
    booted = Booted()
    told = time.monotonic()

    def look(index: int, verdict: Verdict) -> None:
        nonlocal told
        if time.monotonic() - told > _SIGN_OF_LIFE_S:
            told = time.monotonic()
            done = f"write {index} of {len(walk.writes)}, {walk.tally.total} states, {len(walk.tally.lost)} lost"
            _say(f"{done}, {sum(booted.count.values())} booted")
        if not walk.disk.over or booted.count.get(verdict.phase, 0) >= arguments.boots or draw.random() > _CHANCE:
            return
        booted.count[verdict.phase] = booted.count.get(verdict.phase, 0) + 1
        if reason := _boot(rack, story, walk):
            booted.failed.append(f"after write {index} ({verdict.phase}): {reason}")

    tally = walk.explore(torn=arguments.torn, on_state=look)
    walk.disk.close()
    return walk, tally, booted


def _boot(rack: Rack, story: Story, walk: Explorer) -> str:
    """Boot the state that the walk shows; what was wrong with it, or nothing."""
    raw, variables = rack.place / "state.raw", rack.place / "state.fd"
    shelf = rack.place / "shelf.erofs"
    walk.freeze(raw)
    shutil.copyfile(story.variables, variables)
    disk = rack.place / "state.qcow2"
    disk.unlink(missing_ok=True)
    try:
        return inspect(rack, rack.over(raw, disk.name), variables, shelf)
    finally:
        raw.unlink()


if __name__ == "__main__":
    sys.exit(main())
