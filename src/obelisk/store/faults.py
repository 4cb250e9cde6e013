"""Turns what the operating system says about the store's disk into errors that a person can act on.

Everything else that the operating system says is passed on as it is.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obelisk.errors import CommandError, ObeliskError, StateError
from obelisk.system.command import NO_SPACE
from obelisk.system.filesystem import space

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_TEXTS = (NO_SPACE, "Disk quota exceeded")
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_MIB = 1 << 20


@contextmanager
def storage_faults(root: Path) -> Iterator[None]:
    """Explain a full, read-only or failing disk under the store at `root`, met in the enclosed block.

    Raises:
        StateError: codes `disk-full`, `store-unwritable`, `disk-failing`.
    """
    with full_disk(root):
        try:
            yield
        except OSError as error:
            explained = _explain(error, root)
            if explained is None:
                raise
            raise explained from error


@contextmanager
def full_disk(root: Path) -> Iterator[None]:
    """Explain a full disk alone: for blocks that touch other places than the store, and run programs.

    Raises:
        StateError: code `disk-full`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _disk_full(root, str(error.strerror)) from error
    except CommandError as error:
        said = next((text for text in _FULL_TEXTS if text in error.output), None)
        if said is None:
            raise
        raise _disk_full(root, f"{error.argv[0]} says: {said}") from error


def _disk_full(root: Path, said: str) -> StateError:
    left = space(root)
    inodes = " and no inodes" if left.free_inodes == 0 else ""
    return StateError(
        f"{said}; the store {root} is on the file system {left.mount_point}, "
        f"which has {left.free_bytes / _MIB:,.0f} MiB free of {left.total_bytes / _MIB:,.0f} MiB{inodes}",
        code="disk-full",
        hint="make room there, or let `obelisk gc` do it, and try again: what was finished is kept",
    )


def _explain(error: OSError, root: Path) -> ObeliskError | None:
    if error.errno == errno.EIO:
        return StateError(
            f"the disk of the store {root} fails: {error}", code="disk-failing", hint="check the disk, then run `obelisk verify`"
        )
    # A file that cannot be read may also be the caller's own, elsewhere.
    if error.errno in _DENIED and any(_is_below(name, root) for name in (error.filename, error.filename2)):
        return StateError(
            f"the store {root} cannot be written: {error.strerror}: {error.filename}",
            code="store-unwritable",
            hint="run as the user that owns it, or name another store directory",
        )
    return None


def _is_below(name: object, root: Path) -> bool:
    # Making the store itself fails at one of its parents.
    return isinstance(name, str | Path) and (Path(name).is_relative_to(root) or root.is_relative_to(name))
