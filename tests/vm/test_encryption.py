"""State that the machine's TPM opens, on one disk and in this order: its making is cut, it comes, stays, moves, and is opened by hand.

Images 1 and 2 are good; of 3, a boot on trial has no time to wait for anybody.
"""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from host import BOOT_S, Host, Rack, Version, build_versions
from tool import Tool

_ENCRYPTED = '[state]\nencryption = "tpm2"\n'
VERSIONS = [Version("1", spec=_ENCRYPTED), Version("2", spec=_ENCRYPTED), Version("3", spec=_ENCRYPTED, deadline="5s")]
STATE = "/dev/vda6"
CUTS_BYTES = (300 << 10, 3 << 20)
"""How much has been written to the disk when the power goes: systemd-repart begins, and is at the file system."""


@dataclass(frozen=True)
class Place:
    """A machine's disk, firmware variables and TPM, whether it runs or not."""

    rack: Rack
    disk: Path
    variables: Path
    tpm: Path
    shelf: Path


@pytest.fixture(scope="module")
def place(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("encryption")
    tool = workshop.copied_to(home)
    build_versions(tool, VERSIONS)
    (home / "rack").mkdir()
    rack = Rack(tool, home / "rack")
    shelf = rack.shelf({version: rack.image(f"host@{version}") for version in "23"})
    yield Place(rack, rack.disk(rack.image("host@1")), rack.variables(), home / "rack/tpm", shelf)
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def host(place: Place) -> Iterator[Host]:
    """The machine, after its making was cut."""
    fresh = place.disk.stat().st_blocks * 512
    for written in CUTS_BYTES:
        with place.rack.host(place.disk, place.variables, tpm=place.tpm) as cut:
            deadline = time.monotonic() + BOOT_S
            while place.disk.stat().st_blocks * 512 < fresh + written:
                assert time.monotonic() < deadline, cut.machine.text()
                time.sleep(0.005)
    with place.rack.host(place.disk, place.variables, place.shelf, tpm=place.tpm) as machine:
        machine.wait_for_boot()
        machine.settled("host_1")
        yield machine


@pytest.fixture(scope="module")
def recovery_key(host: Host) -> str:
    """The second that was made."""
    first, second = (host.json("recovery-key")["recovery_key"] for _ in range(2))
    assert first != second
    return str(second)


def keys(host: Host) -> dict[str, object]:
    """What the host says of its state's keys."""
    found: dict[str, object] = host.json("status")["status"]["state"]["encryption"]
    return found


def upgrade(host: Host, version: str) -> None:
    """Install the version from the shelf."""
    host.run("mkdir -p /run/shelf; mountpoint -q /run/shelf || mount -o ro /dev/vdb /run/shelf")
    host.json(f"upgrade /run/shelf/{version}")


def put_credentials(host: Host) -> None:
    """On the ESP: one that is bound to this machine's TPM, and one that anybody could have made."""
    place = "/run/esp/loader/credentials"
    host.run(f"mkdir -p /run/esp; mount /dev/vda1 /run/esp; mkdir -p {place}")
    for name, key in (("bound", "tpm2"), ("open", "null")):
        host.run(f"printf sesame | systemd-creds encrypt --with-key={key} --tpm2-pcrs=7 --name={name} - {place}/{name}.cred")
    host.run("umount /run/esp")


def test_the_first_boot_makes_a_volume_that_the_tpm_opens_however_often_it_is_cut(host: Host) -> None:
    assert host.run(f"blkid -o value -s TYPE {STATE}; findmnt -no SOURCE /run/obelisk/state") == "crypto_LUKS\n/dev/mapper/state[/live]"
    assert keys(host) == {"opened_by": "tpm2", "tpm2": True, "recovery_key": False}
    assert "encrypted by TPM 2, no recovery key yet: obelisk host recovery-key" in host.run("obelisk host status")
    assert host.run("systemctl --failed --quiet") == ""


def test_a_new_recovery_key_takes_the_place_of_the_one_before(host: Host, recovery_key: str) -> None:
    assert len(recovery_key.replace("-", "")) == 64
    assert host.run(f"systemd-cryptenroll {STATE} | awk 'NR > 1 {{print $2}}' | sort") == "recovery\ntpm2"


def test_upgrade_snapshots_and_rollback_follow_the_volume(host: Host) -> None:
    host.run("echo old >/var/lib/thing")
    put_credentials(host)
    upgrade(host, "2")
    host.restart()
    host.settled("host_2")
    assert host.run("cat /var/lib/thing /run/obelisk/opened") == "old\ntpm2"
    assert host.run("ls /run/credentials/@system; cat /run/credentials/@system/bound") == "bound\nsesame"
    assert "the credential open is left out" in host.run("journalctl -k -b --no-pager")
    host.run("echo new >/var/lib/thing")
    known = len(host.boots)
    host.begin("obelisk host rollback --with-state")
    while len(host.boots) == known:
        host.wait_for_boot()
    host.settled("host_1")
    assert host.run("cat /var/lib/thing") == "old"
    assert any("replaced-host-2" in each["name"] for each in host.json("snapshot list")["snapshots"])


def test_another_tpm_leads_to_the_fallback_and_to_the_recovery_key(host: Host, place: Place, recovery_key: str) -> None:
    upgrade(host, "3")
    host.begin("systemctl poweroff")
    assert host.machine.wait_until_off(timeout_s=120)
    place.rack.enlarge(place.disk, 1 << 30)
    other = place.tpm.with_name("other")
    with place.rack.host(place.disk, place.variables, tpm=other, name="moved") as moved:
        # The image on trial waits until its deadline, then the one before waits for longer.
        moved.machine.wait_for(r"(?s)LOCKED.* in 5 seconds.*LOCKED.* in 900 seconds.*recovery key for disk", timeout_s=BOOT_S)
        moved.type("no such key")
        moved.machine.wait_for(r"(?s)900 seconds.*incorrect.*recovery key for disk", timeout_s=BOOT_S)
        moved.type(recovery_key)
        moved.wait_for_boot()
        moved.settled("host_1")
        assert keys(moved)["opened_by"] == "recovery-key"
        # The boot that could not open the volume has enlarged its partition, and this one what is in it.
        sizes = moved.run(f"lsblk -bno SIZE {STATE} | head -n 1; findmnt -bno SIZE /run/obelisk/state").split()
        assert int(sizes[0]) > 5 << 30
        assert int(sizes[0]) - int(sizes[1]) < 32 << 20
        assert [each["outcome"] for each in moved.json("history")["history"] if each["image"] == "host_3"] != []
        assert "the TPM does not open the state volume" in moved.run("obelisk host recovery-key 2>&1", status=5)
        wrong = "-".join(["cccccccc"] * 8)
        assert "the TPM was not enrolled" in moved.run(f"echo {wrong} | obelisk host enrol-tpm 2>&1", status=2)
        moved.run(f"echo {recovery_key.upper()} | obelisk host enrol-tpm")
        assert "obelisk host enrol-tpm" not in moved.run("obelisk host status")
        moved.restart()
        moved.settled("host_1")
        assert keys(moved) == {"opened_by": "tpm2", "tpm2": True, "recovery_key": True}
        assert moved.run("cat /var/lib/thing") == "old"


def test_a_machine_without_a_tpm_says_so_and_makes_nothing(place: Place) -> None:
    disk = place.rack.disk(place.rack.image("host@1"), "bare.qcow2")
    with place.rack.host(disk, place.variables, name="bare") as bare:
        bare.machine.wait_for("LOCKED|STOPPED: this image encrypts its state by a TPM 2, and this machine has none", timeout_s=BOOT_S)
