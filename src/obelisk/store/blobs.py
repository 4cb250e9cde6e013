"""Immutable files by the SHA-256 of their content: packages, and the parts of images.

A blob is written and flushed before it gets its name, so a name that exists stands for complete content, also after a power cut. (The
name itself is not flushed: a blob that a power cut loses is fetched again.) Blobs have mode 0444; whoever holds a hard link to one
must not write to it, which root could.
"""

import errno
import fcntl
import hashlib
import os
import time
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.store.faults import storage_faults
from obelisk.store.session import Session, abandon
from obelisk.system.files import CHUNK_BYTES, hash_file, sync_file

USE_RECORDED_EVERY_S = 3600
_ZEROS = bytes(CHUNK_BYTES)
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP})
_FICLONE = 0x40049409


class Blobs:
    """The blobs of one store."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._layout = session.layout

    def find(self, sha256: str) -> Path | None:
        """The blob's path, or None. Counts as a use of it."""
        path = self._layout.blob(sha256)
        self._session.hold()
        if not record_use(path):
            return None
        self._session.used_blobs.add(sha256)
        return path

    def get(self, sha256: str) -> Path:
        """The blob's path.

        Raises:
            StateError: the store has no such blob.
        """
        path = self.find(sha256)
        if path is None:
            raise StateError(
                f"the store has no file with the SHA-256 {sha256}",
                code="blob-missing",
                hint="build again: what is missing is fetched or made anew",
            )
        return path

    def add(self, source: Path, *, sha256: str | None, move: bool) -> str:
        """See `Store.add_blob`."""
        with storage_faults(self._layout.root):
            if sha256 is not None and self.find(sha256) is not None:
                if move:
                    source.unlink()
                return sha256
            if move and _is_ours_alone(source, self._layout.blobs):
                return self._move(source, sha256)
            added = self._copy(source, sha256)
            if move:
                source.unlink()
            return added

    def link(self, sha256: str, target: Path) -> None:
        """See `Store.link_blob`."""
        blob = self.get(sha256)
        try:
            with storage_faults(self._layout.root):
                target.hardlink_to(blob)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            copy_hashed(blob, target)
            target.chmod(0o444)

    def _move(self, source: Path, expected: str | None) -> str:
        found = _checked(hash_file(source), expected, source)
        source.chmod(0o444)
        sync_file(source)
        self._publish(source, found)
        return found

    def _copy(self, source: Path, expected: str | None) -> str:
        draft = self._session.fresh("blob")
        try:
            # A finished step never changes either: the two may be one file, hashed by the step that wrote it.
            if not (source.is_relative_to(self._layout.steps) and _linked(source, draft)):
                found = copy_hashed(source, draft)
            else:
                found = expected or hash_file(draft)
            _checked(found, expected, source)
            draft.chmod(0o444)
            sync_file(draft)
            self._publish(draft, found)
        except BaseException:
            abandon(draft)
            raise
        return found

    def _publish(self, complete: Path, sha256: str) -> None:
        target = self._layout.blob(sha256)
        target.parent.mkdir(exist_ok=True)
        if record_use(target) and target.stat().st_size == complete.stat().st_size:
            complete.unlink()  # it is there already, and images may share it
        else:
            os.utime(complete)  # a moved or linked file may be old; its use begins now
            complete.rename(target)
        self._session.used_blobs.add(sha256)


def record_use(path: Path, *, follow: bool = True) -> bool:
    """Note in the file's time that it was used, at most once an hour; whether the file exists. A store that cannot be written is fine."""
    try:
        if time.time() - path.stat(follow_symlinks=follow).st_mtime > USE_RECORDED_EVERY_S:
            os.utime(path, follow_symlinks=follow)
    except FileNotFoundError:
        return False
    except OSError:
        return path.exists()
    return True


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file, keeping its holes and sharing its blocks where the file system can; return the SHA-256 of what was copied."""
    hasher = hashlib.sha256()
    with source.open("rb", buffering=0) as reader, target.open("x+b", buffering=0) as writer:
        # A clone is hashed, not its source, which others may change meanwhile.
        stream = writer if _cloned(reader.fileno(), writer.fileno()) else reader
        size = 0
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
            if stream is reader:
                _write_at(writer.fileno(), chunk, size)
            size += len(chunk)
        os.ftruncate(writer.fileno(), size)
    return hasher.hexdigest()


def _write_at(descriptor: int, chunk: bytes, offset: int) -> None:
    if chunk == _ZEROS[: len(chunk)]:
        return  # a hole
    view = memoryview(chunk)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _cloned(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    return True


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno in _CANNOT_LINK:
            return False
        raise
    return True


def _is_ours_alone(source: Path, blobs: Path) -> bool:
    # Another link would let somebody change the blob; another owner would not let us protect it; another device needs a copy.
    found = source.lstat()
    return found.st_nlink == 1 and found.st_uid == os.geteuid() and found.st_dev == blobs.stat().st_dev


def _checked(found: str, expected: str | None, source: Path) -> str:
    if expected is not None and found != expected:
        raise TrustError(
            f"{source} has the SHA-256 {found}, expected {expected}",
            code="digest-mismatch",
            hint="do not use it; fetch it anew, from another mirror if it stays wrong",
        )
    return found
