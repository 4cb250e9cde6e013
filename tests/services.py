"""A systemd that looks after nothing but one application's services, and versions of that, for as long as a test lasts.

It is a user's manager with a search path of its own, in control groups of its own: no unit of this machine is in its sight.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from host_samples import tree_over
from sandboxes import WITH_TUNNEL
from store_samples import manifest_of
from tool import ROOT

from obelisk.events import Event
from obelisk.model.application import Application, Service
from obelisk.model.image import PartKind
from obelisk.model.policy import Listen, Policy, policy
from obelisk.sandbox.health import wait_until_healthy
from obelisk.sandbox.installed import Installation, Made, Places
from obelisk.sandbox.machine import this_machine
from obelisk.sandbox.network import LOOPBACK
from obelisk.sandbox.plan import Place, compile_plan, data_directory
from obelisk.sandbox.rehearsal import Stage
from obelisk.sandbox.units import Seat, guard_of, program, texts
from obelisk.store import StoredImage
from obelisk.system import systemctl
from obelisk.system.confine import Owner
from obelisk.system.ports import free_for
from obelisk.system.systemctl import Systemctl

PORT = 18457
DATA = "/var/lib/shop"
OWNER = Owner(61203, 61203)
_TARGETS = ("basic", "default", "exit", "shutdown", "sockets", "timers", "paths")
_SYSTEMD = Path("/lib/systemd/systemd")
# Answers with its version and how many requests the data counts; ends in order, after the request that it is at.
_SERVER = r"""
import json, os, signal, socket, sys, time
version, manner = sys.argv[1:]
if manner == "falls":
    sys.exit(3)
ending = []
signal.signal(signal.SIGTERM, lambda *_given: ending.append(1))
file = "/var/lib/shop/count"
count = int(open(file).read()) if os.path.exists(file) else 0
listener = socket.socket(fileno=3)
listener.settimeout(0.05)
while not ending:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        continue
    connection.settimeout(5)
    connection.recv(1000)
    count += 1
    open(file, "w").write(str(count))
    status = "500 No" if manner == "ails" else "200 OK"
    connection.sendall(f"HTTP/1.0 {status}\r\n\r\n{version}".encode())
    connection.close()
open("/var/lib/shop/ended", "a").write(version)
"""


def version(top: Path, number: str, *, manner: str = "serves", steady_s: int = 1, keeps: bool = True) -> StoredImage:
    """An image in somebody's store; what it does stands in its root. What it counts it `keeps`, or has in memory."""
    content = json.dumps({"version": number, "manner": manner, "steady_s": steady_s, "keeps": keeps}).encode().ljust(4096, b" ") * 2
    tree, root_hash = tree_over(content)
    base = manifest_of(content, version=number)
    manifest = replace(base, root_hash=root_hash)
    directory = top / "store" / number
    if not directory.exists():
        directory.mkdir(parents=True)
        for part in manifest.parts:
            (directory / part.file).write_bytes(content if part.kind is PartKind.ROOT else b"uki")
        (directory / "tree").write_bytes(tree)
        (directory / "manifest.json").write_bytes(manifest.to_bytes())
    return StoredImage(manifest.id, manifest, directory, 0)


def said_by(image: StoredImage, port: int = PORT) -> tuple[Application, Policy]:
    """What an image says of itself, with its health at that port, and what it is granted."""
    said = json.loads(image.part_path(PartKind.ROOT).read_bytes()[:4096])
    service = Service(sockets=True, health=f"http://localhost:{port}/", health_s=5, steady_s=said["steady_s"], stop_s=5)
    command = ("/usr/bin/python3", "-I", "-c", _SERVER, said["version"], said["manner"])
    kinds: dict[str, Any] = {"data" if said["keeps"] else "scratch": (DATA,)}
    return Application(command, service=service, **kinds), policy([Listen(PORT)])


def installation(top: Path) -> Installation:
    """The application in `top`."""
    systemctl._RUNS = top
    systemd = Systemctl(user=True)
    here = f"import sys; sys.path[:0] = {[str(ROOT / 'tests'), str(ROOT / 'tests/unit')]!r}; from pathlib import Path; import services"
    prepare = f"{here}; services.installation(Path({str(top)!r})).prepare()"
    words = ("/usr/bin/env", f"XDG_RUNTIME_DIR={top}/runtime", sys.executable, "-I", "-c", prepare)
    seat = Seat("shop", top / "links/shop/start", top / "links/shop.moving", top / "data/shop", Path("/root"), by_root=True, obelisk=words)

    def make(image: StoredImage, *, in_use: bool = False) -> Made:  # noqa: ARG001 - its data has no bound
        return made(image, seat, top / "data", {})

    def beside(image: StoredImage, at: Seat, data: Path) -> Made | None:
        return made(image, at, data, free_for([PORT], LOOPBACK))

    def made(image: StoredImage, at: Seat, data: Path, ports: dict[int, int]) -> Made:
        app, granted = said_by(image, ports.get(PORT, PORT))
        plan_at = top / "plans" / f"{image.id}{'-next' if ports else ''}"
        place = Place("shop", top / "root", plan_at, data / "shop", Path("/root"), OWNER)
        kept = data_directory(data / "shop", DATA)
        if app.data and not kept.exists():
            kept.mkdir(parents=True)
            os.chown(kept, OWNER.uid, OWNER.gid)
        (plan_at / "stage").mkdir(parents=True, exist_ok=True)
        plan = compile_plan(app, granted, place, this_machine(), guard=guard_of(app, granted))
        for name, content in (("confine", plan.confine), ("start", plan.start)):
            (plan_at / f"{name}.new").write_bytes(content)
            (plan_at / f"{name}.new").chmod(0o755)
            (plan_at / f"{name}.new").rename(plan_at / name)
        return Made(plan_at, texts(at, image.manifest.label, app, granted, elsewhere=ports), program(seat, granted), app.service)

    def healthy(made: Made, at: Seat = seat) -> None:
        assert made.service is not None
        wait_until_healthy(made.service, lambda: systemd.look(at.service))

    places = Places(top / "installed/shop", top / "units", top / "bin", top / "entries")
    stage = Stage(seat, top / "runtime-units", systemd, said_by, beside, healthy)
    return Installation(seat, places, systemd, make=make, clear=lambda _image: None, healthy=healthy, rehearsals=stage, sink=_nothing)


@contextmanager
def networked(top: Path, port: int, at: int) -> Iterator[None]:
    """A service with a network of its own, by pasta, that tells its rights at a port; its unit is what an installation writes.

    Where the machine has another port for it, that is one of the loopback.
    """
    greets = "import socket, sys\ns = socket.create_server(('0.0.0.0', int(sys.argv[1])))\n"
    greets += "told = [line for line in open('/proc/self/status') if line.startswith('Cap')]\n"
    greets += "while True: s.accept()[0].sendall(''.join(told).encode())"
    app = Application(("/usr/bin/python3", "-I", "-c", greets, str(port)), service=Service())
    granted = policy([Listen(port)])
    moved = ((port, at),) if port != at else ()
    place = Place("greeter", top / "root", top / "plans/greeter", top / "data/greeter", Path("/root"), OWNER, elsewhere=moved)
    (place.plan / "stage").mkdir(parents=True)
    # Whether this machine can give a network is the tunnel's business, which the manager brings.
    plan = compile_plan(app, granted, place, replace(this_machine(), network=""), guard=guard_of(app, granted))
    for name, content in (("confine", plan.confine), ("start", plan.start), ("network.nft", plan.rules.encode())):
        (place.plan / name).write_bytes(content)
        (place.plan / name).chmod(0o755)
    seat = Seat("greeter", place.plan / "start", top / "greeter.moving", place.data, Path("/root"), by_root=True, obelisk=("/bin/false",))
    for name, text in texts(seat, "greeter_1", app, granted).items():
        (top / "units" / name).write_text(text)
    systemctl._RUNS = top
    systemd = Systemctl(user=True)
    systemd.reload()
    systemd.start(seat.service)
    try:
        yield
    finally:
        systemd.stop(seat.service)


def _nothing(_event: Event) -> None:
    return


@contextmanager
def systemd_of_its_own() -> Iterator[Path]:
    """A directory in which an application can be installed, with a systemd that runs it."""
    top = Path(tempfile.mkdtemp(prefix="obelisk-test-", dir="/run"))
    top.chmod(0o755)
    for name in ("runtime", "units", "root/var/lib/shop", "root/var/tmp", "root/opt", "root/srv", "data/shop"):
        (top / name).mkdir(parents=True)
    for name in ("usr", "etc"):
        (top / "root" / name).symlink_to(f"/{name}")
    for target in _TARGETS:
        (top / f"units/{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    groups = [each / top.name for each in (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")) if each.is_dir()]
    groups = groups or [Path("/sys/fs/cgroup") / top.name]
    for group in groups:
        group.mkdir()
    before = dict(os.environ)
    os.environ |= {"XDG_RUNTIME_DIR": f"{top}/runtime", "HOME": str(top), "SYSTEMD_UNIT_PATH": f"{top}/runtime-units:{top}/units"}
    os.environ.pop("DBUS_SESSION_BUS_ADDRESS", None)
    join = "".join(f"echo $$ >{group}/cgroup.procs; " for group in groups)
    # What a system's own manager has made. Where /run is no mount, services are given an empty one.
    booted = "mount --rbind /run /run; mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd; "
    booted += "mkdir -p /run/systemd/system /run/systemd/inaccessible/dir; "
    manager = subprocess.Popen(
        [
            *WITH_TUNNEL,
            "sh",
            "-euc",
            f'{join}{booted}exec "$0" --user --unit=basic.target --log-target=console 2>"$1"',
            _SYSTEMD,
            top / "log",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not (top / "runtime/systemd/private").exists():
            assert manager.poll() is None, (top / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield top
    finally:
        manager.kill()
        manager.wait()
        os.environ.clear()
        os.environ.update(before)
        for group in groups:
            _empty(group)
        shutil.rmtree(top)


def _empty(group: Path) -> None:
    """End what is left in a control group, and remove it."""
    deadline = time.monotonic() + 20
    while group.exists():
        for each in (*sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True), group):
            with suppress(OSError):
                for process in (each / "cgroup.procs").read_text().split():
                    os.kill(int(process), 9)
                each.rmdir()
        assert time.monotonic() < deadline
        time.sleep(0.05)
