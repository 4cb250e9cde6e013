"""Blobs: kept by digest, shared by hard links, checked on the way in."""

import os
import time
from pathlib import Path

import pytest
from store_samples import DAY_S, key, names_below, sha256, write, writing

from obelisk.errors import InputError, StateError, TrustError
from obelisk.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_a_copied_blob_is_found_by_its_digest_and_cannot_be_written(store: Store, tmp_path: Path) -> None:
    source = write(tmp_path / "a.deb", b"package")
    assert store.add_blob(source) == sha256(b"package")
    found = store.blob(sha256(b"package"))
    assert found.read_bytes() == b"package"
    assert found.stat().st_mode & 0o777 == 0o444
    assert source.exists()
    assert not found.samefile(source)


def test_a_moved_blob_is_the_source_itself(store: Store, tmp_path: Path) -> None:
    source = write(tmp_path / "a.deb", b"package")
    inode = source.stat().st_ino
    store.add_blob(source, move=True)
    assert not source.exists()
    assert store.blob(sha256(b"package")).stat().st_ino == inode


def test_a_source_with_a_second_name_is_copied_even_when_moved(store: Store, tmp_path: Path) -> None:
    source = write(tmp_path / "a.deb", b"package")
    (tmp_path / "other").hardlink_to(source)
    store.add_blob(source, move=True)
    (tmp_path / "other").write_bytes(b"changed")
    assert not source.exists()
    assert store.blob(sha256(b"package")).read_bytes() == b"package"


@pytest.mark.parametrize("move", [False, True])
def test_a_wrong_digest_is_refused_and_leaves_nothing(store: Store, tmp_path: Path, *, move: bool) -> None:
    source = write(tmp_path / "a.deb", b"forged")
    with pytest.raises(TrustError, match="expected") as caught:
        store.add_blob(source, sha256=sha256(b"package"), move=move)
    assert caught.value.code == "digest-mismatch"
    assert source.read_bytes() == b"forged"
    assert not list(store.root.glob("blobs/*/*"))
    assert not list(store.root.glob("work/*/*"))


@pytest.mark.parametrize("move", [False, True])
def test_adding_a_blob_again_keeps_the_first_file(store: Store, tmp_path: Path, *, move: bool) -> None:
    store.add_blob(write(tmp_path / "a", b"package"))
    inode = store.blob(sha256(b"package")).stat().st_ino
    store.add_blob(write(tmp_path / "b", b"package"), move=move)
    store.add_blob(write(tmp_path / "c", b"package"), sha256=sha256(b"package"), move=move)
    assert store.blob(sha256(b"package")).stat().st_ino == inode
    assert (tmp_path / "b").exists() is not move
    assert (tmp_path / "c").exists() is not move


def test_a_large_sparse_file_keeps_its_content_and_its_holes(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "disk"
    with source.open("wb") as out:
        out.write(os.urandom(3_000_001))
        out.truncate(64 << 20)
    blob = store.blob(store.add_blob(source))
    assert blob.stat().st_size == 64 << 20
    assert blob.read_bytes() == source.read_bytes()
    assert blob.stat().st_blocks * 512 < 8 << 20


def test_an_absent_blob_is_none_or_an_error_with_a_remedy(store: Store) -> None:
    assert store.find_blob(sha256(b"none")) is None
    with pytest.raises(StateError) as caught:
        store.blob(sha256(b"none"))
    assert caught.value.code == "blob-missing"
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_digest_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InputError, match="not a SHA-256"):
        store.find_blob(name)


def test_a_linked_blob_shares_the_file_and_refuses_an_existing_target(store: Store, tmp_path: Path) -> None:
    digest = store.add_blob(write(tmp_path / "a", b"package"))
    store.link_blob(digest, tmp_path / "linked")
    assert (tmp_path / "linked").samefile(store.blob(digest))
    with pytest.raises(FileExistsError):
        store.link_blob(digest, tmp_path / "linked")


def test_on_another_file_system_a_link_becomes_a_copy(store: Store, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm") / f"{os.getpid()}-store-test"  # noqa: S108 - it has to be another file system
    assert Path("/dev/shm").stat().st_dev != tmp_path.stat().st_dev, "this test needs two file systems"  # noqa: S108
    try:
        digest = store.add_blob(write(elsewhere, b"x" * 3_000_000), move=True)
        assert not elsewhere.exists()
        store.link_blob(digest, elsewhere)
        assert elsewhere.read_bytes() == b"x" * 3_000_000
    finally:
        elsewhere.unlink(missing_ok=True)


def test_a_file_of_a_finished_step_is_shared_instead_of_copied(store: Store) -> None:
    output, _ = store.build_step(key("erofs"), writing("root", b"root file system"))
    digest = store.add_blob(output / "root")
    assert store.blob(digest).samefile(output / "root")
    assert store.find_step(key("erofs")) == output


def test_finding_a_blob_records_its_use_but_not_each_time(store: Store, tmp_path: Path) -> None:
    blob = store.blob(store.add_blob(write(tmp_path / "a", b"package")))
    recently, long_ago = time.time() - 60, time.time() - 30 * DAY_S
    os.utime(blob, (recently, recently))
    store.find_blob(blob.name)
    assert blob.stat().st_mtime == pytest.approx(recently)
    os.utime(blob, (long_ago, long_ago))
    store.find_blob(blob.name)
    assert blob.stat().st_mtime > recently


def test_close_leaves_nothing_of_the_session(store: Store, tmp_path: Path) -> None:
    store.add_blob(write(tmp_path / "a", b"package"))
    assert names_below(store.root / "work")
    store.close()
    assert not names_below(store.root / "work")
    assert store.find_blob(sha256(b"package")) is not None
