"""A host that has an application from a channel, on one disk and in this order: each test goes on where the one before has left it.

Versions 1 and 3 of the application serve, 2 and 4 end at once. What 1 and 2 keep has no bound, what the others keep has one.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from host import Host, Rack, Version, build_versions
from tool import Tool

from obelisk.build import keys
from obelisk.model.proof import FIXED_FOR_APPLICATION
from obelisk.store import Store
from obelisk.system import qemu
from obelisk.trial import Outcome, Report, proof

_HOST = f"""
[host]
applications = true

[release]
repositories = ["{qemu.SITE}"]
root = "root.json"
"""
# As the tests' other hosts, but with what filters packets.
_SLIM = """\
#!/bin/sh
set -eu
cd /usr/lib/modules/*/kernel
rm -rf drivers/net/ethernet/[!i]* drivers/infiniband drivers/gpu sound fs/[!befjmnov]*
rm -rf /usr/share/zoneinfo/[A-TV-Z]* /usr/lib/udev/hwdb.bin
"""
_APP = """\
name = "shop"
role = "app"
version = "{version}"
packages = ["busybox"]
tree = "tree"

[app]
command = ["/bin/sh", "/usr/lib/shop"]
data = ["/var/lib/shop"]
service = true
health = "http://localhost:8080/"
steady = "2s"
stop_timeout = "5s"

[grants]
listen = [8080]
"""
_ENDS = "echo {version} >>/var/lib/shop/starts\nexit 3\n"
_SERVES = "echo {version} >>/var/lib/shop/starts\nexec busybox httpd -f -p 8080 -h /usr/share/shop\n"


@pytest.fixture(scope="module")
def rack(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    home = tmp_path_factory.mktemp("applications")
    tool = workshop.copied_to(home)
    tool.build()  # for its keys
    tool.run("keys", "init")
    tool.run("repo", "init", str(home / "repo"))
    shutil.copyfile(home / "repo/metadata/1.root.json", tool.spec / "root.json")
    build_versions(tool, [Version("1", network=True, spec=_HOST, programs={"slim.sh": _SLIM})])
    spec = home / "shop"
    (spec / "tree/usr/lib").mkdir(parents=True)
    (spec / "tree/usr/share/shop").mkdir(parents=True)
    for version in "1234":
        bound = "" if version in "12" else '[limits]\ndata = "32M"\n'
        (spec / "obelisk.toml").write_text(_APP.format(version=version) + bound)
        (spec / "tree/usr/share/shop/index.html").write_text(f"shop {version}\n")
        (spec / "tree/usr/lib/shop").write_text((_ENDS if version in "24" else _SERVES).format(version=version))
        replace(tool, spec=spec).build()
    place = home / "rack"
    place.mkdir()
    yield Rack(tool, place)
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def host(rack: Rack) -> Iterator[Host]:
    release(rack, "1")
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), site=rack.tool.home / "repo") as machine:
        machine.wait_for_boot()
        machine.settled("host_1")
        yield machine


def release(rack: Rack, version: str) -> None:
    """Release that version of the application in stable, as one that has passed its tests."""
    image = rack.image(f"shop@{version}")
    key = keys.load(rack.tool.home / "keys")
    assert key is not None
    outcomes = tuple(Outcome(name, passed=True, duration_ms=1) for name in FIXED_FOR_APPLICATION)
    with Store.open(rack.tool.store) as store:
        store.add_proof(image.id, proof(Report(image.id, image.manifest.label, "none", FIXED_FOR_APPLICATION, outcomes), key))
    # Unit tests know of edges; to make them takes as long as all that is asked here.
    rack.tool.run("release", image.id, "--to", str(rack.tool.home / "repo"), "--channel", "stable", "--edges", "none")


def app(host: Host, words: str, *, status: int = 0) -> dict[str, Any]:
    """The answer to a command about applications."""
    said = host.run(f"obelisk app {words} --json", status=status)
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


def served(host: Host) -> str:
    """What the application answers, from outside of its sandbox."""
    return host.run("exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3").splitlines()[-1]


def starts(host: Host) -> list[str]:
    """The versions that have started, as its data tells."""
    return host.run("cat /var/lib/obelisk/apps/shop/*/starts").split()


def bounded(host: Host) -> bool:
    """Whether what it keeps is in a volume, and the application sees that one."""
    seen = host.run("grep -c ' /var/lib/shop .* ext4 ' /proc/$(pgrep -x busybox)/mountinfo || true")
    there = host.run("grep -c ' /var/lib/obelisk/apps/shop ext4 ' /proc/mounts || true")
    assert seen == there
    return seen == "1"


def roots(host: Host) -> list[str]:
    """The devices of the roots that are mounted for applications."""
    return [line.split()[0] for line in host.run("cat /proc/mounts").splitlines() if "/run/obelisk/apps/" in line]


def test_an_application_comes_from_the_channel_and_serves(rack: Rack, host: Host) -> None:
    host.run("until obelisk host upgrade --check || [ $? = 3 ]; do sleep 1; done")  # until there is a network; hosts have no release
    assert app(host, "install shop --channel stable")["image"] == rack.image("shop@1").id
    assert served(host) == "shop 1"
    assert host.run("systemctl is-enabled obelisk-app-shop.service") == "generated"
    # The kernel checks each block that it reads.
    (mounted,) = roots(host)
    assert mounted.startswith("/dev/mapper/obelisk-")
    # It has none of the machine's rights.
    assert host.run("ps -o user= -p $(pgrep -x busybox)").split()[0].isdigit()


def test_nothing_is_stopped_for_a_version_that_fails_beside_the_one_that_serves(rack: Rack, host: Host) -> None:
    process = host.run("pgrep -x busybox")
    release(rack, "2")
    said = app(host, "upgrade shop", status=5)["error"]
    assert (said["code"], "has gone on" in said["message"]) == ("app-unhealthy", True)
    assert host.run("pgrep -x busybox") == process
    assert served(host) == "shop 1"
    assert starts(host) == ["1"]
    # It did start, over what was kept at that moment.
    assert "status=3" in host.run(f"{said['hint']} --no-pager")
    assert host.run("ls --almost-all /var/lib/obelisk/apps/.next /run/obelisk/apps/installed") == (
        "/run/obelisk/apps/installed:\nshop\nshop.moving\n\n/var/lib/obelisk/apps/.next:"
    )


def test_the_next_version_takes_its_place_and_a_failing_one_does_not(rack: Rack, host: Host) -> None:
    release(rack, "3")
    assert app(host, "upgrade shop")["image"] == rack.image("shop@3").id
    assert served(host) == "shop 3"
    assert bounded(host)
    release(rack, "4")
    assert app(host, "upgrade shop", status=5)["error"]["code"] == "app-unhealthy"
    assert served(host) == "shop 3"
    assert app(host, "upgrade shop", status=5)["error"]["code"] == "failed-before"
    assert len(roots(host)) == len(host.run("ls /dev/mapper/obelisk-*").split()) == 2  # this one's, and the one's before
    assert starts(host)[:2] == ["1", "3"]
    assert set(starts(host)) == {"1", "3"}


def test_it_starts_with_the_machine_and_goes_back_when_it_is_told_to(host: Host) -> None:
    host.restart()
    host.settled("host_1")
    host.run("until systemctl is-active obelisk-app-shop.service; do sleep 1; done")
    assert served(host) == "shop 3"
    assert bounded(host)
    app(host, "rollback shop --with-data")
    assert served(host) == "shop 1"
    assert not bounded(host)
    assert starts(host) == ["1", "1"]
    (listed,) = app(host, "list")["installed"]
    assert (listed["version"], listed["prior"], listed["state"], listed["channel"]) == ("1", "3", "running", "stable")
