"""Names that keep images: the path of a spec, usually, and what its builds made and used.

refs/<SHA-256 of the name>.json     {"name", "images": [[id, time], newest first], "steps": [...], "blobs": [...]}
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obelisk.errors import InputError, TrustError
from obelisk.store.faults import storage_faults
from obelisk.store.session import Session
from obelisk.store.steps import Uses
from obelisk.system.files import sync_directory

_SCHEMA = "obelisk.ref/1"
HISTORY = 50


@dataclass(frozen=True, slots=True)
class Ref:
    """`name` stands for `images[0]`; the rest are its predecessors, newest first. `at`: when it was set, in seconds since 1970."""

    name: str
    images: tuple[str, ...]
    at: int
    uses: Uses

    @property
    def image_id(self) -> str:
        """The image that the name stands for now."""
        return self.images[0]


class Refs:
    """The refs of one store."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._layout = session.layout

    def set(self, name: str, image_id: str) -> None:
        """See `Store.set_ref`."""
        self._session.hold()
        if not self._layout.image(image_id).is_dir():
            raise InputError(f"there is no image {image_id[:12]}", code="image-unknown", hint="list the images with `obelisk images`")
        uses = Uses(frozenset(self._session.used_steps), frozenset(self._session.used_blobs))
        with self._editing(name) as path:
            before = self.find(name)
            if before is not None and before.image_id == image_id:
                # A build that found everything finished has looked at the last steps only.
                uses = Uses(uses.steps | before.uses.steps, uses.blobs | before.uses.blobs)
            older = () if before is None else tuple(image for image in before.images if image != image_id)
            self._write(path, Ref(name, (image_id, *older)[:HISTORY], int(time.time()), uses))

    def find(self, name: str) -> Ref | None:
        """The ref of that name, or None.

        Raises:
            TrustError: it is damaged.
        """
        path = self._path(name)
        return read_ref(path) if path.exists() else None

    def all(self) -> tuple[Ref, ...]:
        """Every ref, by name.

        Raises:
            TrustError: one is damaged.
        """
        return tuple(sorted((read_ref(path) for path in self._layout.refs.iterdir()), key=lambda ref: ref.name))

    def remove(self, name: str) -> None:
        """Remove the ref; one that does not exist is fine."""
        self._session.hold()
        with self._editing(name) as path:
            path.unlink(missing_ok=True)
            sync_directory(path.parent)

    def forget(self, image_id: str) -> None:
        """Remove the image from every ref; a ref without any image left goes too."""
        for name in [ref.name for ref in self.all() if image_id in ref.images]:
            with self._editing(name) as path:
                ref = read_ref(path)
                images = tuple(image for image in ref.images if image != image_id)
                if images:
                    self._write(path, Ref(name, images, ref.at, ref.uses))
                else:
                    path.unlink()

    def _path(self, name: str) -> Path:
        return self._layout.refs / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()}.json"

    @contextmanager
    def _editing(self, name: str) -> Iterator[Path]:
        path = self._path(name)
        with storage_faults(self._layout.root), self._session.locked(f"ref-{path.stem}"):
            yield path

    def _write(self, path: Path, ref: Ref) -> None:
        value = {
            "schema": _SCHEMA,
            "name": ref.name,
            "images": ref.images,
            "at": ref.at,
            "steps": sorted(ref.uses.steps),
            "blobs": sorted(ref.uses.blobs),
        }
        self._session.publish(path, json.dumps(value, indent=1).encode())


def read_ref(path: Path) -> Ref:
    """Read one ref's file.

    Raises:
        TrustError: it is damaged.
    """
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        if raw["schema"] != _SCHEMA or not raw["images"]:
            message = f"schema {raw['schema']!r}, {len(raw['images'])} images"
            raise ValueError(message)  # noqa: TRY301 - one place explains every kind of damage
        return Ref(raw["name"], tuple(raw["images"]), raw["at"], Uses(frozenset(raw["steps"]), frozenset(raw["blobs"])))
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError(
            f"the ref {path} is damaged: {error}", code="ref-damaged", hint="run `obelisk verify --repair`, then build its spec again"
        ) from error
