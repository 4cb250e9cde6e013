"""Any to any: packs, indexes, and what a host fetches of them."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from release_samples import BLOCK, Sample, blocks, ignore, publish, sample, settle, slot

from obelisk.errors import TransportError, TrustError
from obelisk.model.release import File
from obelisk.release.client import blocks as client
from obelisk.release.client import index, planning
from obelisk.release.client.hashtree import SUPERBLOCK_BYTES, Run, read_superblock
from obelisk.release.client.planning import Have, Plan, Wanted
from obelisk.release.client.remote import DirectoryMirror, Mirrors
from obelisk.release.packing import compact, read_index, uses

OLD = tuple(range(1, 601))
NEW = (*range(1, 200), *range(1000, 1100), 0, 0, *range(250, 600), 1000, *range(1, 50))


class Counting(Mirrors):
    """A repository that knows what was fetched, and may lie or break."""

    def __init__(self, top: Path) -> None:
        super().__init__([DirectoryMirror(top)])
        self.fetched = 0
        self.requests = 0
        self.spoil: Callable[[File, range, bytes], bytes] = lambda _file, _range, data: data
        self.limit = 1 << 60

    def ranges(self, file: File, wanted: Sequence[range]) -> Iterator[tuple[range, bytes]]:
        for each, data in super().ranges(file, wanted):
            self.fetched += len(data)
            self.requests += 1
            if self.fetched > self.limit:
                raise TransportError("the cable is out", code="cable")
            yield each, self.spoil(file, each, data)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are made at a level that costs less."""
    monkeypatch.setattr("obelisk.release.packing.LEVEL", 1)


@pytest.fixture
def old(tmp_path: Path) -> Sample:
    return sample(tmp_path / "old", blocks(*OLD))


@pytest.fixture
def new(tmp_path: Path) -> Sample:
    return sample(tmp_path / "new", blocks(*NEW))


@pytest.fixture
def released(tmp_path: Path, old: Sample, new: Sample) -> tuple[Counting, File]:
    """A repository with both, and the index of the new one."""
    _file, known = publish(tmp_path / "repository", old)
    file, _known = publish(tmp_path / "repository", new, (known,))
    return Counting(tmp_path / "repository"), file


def bring(remote: Counting, wanted: Wanted, place: tuple[Path, Path], *haves: Have) -> tuple[Plan, tuple[int, list[Run]]]:
    ready = planning.plan(remote, wanted, place[0], haves, on_bytes=ignore)
    return ready, client.carry_out(remote, ready, *place, haves, on_bytes=ignore)


def holds(place: tuple[Path, Path], image: Sample) -> bool:
    tree = image.tree_file.read_bytes()
    return place[0].read_bytes()[: len(image.data)] == image.data and place[1].read_bytes()[: len(tree)] == tree


def test_a_host_with_the_old_image_fetches_the_new_blocks_only(
    tmp_path: Path, released: tuple[Counting, File], old: Sample, new: Sample
) -> None:
    remote, file = released
    place = slot(tmp_path, 1000)
    ready, (written, runs) = bring(remote, new.wanted(file), place, old.have)
    assert holds(place, new)
    assert 100 * BLOCK <= ready.fetch_bytes < 101 * BLOCK
    assert remote.fetched == ready.fetch_bytes + ready.planning_bytes
    assert ready.requests == 1
    assert sum(map(len, runs)) == len(NEW) - 2
    assert written == sum(map(len, runs)) * BLOCK + len(new.tree_file.read_bytes())


def test_a_host_with_nothing_fetches_everything(tmp_path: Path, released: tuple[Counting, File], new: Sample) -> None:
    remote, file = released
    place = slot(tmp_path, 1000, random.Random(5).randbytes(300 * BLOCK))
    bring(remote, new.wanted(file), place)
    assert holds(place, new)


def test_a_host_of_another_product_fetches_everything(tmp_path: Path, released: tuple[Counting, File], new: Sample) -> None:
    remote, file = released
    other = sample(tmp_path / "other", new.data, salt=b"another")
    place = slot(tmp_path, 1000)
    ready, _ = bring(remote, new.wanted(file), place, other.have)
    assert holds(place, new)
    assert ready.fetch_bytes > 300 * BLOCK


def test_nothing_is_fetched_or_written_twice(tmp_path: Path, released: tuple[Counting, File], new: Sample) -> None:
    remote, file = released
    place = slot(tmp_path, 1000)
    bring(remote, new.wanted(file), place)
    ready, written = bring(remote, new.wanted(file), place)
    assert (ready.fetch_bytes, ready.requests, written) == (0, 0, (0, []))


@pytest.mark.parametrize("limit", [150, 400, 600])
def test_an_interrupted_transfer_goes_on_where_it_ended(
    tmp_path: Path, released: tuple[Counting, File], new: Sample, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_BATCH_GROUPS", 1)
    remote, file = released
    place = slot(tmp_path, 1000)
    whole = planning.plan(remote, new.wanted(file), place[0], (), on_bytes=ignore).fetch_bytes
    remote.fetched, remote.limit = 0, limit * BLOCK
    with pytest.raises(TransportError):
        bring(remote, new.wanted(file), place)
    remote.limit = 1 << 60
    rest = planning.plan(remote, new.wanted(file), place[0], (), on_bytes=ignore).fetch_bytes
    assert rest <= whole - (limit - 4 * 128) * BLOCK
    bring(remote, new.wanted(file), place)
    assert holds(place, new)


def test_a_single_damaged_block_is_repaired_by_its_frame(tmp_path: Path, released: tuple[Counting, File], new: Sample) -> None:
    remote, file = released
    place = slot(tmp_path, 1000, new.data)
    with place[0].open("r+b") as device:
        device.seek(333 * BLOCK)
        device.write(b"rot")
    ready, (_written, runs) = bring(remote, new.wanted(file), place, Have(new.tree, None))
    assert holds(place, new)
    assert ready.requests == 1
    assert ready.fetch_bytes < 65 * BLOCK
    assert runs == [range(333, 334)]


def test_a_damaged_block_of_the_old_slot_is_fetched_instead(
    tmp_path: Path, released: tuple[Counting, File], old: Sample, new: Sample
) -> None:
    remote, file = released
    with old.root.open("r+b") as device:
        device.seek(20 * BLOCK)
        device.write(b"rot")
    place = slot(tmp_path, 1000)
    bring(remote, new.wanted(file), place, old.have)
    assert holds(place, new)


def test_blocks_whose_digests_begin_alike_are_told_apart(
    tmp_path: Path, released: tuple[Counting, File], old: Sample, new: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, file = released
    found = planning._find

    def mistaken(*arguments):  # type: ignore[no-untyped-def] # noqa: ANN002, ANN202 - passes on what it gets
        places = found(*arguments)
        places[210], places[470] = 5, 7
        return places

    monkeypatch.setattr(planning, "_find", mistaken)
    place = slot(tmp_path, 1000)
    bring(remote, new.wanted(file), place, old.have)
    assert holds(place, new)


@pytest.mark.parametrize("way", ["flip", "zeros", "swap"])
def test_what_a_lying_repository_sends_is_never_written(
    tmp_path: Path, released: tuple[Counting, File], old: Sample, new: Sample, way: str
) -> None:
    remote, file = released

    def spoil(asked: File, _range: range, data: bytes) -> bytes:
        if asked == file:
            return data
        if way == "flip":
            return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        return bytes(len(data)) if way == "zeros" else data[::-1]

    remote.spoil = spoil
    place = slot(tmp_path, 1000)
    with pytest.raises(TrustError):
        bring(remote, new.wanted(file), place, old.have)
    found = place[0].read_bytes()
    for at in range(0, len(new.data), BLOCK):
        assert found[at : at + BLOCK] in {bytes(BLOCK), new.data[at : at + BLOCK]}


@given(at=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_a_damaged_index_makes_an_error_or_the_image(
    tmp_path: Path, released: tuple[Counting, File], old: Sample, new: Sample, at: int, flip: int
) -> None:
    remote, file = released
    place = slot(tmp_path, 1000)
    target = at % file.size_bytes

    def spoil(asked: File, wanted: range, data: bytes) -> bytes:
        if asked != file or target not in wanted:
            return data
        here = target - wanted.start
        return data[:here] + bytes([data[here] ^ flip]) + data[here + 1 :]

    remote.spoil = spoil
    try:
        bring(remote, new.wanted(file), place, old.have)
    except (TrustError, TransportError):
        pass
    else:
        # Of the tree's first block the root hash vouches for what dm-verity goes by, and not for its UUID, a name, or what pads it.
        made, wanted = place[1].read_bytes()[:SUPERBLOCK_BYTES], new.tree_file.read_bytes()[:SUPERBLOCK_BYTES]
        assert read_superblock(made) == read_superblock(wanted)
        with place[1].open("r+b") as tree:
            tree.write(wanted)
        assert holds(place, new)


@given(st.binary(max_size=3000))
def test_what_is_no_index_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        index.decode(data, "00" * 32, BLOCK)
    with pytest.raises(TrustError):
        index.decode(index.HEADER.pack(index.MAGIC, len(data), len(data), 1) + data + bytes(32), "00" * 32, BLOCK)


def test_an_index_comes_back_as_it_was(tmp_path: Path, old: Sample) -> None:
    file, known = publish(tmp_path / "repository", old)
    read = read_index(tmp_path / "repository" / file.path, old.root_hash, len(old.data))
    assert read == known
    assert sum(frame.blocks for frame in known.index.frames) == 600


def test_releases_share_what_they_have_in_common(tmp_path: Path, old: Sample, new: Sample) -> None:
    top = tmp_path / "repository"
    _file, first = publish(top, old)
    _file, second = publish(top, new, (first,))
    _file, third = publish(top, new, (first, second))
    assert len(first.index.packs) == 1
    assert second.index.packs[0] == first.index.packs[0]
    assert second.index.packs[1].size_bytes < 101 * BLOCK
    assert third.index.packs == second.index.packs


def test_packs_that_are_mostly_dead_are_written_anew(tmp_path: Path, old: Sample, new: Sample) -> None:
    top = tmp_path / "repository"
    small = sample(tmp_path / "small", blocks(*range(1, 100), *range(2000, 2050)))
    _file, first = publish(top, old)
    _file, _second = publish(top, new, (first,))
    _file, third = publish(top, small, (first,))
    (use,) = (use for use in uses([third.index]) if use.pack == first.index.packs[0])
    assert use.live_bytes < use.pack.size_bytes / 3
    indexes, pack = compact({"small": third}, lambda wanted: top / wanted.path, top)
    assert pack is not None
    assert pack.file.size_bytes == use.live_bytes
    for stored in (pack, indexes["small"]):
        settle(top, stored)
    (top / first.index.packs[0].path).unlink()
    place = slot(tmp_path, 1000)
    bring(Counting(top), small.wanted(indexes["small"].file), place)
    assert holds(place, small)


def test_a_frame_is_not_used_for_hardly_anything_in_it(tmp_path: Path, old: Sample) -> None:
    _file, first = publish(tmp_path / "repository", old)
    other = sample(tmp_path / "other", blocks(*range(1, 65), 100, 200, *range(3000, 3010)))
    _file, second = publish(tmp_path / "repository", other, (first,))
    assert [frame.blocks for frame in second.index.frames] == [64, 12]


def test_packs_that_are_needed_stay(tmp_path: Path, old: Sample) -> None:
    _file, known = publish(tmp_path / "repository", old)
    assert compact({"old": known}, lambda wanted: tmp_path / "repository" / wanted.path, tmp_path) == ({}, None)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=300), st.lists(st.integers(0, 40), min_size=1, max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_any_image_is_made_out_of_any(tmp_path_factory: pytest.TempPathFactory, before: list[int], after: list[int]) -> None:
    tmp = tmp_path_factory.mktemp("any")
    one, other = sample(tmp / "old", blocks(*before)), sample(tmp / "new", blocks(*after))
    _file, known = publish(tmp / "repository", one)
    file, _known = publish(tmp / "repository", other, (known,))
    place = slot(tmp, 400, blocks(*after[::-1]))
    bring(Counting(tmp / "repository"), other.wanted(file), place, one.have)
    assert holds(place, other)


def test_a_missing_pack_is_named(tmp_path: Path, released: tuple[Counting, File], new: Sample) -> None:
    remote, file = released
    place = slot(tmp_path, 1000)
    ready = planning.plan(remote, new.wanted(file), place[0], (), on_bytes=ignore)
    gone = replace(ready.index.packs[0], sha256="0" * 64)
    with pytest.raises(TransportError, match=gone.sha256):
        list(remote.ranges(gone, [range(1)]))
