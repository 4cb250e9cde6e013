"""qemu-system-x86_64(1) as a process of its own: a machine that goes on when the command that started it has ended.

Everything of a machine lies in one directory, which is all that it sees of this machine besides the tools; its paths are relative to it.

    running           locked by the machine's process for as long as there is one: nothing else tells that it runs
    monitor, look     its monitor, for whoever works on it, and for whoever only looks
    console           a socket: what is typed there; console.log has all that was shown, console.old that of the boot before
    agent             a socket: the guest's agent
    identity.in,.out  FIFOs: the guest's port `IDENTITY_PORT`
    qemu.log          what the program itself says
"""

import fcntl
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import CommandError, StateError
from obelisk.model.instance import AGENT_PORT, IDENTITY_PORT, STATE_SERIAL, Instance, Port
from obelisk.system import qemu
from obelisk.system.bubblewrap import Bind, Room, read_only, writable
from obelisk.system.command import MINIMAL_ENVIRONMENT
from obelisk.system.monitor import Monitor

STATE = "state"
"""The id of the disk with the state."""
LAYER = "layer"
"""The node of its layer that was the last when it started; those that came since have this, a hyphen and their own names."""
NETWORK = "net"
IDENTITY = "identity"
AGENT = "agent"
INSIDE = Path("/instance")
LOADED = "/memory"
"""What a machine sees of the file that it is to load."""
_RAM = Path("/ram")
_RUNNING = "running"
_UP_S = 30.0
_END_S = 20.0
_POLL_S = 0.02
_AGENT_S = 5.0
_SHOWN = re.compile(r"obelisk: \S+ (healthy|UNHEALTHY)\b")
_TAKEN = re.compile(r"Could not set up host forwarding rule '([^']*)'")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory that lies in a file. `shared`: what the machine writes goes there; else the file is only read, and that stays its own."""

    file: Path
    shared: bool


@dataclass(frozen=True, slots=True)
class Setup:
    """One start. Paths of `layer`, `linux`, `initrd`, `root` are relative to the directory; `root` None: the machine has no root disk.

    `load`: a file that it is to load memory and devices from; it waits for the word, stands still then, and no ports lead to it yet.
    """

    instance: Instance
    linux: str
    initrd: str
    command_line: str
    root: str | None
    layer: str
    load: Path | None = None
    memory: Memory | None = None


def forward_words(port: Port, inside: str = "") -> str:
    """A forward in the words of QEMU: to an address of its network, or to the first that it gives."""
    return f"tcp:{port.address}:{port.host}-{inside}:{port.guest}"


def argv(setup: Setup) -> list[str]:
    """The argument list of the machine."""
    instance, wish = setup.instance, setup.instance.wish
    words = [qemu.PROGRAM, "-nodefaults", "-no-user-config", "-name", instance.name, "-uuid", instance.uuid]
    words += ["-machine", f"{instance.machine},hpet=off,usb=off,memory-backend=ram", "-display", "none"]
    words += ["-accel", "kvm" if instance.accel == "kvm" else "tcg,thread=multi,tb-size=128"]
    words += ["-cpu", instance.processor, "-smp", str(wish.cpus), "-m", f"size={wish.memory_bytes >> 20}M"]
    if setup.memory is None:
        words += ["-object", f"memory-backend-ram,id=ram,size={wish.memory_bytes}"]
    else:
        how = "share=on" if setup.memory.shared else "share=off,readonly=on,rom=off"
        words += ["-object", f"memory-backend-file,id=ram,size={wish.memory_bytes},mem-path={_RAM / setup.memory.file.name},{how}"]
    words += ["-kernel", setup.linux, "-initrd", setup.initrd, "-append", setup.command_line]
    words += ["-device", "virtio-rng-pci", "-device", f"vmgenid,guid={instance.generation}"]
    if setup.root is not None:
        words += ["-blockdev", _json(driver="raw", node_name="root", read_only=True, file={"driver": "file", "filename": setup.root})]
        words += ["-device", "virtio-blk-pci,drive=root"]
    layer = {"driver": "file", "filename": setup.layer}
    words += ["-blockdev", _json(driver="qcow2", node_name=LAYER, discard="unmap", file=layer)]
    words += ["-device", f"virtio-blk-pci,drive={LAYER},id={STATE},serial={STATE_SERIAL}"]
    words += ["-device", "virtio-serial-pci"]
    words += [
        "-chardev",
        f"socket,id={AGENT},path=agent,server=on,wait=off",
        "-device",
        f"virtserialport,chardev={AGENT},name={AGENT_PORT}",
    ]
    words += ["-chardev", f"pipe,id={IDENTITY},path=identity", "-device", f"virtserialport,chardev={IDENTITY},name={IDENTITY_PORT}"]
    words += ["-chardev", "socket,id=console,path=console,server=on,wait=off,logfile=console.log", "-serial", "chardev:console"]
    forwards = "".join(f",hostfwd={forward_words(port)}" for port in wish.ports) if setup.load is None else ""
    words += ["-netdev", f"user,id={NETWORK}{forwards}", "-device", f"virtio-net-pci,netdev={NETWORK},mac={instance.mac}"]
    for name, value in wish.credentials:
        # In base64, for a comma would part QEMU's own words.
        words += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={b64encode(value.encode()).decode()}"]
    words += ["-qmp", "unix:monitor,server=on,wait=off", "-qmp", "unix:look,server=on,wait=off"]
    words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    return [*words, "-S", "-incoming", "defer"] if setup.load is not None else words


def _json(**words: object) -> str:
    return json.dumps({name.replace("_", "-"): value for name, value in words.items()})


class Resident:
    """The machine of a directory, running or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def is_running(self) -> bool:
        """Whether there is a process. Also true of one that was just started and does not listen yet."""
        try:
            descriptor = os.open(self.directory / _RUNNING, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def processes(self) -> list[int]:
        """The processes that hold the lock: one, where the machine runs."""
        return _holders(self.directory / _RUNNING) if self.is_running() else []

    def start(self, room: Room, setup: Setup) -> None:
        """Start it, and wait until it listens. There must be none.

        Raises:
            StateError: `port-taken`.
            CommandError: `machine-failed`: it ended at once; with what it said.
        """
        self._clear()
        binds = [writable(self.directory, INSIDE)]
        if setup.load is not None:
            binds.append(read_only(setup.load, LOADED))
        if setup.memory is not None:
            binds.append(Bind(setup.memory.file.parent, _RAM, writable=setup.memory.shared))
        devices = ("/dev/kvm",) if setup.instance.accel == "kvm" else ()
        words = room.argv(argv(setup), binds=binds, network=True, devices=devices, cwd=str(INSIDE), outlives=True)
        held = os.open(self.directory / _RUNNING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            with (self.directory / "qemu.log").open("wb") as log:
                process = subprocess.Popen(
                    words,
                    env=MINIMAL_ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(held,),
                )
        finally:
            os.close(held)
        try:
            self._wait_until_up(process)
        except BaseException:
            self.end()
            raise
        finally:
            # It is nobody's child: that it ends is told by the lock.
            process.returncode = process.poll() or 0

    def end(self) -> None:
        """End it at once, as a power cut does, and wait until it is gone. May be repeated.

        Raises:
            CommandError: `machine-stays`.
        """
        deadline = time.monotonic() + _END_S
        while self.is_running():
            for process in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise CommandError((qemu.PROGRAM,), 1, "its process does not end", code="machine-stays", hint="restart this machine")
            time.sleep(_POLL_S)

    def monitor(self) -> Monitor:
        """Its monitor, for whoever works on it; one at a time."""
        return Monitor(self.directory / "monitor")

    def look(self) -> str:
        """What it is doing, in QEMU's word: see `Monitor.run_state`. Empty where it cannot be asked."""
        with suppress(CommandError), Monitor(self.directory / "look", timeout_s=2.0) as monitor:
            return monitor.run_state()
        return ""

    def wait_until_off(self, timeout_s: float) -> bool:
        """Whether it ended by itself in that time."""
        deadline = time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def healthy(self) -> bool | None:
        """What the checks of its image said last; None as long as they said nothing."""
        try:
            text = (self.directory / "console.log").read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return None
        said = _SHOWN.findall(text)
        return said[-1] == "healthy" if said else None

    def tell_identity(self, line: bytes, *, timeout_s: float) -> str:
        """Tell the guest who it is, and wait for its answer: a line. Empty when there is none in that time."""
        ends = []
        try:
            for name, flags in (("identity.in", os.O_RDWR), ("identity.out", os.O_RDWR)):
                ends.append(os.open(self.directory / name, flags | os.O_NONBLOCK | os.O_CLOEXEC))
            os.write(ends[0], line)
            deadline, said = time.monotonic() + timeout_s, b""
            while b"\n" not in said and (left := deadline - time.monotonic()) > 0:
                if select.select([ends[1]], [], [], min(left, 0.5))[0]:
                    said += os.read(ends[1], 4096)
                elif not self.is_running():
                    break
            return said.split(b"\n")[0].decode(errors="replace") if b"\n" in said else ""
        finally:
            for end in ends:
                os.close(end)

    @contextmanager
    def frozen(self, monitor: Monitor) -> Iterator[bool]:
        """Have the guest's agent hold its file systems still for the block. False where no agent answers, or it cannot."""
        froze = monitor.is_open(AGENT) and self._agent("guest-fsfreeze-freeze") is not None
        try:
            yield froze
        finally:
            if froze:
                self._agent("guest-fsfreeze-thaw")

    def thaw(self, monitor: Monitor) -> None:
        """Let file systems go on that a killed command has left frozen."""
        if monitor.is_open(AGENT) and self._agent("guest-fsfreeze-status") == "frozen":
            self._agent("guest-fsfreeze-thaw")

    def _agent(self, command: str) -> object | None:
        """What the agent answers; None where it says nothing, or refuses. Source: QEMU Guest Agent Protocol Reference."""
        with suppress(OSError, ValueError), _connected(self.directory / "agent", _AGENT_S) as link, link.makefile("rb") as answers:
            # Whatever an earlier conversation has left is before this answer.
            mark = time.monotonic_ns() & 0x7FFFFFFF
            link.sendall(json.dumps({"execute": "guest-sync", "arguments": {"id": mark}}).encode() + b"\n")
            while json.loads(answers.readline()).get("return") != mark:
                pass
            link.sendall(json.dumps({"execute": command}).encode() + b"\n")
            said: dict[str, object] = json.loads(answers.readline())
            return said.get("return")
        return None

    def _clear(self) -> None:
        for name in ("monitor", "look", "console", "agent", "identity.in", "identity.out"):
            (self.directory / name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (self.directory / "console.log").replace(self.directory / "console.old")
        for name in ("identity.in", "identity.out"):
            os.mkfifo(self.directory / name, 0o600)

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _UP_S
        while time.monotonic() < deadline and process.poll() is None:
            if (self.directory / "look").exists() and self.look():
                return
            time.sleep(_POLL_S)
        said = (self.directory / "qemu.log").read_text(errors="replace")
        if found := _TAKEN.search(said):
            raise StateError(f"{found[1]} is taken on this machine", code="port-taken", hint="give the instance another port")
        raise CommandError((qemu.PROGRAM,), process.poll() or 0, said, code="machine-failed", hint=f"read {self.directory}/qemu.log")


def _holders(file: Path) -> list[int]:
    """The processes, other than this one, that have a file open."""
    wanted = file.stat()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of one that has ended meanwhile, or is not ours
            for entry in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.path.samestat(entry.stat(), wanted):
                        found.append(int(process.name))
                        break
    return sorted(each for each in found if each != os.getpid())


@contextmanager
def _connected(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout_s)
            link.connect(f"/proc/self/fd/{directory}/{path.name}")
            yield link
    finally:
        os.close(directory)


def attach_console(directory: Path, reader: int, writer: int) -> None:
    """Join an instance's console with two descriptors of this process, until `reader` says Ctrl-], or either side ends."""
    with _connected(directory / "console", _AGENT_S) as link:
        link.settimeout(None)
        while True:
            ready = select.select([link.fileno(), reader], [], [])[0]
            if link.fileno() in ready:
                data = link.recv(1 << 16)
                if not data:
                    return
                os.write(writer, data)
            if reader in ready:
                data = os.read(reader, 1 << 12)
                before, leave, _ = data.partition(b"\x1d")
                link.sendall(before)
                if leave or not data:
                    return


def free_port(address: str, *, avoid: Sequence[int] = ()) -> int:
    """A TCP port of that address on which nothing listens.

    Raises:
        StateError: `address-missing`: this machine has no such address.
    """
    while True:
        with _bound(address, 0) as listening:
            number: int = listening.getsockname()[1]
        if number not in avoid:
            return number


def refuse_taken(port: Port) -> None:
    """Find out, before anything starts, whether a port is free.

    Raises:
        StateError: `port-taken`; `address-missing`.
    """
    with _bound(port.address, port.host):
        pass


@contextmanager
def _bound(address: str, port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port))
            listening.listen()
        except OSError as error:
            missing = error.errno == 99  # noqa: PLR2004 - EADDRNOTAVAIL
            raise StateError(
                f"this machine has no address {address}" if missing else f"port {port} of {address} is not free: {error.strerror}",
                code="address-missing" if missing else "port-taken",
                hint="name one of its addresses" if missing else "choose another port, or end what listens there",
            ) from error
        yield listening
