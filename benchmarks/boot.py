"""Boots the image of examples/web and two of mkosi's with the same packages in turn, and compares power-on to healthy.

Every machine is the same: QEMU, OVMF with Secure Boot and the keys enrolled before, 1 GiB, two processors. Each image boots twice a round
from a fresh copy of its disk: the first boot also makes what a machine makes once (ours: slot B, state volume, host keys). Healthy is
said by the same program on the console, after multi-user.target, when the page is served and SSH answers; the clock is the host's.
mkosi's images are its default: a writable ext4 root without dm-verity, where ours verifies each block.
"""

import argparse
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from apparatus.measure import CACHE, Goal, conclude, median, obelisk, print_table, require_root, workplace
from apparatus.mkosi import Kind, Mkosi
from apparatus.scene import Scene, prepare
from obelisk.build import slots
from obelisk.build.image import disk_of
from obelisk.cli.terminal import reporting
from obelisk.errors import CommandError, ObeliskError
from obelisk.events import Sink, task
from obelisk.machine import Machine
from obelisk.store import Store
from obelisk.system import qemu
from obelisk.system.bubblewrap import read_only, writable

OURS = "obelisk"
PEERS = (Kind.DEFAULT, Kind.GENERIC)
BOOTS = ("first boot", "later boot")
_BOOT_S = 420


@dataclass(frozen=True, slots=True)
class Contestant:
    """One image that boots: its disk as it is shipped, and how large the machine's is."""

    name: str
    disk: Path
    disk_bytes: int


class Course:
    """Boots contestants and keeps their times."""

    def __init__(self, scene: Scene, sink: Sink) -> None:
        self.scene = scene
        self.sink = sink
        self.place = scene.work / "machine"
        self.place.mkdir()
        self.variables = scene.work / "variables.fd"
        self.times: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._enrol()

    def run(self, contestant: Contestant) -> None:
        """Boot it from a fresh disk, switch it off, and boot it again."""
        disk = self.place / "disk.qcow2"
        disk.unlink(missing_ok=True)
        binds = (writable(self.place), read_only(contestant.disk.parent, "/image"))
        qemu.overlay(self.scene.room, Path("/image") / contestant.disk.name, disk, contestant.disk_bytes, binds=binds)
        variables = self.place / "variables.fd"
        shutil.copyfile(self.variables, variables)
        settings = qemu.Settings(disk, self.place, variables=variables, console=self.place / "console.log")
        for boot in BOOTS:
            with (
                task(self.sink, "boot", f"{contestant.name}: {boot}") as running,
                Machine(self.scene.room, settings, binds=binds) as machine,
            ):
                found = machine.wait_for(r"obelisk: \S+ (healthy .*uptime=(\S+)|UNHEALTHY.*)", timeout_s=_BOOT_S)
                seconds = time.monotonic() - machine.started
                if found[2] is None or not machine.power_off(timeout_s=120):
                    raise CommandError((contestant.name,), 1, f"{machine.text()[-2000:]}\nit was not healthy, or did not switch off")
                running.detail = f"healthy after {seconds:.1f} s, {found[2]} s of them since the kernel started"
            self.times[contestant.name, boot].append(seconds)

    def _enrol(self) -> None:
        """Firmware that knows the keys already: enrolment is an affair of a machine's very first minute, not of its boots."""
        words = ["virt-fw-vars", "--input", qemu.VARIABLES, "--output", "/out/variables.fd", "--secure-boot"]
        owner = "6f62656c-6973-4b00-8000-000000000002"
        for option, name in (("--set-pk", "PK"), ("--add-kek", "KEK"), ("--add-db", "db")):
            words += [option, owner, f"/keys/{name}.crt"]
        self.scene.room.run(words, binds=[writable(self.scene.work, "/out"), read_only(CACHE / "keys", "/keys")])


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench boot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="boot every image N times and take medians (default: 3)")
    arguments = parser.parse_args()
    require_root()
    with workplace("boot") as work, reporting(json_wanted=False) as sink:
        scene = prepare(work, sink)
        contestants = [ours(scene, sink), *(peer(scene, kind, sink) for kind in PEERS)]
        course = Course(scene, sink)
        for _ in range(arguments.rounds):
            for contestant in contestants:
                course.run(contestant)
    return report(course, arguments.rounds)


def ours(scene: Scene, sink: Sink) -> Contestant:
    """Our image."""
    with task(sink, "make", "Building the image"):
        obelisk("build", str(scene.spec.directory), log=scene.work / "obelisk.log")
    with Store.open(CACHE / "store") as store:
        image = store.image(str(scene.spec.file.resolve()))
        made = disk_of(image, store, scene.room, scene.work)
        return Contestant(OURS, made, slots.host_disk_bytes(slots.layout_of(image.manifest)))


def peer(scene: Scene, kind: Kind, sink: Sink) -> Contestant:
    """One of mkosi's images. Its disk is not enlarged: mkosi's default image fills what it has."""
    mkosi = Mkosi(scene, CACHE / "keys", kind)
    with task(sink, "make", f"Building the image of {kind.value}") as running:
        mkosi.build("--force", "--incremental=yes", running=running)
    return Contestant(kind.value, mkosi.disk, mkosi.disk.stat().st_size)


def report(course: Course, rounds: int) -> int:
    """Print the table, write the figures, and judge."""
    medians = {key: median(times) for key, times in course.times.items()}
    names = (OURS, *(kind.value for kind in PEERS))
    ratios = {boot: {name: medians[OURS, boot] / medians[name, boot] for name in names} for boot in BOOTS}
    print()
    rows = [
        [name, *(cell for boot in BOOTS for cell in (f"{medians[name, boot]:.1f} s", "" if name == OURS else f"{ratios[boot][name]:.2f}"))]
        for name in names
    ]
    print_table(("power-on to healthy", "first boot", "ours / its", "later boot", "ours / its"), rows)
    goals = [Goal(f"{boot}, of the faster of mkosi's", max(ratios[boot][kind.value] for kind in PEERS), 0.7) for boot in BOOTS]
    figures = {
        "rounds": rounds,
        "acceleration": qemu.acceleration(),
        "ratios": {boot: {name: round(ratio, 4) for name, ratio in found.items()} for boot, found in ratios.items()},
        "seconds": {name: {boot: [round(each, 2) for each in course.times[name, boot]] for boot in BOOTS} for name in names},
    }
    return conclude("boot", figures, goals)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except ObeliskError as error:
        sys.exit(f"bench: {error}\n{error.hint}")
