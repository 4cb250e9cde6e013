"""What an upgrade costs a host: staging and `host status` on this machine itself, outside of any emulation; and the restart, in a VM.

Staging is compared with reading the slot once and writing the bytes that differ, past the page cache, in the same chunks. The restart into
a new image, to blessed, is compared with a plain restart to healthy, both from the kernel's last word before it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from apparatus.measure import ROOT, Goal, conclude, median, print_table, workplace

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from host import Host, Rack, Version, build_versions  # noqa: E402 - found by the path above
from tool import Tool  # noqa: E402

from obelisk.host.source import open_source  # noqa: E402
from obelisk.host.staging import check_image, write_image  # noqa: E402
from obelisk.model.image import PartKind  # noqa: E402
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice  # noqa: E402
from obelisk.system.bubblewrap import Room, read_only, writable  # noqa: E402

_RESTARTING = "reboot: Restarting system"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./bench upgrade", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of staging (default: 5)")
    arguments = parser.parse_args()
    with workplace("upgrade") as home:
        tool = Tool.with_example(home, "web")
        build_versions(tool, (Version("1"), Version("2")))
        (home / "rack").mkdir()
        rack = Rack(tool, home / "rack")
        ours, floor, written, differing = _stage(rack, home, arguments.rounds)
        status_s = _status(rack, home)
        plain_s, blessed_s = _restart(rack)
    print_table(
        ("case", "ours", "floor", "ratio"),
        (
            ("staging a small change", f"{ours:.3f} s", f"{floor:.3f} s", f"{ours / floor:.2f}"),
            ("bytes written", str(written), str(differing), f"{written / differing:.2f}"),
            ("host status", f"{status_s:.3f} s", "", ""),
            ("restart to blessed, against healthy", f"{blessed_s:.1f} s", f"{plain_s:.1f} s", f"{blessed_s / plain_s:.2f}"),
        ),
    )
    figures = {"stage_s": ours, "floor_s": floor, "written": written, "differing": differing, "status_s": status_s}
    figures |= {"plain_s": plain_s, "blessed_s": blessed_s}
    goals = (
        Goal("staging, of reading the slot once and writing what differs", ours / floor, 1.2),
        Goal("bytes written, of those that differ", written / differing, 1.1),
        Goal("seconds of `obelisk host status`", status_s, 0.3),
        Goal("restart to blessed, of a plain one to healthy", blessed_s / plain_s, 1.3),
    )
    return conclude("upgrade", figures, goals)


def _stage(rack: Rack, home: Path, rounds: int) -> tuple[float, float, int, int]:
    """Seconds of ours and of the floor, bytes written and bytes that differ: version 2 into a slot that holds version 1."""
    old, new = (open_source(rack.image(f"host@{number}").directory) for number in "12")
    slot, tree = home / "slot", home / "slot.tree"
    ours, floors, written = [], [], 0
    differing: list[tuple[int, int]] = []
    for _ in range(rounds):
        for part, file in ((PartKind.ROOT, slot), (PartKind.VERITY, tree)):
            shutil.copyfile(old.path(part), file)
            os.truncate(file, (512 << 20) if part is PartKind.ROOT else (5 << 20))
        os.sync()
        if not differing:
            differing = [*_differing(slot, new.path(PartKind.ROOT)), *_differing(tree, new.path(PartKind.VERITY))]
        began = time.monotonic()
        written, runs = write_image(slot, tree, new, on_bytes=lambda _count: None)
        check_image(slot, tree, new, runs, on_bytes=lambda _count: None)
        ours.append(time.monotonic() - began)
        began = time.monotonic()
        _floor(slot, new.tree.data_blocks * BLOCK_BYTES, differing)
        floors.append(time.monotonic() - began)
    return median(ours), median(floors), written, sum(length for _, length in differing)


def _differing(slot: Path, wanted: Path) -> list[tuple[int, int]]:
    """Offsets and lengths of what differs, put together to at most a chunk."""
    found: list[tuple[int, int]] = []
    with slot.open("rb") as one, wanted.open("rb") as other:
        at = 0
        while piece := other.read(BLOCK_BYTES):
            if one.read(BLOCK_BYTES) != piece:
                start, length = found[-1] if found else (0, 0)
                if found and start + length == at and length < CHUNK_BYTES:
                    found[-1] = (start, length + len(piece))
                else:
                    found.append((at, len(piece)))
            at += len(piece)
    return found


def _floor(slot: Path, size: int, differing: list[tuple[int, int]]) -> None:
    with BlockDevice(slot, writable=True) as device:
        for at in range(0, size, CHUNK_BYTES):
            device.read(at, min(CHUNK_BYTES, size - at))
        for at, length in differing:
            device.write(at, bytes(length))
        device.flush()


def _status(rack: Rack, home: Path) -> float:
    """Seconds of `obelisk host status`, by the image's own Python, on a host whose disk is a file (tests/stage.py)."""
    image, root, place = rack.image("host@2").directory, home / "root", home / "stage"
    root.mkdir()
    place.mkdir()
    script = ROOT / "tests/stage.py"
    binds = [writable(place, "/stage"), read_only(image, "/image"), read_only(script, "/stage.py")]
    words = "python3 -IS /stage.py make /image; exec python3 -IS /stage.py time-status"
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image / "root.erofs", root], check=True)
    try:
        argv = Room(root).argv(["bash", "-euc", words], binds=binds, devices=("/dev",))
        said = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        subprocess.run(["umount", root], check=True)
    return median(json.loads(said.splitlines()[-1]))


def _restart(rack: Rack) -> tuple[float, float]:
    """Seconds from the kernel's last word to healthy in a plain restart, and to blessed in one into a new image."""
    shelf = rack.shelf({"2": rack.image("host@2")})
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), shelf) as host:
        host.wait_for_boot()
        host.settled("host_1")
        plain = _timed(host, "obelisk: host_1 healthy")
        host.wait_for_boot()
        host.settled("host_1")
        host.run("mkdir -p /run/shelf; mount -o ro /dev/vdb /run/shelf; obelisk host upgrade /run/shelf/2")
        return plain, _timed(host, "obelisk: host_2 is healthy and blessed")


def _timed(host: Host, wanted: str) -> float:
    restarts, seen = host.machine.text().count(_RESTARTING), host.machine.text().count(wanted)
    host.begin("systemctl reboot")
    while host.machine.text().count(_RESTARTING) == restarts:
        time.sleep(0.05)
    began = time.monotonic()
    while host.machine.text().count(wanted) == seen:
        time.sleep(0.05)
        if time.monotonic() - began > 600:  # noqa: PLR2004 - seconds; a boot takes a minute at most
            message = f"not seen: {wanted}"
            raise TimeoutError(message)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
