"""Rehearsals of an upgrade on one host, in this order, each test going on where the one before has left it.

The host is `stage.py` in a room with the root of the image, which has QEMU, so all of this happens at one level; the image that it is to
take migrates state, and is healthy with some state and not with other.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from host import lay
from tool import ROOT, Tool

from obelisk.store import Store
from obelisk.system.bubblewrap import Room, read_only, writable

_SPEC = """
[upgrade]
rehearse = true
soak = "2s"
deadline = "5min"

[state]
version = 2
[[state.migrations]]
to = 2
up = "up-2"

[health.well]
command = ". /usr/lib/well"
timeout = "5s"
"""
_UP_2 = """\
#!/bin/sh
set -eu
grep -q '^alpha$' /var/lib/shop/data || { echo "no such table" >&2; exit 1; }
sed -i s/^/2:/ /var/lib/shop/data
"""
# Healthy with migrated state; with some of it, only when it is asked for the first time.
_WELL = """\
grep -q '^2:alpha$' /var/lib/shop/data || exit 1
grep -q obelisk.rehearsal /proc/cmdline || exit 1
[ -e /var/lib/shop/sours ] || exit 0
[ ! -e /run/sour ] && touch /run/sour
"""
_NOTHING = {"directory": False, "snapshot": False, "mounts": [], "loops": 0, "machines": []}


@dataclass(frozen=True)
class Stage:
    """The host: commands run in its room."""

    room: Room
    place: Path
    image: Path

    def script(self, text: str) -> str:
        """What a shell says in the room, in which `stage` is the program."""
        words = f'stage() {{ python3 -IS /stage.py "$@"; }}\n{text}'
        binds = [writable(self.place, "/stage"), read_only(self.image, "/image"), read_only(ROOT / "tests/stage.py", "/stage.py")]
        argv = self.room.argv(["bash", "-euc", words], binds=binds, devices=("/dev",))
        return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout

    def upgrade(self, *words: str) -> dict[str, Any]:
        """What an upgrade with a rehearsal comes to, and what is left."""
        found: dict[str, Any] = json.loads(self.script(f"stage upgrade /image {' '.join(words)}"))
        return found

    def state(self, program: str) -> str:
        """Run a shell command in the state."""
        return self.script(f"stage state {shlex.quote(program)}")


@pytest.fixture(scope="module")
def stage(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("rehearsal")
    tool = workshop.copied_to(home)
    lay(tool.spec, {"up-2": _UP_2, "tree/usr/lib/well": _WELL})
    (tool.spec / "up-2").chmod(0o755)
    text = (tool.spec / "obelisk.toml").read_text()
    (tool.spec / "obelisk.toml").write_text(text + _SPEC)
    tool.run("lock", str(tool.spec))
    built = tool.build()
    with Store.open(tool.store) as store:
        image = store.image(built).directory
    root, place = home / "root", home / "stage"
    root.mkdir()
    place.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image / "root.erofs", root], check=True)
    try:
        made = Stage(Room(root), place, image)
        made.script("stage make /image")
        made.state("echo alpha >var/lib/shop/data; echo secret >root/secret")
        yield made
    finally:
        listed = ["losetup", "--noheadings", "--output", "NAME", "--associated", str(place / "disk")]
        for device in subprocess.run(listed, check=True, stdout=subprocess.PIPE, text=True).stdout.split():
            subprocess.run(["losetup", "--detach", device], check=True)
        subprocess.run(["umount", root], check=True)
        shutil.rmtree(home)


def test_without_room_nothing_is_written(stage: Stage) -> None:
    stage.state("fallocate -l 2200M var/fill")
    found = stage.upgrade()
    assert found["result"]["code"] == "rehearsal-space"
    assert "are free" in found["result"]["message"]
    assert found["left"] == _NOTHING
    assert found["phases"] == ["check", "space"]
    stage.state("rm var/fill")


def test_an_image_that_is_not_healthy_with_this_state_is_left_and_its_console_kept(stage: Stage) -> None:
    stage.state("touch var/lib/shop/sours")
    before = json.loads(stage.script("stage look"))
    found = stage.upgrade()
    assert found["result"]["code"] == "rehearsal-failed"
    assert "failed: well" in found["result"]["message"]
    assert found["left"] == _NOTHING
    assert [found[name] for name in ("table", "entries", "snapshots")] == [before[name] for name in ("table", "entries", "snapshots")]
    kept = {Path(name).name: text for name, text in found["failures"].items()}
    assert "the state is ready" in kept["console.txt"]
    assert "Health of this machine" in kept["journal.txt"]
    assert not next(check for check in json.loads(kept["health.json"]) if check["name"] == "well")["ok"]
    last = found["history"][-1]
    assert (last["image"], last["why"], last["boots"], last["outcome"]) == ("web_1", "rehearsal", 0, "failed: well")
    assert stage.state("cat var/lib/shop/data") == "alpha\n"
    assert stage.upgrade()["result"]["code"] == "unfit-before"


def test_a_migration_that_this_state_does_not_stand_is_found(stage: Stage) -> None:
    stage.state("rm var/lib/shop/sours; echo nonsense >var/lib/shop/data")
    found = stage.upgrade("retry")
    assert found["result"]["code"] == "rehearsal-failed"
    assert "the migration to 2 failed: no such table" in found["result"]["message"]
    assert found["left"] == _NOTHING
    assert stage.state("cat var/lib/shop/data") == "nonsense\n"


@pytest.mark.parametrize("seen", ["losetup --list | grep -q rehearsal/disk", "pgrep qemu-system"], ids=["disk", "machine"])
def test_what_a_killed_rehearsal_leaves_goes_with_the_next_command(stage: Stage, seen: str) -> None:
    stage.state("echo alpha >var/lib/shop/data")
    *confined, killed, found = stage.script(
        f"""
        stage upgrade /image retry >/dev/null & rehearsing=$!
        until {seen} >/dev/null; do sleep 0.1; done
        grep --extended-regexp '^(CapEff|CapBnd|NoNewPrivs)' /proc/$(pgrep qemu-system || echo 1)/status
        kill -KILL $(pgrep --full '[s]tage.py upgrade')
        wait $rehearsing || true
        for attempt in 1 2 3 4 5 6 7 8 9; do pgrep qemu-system >/dev/null || break; sleep 0.5; done
        stage look
        stage upgrade /image
        umount /run/obelisk/host /run/obelisk/state
        losetup --detach $(readlink /stage/disk?)
        """
    ).splitlines()
    if "qemu" in seen:
        assert [line.split()[1].lstrip("0") for line in confined] == ["", "", "1"]
    left = json.loads(killed)["left"]
    assert left["machines"] == []
    assert left["directory"]
    after = json.loads(found)
    assert after["result"]["code"] == "unfit-before"
    assert after["left"] == _NOTHING


def test_what_the_operating_system_refuses_is_explained(stage: Stage) -> None:
    found = json.loads(stage.script("ulimit -f 8192; stage upgrade /image retry"))
    assert found["result"]["code"] == "host-failing"
    assert "File too large" in found["result"]["message"]
    assert found["left"] == _NOTHING


def test_an_image_that_is_healthy_with_this_state_is_installed(stage: Stage) -> None:
    found = stage.upgrade("retry")
    assert found["result"]["code"] == "", found["result"]
    assert found["left"] == _NOTHING
    assert found["phases"][-7:] == ["space", "rehearse", "stage", "verify", "snapshot", "install", "pending"]
    assert "web_1+3.efi" in found["entries"]
    assert {"rehearse/image", "rehearse/state", "rehearse/boot"} <= set(found["shown"])
    assert stage.state("cat var/lib/shop/data; [ ! -e version ]") == "alpha\n"
