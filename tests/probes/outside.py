"""A host with everything on it that an application should not reach, and the probes run on it under one confinement after the other.

    outside.py RUNS [machine]     RUNS is JSON: [{"name", "argv", "env"}]; the facts for probe.py are added to each argv as its last word.
                                  Prints {name: what the probes found}.

Wants to be root in mount, network, IPC and host name namespaces of its own, so that all of this ends with it:
`unshare --mount --net --ipc --uts --propagation private python3 outside.py RUNS`; or on a machine that is thrown away afterwards, where
services see it too, and there is no X server. Probes that succeed do what they try.
"""

import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe import Bus

MARKER = f"marker-{secrets.token_hex(8)}"
GRANTED, KEPT = Path("/mnt/granted"), Path("/mnt/kept")
PORT, OTHER_PORT, LISTEN = 7301, 7302, 7401
ADDRESS, GATEWAY, ELSEWHERE, FAR = "10.99.0.2", "10.99.0.1", "10.98.0.1", "10.97.0.1"
KEY = 0x0B1E
RUNTIME, DISPLAY, WIDTH = Path("/mnt/runtime"), 77, 1111
NAMES = {"name": "org.example.Granted", "name_kept": "org.example.Kept", "name_own": "org.example.Own", "name_free": "org.example.Free"}
PORTALS = ("org.freedesktop.portal.Desktop", "org.freedesktop.portal.Documents")
# The user as whom root starts the application of that name. A bus lets in whom the machine has an account of.
APPLICATION = 61184 + zlib.crc32(b"probes") % 4336
BUS = f"""<busconfig><type>session</type><listen>unix:path={RUNTIME}/bus</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""


def quietly(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def files() -> None:
    """Directories in which nothing but confinement keeps anybody from anything, and an account."""
    quietly("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt")
    for place, name in ((GRANTED, "secret"), (KEPT, "other")):
        place.mkdir()
        (place / name).write_text(MARKER)
        (place / name).chmod(0o666)
        place.chmod(0o777)
    passwd = Path("/mnt/passwd")
    accounts = f"{MARKER[:20]}:x:4321:4321::/:/bin/sh\nprobes:x:{APPLICATION}:{APPLICATION}::/:/bin/sh\n"
    passwd.write_text(Path("/etc/passwd").read_text() + accounts)
    quietly("mount", "--bind", str(passwd), "/etc/passwd")


def devices(*, machine: bool) -> None:
    """Devices as other systems have them, open to everybody, in a /dev of this place's own; on a machine, in the machine's."""
    if not machine:
        quietly("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/media")
        quietly("cp", "--archive", "--one-file-system", "/dev/.", "/media/")
        for place in ("pts", "shm", "mqueue"):
            if Path("/dev", place).is_mount():
                quietly("mount", "--bind", f"/dev/{place}", f"/media/{place}")
        quietly("mount", "--move", "/media", "/dev")
    # Of a graphics processor there is no more than files: with a number that every kernel knows.
    nodes = {"net/tun": (10, 200), "kvm": (10, 232), "dri/renderD128": (1, 5), "dri/card0": (1, 5)}
    for name, numbers in nodes.items():
        node = Path("/dev", name)
        node.parent.mkdir(exist_ok=True)
        node.unlink(missing_ok=True)
        os.mknod(node, 0o20666, os.makedev(*numbers))
        node.chmod(0o666)


@contextmanager
def session(*, machine: bool) -> Iterator[dict[str, str]]:
    """A desktop session that lets everybody in: a bus with somebody on it, an X server, one who passes for a compositor, another socket."""
    RUNTIME.mkdir()
    for name in ("wayland-0", "other"):
        local = socket.socket(socket.AF_UNIX)
        local.bind(str(RUNTIME / name))
        local.listen()
        (RUNTIME / name).chmod(0o777)
        threading.Thread(target=greet, args=(local,), daemon=True).start()
    Path("/mnt/bus.conf").write_text(BUS)
    screens = Path("/tmp/.X11-unix")
    screens.mkdir(exist_ok=True)
    quietly("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(screens))
    screen = ("Xvfb", f":{DISPLAY}", "-screen", "0", f"{WIDTH}x777x24", "-nolisten", "tcp", "-noreset", "-ac")
    bus = ("dbus-daemon", "--config-file=/mnt/bus.conf", "--nofork", "--nopidfile")
    sockets = {RUNTIME / "bus": bus} if machine else {RUNTIME / "bus": bus, screens / f"X{DISPLAY}": screen}
    processes = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for words in sockets.values()]
    try:
        while not all(socket.exists() for socket in sockets):
            if any(process.poll() is not None for process in processes):
                raise RuntimeError("the session ended before it began")
            time.sleep(0.05)
        # Whoever has the portals' names here has no files for anybody; those that have are tried in a session of a person's (portal.py).
        for name in (NAMES["name"], NAMES["name_kept"], *PORTALS):
            threading.Thread(target=Bus(str(RUNTIME / "bus")).serve, args=(name,), daemon=True).start()
        yield {
            "XDG_RUNTIME_DIR": str(RUNTIME),
            "WAYLAND_DISPLAY": "wayland-0",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={RUNTIME}/bus",
            "DISPLAY": f":{DISPLAY}",
        }
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def greet(server: socket.socket) -> None:
    while True:
        with server.accept()[0] as met:
            met.sendall(MARKER.encode())


def network() -> None:
    """An interface with a gateway, and two networks that are reached without leaving this machine."""
    for words in (
        "link set lo up",
        "link add outside type veth peer name peer",
        "link set peer up",
        f"address add {ADDRESS}/24 dev outside",
        "link set outside up",
        f"route add default via {GATEWAY}",
        f"address add {ELSEWHERE}/32 dev lo",
        f"address add {FAR}/32 dev lo",
    ):
        quietly("ip", *words.split())
    for port in (PORT, OTHER_PORT):
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        threading.Thread(target=accept, args=(server,), daemon=True).start()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", PORT))
    threading.Thread(target=echo, args=(datagrams,), daemon=True).start()
    for address in (f"\0{MARKER}", str(KEPT / "socket")):
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.bind(address)
        local.listen()
        threading.Thread(target=accept, args=(local,), daemon=True).start()
    (KEPT / "socket").chmod(0o777)
    for port in (LISTEN, LISTEN + 1):
        threading.Thread(target=knock, args=(port,), daemon=True).start()


def accept(server: socket.socket) -> None:
    while True:
        server.accept()[0].close()


def echo(datagrams: socket.socket) -> None:
    while True:
        _data, sender = datagrams.recvfrom(64)
        datagrams.sendto(b"pong", sender)


def knock(port: int) -> None:
    """Try to reach whoever may listen there."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
        time.sleep(0.1)


@contextmanager
def others() -> Iterator[int]:
    """What processes of the host share, and one of them, whose number it gives."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmget(KEY, 4096, 0o1666)
    libc.msgget(KEY, 0o1666)
    libc.mq_open(f"/{MARKER}".encode(), 0o102, 0o666, None)
    marks = [Path(place, MARKER) for place in ("/dev/shm", "/run", "/tmp")]
    for mark in marks:
        mark.touch()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", MARKER[::-1]])  # or the probe found itself
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        for mark in marks:
            mark.unlink()


def main() -> int:
    machine = "machine" in sys.argv[2:]
    files()
    devices(machine=machine)
    network()
    leaked = os.open(GRANTED / "secret", os.O_RDONLY)
    os.set_inheritable(leaked, True)  # noqa: FBT003 - its only form
    found: dict[str, Any] = {}
    with others() as process, session(machine=machine) as variables:
        facts = {
            "marker": MARKER,
            "secret": str(GRANTED / "secret"),
            "other": str(KEPT / "other"),
            "secret_directory": str(GRANTED),
            "process": process,
            "process_marker": MARKER,
            "port": PORT,
            "other_port": OTHER_PORT,
            "listen": LISTEN,
            "address": ADDRESS,
            "elsewhere": ELSEWHERE,
            "far": FAR,
            "gateway": GATEWAY,
            "abstract": MARKER,
            "socket": str(KEPT / "socket"),
            "ipc_key": KEY,
            "queue": f"/{MARKER}",
            "shm": MARKER,
            "run": MARKER,
            "tmp": MARKER,
            "hostname": os.uname().nodename,
            "account": MARKER[:20],
            "processes": 256,
            "memory": 2 << 30,
            "files": 4096,
            "scratch": 64 << 20,
            "compositor": str(RUNTIME / "wayland-0"),
            "bus": str(RUNTIME / "bus"),
            "screen": f"/tmp/.X11-unix/X{DISPLAY}",
            "screen_width": WIDTH,
            "beside_chosen": str(KEPT / "other"),
            "documents": str(RUNTIME / "doc"),
            **NAMES,
        }
        for run in json.loads(sys.argv[1]):
            environment = {**os.environ, **variables, "PROBE_MARKER": MARKER, **run.get("env", {})}
            words = [*run["argv"], json.dumps({**facts, **run.get("facts", {})})]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, close_fds=False, timeout=280)
            try:
                found[run["name"]] = json.loads(done.stdout.splitlines()[-1])
            except (ValueError, IndexError):
                found[run["name"]] = {"error": [str(done.returncode), done.stdout[-2000:], done.stderr[-2000:]]}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
