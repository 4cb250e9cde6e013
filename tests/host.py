"""A host in a VM, as firmware starts it, and an agent in its image that runs commands for the tests.

The agent is a part of the test's own spec (`AGENT`): no image that is not made for a test has one.
"""

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tool import Tool

from obelisk import spec as specs
from obelisk.build import locking, slots
from obelisk.build.image import disk_of
from obelisk.errors import ObeliskError
from obelisk.machine import Machine
from obelisk.store import Store, StoredImage
from obelisk.system import qemu
from obelisk.system.bubblewrap import Bind, Room, read_only, writable

BOOT_S = 400
PORT = "obelisk.test"

AGENT = {
    "usr/lib/systemd/system/test-agent.service": """\
[Unit]
Description=Runs commands for tests
DefaultDependencies=no
After=systemd-udevd.service
[Service]
ExecStart=/bin/bash /usr/lib/test-agent
""",
    "usr/lib/systemd/system/basic.target.wants/test-agent.service": "-> ../test-agent.service",
    "usr/lib/test-agent": """\
port=/dev/virtio-ports/obelisk.test
until [ -e "$port" ]; do sleep 0.1; done
exec 3<>"$port"
echo "boot $(cat /proc/sys/kernel/random/boot_id)" >&3
while read -r number command <&3; do
    output=$(timeout --kill-after=5 300 bash -c "$(base64 -d <<<"$command")" 2>&1 </dev/null)
    echo "$number $? $(base64 -w0 <<<"$output")" >&3
done
""",
}

# What no test waits for, and what a machine without a network or anybody at its console does not miss: an emulated boot costs a third less.
# Examples are tried with all of it.
WANTED = "/run/wanted"
_LATER = f"[Unit]\nConditionPathExists={WANTED}\n"
_UNITS = "etc/systemd/system"
_QUIET = {
    f"{_UNITS}/obelisk-coldplug.service.d/later.conf": _LATER,
    # Masked: whoever asks for one of these by D-Bus hears at once that there is none.
    **{f"{_UNITS}/{name}.service": "-> /dev/null" for name in ("systemd-timesyncd", "systemd-logind", "getty@tty1", "serial-getty@ttyS0")},
}
_OFFLINE = {f"{_UNITS}/systemd-{unit}.d/later.conf": _LATER for unit in ("networkd.service", "networkd.socket", "resolved.service")}


SPEC = """\
name = "host"
version = "{version}"
tree = "tree"
size_budget = "512M"

[boot]
kernel = "linux-image-cloud-amd64"

[upgrade]
soak = "2s"
deadline = "{deadline}"
tries = 1
slots = {slots}

[[scripts]]
run = "slim.sh"

[health.started]
unit = "multi-user.target"
"""

# What no boot of a virtual machine needs: the fewer bytes, the sooner they are written in an emulated one.
_SLIM = """\
#!/bin/sh
set -eu
cd /usr/lib/modules/*/kernel
rm -rf arch/x86/kvm drivers/net/ethernet/[!i]* drivers/infiniband drivers/gpu sound net/[!9cp]* net/c[!o]* fs/[!befnov]*
rm -rf /usr/share/zoneinfo/[A-TV-Z]* /usr/lib/udev/hwdb.bin
"""

# Waits where it costs nothing: in the guest, without a process for each look.
_SETTLED = (
    ". /usr/lib/os-release; exec 9<> <(:); n=0;"
    " until [ -e /run/obelisk/settled ] || ((n++ > 60)); do read -rt 0.25 -u 9; done; [ -e /run/obelisk/settled ]"
)


@dataclass(frozen=True)
class Version:
    """What tells a version of the tests' product from the others.

    More lines of its spec, more files, how long a trial may take, the keys that sign it, how many slots its host gets, programs beside its
    spec, and whether it has a network.
    """

    number: str
    spec: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    deadline: str = "5min"
    keys: str = "keys"
    slots: int = 2
    programs: Mapping[str, str] = field(default_factory=dict)
    network: bool = False


def build_versions(tool: Tool, versions: Sequence[Version]) -> None:
    """Build the tests' product in these versions, in the place of the tool's spec."""
    spec = tool.spec
    for version in versions:
        shutil.rmtree(spec / "tree")
        services = AGENT | _QUIET | ({} if version.network else _OFFLINE)
        lay(spec / "tree", services | dict(version.files) | {"usr/share/marker": f"version {version.number}\n" * 1000})
        programs = {"slim.sh": _SLIM} | dict(version.programs)
        lay(spec, programs)
        for name in programs:
            (spec / name).chmod(0o755)
        text = SPEC.format(version=version.number, deadline=version.deadline, slots=version.slots)
        (spec / "obelisk.toml").write_text(text + version.spec)
        if not _is_locked(spec):
            tool.run("lock", str(spec))
        replace(tool, keys=tool.home / version.keys).build()
    # What images were made of takes more room than they do. Trees stay, for versions to come.
    for step in (tool.store / "steps").iterdir():
        if not step.is_symlink() and not (step / "output/tree").exists():
            subprocess.run(["rm", "-rf", step], check=True)


def _is_locked(spec: Path) -> bool:
    """Whether the lock of the version before has all that this one asks for: resolving again takes as long as building does."""
    try:
        locking.require_lock(specs.load(spec))
    except ObeliskError:
        return False
    return True


def lay(tree: Path, files: Mapping[str, str]) -> None:
    """Write files (or links, `-> target`) below `tree`."""
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_text(content)


@dataclass(frozen=True)
class Answer:
    """What a command in the guest said, and its exit status."""

    status: int
    output: str


class RestartedError(AssertionError):
    """The guest started anew while a command ran in it."""


class Host:
    """A running host. Commands run in the guest as root."""

    def __init__(self, machine: Machine, agent: Path) -> None:
        self.machine = machine
        self._agent = agent
        self._socket: socket.socket | None = None
        self._keyboard: socket.socket | None = None
        self._buffer = b""
        self._number = 0
        self.boots: list[str] = []

    def __enter__(self) -> Self:
        self.machine.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for connection in (self._socket, self._keyboard):
            if connection is not None:
                connection.close()
        self.machine.__exit__(kind, error, trace)

    def wait_for_boot(self, *, timeout_s: float = BOOT_S) -> str:
        """Wait until the agent of a boot that was not seen yet reports; its boot id."""
        deadline = time.monotonic() + timeout_s
        while True:
            line = self._line(deadline)
            if line.startswith("boot "):
                self.boots.append(line.split()[1])
                return self.boots[-1]

    def run(self, command: str, *, timeout_s: float = 300, status: int | None = 0) -> str:
        """Run a shell command and return its output; any other exit status (unless None) is a failure."""
        answer = self.try_run(command, timeout_s=timeout_s)
        assert status is None or answer.status == status, f"{command}: status {answer.status}\n{answer.output}"
        return answer.output

    def try_run(self, command: str, *, timeout_s: float = 300) -> Answer:
        """Run a shell command.

        Raises:
            RestartedError: the guest was restarted before it answered.
        """
        self._number += 1
        self._send(f"{self._number} {base64.b64encode(command.encode()).decode()}\n")
        deadline = time.monotonic() + timeout_s
        while True:
            words = self._line(deadline).split(" ")
            if words[0] == "boot":
                self.boots.append(words[1])
                raise RestartedError(command)
            if words[0] == str(self._number):
                return Answer(int(words[1]), base64.b64decode(words[2]).decode(errors="replace").rstrip("\n"))

    def json(self, command: str, *, status: int = 0) -> dict[str, Any]:
        """The result of an obelisk command in the guest."""
        lines = self.run(f"obelisk host {command} --json", status=status).splitlines()
        result: dict[str, Any] = json.loads(lines[-1])
        return result

    def begin(self, command: str) -> None:
        """Start a command whose answer nobody waits for."""
        self._number += 1
        self._send(f"{self._number} {base64.b64encode(command.encode()).decode()}\n")

    def settled(self, label: str, *, timeout_s: float = BOOT_S) -> None:
        """Wait, through any number of restarts, until the image of that label runs and has settled."""
        deadline = time.monotonic() + timeout_s
        version = label.rpartition("_")[2]
        seen = ""
        while time.monotonic() < deadline:
            try:
                answer = self.try_run(f"{_SETTLED} && echo $IMAGE_VERSION", timeout_s=timeout_s)
            except RestartedError:
                continue
            seen = answer.output
            if answer.status == 0 and seen == version:
                return
            time.sleep(0.5)
        message = f"{label} did not settle; last seen: {seen}\n{self.machine.text()[-3000:]}"
        raise AssertionError(message)

    def settle_any(self, *, timeout_s: float = BOOT_S) -> str:
        """Wait, through any number of restarts, until some image has settled; its version."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                answer = self.try_run(f"{_SETTLED} && echo $IMAGE_VERSION", timeout_s=timeout_s)
            except RestartedError:
                continue
            if answer.status == 0:
                return answer.output
        message = f"nothing settled\n{self.machine.text()[-3000:]}"
        raise AssertionError(message)

    def type(self, line: str) -> None:
        """Type a line at the console. The machine has to have a TPM: others have no keyboard."""
        if self._keyboard is None:
            self._keyboard = socket.socket(socket.AF_UNIX)
            self._keyboard.connect(str(self.machine.settings.typed))
            # What the console shows comes here too, and a machine that nobody reads from waits.
            threading.Thread(target=_read_on, args=(self._keyboard,), daemon=True).start()
        self._keyboard.sendall(f"{line}\n".encode())

    def restart(self) -> None:
        """Restart in good order, and wait for the next boot."""
        known = len(self.boots)
        self.begin("systemctl reboot")
        while len(self.boots) == known:
            self.wait_for_boot()

    def _send(self, text: str) -> None:
        self._connected().sendall(text.encode())

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._buffer:
            connection = self._connected()
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                data = connection.recv(65536)
            except TimeoutError as error:
                raise AssertionError(f"no word from the guest's agent\n{self.machine.text()[-4000:]}") from error
            if not data:
                raise AssertionError(f"the machine is gone\n{self.machine.text()[-4000:]}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            deadline = time.monotonic() + 60
            while True:
                attempt = socket.socket(socket.AF_UNIX)
                try:
                    attempt.connect(str(self._agent))
                except OSError:
                    attempt.close()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                else:
                    self._socket = attempt
                    break
        return self._socket


def _read_on(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(65536):
            pass


class Rack:
    """Images of one product in a store, and what hosts are made of: disks, firmware variables, a disk with the images to upgrade to."""

    def __init__(self, tool: Tool, place: Path) -> None:
        self.tool = tool
        self.place = place
        self._bases: list[Path] = []
        (ukify,) = (tool.store / "steps").glob("*/output/tree/usr/bin/ukify")
        self.room = Room(ukify.parents[2])

    def image(self, name: str) -> StoredImage:
        """The image that the store knows by that name."""
        with Store.open(self.tool.store) as store:
            return store.image(name)

    def shelf(self, images: Mapping[str, StoredImage | Path], name: str = "shelf.erofs") -> Path:
        """A read-only disk with the directories of images by the names given."""
        top = self.place / f"{name}.d"
        for label, image in images.items():
            source = image.directory if isinstance(image, StoredImage) else image
            subprocess.run(["cp", "-aL", "--reflink=auto", source, top / label], check=True) if top.exists() else shutil.copytree(
                source, top / label
            )
        target = self.place / name
        binds = [read_only(top, "/shelf"), writable(self.place, "/out")]
        self.room.run(["mkfs.erofs", "--quiet", "-Enoinline_data", f"/out/{name}", "/shelf"], binds=binds)
        shutil.rmtree(top)
        return target

    def disk(self, image: StoredImage, name: str = "disk.qcow2") -> Path:
        """A fresh disk with that image."""
        with Store.open(self.tool.store) as store:
            work = self.place / f"{name}.work"
            work.mkdir()
            raw = disk_of(image, store, self.room, work)
        target = self.place / name
        size = slots.host_disk_bytes(slots.layout_of(image.manifest))
        qemu.overlay(self.room, raw, target, size, binds=[read_only(raw.parent), writable(self.place)])
        self._bases.append(raw.parent)
        return target

    def blank(self, name: str, size: int) -> Path:
        """An empty disk of `size` bytes."""
        target = self.place / name
        self.room.run(["qemu-img", "create", "-q", "-f", "qcow2", f"/out/{name}", str(size)], binds=[writable(self.place, "/out")])
        return target

    def enlarge(self, disk: Path, size: int) -> None:
        """Make a disk that no machine uses `size` bytes larger."""
        binds = [writable(self.place), *(read_only(base) for base in self._bases)]
        self.room.run(["qemu-img", "resize", "-q", "-f", "qcow2", disk, f"+{size}"], binds=binds)

    def as_raw(self, disk: Path, target: Path) -> None:
        """Write all of a disk to a raw file."""
        binds = [writable(self.place), *(read_only(base) for base in self._bases)]
        self.room.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, target], binds=binds)

    def over(self, raw: Path, name: str) -> Path:
        """A disk that has what the raw file has, and leaves that as it is."""
        target = self.place / name
        qemu.overlay(self.room, raw, target, raw.stat().st_size, binds=[read_only(raw.parent), writable(self.place)])
        return target

    def variables(self, name: str = "vars.fd") -> Path:
        """Firmware variables of a machine as it comes from the factory."""
        target = self.place / name
        self.room.run(["cp", qemu.VARIABLES, f"/out/{name}"], binds=[writable(self.place, "/out")])
        return target

    @contextmanager
    def host(
        self,
        disk: Path,
        variables: Path,
        shelf: Path | None = None,
        *,
        name: str = "host",
        write_log: Path | None = None,
        **more: Any,  # noqa: ANN401 - whatever Settings has
    ) -> Iterator[Host]:
        """The host that starts from that disk; what it writes is logged to `write_log`. `more` of its settings: see `qemu.Settings`."""
        run = self.place / name
        run.mkdir(exist_ok=True)
        if write_log is not None:
            write_log.touch()
        for stale in ("agent", "monitor", "typed"):
            (run / stale).unlink(missing_ok=True)
        settings = qemu.Settings(
            disk,
            run,
            cpus=qemu.fair_cpus(qemu.acceleration()),
            variables=variables,
            console=run / "console.log",
            typed=run / "typed" if "tpm" in more else None,
            sockets={PORT: run / "agent"},
            attached=(shelf,) if shelf else (),
            write_log=write_log,
            **more,
        )
        binds: list[Bind] = [writable(self.place), *(read_only(base) for base in self._bases)]
        with Host(Machine(self.room, settings, binds=tuple(binds)), run / "agent") as host:
            yield host
