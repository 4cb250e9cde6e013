"""A person's desktop session with Debian's portals, in which whoever asks for a file is given one, and the probes run in it.

    portal.py RUNS      RUNS is JSON: [{"name", "argv"}]; the facts for probe.py are added to each argv as its last word.
                        Prints {"found": {name: what the probes found}, "chosen": what is in the file in the end, "beside": {name: whether
                        the file beside it is as it was}, "noted": who asked}.

Nobody is there to choose: the backend, which else shows a dialogue, is this program's. Wants to be root in a mount namespace of its own,
so that all of this ends with it. Source: xdg-desktop-portal, "Writing a new backend", org.freedesktop.impl.portal.FileChooser.
"""

import json
import os
import secrets
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from probe import Bus

UID = 54321
RUNTIME = Path(f"/run/user/{UID}")
HOME, DATA = Path("/mnt/home"), Path("/mnt/share")
CHOSEN, BESIDE = HOME / "files/chosen", HOME / "files/beside"
MARKER = f"marker-{secrets.token_hex(8)}"
BACKEND = "org.freedesktop.impl.portal.desktop.probes"
PATIENCE_S = 20
BUS = f"""<busconfig><type>session</type><listen>unix:path={RUNTIME}/bus</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": str(HOME),
    "XDG_RUNTIME_DIR": str(RUNTIME),
    "XDG_CURRENT_DESKTOP": "probes",
    "XDG_DATA_DIRS": f"{DATA}:/usr/share",
    "XDG_DESKTOP_PORTAL_DIR": str(DATA / "xdg-desktop-portal/portals"),
    "DBUS_SESSION_BUS_ADDRESS": f"unix:path={RUNTIME}/bus",
}
SERVICES = {
    "xdg-permission-store": "org.freedesktop.impl.portal.PermissionStore",
    "xdg-document-portal": "org.freedesktop.portal.Documents",
    "xdg-desktop-portal": "org.freedesktop.portal.Desktop",
}


def quietly(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def files() -> None:
    """A home, a runtime directory and an account of the person's; FUSE as other systems have it, open to everybody."""
    quietly("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt")
    passwd = Path("/mnt/passwd")
    passwd.write_text(f"{Path('/etc/passwd').read_text()}somebody:x:{UID}:{UID}::{HOME}:/bin/sh\n")
    quietly("mount", "--bind", str(passwd), "/etc/passwd")
    os.mknod("/mnt/fuse", 0o20666, os.makedev(10, 229))
    Path("/mnt/fuse").chmod(0o666)
    quietly("mount", "--bind", "/mnt/fuse", "/dev/fuse")
    RUNTIME.parent.mkdir(exist_ok=True)
    quietly("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(RUNTIME.parent))
    portals = DATA / "xdg-desktop-portal/portals"
    portals.mkdir(parents=True)
    (portals / "probes.portal").write_text(
        f"[portal]\nDBusName={BACKEND}\nInterfaces=org.freedesktop.impl.portal.FileChooser;\nUseIn=probes\n"
    )
    for place in (RUNTIME, CHOSEN.parent):
        place.mkdir(mode=0o700, parents=True)
    for file in (CHOSEN, BESIDE):
        file.write_text(f"{MARKER}\n")
    for place in (RUNTIME, HOME, CHOSEN.parent, CHOSEN, BESIDE):
        os.chown(place, UID, UID)
    Path("/mnt/bus.conf").write_text(BUS)


def choose(bus: Bus) -> None:
    """Be the backend: whoever asks for a file gets the same one."""
    bus.ask("RequestName", BACKEND, 0)
    bus.socket.settimeout(None)
    uri = f"file://{CHOSEN}".encode()
    uris = struct.pack("<I", len(uri)) + uri + b"\0"
    # 0 for a choice, and {"uris": [uri]}.
    entry = struct.pack("<I4sx", 4, b"uris") + b"\2as\0" + bytes(3) + struct.pack("<I", len(uris)) + uris
    body = struct.pack("<II", 0, len(entry)) + entry
    while True:
        kind, fields, _body = bus.receive()
        if kind == Bus.CALL:
            answer: dict[int, tuple[str, str | int]] = {Bus.REPLY_TO: ("u", bus.last), Bus.DESTINATION: fields[Bus.SENDER]}
            if fields[Bus.MEMBER] == ("s", "OpenFile"):
                bus.send(Bus.RETURN, answer | {Bus.SIGNATURE: ("g", "ua{sv}")}, body)
            else:  # its properties, of which it has none
                bus.send(Bus.ERROR, answer | {Bus.ERROR_NAME: ("s", "org.freedesktop.DBus.Error.UnknownMethod")})


def is_there(bus: Bus, name: str) -> bool:
    return bus.ask("GetNameOwner", name)[0] == Bus.RETURN


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the session did not begin")
        time.sleep(0.05)


@contextmanager
def session() -> Iterator[None]:
    """The bus and the portals, as the person."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> None:
        nowhere = subprocess.DEVNULL
        person = subprocess.Popen(words, env=ENVIRONMENT, user=UID, group=UID, extra_groups=[], stdout=nowhere, stderr=nowhere)
        processes.append(person)

    try:
        begin("dbus-daemon", "--config-file=/mnt/bus.conf", "--nofork", "--nopidfile")
        wait_for((RUNTIME / "bus").exists)
        threading.Thread(target=choose, args=(Bus(str(RUNTIME / "bus")),), daemon=True).start()
        bus = Bus(str(RUNTIME / "bus"))
        for service, name in SERVICES.items():
            begin(f"/usr/libexec/{service}")
            wait_for(partial(is_there, bus, name))
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def main() -> int:
    files()
    found: dict[str, object] = {}
    beside: dict[str, bool] = {}
    facts = {
        "marker": MARKER,
        "beside_chosen": str(BESIDE),
        "documents": str(RUNTIME / "doc"),
        "bus": str(RUNTIME / "bus"),
        "compositor": str(RUNTIME / "wayland-0"),
        "name_kept": BACKEND,
    }
    with session():
        for run in json.loads(sys.argv[1]):
            words = [*run["argv"], json.dumps({**facts, "only": run["only"]})]
            done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=280)
            try:
                found[run["name"]] = json.loads(done.stdout.splitlines()[-1])
            except (ValueError, IndexError):
                found[run["name"]] = {"error": [str(done.returncode), done.stdout[-2000:], done.stderr[-2000:]]}
            beside[run["name"]] = BESIDE.read_text() == f"{MARKER}\n"
        noted = {str(file.relative_to(RUNTIME)): json.loads(file.read_text()) for file in RUNTIME.glob(".flatpak/*/*.json")}
    sys.stdout.write(json.dumps({"found": found, "chosen": CHOSEN.read_text(), "beside": beside, "noted": noted}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
