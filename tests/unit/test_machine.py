"""Machines: how QEMU is started, how UKIs are read, how initrds grow."""

import signal
import struct
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from obelisk.errors import CommandError, InputError
from obelisk.machine import LATE_TIMER, Machine, initrd_with
from obelisk.model import uki
from obelisk.system import qemu
from obelisk.system.bubblewrap import Room

SETTINGS = qemu.Settings(Path("/d/disk.qcow2"), Path("/d"), console=Path("/d/console"))


def test_software_emulation_gets_the_settings_it_needs() -> None:
    words = " ".join(qemu.argv(SETTINGS, "tcg"))
    assert "-accel tcg,thread=multi" in words
    assert "max,la57=off" in words
    assert "hpet=off" in words


def test_a_guest_is_isolated_unless_asked_otherwise_and_forwards_only_from_loopback() -> None:
    assert "restrict=on" in " ".join(qemu.argv(SETTINGS, "tcg"))
    forwarding = qemu.Settings(Path("/d/disk"), Path("/d"), forwards=(qemu.Forward(8080, 80),))
    assert "hostfwd=tcp:127.0.0.1:8080-:80" in " ".join(qemu.argv(forwarding, "kvm"))


def test_a_disk_is_raw_and_a_restart_the_end_where_that_is_wanted() -> None:
    words = " ".join(qemu.argv(SETTINGS, "tcg"))
    assert "format=qcow2" in words
    assert "-no-reboot" not in words
    words = " ".join(qemu.argv(replace(SETTINGS, raw=True, restarts=False), "tcg"))
    assert "format=raw" in words
    assert "-no-reboot" in words


def test_strays_are_the_processes_that_work_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    strays = [subprocess.Popen(["sleep", "60"], cwd=place) for place in (tmp_path, tmp_path / "other")]
    waiting = threading.Thread(target=strays[0].wait)
    waiting.start()
    qemu.end_strays(tmp_path)
    waiting.join(10)
    assert strays[0].returncode == -signal.SIGKILL
    assert strays[1].poll() is None
    strays[1].kill()
    strays[1].wait()


def test_secure_boot_needs_system_management_mode() -> None:
    words = " ".join(qemu.argv(qemu.Settings(Path("/d/disk"), Path("/d"), variables=Path("/d/vars")), "tcg"))
    assert "smm=on" in words
    assert "secboot" in words


def test_a_tpm_is_a_process_of_the_machines_own_room() -> None:
    started = qemu.command_line(replace(SETTINGS, tpm=Path("/d/tpm")), "tcg")
    assert "tpm-crb,tpmdev=tpm" in started
    assert started[:2] == ["sh", "-euc"]
    assert "swtpm socket --tpm2" in started[2]
    assert started[4:7] == ["/d/tpm", "file=-", "qemu-system-x86_64"]
    assert "file=/d/log,level=20,truncate" in qemu.command_line(replace(SETTINGS, tpm=Path("/d/tpm"), tpm_log=Path("/d/log")), "tcg")
    assert qemu.command_line(SETTINGS, "tcg") == qemu.argv(SETTINGS, "tcg")


def test_a_console_is_typed_at_where_that_is_wanted() -> None:
    typed = " ".join(qemu.argv(replace(SETTINGS, typed=Path("/d/typed")), "tcg"))
    assert "socket,path=/d/typed,server=on,wait=off,logfile=/d/console,id=console" in typed
    assert "file,path=/d/console,id=console" in " ".join(qemu.argv(SETTINGS, "tcg"))


@pytest.mark.parametrize("text", ["80", "a:b", "0:80", "8080:70000", "8080:80:1", ""])
def test_a_wrong_port_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="pair of ports"):
        qemu.forward(text)


def test_a_right_port_is_read() -> None:
    assert qemu.forward("8080:80") == qemu.Forward(8080, 80)


@pytest.mark.parametrize("text", ["", "name", "=value", "../x=y", "..=y", "a/b=c", "a\nb=c"])
def test_a_wrong_credential_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a credential"):
        qemu.credential(text)


def test_a_credential_goes_to_the_machine_whatever_characters_it_has() -> None:
    given = dict([qemu.credential("network.hosts=192.0.2.1 a=b,c\n")])
    assert given == {"network.hosts": "192.0.2.1 a=b,c\n"}
    words = qemu.argv(qemu.Settings(Path("/d/disk"), Path("/d"), credentials=given), "tcg")
    assert "type=11,value=io.systemd.credential.binary:network.hosts=MTkyLjAuMi4xIGE9YixjCg==" in words


def test_sections_of_a_uki_come_out_without_their_padding(tmp_path: Path) -> None:
    contents = {".linux": b"kernel", ".cmdline": b"quiet", ".initrd": b"x" * 1000}
    header = bytearray(1024)
    struct.pack_into("<I", header, 0x3C, 64)
    header[64:68] = b"PE\0\0"
    struct.pack_into("<HH", header, 68, 0x8664, len(contents))
    struct.pack_into("<H", header, 84, 112)
    body = b""
    for index, (name, content) in enumerate(contents.items()):
        struct.pack_into("<8sIIII", header, 88 + 112 + 40 * index, name.encode(), len(content), 0, 1024, 1024 + len(body))
        body += content.ljust(1024, b"\0")
    file = tmp_path / "uki.efi"
    file.write_bytes(bytes(header) + body)
    assert uki.sections(file.read_bytes()) == {"linux": b"kernel", "cmdline": b"quiet", "initrd": b"x" * 1000}


def test_a_second_archive_starts_at_a_multiple_of_four_and_is_whole() -> None:
    grown = initrd_with(b"first", {"usr/a": b"content", "usr/b": "a"})
    second = grown[8:]
    assert grown[:8] == b"first\0\0\0"
    assert second.startswith(b"070701")
    assert b"usr/a\0" in second
    assert b"TRAILER!!!\0" in second
    assert len(grown) % 4 == 0


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug", LATE_TIMER),
        ("rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies! g-1135 f0x0", LATE_TIMER),
        ("Kernel panic - not syncing: VFS: Unable to mount root fs", "machine-failed"),
        ("obelisk: STOPPED: the disk has no room", "machine-failed"),
    ],
)
def test_a_machine_that_panics_is_not_waited_for_any_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: str) -> None:
    settings = qemu.Settings(tmp_path / "disk", tmp_path, console=tmp_path / "console")

    def start(*_: object, **__: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sh", "-c", 'printf "%s\\n" "$1" >"$2"; exec sleep 60', "sh", said, tmp_path / "console"])

    monkeypatch.setattr(qemu, "start", start)
    with Machine(Room(tmp_path), settings, binds=(), accel="tcg") as machine:
        with pytest.raises(CommandError, match="the machine said") as waiting:
            machine.wait_until_off(timeout_s=30)
        with pytest.raises(CommandError) as asking:
            machine.wait_for("healthy", timeout_s=30)
    assert waiting.value.code == asking.value.code == code
