"""A file system that is full while a release is fetched: named, and gone on from when there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lying_server import LyingServer, serving
from trust_samples import file_of

from obelisk.errors import StateError
from obelisk.release.client.remote import Mirrors, WebMirror
from obelisk.system.http import Client

DATA = os.urandom(3 << 20)
FILE = file_of(DATA)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up_is_named_and_the_next_try_resumes(small: Path) -> None:
    with serving(LyingServer({FILE.path: DATA})) as server, Client() as client:
        mirrors = Mirrors([WebMirror(server.address, client)])
        with pytest.raises(StateError, match=f"{small}/x cannot be written: No space left on device") as caught:
            mirrors.fetch(FILE, small / "x", lambda _count: None)
        assert caught.value.hint == "make room there, or name another place"
        there = (small / "x.part").stat().st_size
        assert there == 2 << 20
        assert not (small / "x").exists()
        subprocess.run(["mount", "-o", "remount,size=8M", small], check=True)
        mirrors.fetch(FILE, small / "x", lambda _count: None)
        assert (small / "x").read_bytes() == DATA
        assert server.requests[-1].range == f"bytes={there}-{len(DATA) - 1}"
