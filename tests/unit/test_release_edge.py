"""Edges: made, applied, cut, and hostile."""

import lzma
import random
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from release_samples import BLOCK, Sample, blocks, ignore, sample, slot

from obelisk.errors import TrustError
from obelisk.release import edges
from obelisk.release.client import edge, patch, solid, varint
from obelisk.release.client.edge import New, Old, Uki
from obelisk.release.client.hashtree import Run
from obelisk.release.client.solid import Stream


def text(seed: int, size: int) -> bytes:
    """Data of which small parts compress and resemble each other."""
    dice = random.Random(seed)
    words = [dice.randbytes(dice.randrange(4, 12)) for _ in range(200)]
    out = bytearray()
    while len(out) < size:
        out += dice.choice(words)
    return bytes(out[:size])


def edited(data: bytes, seed: int) -> bytes:
    """The same with bytes changed, taken out and put in, in whole blocks."""
    dice = random.Random(seed)
    out = bytearray(data)
    for _ in range(40):
        at = dice.randrange(len(out))
        match dice.randrange(3):
            case 0:
                out[at : at + 3] = dice.randbytes(3)
            case 1:
                del out[at : at + dice.randrange(60)]
            case _:
                out[at:at] = dice.randbytes(dice.randrange(60))
    return bytes(out) + bytes(-len(out) % BLOCK)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, Sample, Path]:
    """Two images and the edge between them."""
    place = tmp_path_factory.mktemp("pair")
    body = text(1, 200 * BLOCK)
    old = sample(place / "old", blocks(*range(1, 300)) + body, uki=text(2, 50_000))
    new_body = edited(body, 3)
    new = sample(
        place / "new", blocks(*range(1, 100), *range(150, 300), 7, 7, 0, 0, 900) + new_body, uki=edited(text(2, 50_000), 4)[:49_000]
    )
    edges.make_edge(old.image, new.image, place / "edge", on_bytes=ignore)
    return old, new, place / "edge"


def take(file: Path, old: Sample, new: Sample, place: tuple[Path, Path]) -> tuple[int, list[Run]]:
    uki = Uki(place[0].with_name("uki"), new.uki.stat().st_size, _sha256(new.uki))
    target = New(place[0], place[1], new.root_hash, len(new.data), uki)
    return edge.apply(file, Old(old.root, old.tree, old.uki), target, on_bytes=ignore)


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def test_an_edge_makes_root_tree_and_kernel_image(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    place = slot(tmp_path, 1000)
    written, runs = take(file, old, new, place)
    assert place[0].read_bytes()[: len(new.data)] == new.data
    tree = new.tree_file.read_bytes()
    assert place[1].read_bytes()[: len(tree)] == tree
    assert (tmp_path / "uki").read_bytes() == new.uki.read_bytes()
    assert sum(map(len, runs)) * BLOCK == len(new.data) - 2 * BLOCK  # two are zeros, as the slot is
    assert written == sum(map(len, runs)) * BLOCK + len(tree)
    assert file.stat().st_size < 20 * BLOCK


def test_a_second_run_writes_nothing(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    place = slot(tmp_path, 1000)
    take(file, old, new, place)
    assert take(file, old, new, place) == (0, [])


def test_a_run_after_a_cut_writes_what_is_left(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    place = slot(tmp_path, 1000, new.data[: 300 * BLOCK])
    written, runs = take(file, old, new, place)
    assert runs[0].start >= 252
    assert written < len(new.data) - 200 * BLOCK
    assert place[0].read_bytes()[: len(new.data)] == new.data


def test_progress_covers_the_root(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    place = slot(tmp_path, 1000)
    seen: list[int] = []
    edge.apply(file, Old(old.root, old.tree, old.uki), New(*place, new.root_hash, len(new.data), None), on_bytes=seen.append)
    assert sum(seen) == len(new.data)


def test_an_edge_is_the_same_every_time(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    seen: list[int] = []
    edges.make_edge(old.image, new.image, tmp_path / "again", on_bytes=seen.append)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert sum(seen) == len(new.data)


def test_an_old_image_that_is_damaged_is_not_passed_on(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    damaged = sample(tmp_path / "damaged", old.data, uki=old.uki.read_bytes())
    with damaged.root.open("r+b") as device:
        device.seek(40 * BLOCK)
        device.write(b"rot")
    place = slot(tmp_path, 1000)
    with pytest.raises(TrustError) as caught:
        take(file, damaged, new, place)
    assert caught.value.code == "edge-damaged"
    only_right(place, new)


def test_an_edge_to_another_image_is_refused(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    other = sample(tmp_path / "other", blocks(*range(len(new.data) // BLOCK)))
    place = slot(tmp_path, 1000)
    with pytest.raises(TrustError):
        take(file, old, other, place)
    assert not any(place[0].read_bytes())


def test_a_kernel_image_that_comes_out_wrong_is_not_there(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    place = slot(tmp_path, 1000)
    target = New(*place, new.root_hash, len(new.data), Uki(tmp_path / "uki", new.uki.stat().st_size, "0" * 64))
    with pytest.raises(TrustError):
        edge.apply(file, Old(old.root, old.tree, old.uki), target, on_bytes=ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slot", "slot.tree"]


def test_without_the_old_kernel_image_there_is_no_new_one(pair: tuple[Sample, Sample, Path], tmp_path: Path) -> None:
    old, new, file = pair
    place = slot(tmp_path, 1000)
    target = New(*place, new.root_hash, len(new.data), Uki(tmp_path / "uki", new.uki.stat().st_size, _sha256(new.uki)))
    with pytest.raises(TrustError, match="No such file"):
        edge.apply(file, Old(old.root, old.tree, tmp_path / "gone"), target, on_bytes=ignore)
    assert not (tmp_path / "uki").exists()


def only_right(place: tuple[Path, Path], new: Sample) -> None:
    """Nothing is in the slot but zeros, as before, and blocks where the new image has them."""
    found = place[0].read_bytes()
    for at in range(0, len(new.data), BLOCK):
        assert found[at : at + BLOCK] in {bytes(BLOCK), new.data[at : at + BLOCK]}


@given(at=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_a_flipped_byte_makes_an_error_or_the_image(pair: tuple[Sample, Sample, Path], tmp_path: Path, at: int, flip: int) -> None:
    old, new, file = pair
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= flip
    attempt(bytes(data), old, new, tmp_path)


@given(size=st.integers(min_value=0))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_an_edge_that_is_cut_short_is_refused(pair: tuple[Sample, Sample, Path], tmp_path: Path, size: int) -> None:
    old, new, file = pair
    data = file.read_bytes()
    assert not attempt(data[: size % len(data)], old, new, tmp_path)


def attempt(data: bytes, old: Sample, new: Sample, tmp_path: Path) -> bool:
    """Whether such a file makes the image; if not, the error is one of trust, and nothing wrong was written."""
    (tmp_path / "hostile").write_bytes(data)
    place = slot(tmp_path, 1000)
    try:
        take(tmp_path / "hostile", old, new, place)
    except TrustError:
        only_right(place, new)
        return False
    assert place[0].read_bytes()[: len(new.data)] == new.data
    return True


def forged(plan: bytes, digests: bytes = b"", **streams: bytes) -> bytes:
    """An edge whose streams are sound, whatever is in them."""
    packed = []
    for stream in Stream:
        writer = solid.Writer(stream)
        writer.write(plan if stream is Stream.PLAN else streams.get(stream.name, b""))
        packed.append(writer.finish())
    head = edge.HEADER.pack(edge.MAGIC, *map(len, packed), len(digests), len(plan))
    return b"".join((head, *packed, digests))


def plan_of(superblock: bytes, *parts: list[int]) -> bytes:
    encoded = [varint.encode(part) for part in parts]
    return superblock + b"".join(varint.encode([len(part)]) + part for part in encoded)


numbers = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 5000), st.integers(0, 1 << 62)), max_size=30)


@given(pieces=numbers, files=numbers, metadata=numbers, control=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
def test_no_plan_is_believed(
    pair: tuple[Sample, Sample, Path], tmp_path: Path, pieces: list[int], files: list[int], metadata: list[int], control: bytes
) -> None:
    old, _new, _file = pair
    new = sample(tmp_path / f"new-{random.Random().getrandbits(64)}", blocks(1, 2, 3, 4, 5))
    # The right digest comes with it, so that what follows is reached: of a tree of one block, it is the root hash.
    given_digests = bytes.fromhex(new.root_hash)
    plan = plan_of(new.tree.superblock, pieces or [5 << 2 | 1], files, metadata, [])
    streams = {"CONTROL": control, "METADATA_CONTROL": control, "DIFFERENCE": bytes(10 * BLOCK), "METADATA_DIFFERENCE": control}
    assert not attempt(forged(plan, given_digests, **streams), old, new, tmp_path)


def test_windows_without_end_are_refused(pair: tuple[Sample, Sample, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, file = pair
    assert attempt(file.read_bytes(), old, new, tmp_path)
    monkeypatch.setattr(edge, "_WINDOWS", 0)
    monkeypatch.setattr(edge, "_WINDOWS_PER_BLOCK", 0)
    assert not attempt(file.read_bytes(), old, new, tmp_path)


def test_a_stream_that_expands_without_end_takes_no_memory_beyond_what_is_read(tmp_path: Path) -> None:
    chain = solid.filters(Stream.DIFFERENCE)
    bomb = lzma.compress(bytes(20 << 20), lzma.FORMAT_RAW, filters=[{**dict(chain[0]), "preset": 0}])
    (tmp_path / "bomb").write_bytes(bomb)
    with (tmp_path / "bomb").open("rb") as file:
        reader = solid.Reader(Stream.DIFFERENCE, file.fileno(), 0, len(bomb))
        assert reader.read(100) == bytes(100)
        assert len(reader._ready) <= 1 << 16


@given(st.data())
@settings(deadline=None)
def test_sums_of_words_undo_their_differences(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([4, 8, 4096, 65536]))
    one, other = (random.Random(data.draw(st.integers(0, 1 << 32))).randbytes(size) for _ in range(2))
    difference = patch.subtract(one, other)
    assert patch.add(other, difference) == one
    for at in (0, size // 2 & ~3, size - 4):
        left, right, found = (int.from_bytes(part[at : at + 4], "little") for part in (one, other, difference))
        assert (left - right) % (1 << 32) == found


@given(st.lists(st.tuples(st.integers(0, 1 << 23), st.integers(0, 1 << 23), st.integers(-(1 << 24), 1 << 24)), max_size=50))
def test_steps_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]]) -> None:
    steps = patch.Steps(*(tuple(row[column] for row in rows) for column in range(3)))
    writer = solid.Writer(Stream.CONTROL)
    writer.write(patch.pack_steps(steps))
    packed = writer.finish()
    path = tmp_path_factory.mktemp("steps") / "stream"
    path.write_bytes(packed)
    with path.open("rb") as file:
        read = patch.read_steps(solid.Reader(Stream.CONTROL, file.fileno(), 0, len(packed)), len(rows))
    assert [tuple(column) for column in (read.copied, read.added, read.seek)] == [tuple(c) for c in (steps.copied, steps.added, steps.seek)]


@given(st.lists(st.integers(0, (1 << 63) - 1)), st.lists(st.integers(-(1 << 61), 1 << 61)))
def test_numbers_come_back_as_they_were(plain: list[int], signed: list[int]) -> None:
    reader = varint.Reader(varint.encode([*plain, *map(varint.zigzag, signed)]))
    assert [reader.number() for _ in plain] == plain
    assert [reader.signed() for _ in signed] == signed
    assert reader.at_end


@given(st.binary(max_size=12))
def test_what_is_no_number_is_an_error(data: bytes) -> None:
    reader = varint.Reader(data + b"\xff")
    with pytest.raises(ValueError, match=r"\d"):
        list(iter(reader.number, None))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=300), st.lists(st.integers(0, 14), min_size=1, max_size=300))
@settings(deadline=None, max_examples=10)
def test_any_image_is_made_out_of_any(tmp_path_factory: pytest.TempPathFactory, before: list[int], after: list[int]) -> None:
    tmp = tmp_path_factory.mktemp("any")
    one, other = sample(tmp / "old", blocks(*before)), sample(tmp / "new", blocks(*after))
    edges.make_edge(one.image, other.image, tmp / "edge", on_bytes=ignore)
    place = slot(tmp, 400, one.data)
    take(tmp / "edge", one, other, place)
    assert place[0].read_bytes()[: len(other.data)] == other.data


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 257])
def test_groups_that_are_not_full_are_vouched_for_too(tmp_path: Path, count: int) -> None:
    image = sample(tmp_path / "old", blocks(*range(1, count + 1)))
    edges.make_edge(image.image, image.image, tmp_path / "edge", on_bytes=ignore)
    place = slot(tmp_path, 300)
    take(tmp_path / "edge", image, image, place)
    assert place[0].read_bytes()[: len(image.data)] == image.data


def test_an_edge_between_products_copies_nothing(tmp_path: Path) -> None:
    one = sample(tmp_path / "old", blocks(1, 2, 3), salt=b"one")
    other = sample(tmp_path / "new", blocks(1, 2, 3, 4), salt=b"other")
    edges.make_edge(one.image, other.image, tmp_path / "edge", on_bytes=ignore)
    place = slot(tmp_path, 10)
    take(tmp_path / "edge", one, other, place)
    assert place[0].read_bytes()[: len(other.data)] == other.data
