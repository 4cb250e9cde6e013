"""Images, proofs and refs: complete or absent, found by every name a person may use."""

import os
import time
from pathlib import Path

import pytest
from store_samples import add_image, manifest_of, sha256, write

from obelisk.errors import InputError, StateError, TrustError
from obelisk.events import silent
from obelisk.model.image import PartKind
from obelisk.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_an_image_has_its_parts_as_links_to_blobs_and_its_extras_beside(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of(b"root")
    parts = {"shop.root": write(tmp_path / "r", b"root"), "uki": write(tmp_path / "u", b"uki")}
    extras: dict[str, bytes | Path] = {"provenance.dsse.json": b"signed", "report.txt": write(tmp_path / "report", b"report")}
    directory = store.add_image(manifest, parts, extras)
    assert directory == store.root / "images" / manifest.id
    image = store.image(manifest.id)
    assert image.manifest == manifest
    assert image.part_path(PartKind.ROOT).samefile(store.blob(sha256(b"root")))
    assert image.part_path(PartKind.UKI).read_bytes() == b"uki"
    provenance, report = image.extra("provenance.dsse.json"), image.extra("report.txt")
    assert provenance is not None
    assert provenance.read_bytes() == b"signed"
    assert report is not None
    assert report.read_bytes() == b"report"
    assert image.extra("other") is None
    assert abs(image.added - time.time()) < 60
    with pytest.raises(KeyError):
        image.part_path(PartKind.VERITY)


def test_adding_an_image_again_changes_nothing(store: Store) -> None:
    image_id = add_image(store, b"root")
    before = store.image(image_id)
    assert add_image(store, b"root") == image_id
    assert store.image(image_id) == before
    assert len(store.images()) == 1


def test_adding_an_image_mends_an_incomplete_one(store: Store) -> None:
    image_id = add_image(store, b"root")
    store.image(image_id).part_path(PartKind.ROOT).unlink()
    add_image(store, b"root")
    assert store.image(image_id).part_path(PartKind.ROOT).read_bytes() == b"root"
    assert store.verify(sink=silent) == ()


@pytest.mark.parametrize("content", [b"forged", b"root and more"])
def test_a_part_that_is_not_what_the_manifest_says_is_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    parts = {"root": write(tmp_path / "r", content), "uki": write(tmp_path / "u", b"uki")}
    with pytest.raises(TrustError):
        store.add_image(manifest_of(b"root"), parts)
    assert store.images() == ()


def test_a_part_that_is_not_given_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        store.add_image(manifest_of(b"root"), {"root": write(tmp_path / "r", b"root")})
    assert caught.value.code == "part-missing"
    assert store.images() == ()


@pytest.mark.parametrize("name", ["../escape", "", ".", "manifest.json", "extras"])
def test_an_extra_cannot_lie_elsewhere(store: Store, tmp_path: Path, name: str) -> None:
    parts = {"root": write(tmp_path / "r", b"root"), "uki": write(tmp_path / "u", b"uki")}
    with pytest.raises(InputError):
        store.add_image(manifest_of(b"root"), parts, {name: b""})
    assert store.images() == ()


def test_images_are_listed_newest_first(store: Store) -> None:
    ids = [add_image(store, data) for data in (b"1", b"2", b"3")]
    for age, image_id in enumerate(reversed(ids)):
        then = time.time() - age
        os.utime(store.root / "images" / image_id / "manifest.json", (then, then))
    assert [image.id for image in store.images()] == ids[::-1]


def test_an_image_is_found_by_id_prefix_label_and_ref(store: Store) -> None:
    shop = add_image(store, b"shop")
    add_image(store, b"desk", name="desk", version="7")
    store.set_ref("/home/me/shop/obelisk.toml", shop)
    for name in (shop, shop[:6], shop[:20], "shop", "shop_1", "shop@1", "/home/me/shop/obelisk.toml"):
        assert store.image(name).id == shop
    assert store.image("desk@7").manifest.name == "desk"


def test_an_unknown_image_is_an_error_that_lists_what_there_is(store: Store) -> None:
    with pytest.raises(InputError) as nothing:
        store.image("shop")
    assert "build" in nothing.value.hint
    image_id = add_image(store, b"root")
    for name in ("desk", "shop_2", image_id[:5], image_id[:5] + "x", sha256(b"other"), "", "../images"):
        with pytest.raises(InputError) as caught:
            store.image(name)
        assert caught.value.code == "image-unknown"
        assert image_id[:12] in caught.value.hint


def test_an_ambiguous_name_lists_the_candidates(store: Store) -> None:
    ids = {add_image(store, data) for data in (b"1", b"2")}
    for name in ("shop", "shop_1"):
        with pytest.raises(InputError) as caught:
            store.image(name)
        assert caught.value.code == "image-ambiguous"
        assert all(image_id[:12] in caught.value.hint for image_id in ids)


def test_an_ambiguous_prefix_lists_the_candidates(store: Store) -> None:
    image_id = add_image(store, b"root")
    twin = image_id[:10] + ("0" * 54 if image_id[10] != "0" else "1" * 54)
    (store.root / "images" / twin).mkdir()
    with pytest.raises(TrustError, match="no manifest"):
        store.image(image_id[:10])


def test_of_several_builds_of_one_spec_the_last_is_meant(store: Store) -> None:
    first, second = (add_image(store, data) for data in (b"1", b"2"))
    store.set_ref("spec", second)
    store.set_ref("spec", first)
    assert store.image("shop").id == first
    assert store.image("shop_1").id == first


def test_an_image_with_a_damaged_manifest_is_not_listed_and_not_given(store: Store) -> None:
    image_id = add_image(store, b"root")
    path = store.root / "images" / image_id / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"shop", b"shed"))
    assert store.images() == ()
    with pytest.raises(TrustError):
        store.image(image_id)


def test_refs_remember_their_images_newest_first(store: Store) -> None:
    first, second = (add_image(store, data) for data in (b"1", b"2"))
    for image_id in (first, second, first):
        store.set_ref("spec", image_id)
    store.set_ref("a name\nwith/anything \udcff", second)
    odd, spec = store.refs()
    assert (spec.name, spec.images, spec.image_id) == ("spec", (first, second), first)
    assert odd.name == "a name\nwith/anything \udcff"
    store.remove_ref("spec")
    store.remove_ref("spec")
    assert store.refs() == (odd,)


def test_a_ref_to_nothing_is_refused(store: Store) -> None:
    with pytest.raises(InputError):
        store.set_ref("spec", sha256(b"none"))
    assert store.refs() == ()


def test_a_damaged_ref_is_not_ignored(store: Store) -> None:
    store.set_ref("spec", add_image(store, b"root"))
    (path,) = (store.root / "refs").iterdir()
    path.write_bytes(b"{}")
    for use in (store.refs, lambda: store.image("spec"), lambda: store.collect(sink=silent)):
        with pytest.raises(TrustError) as caught:
            use()
        assert caught.value.code == "ref-damaged"


def test_proofs_are_kept_beside_their_image_oldest_first(store: Store) -> None:
    image_id = add_image(store, b"root")
    assert store.proofs(image_id) == ()
    first = store.add_proof(image_id, b"first")
    os.utime(first, (1, 1))
    second = store.add_proof(image_id, b"second")
    assert store.add_proof(image_id, b"second") == second
    assert [path.read_bytes() for path in store.proofs(image_id)] == [b"first", b"second"]
    with pytest.raises(InputError):
        store.add_proof(sha256(b"none"), b"proof")


def test_removing_an_image_removes_what_hangs_on_it(store: Store) -> None:
    first, second = (add_image(store, data) for data in (b"1", b"2"))
    store.set_ref("both", first)
    store.set_ref("both", second)
    store.set_ref("one", second)
    store.add_proof(second, b"proof")
    store.remove_image(second)
    assert [image.id for image in store.images()] == [first]
    assert [(ref.name, ref.images) for ref in store.refs()] == [("both", (first,))]
    assert store.proofs(second) == ()
    assert store.verify(sink=silent) == ()
    store.collect(sink=silent)
    assert {path.name for path in store.root.glob("blobs/*/*")} == {sha256(b"1"), sha256(b"uki")}
    with pytest.raises(InputError):
        store.remove_image(second)


def test_an_image_is_not_removed_under_the_feet_of_others(store: Store) -> None:
    image_id = add_image(store, b"root")
    other = Store.open(store.root)
    other.hold()
    with pytest.raises(StateError) as caught:
        store.remove_image(image_id)
    assert caught.value.code == "store-busy"
    assert str(os.getpid()) in caught.value.message
    other.close()
    store.remove_image(image_id)
