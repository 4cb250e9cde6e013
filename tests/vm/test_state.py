"""A host that keeps declared state only, through migrations of it and back, on one disk and in this order.

Image 1 works with the first version of state; 2 with the second, to which there is a way and a way back; 3 with the third, from which
there is none. The migration of 4 fails, and 5 is not healthy with state that it has migrated.
"""

import subprocess
from collections.abc import Iterator

import pytest
from host import Host, Rack, Version, build_versions
from tool import Tool

_DECLARED = """
[state]
policy = "declared"
declare = ["/var/lib/shop", "/home/ada"]
version = {}
"""
_TO_2 = """
[[state.migrations]]
to = 2
up = "up-2"
down = "down-2"
"""
_TO_3 = """
[[state.migrations]]
to = 3
up = "up-3"
"""
_FAILS = """
[health.bad]
command = "false"
timeout = "5s"
"""
_UP_2 = "#!/bin/sh\nset -eu\n[ ! -e /run/systemd/system ]\nsed -i s/^/2:/ /var/lib/shop/data\n"
_DOWN_2 = "#!/bin/sh\nset -eu\nsed -i s/^2:// /var/lib/shop/data\n"
_UP_3 = "#!/bin/sh\nset -eu\nsed -i s/^/3:/ /var/lib/shop/data\n"
_BREAKS = "#!/bin/sh\necho nonsense >/var/lib/shop/data\necho no such table >&2\nexit 1\n"

VERSIONS = [
    Version("1", spec=_DECLARED.format(1)),
    Version("2", spec=_DECLARED.format(2) + _TO_2, programs={"up-2": _UP_2, "down-2": _DOWN_2}),
    Version("3", spec=_DECLARED.format(3) + _TO_2 + _TO_3, programs={"up-2": _UP_2, "down-2": _DOWN_2, "up-3": _UP_3}),
    Version("4", spec=_DECLARED.format(2) + _TO_2, programs={"up-2": _BREAKS, "down-2": _DOWN_2}),
    Version("5", spec=_DECLARED.format(2) + _TO_2 + _FAILS, programs={"up-2": _UP_2, "down-2": _DOWN_2}),
]


@pytest.fixture(scope="module")
def rack(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    home = tmp_path_factory.mktemp("state")
    tool = workshop.copied_to(home)
    build_versions(tool, VERSIONS)
    place = home / "rack"
    place.mkdir()
    yield Rack(tool, place)
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def host(rack: Rack) -> Iterator[Host]:
    shelf = rack.shelf({version: rack.image(f"host@{version}") for version in "12345"})
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), shelf) as machine:
        machine.wait_for_boot()
        machine.settled("host_1")
        yield machine


def upgrade(host: Host, version: str) -> None:
    """Install the version from the shelf, and start it."""
    host.run("mkdir -p /run/shelf; mountpoint -q /run/shelf || mount -o ro /dev/vdb /run/shelf")
    host.json(f"upgrade /run/shelf/{version}")
    host.restart()


def go_back(host: Host, command: str) -> None:
    """Run a command that restarts the host, and wait for the next boot."""
    known = len(host.boots)
    host.begin(command)
    while len(host.boots) == known:
        host.wait_for_boot()


def data(host: Host) -> list[str]:
    """What the declared state holds."""
    return host.run("cat /var/lib/shop/data").split()


def state_version(host: Host) -> int:
    """As the host says it."""
    version: int = host.json("status")["status"]["state"]["version"]
    return version


def test_only_declared_state_outlives_a_boot_and_an_upgrade_migrates_it(host: Host) -> None:
    assert state_version(host) == 1
    host.run("echo alpha >/var/lib/shop/data; chmod 0750 /var/lib/shop; chown 1234:1234 /var/lib/shop; echo mine >/home/ada/mine")
    host.run("echo stray >/var/lib/stray; echo stray >/home/stray; echo stray >/root/stray")
    assert host.json("drift")["drift"] == []
    machine = host.run("cat /etc/machine-id")
    upgrade(host, "2")
    host.settled("host_2")
    assert data(host) == ["2:alpha"]
    assert host.run("stat -c '%a %u %g' /var/lib/shop; cat /home/ada/mine") == "750 1234 1234\nmine"
    assert host.run("ls /var/lib/stray /home/stray /root/stray 2>&1 | grep -c 'No such file'") == "3"
    assert host.run("findmnt -no FSTYPE /var; findmnt -no FSTYPE /var/lib/shop") == "tmpfs\nbtrfs"
    assert host.run("cat /etc/machine-id") == machine
    assert host.run("journalctl --list-boots --quiet | wc -l") == "2"
    assert host.json("drift")["drift"] == []
    assert state_version(host) == 2


def test_a_rollback_takes_the_migration_back_and_keeps_what_was_written_since(host: Host) -> None:
    host.run("echo 2:beta >>/var/lib/shop/data")
    go_back(host, "obelisk host rollback")
    host.settled("host_1")
    assert data(host) == ["alpha", "beta"]
    assert state_version(host) == 1
    assert any("replaced-host-2" in each["name"] for each in host.json("snapshot list")["snapshots"])


def test_a_rollback_across_a_migration_without_a_way_back_is_refused_and_says_why(host: Host) -> None:
    upgrade(host, "3")
    host.settled("host_3")
    assert data(host) == ["3:2:alpha", "3:2:beta"]
    said = host.run("obelisk host rollback 2>&1", status=5)
    assert "the migration to 3 has no way back" in said
    assert "--with-state" in said
    go_back(host, "obelisk host rollback --with-state")
    host.settled("host_1")
    assert data(host) == ["alpha", "beta"]
    assert state_version(host) == 1


def test_a_migration_that_fails_falls_back_by_itself_and_has_changed_nothing(host: Host) -> None:
    upgrade(host, "4")
    host.settled("host_1")
    assert data(host) == ["alpha", "beta"]
    last = host.json("history")["history"][-2]
    assert (last["image"], last["outcome"]) == ("host_4", "failed: the migration to 2 failed: no such table")
    host.run("[ ! -e /run/obelisk/host/restore ]")


def test_an_image_that_falls_back_after_its_migration_leaves_the_state_from_before_it(host: Host) -> None:
    upgrade(host, "5")
    host.settled("host_1")
    assert data(host) == ["alpha", "beta"]
    assert state_version(host) == 1
    last, now = host.json("history")["history"][-2:]
    assert (last["image"], last["outcome"]) == ("host_5", "failed: bad")
    assert (now["image"], now["why"]) == ("host_1", "fell back from host_5")
    assert any("replaced-host-5" in each["name"] for each in host.json("snapshot list")["snapshots"])
