"""Durable files: a reader sees the old content or the new, never a part, also after a power cut.

A durable write is: temporary file in the same directory, fsync, rename, fsync of the directory.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from obelisk.errors import StateError

CHUNK_BYTES = 1 << 20


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` with `data` atomically and durably."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), mode)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def written_by_name(path: Path) -> Iterator[None]:
    """Explain why `path`, which the user has named and the enclosed block writes, cannot be written.

    Raises:
        StateError: the operating system refuses.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise StateError(
            f"{path} cannot be written: {error.strerror or error}",
            code="unwritable",
            hint="make room there, or name another place" if full else f"see who may write to {path.parent}, or name another place",
        ) from error


@contextmanager
def drafted(path: Path, *, size: int) -> Iterator[Path]:
    """A new sparse file of `size` bytes beside `path`, which takes its name when the block ends well, and goes when it does not.

    Raises:
        StateError: the operating system refuses.
    """
    draft = path.with_name(f".{path.name}.new")
    with written_by_name(path):
        draft.unlink(missing_ok=True)
        with draft.open("wb") as file:
            file.truncate(size)
    try:
        with written_by_name(path):
            yield draft
            draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def ensure_writable(path: Path) -> None:
    """Find out, before long work, whether `path` could be written at its end.

    Raises:
        StateError: it could not.
    """
    with written_by_name(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    _fsync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path, *, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file as 64 hexadecimal digits; `on_bytes` is told each chunk's size."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as source:
        while count := source.readinto(buffer):
            hasher.update(buffer[:count])
            if on_bytes is not None:
                on_bytes(count)
    return hasher.hexdigest()


def hash_sparse(path: Path, *, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 over the parts of a file that are not zero, as 64 hexadecimal digits: the same with holes and without.

    Of each mebibyte that has anything but zeros, its number goes into it (8 bytes, big-endian) and its content; last, the file's size.
    """
    hasher, zeros = hashlib.sha256(), bytes(CHUNK_BYTES)
    with path.open("rb", buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA) // CHUNK_BYTES * CHUNK_BYTES
            except OSError:  # ENXIO: only a hole is left
                break
            data = os.pread(source.fileno(), CHUNK_BYTES, at)
            if not data:
                break
            if data != zeros[: len(data)]:
                hasher.update((at // CHUNK_BYTES).to_bytes(8, "big") + data)
            if on_bytes is not None:
                on_bytes(len(data))
            at += CHUNK_BYTES
    hasher.update(size.to_bytes(8, "big"))
    return hasher.hexdigest()


def clone_or_copy(source: Path, target: Path) -> None:
    """Copy a file: sharing blocks where the file system can, keeping holes elsewhere. `target` must not exist."""
    ficlone = 0x40049409
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), ficlone, reader.fileno())
        except OSError:
            copy_data(reader.fileno(), writer.fileno(), os.fstat(reader.fileno()).st_size)
    shutil.copymode(source, target)


def move(source: Path, target: Path) -> None:
    """Move a file or directory, to another file system if need be: complete or not at all. `target` must not exist."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        shutil.move(source, draft)
        draft.rename(target)
    except BaseException:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        raise


def copy_data(reader: int, writer: int, size: int, *, offset: int = 0) -> None:
    """Copy the first `size` bytes of `reader` to `offset` in `writer`, leaving holes where the source has them."""
    position = 0
    while position < size:
        try:
            start = os.lseek(reader, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        end = min(os.lseek(reader, start, os.SEEK_HOLE), size)
        while start < end:
            os.lseek(writer, offset + start, os.SEEK_SET)
            os.lseek(reader, start, os.SEEK_SET)
            count = _copy_some(reader, writer, min(end - start, 1 << 24))
            if count == 0:
                break
            start += count
        position = end
    if os.fstat(writer).st_size < offset + size:
        os.ftruncate(writer, offset + size)


def _copy_some(reader: int, writer: int, size: int) -> int:
    try:
        return os.copy_file_range(reader, writer, size)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
            raise
    return os.write(writer, os.read(reader, size))  # between file systems that share nothing


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold an advisory lock on `path` (created when missing) for the enclosed block; it ends with the process at the latest.

    The file may be removed by its last holder; whoever gets a lock on a removed file tries again with the new one.

    Raises:
        StateError: somebody else holds it and `wait` is False.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    descriptor = _lock_file(path, operation)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_file(path: Path, operation: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, operation)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise StateError(f"{path} is in use by another process", code="locked", hint="wait for it to finish") from error
        except FileNotFoundError:
            pass  # removed between the two looks: the next turn makes a new one
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def find_bytes(path: Path, pattern: bytes) -> int | None:
    """Where `pattern` first stands in a file, which is mapped and not read into memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(pattern)
    return at if at >= 0 else None
