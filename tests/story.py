"""The life of a host that is recorded, write by write, for the crash explorer."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from explorer import Window
from host import Host, Rack, Version

_FIRMWARE = "BdsDxe: starting"  # what EDK II says of each start

THING = "/var/lib/thing"
"""What the host writes between its upgrades, and a migration rewrites."""

_MIGRATED = [[], ["2:old"], ["2:old", "2:new"]]
_KNOWN = {"1": [[], ["old"]], "2": _MIGRATED, "3": _MIGRATED}
"""What there may be in it, by the image that runs."""

_STATE = """
[state]
version = 2

[[state.migrations]]
to = 2
up = "up-2"
"""
_UP = {"up-2": f"#!/bin/sh\nset -eu\n[ ! -e {THING} ] || sed -i s/^/2:/ {THING}\n"}

VERSIONS = (Version("1"), Version("2", spec=_STATE, programs=_UP), Version("3", spec=_STATE, programs=_UP))


@dataclass(frozen=True)
class Story:
    """What was recorded: the disk before it, the log of its writes, the firmware's variables before it, and the images.

    `windows` are times that a disk's partitions and ESP do not tell of: state that `migrating` changes and `swapping` exchanges before
    systemd starts, and a tried image on its way to `blessing`.
    """

    before: Path
    log: Path
    variables: Path
    images: tuple[Path, ...]
    windows: tuple[Window, ...]


def tell(rack: Rack) -> Story:
    """First boot; an upgrade into the empty slot, which migrates state; one over the older image; a rollback with its state."""
    images = {version.number: rack.image(f"host@{version.number}") for version in VERSIONS}
    shelf = rack.shelf({number: images[number] for number in "23"})
    variables = rack.variables()
    # The firmware gets its keys on another disk: that has nothing to do with this one.
    with rack.host(rack.disk(images["1"], "enrolment.qcow2"), variables) as host:
        host.machine.wait_for(f"(?s)enrolled.*{_FIRMWARE}", timeout_s=300)
    before, log = rack.place / "before.raw", rack.place / "log"
    rack.as_raw(rack.disk(images["1"]), before)
    disk = rack.place / "recorded.raw"
    subprocess.run(["cp", "--sparse=always", before, disk], check=True)
    shutil.copyfile(variables, rack.place / "variables.before")
    windows: list[Window] = []

    @contextmanager
    def window(name: str) -> Iterator[None]:
        start = log.stat().st_size
        yield
        windows.append(Window(name, start, log.stat().st_size))

    def start_again(host: Host, command: str, name: str) -> None:
        """Run a command that restarts the host; the window is from the firmware to the first process of systemd's."""
        starts, known = host.machine.text().count(_FIRMWARE), len(host.boots)
        host.begin(command)
        host.machine.wait_for(rf"(?s)(?:{_FIRMWARE}.*){{{starts + 1}}}", timeout_s=3600)
        with window(name):
            while len(host.boots) == known:
                host.wait_for_boot()

    with rack.host(disk, variables, shelf, write_log=log) as host:
        host.wait_for_boot()
        host.settled("host_1")
        host.run(f"echo old >{THING}; sync")
        _stage(host, "2")
        start_again(host, "systemctl reboot", "migrating")
        with window("blessing"):
            host.settled("host_2")
        host.run(f"echo 2:new >>{THING}; sync")
        _stage(host, "3")
        host.restart()
        host.settled("host_3")
        start_again(host, "obelisk host rollback --with-state", "swapping")
        host.settled("host_2")
        host.begin("systemctl poweroff")
        assert host.machine.wait_until_off(timeout_s=120)
    return Story(before, log, rack.place / "variables.before", tuple(image.directory for image in images.values()), tuple(windows))


def _stage(host: Host, version: str) -> None:
    host.run("mkdir -p /run/shelf; mountpoint -q /run/shelf || mount -o ro /dev/vdb /run/shelf")
    host.run(f"obelisk host upgrade /run/shelf/{version}")


def inspect(rack: Rack, disk: Path, variables: Path, shelf: Path | None = None) -> str:
    """Boot a state that a cut has left; what is wrong with it, or nothing.

    It has to settle, to be whole, and to have state that its image knows. Where a shelf is given, the next upgrade has to go on from there.
    """
    try:
        with rack.host(disk, variables, shelf) as host:
            host.wait_for_boot()
            version = host.settle_any()
            if findings := host.json("verify")["findings"]:
                return f"version {version}: {findings}"
            lines = host.run(f"[ ! -e {THING} ] || cat {THING}").splitlines()
            if lines not in _KNOWN[version]:
                return f"version {version}: {THING} holds {lines}"
            if shelf is not None and version != VERSIONS[-1].number:
                _stage(host, VERSIONS[-1].number)
    except AssertionError as error:
        return str(error)[-2000:]
    return ""
