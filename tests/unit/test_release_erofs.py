"""Files of EROFS images, and edges that follow them."""

import random
from pathlib import Path

import pytest
from erofs_samples import erofs
from hypothesis import given
from hypothesis import strategies as st
from release_samples import BLOCK, Sample, ignore, sample, slot

from obelisk.release import edges
from obelisk.release.client import edge
from obelisk.release.erofs import read_files


def code(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def tree(version: str, *, patch: bytes = b"") -> dict[str, bytes]:
    """Files of which some lie under another path in another version."""
    modules = {f"/usr/lib/modules/{version}/m{number}.ko": code(number, 30_000 + 500 * number) + patch for number in range(12)}
    return {**modules, "/etc/os-release": f"VERSION={version}\n".encode(), "/usr/bin/tool": code(99, 100_000), "/empty": b""}


def test_files_are_found_where_they_lie() -> None:
    files = tree("6.1.0-1")
    image = erofs(files)
    found = read_files(memoryview(image))
    assert found is not None
    assert {extent.path for extent in found} == set(files) - {"/empty"}
    for extent in found:
        start = extent.blocks.start * BLOCK
        assert image[start : start + extent.size_bytes] == files[extent.path]
        assert len(extent.blocks) == -(-extent.size_bytes // BLOCK)


@pytest.mark.parametrize("damage", [{"layout": 1}, {"layout": 3}, {"layout": 4}, {"features": 0x20}])
def test_what_is_compressed_is_not_understood(damage: dict[str, int]) -> None:
    assert read_files(memoryview(erofs({"/a": b"content"}, **damage))) is None


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_damaged_image_is_understood_or_not(at: int, flip: int) -> None:
    image = bytearray(erofs({"/a/b": b"x" * 5000, "/c": b"y"}))
    image[at % len(image)] ^= flip
    for extent in read_files(memoryview(image)) or ():
        assert 0 <= extent.blocks.start < extent.blocks.stop <= len(image) // BLOCK


@given(st.binary(max_size=9000))
def test_what_is_no_image_is_not_understood(data: bytes) -> None:
    assert read_files(memoryview(data)) is None


def make(one: Sample, other: Sample, tmp: Path) -> int:
    """The size of the edge, which was applied."""
    edges.make_edge(one.image, other.image, tmp / "edge", on_bytes=ignore)
    place = slot(tmp, 1000)
    edge.apply(
        tmp / "edge",
        edge.Old(one.root, one.tree, one.uki),
        edge.New(*place, other.root_hash, len(other.data), None),
        on_bytes=ignore,
    )
    assert place[0].read_bytes()[: len(other.data)] == other.data
    return (tmp / "edge").stat().st_size


def test_files_under_a_new_version_are_the_difference_to_those_under_the_old(tmp_path: Path) -> None:
    one = sample(tmp_path / "old", erofs(tree("6.1.0-1"), time=5))
    other = sample(tmp_path / "new", erofs(tree("6.1.0-12", patch=b"!"), time=6))
    assert make(one, other, tmp_path) < 3000


def test_an_image_that_is_not_understood_has_an_edge_all_the_same(tmp_path: Path) -> None:
    one = sample(tmp_path / "old", erofs(tree("6.1.0-1"), layout=3))
    other = sample(tmp_path / "new", erofs(tree("6.1.0-2", patch=b"!"), layout=3))
    assert make(one, other, tmp_path) < 10_000


def test_large_files_are_made_window_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obelisk.release.client.patch.UNIT_BLOCKS", 16)
    monkeypatch.setattr("obelisk.release.client.patch.WINDOW_BLOCKS", 32)
    body = code(1, 100 * BLOCK)
    one = sample(tmp_path / "old", erofs({"/large": body}))
    other = sample(tmp_path / "new", erofs({"/large": b"new in front" + body[: 60 * BLOCK] + b"and within" * 50 + body[60 * BLOCK :]}))
    assert make(one, other, tmp_path) < 8000
