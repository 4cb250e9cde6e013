"""What differs from machine to machine comes to an image as systemd's credentials: from whoever made the VM, and from the ESP."""

import subprocess
from collections.abc import Iterator

import pytest
from host import Host, Rack, Version, build_versions
from tool import Tool

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f admin"
# Of a card that the guest makes: the tests' kernel has no drivers of others.
_NETWORK = "[Match]\nName=dummy0\n[Network]\nAddress=192.0.2.7/24\n"
_GIVEN = {"system.hostname": "till-7", "ssh.authorized_keys.root": f"{_KEY}\n", "network.network.10-till": _NETWORK, "lines": "a=b\nc, d\n"}
_CODE = {
    "systemd.extra-unit.evil.service": "[Service]\nExecStart=touch /run/evil\n",
    "tmpfiles.extra": "f /run/evil\n",
    "udev.rules.evil": 'RUN+="/bin/touch /run/evil"\n',
    "fstab.extra": "tmpfs /mnt tmpfs\n",
    "login.noauth": "yes",
}

_ENROL = """\
[Unit]
Description=Takes what this machine enrols with
ConditionCredential=shop.token
[Service]
Type=oneshot
RemainAfterExit=yes
ImportCredential=shop.token
ExecStart=/bin/sh -c 'cat "$CREDENTIALS_DIRECTORY/shop.token" >/run/enrolled'
"""
_FILES = {
    "usr/lib/systemd/system/enrol.service": _ENROL,
    "usr/lib/systemd/system/multi-user.target.wants/enrol.service": "-> ../enrol.service",
}
_ESP = "/run/esp/loader/credentials"


@pytest.fixture(scope="module")
def host(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    home = tmp_path_factory.mktemp("credentials")
    tool = workshop.copied_to(home)
    build_versions(tool, [Version("1", network=True, files=_FILES)])
    (home / "rack").mkdir()
    rack = Rack(tool, home / "rack")
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), credentials=_GIVEN | _CODE) as machine:
        machine.wait_for_boot()
        machine.settled("host_1")
        yield machine
    subprocess.run(["rm", "-rf", home], check=True)


def test_a_vm_gets_its_name_key_and_address(host: Host) -> None:
    assert host.run("uname -n") == "till-7"
    assert host.run("cat /root/.ssh/authorized_keys; stat -c %a /root/.ssh/authorized_keys") == f"{_KEY}\n600"
    host.run("ip link add dummy0 type dummy; until ip -brief address | grep 192.0.2.7/24; do sleep 0.5; done", timeout_s=60)


def test_credentials_are_data_and_never_code(host: Host) -> None:
    assert host.run("ls /run/credentials/@system").split() == sorted(_GIVEN)
    assert host.run("cat /run/credentials/@system/lines") == "a=b\nc, d"
    said = host.run("journalctl -k -b --no-pager | grep -o 'the credential .* is left out: what runs'")
    assert {line.split()[2] for line in said.splitlines()} == set(_CODE)
    host.run("[ ! -e /run/evil ] && ! findmnt /mnt")
    assert host.run("stat -c %a /run/credentials/@system; findmnt -no FSTYPE /run/credentials/@system") == "700\nramfs"


def test_the_esp_brings_what_this_machine_can_open_and_nothing_else(host: Host) -> None:
    host.run(f"mkdir -p /run/esp; mount /dev/vda1 /run/esp; mkdir -p {_ESP}")
    host.run(f"printf open-sesame | systemd-creds encrypt --with-key=host --name=shop.token - {_ESP}/shop.token.cred")
    # One that belongs under another name, and one that is no credential.
    host.run(f"cd {_ESP}; cp shop.token.cred other.token.cred; echo plain >login.motd.cred; cd /; umount /run/esp")
    host.restart()
    host.settled("host_1")
    assert host.run("cat /run/enrolled") == "open-sesame"
    assert host.run("ls /run/credentials/@system").split() == sorted([*_GIVEN, "shop.token"])
    assert host.run("uname -n") == "till-7"
    said = host.run("journalctl -k -b --no-pager | grep 'cannot open it'")
    assert len(said.splitlines()) == 2
    assert host.run("ls /run/obelisk/credentials 2>&1", status=2)
    assert host.json("verify")["findings"] == []
