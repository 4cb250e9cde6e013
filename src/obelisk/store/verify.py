"""Looks for damage in a store, and moves it out of the way so that what it belonged to is fetched or built anew.

Covered: every byte of every blob (read from the disk, not from the cache), and so of every image's parts; manifests; proofs against
their names; refs; of steps the record, the sizes of the result files and the content of the small ones. Steps that were made from a
damaged blob, directly or through other steps, are not trusted either. Not covered: the files inside a step's tree (a rebuild with
another result shows those), and an image's extras (signed where it matters). A step that a power cut left unfinished is no damage.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obelisk.errors import InputError, TrustError
from obelisk.events import Sink, Task, task
from obelisk.model.image import Part
from obelisk.store.faults import storage_faults
from obelisk.store.images import MANIFEST, Images
from obelisk.store.refs import Refs, read_ref
from obelisk.store.session import Session, discard
from obelisk.store.steps import UNFLUSHED, Steps, problem, uses_of
from obelisk.system.files import hash_file

_SHORT = 12


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in the store that is not what it must be: the file or directory, what it belongs to, what is wrong with it."""

    path: Path
    belongs_to: str
    problem: str


@dataclass(frozen=True, slots=True)
class _Finding:
    damage: Damage
    repair: Callable[[], None]


class Verifier:
    """Verifies one store, once."""

    def __init__(self, session: Session, steps: Steps, images: Images, refs: Refs) -> None:
        self._session = session
        self._layout = session.layout
        self._steps = steps
        self._images = images
        self._refs = refs
        self._bad_blobs: set[str] = set()
        self._bad_inodes: set[int] = set()
        self._bad_images: set[str] = set()

    def run(self, *, repair: bool, sink: Sink) -> tuple[Damage, ...]:
        """See `Store.verify`."""
        blobs = sorted(path for path in self._layout.blobs.rglob("*") if not path.is_dir())
        total = sum(path.lstat().st_size for path in blobs)
        self._session.hold()
        with (
            storage_faults(self._layout.root),
            self._session.exclusive() if repair else nullcontext(),
            task(sink, "verify", "reading everything in the store", total=total, unit="B") as running,
        ):
            # In this order: what is built from blobs is judged by them.
            findings = [*self._blobs(blobs, running), *self._all_images(), *self._proofs(), *self._all_refs(), *self._all_steps()]
            if repair:
                for finding in findings:
                    finding.repair()
            running.detail = f"{len(findings)} damaged" if findings else "no damage"
        return tuple(finding.damage for finding in findings)

    def _blobs(self, paths: list[Path], running: Task) -> Iterator[_Finding]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            running.progress(done)

        for path in paths:
            wrong = _wrong_blob(path, advance)
            if wrong is not None:
                self._bad_blobs.add(path.name)
                self._bad_inodes.add(path.lstat().st_ino)
                yield _Finding(Damage(path, self._users(path.name), wrong), partial(self._move_away, path))

    def _all_images(self) -> Iterator[_Finding]:
        for path in sorted(self._layout.images.iterdir()):
            found = list(self._image(path))
            if found:
                self._bad_images.add(path.name)
                for damage in found:
                    yield _Finding(damage, partial(self._move_away, path))

    def _image(self, directory: Path) -> Iterator[Damage]:
        try:
            image = self._images.read(directory.name)
        except (TrustError, InputError) as error:
            yield Damage(directory / MANIFEST, f"image {directory.name[:_SHORT]}", error.message)
            return
        for part in image.manifest.parts:
            path = directory / part.file
            wrong = self._wrong_part(path, part)
            if wrong is not None:
                yield Damage(path, f"image {image.id[:_SHORT]} ({image.manifest.label})", wrong)

    def _wrong_part(self, path: Path, part: Part) -> str | None:
        blob = self._layout.blob(part.sha256)
        if not path.is_file():
            return "it is missing"
        if not blob.exists():
            return "the store has no blob for it"
        if part.sha256 in self._bad_blobs:
            return "its blob is damaged"
        if path.stat().st_size != part.size_bytes:
            return f"it has {path.stat().st_size} bytes, the manifest says {part.size_bytes}"
        if not path.samefile(blob):
            return _wrong_digest(path, part.sha256, lambda _count: None)
        return None

    def _proofs(self) -> Iterator[_Finding]:
        for path in sorted(self._layout.proofs.glob("*/*")):
            wrong = _wrong_digest(path, path.name.partition(".")[0], lambda _count: None)
            if wrong is not None:
                yield _Finding(Damage(path, f"proofs of image {path.parent.name[:_SHORT]}", wrong), partial(self._move_away, path))

    def _all_refs(self) -> Iterator[_Finding]:
        for path in sorted(self._layout.refs.iterdir()):
            try:
                ref = read_ref(path)
            except TrustError as error:
                yield _Finding(Damage(path, "a ref", error.message), partial(self._move_away, path))
                continue
            wrong = None
            if not self._layout.image(ref.image_id).is_dir():
                wrong = f"its image {ref.image_id[:_SHORT]} is not in the store"
            elif ref.image_id in self._bad_images:
                wrong = f"its image {ref.image_id[:_SHORT]} is damaged"
            if wrong is not None:
                yield _Finding(Damage(path, f"the ref {ref.name}", wrong), partial(self._refs.forget, ref.image_id))

    def _all_steps(self) -> Iterator[_Finding]:
        wrong: dict[str, str] = {}
        containers = tuple(self._steps.containers())
        for path in containers:
            found = problem(path)
            if found == UNFLUSHED:
                continue
            if found is None and self._shares_damage(path):
                found = "it was made from a damaged blob"
            if found is not None:
                wrong[path.name] = found
        targets = {path.name: path.readlink().name for path in self._steps.aliases()}
        uses = {path.name: frozenset(targets.get(key, key) for key in uses_of(path).steps) for path in containers}
        spreading = True
        while spreading:
            # Only damaged content spreads: a step whose record is unreadable did not harm what was made from it.
            bad = {key for key, why in wrong.items() if "damaged blob" in why}
            reached = {key for key, used in uses.items() if key not in wrong and used & bad}
            wrong |= dict.fromkeys(reached, "it was made from a step that was made from a damaged blob")
            spreading = bool(reached)
        for key in sorted(wrong):
            path = self._layout.steps / key
            yield _Finding(Damage(path, f"the step {key[:_SHORT]}", wrong[key]), partial(self._drop, path))

    def _shares_damage(self, container: Path) -> bool:
        if uses_of(container).blobs & self._bad_blobs:
            return True
        try:
            return any(path.lstat().st_ino in self._bad_inodes for path in (container / "output").iterdir())
        except PermissionError:
            return False

    def _users(self, sha256: str) -> str:
        images = [
            f"image {image.id[:_SHORT]} ({image.manifest.label}: {part.file})"
            for image in self._images.all()
            for part in image.manifest.parts
            if part.sha256 == sha256
        ]
        return ", ".join(images) or "packages and other inputs"

    def _move_away(self, path: Path) -> None:
        if path.exists():  # an image with two damaged parts is moved once
            path.rename(self._layout.damaged / f"{path.name}-{os.urandom(4).hex()}")

    def _drop(self, container: Path) -> None:
        discard(self._session.trash(container))


def _wrong_blob(path: Path, on_bytes: Callable[[int], None]) -> str | None:
    if not path.is_file() or path.is_symlink() or path.parent.name != path.name[:2]:
        return "it is not a blob"
    return _wrong_digest(path, path.name, on_bytes)


def _wrong_digest(path: Path, expected: str, on_bytes: Callable[[int], None]) -> str | None:
    try:
        with path.open("rb") as file:
            # The cache may still have what the disk has lost; only clean pages can be dropped.
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = hash_file(path, on_bytes=on_bytes)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None if found == expected else f"its content has the SHA-256 {found[:_SHORT]}…, expected {expected[:_SHORT]}…"
