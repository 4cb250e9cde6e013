"""Cuts the power of a host at every flush of its disk, and at torn states between them, and counts the states from which nothing boots.

A host in a VM lives through its first boot, two upgrades and a rollback with its state, while QEMU logs every write (tests/story.py). The
explorer (tests/explorer.py) then judges each state that a cut may leave: partition table, ESP, kernel image, every block of the slot that
would boot. Some states of each phase are also really booted; such a host has to settle, and the next upgrade has to go on from there.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/unit")]

from explorer import Explorer, Verdict  # noqa: E402
from host import Rack, build_versions  # noqa: E402
from story import VERSIONS, Story, tell  # noqa: E402
from tool import Tool  # noqa: E402

from apparatus.measure import CACHE  # noqa: E402 - after the path that tests are found by


def main() -> int:
    parser = argparse.ArgumentParser(prog="./bench crash", description=__doc__.splitlines()[0])
    parser.add_argument("--torn", type=int, default=30, metavar="N", help="torn states after each flush (default: 30)")
    parser.add_argument("--boots", type=int, default=3, metavar="N", help="states of each phase that are really booted (default: 3)")
    parser.add_argument("--seed", type=int, default=2026, metavar="N", help="what the torn states are drawn with (default: 2026)")
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="crash-", dir=CACHE) as scratch:
        home = Path(scratch)
        tool = Tool.with_example(home, "web")
        print("… building three versions", file=sys.stderr)
        build_versions(tool, VERSIONS)
        (home / "rack").mkdir()
        rack = Rack(tool, home / "rack")
        print("… recording a host's life", file=sys.stderr)
        story = tell(rack)
        result = _explore(rack, story, home, arguments)
    (CACHE / "crash.json").write_text(json.dumps(result, indent=1) + "\n")
    _show(result)
    return 1 if result["lost"] or result["failed_boots"] else 0


def _explore(rack: Rack, story: Story, home: Path, arguments: argparse.Namespace) -> dict[str, object]:
    work = home / "work.raw"
    subprocess.run(["cp", "--sparse=always", story.before, work], check=True)
    walk = Explorer(work, story.log, story.images, seed=arguments.seed)
    draw = random.Random(arguments.seed)  # noqa: S311 - a sample that can be drawn again
    booted: dict[str, int] = {}
    failed: list[str] = []
    last = [0.0]

    def look(index: int, verdict: Verdict) -> None:
        if time.monotonic() - last[0] > 5:  # noqa: PLR2004 - seconds between signs of life
            last[0] = time.monotonic()
            print(f"… write {index} of {len(walk.writes)}, {walk.tally.total} states, {len(walk.tally.lost)} lost", file=sys.stderr)
        if not walk.disk.over or booted.get(verdict.phase, 0) >= arguments.boots or draw.random() > 0.03:  # noqa: PLR2004
            return
        booted[verdict.phase] = booted.get(verdict.phase, 0) + 1
        if reason := _boot(rack, story, walk):
            failed.append(f"after write {index} ({verdict.phase}): {reason}")

    began = time.monotonic()
    tally = walk.explore(torn=arguments.torn, on_state=look)
    walk.disk.close()
    flushes = sum(write.flush for write in walk.writes)
    return {
        "seed": arguments.seed,
        "writes": len(walk.writes),
        "flushes": flushes,
        "states": tally.states,
        "total": tally.total,
        "would_boot": tally.boots,
        "lost": tally.lost,
        "booted": booted,
        "failed_boots": failed,
        "seconds": round(time.monotonic() - began),
    }


def _boot(rack: Rack, story: Story, walk: Explorer) -> str:
    """Boot the state that the walk shows; what was wrong with it, or nothing."""
    raw, variables = rack.place / "state.raw", rack.place / "state.fd"
    shelf = rack.place / "shelf.erofs"
    walk.freeze(raw)
    shutil.copyfile(story.variables, variables)
    disk = rack.place / "state.qcow2"
    disk.unlink(missing_ok=True)
    try:
        with rack.host(rack.over(raw, disk.name), variables, shelf) as host:
            host.wait_for_boot()
            version = host.settle_any()
            findings = host.json("verify")["findings"]
            if findings:
                return f"version {version}: {findings}"
            if version != VERSIONS[-1].number:
                host.run("mkdir -p /run/shelf; mount -o ro /dev/vdb /run/shelf")
                answer = host.try_run(f"obelisk host upgrade /run/shelf/{VERSIONS[-1].number}")
                if answer.status:
                    return f"version {version}: the next upgrade failed: {answer.output}"
    except AssertionError as error:
        return str(error)[-2000:]
    finally:
        raw.unlink()
    return ""


def _show(result: dict[str, object]) -> None:
    states, booted = result["states"], result["booted"]
    assert isinstance(states, dict)  # noqa: S101 - made above
    assert isinstance(booted, dict)  # noqa: S101
    print(f"\n{result['writes']} writes, {result['flushes']} flushes, seed {result['seed']}, {result['seconds']} s\n")
    print("| phase       | states tried | really booted |\n| ----------- | -----------: | ------------: |")
    for phase, count in states.items():
        print(f"| {phase:<11} | {count:>12} | {booted.get(phase, 0):>13} |")
    lost, failed = result["lost"], result["failed_boots"]
    assert isinstance(lost, list)  # noqa: S101
    assert isinstance(failed, list)  # noqa: S101
    print(f"\nstates tried: {result['total']}, states lost: {len(lost)}, boots that failed: {len(failed)}")
    for line in (*lost[:20], *failed[:20]):
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
