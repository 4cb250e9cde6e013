"""A host whose disk is a file: what runs on it is the Python and the programs of its image, in a room that has the image's root.

No VM is around it, so it can have VMs of its own where processors are emulated. Its ESP is a directory, for not every kernel that tests run
on has that file system; all else is as on a host. Each run mounts what a boot would have mounted.

    stage.py make SOURCE                        a disk for web_0, with slots that the image in SOURCE fits into
    stage.py state PROGRAM                      run a shell command in the state
    stage.py upgrade SOURCE [retry]             as `obelisk host upgrade --rehearse`; says what came of it, as JSON
    stage.py status                             as `obelisk host status`
    stage.py time-status                        the seconds that takes, from start to end of its process: five runs, as JSON
    stage.py look                               what is left of a rehearsal, what history says, and the disk's table, as JSON
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, "/usr/lib/obelisk/python")

from obelisk.cli import hosting
from obelisk.cli import main as command_line
from obelisk.errors import ObeliskError
from obelisk.events import Event, Note, Progress
from obelisk.host import journal
from obelisk.host.here import Here
from obelisk.host.history import iterations
from obelisk.host.source import open_source
from obelisk.host.upgrade import Wish, upgrade
from obelisk.model import host as model
from obelisk.model.image import PartKind
from obelisk.model.partitions import partition_uuids
from obelisk.system import btrfs, loops, sfdisk
from obelisk.system.command import run
from obelisk.system.mounts import mounted

PLACE = Path("/stage")
DISK = PLACE / "disk"
ROOT_HASH = "11" * 32
MIB = 1 << 20


class Staged(Here):
    """This host."""

    @contextmanager
    def esp(self) -> Iterator[Path]:
        """A directory in the place of the ESP."""
        yield PLACE / "esp"


def make(source: Path) -> None:
    """The disk: slot a is the booted one."""
    image = open_source(source).manifest
    sizes = [image.part(kind).size_bytes // MIB + 2 for kind in (PartKind.ROOT, PartKind.VERITY)]
    parts = [
        (64, sfdisk.ESP, "esp"),
        (sizes[0], sfdisk.ROOT, "web_0"),
        (sizes[1], sfdisk.ROOT_VERITY, "web_0_verity"),
        (sizes[0], sfdisk.ROOT, model.EMPTY),
        (sizes[1], sfdisk.ROOT_VERITY, model.EMPTY),
        (3072, sfdisk.LINUX, "state"),
    ]
    uuids = [str(number) * 8 + "-1111-1111-1111-111111111111" for number in range(len(parts))]
    uuids[1:3] = map(str, partition_uuids(ROOT_HASH))
    at, entries = MIB, []
    for number, ((size, kind, label), uuid) in enumerate(zip(parts, uuids, strict=True), start=1):
        entries.append(sfdisk.TableEntry(number, DISK, at, size * MIB, kind, uuid, label))
        at += size * MIB
    with DISK.open("wb") as file:
        file.truncate(at + MIB)
    sfdisk.write_table(DISK, entries)
    (PLACE / "esp/EFI/Linux").mkdir(parents=True)
    (PLACE / "esp/EFI/Linux/web_0.efi").touch()
    with loops.attached(DISK, entries[-1].start_bytes, entries[-1].size_bytes) as device:
        run(["mkfs.btrfs", "--quiet", "--label", "state", device])  # not `make_volume`: a host's keeps its metadata twice
        with mounted(device, Path("/run/made"), "btrfs") as top:
            for name in ("live", "host"):
                btrfs.create(top / name)
            for name in ("var/lib/shop", "home", "root"):
                (top / "live" / name).mkdir(parents=True)


@contextmanager
def booted() -> Iterator[Here]:
    """The host with its partitions and mounts; those of a killed process are used on."""
    here = Staged("web", "0", ROOT_HASH, DISK, Path("/run/obelisk/host"), "this-boot")
    if here.keep.is_mount():
        yield here
        return
    with ExitStack() as held:
        for entry in sfdisk.read_table(DISK):
            device = held.enter_context(loops.attached(DISK, entry.start_bytes, entry.size_bytes))
            entry.device.unlink(missing_ok=True)
            entry.device.symlink_to(device)
        for place, name in ((here.keep, "host"), (here.state, "live")):
            held.enter_context(mounted(here.state_device(), place, "btrfs", f"subvol={name}"))
        yield here


def look(here: Here) -> dict[str, object]:
    """What tests want to know."""
    with here.top() as top:
        snapshots = sorted(path.name for path in (top / "snapshots").glob("*"))
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return {
        "left": {
            "directory": here.rehearsal.exists(),
            "snapshot": ".rehearsed" in snapshots,
            "mounts": [place for place in mounts if place in {"/run/obelisk/rehearsal", "/run/obelisk/top"}],
            "loops": said("losetup", "--list", "--noheadings", "--output", "BACK-FILE").count("/rehearsal/"),
            "machines": said("pgrep", "qemu-system").split(),
        },
        "history": [each.to_json() for each in iterations(journal.read(here.keep))],
        "phases": [f"{each.phase}" for each in journal.read(here.keep) if each.event is model.Event.DONE],
        "failures": {str(path.relative_to(here.keep)): path.read_text(errors="replace") for path in here.keep.glob("failures/*/*")},
        "snapshots": snapshots,
        "table": [(entry.uuid, entry.label) for entry in sfdisk.read_table(DISK)],
        "entries": sorted(path.name for path in (PLACE / "esp/EFI/Linux").iterdir()),
    }


def said(*words: str) -> str:
    """What a program says."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def try_upgrade(here: Here, source: Path, *, retry: bool) -> dict[str, object]:
    """What came of it."""
    seen: list[Event] = []
    try:
        outcome = upgrade(here, open_source(source), seen.append, Wish(retry=retry, rehearse=True))
    except ObeliskError as error:
        result: dict[str, object] = {"code": error.code, "message": error.message, "hint": error.hint}
    else:
        result = {"code": "", "slot": outcome.slot, "written": outcome.written_bytes}
    notes = [event.message for event in seen if isinstance(event, Note)]
    shown = sorted({event.task for event in seen if isinstance(event, Progress)})
    return {"result": result, "notes": notes, "shown": shown, **look(here)}


def main() -> int:
    """Do what the words say."""
    os.umask(0o022)
    what, *words = sys.argv[1:]
    if what == "make":
        make(Path(words[0]))
        return 0
    with booted() as here:
        match what:
            case "state":
                return subprocess.run(["sh", "-euc", words[0]], cwd=here.state, check=False).returncode
            case "upgrade":
                answer = try_upgrade(here, Path(words[0]), retry=words[1:] == ["retry"])
                sys.stdout.write(f"{json.dumps(answer)}\n")
            case "status":
                vars(hosting)["here"] = lambda: here
                return command_line(["host", "status"])
            case "time-status":
                took = []
                for _ in range(5):
                    began = time.monotonic()
                    subprocess.run([sys.executable, "-IS", __file__, "status"], check=True, stdout=subprocess.DEVNULL)
                    took.append(time.monotonic() - began)
                sys.stdout.write(f"{json.dumps(took)}\n")
            case "look":
                sys.stdout.write(f"{json.dumps(look(here))}\n")
            case _:
                return 2
    return 0


raise SystemExit(main())
