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
from obelisk.sandbox.plan import Place, compile_plan
from obelisk.system.confine import Owner

ROOT_USER = Owner(0, 0)
_TOPS = ("usr", "etc", "opt", "srv", "var")
PRIVATE = ("unshare", "--mount", "--propagation", "private")
"""What a command mounts goes with it."""

# A tunnel as other systems have it: open to everybody.
_TUNNEL = "mknod /run/tun-$$ c 10 200; chmod 666 /run/tun-$$; mount --bind /run/tun-$$ /dev/net/tun; rm /run/tun-$$; exec"
WITH_TUNNEL = (*PRIVATE, "sh", "-euc", f'{_TUNNEL} "$@"', "sh")


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
    """An application with this spec, built in the store of those."""
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
        for name, content in (("start", compiled.start), ("confine", compiled.confine), ("network.nft", compiled.rules.encode())):
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
