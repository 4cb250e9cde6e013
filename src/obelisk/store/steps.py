"""Finished outputs of build steps, each named by the hash of its inputs.

A step is a container directory, steps/<key>, published by one rename:

    steps/<key>/output/     what the step made: files, or a whole root tree that belongs to subordinate ids
               /step.json   the record: the boot in which it was written, size of every file directly in output/, SHA-256 of the small
                            ones; its time is when the step was last used
               /uses        the steps and blobs that the process had used by then, one a line
               /sealed      exists once everything above is on the disk
    steps/<alias> -> <key>  another name of the same step

Durability. Flushing a tree of 200 MB and 7,000 files as soon as it was finished took 0.15 to 0.37 s on a fast disk, for each step. So
nothing is flushed when a step is published. Its record names the boot (the kernel's boot_id) instead: within one boot the kernel gives back
what was written whether it has reached the disk or not, and a power cut ends the boot. `seal` flushes the file system once for all steps
(syncfs; at the latest when an image is added) and then marks them sealed. A step that is neither sealed nor of this boot counts as
absent and is made anew. Where the kernel tells no boot_id, each step is flushed before it is published.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obelisk.errors import StateError
from obelisk.store.blobs import record_use
from obelisk.store.faults import full_disk, storage_faults
from obelisk.store.layout import checked_digest
from obelisk.store.session import Session, abandon, discard
from obelisk.system.filesystem import boot_id, sync_filesystem

# Result files below this are read at each use; a larger one is only measured.
SMALL_BYTES = 256 << 10
UNFLUSHED = "the machine went down before it was on the disk"


@dataclass(frozen=True, slots=True)
class Uses:
    """What a build or a step has used."""

    steps: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()


class Steps:
    """The steps of one store."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._layout = session.layout

    def find(self, key: str) -> Path | None:
        """The output of the finished step, or None when there is none that can be trusted. Counts as a use of it."""
        path = self._layout.step(key)
        self._session.hold()
        container = self.container(path)
        if problem(container) is not None:
            return None
        record_use(container / "step.json")
        if container is not path:
            record_use(path, follow=False)
        self._session.used_steps.update((key, container.name))
        return container / "output"

    def build(self, key: str, produce: Callable[[Path], None]) -> tuple[Path, bool]:
        """See `Store.build_step`."""
        found = self.find(key)
        if found is not None:
            return found, True
        with self._session.locked(f"step-{checked_digest(key)}"):
            found = self.find(key)
            if found is not None:
                return found, True
            return self._produce(key, produce), False

    def alias(self, key: str, other: str) -> None:
        """See `Store.alias_step`."""
        path, target = self._layout.step(key), self._layout.step(other)
        if self.find(other) is None:
            raise StateError(
                f"the step {other[:12]} is not finished, so {key[:12]} cannot name it", code="step-missing", hint="build again"
            )
        with storage_faults(self._layout.root), self._session.locked(f"step-{checked_digest(key)}"):
            if self.find(key) is None:
                self._clear(path)
                path.symlink_to(self.container(target).name)
                self._session.used_steps.add(key)

    def container(self, path: Path) -> Path:
        """The directory that the entry `path` of steps/ is or names."""
        return self._layout.steps / path.readlink() if path.is_symlink() else path

    def containers(self) -> Iterator[Path]:
        """All steps, aliases left out."""
        return (path for path in sorted(self._layout.steps.iterdir()) if not path.is_symlink())

    def aliases(self) -> Iterator[Path]:
        """All aliases."""
        return (path for path in sorted(self._layout.steps.iterdir()) if path.is_symlink())

    def seal(self) -> None:
        """Flush the file system and mark the steps that this has made durable.

        Raises:
            StateError: the disk is failing (`disk-failing`); nothing is marked then.
        """
        unsealed = [path for path in self.containers() if not (path / "sealed").exists() and problem(path) is None]
        with storage_faults(self._layout.root):
            sync_filesystem(self._layout.root)
            for path in unsealed:
                with suppress(FileNotFoundError):  # removed meanwhile
                    (path / "sealed").touch()

    def _produce(self, key: str, produce: Callable[[Path], None]) -> Path:
        target = self._layout.step(key)
        with storage_faults(self._layout.root):
            draft = self._session.fresh(f"step-{key[:12]}")
        try:
            with storage_faults(self._layout.root):
                self._clear(target)
                draft.mkdir(mode=0o700)
                (draft / "output").mkdir()
            with full_disk(self._layout.root):
                produce(draft / "output")
            with storage_faults(self._layout.root):
                self._finish(draft)
                draft.rename(target)
        except BaseException:
            abandon(draft)
            raise
        self._session.used_steps.add(key)
        return target / "output"

    def _finish(self, draft: Path) -> None:
        (draft / "step.json").write_bytes(_record(draft / "output"))
        uses = [f"step {name}\n" for name in sorted(self._session.used_steps)]
        uses += [f"blob {name}\n" for name in sorted(self._session.used_blobs)]
        (draft / "uses").write_text("".join(uses))
        if not boot_id():
            sync_filesystem(draft)
            (draft / "sealed").touch()

    def _clear(self, path: Path) -> None:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            discard(self._session.trash(path))


def problem(container: Path) -> str | None:
    """Why the step cannot be used, or None when it can: it survived every power cut, and its result files look as recorded."""
    if not container.is_dir():
        return "there is no such step"
    sealed = (container / "sealed").exists()
    try:
        record: dict[str, Any] = json.loads((container / "step.json").read_bytes())
        if not sealed and record["boot"] != boot_id():
            return UNFLUSHED
        return _changed(container / "output", record["files"])
    except (KeyError, TypeError, ValueError):
        # A power cut may leave the name of a file and nothing in it.
        return "its record is damaged" if sealed else UNFLUSHED
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read: {error.strerror}"


def _changed(output: Path, files: list[tuple[str, int, str]]) -> str | None:
    output.stat()
    for name, size, sha256 in files:
        file = output / name
        found = file.lstat().st_size
        if found != size:
            return f"{name} has {found} bytes, recorded are {size}"
        if sha256 and hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            return f"{name} has changed"
    return None


def uses_of(container: Path) -> Uses:
    """What the step used when it was made; nothing for a step that is damaged."""
    try:
        words = [line.partition(" ") for line in (container / "uses").read_text().splitlines()]
    except (OSError, ValueError):
        return Uses()
    return Uses(
        steps=frozenset(name for kind, _, name in words if kind == "step"),
        blobs=frozenset(name for kind, _, name in words if kind == "blob"),
    )


def _record(output: Path) -> bytes:
    files = []
    for entry in _entries(output):
        if entry.is_file() and not entry.is_symlink():
            size = entry.stat().st_size
            files.append((entry.name, size, _digest(entry) if size <= SMALL_BYTES else ""))
    # Not canonical JSON: nobody hashes it, and a name need not be UTF-8.
    return json.dumps({"boot": boot_id(), "files": sorted(files)}).encode()


def _entries(output: Path) -> list[Path]:
    try:
        return list(output.iterdir())
    except PermissionError:
        return []  # a tree whose root directory only its own root may read


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except PermissionError:
        return ""  # likewise
