"""The directory of a repository: the only code that writes into one, a file at a time, each whole and on the disk before it has its name.

    .lock       held by who writes
    .<...>.tmp  what a process was writing when it ended; swept by the next that writes

Everything else is drawn in `obelisk.model.release`.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.model.release import File
from obelisk.system.files import clone_or_copy, hash_file, locked, sync_directory, sync_file, write_durably, written_by_name

METADATA = "metadata"
TARGETS = "targets"
FILES = "files"
_PUBLIC = 0o644


class Shelf:
    """A repository's directory. Names are paths below it, with slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes during the block.

        Raises:
            StateError: somebody does, or nobody may.
        """
        with written_by_name(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        lock = self.path(".lock")
        try:
            with written_by_name(lock), locked(lock, wait=False):
                self._sweep_drafts()
                yield
        except StateError as error:
            if error.code != "locked":
                raise
            raise StateError(
                f"{self.root} is being changed by another process", code="repository-locked", hint="wait for it to finish, then try again"
            ) from error

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self.root / name

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None when there is none."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def metadata(self, name: str) -> bytes | None:
        """The bytes of a file of metadata/."""
        return self.read(f"{METADATA}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Put a small file there, in the place of what has its name.

        Raises:
            StateError: it cannot be written.
        """
        path = self.path(name)
        with written_by_name(path):
            self._make(path.parent)
            write_durably(path, data)

    def take(self, source: Path, file: File) -> None:
        """Put a copy of `source` below files/, unless it is there. The copy is read again.

        Raises:
            TrustError: it is not the file that it should be.
            StateError: it cannot be written.
        """
        path = self.path(file.path)
        if path.exists() and path.stat().st_size == file.size_bytes:
            return
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with written_by_name(path):
                self._make(path.parent)
                clone_or_copy(source, draft)
                draft.chmod(_PUBLIC)
                sync_file(draft)
            if draft.stat().st_size != file.size_bytes or hash_file(draft) != file.sha256:
                raise TrustError(
                    f"{source} is damaged: its SHA-256 is not {file.sha256}", code="digest-mismatch", hint="run `obelisk verify`"
                )
            with written_by_name(path):
                draft.rename(path)
                sync_directory(path.parent)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self, name: str) -> int:
        """Take a file away and return its size; nothing happens when there is none."""
        path = self.path(name)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def names(self, below: str) -> Iterator[str]:
        """The names of all files below a directory, but for drafts, in order."""
        for directory, inner, files in os.walk(self.path(below)):
            inner.sort()
            place = Path(directory).relative_to(self.root)
            yield from (f"{place}/{name}" for name in sorted(files) if not name.startswith("."))

    def _make(self, directory: Path) -> None:
        """Make a directory, and those above it, whose names are on the disk as well."""
        missing = [each for each in (directory, *directory.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            sync_directory(each.parent)

    def drafts(self) -> Iterator[str]:
        """The names of what was being written when a process ended."""
        for directory, _, files in os.walk(self.root):
            place = Path(directory).relative_to(self.root)
            yield from (str(place / name) for name in sorted(files) if name.startswith(".") and name.endswith(".tmp"))

    def _sweep_drafts(self) -> None:
        for name in list(self.drafts()):
            self.remove(name)


def file_of(path: Path) -> File:
    """What a file is called in a repository."""
    return File(hash_file(path), path.stat().st_size)
