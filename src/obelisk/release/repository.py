"""A repository as it is now: what it says, which files that needs, how its next state is written, and what goes when nothing needs it.

A state is written in this order: files, documents, targets, snapshot, and last, by one rename, the timestamp. Until then readers see
the state before; what a process that ended early has written is named by nothing, and written over or swept by the next.

What the state before needs stays for `grace` after it was replaced, for those who are reading; its documents for as long as it is the
one before.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath

from tuf.api.metadata import TargetFile

from obelisk.errors import TrustError
from obelisk.model.application import Application, parse_application
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.model.publication import Contents
from obelisk.model.release import TESTERS_TARGET, Channel, File, Release, Testers
from obelisk.release.delivery import Delivery
from obelisk.release.shelf import FILES, METADATA, TARGETS, Shelf
from obelisk.release.trust import Files, Trusted, load, snapshot_of, targets_of

GRACE = timedelta(hours=1)
_VERSIONED = re.compile(r"([0-9]+)\.(snapshot|targets)\.json")
_DOCUMENT = re.compile(r"[0-9a-f]{64}\..+\.json")
_FILE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Repository:
    """One state of a repository, checked down to its documents; files are not looked at."""

    shelf: Shelf
    trusted: Trusted
    first_root: bytes

    @classmethod
    def open(cls, shelf: Shelf) -> "Repository":
        """The present state.

        Raises:
            StateError: there is no repository.
            TrustError: something is missing, damaged, or not signed as it must be.
        """
        trusted = load(shelf.metadata)
        return cls(shelf, trusted, shelf.metadata("1.root.json") or b"")

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """The documents by target path.

        Raises:
            TrustError: one is missing or damaged.
        """
        return {path: document(self.shelf, path, digest) for path, digest in digests(self.trusted.targets.signed.targets).items()}

    @cached_property
    def contents(self) -> Contents:
        """What the documents say.

        Raises:
            TrustError: one is missing or damaged.
        """
        found = self.documents
        return Contents(
            Testers.parse(found[TESTERS_TARGET]) if TESTERS_TARGET in found else Testers(()),
            tuple(Channel.parse(data) for path, data in sorted(found.items()) if path.startswith("channels/")),
            tuple(Release.parse(data) for path, data in sorted(found.items()) if path.startswith("releases/")),
        )

    def manifest(self, release: Release) -> Manifest:
        """The manifest of a release.

        Raises:
            TrustError: it is missing or damaged.
        """
        return manifest_of(self.shelf, release)

    def application(self, release: Release) -> Application | None:
        """What the image of a release says of itself as an application; None of a machine's.

        Raises:
            TrustError: it is missing or damaged.
        """
        manifest = self.manifest(release)
        if not manifest.is_application:
            return None
        part = manifest.part(PartKind.APPLICATION)
        path = File(part.sha256, part.size_bytes).path
        data = self.shelf.read(path)
        if data is None or hashlib.sha256(data).hexdigest() != part.sha256:
            state = "missing" if data is None else "damaged"
            raise TrustError(f"{path} is {state}: what {release.name} {release.version} may do", code="file-missing", hint=_RESTORE)
        return parse_application(data)

    def find(self, file: File) -> Path:
        """Where a file lies."""
        return self.shelf.path(file.path)


def document_name(target: str, digest: str) -> str:
    """Where a document lies, as consistent snapshots have it."""
    path = PurePosixPath(TARGETS, target)
    return str(path.with_name(f"{digest}.{path.name}"))


def digests(targets: Mapping[str, TargetFile]) -> dict[str, str]:
    """The SHA-256 of each document by target path."""
    return {path: target.hashes["sha256"] for path, target in targets.items()}


def document(shelf: Shelf, target: str, digest: str) -> bytes:
    """A document.

    Raises:
        TrustError: it is missing or damaged.
    """
    name = document_name(target, digest)
    data = shelf.read(name)
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        raise TrustError(
            f"{name} is {'missing' if data is None else 'damaged'}",
            code="document-damaged",
            hint="restore it from a copy of the repository; `obelisk repo verify` says what else is wrong",
        )
    return data


def manifest_of(shelf: Shelf, release: Release) -> Manifest:
    """See `Repository.manifest`."""
    data = shelf.read(release.manifest.path)
    if data is None:
        raise TrustError(f"{release.manifest.path} is missing: the manifest of {release.version}", code="file-missing", hint=_RESTORE)
    return parse_manifest(data, image_id=release.image)


_RESTORE = "restore it from a copy of the repository"


def files_of(shelf: Shelf, release: Release, delivery: Delivery) -> dict[File, str]:
    """Every file that a release needs, and what it is of.

    Raises:
        TrustError: its manifest or its index is missing or damaged.
    """
    manifest = manifest_of(shelf, release)
    if not shelf.path(release.index.path).exists():
        raise TrustError(f"{release.index.path} is missing: the index of {release.version}", code="file-missing", hint=_RESTORE)
    files = {release.manifest: "manifest", release.index: "index"}
    files |= {File(part.sha256, part.size_bytes): part.kind.value for part in manifest.parts if part.kind is not PartKind.ROOT}
    files |= dict.fromkeys(release.proofs, "proof")
    files |= {release.provenance: "provenance"} if release.provenance else {}
    files |= dict.fromkeys(delivery.packs(release, lambda file: shelf.path(file.path)), "pack")
    files |= {edge.file: f"edge from {edge.from_version}" for edge in release.edges}
    return files


def put(shelf: Shelf, documents: Mapping[str, bytes], metadata: Files) -> None:
    """Write the next state, whose files are there already. Its last write is what readers see it by.

    Raises:
        StateError: it cannot be written; readers see the state before.
    """
    for target, data in documents.items():
        name = document_name(target, hashlib.sha256(data).hexdigest())
        if shelf.read(name) != data:
            shelf.write(name, data)
    for name, data in metadata:
        shelf.write(f"{METADATA}/{name}", data)


@dataclass(frozen=True, slots=True)
class Swept:
    """What nothing needs any more: gone now, and what will be after the grace."""

    removed: tuple[str, ...]
    size_bytes: int
    waiting_bytes: int


def sweep(shelf: Shelf, trusted: Trusted, delivery: Delivery, now: datetime, *, grace: timedelta = GRACE) -> Swept:
    """Remove what neither the present state nor one that was replaced less than `grace` ago needs.

    Only what has the name of a document, of metadata or of a file is touched.

    Raises:
        TrustError: the present state is damaged, so that it is not known what it needs; nothing has been removed.
    """
    kept = needed(shelf, trusted, delivery)
    waiting = earlier(shelf, trusted, delivery, now, grace) - kept
    removed = tuple(sorted(superfluous(shelf, kept | waiting)))
    size = sum(shelf.remove(name) for name in removed)
    return Swept(removed, size, sum(_size(shelf.path(name)) for name in waiting if name.startswith(FILES)))


def needed(shelf: Shelf, trusted: Trusted, delivery: Delivery) -> set[str]:
    """The names of all that the present state needs, but for roots.

    Raises:
        TrustError: it is damaged, so that it is not known.
    """
    names = {f"{METADATA}/{trusted.snapshot.signed.version}.snapshot.json", f"{METADATA}/{trusted.targets.signed.version}.targets.json"}
    return names | _below(shelf, trusted.targets.signed.targets, delivery)


def _below(shelf: Shelf, targets: Mapping[str, TargetFile], delivery: Delivery) -> set[str]:
    names = set()
    for target, digest in digests(targets).items():
        names.add(document_name(target, digest))
        if target.startswith("releases/"):
            names |= {file.path for file in files_of(shelf, Release.parse(document(shelf, target, digest)), delivery)}
    return names


def earlier(shelf: Shelf, trusted: Trusted, delivery: Delivery, now: datetime, grace: timedelta = GRACE) -> set[str]:
    """The names of what readers of earlier states may want: documents of the state before, and all that those just replaced need."""
    names: set[str] = set()
    present = trusted.snapshot.signed.version
    for version in range(present - 1, 0, -1):
        name = f"{version}.snapshot.json"
        data, successor = shelf.metadata(name), shelf.path(f"{METADATA}/{version + 1}.snapshot.json")
        if data is None or not successor.exists():
            break
        # A file of this very command may be younger than `now`.
        fresh = bool(grace) and now - datetime.fromtimestamp(successor.stat().st_mtime, UTC) <= grace
        if not fresh and version < present - 1:
            break
        with suppress(TrustError):  # an earlier state that is not whole is of no use to anybody
            targets = targets_of(shelf.metadata, snapshot_of(data, name))
            names |= {f"{METADATA}/{name}", f"{METADATA}/{targets.signed.version}.targets.json"}
            names |= {document_name(target, digest) for target, digest in digests(targets.signed.targets).items()}
            if fresh:
                names |= _below(shelf, targets.signed.targets, delivery)
    return names


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def superfluous(shelf: Shelf, needed: Iterable[str]) -> set[str]:
    """The names of what is in a repository by the form of its name, and not needed."""
    found = {name for name in shelf.names(METADATA) if _VERSIONED.fullmatch(PurePosixPath(name).name)}
    found |= {name for name in shelf.names(TARGETS) if _DOCUMENT.fullmatch(PurePosixPath(name).name)}
    found |= {name for name in shelf.names(FILES) if _FILE.fullmatch(PurePosixPath(name).name)}
    return found - set(needed)
