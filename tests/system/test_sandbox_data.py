"""What applications keep, on real file systems: it moves into volumes and out of them, and is whole wherever that was cut.

Each test runs this file as a program in a mount namespace of its own, so that nothing stays mounted whatever happens.
"""

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from obelisk.errors import StateError
from obelisk.sandbox import data as module
from obelisk.sandbox.data import Data, How
from obelisk.system import loops, mounts, volumes

SIZE = 32 << 20
CONTENT = {"var/lib/shop/one": b"one", "var/lib/shop/deep/two": bytes(range(256)) * 4096}


class CutError(BaseException):
    """The power goes, or the process is killed."""


def _in_private(scenario: str, place: Path) -> None:
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, scenario, place]
    subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, check=True, timeout=300)


@pytest.mark.parametrize("scenario", ["moves", "cut", "saves", "used", "damaged"])
def test_data(scenario: str, tmp_path: Path) -> None:
    _in_private(scenario, tmp_path)
    assert str(tmp_path) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout


def begun(place: Path) -> Data:
    """Data in a directory, with content."""
    data = Data(place / "data/shop")
    data.begin()
    written(place, CONTENT)
    return data


def written(place: Path, content: dict[str, bytes]) -> None:
    for name, what in content.items():
        path = place / "data/shop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(what)


def content(place: Path) -> dict[str, bytes]:
    """What an application would see."""
    top = place / "data/shop"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def moves(place: Path) -> None:
    """In, larger, smaller, too small, and out; as often as wanted."""
    data, live = begun(place), place / "data/shop"
    for size in (None, SIZE, SIZE, 2 * SIZE + 1000, SIZE, None, None, SIZE):
        data.bound(size)
        assert content(place) == CONTENT
        assert live.is_mount() == (size is not None)
        if size is not None:
            assert volumes.size_of(place / "data/.volumes/shop") == size // 4096 * 4096
            assert 0.8 * size < _capacity(live) < size
    written(place, {"large": bytes(20 << 20)})
    assert _refused(lambda: data.bound(SIZE // 2)) == "volume-full"
    assert content(place) == {**CONTENT, "large": bytes(20 << 20)}
    data.bound(SIZE)
    assert content(place) == {**CONTENT, "large": bytes(20 << 20)}
    data.bound(None)
    assert _refused(lambda: data.bound(SIZE // 2)) == "volume-full"
    assert content(place) == {**CONTENT, "large": bytes(20 << 20)}
    try:
        data.bound(SIZE)
        written(place, {"larger": bytes(20 << 20)})
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - without pytest
    else:
        raise AssertionError("it has no bound")
    data.remove()
    assert not live.exists()
    assert sorted(path.name for path in (place / "data/.volumes").iterdir()) == []


def _capacity(live: Path) -> int:
    return int(subprocess.run(["df", "-B1", "--output=size", live], capture_output=True, check=True).stdout.split()[-1])


def _refused(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except StateError as error:
        return error.code
    return ""


def cut(place: Path) -> None:
    """Every step of every move, once killed and once with the power gone; then the same move, or back."""
    changes: list[tuple[int | None, int | None]] = [(None, SIZE), (SIZE, None), (SIZE, 2 * SIZE), (2 * SIZE, SIZE)]
    steps = 0
    for before, after in changes:
        for again in (after, before):
            step, there = 0, False
            while not there:
                step += 1
                own = place / f"{before}-{after}-{again}-{step}"
                data = begun(own)
                data.bound(before)
                with _cut_at(step) as happened:
                    try:
                        data.bound(after)
                    except CutError:
                        happened.append(True)
                there = not happened
                if step % 2:
                    subprocess.run(["umount", "--lazy", *{str(own / "data/shop")} & {*_mounted(own)}], check=False, capture_output=True)
                Data(own / "data/shop").bound(again)
                assert content(own) == CONTENT, (before, after, again, step)
                assert (own / "data/shop").is_mount() == (again is not None)
                Data(own / "data/shop").remove()
                steps += not there
    assert steps > 50


def _mounted(place: Path) -> list[str]:
    return [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(place) in line]


@contextmanager
def _cut_at(step: int) -> Iterator[list[bool]]:
    """Raise before that step: programs that are started, and names that change."""
    count = 0
    happened: list[bool] = []

    def cutting(real: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count >= step:  # nothing happens any more, in `finally` neither
                raise CutError
            return real(*args, **named)

        return called

    places: list[tuple[Any, str]] = [(each, "run") for each in (module, volumes, mounts, loops)]
    places += [(module, "remove_tree"), *((Path, name) for name in ("rename", "unlink", "mkdir", "rmdir"))]
    before = [getattr(where, name) for where, name in places]
    for (where, name), real in zip(places, before, strict=True):
        setattr(where, name, cutting(real))
    try:
        yield happened
    finally:
        for (where, name), real in zip(places, before, strict=True):
            setattr(where, name, real)


def saves(place: Path) -> None:
    """A version that keeps a directory, and one that keeps a volume, each after the other."""
    for before, after in ((None, SIZE), (SIZE, None), (SIZE, SIZE)):
        own = place / f"{before}-{after}"
        data = begun(own)
        data.bound(before)
        assert data.save("old") in {How.REFLINK, How.COPY, How.SNAPSHOT}
        data.bound(after)
        assert content(own) == CONTENT
        written(own, {"new": b"new"})
        data.save("new")
        data.bound(after)
        written(own, {"newer": b"newer"})
        for image, expected in (("old", CONTENT), ("new", {**CONTENT, "new": b"new"}), ("old", CONTENT)):
            assert data.put_back(image)
            data.bound(before if image == "old" else after)
            assert content(own) == expected
        data.keep_only("old")
        data.remove()
        assert not [path for path in (own / "data").rglob("*") if path.is_file()]


def used(place: Path) -> None:
    """Somebody else has it mounted: then it stays as it is, and that is told."""
    volumes._ENDING_S = 0.3
    for before, after in ((None, SIZE), (SIZE, None), (SIZE, 2 * SIZE)):
        own = place / f"{before}-{after}"
        data = begun(own)
        data.bound(before)
        holds = f"mount --bind {own}/data/shop/var /mnt; echo; exec sleep 100"
        with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", holds], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert _refused(partial(data.bound, after)) in {"data-used", "volume-used"}
            data.bound(before)
            assert content(own) == CONTENT
            other.kill()
        data.bound(after)
        assert content(own) == CONTENT
        data.remove()


def damaged(place: Path) -> None:
    """What a check before it is mounted cannot mend is told, and nothing is mounted."""
    data = begun(place)
    data.bound(SIZE)
    data.rest()
    volume = place / "data/.volumes/shop"
    with volume.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 65536)
    assert _refused(lambda: data.bound(SIZE)) == "volume-damaged"
    assert not (place / "data/shop").is_mount()
    data.remove()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
