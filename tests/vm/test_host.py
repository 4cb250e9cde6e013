"""A host's life, on one disk and in this order: each test goes on where the one before has left it.

The product is one small image in several versions: 2, 6 and 9 are good, and 6 has relaxed what can be relaxed. 3 fails its check, 4 panics,
5 hangs, 7 is signed by a stranger, 8 fails while it soaks.
"""

import json
import subprocess
from collections.abc import Iterator

import pytest
from host import WANTED, Host, Rack, Version, build_versions
from tool import Tool

from obelisk.model.image import PartKind
from obelisk.system.files import find_bytes

_FAILS = """
[health.bad]
command = "false"
timeout = "5s"
"""


_RELAXED = """
[hardening]
lockdown = "none"
module_signatures = false
state_mounts = []
"""
_SYSCTL = {"etc/sysctl.d/90-local.conf": "kernel.dmesg_restrict = 0\nkernel.yama.ptrace_scope = 0\n"}
# The same file without the mark at its end is a module that nobody signed.
_UNSIGNED = "head -c -28 $(modinfo -n dummy) >/run/dummy.ko; insmod /run/dummy.ko 2>&1"


# Passes when it is asked for the first time.
_SOURS = """
[health.sours]
command = "[ ! -e /run/sour ] && touch /run/sour"
"""


def _unit(name: str, command: str) -> dict[str, str]:
    """A unit that runs before anything else of the system does."""
    place = "usr/lib/systemd/system"
    text = "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\nTimeoutStartSec=infinity\n"
    return {
        f"{place}/{name}.service": f"{text}ExecStart={command}\n",
        f"{place}/sysinit.target.wants/{name}.service": f"-> ../{name}.service",
    }


_PANICS = _unit("panics", '/bin/sh -c "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"')
_HANGS = _unit("hangs", "/bin/sleep infinity")


@pytest.fixture(scope="module")
def rack(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    home = tmp_path_factory.mktemp("host")
    tool = workshop.copied_to(home)
    versions = [
        Version("1"),
        Version("2"),
        Version("3", spec=_FAILS),
        Version("4", files=_PANICS),
        Version("5", files=_HANGS, deadline="25s"),
        Version("6", spec=_RELAXED, files=_SYSCTL),
        Version("7", keys="stranger"),
        Version("8", spec=_SOURS),
        Version("9"),
    ]
    build_versions(tool, versions)
    place = home / "rack"
    place.mkdir()
    yield Rack(tool, place)
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def host(rack: Rack) -> Iterator[Host]:
    shelf = rack.shelf({version: rack.image(f"host@{version}") for version in "123456789"})
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), shelf) as machine:
        machine.wait_for_boot()
        machine.settled("host_1")
        yield machine


def options(host: Host, place: str) -> set[str]:
    """How a place is mounted."""
    return set(host.run(f"findmnt -no OPTIONS {place}").split(","))


def values(host: Host, *names: str) -> list[str]:
    """What the kernel is set to."""
    return host.run(f"sysctl -n {' '.join(names)}").split()


def open_shelf(host: Host) -> None:
    """Mount the disk with the images."""
    host.run("mkdir -p /run/shelf; mountpoint -q /run/shelf || mount -o ro /dev/vdb /run/shelf")


def upgrade(host: Host, version: str) -> dict[str, object]:
    """Install the version from the shelf."""
    open_shelf(host)
    return host.json(f"upgrade /run/shelf/{version}")


def refused(host: Host, version: str, *words: str, status: int) -> str:
    """What an upgrade says that must not happen; nothing on the disk is another for it."""
    open_shelf(host)
    look = "sfdisk --dump /dev/vda; mkdir -p /run/look; mount -o ro /dev/vda1 /run/look; ls -R /run/look/EFI; umount /run/look"
    before = host.run(look)
    said = host.run(f"obelisk host upgrade /run/shelf/{version} {' '.join(words)} 2>&1", status=status)
    assert host.run(look) == before
    return said


def test_a_new_host_knows_itself(host: Host) -> None:
    status = host.json("status")["status"]
    assert (status["name"], status["version"], status["booted"], status["fallback"]) == ("host", "1", "a", "")
    assert status["secure_boot"]
    assert status["health"] == "healthy"
    assert [slot["holds"] for slot in status["slots"]] == ["host_1", None]
    (first,) = host.json("history")["history"]
    assert (first["image"], first["why"], first["outcome"]) == ("host_1", "first boot", "healthy")
    assert host.json("verify")["findings"] == []


def test_the_kernel_keeps_root_out(host: Host) -> None:
    assert "[integrity]" in host.run("cat /sys/kernel/security/lockdown")
    assert host.run("cat /sys/module/module/parameters/sig_enforce") == "Y"
    assert "rejected" in host.run(_UNSIGNED, status=1)
    host.run("modprobe dummy && rmmod dummy")


def test_state_brings_no_set_id_programs_and_no_devices(host: Host) -> None:
    for place in ("/var", "/home", "/root", "/run"):
        assert {"nosuid", "nodev"} <= options(host, place), place
    assert {"nosuid", "nodev"} <= options(host, "/tmp")  # noqa: S108 - in the guest
    # Programs run from there all the same.
    host.run("cp /usr/bin/true /home/true && /home/true && cp /usr/bin/true /var/tmp/true && /var/tmp/true")


def test_kernel_settings_are_strict(host: Host) -> None:
    names = ("kernel.dmesg_restrict", "kernel.kptr_restrict", "kernel.kexec_load_disabled", "kernel.yama.ptrace_scope", "kernel.sysrq")
    assert values(host, *names) == ["1", "2", "1", "1", "16"]
    others = ("kernel.unprivileged_bpf_disabled", "net.core.bpf_jit_harden", "fs.protected_fifos", "fs.protected_regular")
    assert values(host, *others) == ["1", "2", "2", "2"]
    host.run("modprobe dummy numdummies=1; udevadm settle")  # a network card, which comes when systemd-sysctl is long done
    for name in ("all", "default", "dummy0"):
        refused = [f"net.ipv4.conf.{name}.{each}" for each in ("accept_redirects", "send_redirects", "accept_source_route")]
        assert values(host, *refused) == ["0", "0", "0"], name
        assert values(host, f"net.ipv6.conf.{name}.accept_redirects") == ["0"], name
    assert values(host, "net.ipv4.conf.dummy0.rp_filter") == ["2"]
    host.run("rmmod dummy")


def test_set_id_programs_are_those_of_the_manifest(host: Host, rack: Rack) -> None:
    assert sorted(host.run("find / -xdev -type f -perm /6000").splitlines()) == sorted(rack.image("host@1").manifest.setuid)


def test_our_units_work_in_their_sandboxes(host: Host) -> None:
    host.run(f"touch {WANTED}; systemctl start obelisk-coldplug.service")
    assert host.run("systemctl --failed --no-legend --plain") == ""
    said = host.run("journalctl -b --no-pager -u 'obelisk-*' -p warning")
    assert said == "-- No entries --"


def test_an_upgrade_is_tried_blessed_and_recorded(host: Host) -> None:
    done = upgrade(host, "2")
    assert done["changed"]
    assert not upgrade(host, "2")["changed"]
    assert host.json("status")["status"]["slots"][1] == {"slot": "b", "holds": "host_2", "entry": "host_2+1.efi", "size": 512 << 20}
    host.restart()
    host.settled("host_2")
    status = host.json("status")["status"]
    assert (status["version"], status["booted"], status["fallback"], status["on_trial"]) == ("2", "b", "host_1", False)
    assert [slot["entry"] for slot in status["slots"]] == ["host_1.efi", "host_2.efi"]
    assert host.json("verify")["findings"] == []
    assert [(each["image"], each["why"], each["outcome"]) for each in host.json("history")["history"]] == [
        ("host_1", "first boot", "healthy"),
        ("host_2", "upgrade from host_1", "blessed"),
    ]


def test_what_must_not_be_installed_is_refused_and_changes_nothing(host: Host) -> None:
    assert "version 1 is older than the running 2" in refused(host, "1", status=2)
    assert "signed by a key that this machine's firmware does not trust" in refused(host, "7", status=3)
    assert "has no image" in refused(host, "nowhere", status=2)
    host.run("cp -r /run/shelf/6 /var/tmp/cut; truncate -s -4096 /var/tmp/cut/root.erofs")
    assert "another size than the manifest says" in host.run("obelisk host upgrade /var/tmp/cut 2>&1; rm -r /var/tmp/cut")


def test_a_rehearsal_without_its_programs_is_refused_and_says_how_to_get_them(host: Host) -> None:
    said = refused(host, "6", "--rehearse", status=7)
    assert "this host has no QEMU to rehearse with" in said
    assert "`rehearse = true` under [upgrade]" in said


def test_a_full_esp_and_a_full_state_volume_are_found_before_anything_is_written(host: Host) -> None:
    free = "$(($(stat -f -c '%a*%S' {place}) - {left}))"
    # The kernel of the image that goes makes room for the new one, so there has to be next to none.
    fill = f"fallocate -l {free.format(place='/run/fill', left=256 << 10)} /run/fill/big"
    host.run(f"mkdir -p /run/fill; mount /dev/vda1 /run/fill; {fill}; umount /run/fill")
    assert "the ESP has" in refused(host, "6", status=5)
    host.run("mount /dev/vda1 /run/fill; rm /run/fill/big; umount /run/fill")
    host.run(f"fallocate -l {free.format(place='/var', left=32 << 20)} /var/tmp/big; sync")
    assert "the state volume has" in refused(host, "6", status=5)
    host.run("rm /var/tmp/big; sync")


def test_of_two_upgrades_at_once_one_does_the_work(host: Host) -> None:
    open_shelf(host)
    host.run("for n in 1 2; do obelisk host upgrade /run/shelf/6 --json >/run/said.$n 2>&1 & done; wait")
    changed = [json.loads(host.run(f"tail -n 1 /run/said.{number}"))["changed"] for number in (1, 2)]
    assert sorted(changed) == [False, True]


def test_a_failing_check_falls_back_by_itself_and_is_not_tried_again(host: Host) -> None:
    upgrade(host, "3")
    host.restart()
    host.settled("host_2")
    last, now = host.json("history")["history"][-2:]
    assert (last["image"], last["outcome"]) == ("host_3", "failed: bad")
    assert (now["image"], now["why"]) == ("host_2", "fell back from host_3")
    assert "obelisk-health.service" in host.run("tail -c 100000 /run/obelisk/host/failures/host_3-*/journal.txt")
    said = refused(host, "3", status=5)
    assert "was tried on this host and fell back" in said
    assert "--retry 3" in said


def test_a_panic_falls_back_by_itself_whatever_the_clock_says(host: Host) -> None:
    host.run("date -s 2036-01-01")
    upgrade(host, "4")
    host.restart()
    host.settled("host_2")
    last = host.json("history")["history"][-2]
    assert last["image"] == "host_4"
    assert "never became healthy" in last["outcome"]


def test_a_hang_is_ended_by_the_deadline_and_falls_back(host: Host) -> None:
    host.run("date -s 2016-01-01")
    upgrade(host, "5")
    host.restart()
    host.settled("host_2")
    last = host.json("history")["history"][-2]
    assert (last["image"], last["outcome"]) == ("host_5", "not healthy after 25 seconds")


def test_a_check_that_fails_within_the_soak_time_falls_back(host: Host) -> None:
    upgrade(host, "8")
    host.restart()
    host.settled("host_2")
    last = host.json("history")["history"][-2]
    assert (last["image"], last["outcome"]) == ("host_8", "failed: sours")


def test_a_spec_has_it_otherwise_and_state_goes_back_with_its_image(host: Host) -> None:
    host.run("echo old >/var/lib/thing; echo mine >/home/mine")
    upgrade(host, "6")
    host.restart()
    host.settled("host_6")
    # The kernel locks itself down where Secure Boot is on, whatever its command line says.
    assert "[integrity]" in host.run("cat /sys/kernel/security/lockdown")
    words = host.run("cat /proc/cmdline")
    assert "lockdown" not in words
    assert "sig_enforce" not in words
    assert not {"nosuid", "nodev"} & options(host, "/var")
    assert values(host, "kernel.dmesg_restrict", "kernel.yama.ptrace_scope", "kernel.kptr_restrict") == ["0", "0", "2"]
    host.run("echo new >/var/lib/thing")
    known = len(host.boots)
    host.begin("obelisk host rollback --with-state")
    while len(host.boots) == known:
        host.wait_for_boot()
    host.settled("host_2")
    assert host.run("cat /var/lib/thing /home/mine") == "old\nmine"
    names = [snapshot["name"] for snapshot in host.json("snapshot list")["snapshots"]]
    assert any("replaced-host-6" in name for name in names)
    assert "rollback from host_6" in host.json("history")["history"][-1]["why"]


def test_a_damaged_slot_is_named_and_repaired(host: Host) -> None:
    open_shelf(host)
    slot = next(slot for slot in host.json("status")["status"]["slots"] if slot["holds"] == "host_6")
    device = "/dev/vda2" if slot["slot"] == "a" else "/dev/vda4"
    host.run(f"dd if=/dev/urandom of={device} bs=4096 count=1 seek=777 oflag=direct conv=notrunc 2>&1")
    (finding,) = host.json("verify", status=3)["findings"]
    assert (finding["image"], finding["blocks"]) == ("host_6", 1)
    assert "777" in finding["what"]
    result = host.json("verify --repair /run/shelf/6")
    assert (result["findings"], result["written"]) == ([], 4096)


def test_what_nothing_declares_is_drift(host: Host) -> None:
    host.run("mkdir -p /var/lib/stray; head -c 5000 /dev/zero >/var/lib/stray/file")
    found = {stray["path"]: stray for stray in host.json("drift", status=1)["drift"]}
    assert (found["/var/lib/stray"]["size"], found["/var/lib/stray"]["owner"]) == (5000, "root")
    assert "/var/lib/obelisk" not in found
    assert "/var/lib/thing" in found


def test_an_image_whose_slot_was_overwritten_is_left_for_the_one_before(host: Host) -> None:
    upgrade(host, "9")
    slot = next(slot for slot in host.json("status")["status"]["slots"] if slot["holds"] == "host_9")
    tree = "/dev/vda3" if slot["slot"] == "a" else "/dev/vda5"
    # Behind the superblock lies the top of the tree: nothing of the image is what the root hash names.
    host.run(f"dd if=/dev/urandom of={tree} bs=4096 count=1 seek=1 oflag=direct conv=notrunc 2>&1")
    host.restart()
    host.settled("host_2")
    last, now = host.json("history")["history"][-2:]
    assert last["image"] == "host_9"
    assert "never came as far" in last["outcome"]
    assert now["why"] == "fell back from host_9"


def test_a_kernel_image_that_was_cut_is_left_for_the_one_before(host: Host) -> None:
    open_shelf(host)
    host.json("upgrade /run/shelf/6")
    host.run("mkdir -p /run/look; mount /dev/vda1 /run/look; truncate -s -1000000 /run/look/EFI/Linux/host_6+1.efi; umount /run/look")
    host.restart()
    host.settled("host_2")
    assert host.json("status")["status"]["version"] == "2"
    assert {finding["image"] for finding in host.json("verify", status=3)["findings"]} == {"host_6"}
    last = host.json("history")["history"][-2]
    assert last["image"] == "host_6"
    assert "never came as far" in last["outcome"]


def test_what_fell_back_is_tried_again_when_it_is_named(host: Host) -> None:
    open_shelf(host)
    assert host.json("upgrade /run/shelf/6 --retry 6")["changed"]
    host.restart()
    host.settled("host_6")
    known = len(host.boots)
    host.begin("obelisk host rollback")
    while len(host.boots) == known:
        host.wait_for_boot()
    host.settled("host_2")


def test_a_damaged_block_of_the_running_image_is_left_for_the_other_image(host: Host, rack: Rack) -> None:
    running = host.json("status")["status"]
    assert (running["version"], running["fallback"]) == ("2", "host_6")
    at = find_bytes(rack.image("host@2").part_path(PartKind.ROOT), b"version 2\n" * 10)
    assert at is not None
    device = "/dev/vda2" if running["booted"] == "a" else "/dev/vda4"
    host.run(f"dd if=/dev/urandom of={device} bs=4096 count=1 seek={at // 4096} oflag=direct conv=notrunc 2>&1")
    known = len(host.boots)
    host.begin("echo 3 >/proc/sys/vm/drop_caches; cat /usr/share/marker")
    while len(host.boots) == known:
        host.wait_for_boot()
    host.settled("host_6")
    assert host.json("history")["history"][-1]["why"] == "rollback from host_2"
    assert "damaged" in host.run("cat /run/obelisk/host/journal.jsonl")
    open_shelf(host)
    assert host.json("verify --repair /run/shelf/2")["findings"] == []


def leave_a_rehearsal(host: Host) -> None:
    """What a rehearsal leaves that a power cut ended."""
    host.run(
        "mkdir -p /run/look; mount -o subvolid=5 /dev/vda6 /run/look; mkdir -p /run/look/snapshots/.rehearsed /run/look/host/rehearsal;"
        "btrfs subvolume snapshot -r /run/look/live /run/look/snapshots/.rehearsed/tree; truncate -s 1G /run/look/host/rehearsal/disk;"
        "umount /run/look"
    )


def test_a_snapshot_comes_back_and_what_it_replaced_is_kept(host: Host) -> None:
    host.run("echo one >/var/lib/thing")
    made = host.json("snapshot create by-hand")["snapshot"]
    host.run("echo two >/var/lib/thing")
    host.json(f"snapshot restore {made}")
    assert host.run("cat /var/lib/thing") == "two"
    leave_a_rehearsal(host)
    host.restart()
    host.settled("host_6")
    assert host.run("cat /var/lib/thing") == "one"
    look = "mkdir -p /run/look; mount -o subvolid=5 /dev/vda6 /run/look; ls -A /run/look/snapshots /run/look/host; umount /run/look"
    assert "rehears" not in host.run(look)
    kept = [snapshot["name"] for snapshot in host.json("snapshot list")["snapshots"]]
    assert made in kept
    newest = kept[-1]
    assert "replaced-host-6" in newest
    host.json(f"snapshot delete {newest}")
    assert newest not in [snapshot["name"] for snapshot in host.json("snapshot list")["snapshots"]]


def test_a_reset_leaves_nothing_but_what_was_to_be_kept(host: Host) -> None:
    assert "deletes the whole state" in host.run("obelisk host reset 2>&1", status=2)
    assert "is no state" in host.run("obelisk host reset --yes --keep /etc/passwd 2>&1", status=2)
    host.run("mkdir -p /home/somebody/deep; echo kept >/home/somebody/deep/file; chown -R 1234 /home/somebody")
    before = host.run("cat /etc/machine-id")
    assert host.json("reset --yes --keep /home/somebody/deep/file")["kept"] == ["/home/somebody/deep/file"]
    assert host.run("cat /var/lib/thing") == "one"
    host.restart()
    host.settled("host_6")
    assert host.run("cat /home/somebody/deep/file; stat -c %u /home/somebody/deep") == "kept\n1234"
    assert host.try_run("ls /var/lib/thing").status != 0
    assert host.run("cat /etc/machine-id") != before
    assert host.json("history")["history"][0]["image"] == "host_1"
    assert host.json("snapshot list")["snapshots"] == []
