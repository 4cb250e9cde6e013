"""A full, read-only or foreign disk: one clear error, and the store stays as it was."""

import errno
import fcntl
import os
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import add_image, key, names_below, write

from obelisk.errors import CommandError, InputError, ObeliskError, StateError
from obelisk.events import silent
from obelisk.store import Store, steps
from obelisk.system.namespace import as_root


def content(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a store with mode and content."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in root.rglob("*")
        if "work" not in path.parts
    }


def produce(output: Path) -> None:
    write(output / "result", b"result")


WORK: dict[str, Callable[[Store, Path], object]] = {
    "add_blob": lambda store, scratch: store.add_blob(scratch / "file"),
    "add_blob move": lambda store, scratch: store.add_blob(scratch / "file", move=True),
    "build_step": lambda store, _: store.build_step(key("step"), produce),
    "alias_step": lambda store, _: store.alias_step(key("alias"), key("old step")),
    "add_image": lambda store, _: add_image(store, b"new"),
    "add_proof": lambda store, _: store.add_proof(store.images()[0].id, b"proof"),
    "set_ref": lambda store, _: store.set_ref("new", store.images()[0].id),
    "set_ref again": lambda store, _: store.set_ref("spec", store.images()[0].id),
}


def _fail_at(monkeypatch: pytest.MonkeyPatch, turn: int, number: int) -> list[str]:
    """Let the `turn`-th call that needs room or rights on the disk fail with error `number`; returns the calls so far."""
    calls: list[str] = []

    def wrap(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if name == "fsync" and isinstance(arguments[0], int) and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
                return real(*arguments)  # the last act, after the change: it needs no room
            calls.append(name)
            if len(calls) == turn:
                raise OSError(number, os.strerror(number), str(arguments[0]))
            return real(*arguments, **options)

        return call

    for name in ("mkdir", "link", "rename", "symlink", "fsync", "pwrite", "utime"):
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("name", WORK)
def test_a_disk_that_is_full_at_any_moment_leaves_the_store_as_it_was(name: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        store.set_ref("spec", add_image(store, b"old"))
        store.build_step(key("old step"), produce)
        store.seal()
    failures = 0
    for turn in range(1, 100):
        write(tmp_path / "file", b"file")
        before = content(store.root)
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = _fail_at(monkeypatch, turn, errno.ENOSPC)
            caught = None
            try:
                WORK[name](store, tmp_path)
            except StateError as error:
                caught = error
        if len(calls) < turn:
            break
        failures += 1
        assert caught is not None
        assert caught.code == "disk-full"
        assert "MiB free" in caught.message
        assert caught.hint
        assert (tmp_path / "file").read_bytes() == b"file"
        # What was finished before the disk was full may stay (verified below): the next gc takes what nothing uses.
        after = {
            path: value
            for path, value in content(store.root).items()
            if not path.startswith(("blobs", "images", "proofs")) or path in before
        }
        assert after == before | {path: value for path, value in after.items() if path.endswith("sealed")}
        assert not list(store.root.glob("work/*/*"))
        assert store.verify(sink=silent) == ()
        store.close()
    assert failures >= 1
    assert store.verify(sink=silent) == ()


def test_a_program_that_fills_the_disk_in_a_step_is_explained(tmp_path: Path) -> None:
    def fill(_output: Path) -> None:
        raise CommandError(("mkfs.erofs",), 1, "mkfs.erofs: write failed: No space left on device\n")

    store = Store.open(tmp_path / "store")
    with pytest.raises(StateError, match=r"mkfs\.erofs says: No space left on device") as caught:
        store.build_step(key("step"), fill)
    assert caught.value.code == "disk-full"
    assert isinstance(caught.value.__cause__, CommandError)
    assert not names_below(store.root / "steps")


def test_an_error_about_somebody_elses_file_is_passed_on_as_it_is(tmp_path: Path) -> None:
    def read(_output: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/home/me/secret")

    with pytest.raises(PermissionError, match="/home/me/secret"):
        Store.open(tmp_path / "store").build_step(key("step"), read)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_store_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = Store.open(tmp_path / "store")
    _fail_at(monkeypatch, 1, number)
    with pytest.raises(StateError) as caught:
        store.build_step(key("step"), produce)
    assert caught.value.code == "store-unwritable"


def test_a_store_of_another_user_is_explained() -> None:
    # pytest's own directories are closed to the other user, which would end this test early.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        assert _as_nobody(lambda: Store.open(Path(place) / "store")) == "store-unwritable"
        Store.open(Path(place) / "store").add_blob(write(Path(place) / "file", b"file"))
        Path(place, "file").chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        assert _as_nobody(lambda: Store.open(Path(place) / "store").add_blob(Path(place) / "file")) == "store-unwritable"


def test_a_user_without_subordinate_ids_can_do_everything_with_own_files() -> None:
    def use() -> None:
        as_root.cache_clear()
        store = Store.open(place / "store")

        def fail(output: Path) -> None:
            (output / "directory").mkdir()
            raise InputError("wrong", code="expected")

        with pytest.raises(InputError):
            store.build_step(key("step"), fail)
        store.build_step(key("step"), produce)
        store.remove_image(add_image(store, b"root"))
        collected = store.collect(everything=True, sink=silent)
        assert (collected.steps.count, collected.blobs.count) == (1, 2)
        assert store.verify(repair=True, sink=silent) == ()
        assert not list(store.root.glob("work/*/*"))

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o777)
        assert _as_nobody(use) == "no error"


def _as_nobody(attempt: Callable[[], object]) -> str:
    """The code of the error that another user gets; root is needed to become one, otherwise the place is closed to ourselves."""
    assert os.geteuid() == 0, "this test needs root: `./test` runs it in a user namespace otherwise"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = "no error"
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            attempt()
        except ObeliskError as error:
            code = error.code
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
            code = repr(error)
        finally:
            os.write(writer, code.encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        return answer.read()


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "thesis.tex", b"")
    with pytest.raises(InputError) as caught:
        Store.open(tmp_path)
    assert caught.value.code == "store-place-taken"
    with pytest.raises(InputError):
        Store.open(tmp_path / "thesis.tex")
    assert names_below(tmp_path) == {"thesis.tex"}


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    Store.open(tmp_path)
    (tmp_path / "format").write_text("obelisk.store/99\n")
    with pytest.raises(StateError, match=r"obelisk\.store/99") as caught:
        Store.open(tmp_path)
    assert caught.value.code == "store-format"


def test_an_interrupted_creation_is_completed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "work").mkdir()
    Store.open(tmp_path).add_blob(write(tmp_path / "work" / "file", b"file"))
    assert (tmp_path / "format").exists()


def test_content_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    flushes: list[frozenset[str]] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def note_sync(root: Path) -> None:
        flushes.append(frozenset(str(path.stat().st_ino) for path in root.rglob("*") if path.is_file()))

    def check(source: Path, target: Path) -> None:
        place = target.relative_to(store.root).parts[0]
        if place in {"blobs", "refs", "proofs"}:
            assert source.stat().st_ino in flushed, target
        if place == "images":
            assert {str(path.stat().st_ino) for path in source.rglob("*") if path.is_file()} <= flushes[-1]
        renamed.append(place)
        rename(source, target)

    renamed: list[str] = []
    store = Store.open(tmp_path / "store")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", check)
    monkeypatch.setattr(steps, "sync_filesystem", note_sync)
    output, _ = store.build_step(key("step"), produce)
    store.add_blob(output / "result")
    store.add_blob(write(tmp_path / "file", b"file"), move=True)
    image_id = add_image(store, b"root")
    store.add_proof(image_id, b"proof")
    store.set_ref("spec", image_id)
    assert renamed == ["steps", "blobs", "blobs", "blobs", "blobs", "images", "proofs", "refs"]
    for place in ("images", "proofs", "refs"):
        assert (store.root / place).stat().st_ino in flushed or (store.root / place / image_id).stat().st_ino in flushed


def test_a_session_that_was_swept_while_it_began_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    swept: list[Path] = []

    def flock(descriptor: int, operation: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if place.parent.name == "work" and len(swept) < 2:
            swept.append(place)
            place.rmdir()
        real(descriptor, operation)

    store = Store.open(tmp_path / "store")
    monkeypatch.setattr(fcntl, "flock", flock)
    with store.workspace() as scratch:
        assert scratch.is_dir()
    assert len(swept) == 2
