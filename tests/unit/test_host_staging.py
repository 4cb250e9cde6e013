"""Bringing an image into a slot, on files in the place of devices."""

from pathlib import Path

import pytest
from host_samples import manifest, sealed

from obelisk.errors import TrustError
from obelisk.host.source import DirectorySource
from obelisk.host.staging import check_image, write_image
from obelisk.model.image import PartKind
from obelisk.release.client import hashtree

BLOCKS = 700


@pytest.fixture
def source(tmp_path: Path) -> DirectorySource:
    data, tree, root_hash = sealed(BLOCKS)
    given = manifest(root_hash=root_hash)
    (tmp_path / given.part(PartKind.ROOT).file).write_bytes(data)
    (tmp_path / given.part(PartKind.VERITY).file).write_bytes(tree)
    return DirectorySource(tmp_path, given, hashtree.parse(tree, root_hash))


@pytest.fixture
def slot(tmp_path: Path) -> tuple[Path, Path]:
    root, tree = tmp_path / "slot", tmp_path / "slot.tree"
    root.write_bytes(bytes(1000 * 4096))
    tree.write_bytes(bytes(100 * 4096))
    return root, tree


def ignore(_count: int) -> None:
    """Progress that nobody wants to see."""


def test_an_image_is_written_whole_and_then_nothing_is_left_to_write(source: DirectorySource, slot: tuple[Path, Path]) -> None:
    data = source.path(PartKind.ROOT).read_bytes()
    written, runs = write_image(*slot, source, on_bytes=ignore)
    assert slot[0].read_bytes()[: len(data)] == data
    assert written >= len(data) - 3 * 4096  # some blocks of it are zeros, as the slot is
    check_image(*slot, source, runs, on_bytes=ignore)
    assert write_image(*slot, source, on_bytes=ignore) == (0, [])


@pytest.mark.parametrize("stop", [1, 300, 699])
def test_what_an_interruption_left_is_completed(source: DirectorySource, slot: tuple[Path, Path], stop: int) -> None:
    data = source.path(PartKind.ROOT).read_bytes()
    with slot[0].open("r+b") as file:
        file.write(data[: stop * 4096])
    written, runs = write_image(*slot, source, on_bytes=ignore)
    assert runs[-1].stop == BLOCKS
    assert written <= (BLOCKS - stop) * 4096 + source.path(PartKind.VERITY).stat().st_size
    check_image(*slot, source, None, on_bytes=ignore)


def test_blocks_written_are_the_blocks_that_differ(source: DirectorySource, slot: tuple[Path, Path]) -> None:
    write_image(*slot, source, on_bytes=ignore)
    with slot[0].open("r+b") as file:
        for block in (3, 4, 500):
            file.seek(block * 4096)
            file.write(b"other")
    assert write_image(*slot, source, on_bytes=ignore) == (3 * 4096, [range(3, 5), range(500, 501)])


def test_a_damaged_source_is_never_written(source: DirectorySource, slot: tuple[Path, Path]) -> None:
    with source.path(PartKind.ROOT).open("r+b") as file:
        file.seek(600 * 4096)
        file.write(b"damaged")
    with pytest.raises(TrustError):
        write_image(*slot, source, on_bytes=ignore)
    assert b"damaged" not in slot[0].read_bytes()


def test_a_slot_that_does_not_keep_what_is_written_is_found(source: DirectorySource, slot: tuple[Path, Path]) -> None:
    _written, runs = write_image(*slot, source, on_bytes=ignore)
    with slot[0].open("r+b") as file:
        file.seek(650 * 4096)
        file.write(b"lost")
    with pytest.raises(TrustError) as caught:
        check_image(*slot, source, runs, on_bytes=ignore)
    assert caught.value.code == "slot-damaged"


def test_progress_covers_what_is_read(source: DirectorySource, slot: tuple[Path, Path]) -> None:
    read: list[int] = []
    write_image(*slot, source, on_bytes=read.append)
    assert sum(read) == BLOCKS * 4096
