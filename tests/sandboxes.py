"""Applications for tests: specs beside the workshop's, and where what runs lies for as long as a test does."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tool import ROOT, Tool

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


def told(place: Path, name: str, text: str) -> None:
    """What the operator says of an application, instead of what was said before."""
    file = place / "config/obelisk/apps" / f"{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
