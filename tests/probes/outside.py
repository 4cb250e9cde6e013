"""A host with everything on it that an application should not reach, and the probes run on it under one confinement after the other.

    outside.py RUNS        RUNS is JSON: [{"name", "argv", "env"}]; the facts for probe.py are added to each argv as its last word.
                        Prints {name: what the probes found}.

Wants to be root in mount, network, IPC and host name namespaces of its own, so that all of this ends with it:
`unshare --mount --net --ipc --uts --propagation private python3 outside.py RUNS`. Probes that succeed do what they try.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKER = f"marker-{secrets.token_hex(8)}"
GRANTED, KEPT = Path("/mnt/granted"), Path("/mnt/kept")
PORT, OTHER_PORT, LISTEN = 7301, 7302, 7401
ADDRESS, GATEWAY, ELSEWHERE, FAR = "10.99.0.2", "10.99.0.1", "10.98.0.1", "10.97.0.1"
KEY = 0x0B1E


def quietly(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def files() -> None:
    """Directories in which nothing but confinement keeps anybody from anything; an account; a tunnel as other systems have it."""
    quietly("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt")
    for place, name in ((GRANTED, "secret"), (KEPT, "other")):
        place.mkdir()
        (place / name).write_text(MARKER)
        (place / name).chmod(0o666)
        place.chmod(0o777)
    passwd = Path("/mnt/passwd")
    passwd.write_text(Path("/etc/passwd").read_text() + f"{MARKER[:20]}:x:4321:4321::/:/bin/sh\n")
    quietly("mount", "--bind", str(passwd), "/etc/passwd")
    os.mknod("/mnt/tun", 0o20666, os.makedev(10, 200))
    Path("/mnt/tun").chmod(0o666)
    quietly("mount", "--bind", "/mnt/tun", "/dev/net/tun")
    os.mknod("/mnt/kvm", 0o20666, os.makedev(10, 232))
    Path("/mnt/kvm").chmod(0o666)
    quietly("mount", "--bind", "/mnt/kvm", "/dev/kvm")


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
    files()
    network()
    leaked = os.open(GRANTED / "secret", os.O_RDONLY)
    os.set_inheritable(leaked, True)  # noqa: FBT003 - its only form
    found: dict[str, Any] = {}
    with others() as process:
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
        }
        for run in json.loads(sys.argv[1]):
            environment = {**os.environ, "PROBE_MARKER": MARKER, **run.get("env", {})}
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
