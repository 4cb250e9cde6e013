"""Who publishes: the keys and the shelf that a change of a repository needs, and how each change begins and ends."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.events import Note, Sink
from obelisk.model.publication import Act, Contents
from obelisk.model.release import File, Testers
from obelisk.release import trust
from obelisk.release.delivery import Delivery
from obelisk.release.keys import Keyring, Role
from obelisk.release.known import Known
from obelisk.release.repository import Repository, put
from obelisk.release.shelf import Shelf, file_of
from obelisk.store import StoredImage


@dataclass(frozen=True, slots=True)
class Founding:
    """What a repository begins with: whose proofs count, and for how long metadata holds (roles that are left out: the default)."""

    testers: Testers
    lifetimes: Mapping[Role, timedelta] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Publisher:
    """Who publishes, where and with what. `work` is a directory for unfinished things, `stored` finds an image of the store by its id."""

    shelf: Shelf
    keyring: Keyring
    delivery: Delivery
    act: Act
    work: Path
    stored: Callable[[str], StoredImage | None]
    sink: Sink

    @property
    def known(self) -> Known:
        """The repositories that these keys have signed."""
        return Known(self.keyring.directory / "known.json")

    @contextmanager
    def changing(self) -> Iterator[Repository]:
        """The repository, which nobody else changes during the block. Warns of what expires.

        Raises:
            StateError: there is none, or somebody else changes it.
            TrustError: it is not to be trusted, or these keys have never signed it.
        """
        with self.shelf.writing():
            yield self.opened()

    def opened(self) -> Repository:
        """The repository, known to be the one that these keys have signed. Warns of what expires.

        Raises:
            StateError: there is none.
            TrustError: it is not to be trusted, or these keys have never signed it.
        """
        there = Repository.open(self.shelf)
        self.known.check(there.first_root, there.trusted, str(self.shelf.root))
        for line in warnings(there.trusted, self.act.at):
            self.sink(Note(line))
        return there

    def ensure_keys(self, there: Repository | None, founding: Founding) -> None:
        """Find out, before long work, whether the keys are here that will have to sign.

        Raises:
            StateError: some are not.
            TrustError: one cannot be opened.
        """
        if there is None:
            self._first({}, founding)
        else:
            trust.change(there.trusted, None, self.keyring.signers, self.act.at)

    def found(self, contents: Contents, founding: Founding) -> Repository:
        """Begin a repository.

        Raises:
            StateError: not enough keys are here.
        """
        files = self._first(contents.documents(), founding)
        # Before readers see it: its keys must know it whenever it is cut.
        self.known.remember(files[0][1], 0)
        return self.put(contents.documents(), files)

    def _first(self, documents: Mapping[str, bytes], founding: Founding) -> trust.Files:
        lifetimes = {**trust.LIFETIMES, **founding.lifetimes}
        keys = {role: self.keyring.publics(role) for role in Role}
        root = trust.found(keys, self.keyring.threshold, lifetimes[Role.ROOT], self.act.at, identity=secrets.token_hex(8))
        return trust.first(root, documents, lifetimes, self.keyring.signers, self.act.at)

    def commit(self, there: Repository, contents: Contents) -> Repository:
        """Let the repository say `contents`, whose files are on the shelf; nothing happens when it says that already.

        Raises:
            StateError: not enough keys are here, or it cannot be written.
        """
        documents = contents.documents()
        if documents == there.documents:
            return there
        return self.put(documents, trust.change(there.trusted, documents, self.keyring.signers, self.act.at))

    def put(self, documents: Mapping[str, bytes], files: trust.Files) -> Repository:
        """Write documents and signed metadata, and remember that it was signed.

        Raises:
            StateError: it cannot be written.
        """
        put(self.shelf, documents, files)
        there = Repository.open(self.shelf)
        self.known.remember(there.first_root, there.trusted.timestamp.signed.version)
        return there

    def keep(self, data: bytes) -> File:
        """Put a small file below files/."""
        draft = self.work / "document"
        draft.write_bytes(data)
        return self.take(draft)

    def take(self, path: Path) -> File:
        """Put a copy of a file below files/."""
        file = file_of(path)
        self.shelf.take(path, file)
        return file

    def find(self, file: File) -> Path:
        """Where a file lies on the shelf."""
        return self.shelf.path(file.path)


def refuse_remains(publisher: Publisher) -> None:
    """Make sure that where a repository is to begin there was none: its hosts would trust the root that it had.

    Raises:
        TrustError: there was one, and it has lost its timestamp.
    """
    root = publisher.shelf.metadata("1.root.json")
    if root is not None and publisher.known.version(root):
        raise TrustError(
            f"{publisher.shelf.root} has lost its timestamp",
            code="metadata-damaged",
            hint="restore metadata/ from a copy of the repository",
        )


def warnings(trusted: trust.Trusted, now: datetime) -> tuple[str, ...]:
    """A sentence for each role whose metadata has expired or soon will."""
    return tuple(
        f"{role} {'expired' if at <= now else 'expires'} on {at:%Y-%m-%d %H:%M} UTC"
        f"{': hosts refuse the repository' if at <= now else ''}; run `obelisk repo refresh{' --root DIR' if role is Role.ROOT else ''}`"
        for role, at in trusted.expiring(now)
    )
