"""The life of a host that is recorded, write by write, for the crash explorer."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from host import Host, Rack, Version

VERSIONS = (Version("1"), Version("2"), Version("3"))


@dataclass(frozen=True)
class Story:
    """What was recorded: the disk before it, the log of its writes, the firmware's variables before it, and the images."""

    before: Path
    log: Path
    variables: Path
    images: tuple[Path, ...]


def tell(rack: Rack) -> Story:
    """First boot; an upgrade into the empty slot; one over the older image; a rollback with its state. Takes some minutes."""
    images = {version.number: rack.image(f"host@{version.number}") for version in VERSIONS}
    shelf = rack.shelf({number: images[number] for number in "23"})
    variables = rack.variables()
    # The firmware gets its keys on another disk: that has nothing to do with this one.
    with rack.host(rack.disk(images["1"], "enrolment.qcow2"), variables) as host:
        host.machine.wait_for("Linux|obelisk:|login:", timeout_s=300)
    before, log = rack.place / "before.raw", rack.place / "log"
    rack.as_raw(rack.disk(images["1"]), before)
    disk = rack.place / "recorded.raw"
    subprocess.run(["cp", "--sparse=always", before, disk], check=True)
    shutil.copyfile(variables, rack.place / "variables.before")
    with rack.host(disk, variables, shelf, write_log=log) as host:
        host.wait_for_boot()
        host.settled("host_1")
        _upgrade(host, "2")
        host.run("echo new >/var/lib/thing; sync")
        _upgrade(host, "3")
        known = len(host.boots)
        host.begin("obelisk host rollback --with-state")
        while len(host.boots) == known:
            host.wait_for_boot()
        host.settled("host_2")
        host.begin("systemctl poweroff")
        assert host.machine.wait_until_off(timeout_s=120)
    return Story(before, log, rack.place / "variables.before", tuple(image.directory for image in images.values()))


def _upgrade(host: Host, version: str) -> None:
    host.run("mkdir -p /run/shelf; mountpoint -q /run/shelf || mount -o ro /dev/vdb /run/shelf")
    host.run(f"obelisk host upgrade /run/shelf/{version}")
    host.restart()
    host.settled(f"host_{version}")
