"""What a running machine refuses by default, and that a spec can have it otherwise, on one host.

Version 1 is as everything is; 2 has relaxed what can be relaxed. That 2 is blessed shows that `obelisk host settle` does its work in
its sandbox.
"""

import subprocess
from collections.abc import Iterator

import pytest
from host import Host, Rack, Version, build_versions
from tool import Tool

_RELAXED = """
[hardening]
lockdown = "none"
module_signatures = false
state_mounts = []
"""
_SYSCTL = {"etc/sysctl.d/90-local.conf": "kernel.dmesg_restrict = 0\nkernel.yama.ptrace_scope = 0\n"}
# The same file without the mark at its end is a module that nobody signed.
_UNSIGNED = "head -c -28 $(modinfo -n dummy) >/run/dummy.ko; insmod /run/dummy.ko 2>&1"


@pytest.fixture(scope="module")
def tool(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    home = tmp_path_factory.mktemp("hardening")
    tool = workshop.copied_to(home)
    build_versions(tool, [Version("1"), Version("2", spec=_RELAXED, files=_SYSCTL)])
    yield tool
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def host(tool: Tool) -> Iterator[Host]:
    place = tool.home / "rack"
    place.mkdir()
    rack = Rack(tool, place)
    shelf = rack.shelf({"2": rack.image("host@2")})
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


def test_set_id_programs_are_those_of_the_manifest(host: Host, tool: Tool) -> None:
    assert sorted(host.run("find / -xdev -type f -perm /6000").splitlines()) == sorted(tool.manifest()["setuid"])


def test_our_units_work_in_their_sandboxes(host: Host) -> None:
    host.run("until systemctl is-active obelisk-coldplug.service; do sleep 0.5; done")
    assert host.run("systemctl --failed --no-legend --plain") == ""
    said = host.run("journalctl -b --no-pager -u 'obelisk-*' -p warning")
    assert said == "-- No entries --"


def test_a_spec_has_it_otherwise(host: Host) -> None:
    host.run("mkdir -p /run/shelf; mount -o ro /dev/vdb /run/shelf")
    assert host.json("upgrade /run/shelf/2")["changed"]
    host.restart()
    host.settled("host_2")
    assert [slot["entry"] for slot in host.json("status")["status"]["slots"]] == ["host_1.efi", "host_2.efi"]
    assert host.json("history")["history"][-1]["outcome"] == "blessed"
    # The kernel locks itself down where Secure Boot is on, whatever its command line says.
    assert "[integrity]" in host.run("cat /sys/kernel/security/lockdown")
    words = host.run("cat /proc/cmdline")
    assert "lockdown" not in words
    assert "sig_enforce" not in words
    assert not {"nosuid", "nodev"} & options(host, "/var")
    assert values(host, "kernel.dmesg_restrict", "kernel.yama.ptrace_scope", "kernel.kptr_restrict") == ["0", "0", "2"]
