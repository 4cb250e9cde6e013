"""What tests and benchmarks try in a booted machine by tests/probes/machine.py: what it is given, and what it says."""

import json
import shlex
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from format_samples import subject
from tool import ROOT, Tool

from obelisk.model.application import Application
from obelisk.model.policy import Policy
from obelisk.sandbox.formats import write
from obelisk.sandbox.formats.foreign import Root
from obelisk.system import qemu
from obelisk.system.files import clone_or_copy

PROBES, IMAGE = "/run/probes", "/var/tmp/image"  # noqa: S108 - in the machine
_FETCH = "import os, urllib.request as u; open('/run/machine.py', 'wb').write(u.urlopen(os.environ['SITE'] + 'machine.py').read())"


@dataclass(frozen=True)
class Site:
    """Files that a machine fetches: the probes, our own source, an application's image."""

    place: Path
    root: Root

    @classmethod
    def of(cls, place: Path, app: Tool) -> "Site":
        """A new one in the existing, empty directory `place`."""
        image = app.store / "images" / json.loads(app.run("show", str(app.spec), "--json"))["id"]
        clone_or_copy(ROOT / "tests/probes/machine.py", place / "machine.py")
        subprocess.run(["tar", "-C", image, "-cf", place / "image.tar", "."], check=True)
        made = cls(place, Root(Path(f"{IMAGE}/root.erofs"), Path(f"{IMAGE}/root.verity"), app.manifest()["root_hash"]))
        packed = ["tar", "--exclude=__pycache__", "--exclude=guest", "-C", str(ROOT / "src"), "-cf", str(place / "source.tar"), "obelisk"]
        subprocess.run(packed, check=True)
        subprocess.run(["tar", "--exclude=__pycache__", "-C", ROOT / "tests/probes", "-cf", place / "probes.tar", "."], check=True)
        return made

    def add_unit(self, name: str, app: Application, held: Policy) -> str:
        """Have it carry the exported unit of an application, whose root is the image; where it is then."""
        file = self.place / f"{name}.service"
        file.write_text(write(replace(subject(held, app), root=self.root), "systemd").text)
        subprocess.run(["tar", "-C", self.place, "-rf", self.place / "probes.tar", file.name], check=True)
        return f"{PROBES}/{file.name}"

    def try_in(self, machine: Tool, *commands: tuple[str, ...]) -> list[str]:
        """The last lines that a machine of that image says, one for each of the commands to machine.py, given in turn."""
        words = (f"python3 /run/machine.py {shlex.join(command)}" for command in commands)
        script = f"export SITE={qemu.SITE}; python3 -c {shlex.quote(_FETCH)}; {'; '.join(words)}"
        said = machine.run("run", str(machine.spec), "--site", str(self.place), "--command", script)
        return said.splitlines()[-len(commands) :]
