"""A machine in a person's terminal, and machines that must not start."""

import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool import ROOT, Tool

from obelisk.build import slots
from obelisk.build.image import disk_of
from obelisk.errors import CommandError
from obelisk.machine import Machine
from obelisk.model import uki
from obelisk.model.image import PartKind
from obelisk.store import Store
from obelisk.system import qemu
from obelisk.system.bubblewrap import Room, read_only, writable

BOOT_S = 300


@pytest.fixture(scope="module")
def tool(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    home = tmp_path_factory.mktemp("machine")
    copy = workshop.copied_to(home)
    copy.build()
    yield copy
    subprocess.run(["rm", "-rf", home], check=True)


class Terminal:
    """A program on a terminal of its own, which reads what is typed and keeps what it shows."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], argv, environment)  # noqa: S606 - in the child of the line above
        self.shown = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str, *, timeout_s: float) -> None:
        """Read until the terminal has shown `pattern`."""
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, f"not shown: {pattern}\n{self.shown[-3000:]}"
            if select.select([self.terminal], [], [], 1)[0]:
                self.shown += os.read(self.terminal, 65536).decode(errors="replace")

    def end(self, *, timeout_s: float) -> int:
        """Read on until the program ends, and return its exit status."""
        deadline = time.monotonic() + timeout_s
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, self.shown[-3000:]
            if select.select([self.terminal], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.terminal, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    time.sleep(0.1)
        self.pid = 0
        return os.waitstatus_to_exitcode(ended[1])

    def close(self) -> None:
        """End the program if it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


def test_run_gives_a_shell_in_the_terminal_and_forwards_ports(tool: Tool) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    more = ["--port", f"{port}:80", "--credential", "shop.token=open, sesame"]
    terminal = Terminal([str(ROOT / "obelisk"), "run", str(tool.spec), *more], tool.environment)
    try:
        terminal.wait_for(r"root@\S+#", timeout_s=BOOT_S)
        terminal.wait_for("healthy", timeout_s=BOOT_S)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert b"Hello from an image" in answer.read()
        terminal.type("echo root is $(findmnt -no FSTYPE /)\n")
        terminal.wait_for("root is erofs", timeout_s=30)
        terminal.type("echo token $(systemd-creds --system cat shop.token)\n")
        terminal.wait_for("token open, sesame", timeout_s=30)
        terminal.type("systemctl poweroff\n")
        assert terminal.end(timeout_s=120) == 0
    finally:
        terminal.close()


def test_run_asks_a_machine_one_command_and_serves_it_a_directory(tool: Tool, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "said").write_text("hello")
    fetch = f"import urllib.request as u; print(u.urlopen('{qemu.SITE}said').read().decode())"
    said = tool.run(
        "run", str(tool.spec), "--site", str(site), "--command", f'python3 -c "{fetch}"; findmnt -no FSTYPE /; exit 3', status=3
    )
    assert said.splitlines()[:2] == ["hello", "erofs"]


@pytest.mark.parametrize(
    ("room_bytes", "damaged", "reason"),
    [(0, 0, "has no room for all slots and the state volume"), (8 << 30, 4096, "the root file system cannot be")],
    ids=["small disk", "damaged root"],
)
def test_a_machine_that_cannot_start_says_why_and_restarts(tool: Tool, tmp_path: Path, room_bytes: int, damaged: int, reason: str) -> None:
    with Store.open(tool.store) as store:
        image = store.image(str(tool.spec.resolve() / "obelisk.toml"))
        (ukify,) = (tool.store / "steps").glob("*/output/tree/usr/bin/ukify")
        room = Room(ukify.parents[2])
        raw = disk_of(image, store, room, tmp_path)
    binds = (writable(tmp_path), read_only(raw.parent, "/image"))
    disk = tmp_path / "disk.qcow2"
    qemu.overlay(room, Path("/image") / raw.name, disk, raw.stat().st_size + room_bytes, binds=binds)
    if damaged:
        qemu.overwrite(room, disk, slots.MIB + slots.ESP_BYTES, damaged, binds=binds)
    sections = uki.sections(image.part_path(PartKind.UKI).read_bytes())
    for name in ("linux", "initrd"):
        (tmp_path / name).write_bytes(sections[name])
    kernel = qemu.Kernel(tmp_path / "linux", tmp_path / "initrd", sections["cmdline"].rstrip(b"\0").decode())
    settings = qemu.Settings(disk, tmp_path, kernel=kernel, console=tmp_path / "console.log")
    with Machine(room, settings, binds=binds) as machine:
        with pytest.raises(CommandError) as stopped:
            machine.wait_for("healthy", timeout_s=BOOT_S)
        said = "".join(str(stopped.value).splitlines())
        assert "obelisk: STOPPED" in said
        assert reason in said
        deadline = time.monotonic() + BOOT_S
        while machine.text().count("obelisk: STOPPED") < 2:
            assert time.monotonic() < deadline, machine.text()[-2000:]
            time.sleep(0.5)
