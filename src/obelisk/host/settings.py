"""What the running image's spec says about upgrades and state; sealed in the image as /usr/lib/obelisk/host.conf.

One KEY=NUMBER a line, so that the shell reads it too; `state_options` and `state_encryption`, which are `start`'s alone.
"""

from dataclasses import dataclass
from pathlib import Path

from obelisk.model.state import FIRST

FILE = Path("/usr/lib/obelisk/host.conf")


@dataclass(frozen=True, slots=True)
class Settings:
    """How trials go.

    `soak_s`: how long checks have to stay passed on a trial boot; `deadline_s`: when a trial boot is restarted; `tries`: boots of a
    trial; `snapshots`: automatic ones that are kept; `state_version`: of the state that the image works with.
    """

    soak_s: int = 30
    deadline_s: int = 900
    tries: int = 3
    snapshots: int = 3
    state_version: int = FIRST


def values(file: Path) -> dict[str, str]:
    """What an image's file of settings says, by its keys."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)


def read(file: Path = FILE) -> Settings:
    """The settings of the running image."""
    found = values(file)
    soak, deadline, tries, kept, version = (int(found[key]) for key in ("soak", "deadline", "tries", "snapshots", "state_version"))
    return Settings(soak, deadline, tries, kept, version)
