"""Files come from whichever mirror has them, are right, and are not fetched twice."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lying_server import Lie, LyingServer, serving
from trust_samples import MemoryMirror, file_of

from obelisk.errors import InputError, ObeliskError, StateError, TransportError, TrustError
from obelisk.model.release import File
from obelisk.release.client.remote import DirectoryMirror, Mirrors, MissingError, WebMirror, mirror
from obelisk.system.http import Client, Limits

DATA = os.urandom(400_000)
FILE = file_of(DATA)
QUICK = Limits(connect_s=0.4, idle_s=0.4, window_s=0.3, least_bytes_s=2000)


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_disks() -> Iterator[None]:
    """Whether it is durable is not what is asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(QUICK) as made:
        yield made


@pytest.fixture
def server() -> Iterator[LyingServer]:
    with serving(LyingServer({FILE.path: DATA})) as started:
        yield started


def mirrors(*sources: LyingServer, client: Client) -> Mirrors:
    return Mirrors([WebMirror(source.address, client) for source in sources])


def test_a_file_is_fetched_whole_and_every_byte_told_once(tmp_path: Path, client: Client, server: LyingServer) -> None:
    told: list[int] = []
    mirrors(server, client=client).fetch(FILE, tmp_path / "x", told.append)
    assert (tmp_path / "x").read_bytes() == DATA
    assert sum(told) == len(DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    mirrors(server, client=client).fetch(FILE, tmp_path / "x", told.append)
    assert sum(told) == 2 * len(DATA)
    assert len(server.requests) == 1


def test_what_was_cut_off_is_resumed_and_only_the_rest_is_fetched(tmp_path: Path, client: Client, server: LyingServer) -> None:
    server.cut_after = 300_000
    with pytest.raises(TransportError, match=f"{FILE.path}: cut short after 300000 of 400000 bytes"):
        mirrors(server, client=client).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert not (tmp_path / "x").exists()
    told: list[int] = []
    mirrors(server, client=client).fetch(FILE, tmp_path / "x", told.append)
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.requests[-1].range == "bytes=300000-399999"
    assert server.sent_bytes == len(DATA)
    assert sum(told) == len(DATA)


def test_another_mirror_goes_on_where_the_first_broke_off(tmp_path: Path, client: Client, server: LyingServer) -> None:
    server.lies["files/"] = Lie.TRUNCATED
    said: list[str] = []
    with serving(LyingServer({FILE.path: DATA})) as other:
        both = Mirrors([WebMirror(server.address, client), WebMirror(other.address, client)], say=said.append)
        both.fetch(FILE, tmp_path / "x", lambda _count: None)
        assert other.sent_bytes == len(DATA) // 2
        assert said == [f"{server.address}/{FILE.path}: cut short after 200000 of 400000 bytes; asking {other.address}"]
    assert (tmp_path / "x").read_bytes() == DATA


WRONG = {
    Lie.TRUNCATED: "http-cut-short",
    Lie.FLIPPED: "file-wrong",
    Lie.SWAPPED: "file-wrong",
    Lie.LONGER: "http-too-long",
    Lie.SHORTER: "mirror-wrong",
    Lie.ENDLESS: "file-wrong",
    Lie.ENDLESS_CHUNKED: "http-too-long",
    Lie.SLOW: "http-slow",
    Lie.STALLED: "http-stalled",
    Lie.LOOP: "http-redirect",
    Lie.GARBAGE: "http-wrong",
    Lie.BUSY: "http-status",
}


@pytest.mark.parametrize("lie", WRONG, ids=lambda lie: lie.name.lower())
def test_nothing_wrong_gets_a_name_and_the_next_try_has_it_right(tmp_path: Path, client: Client, server: LyingServer, lie: Lie) -> None:
    server.lies["files/"] = lie
    with pytest.raises(ObeliskError) as caught:
        mirrors(server, client=client).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert FILE.path in caught.value.message
    assert caught.value.hint
    if lie is not Lie.ENDLESS:  # which may be cut off at the right length, or be seen to be too long
        assert caught.value.code == WRONG[lie]
    assert not (tmp_path / "x").exists()
    server.lies.clear()
    mirrors(server, client=client).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert (tmp_path / "x").read_bytes() == DATA


LEFT = {
    "nothing": b"",
    "its beginning": DATA[:5],
    "nearly all": DATA[:-1],
    "all": DATA,
    "another": b"wrong" * 100,
    "more": DATA + b"more",
    "zeros": bytes(len(DATA)),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_whatever_lies_there_from_before_the_file_gets_right(tmp_path: Path, left: bytes, *, ranges: bool) -> None:
    (tmp_path / "x.part").write_bytes(left)
    source = MemoryMirror({FILE.path: DATA}, ranges_known=ranges)
    Mirrors([source]).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert (tmp_path / "x").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_wrong_bytes_of_before_are_not_blamed_on_a_mirror_that_is_right(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"wrong")
    Mirrors([MemoryMirror({FILE.path: DATA})]).fetch(FILE, tmp_path / "x", lambda _count: None)
    with pytest.raises(TrustError, match="damaged or exchanged"):
        Mirrors([MemoryMirror({FILE.path: bytes(len(DATA))})]).fetch(FILE, tmp_path / "y", lambda _count: None)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_named_and_what_came_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemoryMirror({FILE.path: DATA})
    free = 150_000
    plain_open = Path.open

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file
            self.room = free

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_raised: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *rest: Full(plain_open(path, mode, *rest)) if mode == "a+b" else plain_open(path, mode, *rest)
    )
    with pytest.raises(StateError, match="No space left") as caught:
        Mirrors([source, MemoryMirror({FILE.path: DATA}, "other")]).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert caught.value.hint == "make room there, or name another place"
    monkeypatch.undo()
    assert (tmp_path / "x.part").stat().st_size == free
    before = source.sent_bytes
    Mirrors([source]).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert source.sent_bytes - before == len(DATA) - free


def test_who_is_down_is_asked_last_from_then_on(tmp_path: Path) -> None:
    down, up = MemoryMirror(None, "down"), MemoryMirror({FILE.path: DATA}, "up")
    both = Mirrors([down, up])
    both.fetch(FILE, tmp_path / "x", lambda _count: None)
    assert list(both.ranges(FILE, [range(5)])) == [(range(5), DATA[:5])]
    assert len(down.requests) == 1


def test_an_error_names_what_is_wrong_with_each_mirror(tmp_path: Path) -> None:
    wrong, down, empty = MemoryMirror({FILE.path: b""}, "wrong"), MemoryMirror(None, "down"), MemoryMirror({}, "empty")
    with pytest.raises(TransportError, match=r"wrong/.*; down is down; empty has no") as caught:
        Mirrors([wrong, down, empty]).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert caught.value.code == "mirror-wrong"
    with pytest.raises(MissingError, match=r"one has no .*; two has no"):
        Mirrors([MemoryMirror({}, "one"), MemoryMirror({}, "two")]).fetch(FILE, tmp_path / "x", lambda _count: None)


WANTED = [range(10), range(10, 5000), range(7000, 7001), range(399_000, 400_000)]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_ranges_come_whole_and_in_order(client: Client, server: LyingServer, *, ranges: bool) -> None:
    if not ranges:
        server.lies["files/"] = Lie.NO_RANGES
    found = list(mirrors(server, client=client).ranges(FILE, WANTED))
    assert found == [(each, DATA[each.start : each.stop]) for each in WANTED]
    assert len(server.requests) == (len(WANTED) if ranges else 1)
    assert server.connections == 1


@given(st.lists(st.tuples(st.integers(0, 9_999), st.integers(1, 3_000)), max_size=8), st.booleans(), st.integers(99, 4000))
def test_any_ranges_of_any_mirror_are_the_file_s(spans: list[tuple[int, int]], known: bool, piece: int) -> None:  # noqa: FBT001
    data = DATA[:10_000]
    file = file_of(data)
    wanted = [range(start, min(start + size, len(data))) for start, size in sorted(spans)]
    source = MemoryMirror({file.path: data}, ranges_known=known, piece_bytes=piece)
    assert list(Mirrors([source]).ranges(file, wanted)) == [(each, data[each.start : each.stop]) for each in wanted]


def test_ranges_go_on_with_another_mirror_and_none_twice(client: Client, server: LyingServer) -> None:
    with serving(LyingServer({FILE.path: DATA})) as other:
        found = []
        for each, data in mirrors(server, other, client=client).ranges(FILE, WANTED):
            found.append((each, data))
            server.lies["files/"] = Lie.OTHER_RANGE
        assert found == [(each, DATA[each.start : each.stop]) for each in WANTED]
        assert (len(server.requests), len(other.requests)) == (2, len(WANTED) - 1)


def test_ranges_of_a_file_that_is_too_short_end_with_an_error() -> None:
    source = MemoryMirror({FILE.path: DATA[:5000]})
    with pytest.raises(TransportError, match="bytes 7000-7000 are not all there"):
        list(Mirrors([source]).ranges(FILE, WANTED))


def test_a_directory_is_a_mirror_too(tmp_path: Path, client: Client) -> None:
    place = tmp_path / "repository" / FILE.path
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    source = mirror((tmp_path / "repository").as_uri(), client)
    for address in (str(tmp_path / "repository"), (tmp_path / "repository").as_uri()):
        source = mirror(address, client)
        assert isinstance(source, DirectoryMirror)
        Mirrors([source]).fetch(FILE, tmp_path / "x", lambda _count: None)
        assert [data for _, data in Mirrors([source]).ranges(FILE, WANTED)] == [DATA[each.start : each.stop] for each in WANTED]
    with pytest.raises(MissingError):
        Mirrors([source]).fetch(File("0" * 64, 1), tmp_path / "y", lambda _count: None)
    with pytest.raises(MissingError, match="leads out"):
        Mirrors([source]).read("../x", most_bytes=1 << 20, is_right=lambda _data: True)


@pytest.mark.parametrize("address", ["/nowhere/at/all", "ftp://example.org/x", "http://", "http://[", "file:///nowhere"])
def test_what_is_no_mirror_is_refused(address: str, client: Client) -> None:
    with pytest.raises(InputError, match="neither an address nor a directory"):
        mirror(address, client)


FETCH = """
import sys
from pathlib import Path
from obelisk.model.release import File
from obelisk.release.client.remote import Mirrors, mirror
from obelisk.system.http import Client, Limits

with Client(Limits(bandwidth_bytes_s=400_000)) as client:
    done = 0
    def told(count):
        global done
        done += count
        print(done, flush=True)
    Mirrors([mirror(sys.argv[1], client)]).fetch(File(sys.argv[2], int(sys.argv[3])), Path(sys.argv[4]), told)
"""


def test_who_is_killed_while_fetching_goes_on_from_there(tmp_path: Path, client: Client, server: LyingServer) -> None:
    words = [sys.executable, "-c", FETCH, server.address, FILE.sha256, str(FILE.size_bytes), str(tmp_path / "x")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as fetching:
        assert fetching.stdout is not None
        for line in fetching.stdout:
            if int(line) > 100_000:
                fetching.kill()
                break
    assert not (tmp_path / "x").exists()
    there = (tmp_path / "x.part").stat().st_size
    assert 0 < there < len(DATA)
    mirrors(server, client=client).fetch(FILE, tmp_path / "x", lambda _count: None)
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.requests[-1].range == f"bytes={there}-{len(DATA) - 1}"
