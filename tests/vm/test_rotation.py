"""Another key signs images: a host learns of it, takes what it signs, gets its loader, and refuses what the old one signed.

PK and KEK are exchanged meanwhile, so that the last step is signed by a KEK that came with it.
"""

import subprocess
from collections.abc import Iterator

import pytest
from host import Host, Rack, Version, build_versions
from tool import Tool


@pytest.fixture(scope="module")
def rack(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Version 1 knows of nothing, 2 brings the new key, 3 and 4 are signed by it and revoke the old one, 4 brings another PK and KEK."""
    home = tmp_path_factory.mktemp("rotation")
    tool = workshop.copied_to(home)
    build_versions(tool, [Version("1")])
    assert "goes on signing" in tool.run("keys", "rotate", "secure-boot")
    build_versions(tool, [Version("2")])
    tool.run("keys", "rotate", "secure-boot", "--finish")
    tool.run("keys", "rotate", "secure-boot", "--revoke")
    assert "images revoke the key before it" in tool.run("keys", "show")
    build_versions(tool, [Version("3")])
    assert "PK and KEK" in tool.run("keys", "rotate", "platform")
    for name in ("PK.key", "KEK.key"):
        (home / "keys/platform-2" / name).unlink()
    build_versions(tool, [Version("4")])
    (home / "rack").mkdir()
    yield Rack(tool, home / "rack")
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def host(rack: Rack) -> Iterator[Host]:
    shelf = rack.shelf({version: rack.image(f"host@{version}") for version in "1234"})
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), shelf) as machine:
        machine.wait_for_boot()
        machine.settled("host_1")
        yield machine


def upgrade(host: Host, version: str) -> None:
    """Take a version from the shelf, and have it blessed."""
    host.run("mkdir -p /run/shelf; mountpoint -q /run/shelf || mount -o ro /dev/vdb /run/shelf")
    host.json(f"upgrade /run/shelf/{version}")
    host.restart()
    host.settled(f"host_{version}")


def certificates(host: Host, variable: str) -> list[str]:
    """What a variable of the firmware has, in hex."""
    program = f"from obelisk.system import efivars; print(*(each.hex() for each in efivars.certificates({variable!r})))"
    return host.run(f'PYTHONPATH=/usr/lib/obelisk/python python3 -S -c "{program}"').split()


def waits(host: Host) -> list[str]:
    """What firmware and loader are still to be given."""
    found: list[str] = host.json("status")["status"]["firmware_waits"]
    return found


def test_what_the_new_key_signs_is_refused_until_the_host_has_learnt_of_it(host: Host) -> None:
    host.run("mkdir -p /run/shelf; mount -o ro /dev/vdb /run/shelf")
    assert "does not trust" in host.run("obelisk host upgrade /run/shelf/3 2>&1", status=3)
    upgrade(host, "2")
    assert waits(host) == []
    upgrade(host, "3")


def test_the_old_key_is_revoked_when_nothing_that_it_signed_is_left(host: Host) -> None:
    assert waits(host) == ["dbx"]
    before = {name: certificates(host, name) for name in ("PK", "KEK")}
    assert "host_2 is signed by nothing else" in host.run("journalctl -b --no-pager -u obelisk-settle")
    upgrade(host, "4")
    assert waits(host) == []
    said = host.run("journalctl -b --no-pager -u obelisk-settle")
    assert "starts nothing any more that the old key signed" in said
    for name, known in before.items():
        assert f"the firmware has another {name}" in said
        assert len(certificates(host, name)) == 1
        assert certificates(host, name) != known


def test_the_firmware_starts_nothing_of_the_old_key_and_everything_else(host: Host) -> None:
    """An image of the old key, which sorts before all others: the loader is refused it, and goes on to the next."""
    host.run("mkdir -p /run/shelf /run/esp; mount -o ro /dev/vdb /run/shelf")
    host.run("mount /dev/vda1 /run/esp; cp /run/shelf/2/uki.efi /run/esp/EFI/Linux/host_9.efi; umount /run/esp")
    host.restart()
    host.settled("host_4")
    assert host.json("status")["status"]["secure_boot"]
    assert {finding["image"] for finding in host.json("verify", status=3)["findings"]} == {"host_9"}
