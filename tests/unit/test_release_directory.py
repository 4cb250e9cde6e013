"""A repository on disk, as what fetches sees it."""

import hashlib
from pathlib import Path

import pytest

from obelisk.errors import TransportError, TrustError
from obelisk.model.release import File
from obelisk.release.client.remote import DirectoryMirror, Mirrors

CONTENT = bytes(range(256)) * 10


@pytest.fixture
def file(tmp_path: Path) -> File:
    found = File(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    (tmp_path / found.path).parent.mkdir(parents=True)
    (tmp_path / found.path).write_bytes(CONTENT)
    return found


def test_a_file_is_fetched_whole(tmp_path: Path, file: File) -> None:
    seen: list[int] = []
    Mirrors([DirectoryMirror(tmp_path)]).fetch(file, tmp_path / "target", seen.append)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert sum(seen) == len(CONTENT)


def test_a_damaged_file_is_not_kept(tmp_path: Path, file: File) -> None:
    (tmp_path / file.path).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(TrustError):
        Mirrors([DirectoryMirror(tmp_path)]).fetch(file, tmp_path / "target", lambda _count: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]


def test_ranges_come_in_the_order_in_which_they_are_asked_for(tmp_path: Path, file: File) -> None:
    wanted = [range(100, 120), range(5), range(2000, 2560)]
    assert list(Mirrors([DirectoryMirror(tmp_path)]).ranges(file, wanted)) == [(each, CONTENT[each.start : each.stop]) for each in wanted]


def test_a_range_beyond_the_end_is_an_error(tmp_path: Path, file: File) -> None:
    with pytest.raises(TransportError) as caught:
        list(Mirrors([DirectoryMirror(tmp_path)]).ranges(file, [range(2500, 2561)]))
    assert caught.value.code == "mirror-wrong"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    gone = File("0" * 64, 1)
    for attempt in (
        lambda: list(Mirrors([DirectoryMirror(tmp_path)]).ranges(gone, [range(1)])),
        lambda: Mirrors([DirectoryMirror(tmp_path)]).fetch(gone, tmp_path / "target", lambda _count: None),
    ):
        with pytest.raises(TransportError, match=gone.sha256):
            attempt()
