"""The local store: everything that a build fetches, makes and finishes, under the digest of its content or of its inputs.

    format                  "obelisk.store/1"; written last, so a directory without it is not (yet) a store
    lock                    flock: shared by who uses the store, exclusive for who removes things (gc, remove_image, verify --repair)
    blobs/ab/<SHA-256>      immutable files, 0444: packages, parts of images              see blobs.py
    steps/<key>/            finished outputs of build steps; <alias> -> <key>             see steps.py
    images/<id>/            manifest, parts as hard links to blobs, extras                see images.py
    proofs/<id>/            signed statements about an image                              see images.py
    refs/<...>.json         names that keep images                                        see refs.py
    locks/step-<key>        flock: who makes that step; the next one waits, then uses its result
         /ref-<...>         flock: who changes that ref
    work/<pid>-<random>/    one process's unfinished things; flocked while it lives       see session.py
    damaged/                what `verify` moved away

Order of locks: `lock`, then `locks/*`. Locks are the kernel's: they end with their process, however it ends.

Invariants. Nothing outside work/ is ever unfinished: each thing is made in work/ and published by one rename, after its content
is on the disk (blobs, images, refs, proofs) or marked as not yet there (steps). So a process may be killed, or the power cut, at any
instant: what had been finished is there, what was not is swept by the next `Store.open`. All of it must be on one local file system
with flock and hard links. steps/ and work/ are closed to other users: root trees with set-user-ID programs lie there.

This module is the face of the store and decides nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from obelisk.events import Sink
from obelisk.model.image import Manifest
from obelisk.store.blobs import Blobs
from obelisk.store.collect import Collected, Collector
from obelisk.store.faults import full_disk, storage_faults
from obelisk.store.images import Images, StoredImage
from obelisk.store.layout import FORMAT, Layout
from obelisk.store.refs import Ref, Refs
from obelisk.store.session import Session, abandon, sweep
from obelisk.store.steps import Steps
from obelisk.store.verify import Damage, Verifier


class Store:
    """One store, used by one process from any number of threads; made by `Store.open`.

    From its first use of a blob, step or workspace until `close` (or the end of the process) nothing is removed from the store by
    others. Looking at images, refs and proofs does not count as use.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._session = Session(layout)
        self._blobs = Blobs(self._session)
        self._steps = Steps(self._session)
        self._refs = Refs(self._session)
        self._images = Images(self._session, self._blobs, self._steps, self._refs)

    @classmethod
    def open(cls, root: Path) -> "Store":
        """The store at `root`, made when missing; removes what dead processes left unfinished there.

        Raises:
            StateError: the place cannot be written, the disk is full, or the store is of another version.
            InputError: the place is taken by something else.
        """
        layout = Layout(root.absolute())
        with storage_faults(layout.root):
            complete = layout.check_format()
            if not complete:
                layout.make()
            store = cls(layout)
            if not complete:
                store._session.publish(layout.format, f"{FORMAT}\n".encode())
                store.close()
            sweep(layout)
        return store

    @property
    def root(self) -> Path:
        """Where the store is, absolute."""
        return self._layout.root

    def hold(self) -> None:
        """Let nobody remove anything from now on until `close`: for those who keep paths of images or parts. Waits while somebody does."""
        self._session.hold()

    def close(self) -> None:
        """Let go of locks and unfinished work. The store may be used again."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Blobs

    def find_blob(self, sha256: str) -> Path | None:
        """The path of the blob, or None."""
        return self._blobs.find(sha256)

    def blob(self, sha256: str) -> Path:
        """The path of the blob.

        Raises:
            StateError: the store does not have it (`blob-missing`).
        """
        return self._blobs.get(sha256)

    def add_blob(self, source: Path, *, sha256: str | None = None, move: bool = False) -> str:
        """Keep the content of a file, complete and flushed, and return its SHA-256. May be repeated.

        With `sha256` a blob that is there already is not looked at again. `move` takes the file itself where it can (same file
        system, ours, no other name); otherwise it is copied, except that a file of a finished step becomes one file with the blob,
        and keeps the digest that the step gave it (`verify` reads it again).

        Raises:
            TrustError: the content is not `sha256` (`digest-mismatch`); the source is left as it is.
            StateError: the disk is full or cannot be written.
        """
        return self._blobs.add(source, sha256=sha256, move=move)

    def link_blob(self, sha256: str, target: Path) -> None:
        """Make `target`, which must not exist, a hard link to the blob, or a copy where the file system wants one. Never write to it.

        Raises:
            StateError: the store does not have it (`blob-missing`).
        """
        self._blobs.link(sha256, target)

    # Steps

    def find_step(self, key: str) -> Path | None:
        """The output directory of the finished step, or None when there is none that can be trusted. Never write to it."""
        return self._steps.find(key)

    def build_step(self, key: str, produce: Callable[[Path], None]) -> tuple[Path, bool]:
        """The output directory of the step, and whether it was there already; otherwise `produce` fills an empty directory first.

        Of two processes or threads that want the same step, the second waits and takes the first's result. When `produce` fails,
        nothing is left. Steps that are made within `produce` must not want this one.

        Raises:
            StateError: the disk is full or cannot be written. What `produce` raises is passed on.
        """
        return self._steps.build(key, produce)

    def alias_step(self, key: str, other: str) -> None:
        """Let `key` name the finished step `other` too. Does nothing when `key` is finished already.

        Raises:
            StateError: `other` is not finished (`step-missing`).
        """
        self._steps.alias(key, other)

    def seal(self) -> None:
        """Make everything durable that was finished so far; `add_image` does it too.

        Raises:
            StateError: the disk is failing.
        """
        self._steps.seal()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty scratch directory on the store's file system, removed at the end whatever it holds."""
        with storage_faults(self.root):
            path = self._session.fresh("workspace")
            path.mkdir()
        try:
            with full_disk(self.root):
                yield path
        finally:
            abandon(path)

    # Images, proofs, refs

    def add_image(self, manifest: Manifest, parts: Mapping[str, Path], extras: Mapping[str, bytes | Path] | None = None) -> Path:
        """Keep a finished image, durably, and return its directory. An image that is there already is left as it is, extras included.

        `parts` names each part's file by `Part.file` or by its kind; `extras` are stored beside the image and do not decide its id.

        Raises:
            TrustError: a file is not what the manifest says.
            StateError: the disk is full or cannot be written.
        """
        return self._images.add(manifest, parts, extras or {})

    def image(self, name: str) -> StoredImage:
        """The image called `name`: a ref, an id or the beginning of one (6 digits or more), or `name`, `name_version`, `name@version`.

        Where several images have that name, the one that a ref names now is meant, if there is just one.

        Raises:
            InputError: there is none (`image-unknown`) or more than one (`image-ambiguous`); the hint lists the candidates.
            TrustError: its manifest is damaged.
        """
        return self._images.find(name)

    def images(self) -> tuple[StoredImage, ...]:
        """All images whose manifests are sound, the last added first."""
        return self._images.all()

    def remove_image(self, image_id: str) -> None:
        """Remove the image with exactly this id, its proofs, and its place in refs. Its blobs go with the next `collect`.

        Raises:
            InputError: there is none.
            StateError: others are using the store (`store-busy`).
        """
        self._images.remove(image_id)

    def add_proof(self, image_id: str, envelope: bytes) -> Path:
        """Keep a signed statement about an image, durably. May be repeated.

        Raises:
            InputError: there is no such image.
        """
        return self._images.add_proof(image_id, envelope)

    def proofs(self, image_id: str) -> tuple[Path, ...]:
        """The proofs about the image, oldest first."""
        return self._images.proofs(image_id)

    def set_ref(self, name: str, image_id: str) -> None:
        """Let `name` stand for the image, durably, and keep what this `Store` has used since it was opened for later builds.

        Raises:
            InputError: there is no such image.
        """
        self._refs.set(name, image_id)

    def refs(self) -> tuple[Ref, ...]:
        """All refs, by name.

        Raises:
            TrustError: one is damaged.
        """
        return self._refs.all()

    def remove_ref(self, name: str) -> None:
        """Let `name` keep nothing any more; one that does not exist is fine."""
        self._refs.remove(name)

    # Maintenance

    def collect(
        self, *, keep_days: int | None = None, keep_images: int = 3, everything: bool = False, dry_run: bool = False, sink: Sink
    ) -> Collected:
        """Remove what nothing needs any more, and say what that freed. `dry_run` only says.

        Kept are: the last `keep_images` images of each ref, with proofs and blobs; what the last build of each ref rests on; steps and
        blobs used within `keep_days` (default 14). `everything` keeps the images alone. Not while other threads use this `Store`.

        Raises:
            StateError: others are using the store (`store-busy`); the message names them.
            TrustError: a manifest or a ref is damaged, so what it needs is not known.
        """
        return Collector(self._session, self._steps, self._images, self._refs).run(
            now=time.time(), keep_days=keep_days, keep_images=keep_images, everything=everything, dry_run=dry_run, sink=sink
        )

    def verify(self, *, repair: bool = False, sink: Sink) -> tuple[Damage, ...]:
        """Read everything and name what is damaged. `repair` moves it out of the way, so that it is fetched or built anew.

        Raises:
            StateError: with `repair`, others are using the store (`store-busy`).
        """
        return Verifier(self._session, self._steps, self._images, self._refs).run(repair=repair, sink=sink)
