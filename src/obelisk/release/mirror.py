"""A repository elsewhere: a working copy here, brought up to date before a change, and sent after it, by rsync or by rclone.

What is sent goes in the order in which a repository is written, so that readers there see the old state or the new one; what is to be
removed goes last. A sending that was cut is finished by the next command.

    <copy>         the working copy
    <copy>.seen    SHA-256 of the timestamp that the target had when it was last read or sent
    <copy>.lock    held by who changes it
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from obelisk.errors import StateError, TrustError
from obelisk.events import Sink, task
from obelisk.release.repository import Repository
from obelisk.release.shelf import FILES, METADATA, TARGETS, Shelf
from obelisk.system import rclone, rsync
from obelisk.system.command import OnLine
from obelisk.system.files import locked, write_durably, written_by_name

_TIMESTAMP = f"{METADATA}/timestamp.json"


class Carrier(Protocol):
    """A program that copies files to and from places elsewhere; see `obelisk.system.rsync`."""

    def push(self, source: Path, target: str, names: Sequence[str], *, named_by_content: bool, on_line: OnLine | None = None) -> None:
        """Send files and directories."""

    def remove(self, source: Path, target: str, names: Sequence[str]) -> None:
        """Take away there what is not here."""

    def pull(self, target: str, place: Path, *, by_content: str, known: Path, on_line: OnLine | None = None) -> None:
        """Copy all into an empty directory."""

    def fetch(self, target: str, name: str) -> bytes | None:
        """Read one small file, if it is there."""


def is_elsewhere(target: str) -> bool:
    """Whether that names a place which is not a directory of this machine."""
    return rclone.is_target(target) or rsync.is_target(target)


class Mirror:
    """`target` elsewhere, whose working copy is `place`."""

    def __init__(self, target: str, place: Path) -> None:
        self.target = target.rstrip("/")
        self._carrier: Carrier = rclone if rclone.is_target(target) else rsync
        self.shelf = Shelf(place)

    @contextmanager
    def changing(self, sink: Sink) -> Iterator[None]:
        """The working copy is what the target is, may be changed, and is sent after a block that ends well.

        Raises:
            TransportError: the other machine cannot be reached.
            StateError: somebody else has changed the target meanwhile, or uses the working copy.
        """
        with written_by_name(self.shelf.root):
            self.shelf.root.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.shelf.root.with_name(f"{self.shelf.root.name}.lock"), wait=False):
            there = self.update(sink)
            yield
            if self.shelf.metadata("timestamp.json") is not None:
                self._send(sink, there)

    def update(self, sink: Sink) -> bytes:
        """Bring the working copy up to date, and return the target's timestamp; nothing when there is none.

        A working copy stays when the target is what was last sent or read: what it is ahead by has not been sent yet.

        Raises:
            TransportError: the other machine cannot be reached.
            TrustError: the target is not to be trusted, or is another repository than it was.
        """
        with written_by_name(self.shelf.root):
            self.shelf.root.mkdir(parents=True, exist_ok=True)
        there = self._carrier.fetch(self.target, _TIMESTAMP) or b""
        here = self.shelf.metadata("timestamp.json")
        ahead = here is not None and hashlib.sha256(there).hexdigest() == self._last_seen()
        if there and there != here and not ahead:
            with task(sink, "mirror", f"Reading {self.target}") as running:
                self._take_over(running.output)
        return there

    def _take_over(self, on_line: Callable[[str], None]) -> None:
        """Put what the target is in the place of the working copy, once it is known to be right."""
        place = self.shelf.root
        fresh, old = (place.with_name(f"{place.name}.{word}") for word in ("new", "old"))
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        self._carrier.pull(self.target, fresh, by_content=FILES, known=place, on_line=on_line)
        found = Repository.open(Shelf(fresh))
        if not found.documents:
            raise TrustError(f"{self.target} says nothing", code="document-damaged", hint="restore it from a copy of the repository")
        first = self.shelf.metadata("1.root.json")
        if first is not None and first != found.first_root:
            raise TrustError(
                f"{self.target} is not the repository that it was", code="repository-unknown", hint=f"if it is right, remove {place} first"
            )
        place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old)
        self._see()

    def _send(self, sink: Sink, expected: bytes) -> None:
        there = self._carrier.fetch(self.target, _TIMESTAMP) or b""
        if there != expected:
            raise StateError(
                f"{self.target} was changed by somebody else meanwhile",
                code="repository-changed",
                hint="run the command again, on what it is now",
            )
        if there == self.shelf.metadata("timestamp.json"):
            return
        with task(sink, "mirror", f"Sending to {self.target}") as running:
            if self.shelf.path(FILES).exists():
                self._carrier.push(self.shelf.root, self.target, [FILES], named_by_content=True, on_line=running.output)
            signed = [name for name in self.shelf.names(METADATA) if name != _TIMESTAMP]
            for names in ([TARGETS], signed, [_TIMESTAMP]):
                self._carrier.push(self.shelf.root, self.target, names, named_by_content=False, on_line=running.output)
            self._carrier.remove(self.shelf.root, self.target, [FILES, TARGETS, METADATA])
        self._see()

    def _last_seen(self) -> str:
        """The SHA-256 of the timestamp that the target had when it was last read or sent."""
        try:
            return self._seen.read_text().strip()
        except FileNotFoundError:
            return ""

    def _see(self) -> None:
        write_durably(self._seen, hashlib.sha256(self.shelf.metadata("timestamp.json") or b"").hexdigest().encode())

    @property
    def _seen(self) -> Path:
        return self.shelf.root.with_name(f"{self.shelf.root.name}.seen")
