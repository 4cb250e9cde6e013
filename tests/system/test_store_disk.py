"""The store on real file systems that run full or lose their power.

Each test runs this file as a program in a mount namespace of its own, so that nothing stays mounted whatever happens.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obelisk.errors import StateError
from obelisk.events import silent
from obelisk.store import Store, steps
from obelisk.system.command import run
from obelisk.system.files import sync_directory

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from store_samples import add_image, key, sha256, write, writing

Attempt = Callable[[], object]
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices")


def _mounted(place: Path, scenario: str, *mount: str) -> None:
    """Run a scenario of this file with something mounted at `place`/disk."""
    (place / "disk").mkdir(exist_ok=True)
    script = 'mount "$@" && exec "$PYTHON" "$FILE" "$SCENARIO" "$PLACE"'
    environment = {
        "PYTHON": sys.executable,
        "FILE": __file__,
        "SCENARIO": scenario,
        "PLACE": str(place),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *mount, place / "disk"],
        env={**os.environ, **environment},
        check=True,
        timeout=120,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_disk_is_explained_and_leaves_the_store_sound(tmp_path: Path) -> None:
    _mounted(tmp_path, "full", "-t", "tmpfs", "-o", "size=8m", "tmpfs")


def full(place: Path) -> None:
    """Fill 8 MiB by every way into the store."""
    disk, large = place / "disk", place / "large"
    large.write_bytes(os.urandom(16 << 20))
    store = Store.open(disk / "store")
    image_id = add_image(store, b"root" * 500_000)
    store.set_ref("spec", image_id)

    def by_ourselves(output: Path) -> None:
        write(output / "file", b"x" * (16 << 20))

    def by_a_program(output: Path) -> None:
        run(["cp", large, output / "file"])

    attempts: tuple[Attempt, ...] = (
        lambda: store.add_blob(large),
        lambda: store.add_blob(large, move=True),
        lambda: store.build_step(key("ourselves"), by_ourselves),
        lambda: store.build_step(key("program"), by_a_program),
        lambda: add_image(store, os.urandom(7 << 20)),
    )
    for attempt in attempts:
        free = os.statvfs(disk).f_bavail
        with pytest.raises(StateError, match=f"file system {disk}") as caught:
            attempt()
        assert caught.value.code == "disk-full"
        assert os.statvfs(disk).f_bavail == free, "what was left behind takes room"
        assert store.verify(sink=silent) == ()
        assert [image.id for image in store.images()] == [image_id]
    assert large.stat().st_size == 16 << 20
    store.collect(everything=True, sink=silent)
    assert store.image(image_id).id == image_id


@needs_root
def test_a_power_cut_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    device = tmp_path / "device"
    with device.open("wb") as out:
        out.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    # The kernel must not write of its own accord while the test runs: only what is flushed may be on the disk.
    _mounted(tmp_path, "work", "-o", "loop,commit=300", str(device))
    cuts = sorted(tmp_path.glob("cut-*"))
    assert len(cuts) == _UNSEALED
    for done, cut in enumerate(cuts, start=1):
        _mounted(tmp_path, f"check {done}", "-o", "loop", str(cut))


_IMAGE, _REF, _UNSEALED = 4, 5, 6


def work(place: Path) -> None:
    """Use the store, and keep what is on the disk after each step, as a power cut would find it."""

    def cut(number: int) -> None:
        shutil.copyfile(place / "device", place / f"cut-{number}")

    disk = place / "disk"
    with Store.open(disk / "store") as store:
        cut(1)
        store.add_blob(write(disk / "a.deb", b"package" * 100_000), move=True)
        cut(2)
        store.build_step(key("step"), writing("result", b"result" * 100_000))
        cut(3)
        image_id = add_image(store, b"root" * 100_000)
        cut(_IMAGE)
        store.set_ref("spec", image_id)
        cut(_REF)
        store.build_step(key("later"), writing("result", b"later" * 100_000))
        # The name reaches the disk, the content does not: the worst that the kernel may do.
        sync_directory(store.root / "steps")
        cut(_UNSEALED)


def check(place: Path, done: int) -> None:
    """After the power cut: what was promised is there and right, the rest is there and right or absent."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(steps, "boot_id", lambda: "the next boot")
        _check(place, done)


def _check(place: Path, done: int) -> None:
    store = Store.open(place / "disk" / "store")
    assert store.verify(sink=silent) == ()
    blob = store.find_blob(sha256(b"package" * 100_000))
    assert blob is None or blob.read_bytes() == b"package" * 100_000
    step = store.find_step(key("step"))
    assert step is None or (step / "result").read_bytes() == b"result" * 100_000
    assert store.find_step(key("later")) is None
    if done >= _IMAGE:
        assert blob is not None
        assert step is not None
        (image,) = store.images()
        assert [path.read_bytes() for path in sorted(image.directory.glob("shop.*"))] == [b"uki", b"root" * 100_000]
    if done >= _REF:
        assert [ref.name for ref in store.refs()] == ["spec"]
    if done == _UNSEALED:
        lost = store.root / "steps" / key("later") / "output" / "result"
        assert lost.read_bytes() != b"later" * 100_000, "the cut was to come after the name and before the content"
    # And work goes on.
    store.build_step(key("later"), writing("result", b"later"))
    store.collect(sink=silent)
    assert store.verify(sink=silent) == ()


if __name__ == "__main__":
    _name, *_done = sys.argv[1].split()
    _place = Path(sys.argv[2])
    {"full": lambda: full(_place), "work": lambda: work(_place), "check": lambda: check(_place, int(_done[0]))}[_name]()
