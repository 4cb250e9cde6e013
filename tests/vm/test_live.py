"""The running image onto another disk, and a machine that starts from that."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from host import Rack, Version, build_versions
from tool import Tool


@pytest.fixture(scope="module")
def rack(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    home = tmp_path_factory.mktemp("live")
    tool = workshop.copied_to(home)
    build_versions(tool, [Version("1", slots=3)])
    place = home / "rack"
    place.mkdir()
    yield Rack(tool, place)
    subprocess.run(["rm", "-rf", home], check=True)


def test_a_live_image_installs_itself_onto_another_disk(rack: Rack) -> None:
    spare, small = rack.blank("spare.qcow2", 6 << 30), rack.blank("small.qcow2", 1 << 30)
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), spares=(spare, small)) as live:
        live.wait_for_boot()
        live.settled("host_1")
        live.run("touch /var/lib/of-the-live-system")
        assert "is not the running image" in live.run("obelisk install other /dev/vdb 2>&1", status=2)
        assert "--erase vdb" in live.run("obelisk install host /dev/vdb 2>&1", status=2)
        assert "is in use" in live.run("obelisk install host /dev/vda --erase vda 2>&1", status=5)
        assert "a host of host_1 needs" in live.run("obelisk install host /dev/vdc --erase vdc 2>&1", status=5)
        # What an older system left on the disk is none of the new one's business.
        live.run("head -c 8M /dev/urandom >/dev/vdb; sync")
        said = json.loads(live.run("obelisk install host /dev/vdb --erase vdb --json").splitlines()[-1])
        assert (said["image"], said["target"]) == ("host_1", "/dev/vdb")
        live.run("mkdir -p /run/look; mount -o ro /dev/vdb1 /run/look")
        assert live.run("ls /run/look/EFI/Linux; umount /run/look") == "host_1.efi"
        # Behind a mebibyte and the ESP lies the root, in a file as on a device.
        live.run(f"obelisk install host_1 /var/tmp/disk.raw; cmp -n {1 << 20} -i {(1 << 20) + (2 << 30)} /dev/vdb /var/tmp/disk.raw")
        machine = live.run("cat /etc/machine-id")
    with rack.host(spare, rack.variables("new.fd"), name="installed") as installed:
        installed.wait_for_boot()
        installed.settled("host_1")
        assert installed.json("verify")["findings"] == []
        status = installed.json("status")["status"]
        assert (status["booted"], status["secure_boot"], len(status["slots"])) == ("a", True, 3)
        assert installed.run("cat /etc/machine-id") != machine
        assert installed.try_run("ls /var/lib/of-the-live-system").status != 0
