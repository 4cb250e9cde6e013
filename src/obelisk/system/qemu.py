"""qemu-system-x86_64(1): starts a virtual machine as a child that cannot outlive its parent, and talks to its monitor.

Software emulation wants particular settings (see `argv`); hardware acceleration is used only where the processor really offers it.
Hosts have this module too, and with it neither bubblewrap nor the library for the monitor: there, `confined` starts machines.
"""

import os
import re
import signal
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from obelisk.errors import CommandError, InputError, MissingFeatureError
from obelisk.system.command import MINIMAL_ENVIRONMENT, find_program, run

if TYPE_CHECKING:
    from obelisk.system.bubblewrap import Bind, Room

PROGRAM = "qemu-system-x86_64"
LATE_TIMER = re.compile(r"IO-APIC \+ timer doesn't work|rcu_preempt kthread timer wakeup didn't happen")
"""What a kernel says that waited in vain for an emulated timer, on a busy machine, and stands still: that says nothing about the image."""

_SITE_ADDRESS = "10.0.2.80"
SITE = f"http://{_SITE_ADDRESS}/"
"""Where a guest finds the directory that its machine serves it."""
_SITE_CODE = "/obelisk-code"
_SITE_PLACE = "/obelisk-site"

FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
# Without the quick string instructions, which are emulated byte by byte: a boot takes a tenth less without them.
_EMULATED = "max,la57=off,erms=off,fsrm=off,fsrs=off,fzrm=off,fsrc=off"
_VIRTUALISATION = {"vmx": "kvm_intel", "svm": "kvm_amd"}
"""Flags of processors that have it, and the modules of the kernel for it."""
_END_S = 10.0
# Ends with its parent, has no network but its own loopback, lets the machine's work go first, goes first when memory runs out, and cannot
# gain or use any privilege of root. unshare(1) needs one, so the rest follows it.
_CONFINEMENT = (
    *("unshare", "--net", "--", "choom", "--adjust", "1000", "--", "nice", "--adjustment=10"),
    *("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"),
)
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_TPM_SOCKET = "tpm.socket"
# The TPM is a process of the machine's room, which ends as a whole when the machine does. It is there when its command returns.
_WITH_TPM = f"""\
rm -f {_TPM_SOCKET}
swtpm socket --tpm2 --tpmstate dir="$1" --ctrl type=unixio,path={_TPM_SOCKET} --terminate --daemon --log "$2"
shift 2
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Forward:
    """A TCP port of this machine's loopback that leads into the guest."""

    host: int
    guest: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that QEMU loads itself, without UEFI. Unless it is `measured`, nothing has told a TPM anything before it runs."""

    image: Path
    initrd: Path
    command_line: str
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """One virtual machine. `variables` is the firmware's own store, written by the guest; `console` None: this terminal.

    `ports` are virtio-serial ports by name, each a file that takes what the guest writes; `sockets` likewise, each a Unix socket that
    one program can connect to and talk with the guest. `credentials` are systemd's, by name. `attached` are read-only raw disks more,
    `spares` qcow2 disks.
    `isolated`: no traffic but the forwards. `site` is a directory that the guest finds at `SITE`, isolated or not.
    `typed` is a Unix socket by which somebody types at the console. `tpm` is the directory of a TPM 2's state, which is made when missing;
    `tpm_log` takes all that it is told and answers, which has secrets in it.
    `write_log` takes every write and flush of the disk, which is a raw file then, in the format of dm-log-writes. `raw`: the disk is one
    anyway. `restarts`: else the machine ends when it would start anew.
    """

    disk: Path
    directory: Path
    memory_mib: int = 1024
    cpus: int = 2
    variables: Path | None = None
    kernel: Kernel | None = None
    console: Path | None = None
    typed: Path | None = None
    tpm: Path | None = None
    tpm_log: Path | None = None
    ports: dict[str, Path] = field(default_factory=dict)
    sockets: dict[str, Path] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)
    attached: tuple[Path, ...] = ()
    spares: tuple[Path, ...] = ()
    write_log: Path | None = None
    raw: bool = False
    restarts: bool = True
    forwards: tuple[Forward, ...] = ()
    isolated: bool = True
    site: Path | None = None
    graphics: bool = False


def acceleration() -> str:
    """`kvm` where the processor has it and this user may use it, else `tcg`.

    A /dev/kvm that opens proves nothing: on processors that do not pass virtualisation on, a guest then hangs.
    """
    return "kvm" if _virtualisation() and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def fair_cpus(accel: str) -> int:
    """How many processors a machine should have that runs beside another one.

    Emulated processors that wait for each other cost as much as those that work: on two processors, two machines of one each boot in
    three quarters of the time of two machines of two.
    """
    return 1 if accel == "tcg" and (os.cpu_count() or 1) < 4 else 2  # noqa: PLR2004 - two machines of two


def _virtualisation() -> set[str]:
    return _VIRTUALISATION.keys() & set(Path("/proc/cpuinfo").read_text().split())


def argv(settings: Settings, accel: str) -> list[str]:
    """The argument list of the machine."""
    secure = settings.variables is not None
    words = [PROGRAM, "-machine", f"q35,hpet=off{',smm=on' if secure else ''}", "-nodefaults"]
    words += ["-accel", "kvm" if accel == "kvm" else "tcg,thread=multi,tb-size=256"]
    words += ["-cpu", "host" if accel == "kvm" else _EMULATED, "-smp", str(settings.cpus), "-m", str(settings.memory_mib)]
    words += ["-display", "none", *(["-vga", "std"] if settings.graphics else []), "-device", "virtio-rng-pci"]
    if settings.variables is not None:
        words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        words += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"]
        words += ["-drive", f"if=pflash,format=raw,unit=1,file={settings.variables}"]
    if settings.kernel is not None:
        words += ["-kernel", str(settings.kernel.image), "-initrd", str(settings.kernel.initrd), "-append", settings.kernel.command_line]
        words += [] if settings.kernel.measured else ["-bios", "qboot.rom"]
    words += _disks(settings)
    # Relative, for the path of a socket has a hundred characters at most.
    words += ["-qmp", "unix:monitor,server=on,wait=off"]
    words += [*_console(settings), *_tpm(settings)]
    for name, value in settings.credentials.items():
        # In base64, for a comma would part QEMU's own words.
        words += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={b64encode(value.encode()).decode()}"]
    words += _ports(settings)
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{forward.host}-:{forward.guest}" for forward in settings.forwards)
    if settings.site is not None:
        # For each connection of the guest's, QEMU starts a program that serves it.
        server = f"env PYTHONPATH={_SITE_CODE} python3 -m obelisk.system.serving {_SITE_PLACE}"
        forwards += f",guestfwd=tcp:{_SITE_ADDRESS}:80-cmd:{server}"
    words += ["-netdev", f"user,id=net,restrict={'on' if settings.isolated else 'off'}{forwards}", "-device", "virtio-net-pci,netdev=net"]
    return words if settings.restarts else [*words, "-no-reboot"]


def _disks(settings: Settings) -> list[str]:
    if settings.write_log is None:
        # A copy that is thrown away need not reach the disk.
        kind = "raw" if settings.raw else "qcow2"
        words = ["-drive", f"if=none,id=disk,file={settings.disk},format={kind},cache=unsafe,discard=unmap"]
    else:
        disk = f"file.driver=raw,file.file.driver=file,file.file.filename={settings.disk}"
        log = f"log.driver=file,log.filename={settings.write_log},log-sector-size=512"
        words = ["-drive", f"if=none,id=disk,driver=blklogwrites,{disk},{log},cache=writeback"]
    # Requests that QEMU has merged may have more pieces than the log's driver can write at once.
    words += ["-device", f"virtio-blk-pci,drive=disk,bootindex=1{',request-merging=off' if settings.write_log else ''}"]
    for index, path in enumerate(settings.attached):
        words += ["-drive", f"if=none,id=attached{index},file={path},format=raw,readonly=on"]
        words += ["-device", f"virtio-blk-pci,drive=attached{index}"]
    for index, path in enumerate(settings.spares):
        words += ["-drive", f"if=none,id=spare{index},file={path},format=qcow2,cache=unsafe,discard=unmap"]
        words += ["-device", f"virtio-blk-pci,drive=spare{index}"]
    return words


def _ports(settings: Settings) -> list[str]:
    words = ["-device", "virtio-serial-pci"] if settings.ports or settings.sockets else []
    for index, (name, path) in enumerate(settings.sockets.items()):
        words += ["-chardev", f"socket,id=socket{index},path={path},server=on,wait=off"]
        words += ["-device", f"virtserialport,chardev=socket{index},name={name}"]
    for index, (name, file) in enumerate(settings.ports.items()):
        words += ["-chardev", f"file,id=port{index},path={file}", "-device", f"virtserialport,chardev=port{index},name={name}"]
    return words


def _console(settings: Settings) -> list[str]:
    if settings.console is None:
        return ["-serial", "mon:stdio"]
    kind = f"socket,path={settings.typed},server=on,wait=off,logfile=" if settings.typed else "file,path="
    return ["-chardev", f"{kind}{settings.console},id=console", "-serial", "chardev:console"]


def _tpm(settings: Settings) -> list[str]:
    if settings.tpm is None:
        return []
    return ["-chardev", f"socket,id=tpm,path={_TPM_SOCKET}", "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm"]


def command_line(settings: Settings, accel: str) -> list[str]:
    """What starts the machine in its room, together with its TPM."""
    words = argv(settings, accel)
    if settings.tpm is None:
        return words
    log = f"file={settings.tpm_log},level=20,truncate" if settings.tpm_log else "file=-"
    return ["sh", "-euc", _WITH_TPM, "with-tpm", str(settings.tpm), log, *words]


def is_installed() -> bool:
    """Whether this machine, and no tools tree, has QEMU."""
    return find_program(PROGRAM) is not None


def load_virtualisation() -> None:
    """Load the kernel's own part of hardware virtualisation, where the processor has its own."""
    for module in (_VIRTUALISATION[flag] for flag in _virtualisation()):
        with suppress(CommandError, MissingFeatureError):
            run(["modprobe", "--quiet", module], timeout_s=60)


@contextmanager
def confined(settings: Settings, accel: str) -> Iterator[Callable[[], int | None]]:
    """The machine, by this machine's own QEMU, for as long as the block lasts. Takes root rights, and gives them up.

    What is yielded tells with which status it has ended; None as long as it runs. Its own messages go to `directory`/qemu.log.
    """
    words = [*_CONFINEMENT, *argv(settings, accel), "-sandbox", _SANDBOX]
    with (settings.directory / "qemu.log").open("wb") as log:
        process = subprocess.Popen(words, env=MINIMAL_ENVIRONMENT, cwd=settings.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process.poll
    finally:
        process.kill()
        process.wait()


def end_strays(directory: Path) -> None:
    """End machines in `directory` whose parent was killed before they could notice. May be repeated."""
    deadline = time.monotonic() + _END_S
    while strays := _processes_in(directory):
        for process in strays:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise CommandError((PROGRAM,), 1, f"process {strays[0]} does not end", code="machine-stays", hint="restart this machine")
        time.sleep(0.1)


def _processes_in(directory: Path) -> list[int]:
    """Processes that have `directory` as their working directory, other than this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if path.readlink() == directory and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def start(room: "Room", settings: Settings, *, binds: Sequence["Bind"], accel: str) -> subprocess.Popen[bytes]:
    """Start the machine. Its own messages go to `directory`/qemu.log, or to this terminal where the console is there."""
    devices = ("/dev/kvm",) if accel == "kvm" else ()
    # The network of the room is this machine's loopback only where a port is forwarded.
    network = bool(settings.forwards) or not settings.isolated
    if settings.tpm is not None:
        settings.tpm.mkdir(exist_ok=True)
    if settings.site is not None:
        from obelisk.system.bubblewrap import read_only  # noqa: PLC0415 - hosts have no rooms

        binds = (*binds, read_only(Path(__file__).parents[2], _SITE_CODE), read_only(settings.site, _SITE_PLACE))
    words = room.argv(command_line(settings, accel), binds=binds, network=network, devices=devices, cwd=str(settings.directory))
    if settings.console is None:
        return subprocess.Popen(words, env=MINIMAL_ENVIRONMENT)
    with (settings.directory / "qemu.log").open("wb") as log:
        return subprocess.Popen(words, env=MINIMAL_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def command(socket: Path, name: str, **arguments: str) -> None:
    """Send one command to a running machine's monitor.

    Raises:
        CommandError: the machine refused it, or is no longer there.
    """
    # Slow to import, and not on hosts.
    import asyncio  # noqa: PLC0415

    from qemu.qmp import QMPClient, QMPError  # noqa: PLC0415

    async def send() -> None:
        client = QMPClient("obelisk")
        directory = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            await client.connect(f"/proc/self/fd/{directory}/{socket.name}")
        finally:
            os.close(directory)
        try:
            await client.execute(name, dict(arguments))
        finally:
            await client.disconnect()

    try:
        asyncio.run(send())
    except (QMPError, OSError) as error:
        raise CommandError(("qemu-monitor", name), 1, str(error), code="monitor-failed") from error


def overlay(room: "Room", base: Path, target: Path, size_bytes: int, *, binds: Sequence["Bind"]) -> None:
    """Make `target` a qcow2 disk of `size_bytes` whose content is that of `base` until it is written to."""
    room.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(target), str(size_bytes)], binds=binds)


def make_layer(room: "Room", directory: Path, name: str, size_bytes: int, *, below: str = "") -> None:
    """Make the qcow2 file `name` in a directory: empty or, over another file there, with that one's content."""
    from obelisk.system.bubblewrap import writable  # noqa: PLC0415 - hosts have no rooms

    words = ["-F", "qcow2", "-b", below] if below else []
    at = f"/layers/{name}"
    room.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, at, str(size_bytes)], binds=[writable(directory, "/layers")])


def join_layers(room: "Room", directory: Path, name: str) -> None:
    """Write what a qcow2 file of a directory has into the one below it. Cut anywhere, both together still hold what they did."""
    from obelisk.system.bubblewrap import writable  # noqa: PLC0415 - hosts have no rooms

    room.run(["qemu-img", "commit", "-q", "-d", f"/layers/{name}"], binds=[writable(directory, "/layers")])


def flatten_layers(room: "Room", directory: Path, name: str, target: str) -> None:
    """Make one qcow2 file of all that a file and those below it hold."""
    from obelisk.system.bubblewrap import writable  # noqa: PLC0415 - hosts have no rooms

    words = ["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "qcow2", f"/layers/{name}", f"/layers/{target}"]
    room.run(words, binds=[writable(directory, "/layers")])


def overwrite(room: "Room", disk: Path, offset: int, length: int, *, binds: Sequence["Bind"]) -> None:
    """Overwrite `length` bytes (a multiple of 512, like `offset`) of a qcow2 disk that no machine uses."""
    room.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0xa5 {offset} {length}", str(disk)], binds=binds)


def credential(text: str) -> tuple[str, str]:
    """A credential as people write it, `system.hostname=till-7`.

    Raises:
        InputError: it is no name and value.
    """
    name, found, value = text.partition("=")
    if not found or not name or "/" in name or name in {".", ".."} or not name.isprintable():
        raise InputError(f"{text!r} is not a credential", code="credential", hint="write NAME=VALUE, for example system.hostname=till-7")
    return name, value


def forward(text: str) -> Forward:
    """A forward as people write it, `8080:80`.

    Raises:
        InputError: it is not two port numbers.
    """
    host, _, guest = text.partition(":")
    if not (host.isdigit() and guest.isdigit() and 0 < int(host) < 65536 and 0 < int(guest) < 65536):  # noqa: PLR2004
        raise InputError(f"{text!r} is not a pair of ports", code="port", hint="write HOST:GUEST, for example 8080:80")
    return Forward(int(host), int(guest))
