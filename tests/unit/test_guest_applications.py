"""What shows systemd the units of installed applications on a host."""

import os
import subprocess
from pathlib import Path

import pytest

from obelisk.build.hostpart import PACKAGE

GENERATOR = PACKAGE / "build/guest/applications/usr/lib/systemd/system-generators/obelisk-applications"


def shown(tmp_path: Path, units: dict[str, str]) -> dict[str, str]:
    """What the generator writes for these unit files; links as their targets."""
    there, early = tmp_path / "units", tmp_path / "generated"
    there.mkdir()
    early.mkdir()
    for name, text in units.items():
        (there / name).write_text(text)
    program = tmp_path / "generator"
    program.write_text(GENERATOR.read_text().replace("/var/lib/obelisk/units", str(there)))
    subprocess.run(["sh", program, early, tmp_path / "normal", tmp_path / "late"], check=True)
    found = {}
    for directory, _, files in os.walk(early):
        for name in files:
            path = Path(directory, name)
            found[str(path.relative_to(early))] = str(path.readlink()) if path.is_symlink() else path.read_text()
    return found


def test_services_and_sockets_start_with_the_machine(tmp_path: Path) -> None:
    units = {
        "obelisk-app-shop.service": "[Service]\n",
        "obelisk-app-shop.socket": "[Socket]\n",
        ".obelisk-app-x.service.1.tmp": "",
        "y.service": "",
    }
    assert shown(tmp_path, units) == {
        "obelisk-app-shop.service": "[Service]\n",
        "obelisk-app-shop.socket": "[Socket]\n",
        "multi-user.target.wants/obelisk-app-shop.service": "../obelisk-app-shop.service",
        "sockets.target.wants/obelisk-app-shop.socket": "../obelisk-app-shop.socket",
    }


def test_a_host_without_applications_is_shown_nothing(tmp_path: Path) -> None:
    assert shown(tmp_path, {}) == {}


@pytest.mark.parametrize("file", [GENERATOR])
def test_it_can_be_executed(file: Path) -> None:
    assert file.stat().st_mode & 0o111 == 0o111
