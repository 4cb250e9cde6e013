"""The part of Obelisk that images carry stands on its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from obelisk.build import hostpart


@pytest.fixture
def part(tmp_path: Path) -> Path:
    for module in hostpart.modules():
        target = tmp_path / "obelisk" / module
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(hostpart.PACKAGE / module, target)
    return tmp_path


def test_every_module_of_the_part_can_be_imported_without_anything_else(part: Path) -> None:
    names = [".".join(("obelisk", *module.with_suffix("").parts)).removesuffix(".__init__") for module in hostpart.modules()]
    program = f"import sys; sys.path.insert(0, {str(part)!r})\n" + "".join(f"import {name}\n" for name in names)
    subprocess.run([sys.executable, "-IS", "-c", program], check=True)


def test_its_command_line_offers_what_a_host_can_do(part: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(part)!r}); from obelisk.cli import main; main(['--help'])"
    said = subprocess.run([sys.executable, "-IS", "-c", program], check=False, capture_output=True, text=True).stdout
    assert "host " in said
    assert "build " not in said


def test_what_it_is_in_git_is_what_it_is_in_the_list() -> None:
    listed = {str(module) for module in hostpart.modules()}
    assert {"cli/hosting.py", "host/upgrade.py", "model/host.py", "system/blocks.py"} <= listed
    assert not any(name.startswith(("build/", "spec/", "store/")) for name in listed)
