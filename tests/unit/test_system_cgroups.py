"""Control groups: by whom they are made on a machine, what is written for one, and how a start gets into it."""

from pathlib import Path

import pytest

from obelisk.errors import MissingFeatureError
from obelisk.system import cgroups
from obelisk.system.cgroups import Bounds, Way
from obelisk.system.confine import Owner
from obelisk.system.program import text

ROOT, JO = Owner(0, 0), Owner(1000, 1000)
ALL = "cpuset cpu io memory hugetlb pids"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A tree of groups that looks like the kernel's, at its root."""
    tree = tmp_path / "cgroup"
    tree.mkdir()
    (tree / "cgroup.controllers").write_text(ALL)
    (tree / "cgroup.subtree_control").write_text("")
    return tree


def with_systemd(tmp_path: Path) -> Path:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path / "run"


def test_without_systemd_root_makes_groups_and_nobody_else(top: Path, tmp_path: Path) -> None:
    assert cgroups.here(ROOT, top=top, run_directory=tmp_path).way is Way.DIRECT
    other = cgroups.here(JO, top=top, run_directory=tmp_path)
    assert (other.way, "root makes" in other.fault) == (Way.NONE, True)


def test_below_the_root_of_all_groups_controllers_have_to_be_enabled_already(top: Path, tmp_path: Path) -> None:
    (top / "cgroup.type").write_text("domain")
    assert "enable cpu memory pids" in cgroups.here(ROOT, top=top, run_directory=tmp_path).fault
    (top / "cgroup.subtree_control").write_text("cpu memory pids")
    assert cgroups.here(ROOT, top=top, run_directory=tmp_path).way is Way.DIRECT


def test_of_the_older_version_of_groups_nothing_is_made(top: Path, tmp_path: Path) -> None:
    (top / "cgroup.controllers").write_text("hugetlb")
    assert "version 2" in cgroups.here(ROOT, top=top, run_directory=tmp_path).fault
    assert cgroups.here(ROOT, top=tmp_path / "nothing", run_directory=tmp_path).way is Way.NONE


def test_under_systemd_its_managers_make_them_for_a_user_where_it_is_delegated(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_systemd(tmp_path)
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\necho 'systemd 257 (257.9-1~deb13u1)'\n")
    program.chmod(0o755)
    monkeypatch.setattr(cgroups, "find_program", lambda _name: program)
    assert cgroups.here(ROOT, top=top, run_directory=run) == cgroups.Here(Way.SYSTEM, program=str(program), ends_all=True)
    program.write_text("#!/bin/sh\necho 'systemd 252 (252.39-1~deb12u1)'\n")
    assert not cgroups.here(ROOT, top=top, run_directory=run).ends_all
    assert "Delegate=cpu memory pids" in cgroups.here(JO, top=top, run_directory=run).fault
    manager = top / "user.slice/user-1000.slice/user@1000.service"
    manager.mkdir(parents=True)
    (manager / "cgroup.controllers").write_text("memory pids")
    assert cgroups.here(JO, top=top, run_directory=run).way is Way.NONE
    (manager / "cgroup.controllers").write_text("cpu memory pids")
    assert cgroups.here(JO, top=top, run_directory=run).way is Way.USER
    monkeypatch.setattr(cgroups, "find_program", lambda _name: None)
    assert "install systemd-run" in cgroups.here(ROOT, top=top, run_directory=run).fault


def test_a_group_of_roots_has_its_bounds_and_an_empty_one_goes(top: Path) -> None:
    (top / "obelisk").mkdir()
    (top / "obelisk/cgroup.subtree_control").touch()
    for bounds, wanted in (
        (Bounds(10, 1 << 20, 150), {"memory.max": str(1 << 20), "cpu.max": "150000 100000", "pids.max": "26"}),
        (Bounds(10), {"memory.max": "max", "cpu.max": "max 100000", "pids.max": "26"}),
    ):
        cgroups.prepare(Way.DIRECT, "app", bounds, ROOT, top=top)
        assert {file.name: file.read_text() for file in (top / "obelisk/app").iterdir()} == wanted
    assert (top / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    cgroups.remove(Way.DIRECT, "app", ROOT, top=top)  # not empty here, as a group in use is busy there
    assert (top / "obelisk/app").exists()
    for file in (top / "obelisk/app").iterdir():
        file.unlink()
    for _ in range(2):
        cgroups.remove(Way.DIRECT, "app", ROOT, top=top)
        assert not (top / "obelisk/app").exists()


def test_where_the_kernel_refuses_a_group_there_is_an_error_with_the_layers_name(top: Path) -> None:
    (top / "obelisk").write_text("no directory")
    with pytest.raises(MissingFeatureError) as caught:
        cgroups.prepare(Way.DIRECT, "app", Bounds(1), ROOT, top=top)
    assert caught.value.code == "no-cgroup"
    assert "`cgroup`" in caught.value.hint


def test_a_scope_is_of_the_manager_whose_groups_they_are() -> None:
    system = cgroups.scope(cgroups.Here(Way.SYSTEM, program="/usr/bin/systemd-run"), "my-app", ROOT, ("/run/launch",))
    assert system.path == "/usr/bin/systemd-run"
    assert system.words[-3:] == ("--slice=obelisk-my\\x2dapp.slice", "--", "/run/launch")
    assert "--user" not in system.words
    told = cgroups.scope(cgroups.Here(Way.SYSTEM, program="/usr/bin/systemd-run", ends_all=True), "my-app", ROOT, ("/run/launch",))
    assert set(told.words) - set(system.words) == {"--property=OOMPolicy=continue"}
    user = cgroups.scope(cgroups.Here(Way.USER), "my-app", JO, ("/run/launch",))
    assert "--user" in user.words
    assert "XDG_RUNTIME_DIR=/run/user/1000" in user.environment


def test_a_start_writes_itself_into_the_group_before_anything_else(top: Path) -> None:
    opened, written, closed = cgroups.enter("app", top=top)
    assert opened.arguments[0] == text(f"{top}/obelisk/app/cgroup.procs")
    assert written.what == opened.what
    assert "enter its control group" in opened.what
    assert (written.arguments[2], closed.number) == (1, 3)
