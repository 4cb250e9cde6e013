"""Files that users name: written whole or not at all, and a refusal names the file and what to do."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from obelisk.build.keys import create
from obelisk.build.lockfile import write_lock
from obelisk.cli import main
from obelisk.errors import StateError
from obelisk.model.lock import Lock, PackageSet
from obelisk.system import files
from obelisk.system.bubblewrap import Room
from obelisk.system.filesystem import tree_bytes


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Two directories that lie on two file systems, as far as `rename` tells."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    rename = os.rename

    def across(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", across)
    return here, there


def test_a_file_and_a_directory_are_moved_to_another_file_system(apart: tuple[Path, Path]) -> None:
    here, there = apart
    (here / "file").write_bytes(b"content")
    (here / "tree/below").mkdir(parents=True)
    (here / "tree/below/file").write_bytes(b"deep")
    files.move(here / "file", there / "new")
    files.move(here / "tree", there / "wood")
    assert (there / "new").read_bytes() == b"content"
    assert (there / "wood/below/file").read_bytes() == b"deep"
    assert not list(here.iterdir())
    assert {path.name for path in there.iterdir()} == {"new", "wood"}


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_move_that_finds_no_room_leaves_nothing_half_done(apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    here, there = apart
    (here / "tree").mkdir()
    (here / "file").write_bytes(b"content")
    (here / "tree/file").write_bytes(b"content")

    def fill(_source: object, target: Path, *_: object, **__: object) -> None:
        Path(target).write_bytes(b"con")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises((OSError, shutil.Error)):
        files.move(here / kind, there / "new")
    assert not list(there.iterdir())
    assert (here / "file").read_bytes() == (here / "tree/file").read_bytes() == b"content"


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    nothing = PackageSet("trixie", 0, ())
    with pytest.raises(StateError, match=r"nowhere/obelisk\.lock cannot be written: No such file") as caught:
        write_lock(tmp_path / "nowhere/obelisk.lock", Lock("0" * 64, nothing, nothing, nothing))
    assert f"who may write to {tmp_path}/nowhere" in caught.value.hint


def test_keys_that_cannot_be_written_are_named() -> None:
    with pytest.raises(StateError, match="/proc/no/keys cannot be written"):
        create(Path("/proc/no/keys"), Room(Path("/")))


def test_a_spec_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "/proc/shop"]) == 5
    assert "/proc/shop/obelisk.toml cannot be written" in capsys.readouterr().err


def test_a_full_disk_asks_for_room(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught, files.written_by_name(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "make room" in caught.value.hint


def test_a_place_that_will_not_take_a_file_is_known_beforehand(tmp_path: Path) -> None:
    files.ensure_writable(tmp_path / "obelisk.lock")
    assert not list(tmp_path.iterdir())
    with pytest.raises(StateError, match=r"nowhere/obelisk\.lock cannot be written: No such file"):
        files.ensure_writable(tmp_path / "nowhere/obelisk.lock")


def test_a_tree_takes_what_its_files_take_each_once(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_bytes(b"x" * 100_000)
    once = tree_bytes(tmp_path)
    (tmp_path / "again").hardlink_to(tmp_path / "below/file")
    (tmp_path / "link").symlink_to("below/file")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    assert 100_000 <= once <= tree_bytes(tmp_path) < once + 65536
