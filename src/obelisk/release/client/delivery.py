"""Where files of a repository come from: the face that everything which fetches sees, and a repository on disk behind it."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from obelisk.errors import TransportError, TrustError
from obelisk.model.release import File
from obelisk.system.files import CHUNK_BYTES, hash_file


class Remote(Protocol):
    """A repository from which files are fetched. What `ranges` gives is not verified; what `fetch` leaves is."""

    def ranges(self, file: File, wanted: Sequence[range]) -> Iterator[tuple[range, bytes]]:
        """These ranges of bytes of a file, in that order, each whole.

        Raises:
            TransportError: no mirror gives them.
        """
        ...

    def fetch(self, file: File, target: Path, on_bytes: Callable[[int], None]) -> None:
        """Make `target` the whole file, going on where an earlier attempt ended; `on_bytes` is told how many bytes are there more.

        Raises:
            TransportError: no mirror gives it.
            TrustError: what they give is another file.
        """
        ...


class Directory:
    """A repository in a directory."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def ranges(self, file: File, wanted: Sequence[range]) -> Iterator[tuple[range, bytes]]:
        """See `Remote`."""
        path = self._top / file.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _missing(path, error) from error
        try:
            for each in wanted:
                data = os.pread(descriptor, len(each), each.start)
                if len(data) != len(each):
                    raise TransportError(f"{path} is shorter than it should be", code="file-short", hint="run `obelisk repo verify`")
                yield each, data
        finally:
            os.close(descriptor)

    def fetch(self, file: File, target: Path, on_bytes: Callable[[int], None]) -> None:
        """See `Remote`; a copy is begun anew each time, which on one machine costs little."""
        path = self._top / file.path
        draft = target.with_name(f".{target.name}.part")
        try:
            with path.open("rb") as source, draft.open("wb") as out:
                while data := source.read(CHUNK_BYTES):
                    out.write(data)
                    on_bytes(len(data))
        except OSError as error:
            raise _missing(path, error) from error
        if draft.stat().st_size != file.size_bytes or hash_file(draft) != file.sha256:
            draft.unlink()
            raise TrustError(f"{path} is not what its name says", code="file-damaged", hint="run `obelisk repo verify`")
        draft.rename(target)


def _missing(path: Path, error: OSError) -> TransportError:
    return TransportError(f"{path} cannot be read: {error.strerror}", code="file-missing", hint="see whether the repository is whole there")
