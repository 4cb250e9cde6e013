"""What images do as instances: their state is on a disk of its own, and a copy becomes somebody else. The scripts' own lines, elsewhere."""

import os
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import pytest

from obelisk.cli import hosting
from obelisk.errors import StateError
from obelisk.host.here import Here

LIBRARY = Path(__file__).parents[2] / "src/obelisk/build/guest/root/usr/lib/obelisk"
UUID = "11111111-2222-3333-4444-555555555555"
ID = UUID.replace("-", "")


def _part(script: str, first: str, last: str) -> str:
    """The lines of a script from one that begins so to the next one that is the last."""
    text = (LIBRARY / script).read_text()
    at = text.index(f"\n{first}") + 1
    return text[at : text.index(f"\n{last}\n", at) + len(last) + 2]


@pytest.mark.parametrize(("serials", "found"), [({"vda": None}, ""), ({"vda": "other", "vdb": "obelisk-state"}, "vdb"), ({}, "")])
def test_the_disk_that_the_engine_names_is_the_state(tmp_path: Path, serials: dict[str, str | None], found: str) -> None:
    for name, serial in serials.items():
        (tmp_path / name).mkdir()
        if serial is not None:
            (tmp_path / name / "serial").write_text(serial)  # without a line's end, as virtio has it
    part = _part("start", "own=", "done").replace("/sys/class/block", str(tmp_path))
    said = subprocess.run(["sh", "-euc", f'{part}\nprintf %s "$own"'], check=True, capture_output=True, text=True).stdout
    assert said == found


@pytest.mark.parametrize(("held", "keys"), [("", False), (ID, True), ("f" * 32, False)], ids=["new", "its own", "another's"])
def test_state_of_another_instance_gets_this_ones_id_and_loses_keys(tmp_path: Path, held: str, *, keys: bool) -> None:
    home = tmp_path / "var/lib/obelisk"
    (home / "ssh").mkdir(parents=True)
    (home / "ssh/key").touch()
    if held:
        (home / "machine-id").write_text(f"{held}\n")
    (tmp_path / "uuid").write_text(f"{UUID}\n")
    part = _part("start", 'if [ -n "$own" ]; then\n    # Its engine', "fi").replace("/sys/class/dmi/id/product_uuid", f"{tmp_path}/uuid")
    script = f"set -eu\nown=vdb STATE=$1 id=$1/var/lib/obelisk/machine-id\nsync() {{ :; }}\n{part}"
    subprocess.run(["sh", "-c", script, "start", tmp_path], check=True)
    assert (home / "machine-id").read_text() == f"{ID}\n"
    assert (home / "ssh/key").exists() is keys


@pytest.mark.parametrize("own", [True, False], ids=["the same machine", "a copy"])
def test_who_is_told_another_id_becomes_that_and_answers(tmp_path: Path, *, own: bool) -> None:
    for name in ("ports/vport1p2", "home/ssh", "home/tls", "net/eth0/device", "links", "run", "dev", "leases"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ports/vport1p2/name").write_text("obelisk.identity\n")
    (tmp_path / "home/machine-id").write_text(f"{ID if own else 'f' * 32}\n")
    (tmp_path / "net/eth0/ifindex").write_text("2\n")
    (tmp_path / "links/2").write_text("NETWORK_FILE=/usr/lib/systemd/network/89-obelisk-dhcp.network\n")
    (tmp_path / "leases/2").write_text("# by its network\nADDRESS=10.0.2.15\nCLIENTID=01\n")
    text = (LIBRARY / "renew").read_text()
    for path, place in (
        ("/sys/class/virtio-ports", "ports"),
        ("home=/var/lib/obelisk", "home=$1/home"),
        ("/etc/machine-id", "home/machine-id"),
        ("/proc/sys/kernel/hostname", "hostname"),
        ("/dev/urandom", "random"),
        ('"/dev/${port', '"$1/dev/${port'),
        ("/sys/class/net", "net"),
        ("/run/systemd/netif/links", "links"),
        ("leases=/run/systemd/netif/leases", "leases=$1/leases"),
        ("/run/systemd/network", "run"),
        ("/run/obelisk/health.json", "none"),
        ('"renewed${address:+ $address}" >&3', '"renewed${address:+ $address}" >"$1/answer"'),
    ):
        assert path in text
        text = text.replace(path, place if "$1" in place else f"$1/{place}")
    # In a function, $1 is its own.
    text = text.replace("$1/run", f"{tmp_path}/run").replace("$1/links", f"{tmp_path}/links").replace("$1/net", f"{tmp_path}/net")
    text = text.replace(">$1/hostname", f">{tmp_path}/hostname").replace("/usr/lib/obelisk/identity\n", "echo made >>$home/made\n")
    # For a while the old one is still there.
    again = f"sleep 0.5; printf 'ADDRESS=10.0.2.16\\nCLIENTID=02\\n' >{tmp_path}/leases/2"
    leases_anew = f'systemctl() {{ [ "$1" != try-restart ] || {{ {again}; }} & }}'
    stubs = f'date() {{ echo "$*" >>{tmp_path}/clock; }}\n{leases_anew}\nsync() {{ :; }}\n'
    os.mkfifo(tmp_path / "dev/vport1p2")
    process = subprocess.Popen(["sh", "-c", f"{stubs}{text}", "renew", tmp_path])
    try:
        with (tmp_path / "dev/vport1p2").open("w") as port:
            port.write(f"web-1 {ID} 52:54:00:01:02:03 1767323045 {'ab' * 32}\n")
        deadline = time.monotonic() + 10
        while not (tmp_path / "answer").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "answer").read_text() == f"renewed 10.0.2.{15 if own else 16}\n"
    assert (tmp_path / "clock").read_text() == "--set=@1767323045\n"
    assert (tmp_path / "random").read_text() == f"{'ab' * 32}\n"
    assert (tmp_path / "home/machine-id").read_text() == f"{ID}\n"
    assert (tmp_path / "home/ssh").exists() is own
    assert (tmp_path / "home/made").exists() is not own
    if not own:
        assert (tmp_path / "hostname").read_text() == "web-1\n"
        assert (tmp_path / "run/89-obelisk-dhcp.network.d/obelisk.conf").read_text() == "[Link]\nMACAddress=52:54:00:01:02:03\n"


@pytest.mark.parametrize(("action", "refused"), [("upgrade", True), ("status", True), ("snapshot", False)])
def test_an_instance_is_not_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, *, refused: bool) -> None:
    found = Here("web", "1", "11" * 32, Path("/dev/vda"), tmp_path, "boot", tmp_path)
    assert found.own_state() is None
    (tmp_path / "own").write_text("vdb\n")
    assert found.state_device() == Path("/dev/vdb")
    monkeypatch.setattr(hosting, "here", lambda: found)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(hosting, "_snapshot", lambda _here, _arguments: 0)
    words = Namespace(action=action, json=False)
    if not refused:
        assert hosting.host(words) == 0
        return
    with pytest.raises(StateError) as caught:
        hosting.host(words)
    assert caught.value.code == "host-instance"
