"""A repository as a host sees it: some mirrors, of which any may be down, slow, stale or lying.

A mirror is a web server's address or a directory. What comes from one counts only when its digest is right, so each file may come from
another: whoever fails is passed over, and asked last from then on.

    <target>.part   what has come of a file that is being fetched; the next try goes on from there, also with another mirror
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from obelisk.errors import InputError, ObeliskError, TransportError, TrustError
from obelisk.model.release import File
from obelisk.system.files import CHUNK_BYTES, hash_file, sync_directory, sync_file, written_by_name
from obelisk.system.http import Client, HttpError

OnBytes = Callable[[int], None]
Say = Callable[[str], None]
Result = TypeVar("Result")
_LACKING = frozenset({403, 404, 410})  # some servers answer 403 for what is not there


class MissingError(TransportError):
    """The mirror has no such file."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="mirror-lacks", hint="is that the address of a repository? Another mirror may have it")


class Mirror(Protocol):
    """One place that has the files of a repository. Paths are relative to its top, quoted as addresses are."""

    name: str

    def stream(self, path: str, *, start: int, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Pieces of a file in order, each with its offset: from `start` on, or from 0 where the mirror knows no ranges."""
        ...

    def part(self, path: str, wanted: range, *, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Pieces of `wanted` in order, each with its offset; a mirror that knows no ranges gives the file from 0 on."""
        ...


class WebMirror:
    """A web server. `client` may be shared by mirrors."""

    def __init__(self, address: str, client: Client) -> None:
        self.name = address.rstrip("/")
        self._client = client

    def stream(self, path: str, *, start: int, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """See `Mirror`."""
        yield from self._get(path, range(start, most_bytes) if start else None, most_bytes)

    def part(self, path: str, wanted: range, *, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """See `Mirror`."""
        yield from self._get(path, wanted, most_bytes)

    def unchanged(self, path: str, etag: str, *, most_bytes: int) -> tuple[bytes | None, str]:
        """The file and its ETag; None for the file while it is still the one that `etag` is of."""
        try:
            with self._client.get(f"{self.name}/{path}", most_bytes=most_bytes, etag=etag) as answer:
                return (None, etag) if answer.unchanged else (answer.read(), answer.etag)
        except HttpError as error:
            raise _lacking(error) from error

    def _get(self, path: str, part: range | None, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        try:
            with self._client.get(f"{self.name}/{path}", most_bytes=most_bytes, part=part) as answer:
                at = answer.start
                for data in answer.chunks():
                    yield at, data
                    at += len(data)
        except HttpError as error:
            raise _lacking(error) from error


class DirectoryMirror:
    """A directory: of a stick, or of a file server."""

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._directory = directory

    def stream(self, path: str, *, start: int, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """See `Mirror`."""
        yield from self.part(path, range(start, most_bytes + 1), most_bytes=most_bytes)

    def part(self, path: str, wanted: range, *, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """See `Mirror`."""
        file = self._directory / unquote(path)
        if not file.resolve().is_relative_to(self._directory.resolve()):
            raise MissingError(f"{file} leads out of {self._directory}")
        try:
            with file.open("rb") as source:
                source.seek(wanted.start)
                at = wanted.start
                while at < wanted.stop and (data := source.read(min(CHUNK_BYTES, wanted.stop - at))):
                    if at + len(data) > most_bytes:
                        raise TransportError(
                            f"{file} has more than the {most_bytes} bytes that belong there",
                            code="mirror-wrong",
                            hint="it is another file; copy the repository again",
                        )
                    yield at, data
                    at += len(data)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise MissingError(f"{file}: there is no such file") from error
        except OSError as error:
            raise TransportError(
                f"{file} cannot be read: {error.strerror}", code="mirror-unreadable", hint="is the medium sound, and still there?"
            ) from error


def mirror(address: str, client: Client) -> WebMirror | DirectoryMirror:
    """The mirror at an address, `http://…`, `https://…` or `file:///…`, or in a directory.

    Raises:
        InputError: it is neither.
    """
    try:
        parsed = urlsplit(address)
    except ValueError:
        parsed = urlsplit("")
    if parsed.scheme in {"http", "https"} and parsed.hostname:
        return WebMirror(address, client)
    directory = Path(unquote(parsed.path)) if parsed.scheme == "file" else Path(address)
    if not directory.is_dir():
        raise InputError(
            f"{address!r} is neither an address nor a directory",
            code="mirror-address",
            hint="name a repository as https://example.org/os, or the directory that holds it",
        )
    return DirectoryMirror(directory)


class Mirrors:
    """The files of a repository, from whichever mirror has them. `say` is told of mirrors that are passed over."""

    def __init__(self, mirrors: Sequence[Mirror], *, say: Say = lambda _message: None) -> None:
        self._mirrors = list(mirrors)
        self._say = say

    @property
    def count(self) -> int:
        """How many mirrors there are."""
        return len(self._mirrors)

    def read(self, path: str, *, most_bytes: int, is_right: Callable[[bytes], bool]) -> bytes:
        """A small file, whose content `is_right`.

        Raises:
            TransportError, TrustError: no mirror has it.
        """

        def attempt(source: Mirror) -> bytes:
            data = b"".join(data for _, data in source.stream(path, start=0, most_bytes=most_bytes))
            if not is_right(data):
                raise _other(f"{source.name}/{path}")
            return data

        return self.ask(attempt)

    def read_file(self, file: File) -> bytes:
        """A small file below files/.

        Raises:
            TransportError, TrustError: no mirror has it.
        """
        return self.read(file.path, most_bytes=file.size_bytes, is_right=lambda data: hashlib.sha256(data).hexdigest() == file.sha256)

    def fetch(self, file: File, target: Path, on_bytes: OnBytes) -> None:
        """Make `target` hold `file`, durably. `on_bytes` is told of every byte once, also of those that were there.

        What an earlier try has left is used. Nothing has the name `target` that is not whole and right.

        Raises:
            TransportError: no mirror sends it; what came is kept for the next try.
            TrustError: what the mirrors send is something else.
            StateError: it cannot be written, as when the disk is full; what came is kept.
        """
        if target.exists() and target.stat().st_size == file.size_bytes and hash_file(target) == file.sha256:
            on_bytes(file.size_bytes)
            return
        counted = 0

        def count(done: int) -> None:
            nonlocal counted
            if done > counted:  # bytes that come once more are no progress
                on_bytes(done - counted)
                counted = done

        part = target.with_name(f"{target.name}.part")
        with written_by_name(target):
            self.ask(lambda source: _fetch_from(source, file, part, count))
            sync_file(part)
            part.rename(target)
            sync_directory(target.parent)

    def ranges(self, file: File, wanted: Sequence[range]) -> Iterator[tuple[range, bytes]]:
        """Byte ranges of an immutable file, each whole, in the order in which they are wanted. They are not verified.

        Whoever finds one to be wrong says so with `blame`, and asks again.

        Raises:
            TransportError: no mirror sends them.
        """
        done, faults = 0, list[ObeliskError]()
        while done < len(wanted):
            source = self._mirrors[0]
            try:
                for found in _ranges(source, file, wanted[done:]):
                    done += 1
                    faults.clear()
                    yield found
            except (TransportError, TrustError) as error:
                faults.append(error)
                self.blame(error)
                if len(faults) >= len(self._mirrors):
                    raise _gravest(faults) from error

    def ask(self, attempt: Callable[[Mirror], Result]) -> Result:
        """What `attempt` makes of the first mirror with which it comes to an end.

        Raises:
            TransportError, TrustError: it came to none with any; of several reasons, the gravest is the error's.
        """
        faults: list[ObeliskError] = []
        for source in tuple(self._mirrors):
            try:
                return attempt(source)
            except (TransportError, TrustError) as error:
                faults.append(error)
                self.blame(error)
        raise _gravest(faults)

    def blame(self, error: ObeliskError) -> None:
        """Ask the mirror that was asked last after all others from now on."""
        if len(self._mirrors) > 1:
            self._mirrors.append(self._mirrors.pop(0))
            self._say(f"{error.message}; asking {self._mirrors[0].name}")


def _fetch_from(source: Mirror, file: File, part: Path, count: OnBytes) -> None:
    """Complete `part` from one mirror. `count` is told how many bytes of it are there."""
    while True:
        resumed = part.stat().st_size if part.exists() else 0
        if resumed > file.size_bytes:
            part.unlink()
            resumed = 0
        digest = _append(source, file, part, count, resumed)
        if digest == file.sha256:
            return
        part.unlink()
        if not resumed:
            raise _other(f"{source.name}/{file.path}")
        # What was there may have been wrong, and this mirror not to blame: once more from the beginning.


def _append(source: Mirror, file: File, part: Path, count: OnBytes, at: int) -> str:
    """Add to `part`, which has `at` bytes, what is missing; return the SHA-256 of all."""
    hasher = hashlib.sha256()
    with part.open("a+b") as target:
        target.seek(0)
        while data := target.read(CHUNK_BYTES):
            hasher.update(data)
        count(at)
        pieces = source.stream(file.path, start=at, most_bytes=file.size_bytes) if at < file.size_bytes else iter(())
        for offset, data in pieces:
            fresh = data[at - offset :]  # nothing, as long as a mirror that knows no ranges sends what is there
            target.write(fresh)
            hasher.update(fresh)
            at += len(fresh)
            count(at)
    if at < file.size_bytes:
        raise TransportError(
            f"{source.name}/{file.path}: the file ends after {at} of {file.size_bytes} bytes",
            code="mirror-wrong",
            hint="name another mirror",
        )
    return hasher.hexdigest()


def _ranges(source: Mirror, file: File, wanted: Sequence[range]) -> Iterator[tuple[range, bytes]]:
    done = 0
    while done < len(wanted):
        pieces = _Pieces(source.part(file.path, wanted[done], most_bytes=file.size_bytes), f"{source.name}/{file.path}")
        yield wanted[done], pieces.take(wanted[done])
        done += 1
        # A mirror that knows no ranges sends all of the file: what else is wanted comes with it, if it comes later.
        while pieces.more() and done < len(wanted) and wanted[done - 1].start <= wanted[done].start:
            yield wanted[done], pieces.take(wanted[done])
            done += 1


class _Pieces:
    """Pieces of a file that follow each other, out of which ranges are taken whose beginnings ascend."""

    def __init__(self, pieces: Iterator[tuple[int, bytes]], name: str) -> None:
        self._pieces = pieces
        self._name = name
        self._held = bytearray()
        self._begin = -1  # of what is held
        self._taken = 0  # up to here

    def take(self, wanted: range) -> bytes:
        """The bytes of a range."""
        while self._begin < 0 or self._begin + len(self._held) < wanted.stop:
            if not self._pull() or self._begin > wanted.start:
                message = f"{self._name}: bytes {wanted.start}-{wanted.stop - 1} are not all there"
                raise TransportError(message, code="mirror-wrong", hint="name another mirror")
            skipped = min(max(wanted.start - self._begin, 0), len(self._held))
            del self._held[:skipped]
            self._begin += skipped
        self._taken = wanted.stop
        return bytes(self._held[wanted.start - self._begin : wanted.stop - self._begin])

    def more(self) -> bool:
        """Whether there is more behind what was taken. At the end of an answer, its connection is free for the next."""
        return self._begin + len(self._held) > self._taken or self._pull()

    def _pull(self) -> bool:
        offset, data = next(self._pieces, (-1, b""))
        if self._begin < 0:
            self._begin = offset
        self._held += data
        return bool(data)


def _gravest(faults: Sequence[ObeliskError]) -> ObeliskError:
    """One error for what is wrong with each mirror: wrong bytes weigh more than none, and any other trouble than a file that is missing."""
    chosen = min(faults, key=lambda fault: (not isinstance(fault, TrustError), isinstance(fault, MissingError)))
    if len(faults) == 1:
        return chosen
    message = f"no mirror has it: {'; '.join(dict.fromkeys(fault.message for fault in faults))}"
    if isinstance(chosen, MissingError):
        return MissingError(message)
    kind = TrustError if isinstance(chosen, TrustError) else TransportError
    return kind(message, code=chosen.code, hint=chosen.hint)


def _lacking(error: HttpError) -> TransportError:
    return MissingError(error.message) if error.status in _LACKING else error


def _other(name: str) -> TrustError:
    return TrustError(
        f"{name} is not what the signed metadata says: it was damaged or exchanged",
        code="file-wrong",
        hint="nothing of it is used; try another mirror",
    )
