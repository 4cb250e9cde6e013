"""Any order of operations on a store agrees with a model of a few dictionaries."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store_samples import add_image, key, make_old, manifest_of, sha256, write, writing

from obelisk.events import silent
from obelisk.store import Store

NAMES = st.sampled_from(["a", "b", "c"])
VERSIONS = st.sampled_from(["1", "2"])


class StoreMachine(RuleBasedStateMachine):
    """What is kept, in plain dictionaries: the digest or name of each thing, and whether it was used lately."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a directory of our own
        self.place = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.store = Store.open(self.place / "store")
        self.blobs: dict[str, bool] = {}
        self.steps: dict[str, bool] = {}
        self.uses: dict[str, set[str]] = {}  # of each step: names of steps and digests of blobs
        self.images: dict[str, set[str]] = {}
        self.refs: dict[str, tuple[list[str], set[str]]] = {}
        self.used: set[str] = set()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.place)

    @rule(name=NAMES, move=st.booleans(), named=st.booleans())
    def add_blob(self, name: str, *, move: bool, named: bool) -> None:
        digest = sha256(name.encode())
        source = write(self.place / "source", name.encode())
        assert self.store.add_blob(source, sha256=digest if named else None, move=move) == digest
        assert source.exists() is not move
        self.blobs[digest] = True
        self.used.add(digest)

    @rule(name=NAMES)
    def find_blob(self, name: str) -> None:
        digest = sha256(name.encode())
        assert (self.store.find_blob(digest) is not None) is (digest in self.blobs)
        if digest in self.blobs:
            self.blobs[digest] = True
            self.used.add(digest)

    @rule(name=NAMES)
    def build_step(self, name: str) -> None:
        output, cached = self.store.build_step(key(name), writing("result", name.encode()))
        assert cached is (name in self.steps)
        assert (output / "result").read_bytes() == name.encode()
        if not cached:
            self.uses[name] = set(self.used)
        self.steps[name] = True
        self.used.add(name)

    @rule(name=NAMES)
    def find_step(self, name: str) -> None:
        assert (self.store.find_step(key(name)) is not None) is (name in self.steps)
        if name in self.steps:
            self.steps[name] = True
            self.used.add(name)

    @rule(name=NAMES, version=VERSIONS)
    def add_image(self, name: str, version: str) -> None:
        root = name.encode()  # the same content as a blob of that name
        image_id = add_image(self.store, root, version=version)
        if image_id not in self.images:
            self.images[image_id] = {sha256(root), sha256(b"uki")}
            self.blobs |= dict.fromkeys(self.images[image_id], True)
            self.used -= self.images[image_id]
        assert self.store.image(image_id).manifest == manifest_of(root, version=version)

    @precondition(lambda self: self.images)
    @rule(data=st.data(), name=st.sampled_from(["spec", "other"]))
    def set_ref(self, data: st.DataObject, name: str) -> None:
        image_id = data.draw(st.sampled_from(sorted(self.images)))
        self.store.set_ref(name, image_id)
        history, uses = self.refs.get(name, ([], set()))
        again = history[:1] == [image_id]
        self.refs[name] = ([image_id, *(i for i in history if i != image_id)], self.used | uses if again else set(self.used))

    @rule(name=st.sampled_from(["spec", "other"]))
    def remove_ref(self, name: str) -> None:
        self.store.remove_ref(name)
        self.refs.pop(name, None)

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def remove_image(self, data: st.DataObject) -> None:
        image_id = data.draw(st.sampled_from(sorted(self.images)))
        self.store.remove_image(image_id)
        for digest in self.images.pop(image_id):
            self.blobs[digest] = False
        for history, _ in self.refs.values():
            if image_id in history:
                history.remove(image_id)
        self.refs = {name: kept for name, kept in self.refs.items() if kept[0]}

    @rule()
    def time_passes(self) -> None:
        make_old(self.store)
        self.blobs = dict.fromkeys(self.blobs, False)
        self.steps = dict.fromkeys(self.steps, False)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store.open(self.place / "store")
        self.used = set()

    @rule(keep_images=st.integers(1, 2), everything=st.booleans(), dry_run=st.booleans())
    def collect(self, keep_images: int, *, everything: bool, dry_run: bool) -> None:
        removed = self.store.collect(keep_images=keep_images, everything=everything, dry_run=dry_run, sink=silent)
        images = {i for history, _ in self.refs.values() for i in [i for i in history if i in self.images][:keep_images]}
        needed = set() if everything else self._needed()
        parts = {digest for i in images for digest in self.images[i]}
        orphans = {digest for i, blobs in self.images.items() if i not in images for digest in blobs} - parts
        steps = {name for name, recent in self.steps.items() if name in needed or (recent and not everything)}
        blobs = {
            name for name, recent in self.blobs.items() if name in needed | parts or (recent and not everything and name not in orphans)
        }
        assert removed.images.count == len(self.images) - len(images)
        assert removed.steps.count == len(self.steps) - len(steps)
        assert removed.blobs.count == len(self.blobs) - len(blobs)
        if not dry_run:
            self.images = {i: self.images[i] for i in images}
            self.steps = {name: self.steps[name] for name in steps}
            self.blobs = {name: self.blobs[name] for name in blobs}

    def _needed(self) -> set[str]:
        needed: set[str] = set()
        open_names = {name for _, uses in self.refs.values() for name in uses}
        while open_names:
            name = open_names.pop()
            needed.add(name)
            if name in self.steps:
                open_names |= self.uses[name] - needed
        return needed

    @invariant()
    def the_store_has_what_the_model_has(self) -> None:
        assert {path.name for path in self.store.root.glob("blobs/*/*")} == set(self.blobs)
        assert {path.name for path in (self.store.root / "steps").iterdir()} == {key(name) for name in self.steps}
        assert {image.id for image in self.store.images()} == set(self.images)

    @invariant()
    def nothing_unfinished_is_left(self) -> None:
        assert not list(self.store.root.glob("work/*/*"))
        assert not list((self.store.root / "locks").iterdir())

    @invariant()
    def nothing_is_damaged(self) -> None:
        assert self.store.verify(sink=silent) == ()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
