"""Applications for tests: specs beside the workshop's, and where what runs lies for as long as a test does."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tool import ROOT, Tool

from obelisk.model.application import Application
from obelisk.model.policy import Policy
from obelisk.sandbox.machine import this_machine
from obelisk.sandbox.plan import IDENTITY, Place, compile_plan
from obelisk.system.confine import Owner

ROOT_USER = Owner(0, 0)
_TOPS = ("usr", "etc", "opt", "srv", "var")
PRIVATE = ("unshare", "--mount", "--propagation", "private")
"""What a command mounts goes with it."""

# A tunnel as other systems have it: open to everybody.
_TUNNEL = "mknod /run/tun-$$ c 10 200; chmod 666 /run/tun-$$; mount --bind /run/tun-$$ /dev/net/tun; rm /run/tun-$$; exec"
WITH_TUNNEL = (*PRIVATE, "sh", "-euc", f'{_TUNNEL} "$@"', "sh")


LOOKING = r"""
import ctypes, os, resource, socket, sys, threading
def tried(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
libc = ctypes.CDLL(None, use_errno=True)
def called(number, *arguments):
    return 0 if libc.syscall(number, *map(ctypes.c_ulong, arguments)) >= 0 else ctypes.get_errno()
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
for place in sys.argv[2:]:
    open(f"{place}/program", "w").write("#!/bin/sh\n")
    os.chmod(f"{place}/program", 0o755)
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
print(repr({
    "user": (os.getuid(), os.getgid()),
    "rights": {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
    "new": (status["NoNewPrivs"].strip(), status["Seccomp"].strip()),
    "name": (socket.gethostname(), os.getcwd(), os.environ["MODE"], sys.argv[1]),
    "root": {tried(lambda: open(f"{place}/x", "w")) for place in ("", "/mnt/read")},
    "own": {tried(lambda: open(f"{place}/x", "w")) for place in sys.argv[2:]},
    "runs": {tried(lambda: os.execv(f"{place}/program", ["x"])) for place in sys.argv[2:]},
    "read": open("/mnt/read/file").read(),
    "inet": tried(lambda: socket.socket(socket.AF_INET)),
    "calls": [called(101, 0), called(272, 0x10000000), called(16, 0, 0x5412 | 1 << 32, 0), called(9, 0, 4096, 7, 0x22, 2**64 - 1, 0)],
    "limits": [resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE)],
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "threads": not thread.is_alive(),
}))
"""
"""A Python program that tells what it may do; its words are one to be repeated, and the directories that ought to be its own."""


@contextmanager
def places() -> Iterator[Path]:
    """A directory that every user can reach, which test directories are not; $OBELISK_RUN and $OBELISK_DATA are in it."""
    place = Path(tempfile.mkdtemp(prefix="obelisk-test-", dir="/run"))
    place.chmod(0o755)
    before = dict(os.environ)
    os.environ |= {"OBELISK_RUN": str(place / "run"), "OBELISK_DATA": str(place / "data"), "XDG_CONFIG_HOME": str(place / "config")}
    try:
        yield place
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(place)


def application(applications: Tool, name: str, text: str, files: dict[str, str] | None = None) -> Tool:
    """An application with this spec, built in the store of those; one with that name before has had the same packages."""
    spec = applications.home / name
    spec.mkdir(exist_ok=True)
    (spec / "obelisk.toml").write_text(f'name = "{name}"\nrole = "app"\n{text}')
    for path, content in (files or {}).items():
        (spec / path).parent.mkdir(parents=True, exist_ok=True)
        (spec / path).write_text(content)
        (spec / path).chmod(0o755 if content.startswith("#!") else 0o644)
    tool = replace(applications, spec=spec, prefix=PRIVATE)
    tool.build()
    return tool


def example(applications: Tool, name: str) -> Tool:
    """An example of an application, built in the store of those."""
    spec = applications.home / name
    shutil.copytree(ROOT / "examples/apps" / name, spec, dirs_exist_ok=True)
    tool = replace(applications, spec=spec, prefix=PRIVATE)
    tool.build()
    return tool


@dataclass(frozen=True)
class Bare:
    """A sandbox over this machine's own programs, without an image, below `place`; started by `owner`."""

    place: Path
    owner: Owner = ROOT_USER

    def __post_init__(self) -> None:
        for name in ("plan/stage", *(f"root/{top}" for top in _TOPS)):
            (self.place / name).mkdir(parents=True, exist_ok=True)

    @property
    def plan(self) -> Path:
        """Where its programs are."""
        return self.place / "plan"

    def start(self, app: Application, held: Policy, **more: Any) -> list[str]:  # noqa: ANN401 - of a place's own
        """Words that start it, in a mount namespace of their own; `more` is said of its place."""
        rights = Owner(61200, 61200) if self.owner == ROOT_USER else self.owner
        seat = Place("bare", self.place / "root", self.plan, self.place / "data", Path("/home/jo"), rights, **more)
        # The tunnel that a network takes is made by who starts it, where it does.
        compiled = compile_plan(app, held, seat, replace(this_machine(), owner=self.owner, network=""))
        files = {"start": compiled.start, "confine": compiled.confine, "network.nft": compiled.rules.encode(), IDENTITY: compiled.identity}
        for name, content in (files | dict(compiled.beside)).items():
            (self.plan / name).write_bytes(content)
            (self.plan / name).chmod(0o755)
        binds = "; ".join(f"mount --bind /{top} {self.place}/root/{top}" for top in _TOPS)
        user = "" if self.owner == ROOT_USER else f"setpriv --reuid={self.owner.uid} --regid={self.owner.gid} --clear-groups "
        return ["sh", "-euc", f'{binds}; exec {user}{self.plan}/start "$@"', "sh"]


def told(place: Path, name: str, text: str) -> None:
    """What the operator says of an application, instead of what was said before."""
    file = place / "config/obelisk/apps" / f"{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
