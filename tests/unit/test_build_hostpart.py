"""The part of Obelisk that images carry stands on its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.build import hostpart
from obelisk.model.spec import Policy, State


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


def test_what_only_a_rehearsal_needs_is_not_loaded_without_one(part: Path) -> None:
    loaded = ["upgrade", "migration", "settle", "status", "rollback"]
    program = (
        f"import sys; sys.path.insert(0, {str(part)!r}); import obelisk.cli.hosting\n"
        + "".join(f"import obelisk.host.{name}\n" for name in loaded)
        + "assert not {'obelisk.host.rehearsal', 'obelisk.system.qemu', 'asyncio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-IS", "-c", program], check=True)


def test_an_upgrade_can_be_rehearsed(part: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(part)!r}); from obelisk.cli import main; main(['host', 'upgrade', '--help'])"
    said = subprocess.run([sys.executable, "-IS", "-c", program], check=False, capture_output=True, text=True).stdout
    assert "--rehearse" in said


def test_what_it_is_in_git_is_what_it_is_in_the_list() -> None:
    listed = {str(module) for module in hostpart.modules()}
    assert {"cli/hosting.py", "host/upgrade.py", "model/host.py", "system/blocks.py"} <= listed
    assert not any(name.startswith(("build/", "spec/", "store/")) for name in listed)


def test_all_state_is_kept_without_a_list() -> None:
    assert hostpart.kept(State(declare=("/var/lib/shop",))) == ()
    assert hostpart.mounts(State(declare=("/var/lib/shop",)), ("nodev",)) == ""


def test_memory_comes_first_and_a_place_that_is_kept_has_none() -> None:
    lines = hostpart.mounts(State(policy=Policy.DECLARED, declare=("/home", "/var/lib/my shop")), ("nodev", "nosuid")).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("tmpfs")] == ["/var", "/root"]
    assert [line.split()[1] for line in lines[2:]] == [
        *("/home", "/var/lib/my\\040shop", "/var/lib/obelisk", "/var/lib/systemd", "/var/log/journal")
    ]
    assert lines[3].split()[0] == "/run/obelisk/state/var/lib/my\\040shop"


PATHS = st.lists(st.lists(st.sampled_from(["a", "ab", "b", "lib", "obelisk"]), min_size=1, max_size=4).map(lambda p: "/var/" + "/".join(p)))


@given(PATHS)
def test_everything_declared_is_kept_once(paths: list[str]) -> None:
    found = hostpart.kept(State(policy=Policy.DECLARED, declare=tuple(paths)))
    for path in (*paths, "/var/lib/obelisk"):
        assert sum(path == place or path.startswith(f"{place}/") for place in found) == 1
