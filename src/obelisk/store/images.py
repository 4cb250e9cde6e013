"""Images, and the proofs about them.

    images/<id>/manifest.json       its SHA-256 is the id; its time is when the image was added
               /<part>              hard links to blobs
               /extras/<name>       provenance and the like; not part of the id
    proofs/<id>/<SHA-256>.dsse.json

An image is complete and on the disk before it gets its name.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import InputError, TrustError
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.store.blobs import Blobs
from obelisk.store.faults import storage_faults
from obelisk.store.refs import Refs
from obelisk.store.session import Session, discard
from obelisk.store.steps import Steps
from obelisk.system.files import sync_directory

MANIFEST = "manifest.json"
EXTRAS = "extras"
_SHORTEST_PREFIX = 6
_PREFIX = re.compile(rf"[0-9a-f]{{{_SHORTEST_PREFIX},64}}")
_ID_DIGITS = 64


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in the store. `added` is in seconds since 1970."""

    id: str
    manifest: Manifest
    directory: Path
    added: float

    def part_path(self, kind: PartKind) -> Path:
        """The file of the part of that kind.

        Raises:
            KeyError: the image has none.
        """
        return self.directory / self.manifest.part(kind).file

    def extra(self, name: str) -> Path | None:
        """What was stored beside the image under that name, or None."""
        path = self.directory / EXTRAS / name
        return path if path.exists() else None


class Images:
    """The images of one store."""

    def __init__(self, session: Session, blobs: Blobs, steps: Steps, refs: Refs) -> None:
        self._session = session
        self._layout = session.layout
        self._blobs = blobs
        self._steps = steps
        self._refs = refs

    def add(self, manifest: Manifest, parts: Mapping[str, Path], extras: Mapping[str, bytes | Path]) -> Path:
        """See `Store.add_image`."""
        self._session.hold()
        target = self._layout.image(manifest.id)
        with storage_faults(self._layout.root):
            if is_complete(target, manifest):
                return target
            self._store_parts(manifest, parts)
            draft = self._session.fresh("image")
            try:
                self._assemble(draft, manifest, extras)
                self._steps.seal()
                self._publish(draft, target, manifest)
            finally:
                discard(draft)
        # The image itself keeps them from here on, and only as long as it stays.
        self._session.used_blobs.difference_update(part.sha256 for part in manifest.parts)
        return target

    def _store_parts(self, manifest: Manifest, parts: Mapping[str, Path]) -> None:
        for part in manifest.parts:
            _check_name(part.file)
            source = parts.get(part.file) or parts.get(part.kind.value)
            if source is None:
                raise InputError(f"the image's part {part.file} is not given", code="part-missing", hint="give every part of the manifest")
            self._blobs.add(source, sha256=part.sha256, move=False)
            if self._blobs.get(part.sha256).stat().st_size != part.size_bytes:
                raise TrustError(f"{source} has another size than the manifest says", code="digest-mismatch", hint="build the image again")

    def _assemble(self, draft: Path, manifest: Manifest, extras: Mapping[str, bytes | Path]) -> None:
        (draft / EXTRAS).mkdir(parents=True)
        (draft / MANIFEST).write_bytes(manifest.to_bytes())
        for part in manifest.parts:
            self._blobs.link(part.sha256, draft / part.file)
        for name, content in extras.items():
            _check_name(name)
            if isinstance(content, bytes):
                (draft / EXTRAS / name).write_bytes(content)
            else:
                shutil.copyfile(content, draft / EXTRAS / name)

    def _publish(self, draft: Path, target: Path, manifest: Manifest) -> None:
        if target.exists() and not is_complete(target, manifest):
            discard(self._session.trash(target))
        try:
            draft.rename(target)
        except OSError:
            if not is_complete(target, manifest):
                raise
            # Another process has added the same image meanwhile: the two are equal.
        sync_directory(target.parent)

    def find(self, name: str) -> StoredImage:
        """See `Store.image`."""
        ref = self._refs.find(name)
        if ref is not None:
            return self.read(ref.image_id)
        if len(name) == _ID_DIGITS and _PREFIX.fullmatch(name) and self._layout.image(name).is_dir():
            return self.read(name)
        found = {image_id: None for image_id in self.ids() if _PREFIX.fullmatch(name) and image_id.startswith(name)}
        if not found:
            labelled = [image for image in self.all() if name in _labels(image.manifest)]
            return self._choose(name, labelled)
        return self._choose(name, [self.read(image_id) for image_id in found])

    def _choose(self, name: str, candidates: list[StoredImage]) -> StoredImage:
        """The only candidate, or the only one that a ref names now: of several builds of one spec, the last."""
        if not candidates:
            raise InputError(
                f"there is no image {name!r}", code="image-unknown", hint=_listing("images that there are", self.all(), "build one first")
            )
        if len(candidates) > 1:
            current = {ref.image_id for ref in self._refs.all()}
            chosen = [image for image in candidates if image.id in current]
            if len(chosen) != 1:
                raise InputError(
                    f"{name!r} may be any of {len(candidates)} images",
                    code="image-ambiguous",
                    hint=_listing("name one by its id", candidates),
                )
            return chosen[0]
        return candidates[0]

    def read(self, image_id: str) -> StoredImage:
        """The image with exactly this id.

        Raises:
            InputError: there is none.
            TrustError: its manifest is damaged.
        """
        directory = self._layout.image(image_id)
        try:
            data = (directory / MANIFEST).read_bytes()
            added = (directory / MANIFEST).stat().st_mtime
        except FileNotFoundError as error:
            if directory.is_dir():
                raise TrustError(
                    f"image {image_id[:12]} has no manifest", code="manifest-damaged", hint="run `obelisk verify --repair`"
                ) from error
            raise InputError(
                f"there is no image {image_id[:12]}", code="image-unknown", hint="list the images with `obelisk images`, or build it again"
            ) from error
        return StoredImage(image_id, parse_manifest(data, image_id=image_id), directory, added)

    def ids(self) -> tuple[str, ...]:
        """The ids of all images, damaged ones included."""
        return tuple(sorted(path.name for path in self._layout.images.iterdir()))

    def all(self) -> tuple[StoredImage, ...]:
        """All images whose manifests can be read, newest first; `verify` names the others."""
        found = []
        for image_id in self.ids():
            try:
                found.append(self.read(image_id))
            except (TrustError, InputError):
                continue
        return tuple(sorted(found, key=lambda image: (-image.added, image.id)))

    def remove(self, image_id: str) -> None:
        """See `Store.remove_image`."""
        with storage_faults(self._layout.root), self._session.exclusive():
            image = self.read(image_id)
            # In this order a ref never names an image that is gone.
            self._refs.forget(image_id)
            for part in image.manifest.parts:
                blob = self._layout.blob(part.sha256)
                if blob.exists():
                    os.utime(blob, (0, 0))  # unused as far as is known, so the next gc takes it
            proofs = self._layout.proofs / image_id
            for path in (image.directory, proofs):
                if path.exists():
                    discard(self._session.trash(path))

    def add_proof(self, image_id: str, envelope: bytes) -> Path:
        """See `Store.add_proof`."""
        self._session.hold()
        self.read(image_id)
        directory = self._layout.proofs / image_id
        path = directory / f"{hashlib.sha256(envelope).hexdigest()}.dsse.json"
        with storage_faults(self._layout.root):
            if not directory.is_dir():
                directory.mkdir(exist_ok=True)
                sync_directory(directory.parent)
            self._session.publish(path, envelope)
        return path

    def proofs(self, image_id: str) -> tuple[Path, ...]:
        """The proofs about the image, oldest first."""
        directory = self._layout.proofs / image_id
        found = directory.iterdir() if directory.is_dir() else ()
        return tuple(sorted(found, key=lambda path: (path.stat().st_mtime, path.name)))


def is_complete(directory: Path, manifest: Manifest) -> bool:
    """Whether the image is there with all its parts, judged by names and sizes."""
    try:
        return (directory / MANIFEST).read_bytes() == manifest.to_bytes() and all(
            (directory / part.file).stat().st_size == part.size_bytes for part in manifest.parts
        )
    except OSError:
        return False


def _labels(manifest: Manifest) -> frozenset[str]:
    return frozenset({manifest.name, manifest.label, f"{manifest.name}@{manifest.version}"})


def _listing(introduction: str, images: Iterable[StoredImage], otherwise: str = "") -> str:
    lines = [f"  {image.id[:12]}  {image.manifest.label}" for image in images]
    return "\n".join((f"{introduction}:", *lines)) if lines else otherwise


def _check_name(name: str) -> None:
    if name in {"", ".", "..", MANIFEST, EXTRAS} or "/" in name or "\0" in name:
        raise InputError(f"{name!r} cannot be the name of a file in an image", code="part-name", hint="name it otherwise")
