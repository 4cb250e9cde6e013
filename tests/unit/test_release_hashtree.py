"""The hash tree of dm-verity, outside the kernel. That it is the kernel's own, tests with machines show."""

from pathlib import Path

import pytest
from host_samples import sealed
from hypothesis import given
from hypothesis import strategies as st

from obelisk.errors import TrustError
from obelisk.release.client import hashtree
from obelisk.system.blocks import BlockDevice


@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 300, 16_385])
def test_a_sound_device_has_no_wrong_blocks(tmp_path: Path, blocks: int) -> None:
    data, tree, root_hash = sealed(blocks)
    (tmp_path / "root").write_bytes(data)
    parsed = hashtree.parse(tree, root_hash)
    assert (parsed.data_blocks, parsed.salt) == (blocks, b"salt")
    assert hashtree.tree_bytes(blocks) == len(tree)
    read: list[int] = []
    with BlockDevice(tmp_path / "root") as device:
        assert hashtree.find_wrong(device, parsed, on_bytes=read.append) == []
    assert sum(read) == len(data)


@pytest.mark.parametrize("wrong", [(0,), (5, 6, 7), (299,), (0, 128, 299)])
def test_exactly_the_damaged_blocks_are_named(tmp_path: Path, wrong: tuple[int, ...]) -> None:
    data, tree, root_hash = sealed(300)
    damaged = bytearray(data)
    for block in wrong:
        damaged[block * 4096 + 17] ^= 1
    (tmp_path / "root").write_bytes(damaged)
    with BlockDevice(tmp_path / "root") as device:
        found = hashtree.find_wrong(device, hashtree.parse(tree, root_hash), on_bytes=lambda _count: None)
        assert [block for run in found for block in run] == list(wrong)
        some = hashtree.find_wrong(device, hashtree.parse(tree, root_hash), runs=[range(6, 200)], on_bytes=lambda _count: None)
    assert [block for run in some for block in run] == [block for block in wrong if 6 <= block < 200]


def test_what_a_short_device_lacks_is_wrong(tmp_path: Path) -> None:
    data, tree, root_hash = sealed(300)
    (tmp_path / "root").write_bytes(data[: 256 * 4096])
    with BlockDevice(tmp_path / "root") as device:
        assert hashtree.find_wrong(device, hashtree.parse(tree, root_hash), on_bytes=lambda _count: None) == [range(256, 300)]


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_flipped_byte_of_a_tree_goes_unnoticed(position: int, flip: int) -> None:
    _data, tree, root_hash = sealed(200)
    damaged = bytearray(tree)
    # The superblock has fields that nothing reads: the id, and padding.
    readable = [*range(16), *range(32, 512)]
    readable = [at for at in range(len(tree)) if at >= 4096] + [at for at in readable if at < 16 or 64 <= at < 82 or at == 88]
    damaged[readable[position % len(readable)]] ^= flip
    with pytest.raises(TrustError):
        hashtree.parse(bytes(damaged), root_hash)


@pytest.mark.parametrize("size", [0, 100, 4096, 8192])
def test_a_tree_that_is_cut_short_is_refused(size: int) -> None:
    _data, tree, root_hash = sealed(300)
    with pytest.raises(TrustError):
        hashtree.parse(tree[:size], root_hash)


def test_a_tree_of_another_root_hash_is_refused() -> None:
    _data, tree, _root_hash = sealed(300)
    with pytest.raises(TrustError):
        hashtree.parse(tree, "00" * 32)


def test_runs_are_blocks_that_follow_each_other() -> None:
    assert hashtree.as_runs([]) == []
    assert hashtree.as_runs([1, 2, 3, 7, 9, 10]) == [range(1, 4), range(7, 8), range(9, 11)]
