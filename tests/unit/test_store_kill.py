"""Killed before any single change that it makes to the disk, a process leaves a store that is sound and can go on.

A child runs a workload and is killed (SIGKILL) just before its N-th change, for every N until the workload runs through. Changes are seen
by an audit hook, which the interpreter calls before it makes, renames, links, removes or locks anything or runs a program, and
at each fsync.
"""

import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_samples import add_image, key, manifest_of, names_below, sha256, write

from obelisk.events import silent
from obelisk.store import Store


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory where there is one: no kill loses what is there, and the flushes of a hundred stores take no time."""
    memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a directory of our own
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


_CHANGES = frozenset(
    {
        *("os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.utime", "os.chmod", "os.truncate"),
        *("fcntl.flock", "subprocess.Popen", "ctypes.dlsym"),
    }
)


def _die_at(turn: int) -> None:
    """From now on, kill this process just before its `turn`-th change to the disk."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _CHANGES or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            count()

    def fsync(descriptor: int) -> None:
        count()
        real(descriptor)

    real = os.fsync
    setattr(os, "fsync", fsync)  # noqa: B010 - the store gives numbers only, which a type checker cannot know
    sys.addaudithook(hook)


def _run(work: Callable[[], None], *, die_at: int) -> bool:
    """Run `work` in a child that dies at that change; whether it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a test runner with threads is none of the child's business
        child = os.fork()
    if child == 0:
        try:
            _die_at(die_at)
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - it must not run the tests that follow
            sys.__stderr__.write(f"{error!r}\n") if sys.__stderr__ else None
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the workload failed"
    return not os.WIFSIGNALED(status)


def produce(output: Path) -> None:
    write(output / "root", b"root of the new image")
    (output / "tree").mkdir()
    write(output / "tree" / "file", b"file")


def build(root: Path) -> None:
    """What a build does with the store."""
    store = Store.open(root)
    write(root.parent / "a.deb", b"package a")
    store.add_blob(root.parent / "a.deb", sha256=sha256(b"package a"), move=True)
    store.add_blob(write(root.parent / "b.deb", b"package b"))
    output, _ = store.build_step(key("new"), produce)
    store.alias_step(key("alias of new"), key("new"))
    with store.workspace() as scratch:
        uki = write(scratch / "uki", b"uki")
        store.add_image(manifest_of(b"root of the new image"), {"root": output / "root", "uki": uki}, {"build.json": b"{}"})
    image_id = manifest_of(b"root of the new image").id
    store.add_proof(image_id, b"proof")
    store.set_ref("spec", image_id)


def maintain(root: Path) -> None:
    """What an administrator does with it."""
    store = Store.open(root)
    store.remove_ref("other spec")
    for image in store.images():
        if image.manifest.name == "desk":
            store.remove_image(image.id)
    store.collect(keep_days=0, keep_images=1, sink=silent)


def repair(root: Path) -> None:
    """A repair after a blob, and with it an image and a step, was damaged."""
    store = Store.open(root)
    blob = store.root / "blobs" / sha256(b"old root")[:2] / sha256(b"old root")
    if blob.exists() and blob.read_bytes() == b"old root":
        blob.chmod(0o644)
        blob.write_bytes(b"OLD root")
    store.verify(repair=True, sink=silent)


def prepare(root: Path) -> str:
    """A store with something in it that has to stay."""
    with Store.open(root) as store:
        for version in ("1", "2"):
            store.set_ref("spec", add_image(store, b"root " + version.encode(), version=version))
        store.set_ref("desk", add_image(store, b"desk", name="desk"))
        old = add_image(store, b"old root", name="old")
        store.set_ref("other spec", old)
        store.build_step(key("old"), produce)
        store.build_step(key("unused"), produce)
        store.set_ref("spec", store.image("shop_2").id)
        store.add_proof(store.image("shop_2").id, b"proof")
        store.seal()
        return store.image("shop_2").id


def check(root: Path, kept: str, *, sound: bool = True) -> None:
    """The store opens, has all that was finished before, nothing unfinished and no damage."""
    with Store.open(root) as store:
        assert not names_below(root / "work")
        if sound:
            assert store.verify(sink=silent) == ()
        assert kept in next(ref.images for ref in store.refs() if ref.name == "spec")
        assert store.image(kept).manifest.version == "2"
        assert [path.read_bytes() for path in store.proofs(kept)] == [b"proof"]
        output = store.find_step(key("old"))
        assert output is not None
        assert (output / "tree" / "file").read_bytes() == b"file"


@pytest.mark.parametrize("workload", [build, maintain, repair])
def test_killed_anywhere_the_store_is_sound_and_the_work_can_be_done_again(workload: Callable[[Path], None], place: Path) -> None:
    kept = prepare(place / "prepared" / "store")
    finished, turn = False, 0
    while not finished:
        turn += 1
        copy = place / str(turn)
        subprocess.run(["cp", "-a", place / "prepared", copy], check=True)  # keeps hard links
        finished = _run(lambda: workload(copy / "store"), die_at=turn)  # noqa: B023 - run at once
        check(copy / "store", kept, sound=workload is not repair)
        if not finished:
            workload(copy / "store")
            check(copy / "store", kept)
    assert turn > 10, "the workload was not seen changing the disk"


def test_killed_while_the_store_is_made_it_is_made_the_next_time(place: Path) -> None:
    finished, turn = False, 0
    while not finished:
        turn += 1
        root = place / str(turn) / "store"
        finished = _run(lambda: Store.open(root).close(), die_at=turn)  # noqa: B023 - run at once
        with Store.open(root) as store:
            assert store.verify(sink=silent) == ()
            add_image(store, b"root")
        assert not names_below(root / "work")
    assert turn > 10
