"""Publishing over the real transport: what a host puts together from a repository is the image that was released."""

from dataclasses import replace
from pathlib import Path

import pytest
import release_samples as transport
import repository_samples as samples

from obelisk.errors import ObeliskError
from obelisk.model.image import PartKind
from obelisk.model.release import Release
from obelisk.release.checking import Kind, verify
from obelisk.release.delivery import Blocks
from obelisk.release.publisher import Publisher
from obelisk.release.publishing import promote
from obelisk.release.retiring import retire


def _publisher(place: Path) -> Publisher:
    return replace(samples.publisher(place, samples.keyring(place)), delivery=Blocks())


def _restored(who: Publisher, made: Release, target: Path) -> bytes:
    who.delivery.restore(made, who.find, target)
    return target.read_bytes()


def test_releases_share_blocks_and_come_back_whole(tmp_path: Path) -> None:
    who = _publisher(tmp_path)
    many = range(1, 400)
    one, two = samples.restorable(tmp_path, "1", *many, 0, 0), samples.restorable(tmp_path, "2", *range(1, 200), 900, *range(200, 400))
    first, second = samples.released(who, tmp_path, one), samples.released(who, tmp_path, two, edges="none")
    new = who.delivery.packs(second, who.find) - who.delivery.packs(first, who.find)
    assert sum(pack.size_bytes for pack in new) < 2 * transport.BLOCK
    for image, made in ((one, first), (two, second)):
        assert _restored(who, made, tmp_path / made.version) == image.part_path(PartKind.ROOT).read_bytes()


def test_an_edge_is_made_from_what_is_in_the_repository_alone(tmp_path: Path) -> None:
    """The publisher's store is empty: a promotion restores both images."""
    who = _publisher(tmp_path)
    samples.released(who, tmp_path, samples.restorable(tmp_path, "1", *range(1, 300)))
    samples.released(who, tmp_path, samples.restorable(tmp_path, "2", *range(1, 290)), "testing", edges="none")
    promoted = promote(who, "2", "testing", "stable")
    (edge,) = promoted.edges
    assert edge.from_version == "1"
    assert 0 < edge.file.size_bytes < 20 * transport.BLOCK
    assert verify(who.shelf, who.delivery, samples.NOW, who.sink) == ()


def test_an_edge_is_made_between_images_that_have_hardly_a_block_in_common_too(tmp_path: Path) -> None:
    who = _publisher(tmp_path)
    samples.released(who, tmp_path, samples.restorable(tmp_path, "1", *range(1, 300)))
    two = samples.restorable(tmp_path, "2", *range(1, 20), *range(1000, 1290))
    made = samples.released(who, tmp_path, two)
    assert [edge.from_version for edge in made.edges] == ["1"]
    assert _restored(who, made, tmp_path / "2") == two.part_path(PartKind.ROOT).read_bytes()
    assert verify(who.shelf, who.delivery, samples.NOW, who.sink) == ()


def test_what_is_left_of_a_pack_is_kept_when_the_rest_is_retired(tmp_path: Path) -> None:
    who = _publisher(tmp_path)
    samples.released(who, tmp_path, samples.restorable(tmp_path, "1", *range(1, 1000)))
    two = samples.restorable(tmp_path, "2", *range(1, 40), *range(2000, 2040))
    samples.released(who, tmp_path, two, edges="none")
    before = sum(path.stat().st_size for path in (tmp_path / "repo/files").rglob("*") if path.is_file())
    done = retire(who, keep=1, before=samples.NOW + samples.DAY, grace=samples.DAY * 0)
    after = sum(path.stat().st_size for path in (tmp_path / "repo/files").rglob("*") if path.is_file())
    assert after < before // 4
    assert done.swept.size_bytes > before // 2
    left = who.opened().contents.find("2")
    assert _restored(who, left, tmp_path / "left") == two.part_path(PartKind.ROOT).read_bytes()
    assert verify(who.shelf, who.delivery, samples.NOW, who.sink) == ()


@pytest.mark.parametrize("what", ["index", "pack"])
def test_damage_is_never_restored(tmp_path: Path, what: str) -> None:
    who = _publisher(tmp_path)
    made = samples.released(who, tmp_path, samples.restorable(tmp_path, "1", *range(1, 300)))
    (pack,) = who.delivery.packs(made, who.find)
    path = who.find(made.index if what == "index" else pack)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ObeliskError):
        who.delivery.restore(made, who.find, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert {finding.kind for finding in verify(who.shelf, who.delivery, samples.NOW, who.sink)} == {Kind.DAMAGED}
