"""The part of Obelisk that goes into every image: `obelisk host`, as the very files that this installation runs."""

from collections.abc import Iterator
from pathlib import Path

from obelisk.model.spec import Spec

PACKAGE = Path(__file__).parents[1]
_MODULES = (
    "__init__.py",
    "errors.py",
    "events.py",
    "cli/__init__.py",
    "cli/hosting.py",
    "cli/main.py",
    "cli/terminal.py",
    "host/*.py",
    "model/*.py",
    "system/__init__.py",
    "system/blocks.py",
    "system/btrfs.py",
    "system/command.py",
    "system/console.py",
    "system/efivars.py",
    "system/files.py",
    "system/filesystem.py",
    "system/forked.py",
    "system/mounts.py",
    "system/overwriting.py",
    "system/power.py",
    "system/sbverify.py",
    "system/sfdisk.py",
)


def modules() -> Iterator[Path]:
    """The files of the part, relative to `PACKAGE`, sorted."""
    for pattern in _MODULES:
        yield from (path.relative_to(PACKAGE) for path in sorted(PACKAGE.glob(pattern)))


def settings(spec: Spec) -> str:
    """What /usr/lib/obelisk/host.conf says; see `obelisk.host.settings`."""
    upgrade = spec.upgrade
    numbers = f"soak={upgrade.soak_s}\ndeadline={upgrade.deadline_s}\ntries={upgrade.tries}\nsnapshots={spec.state.snapshots}\n"
    return f"{numbers}state_options={','.join(('noatime', *spec.hardening.state_mounts))}\n"
