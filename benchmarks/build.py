"""Builds the image of examples/web with Obelisk and with mkosi in turn, and compares time, memory and size.

Both run in the same tools tree, install the same package files from this machine's disk, and make the same parts: an EROFS root without
compression, its dm-verity tree, a signed UKI and a GPT disk. Preparation is not measured.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apparatus.measure import CACHE, Goal, Measured, conclude, median, obelisk, print_table, require_root, workplace
from apparatus.mkosi import Kind, Mkosi
from apparatus.scene import ADDED, Scene, add_package, prepare
from obelisk.cli.terminal import reporting, size
from obelisk.errors import ObeliskError
from obelisk.events import Sink, task
from obelisk.model.image import PartKind
from obelisk.store import Store
from obelisk.system.bubblewrap import read_only
from obelisk.system.command import run
from obelisk.system.namespace import remove_tree

CLEAN, CONFIGURED, UNCHANGED, ADDING = "clean build", "one file changed", "nothing changed", "one package added"
VOLATILE = "one package added, volatile"
MIB = 1 << 20


class Contest:
    """Both sides, and the times of each case."""

    def __init__(self, scene: Scene, sink: Sink) -> None:
        self.scene = scene
        self.sink = sink
        self.logs = CACHE / "build.logs"
        self.logs.mkdir(exist_ok=True)
        self.mkosi = Mkosi(scene, CACHE / "keys", Kind.SEALED)
        self.ours: dict[str, list[Measured]] = defaultdict(list)
        self.theirs: dict[str, list[float]] = defaultdict(list)

    def prime(self) -> None:
        """Give both sides what an earlier build leaves: us our keys, mkosi its cached image and initrd."""
        with task(self.sink, "prime", "obelisk: a first build (not measured)"):
            obelisk("build", str(self.scene.spec.directory), log=self.logs / "first")
        with task(self.sink, "prime", "mkosi: filling its caches (not measured)") as running:
            self.mkosi.build("--force", "--incremental=yes", running=running)

    def round(self, number: int) -> None:
        """Each case once, ours and theirs in turn."""
        self.forget_steps()
        self.run_ours(CLEAN, "build")
        # Without incremental mode mkosi is spared the copy that it would keep for the next build; it would also remove what it has.
        with self.another_cache() as cache:
            self.run_theirs(CLEAN, "--force", "--incremental=no", cache=cache)

        for tree in (self.scene.spec.directory / "tree", self.mkosi.directory / "mkosi.extra"):
            page = tree / "srv/www/index.html"
            page.write_text(page.read_text() + f"<!-- {number} -->\n")
        self.run_ours(CONFIGURED, "build")
        self.run_theirs(CONFIGURED, "--force", "--incremental=yes")

        # Without --force mkosi looks no further than whether there is an output at all.
        self.run_ours(UNCHANGED, "build")
        self.run_theirs(UNCHANGED, "--force", "--incremental=yes")

        spec, lock = self.scene.spec.file.read_text(), self.scene.spec.lock_file.read_text()
        add_package(self.scene.spec)
        self.run_ours(ADDING, "lock", "build")
        self.scene.spec.file.write_text(spec)
        self.scene.spec.lock_file.write_text(lock)
        # One more of `Packages` puts mkosi's cached image out of date, not its cached initrd.
        with self.another_cache() as cache:
            run(["cp", "--archive", f"{self.mkosi.cache}/.", cache])
            self.run_theirs(ADDING, "--force", "--incremental=yes", f"--package={ADDED}", cache=cache)
        # mkosi's quickest way: a volatile package comes on top of the cached image, again at each build.
        self.run_theirs(VOLATILE, "--force", "--incremental=yes", f"--volatile-package={ADDED}")

    def run_ours(self, case: str, *commands: str) -> None:
        """Run obelisk's commands one after the other; the case's time is their sum."""
        os.sync()  # nobody pays for what the former left to be written
        with task(self.sink, "run", f"obelisk: {case}") as running:
            directory = str(self.scene.spec.directory)
            runs = [obelisk(command, directory, log=self.logs / f"{case.replace(' ', '-')}.{command}") for command in commands]
            self.ours[case].append(Measured(sum(each.seconds for each in runs), max(each.peak_bytes for each in runs)))
            running.detail = " + ".join(f"{command} {each.seconds:.2f} s" for command, each in zip(commands, runs, strict=True))

    def run_theirs(self, case: str, *words: str, cache: Path | None = None) -> None:
        """Run mkosi."""
        os.sync()
        with task(self.sink, "run", f"mkosi: {case}") as running:
            self.theirs[case].append(self.mkosi.build(*words, running=running, cache=cache))

    @contextmanager
    def another_cache(self) -> Iterator[Path]:
        """A cache for one build of mkosi that would spoil the other."""
        place = self.scene.work / "mkosi-cache.once"
        place.mkdir()
        yield place
        remove_tree(place)

    def forget_steps(self) -> None:
        """Leave nothing in our store but packages and the tools tree."""
        for place in ("images", "refs", "steps"):
            for path in (CACHE / "store" / place).iterdir():
                if path.name != self.scene.tools_key:
                    remove_tree(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="measure every case N times and take medians (default: 1)")
    arguments = parser.parse_args()
    require_root()
    with workplace("build") as work, reporting(json_wanted=False) as sink:
        contest = Contest(prepare(work, sink), sink)
        contest.prime()
        for number in range(arguments.rounds):
            contest.round(number)
        asked = [obelisk("--help", log=contest.logs / "help").seconds for _ in range(9)]
        with task(sink, "sizes", "Measuring the parts"):
            ours, theirs = (sizes(contest.scene, parts) for parts in (shipped(contest.scene), contest.mkosi.shipped()))
    return report(contest, arguments.rounds, median(asked), (ours, theirs))


def shipped(scene: Scene) -> dict[str, Path]:
    """The files of root, hash tree and UKI of our image."""
    image = Store.open(CACHE / "store").image(str(scene.spec.file.resolve()))
    return {name: image.part_path(kind) for name, kind in (("root", PartKind.ROOT), ("verity", PartKind.VERITY), ("uki", PartKind.UKI))}


def sizes(scene: Scene, parts: dict[str, Path]) -> dict[str, int]:
    """The parts' sizes, alone and together, and together as they go over a wire: compressed by zstd at level 10."""
    found = {name: path.stat().st_size for name, path in parts.items()}
    binds = [read_only(path, f"/parts/{name}") for name, path in parts.items()]
    squeezed = scene.room.run(["sh", "-euc", "zstd --quiet -10 --threads=0 --stdout /parts/* | wc --bytes"], binds=binds).stdout
    return {**found, "together": sum(found.values()), "together, zstd": int(squeezed)}


def report(contest: Contest, rounds: int, help_s: float, measured: tuple[dict[str, int], dict[str, int]]) -> int:
    """Print the tables, write the figures, and judge."""
    ours = {case: median([each.seconds for each in runs]) for case, runs in contest.ours.items()}
    theirs = {case: median(runs) for case, runs in contest.theirs.items()}
    ours[VOLATILE] = ours[ADDING]
    ratios = {case: ours[case] / theirs[case] for case in theirs}
    peak = max(each.peak_bytes for runs in contest.ours.values() for each in runs)
    print()
    rows = [[case, f"{ratio:.3f}", f"{ours[case]:.2f} s", f"{theirs[case]:.1f} s"] for case, ratio in ratios.items()]
    print_table(("case", "ratio", "obelisk", "mkosi"), rows)
    print()
    rows = [
        [part, f"{measured[0][part] / measured[1][part]:.3f}", size(measured[0][part]), size(measured[1][part])] for part in measured[0]
    ]
    print_table(("part", "ratio", "obelisk", "mkosi"), rows)
    goals = (
        Goal("clean build, of mkosi's time", ratios[CLEAN], 0.25),
        Goal("one file changed, of mkosi's time", ratios[CONFIGURED], 0.07),
        Goal("one file changed", ours[CONFIGURED], 5, "s"),
        Goal("one package added, of mkosi's time", ratios[ADDING], 0.2),
        Goal("nothing changed", ours[UNCHANGED], 1, "s"),
        Goal("size of the parts together, of mkosi's", measured[0]["together"] / measured[1]["together"], 1),
        Goal("largest resident set of our process", peak / MIB, 200, "MiB"),
        Goal("obelisk --help", help_s, 0.2, "s"),
    )
    figures = {
        "rounds": rounds,
        "ratios": {case: round(ratio, 4) for case, ratio in ratios.items()},
        "obelisk_s": {case: [round(each.seconds, 3) for each in runs] for case, runs in contest.ours.items()},
        "mkosi_s": {case: [round(each, 3) for each in runs] for case, runs in contest.theirs.items()},
        "peak_bytes": peak,
        "help_s": round(help_s, 4),
        "obelisk_bytes": dict(measured[0]),
        "mkosi_bytes": dict(measured[1]),
    }
    return conclude("build", figures, goals)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except ObeliskError as error:
        sys.exit(f"bench: {error}\n{error.hint}")
