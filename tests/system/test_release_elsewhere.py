"""Repositories elsewhere: a daemon of rsync on this machine, and a server of WebDAV, which stands for all that rclone knows."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import repository_samples as samples

from obelisk.errors import StateError, TransportError, TrustError
from obelisk.events import silent
from obelisk.release.keys import Keyring
from obelisk.release.mirror import Mirror, is_elsewhere
from obelisk.release.publisher import Publisher
from obelisk.release.publishing import release
from obelisk.release.repository import Repository
from obelisk.release.retiring import retire
from obelisk.release.shelf import Shelf
from obelisk.system import rclone, rsync


@pytest.fixture(params=["rsync", "rclone"])
def target(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A place at a server, which is not there yet; on the disk it is `tmp_path`/module/a/repo."""
    (tmp_path / "module").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "rsyncd.conf").write_text(
        f"use chroot = no\nuid = 0\ngid = 0\n[there]\npath = {tmp_path}/module\nread only = no\nmunge symlinks = no\n"
    )
    words, place = {
        "rsync": (
            ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={tmp_path}/rsyncd.conf"],
            f"rsync://127.0.0.1:{port}/there/a/repo",
        ),
        "rclone": (
            ["rclone", "serve", "webdav", str(tmp_path / "module"), f"--addr=127.0.0.1:{port}", "--dir-cache-time=0"],
            f"rclone::webdav,url='http://127.0.0.1:{port}':a/repo",
        ),
    }[request.param]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as daemon:
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield place
        finally:
            daemon.terminate()


class Desk:
    """A publisher with a working copy of its own."""

    def __init__(self, place: Path, target: str, keys: Keyring) -> None:
        self.place = place
        self.mirror = Mirror(target, place / "copy")
        self.keys = keys

    def who(self) -> Publisher:
        return samples.publisher(self.place, self.keys, shelf=Shelf(self.place / "copy"))

    def release(self, version: str) -> None:
        with self.mirror.changing(silent):
            release(self.who(), samples.wanted(self.place, version), samples.founding())


def _host(place: Path) -> samples.Client:
    repo = place / "module/a/repo"
    return samples.Client(place / f"host-{time.monotonic_ns()}", repo, (repo / "metadata/1.root.json").read_bytes())


def _version(place: Path) -> str:
    host = _host(place)
    host.refresh()
    current = host.current("stable")
    assert current is not None
    return current.version


def test_what_is_released_there_is_there_and_what_is_retired_goes(tmp_path: Path, target: str) -> None:
    desk = Desk(tmp_path / "desk", target, samples.keyring(tmp_path))
    for version in ("1", "2", "3"):
        desk.release(version)
        assert _version(tmp_path) == version
    first = Repository.open(Shelf(tmp_path / "module/a/repo")).contents.find("1")
    with desk.mirror.changing(silent):
        retire(desk.who(), keep=1, before=samples.NOW + samples.DAY, grace=timedelta(0))
    assert _version(tmp_path) == "3"
    assert not (tmp_path / "module/a/repo" / first.index.path).exists()
    here, there = (
        {path.relative_to(top) for path in top.rglob("*") if path.is_file()} for top in (tmp_path / "desk/copy", tmp_path / "module/a/repo")
    )
    assert here - there == {Path(".lock")}
    assert there <= here


def test_two_desks_publish_in_turn(tmp_path: Path, target: str) -> None:
    keys = samples.keyring(tmp_path)
    one = Desk(tmp_path / "one", target, keys)
    one.release("1")
    shutil.copytree(tmp_path / "release", tmp_path / "other/release")
    other = Desk(tmp_path / "other", target, replace(keys, directory=tmp_path / "other/release"))
    other.release("2")
    one.release("3")
    assert _version(tmp_path) == "3"

    def late() -> None:
        with one.mirror.changing(silent):
            release(one.who(), samples.wanted(one.place, "4"), samples.founding())
            other.release("5")

    with pytest.raises(StateError) as refused:
        late()
    assert refused.value.code == "repository-changed"
    assert _version(tmp_path) == "5"
    one.release("6")
    host = _host(tmp_path)
    host.refresh()
    assert [listing.version for listing in host.channel("stable").listings] == ["1", "2", "3", "5", "6"]


@pytest.mark.parametrize("cut", range(6))
def test_a_sending_that_was_cut_is_finished_by_the_next(tmp_path: Path, target: str, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path / "desk", target, samples.keyring(tmp_path))
    desk.release("1")
    left = [cut]
    carrier = rclone if target.startswith("rclone:") else rsync
    push = carrier.push

    def cutting(*words: object, **options: object) -> None:
        if not left[0]:
            raise TransportError("cut", code="rsync-failed")
        left[0] -= 1
        push(*words, **options)

    monkeypatch.setattr(carrier, "push", cutting)
    if cut < 4:
        with pytest.raises(TransportError):
            desk.release("2")
        assert _version(tmp_path) == "1"
    else:
        desk.release("2")
    monkeypatch.setattr(carrier, "push", push)
    desk.release("3")
    assert _version(tmp_path) == "3"


def test_a_working_copy_that_is_gone_is_fetched_again(tmp_path: Path, target: str) -> None:
    """And no new repository is begun over the old one."""
    desk = Desk(tmp_path / "desk", target, samples.keyring(tmp_path))
    desk.release("1")
    shutil.rmtree(tmp_path / "desk/copy")
    desk.release("2")
    host = _host(tmp_path)
    host.refresh()
    assert [listing.version for listing in host.channel("stable").listings] == ["1", "2"]


def test_what_was_put_in_its_place_is_not_taken_over(tmp_path: Path, target: str) -> None:
    desk = Desk(tmp_path / "desk", target, samples.keyring(tmp_path))
    desk.release("1")
    timestamp = tmp_path / "module/a/repo/metadata/timestamp.json"
    good = timestamp.read_bytes()
    timestamp.write_bytes(good.replace(b'"version":1,"x', b'"version":9,"x'))
    with pytest.raises(TrustError):
        desk.release("2")
    timestamp.write_bytes(good)
    desk.release("2")
    assert _version(tmp_path) == "2"


@pytest.mark.parametrize(
    ("target", "code"),
    [("rsync://127.0.0.1:9/there/repo", "rsync-failed"), ("rclone::webdav,url='http://127.0.0.1:9':repo", "rclone-failed")],
)
def test_nobody_who_answers_is_named(tmp_path: Path, target: str, code: str) -> None:
    desk = Desk(tmp_path / "desk", target, samples.keyring(tmp_path))
    with pytest.raises(TransportError) as refused:
        desk.release("1")
    assert refused.value.code == code
    assert "127.0.0.1" in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("rsync://host/module/repo", True),
        ("host:/srv/repo", True),
        ("me@host:repo", True),
        ("rclone:store:releases/os", True),
        ("rclone::s3,provider=Minio:releases", True),
        ("repo", False),
        ("/srv/re:po", False),
        ("./a:b", False),
    ],
)
def test_places_elsewhere_are_told_from_directories(text: str, is_one: bool) -> None:  # noqa: FBT001 - a table
    assert is_elsewhere(text) is is_one
