"""Tries to get out: each probe is one thing that an application should not be able to do, and reports whether it could.

    probe.py [FACTS]      FACTS is JSON about the machine outside, see outside.py; without it, standard input has that.
                          Prints {probe: [group, "blocked" or "allowed", detail]}

A probe runs in a process of its own, which it may ruin. It is allowed when it returns True; an error, a signal or no answer in time is
a block. Runs wherever there is a Python, under whatever confinement is to be judged.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Probe = Callable[[], bool]
PROBES: dict[str, tuple[str, Probe]] = {}
FACTS: dict[str, Any] = {}
LIBC = ctypes.CDLL(None, use_errno=True)
PATIENCE_S = 6
TMP = os.environ.get("TMPDIR", "/tmp")

NUMBERS = {
    "ptrace": 101, "syslog": 103, "personality": 135, "modify_ldt": 154, "pivot_root": 155, "acct": 163, "mount": 165, "swapon": 167,
    "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175, "quotactl": 179, "kexec_load": 246, "add_key": 248, "keyctl": 250,
    "migrate_pages": 256, "unshare": 272, "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "kcmp": 312, "finit_module": 313, "memfd_create": 319, "bpf": 321,
    "userfaultfd": 323, "mlock2": 325, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "clone3": 435,
    "pidfd_getfd": 438, "mount_setattr": 442, "memfd_secret": 447, "statmount": 457, "listmount": 458,
}  # fmt: skip
NEW = {"time": 0x80, "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
       "network": 0x40000000}  # fmt: skip


def probe(group: str, name: str) -> Callable[[Probe], Probe]:
    def add(function: Probe) -> Probe:
        PROBES[name] = group, function
        return function

    return add


def call(name: str | int, *arguments: Any) -> int:  # noqa: ANN401 - whatever a system call takes
    """A system call; an error of which is an exception."""
    number = NUMBERS[name] if isinstance(name, str) else name
    result = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def reached(name: str | int, *arguments: Any, harmless: tuple[int, ...] = (errno.EFAULT, errno.EINVAL, errno.EBADF)) -> bool:  # noqa: ANN401
    """Whether a call that is given nonsense gets as far as looking at it."""
    try:
        call(name, *arguments)
    except OSError as error:
        return error.errno in harmless
    return True


def readable(path: str, size: int = 64) -> bool:
    with Path(path).open("rb") as file:
        return len(file.read(size)) > 0


def writable(path: str) -> bool:
    descriptor = os.open(path, os.O_WRONLY)
    os.close(descriptor)
    return True


def marked(path: str) -> bool:
    return bool(Path(path).read_text() == FACTS["marker"])


def opened(path: str) -> bool:
    os.close(os.open(path, os.O_RDWR))
    return True


def made(path: str) -> bool:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.close(descriptor)
    Path(path).unlink()
    return True


# Files


@probe("files", "read a file of the host")
def _() -> bool:
    return marked(FACTS["secret"])


@probe("files", "list a directory of the host")
def _() -> bool:
    return Path(FACTS["secret"]).name in os.listdir(Path(FACTS["secret"]).parent)


@probe("files", "write to a directory of the host")
def _() -> bool:
    return made(str(Path(FACTS["secret"]).with_name("made")))


@probe("files", "change a file of the host")
def _() -> bool:
    return writable(FACTS["secret"])


@probe("files", "read another file of the host")
def _() -> bool:
    return marked(FACTS["other"])


@probe("files", "read a file of the host by a link in /tmp")
def _() -> bool:
    link = Path(TMP, "link")
    link.symlink_to(FACTS["other"])
    return marked(str(link))


@probe("files", "read a file of the host by /proc/1/root")
def _() -> bool:
    return marked("/proc/1/root" + FACTS["other"])


@probe("files", "read the shadow passwords")
def _() -> bool:
    return readable("/etc/shadow")


for _path in ("/", "/usr", "/usr/lib", "/etc", "/var/lib", "/boot", "/opt", "/srv", "/proc", "/dev", "/home"):
    PROBES[f"make a file in {_path}"] = "files", lambda path=_path: made(f"{path}/probe-made")  # type: ignore[misc]


@probe("files", "change the mode of a program")
def _() -> bool:
    Path("/usr/bin/env").chmod(0o777)
    return True


@probe("files", "read root's home")
def _() -> bool:
    return bool(os.listdir("/root"))


@probe("files", "see another user's home")
def _() -> bool:
    return bool(set(os.listdir("/home")) - {"app"})


@probe("files", "find an open file of whoever started it")
def _() -> bool:
    for number in range(3, 200):
        with contextlib.suppress(OSError):
            if os.pread(number, 64, 0).decode() == FACTS["marker"]:
                return True
    return False


@probe("files", "open a file by its handle")
def _() -> bool:
    return reached("open_by_handle_at", -1, 0, 0)


@probe("files", "ask for a file's handle")
def _() -> bool:
    return reached("name_to_handle_at", -1, 0, 0, 0, 0)


@probe("files", "make a block device")
def _() -> bool:
    os.mknod(f"{TMP}/disk", 0o60600, os.makedev(254, 0))
    return readable(f"{TMP}/disk")


@probe("files", "make a character device")
def _() -> bool:
    os.mknod(f"{TMP}/zero", 0o20600, os.makedev(1, 5))
    return readable(f"{TMP}/zero")


@probe("files", "open a disk")
def _() -> bool:
    disks = [line.split()[3] for line in Path("/proc/partitions").read_text().splitlines()[2:]]
    return any(Path(f"/dev/{disk}").exists() and readable(f"/dev/{disk}") for disk in disks)


for _name in ("mem", "kmsg", "port", "kvm", "fuse", "net/tun", "loop-control", "vhost-net", "uinput", "snd", "video0", "rfkill", "hpet",
              "dri/renderD128", "dri/card0"):  # fmt: skip
    PROBES[f"open /dev/{_name}"] = "devices", lambda name=_name: opened(f"/dev/{name}")  # type: ignore[misc]


@probe("files", "run a program from /tmp")
def _() -> bool:
    return _copied_runs(f"{TMP}/true")


@probe("files", "run a program from its home")
def _() -> bool:
    return _copied_runs(f"{os.environ.get('HOME', '/home/app')}/true")


@probe("files", "run a program from /dev/shm")
def _() -> bool:
    return _copied_runs("/dev/shm/true")


def _copied_runs(place: str) -> bool:
    Path(place).write_bytes(Path("/usr/bin/true").read_bytes())
    Path(place).chmod(0o755)
    try:
        return subprocess.run([place], check=False).returncode == 0
    finally:
        Path(place).unlink()


@probe("files", "run a program from /tmp by the loader")
def _() -> bool:
    Path(TMP, "true2").write_bytes(Path("/usr/bin/true").read_bytes())
    return subprocess.run(["/lib64/ld-linux-x86-64.so.2", f"{TMP}/true2"], check=False).returncode == 0


@probe("files", "load a library from /tmp")
def _() -> bool:
    library = next(Path("/usr/lib/x86_64-linux-gnu").glob("libz.so.1*"))
    Path(TMP, "lib.so").write_bytes(library.read_bytes())
    ctypes.CDLL(f"{TMP}/lib.so")
    return True


@probe("files", "run a program from memory")
def _() -> bool:
    descriptor = call("memfd_create", ctypes.c_char_p(b"x"), 0)
    os.write(descriptor, Path("/usr/bin/true").read_bytes())
    return subprocess.run([f"/proc/self/fd/{descriptor}"], pass_fds=[descriptor], check=False).returncode == 0


@probe("files", "gain rights by a set-id program")
def _() -> bool:
    Path(TMP, "suid").write_bytes(b"#!/bin/sh\n")
    Path(TMP, "suid").chmod(0o4755)
    return not os.statvfs(TMP).f_flag & os.ST_NOSUID


@probe("files", "change root to a directory")
def _() -> bool:
    os.chroot(TMP)
    return True


@probe("files", "see /sys")
def _() -> bool:
    return bool(os.listdir("/sys"))


@probe("files", "set the kernel's core pattern")
def _() -> bool:
    return writable("/proc/sys/kernel/core_pattern")


@probe("files", "press sysrq")
def _() -> bool:
    return writable("/proc/sysrq-trigger")


# Processes


@probe("processes", "see a process of the host")
def _() -> bool:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    return any(FACTS["process_marker"][::-1].encode() in line for line in lines)


@probe("processes", "signal a process of the host")
def _() -> bool:
    os.kill(FACTS["process"], 0)
    return True


@probe("processes", "read the memory of the first process")
def _() -> bool:
    os.close(os.open("/proc/1/mem", os.O_RDONLY))
    return True


@probe("processes", "read the environment of the first process")
def _() -> bool:
    return readable("/proc/1/environ")


@probe("processes", "follow the working directory of the first process")
def _() -> bool:
    return bool(Path("/proc/1/cwd").readlink())


@probe("processes", "trace its own child")
def _() -> bool:
    return call("ptrace", 0, 0, 0, 0) == 0


@probe("processes", "trace the first process")
def _() -> bool:
    return call("ptrace", 0x4206, 1, 0, 0) == 0


@probe("processes", "read another process's memory")
def _() -> bool:
    return reached("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0)


@probe("processes", "take an open file of another process")
def _() -> bool:
    return reached("pidfd_getfd", os.pidfd_open(os.getppid()), 0, 0)


@probe("processes", "compare processes")
def _() -> bool:
    return call("kcmp", os.getpid(), os.getpid(), 1, 0, 0) >= 0


@probe("processes", "raise its priority")
def _() -> bool:
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return True


@probe("processes", "become a real-time process")
def _() -> bool:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return True


@probe("processes", "change which processors it runs on")
def _() -> bool:
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    return True


@probe("processes", "spare itself from the out-of-memory killer")
def _() -> bool:
    Path("/proc/self/oom_score_adj").write_text("-1000")
    return True


@probe("processes", "become root")
def _() -> bool:
    os.setresuid(0, 0, 0)
    return True


@probe("processes", "change its groups")
def _() -> bool:
    os.setgroups([0])
    return True


@probe("processes", "have a capability")
def _() -> bool:
    status = Path("/proc/self/status").read_text()
    return any(int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapBnd", "CapAmb")))


@probe("processes", "gain privileges by a program")
def _() -> bool:
    return "NoNewPrivs:\t1" not in Path("/proc/self/status").read_text()


@probe("processes", "replace its own memory map")
def _() -> bool:
    return reached(157, 35, 1, 0, 0, 0)  # prctl(PR_SET_MM)


# Namespaces

for _name, _flag in NEW.items():
    PROBES[f"make a {_name} namespace"] = "namespaces", lambda flag=_flag: call("unshare", flag | NEW["user"]) == 0  # type: ignore[misc]


@probe("namespaces", "make a user namespace by clone")
def _() -> bool:
    pid = call(56, NEW["user"] | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return True


@probe("namespaces", "make a user namespace by clone3")
def _() -> bool:
    arguments = struct.pack("<11Q", NEW["user"], 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    if call("clone3", ctypes.c_char_p(arguments), len(arguments)) == 0:
        os._exit(0)
    return True


@probe("namespaces", "enter the first process's namespaces")
def _() -> bool:
    return any(call("setns", os.open(f"/proc/1/ns/{name}", os.O_RDONLY), 0) == 0 for name in ("mnt", "net", "user"))


@probe("namespaces", "mount something")
def _() -> bool:
    return call("mount", ctypes.c_char_p(b"tmpfs"), ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"tmpfs"), 0, 0) == 0


@probe("namespaces", "make the root writable")
def _() -> bool:
    return call("mount", 0, ctypes.c_char_p(b"/"), 0, 32 | 4096, 0) == 0


@probe("namespaces", "unmount something")
def _() -> bool:
    return call(166, ctypes.c_char_p(b"/tmp"), 2) == 0


for _name in ("open_tree", "move_mount", "fsopen", "mount_setattr", "pivot_root"):
    PROBES[f"reach {_name}"] = "namespaces", lambda name=_name: reached(name, 0, 0, 0, 0, 0)  # type: ignore[misc]


@probe("namespaces", "set the host name")
def _() -> bool:
    socket.sethostname("other")
    return True


# The kernel's surface

for _name in ("bpf", "perf_event_open", "io_uring_setup", "userfaultfd", "add_key", "keyctl", "init_module", "finit_module", "kexec_load",
              "iopl", "ioperm", "modify_ldt", "quotactl", "swapon", "syslog", "acct", "fanotify_init", "memfd_secret", "move_pages",
              "migrate_pages", "statmount", "listmount"):  # fmt: skip
    PROBES[f"reach {_name}"] = "kernel", lambda name=_name: reached(name, 0, 0, 0, 0, 0)  # type: ignore[misc]


@probe("kernel", "reach reboot")
def _() -> bool:
    return reached("reboot", 0, 0, 0, 0)


@probe("kernel", "switch off address randomisation")
def _() -> bool:
    return call("personality", 0x0040000) >= 0


@probe("kernel", "set the clock")
def _() -> bool:
    return reached(227, 0, 0)  # clock_settime


@probe("kernel", "steer the clock")
def _() -> bool:
    return reached(159, 0)  # adjtimex


@probe("kernel", "make calls by the numbers of x32")
def _() -> bool:
    return call(0x40000000 | 39) > 0


@probe("kernel", "have writable executable memory")
def _() -> bool:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    return True


@probe("kernel", "make written memory executable")
def _() -> bool:
    LIBC.mmap.restype = ctypes.c_void_p
    area = LIBC.mmap(None, 4096, 3, 0x22, -1, 0)
    return bool(LIBC.mprotect(ctypes.c_void_p(area), 4096, 5) == 0)


@probe("kernel", "write to its own code by /proc/self/mem")
def _() -> bool:
    address = ctypes.cast(LIBC.getpid, ctypes.c_void_p).value or 0
    descriptor = os.open("/proc/self/mem", os.O_RDWR)
    return os.pwrite(descriptor, os.pread(descriptor, 1, address), address) == 1


@probe("kernel", "attach shared memory that is executable")
def _() -> bool:
    segment = LIBC.shmget(0, 4096, 0o1700)
    LIBC.shmat.restype = ctypes.c_void_p
    return segment >= 0 and LIBC.shmat(segment, None, 0o100000) not in {None, ctypes.c_void_p(-1).value}


@probe("kernel", "type into the terminal")
def _() -> bool:
    master, slave = os.openpty()
    os.setsid()
    fcntl.ioctl(slave, 0x540E, 0)
    fcntl.ioctl(slave, 0x5412, b"x")  # TIOCSTI
    os.close(master)
    return True


@probe("kernel", "change a terminal's line discipline")
def _() -> bool:
    _master, slave = os.openpty()
    fcntl.ioctl(slave, 0x5423, struct.pack("i", 0))  # TIOCSETD
    return True


for _name, _family in {
    "ALG": 38,
    "VSOCK": 40,
    "PACKET": 17,
    "KEY": 15,
    "CAN": 29,
    "BLUETOOTH": 31,
    "XDP": 44,
    "TIPC": 30,
    "RDS": 21,
}.items():
    PROBES[f"have a socket of AF_{_name}"] = "kernel", lambda family=_family: call(41, family, 5 if family == 38 else 3, 0) >= 0  # type: ignore[misc]


@probe("kernel", "have a netlink socket of netfilter")
def _() -> bool:
    return call(41, 16, 3, 12) >= 0


@probe("kernel", "have a netlink socket of audit")
def _() -> bool:
    return call(41, 16, 3, 9) >= 0


# Network


def _connects(address: str, port: int) -> bool:
    with socket.create_connection((address, port), timeout=2):
        return True


@probe("network", "connect to the host's loopback")
def _() -> bool:
    return _connects("127.0.0.1", FACTS["port"])


@probe("network", "connect to the host's loopback by IPv6")
def _() -> bool:
    return _connects("::1", FACTS["port"])


@probe("network", "connect to the host's address")
def _() -> bool:
    return _connects(FACTS["address"], FACTS["port"])


@probe("network", "connect to a network")
def _() -> bool:
    return _connects(FACTS["elsewhere"], FACTS["port"])


@probe("network", "connect to another port there")
def _() -> bool:
    return _connects(FACTS["elsewhere"], FACTS["other_port"])


@probe("network", "connect to another network")
def _() -> bool:
    return _connects(FACTS["far"], FACTS["port"])


@probe("network", "connect to the gateway")
def _() -> bool:
    return _connects(FACTS["gateway"], FACTS["port"])


@probe("network", "send a datagram to another network")
def _() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(2)
        datagrams.connect((FACTS["far"], FACTS["port"]))
        datagrams.send(b"ping")
        return datagrams.recv(16) == b"pong"


@probe("network", "connect to a port elsewhere from that which it listens at")
def _() -> bool:
    with socket.socket() as speaker:
        speaker.settimeout(2)
        speaker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        speaker.bind(("0.0.0.0", FACTS["listen"]))
        # By this number Landlock lets it connect to itself; that it goes no further is the rules' part.
        speaker.connect((FACTS["elsewhere"], FACTS["listen"]))
        return True


@probe("network", "send a datagram from a port that it listens at")
def _() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(2)
        datagrams.bind(("0.0.0.0", FACTS["listen"]))
        datagrams.connect((FACTS["far"], FACTS["port"]))
        datagrams.send(b"ping")
        return datagrams.recv(16) == b"pong"


@probe("network", "have a raw socket")
def _() -> bool:
    return call(41, 2, 3, 1) >= 0


@probe("network", "have a socket of the internet's")
def _() -> bool:
    return call(41, 2, 1, 0) >= 0


@probe("network", "listen at a port of the host")
def _() -> bool:
    return _accepts(FACTS["listen"])


@probe("network", "listen at another port of the host")
def _() -> bool:
    return _accepts(FACTS["listen"] + 1)


def _accepts(port: int) -> bool:
    """Whether the host's own attempts to connect there, which it repeats all the time, arrive."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", port))
        server.listen()
        server.settimeout(4)
        server.accept()
        return True


@probe("network", "see a network interface of the host")
def _() -> bool:
    return any(name != "lo" for _index, name in socket.if_nameindex())


@probe("network", "send by an abstract socket of the host")
def _() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        local.connect("\0" + FACTS["abstract"])
        return True


@probe("network", "send by a socket file of the host")
def _() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
        local.connect(FACTS["socket"])
        return True


# Resources


@probe("resources", "have more processes than are granted")
def _() -> bool:
    children = []
    try:
        for _number in range(FACTS["processes"] + 50):
            child = os.fork()
            if child == 0:
                time.sleep(PATIENCE_S)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return True


@probe("resources", "have more memory than is granted")
def _() -> bool:
    area = mmap.mmap(-1, FACTS["memory"] + (64 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return len(area) > 0


@probe("resources", "have more memory on the heap than is granted")
def _() -> bool:
    LIBC.sbrk.restype = ctypes.c_void_p
    return bool(LIBC.sbrk(ctypes.c_ssize_t(FACTS["memory"] + (64 << 20))) != ctypes.c_void_p(-1).value)


@probe("resources", "have more open files than are granted")
def _() -> bool:
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _number in range(FACTS["files"] + 50)]
    return len(descriptors) > int(FACTS["files"])


@probe("resources", "raise the limit on open files")
def _() -> bool:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FACTS["files"] + 1, FACTS["files"] + 1))
    return True


for _path in ("/tmp", "/dev/shm", "/run", "/var/tmp"):
    PROBES[f"fill {_path}"] = "resources", lambda path=_path: _fills(path)  # type: ignore[misc]


def _fills(place: str) -> bool:
    """Whether 32 MiB more than is granted goes in there; a place that cannot be written at all counts as blocked."""
    file = Path(place, "full")
    try:
        with file.open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, FACTS["scratch"] + (32 << 20))
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
    return True


@probe("resources", "lock memory")
def _() -> bool:
    return reached("mlock2", 0, 4096, 0, harmless=(errno.ENOMEM, errno.EINVAL))


@probe("resources", "leave a core dump")
def _() -> bool:
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    return True


# Communication with other processes


@probe("ipc", "find a shared memory segment of the host")
def _() -> bool:
    return bool(LIBC.shmget(FACTS["ipc_key"], 0, 0) >= 0)


@probe("ipc", "find a message queue of the host")
def _() -> bool:
    return bool(LIBC.msgget(FACTS["ipc_key"], 0) >= 0)


@probe("ipc", "find a POSIX message queue of the host")
def _() -> bool:
    return bool(LIBC.mq_open(FACTS["queue"].encode(), os.O_RDONLY) >= 0)


@probe("ipc", "find a file in the host's /dev/shm")
def _() -> bool:
    return Path("/dev/shm", FACTS["shm"]).exists()


@probe("ipc", "find the host's /run")
def _() -> bool:
    return Path("/run", FACTS["run"]).exists()


@probe("ipc", "find the host's /tmp")
def _() -> bool:
    return Path("/tmp", FACTS["tmp"]).exists()


# The desktop session

RUNTIME, SCREENS = "/run/user", "/tmp/.X11-unix"


class Bus:
    """A connection to a message bus, as far as it takes to call with strings and numbers, and to answer."""

    CALL, RETURN, ERROR = 1, 2, 3
    PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_TO, DESTINATION, SENDER, SIGNATURE = 1, 2, 3, 4, 5, 6, 7, 8

    def __init__(self, path: str) -> None:
        self.serial = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(3)
        self.socket.connect(path)
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        if not self.socket.recv(512).startswith(b"OK"):
            raise PermissionError
        self.socket.sendall(b"BEGIN\r\n")
        self.ask("Hello")

    def ask(self, member: str, *arguments: str | int) -> tuple[int, bytes]:
        """What the bus itself answers."""
        return self.call("org.freedesktop.DBus", member, *arguments)

    def call(self, name: str, member: str, *arguments: str | int) -> tuple[int, bytes]:
        """The type and the body of the answer of whoever has a name."""
        body = b""
        for argument in arguments:
            body += bytes(-len(body) % 4)
            body += (
                struct.pack("<I", argument) if isinstance(argument, int) else struct.pack("<I", len(argument)) + argument.encode() + b"\0"
            )
        kinds = "".join("u" if isinstance(argument, int) else "s" for argument in arguments)
        return self.called(name, "/org/freedesktop/DBus", f"org.freedesktop.DBus.{member}", kinds, body)

    def called(self, name: str, path: str, method: str, kinds: str, body: bytes) -> tuple[int, bytes]:
        """The same, of a method of an object."""
        interface, _, member = method.rpartition(".")
        fields: dict[int, tuple[str, str | int]] = {self.PATH: ("o", path), self.DESTINATION: ("s", name)}
        fields |= {self.INTERFACE: ("s", interface), self.MEMBER: ("s", member), self.SIGNATURE: ("g", kinds)}
        sent = self.send(self.CALL, fields, body)
        while True:
            kind, fields, body = self.receive()
            if fields.get(self.REPLY_TO) == ("u", sent):
                return kind, body

    def send(self, kind: int, fields: dict[int, tuple[str, str | int]], body: bytes = b"") -> int:
        self.serial += 1
        packed = b""
        for code, (form, value) in fields.items():
            packed += bytes(-len(packed) % 8) + bytes([code, 1]) + form.encode() + b"\0"
            if isinstance(value, int):
                packed += struct.pack("<I", value)
            else:
                packed += (bytes([len(value)]) if form == "g" else struct.pack("<I", len(value))) + value.encode() + b"\0"
        head = b"l" + bytes([kind, 0, 1]) + struct.pack("<III", len(body), self.serial, len(packed))
        self.socket.sendall(head + packed + bytes(-len(packed) % 8) + body)
        return self.serial

    def receive(self) -> tuple[int, dict[int, tuple[str, str | int]], bytes]:
        head = self._exactly(16)
        size, self.last, packed_size = struct.unpack("<III", head[4:])
        packed = self._exactly(packed_size + -packed_size % 8)[:packed_size]
        fields: dict[int, tuple[str, str | int]] = {}
        at = 0
        while at < packed_size:
            code, form, at = packed[at], chr(packed[at + 2]), at + 4
            if form == "u":
                fields[code], at = (form, struct.unpack_from("<I", packed, at)[0]), at + 4
            else:
                length, at = (packed[at], at + 1) if form == "g" else (struct.unpack_from("<I", packed, at)[0], at + 4)
                fields[code], at = (form, packed[at : at + length].decode()), at + length + 1
            at += -at % 8
        return head[1], fields, self._exactly(size)

    def serve(self, name: str) -> None:
        """Have a name, and answer every call by it with nothing."""
        self.ask("RequestName", name, 0)
        self.socket.settimeout(None)
        while True:
            kind, fields, _body = self.receive()
            if kind == self.CALL:
                self.send(self.RETURN, {self.REPLY_TO: ("u", self.last), self.DESTINATION: fields[self.SENDER]})

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data


def _bus() -> Bus:
    return Bus(f"{RUNTIME}/bus" if Path(f"{RUNTIME}/bus").exists() else FACTS["bus"])


@probe("desktop", "reach the session bus")
def _() -> bool:
    return _bus().ask("GetId")[0] == Bus.RETURN


@probe("desktop", "see another name on the session bus")
def _() -> bool:
    return FACTS["name_kept"].encode() in _bus().ask("ListNames")[1]


@probe("desktop", "hear of all that is said on the session bus")
def _() -> bool:
    bus = _bus()
    return Bus.RETURN in {bus.ask("AddMatch", "eavesdrop='true'")[0], bus.ask("BecomeMonitor", 0, 0)[0]}


for _name in ("name", "name_kept"):
    _text = "a name on the session bus" if _name == "name" else "another name on the session bus"
    PROBES[f"talk to {_text}"] = "desktop", lambda name=_name: _bus().call(FACTS[name], "Anything")[0] == Bus.RETURN  # type: ignore[misc]
for _name in ("name_own", "name_free"):
    _text = "a name on the session bus" if _name == "name_own" else "another name on the session bus"
    PROBES[f"have {_text}"] = "desktop", lambda name=_name: _bus().ask("RequestName", FACTS[name], 0)[1] == struct.pack("<I", 1)  # type: ignore[misc]


def _asked(bus: Bus, method: str, kinds: str = "", body: bytes = b"") -> bool:
    """Whether a portal answers."""
    return bus.called("org.freedesktop.portal.Desktop", "/org/freedesktop/portal/desktop", method, kinds, body)[0] == Bus.RETURN


def _asked_for_files(bus: Bus) -> bool:
    # No window that the dialogue is of, a title, no options.
    body = struct.pack("<IxxxxI4sxxxxI", 0, 4, b"Open", 0)
    return _asked(bus, "org.freedesktop.portal.FileChooser.OpenFile", "ssa{sv}", body)


def _chosen() -> Path:
    """Where the file is that the person chooses."""
    bus = _bus()
    if not _asked_for_files(bus):
        raise PermissionError
    while True:
        _kind, fields, body = bus.receive()
        if fields.get(Bus.MEMBER) == ("s", "Response"):
            return Path(body.partition(b"file://")[2].partition(b"\0")[0].decode())


@probe("desktop", "ask a portal for files")
def _() -> bool:
    return _asked_for_files(_bus())


@probe("desktop", "read a file that was chosen")
def _() -> bool:
    return FACTS["marker"] in _chosen().read_text()


@probe("desktop", "change a file that was chosen")
def _() -> bool:
    chosen = _chosen()
    with chosen.open("a") as file:
        file.write("changed\n")
    # A file of any name can be made there. Whether that is the one beside, sees whoever runs the probes.
    with contextlib.suppress(OSError), chosen.with_name(Path(FACTS["beside_chosen"]).name).open("a") as file:
        file.write("changed\n")
    return True


@probe("desktop", "read what is beside a file that was chosen")
def _() -> bool:
    beside = Path(FACTS["beside_chosen"])
    try:
        return FACTS["marker"] in beside.read_text()
    except OSError:
        return FACTS["marker"] in _chosen().with_name(beside.name).read_text()


@probe("desktop", "see what was chosen for others")
def _() -> bool:
    return bool(os.listdir(f"{FACTS['documents']}/by-app"))


@probe("desktop", "ask another portal")
def _() -> bool:
    # Nor may it ask for a version: who may read that, may read the properties of every portal.
    version = struct.pack("<I34sxxI7sx", 34, b"org.freedesktop.portal.FileChooser", 7, b"version")
    return _asked(_bus(), "org.freedesktop.portal.Settings.ReadAll", "as", struct.pack("<I", 0)) or _asked(
        _bus(), "org.freedesktop.DBus.Properties.Get", "ss", version
    )


@probe("desktop", "reach the portal of documents")
def _() -> bool:
    name = "org.freedesktop.portal.Documents"
    return _bus().called(name, "/org/freedesktop/portal/documents", f"{name}.GetMountPoint", "", b"")[0] == Bus.RETURN


def _speaks(*paths: str) -> bool:
    """Whether behind one of these sockets is who greets with the marker."""
    for path in paths:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as local:
            local.settimeout(2)
            local.connect(path)
            if local.recv(64).decode() == FACTS["marker"]:
                return True
    return False


@probe("desktop", "reach the Wayland compositor")
def _() -> bool:
    return _speaks(f"{RUNTIME}/wayland-0", FACTS["compositor"])


@probe("desktop", "reach another socket of the session")
def _() -> bool:
    beside = Path(FACTS["compositor"]).with_name("other")
    return _speaks(f"{RUNTIME}/other", str(beside)) or bool(
        set(os.listdir(RUNTIME)) - {"wayland-0", "bus", str(os.getuid())}  # the last is where documents are
    )


def _screens() -> list[int]:
    """The widths of the screens of all X servers that can be reached."""
    found = []
    for path in {*map(str, Path(SCREENS).glob("X*")), FACTS["screen"], "\0" + FACTS["screen"], f"\0{SCREENS}/X0"}:
        with contextlib.suppress(OSError, struct.error), socket.socket(socket.AF_UNIX) as server:
            server.settimeout(30)  # whoever can be reached answers, on a busy machine later
            server.connect(path)
            server.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
            reply = server.recv(8, socket.MSG_WAITALL)
            reply += server.recv(4 * struct.unpack_from("<H", reply, 6)[0], socket.MSG_WAITALL)
            vendor, formats = struct.unpack_from("<H", reply, 24)[0], reply[29]
            if reply[0] == 1:
                found.append(struct.unpack_from("<H", reply, 40 + vendor + -vendor % 4 + 8 * formats + 20)[0])
    return found


@probe("desktop", "reach the session's X server")
def _() -> bool:
    return FACTS["screen_width"] in _screens()


@probe("desktop", "reach an X server of its own")
def _() -> bool:
    return bool(set(_screens()) - {FACTS["screen_width"]})


# Leaks


@probe("leaks", "see a graphics processor in /sys")
def _() -> bool:
    return Path("/sys/dev/char/1:5/dev").read_text() == "1:5\n"


@probe("leaks", "see disks in /sys")
def _() -> bool:
    return bool(os.listdir("/sys/block"))


@probe("leaks", "see other devices in /sys")
def _() -> bool:
    return len(os.listdir("/sys/dev/char")) > 1 or bool(os.listdir("/sys/class"))


@probe("leaks", "see the environment of whoever started it")
def _() -> bool:
    return any(FACTS["marker"] in value for value in os.environ.values())


@probe("leaks", "see the host's name")
def _() -> bool:
    return bool(os.uname().nodename == FACTS["hostname"])


@probe("leaks", "see the host's machine id")
def _() -> bool:
    return readable("/etc/machine-id")


for _name in ("cmdline", "config.gz", "interrupts", "keys", "locks", "kallsyms", "modules", "timer_list", "kcore", "partitions",
              "diskstats", "slabinfo", "vmallocinfo"):  # fmt: skip
    PROBES[f"read /proc/{_name}"] = "leaks", lambda name=_name: readable(f"/proc/{name}", 4096)  # type: ignore[misc]


@probe("leaks", "see the devices of the machine")
def _() -> bool:
    return "PCI" in Path("/proc/iomem").read_text()


@probe("leaks", "see where on the host its mounts come from")
def _() -> bool:
    return FACTS["secret_directory"] in Path("/proc/self/mountinfo").read_text()


@probe("leaks", "see the host's accounts")
def _() -> bool:
    return FACTS["account"] in Path("/etc/passwd").read_text()


def attempt(function: Probe) -> tuple[str, str]:
    """Run one probe in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setpgid(0, 0)
        signal.alarm(PATIENCE_S)
        try:
            said = "allowed" if function() else "blocked\nno effect"
        except BaseException as error:
            said = f"blocked\n{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:400])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode(errors="replace")
    _pid, status = os.waitpid(child, 0)
    outcome, _, detail = said.partition("\n")
    return (outcome, detail) if outcome else ("blocked", f"ended by signal {status & 0x7F}")


def main() -> int:
    FACTS.update(json.loads(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read()))
    only = FACTS.get("only") or list(PROBES)
    found = {name: [PROBES[name][0], *attempt(PROBES[name][1])] for name in only}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
