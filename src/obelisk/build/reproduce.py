"""`obelisk build --reproduce`: builds again from the lock in a fresh place and compares bit by bit."""

import shutil
from pathlib import Path

from obelisk.build.image import build, disk_of
from obelisk.build.keys import SigningKey
from obelisk.events import Sink
from obelisk.model.lock import Lock
from obelisk.model.spec import Spec
from obelisk.store import Store, StoredImage
from obelisk.system.bubblewrap import Room
from obelisk.system.namespace import remove_tree


def reproduce(  # noqa: PLR0913 - what is built, where, and who hears of it
    spec: Spec, lock: Lock, key: SigningKey, store: Store, first: StoredImage, sink: Sink, *, room: Room
) -> tuple[str, ...]:
    """What differs between `first` and a second build of the same lock: nothing, or the parts and where they differ first.

    Only packages and layers are shared with the first build, after their SHA-256 has been checked again; every step runs anew.
    """
    place = Path(f"{store.root}.reproduce")
    remove_tree(place)
    try:
        fresh = Store.open(place)
        images = () if lock.image is None else lock.image.blobs
        packages = (*lock.system.packages, *lock.tools.packages)
        for sha256 in dict.fromkeys((*(package.sha256 for package in packages), *(blob.sha256 for blob in images))):
            blob = store.find_blob(sha256)
            if blob is not None:
                fresh.add_blob(blob, sha256=sha256)
        second = build(spec, lock, key, fresh, sink)
        if second.id != first.id:
            return tuple(_differences(first, second, keep=store.root / "differs"))
        if spec.application is not None:
            return ()
        with store.workspace() as work:
            one, other = disk_of(first, store, room, work), disk_of(second, fresh, room, work)
            at = _first_difference(one, other)
        return () if at is None else (f"disk.raw from byte {at} on; its parts agree",)
    finally:
        remove_tree(place)


def _differences(first: StoredImage, second: StoredImage, *, keep: Path) -> list[str]:
    lines = []
    keep.mkdir(exist_ok=True)
    for one, other in zip(first.manifest.parts, second.manifest.parts, strict=True):
        if one.sha256 != other.sha256:
            shutil.copyfile(second.directory / other.file, keep / other.file)
            at = _first_difference(first.directory / one.file, second.directory / other.file)
            lines.append(f"{one.file} from byte {at} on; the second one is kept as {keep / other.file}")
    return lines or ["the manifests differ although all parts agree"]


def _first_difference(one: Path, other: Path) -> int | None:
    position = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(1 << 20), right.read(1 << 20)
            if a != b:
                return position + next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            if not a:
                return None
            position += len(a)
