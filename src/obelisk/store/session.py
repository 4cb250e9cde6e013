"""What one process has in hand in a store: its locks, its unfinished work, and a note of what it has used.

A session's directory, work/<process>-<random>, is locked (flock) for as long as the process lives, so whoever finds one that is not
locked may remove it. Nothing outside work/ is ever unfinished: everything is prepared here and published by one rename.
"""

import fcntl
import itertools
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from obelisk.errors import MissingFeatureError, ObeliskError, StateError
from obelisk.store.faults import storage_faults
from obelisk.store.layout import Layout
from obelisk.system.files import locked, sync_directory
from obelisk.system.filesystem import lock_holders
from obelisk.system.namespace import remove_tree


class Session:
    """Safe to use from several threads, except for `exclusive`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.used_blobs: set[str] = set()
        self.used_steps: set[str] = set()
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)
        self._store_lock: int | None = None
        self._own: list[tuple[int, Path]] = []  # at most one; a list because the finalizer needs what is in it at the end
        self._finish = weakref.finalize(self, _leave, self._own)

    def hold(self) -> None:
        """From now on nobody removes anything from the store until `close`, or the end of the process. Waits while somebody does."""
        if self._store_lock is not None:
            return
        with self._mutex:
            if self._store_lock is None:
                self._store_lock = _open_locked(self.layout.lock, fcntl.LOCK_SH)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only user of the store for the enclosed block.

        A hold of this session is given up and taken again, so between the two others may remove things.

        Raises:
            StateError: others are using it; the message names them.
        """
        with self._mutex:
            held, self._store_lock = self._store_lock, None
            if held is not None:
                os.close(held)
            try:
                lock = _open_locked(self.layout.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                others = ", ".join(lock_holders(self.layout.lock)) or "another process"
                if held is not None:
                    self._store_lock = _open_locked(self.layout.lock, fcntl.LOCK_SH)
                raise StateError(
                    f"the store {self.layout.root} is in use by {others}",
                    code="store-busy",
                    hint="wait until it has finished, then try again",
                ) from error
            self._store_lock = lock
        try:
            yield
        finally:
            os.close(lock)
            self._store_lock = None
            if held is not None:
                self.hold()

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Be the only one, of all threads and processes, who works on what `name` stands for. Waits for others."""
        path = self.layout.locks / name
        with ExitStack() as stack:
            with storage_faults(self.layout.root):
                stack.enter_context(locked(path))
            try:
                yield
            finally:
                # Whoever waits notices that the file is gone, and takes the lock on a new one.
                path.unlink()

    def fresh(self, what: str) -> Path:
        """A path in this session's directory that does not exist yet; made by nobody but the caller."""
        return self._directory() / f"{next(self._numbers)}-{what}"

    def publish(self, target: Path, data: bytes) -> None:
        """Replace the file `target` with `data`, atomically and durably."""
        draft = self.fresh(target.name)
        try:
            with draft.open("xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            draft.rename(target)
        except BaseException:
            abandon(draft)
            raise
        sync_directory(target.parent)

    def trash(self, path: Path) -> Path:
        """Take `path` out of the store by one rename; the caller discards what is returned."""
        taken = self.fresh("trash")
        path.rename(taken)
        return taken

    def close(self) -> None:
        """Let go of everything. The session may be used again."""
        with self._mutex:
            _leave(self._own)
            if self._store_lock is not None:
                os.close(self._store_lock)
                self._store_lock = None

    def _directory(self) -> Path:
        self.hold()
        with self._mutex:
            if not self._own:
                self._own.append(_enter(self.layout.work))
            return self._own[0][1]


def discard(path: Path) -> None:
    """Remove a file or a tree, whoever of our ids owns what is in it. A path that does not exist is fine."""
    try:
        if path.is_dir() and not path.is_symlink():
            try:
                path.rmdir()  # very often it is empty, and then this is a hundred times faster
            except OSError:
                _remove_full(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass


def abandon(path: Path) -> None:
    """Remove what an error left half done, so that the error is what is told: what resists is left to the next sweep."""
    with suppress(OSError, ObeliskError):
        discard(path)


def _remove_full(path: Path) -> None:
    try:
        remove_tree(path)
    except MissingFeatureError:
        # Who has no subordinate ids owns everything here, and cannot have mounted anything in it that must not be entered.
        shutil.rmtree(path)


def sweep(layout: Layout) -> None:
    """Remove what dead processes left in work/. What resists is left to the next sweep."""
    for path in tuple(layout.work.iterdir()):
        try:
            lock = _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # alive, or just removed by somebody else
        try:
            discard(path)
        except (OSError, ObeliskError):
            continue
        finally:
            os.close(lock)


def _enter(work: Path) -> tuple[int, Path]:
    while True:
        path = work / f"{os.getpid()}-{os.urandom(4).hex()}"
        path.mkdir(mode=0o700)
        try:
            lock = _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            continue  # a sweep came between the two and takes it for a dead one
        if path.is_dir():
            return lock, path
        os.close(lock)


def _leave(own: list[tuple[int, Path]]) -> None:
    while own:
        lock, path = own.pop()
        if path.name.startswith(f"{os.getpid()}-"):  # a forked child has inherited the session, but not its work
            # Everything is discarded by who made it; here only remains of errors could be left, and they are small.
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _open_locked(path: Path, operation: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
