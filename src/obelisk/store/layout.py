"""Where things lie in a store, and the making of an empty one. The picture is in `obelisk.store.store`."""

import re
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import InputError, StateError

FORMAT = "obelisk.store/1"
_DIGEST = re.compile(r"[0-9a-f]{64}")
# What processes put into steps/ and work/ are root trees, set-user-ID programs included, which no other user of this machine may reach.
_PRIVATE = 0o700
_PUBLIC = 0o755


def is_digest(text: str) -> bool:
    """Whether `text` is 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def checked_digest(text: str) -> str:
    """`text`, which is about to become part of a path.

    Raises:
        InputError: it is not 64 hexadecimal digits (a damaged or forged lock, usually).
    """
    if not is_digest(text):
        raise InputError(f"{text!r} is not a SHA-256 in hexadecimal digits", code="digest-malformed", hint="make the lock file anew")
    return text


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store."""

    root: Path

    @property
    def format(self) -> Path:
        """The file that makes a directory a store; written last."""
        return self.root / "format"

    @property
    def lock(self) -> Path:
        """Locked shared by everyone who uses the store, exclusively by who removes things from it."""
        return self.root / "lock"

    @property
    def blobs(self) -> Path:
        """Files by SHA-256."""
        return self.root / "blobs"

    @property
    def steps(self) -> Path:
        """Finished steps by key."""
        return self.root / "steps"

    @property
    def images(self) -> Path:
        """Images by id."""
        return self.root / "images"

    @property
    def proofs(self) -> Path:
        """Proofs by the id of the image they are about."""
        return self.root / "proofs"

    @property
    def refs(self) -> Path:
        """Names that keep images."""
        return self.root / "refs"

    @property
    def locks(self) -> Path:
        """A lock file for each key and ref that is being worked on."""
        return self.root / "locks"

    @property
    def work(self) -> Path:
        """One directory for each process that has unfinished things here."""
        return self.root / "work"

    @property
    def damaged(self) -> Path:
        """What `verify` moved away."""
        return self.root / "damaged"

    def blob(self, sha256: str) -> Path:
        """Where the blob is or would be."""
        return self.blobs / checked_digest(sha256)[:2] / sha256

    def step(self, key: str) -> Path:
        """Where the step's container or alias is or would be."""
        return self.steps / checked_digest(key)

    def image(self, image_id: str) -> Path:
        """Where the image is or would be."""
        return self.images / checked_digest(image_id)

    def make(self) -> None:
        """Make the directories of a store. May be repeated, and interrupted anywhere: `format` is not written here.

        Raises:
            InputError: the place is taken by something else.
        """
        public = (self.blobs, self.images, self.proofs, self.refs, self.locks, self.damaged)
        private = (self.steps, self.work)
        ours = {path.name for path in (*public, *private, self.lock, self.format)}
        if self.root.is_dir() and not {path.name for path in self.root.iterdir()} <= ours:
            raise InputError(
                f"{self.root} is not empty and not a store", code="store-place-taken", hint="name an empty or a new directory for the store"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        for mode, directories in ((_PUBLIC, public), (_PRIVATE, private)):
            for directory in directories:
                directory.mkdir(mode=mode, exist_ok=True)
        self.lock.touch()

    def check_format(self) -> bool:
        """Whether this is a store that this version understands; False when there is no complete store yet.

        Raises:
            StateError: the store is of another version.
        """
        try:
            found = self.format.read_text().strip()
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise InputError(
                f"{self.root} is not a directory", code="store-place-taken", hint="name an empty or a new directory for the store"
            ) from error
        if found != FORMAT:
            raise StateError(
                f"the store {self.root} has the format {found!r}, this version reads {FORMAT!r}",
                code="store-format",
                hint="use the version of obelisk that made it, or another store directory",
            )
        return True
