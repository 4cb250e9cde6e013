"""Instances on this machine: a moment that comes back against a cold boot, ten copies against one, a command against its machine alone.

The image is examples/web; it answers when nginx gives its page by the port that leads into the instance. Copies are made of a guest that is
small enough for ten of them to run here: what a copy itself does with its new identity is then little. What `obelisk instance create`
costs is told against the very same QEMU in the same room, until either answers by its monitor. With --operations, that many are
chosen by chance and compared with a model after each; a quarter of them is killed in the middle.
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from apparatus.measure import CACHE, ROOT, Goal, conclude, median, obelisk, print_table, workplace
from apparatus.scene import Scene, prepare

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/unit")]

from little import little_guest  # noqa: E402 - found by the path above
from machines import Story, engine_of, machines_at  # noqa: E402

from obelisk.build.image import disk_of  # noqa: E402
from obelisk.cli.terminal import reporting  # noqa: E402
from obelisk.errors import CommandError  # noqa: E402
from obelisk.events import Sink, task  # noqa: E402
from obelisk.instance.embedded import Embedded  # noqa: E402
from obelisk.instance.records import Bootable, Records  # noqa: E402
from obelisk.model import uki  # noqa: E402
from obelisk.model.image import PartKind  # noqa: E402
from obelisk.model.instance import MIB, Copy, Port, Wanted, Wish  # noqa: E402
from obelisk.store import Store, StoredImage  # noqa: E402
from obelisk.system import qemu  # noqa: E402
from obelisk.system.bubblewrap import writable  # noqa: E402
from obelisk.system.resident import INSIDE, Resident  # noqa: E402

_ANSWER_S = 420
_MANY = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench instances", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="take medians of N rounds (default: 3)")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="only do N operations by chance, and compare")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides which (default: 1)")
    arguments = parser.parse_args()
    with workplace("instances") as work, reporting(json_wanted=False) as sink:
        scene = prepare(work, sink)
        with task(sink, "make", "Building the image"):
            obelisk("build", str(scene.spec.directory), log=work / "obelisk.log")
        with Store.open(CACHE / "store") as store:
            image = store.image(str(scene.spec.file.resolve()))
            guest = little_guest(scene.room, image, work / "guest")
            if arguments.operations:
                return by_chance(scene, guest, arguments.operations, arguments.seed)
            times: dict[str, list[float]] = defaultdict(list)
            private = copies(scene, guest, arguments.rounds, times, sink)
            commands(scene, arguments.rounds, times, sink)
            moments(scene, store, image, arguments.rounds, times, sink)
    return report(times, private, arguments.rounds)


def by_chance(scene: Scene, guest: Bootable, operations: int, seed: int) -> int:
    with machines_at(scene.work / "instances", scene.room, guest) as machines:
        story = Story(machines, seed)
        story.run(operations, lambda line: print(line, flush=True))
    done = ", ".join(f"{count} {name.strip('_')}" for name, count in sorted(story.done.items()))
    print(f"\n{operations} operations, nothing lost: {done}")
    return 0


def copies(scene: Scene, guest: Bootable, rounds: int, times: dict[str, list[float]], sink: Sink) -> float:
    """Forks of one and of many; the largest share of its memory that a copy has for itself."""
    most = 0.0
    with machines_at(scene.work / "instances", scene.room, guest) as machines:
        machines.engine.create(Wish("web", guest.id, 256 * MIB, 1, 128 * MIB, (Port(0, 80),)))
        machines.engine.start("web")
        machines.set_words("web", memory="one", state="first")
        for _ in range(rounds):
            for count in (1, _MANY):
                with task(sink, "fork", f"Fork of {count}"):
                    names = [f"web-{number}" for number in range(count)]
                    began = time.monotonic()
                    machines.engine.fork("web", [Copy(name, (Port(0, 80),)) for name in names])
                    times[f"fork of {count}"].append(time.monotonic() - began)
                    if any(machines.words(name) != ("one", "first") for name in names):
                        raise CommandError(("fork",), 1, "a copy does not hold what the original does")
                    most = max(most, *(_private(machines.engine.status(name).process) for name in names))
                    for name in names:
                        machines.engine.retire(name)
    return most / (256 * MIB)


def commands(scene: Scene, rounds: int, times: dict[str, list[float]], sink: Sink) -> None:
    """Instances that are made and started by the command line, each after the first one of the image, and their machines without it."""
    root = scene.work / "commanded"
    os.environ["OBELISK_INSTANCES"] = str(root)
    log = scene.work / "obelisk.log"
    try:
        for number in range(rounds + 1):
            with task(sink, "create", "Creating an instance"):
                words = ("--image", str(scene.spec.directory), "--memory", "768M", "--state", "1G", "--port", "80")
                took = obelisk("instance", "create", f"web-{number}", *words, log=log).seconds
            times["create, the first of its image" if number == 0 else "create"].append(took)
            machine = Records(root).place(f"web-{number}").machine
            argv = Path(f"/proc/{machine.processes()[0]}/cmdline").read_text().split("\0")[:-1]
            obelisk("instance", "stop", f"web-{number}", "--now", log=log)
            if number:
                times["the same machine, bare"].append(_bare(scene, machine, argv))
    finally:
        for name in Records(root).names():
            obelisk("instance", "retire", name, "--now", log=log)


def _bare(scene: Scene, machine: Resident, words: list[str]) -> float:
    """Until it answers."""
    devices = ("/dev/kvm",) if qemu.acceleration() == "kvm" else ()
    argv = scene.room.argv(words, binds=[writable(machine.directory, INSIDE)], network=True, devices=devices, cwd=str(INSIDE))
    began = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not machine.look():
            if process.poll() is not None:
                raise CommandError(tuple(argv), process.returncode, "it ended at once")
            time.sleep(0.01)
        return time.monotonic() - began
    finally:
        process.kill()
        process.wait()


def moments(scene: Scene, store: Store, image: StoredImage, rounds: int, times: dict[str, list[float]], sink: Sink) -> None:
    """A cold boot, and the same machine out of its memory."""
    sections = uki.sections(image.part_path(PartKind.UKI).read_bytes())
    disk = scene.work / "disk"
    disk.mkdir()
    raw = disk_of(image, store, scene.room, disk)

    bootable = Bootable(
        image.id,
        image.manifest.label,
        sections["linux"],
        sections["initrd"],
        sections["cmdline"].rstrip(b"\0").decode(),
        lambda: nullcontext(raw),
    )
    engine = engine_of(scene.work / "instances", scene.room, bootable)
    for _ in range(rounds):
        engine.create(Wish("web", image.id, 768 * MIB, qemu.fair_cpus(qemu.acceleration()), 1 << 30, (Port(0, 80),)))
        try:
            _time(times, "cold boot", engine, lambda: engine.start("web"), sink)
            kept = engine.snapshot("web", Wanted())
            times["snapshot: stood still"].append(kept.paused_ms / 1000)
            _time(times, "restore", engine, partial(engine.restore, "web", kept.id), sink)
        finally:
            engine.retire("web")


def _time(times: dict[str, list[float]], name: str, engine: Embedded, begin: Callable[[], object], sink: Sink) -> None:
    """Until the page is there."""
    port = engine.instance("web").wish.ports[0].host
    with task(sink, "time", name):
        began = time.monotonic()
        begin()
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    answer.read()
                break
            except OSError:
                if time.monotonic() - began > _ANSWER_S:
                    raise
                time.sleep(0.02)
        times[name].append(time.monotonic() - began)


def _private(process: int) -> float:
    """Bytes of the mapped memory that a copy has written."""
    text = Path(f"/proc/{process}/smaps").read_text()
    lines = text[text.index("/ram") :].splitlines()[1:20]
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("Private_Dirty"))


def report(times: dict[str, list[float]], private: float, rounds: int) -> int:
    """Print the table, write the figures, and judge."""
    print()
    print_table(("what", "median"), [[name, f"{median(values):.2f} s"] for name, values in times.items()])
    goals = [
        Goal("restore, of a cold boot", median(times["restore"]) / median(times["cold boot"]), 0.15),
        Goal(f"fork of {_MANY}, of a fork of one", median(times[f"fork of {_MANY}"]) / median(times["fork of 1"]), 2.0),
        Goal("create, beside the same machine bare", median(times["create"]) - median(times["the same machine, bare"]), 0.5, "s"),
        Goal("memory that a copy has for itself, of all", private, 0.5),
    ]
    figures = {
        "rounds": rounds,
        "acceleration": qemu.acceleration(),
        "seconds": {name: [round(each, 3) for each in values] for name, values in times.items()},
    }
    return conclude("instances", figures, goals)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CommandError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench instances: {error}")
