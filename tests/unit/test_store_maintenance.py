"""Garbage collection keeps what is needed and frees what it says; verification finds every kind of damage and clears it away."""

import os
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from store_samples import add_image, key, make_old, names_below, sha256, using, write, writing

from obelisk.errors import InputError, StateError, TrustError
from obelisk.events import Event, Finished, Progress, Started, silent
from obelisk.model.image import PartKind
from obelisk.store import Freed, Ref, Store
from obelisk.store.collect import AliasFacts, Inventory, Plan, StepFacts, plan
from obelisk.store.steps import Uses


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def blobs_of(store: Store) -> set[str]:
    return {path.name for path in store.root.glob("blobs/*/*")}


NEW, OLD = 1000.0, 0.0
NOTHING = Inventory(refs=(), images={}, proofs=frozenset(), steps={}, aliases={}, blobs={})
KEEP_ALL = Plan((), (), (), (), ())


def ref(*images: str, steps: str = "", blobs: str = "") -> Ref:
    return Ref("spec", images, 0, Uses(frozenset(steps), frozenset(blobs)))


@pytest.mark.parametrize(
    ("found", "removed"),
    [
        pytest.param(NOTHING, KEEP_ALL, id="an empty store"),
        pytest.param(replace(NOTHING, blobs={"a": NEW}, steps={"s": StepFacts(NEW)}), KEEP_ALL, id="recently used things stay"),
        pytest.param(
            replace(NOTHING, blobs={"a": OLD}, steps={"s": StepFacts(OLD)}),
            replace(KEEP_ALL, steps=("s",), blobs=("a",)),
            id="things used long ago go",
        ),
        pytest.param(
            replace(NOTHING, images={"i": frozenset("a")}, proofs=frozenset("i"), blobs={"a": NEW, "b": NEW}),
            replace(KEEP_ALL, images=("i",), proofs=("i",), blobs=("a",)),
            id="an image that no ref names goes with its proofs and blobs, however new",
        ),
        pytest.param(
            replace(
                NOTHING,
                refs=(ref("i", "k", "l"),),
                images={"i": frozenset("a"), "k": frozenset("b"), "l": frozenset("bc")},
                blobs=dict.fromkeys("abc", OLD),
            ),
            replace(KEEP_ALL, images=("l",), blobs=("c",)),
            id="the last two images of a ref stay, and blobs that they share with others",
        ),
        pytest.param(
            replace(NOTHING, refs=(ref("gone", "i", "k", "l"),), images={name: frozenset() for name in "ikl"}),
            replace(KEEP_ALL, images=("l",)),
            id="images that are gone do not count",
        ),
        pytest.param(
            replace(
                NOTHING,
                refs=(ref("i", steps="x", blobs="p"),),
                images={"i": frozenset()},
                aliases={"x": AliasFacts("s", OLD), "y": AliasFacts("s", OLD), "z": AliasFacts("t", NEW)},
                steps={
                    "s": StepFacts(OLD, Uses(frozenset("u"), frozenset("q"))),
                    "u": StepFacts(OLD, Uses(frozenset("s"), frozenset("r"))),
                    "t": StepFacts(OLD),
                },
                blobs=dict.fromkeys("pqrw", OLD),
            ),
            replace(KEEP_ALL, aliases=("y", "z"), steps=("t",), blobs=("w",)),
            id="what the last build used stays, through aliases and steps",
        ),
        pytest.param(
            replace(NOTHING, refs=(ref("i", steps="s"),), images={"i": frozenset()}, steps={"s": StepFacts(NEW, sound=False)}),
            replace(KEEP_ALL, steps=("s",)),
            id="a step that cannot be trusted goes in any case",
        ),
    ],
)
def test_what_is_removed(found: Inventory, removed: Plan) -> None:
    assert plan(found, used_since=500, keep_images=2) == removed


def test_everything_keeps_the_images_alone() -> None:
    found = replace(
        NOTHING,
        refs=(ref("i", steps="s", blobs="b"),),
        images={"i": frozenset("a")},
        aliases={"x": AliasFacts("s", NEW)},
        steps={"s": StepFacts(NEW)},
        blobs={"a": OLD, "b": NEW},
    )
    assert plan(found, used_since=inf, keep_images=1) == Plan((), (), ("x",), ("s",), ("b",))


def build(store: Store, root: bytes, *, ref: str) -> str:
    """A build in small: a package, a tree made from it, a file system made from that, an image."""
    package = store.add_blob(write(store.root.parent / "package", b"package"), move=True)
    store.build_step(key("base"), writing("base", store.blob(package).read_bytes()))
    store.build_step(key("fs" + str(root)), writing("root", root))
    image_id = add_image(store, root)
    store.set_ref(ref, image_id)
    return image_id


def test_a_collection_keeps_what_the_last_build_rests_on(store: Store) -> None:
    build(store, b"1", ref="spec")
    # The next builds find the base finished, and so look at no package; the last one finds everything finished.
    for root in (b"2", b"2"):
        store.close()
        store = Store.open(store.root)
        store.build_step(key("fs" + str(root)), using(store, "base"))
        store.set_ref("spec", add_image(store, root))
    make_old(store)
    collected = store.collect(keep_images=1, sink=silent)
    assert names_below(store.root / "steps") == {key("base"), key("fs" + str(b"2"))}
    assert blobs_of(store) == {sha256(b"package"), sha256(b"2"), sha256(b"uki")}
    assert [image.manifest.parts[0].sha256 for image in store.images()] == [sha256(b"2")]
    assert (collected.images.count, collected.steps.count, collected.blobs.count) == (1, 1, 1)
    assert store.verify(sink=silent) == ()


def test_a_build_that_finds_its_image_finished_keeps_what_the_one_before_used(store: Store) -> None:
    image_id = add_image(store, b"1")
    for name in ("base", "test result"):
        store.build_step(key(name), writing("file", b""))
        store.set_ref("spec", image_id)
        store.close()
        store = Store.open(store.root)
    make_old(store)
    store.collect(sink=silent)
    assert names_below(store.root / "steps") == {key("base"), key("test result")}


def test_a_removed_ref_frees_all_that_it_kept(store: Store) -> None:
    store.add_proof(build(store, b"1", ref="spec"), b"proof")
    store.close()
    store = Store.open(store.root)
    store.remove_ref("spec")
    make_old(store)
    store.collect(sink=silent)
    for name in ("steps", "images", "proofs", "refs", "locks"):
        assert not names_below(store.root / name)
    assert not blobs_of(store)


def test_freed_bytes_are_those_given_back_with_each_file_counted_once(store: Store, tmp_path: Path) -> None:
    root = os.urandom(4 << 20)
    output, _ = store.build_step(key("fs"), writing("root", root))
    store.add_blob(output / "root")
    image_id = add_image(store, root)  # one file now: step, blob, part
    store.add_blob(write(tmp_path / "package", os.urandom(1 << 20)))
    store.link_blob(sha256((tmp_path / "package").read_bytes()), tmp_path / "still in use")
    store.close()
    dry = store.collect(everything=True, dry_run=True, sink=silent)
    assert store.image(image_id).id == image_id
    assert 4 << 20 <= dry.size_bytes < (4 << 20) + 200_000
    assert dry.images.size_bytes >= 4 << 20
    assert dry.blobs == Freed(3, dry.blobs.size_bytes)
    assert dry.blobs.size_bytes < 200_000
    assert store.collect(everything=True, sink=silent) == dry
    assert store.images() == ()


def test_a_collection_does_not_run_beside_a_build(store: Store) -> None:
    builder = Store.open(store.root)
    with builder.workspace():
        with pytest.raises(StateError) as caught:
            store.collect(sink=silent)
        assert caught.value.code == "store-busy"
        assert f"process {os.getpid()}" in caught.value.message
    builder.close()
    store.collect(sink=silent)


def test_a_collection_may_follow_a_build_of_the_same_store(store: Store) -> None:
    with store.workspace():
        pass
    store.collect(everything=True, sink=silent)
    # The hold that the build took is back.
    with pytest.raises(StateError):
        Store.open(store.root).collect(sink=silent)


def test_a_collection_that_would_keep_no_image_is_refused(store: Store) -> None:
    with pytest.raises(InputError):
        store.collect(keep_images=0, sink=silent)


def test_a_collection_reports_its_progress(store: Store) -> None:
    add_image(store, b"1")
    events: list[Event] = []
    store.collect(sink=events.append)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert "MiB freed" in events[-1].detail
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total == 3


def test_a_damaged_manifest_stops_a_collection(store: Store) -> None:
    image_id = add_image(store, b"1")
    (store.root / "images" / image_id / "manifest.json").write_bytes(b"")
    with pytest.raises(TrustError):
        store.collect(sink=silent)
    assert blobs_of(store) == {sha256(b"1"), sha256(b"uki")}


def overwrite(path: Path) -> None:
    """Flip one bit, as a bad disk does."""
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as out:
        out.write(data)
    path.chmod(0o444)


def test_a_sound_store_has_no_damage(store: Store) -> None:
    store.add_proof(build(store, b"1", ref="spec"), b"proof")
    events: list[Event] = []
    assert store.verify(sink=events.append) == ()
    total = len(b"package" + b"1" + b"uki")
    assert Started("verify", "reading everything in the store", total, "B") in events
    assert Progress("verify", total) in events


def test_a_damaged_part_is_found_with_all_that_it_spoils(store: Store) -> None:
    image_id = build(store, b"1", ref="spec")
    overwrite(store.blob(sha256(b"1")))
    found = {str(damage.path.relative_to(store.root)): damage for damage in store.verify(sink=silent)}
    blob = f"blobs/{sha256(b'1')[:2]}/{sha256(b'1')}"
    assert found.keys() == {blob, f"images/{image_id}/shop.root", next(f"refs/{p.name}" for p in (store.root / "refs").iterdir())}
    assert "shop_1: shop.root" in found[blob].belongs_to
    assert found[f"images/{image_id}/shop.root"].problem == "its blob is damaged"
    assert store.image(image_id).id == image_id, "only a repair changes anything"


def test_a_repair_makes_room_for_a_new_build(store: Store) -> None:
    image_id = build(store, b"1", ref="spec")
    overwrite(store.blob(sha256(b"1")))
    assert len(store.verify(repair=True, sink=silent)) == 3
    assert store.verify(sink=silent) == ()
    assert store.find_blob(sha256(b"1")) is None
    assert len(names_below(store.root / "damaged")) == 2
    assert build(store, b"1", ref="spec") == image_id
    assert store.image(image_id).part_path(PartKind.ROOT).read_bytes() == b"1"
    assert store.verify(sink=silent) == ()
    assert store.collect(keep_days=0, sink=silent).damaged.count == 2
    assert not names_below(store.root / "damaged")


def test_steps_made_from_a_damaged_package_are_dropped_with_their_followers(store: Store) -> None:
    store.build_step(key("before"), writing("file", b"independent"))
    build(store, b"1", ref="spec")
    overwrite(store.blob(sha256(b"package")))
    wrong = {damage.path.name: damage.problem for damage in store.verify(repair=True, sink=silent)}
    assert wrong.keys() == {sha256(b"package"), key("base"), key("fs" + str(b"1"))}
    assert names_below(store.root / "steps") == {key("before")}
    assert store.verify(sink=silent) == ()


def test_distrust_spreads_through_steps_that_never_saw_the_damaged_package(store: Store) -> None:
    package = store.add_blob(write(store.root.parent / "package", b"package"))
    store.build_step(key("1"), writing("file", store.blob(package).read_bytes()))
    for before, name in (("1", "2"), ("2", "3")):
        store.close()
        store = Store.open(store.root)
        store.build_step(key(name), using(store, before))
    overwrite(store.blob(package))
    assert {damage.path.name for damage in store.verify(sink=silent)} == {package, key("1"), key("2"), key("3")}


def test_a_step_that_shares_a_damaged_file_is_dropped(store: Store) -> None:
    output, _ = store.build_step(key("fs"), writing("root", bytes(300 << 10)))
    digest = store.add_blob(output / "root")
    overwrite(store.blob(digest))
    assert {damage.path.name for damage in store.verify(repair=True, sink=silent)} == {digest, key("fs")}
    assert store.find_step(key("fs")) is None


@pytest.mark.parametrize(
    ("harm", "place", "problem"),
    [
        ("images/{image}/shop.root", "images/{image}/shop.root", "missing"),
        ("blobs/{root}", "images/{image}/shop.root", "no blob"),
        ("images/{image}", "refs/", "not in the store"),
        ("images/{image}/manifest.json", "images/{image}/manifest.json", "no manifest"),
        ("steps/{base}/output/base", "steps/{base}", "base cannot be read: No such file"),
        ("steps/{base}/step.json", "steps/{base}", "step.json cannot be read: No such file"),
    ],
)
def test_what_is_missing_is_found_and_a_repair_settles_it(store: Store, harm: str, place: str, problem: str) -> None:
    names = {"image": build(store, b"1", ref="spec"), "root": f"{sha256(b'1')[:2]}/{sha256(b'1')}", "base": key("base")}
    victim = store.root / harm.format(**names)
    victim.rename(store.root.parent / "taken")
    for repair in (False, True):
        found = store.verify(repair=repair, sink=silent)
        assert any(str(d.path).startswith(str(store.root / place.format(**names))) and problem in d.problem for d in found), found
    assert store.verify(sink=silent) == ()
    build(store, b"1", ref="spec")
    assert store.verify(sink=silent) == ()


@pytest.mark.parametrize(
    "place", ["images/{image}/manifest.json", "proofs/{image}/*", "refs/*", "steps/{base}/output/base", "steps/{base}/step.json"]
)
def test_what_was_changed_is_found_and_a_repair_settles_it(store: Store, place: str) -> None:
    image_id = build(store, b"1", ref="spec")
    store.add_proof(image_id, b"proof")
    (victim,) = store.root.glob(place.format(image=image_id, base=key("base")))
    overwrite(victim)
    found = store.verify(repair=True, sink=silent)
    assert any(victim == damage.path or damage.path in victim.parents for damage in found), found
    assert store.verify(sink=silent) == ()


def test_an_image_whose_part_is_no_longer_the_blob_is_read_itself(store: Store) -> None:
    image_id = build(store, b"1", ref="spec")
    part = store.image(image_id).part_path(PartKind.ROOT)
    part.unlink()
    write(part, b"1")
    assert store.verify(sink=silent) == ()
    overwrite(part)
    assert part in {damage.path for damage in store.verify(sink=silent)}
    write(part, b"longer")
    assert any("the manifest says 1" in damage.problem for damage in store.verify(sink=silent))


def test_a_foreign_file_among_the_blobs_is_found(store: Store) -> None:
    write(store.root / "blobs" / "README", b"")
    (store.root / "blobs" / "00").mkdir()
    write(store.root / "blobs" / "00" / "README", b"")
    assert [damage.problem for damage in store.verify(repair=True, sink=silent)] == ["it is not a blob"] * 2
    assert store.verify(sink=silent) == ()


def test_a_repair_does_not_run_beside_a_build(store: Store) -> None:
    builder = Store.open(store.root)
    builder.hold()
    assert store.verify(sink=silent) == ()
    with pytest.raises(StateError) as caught:
        store.verify(repair=True, sink=silent)
    assert caught.value.code == "store-busy"
