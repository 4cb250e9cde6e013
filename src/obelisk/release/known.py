"""The repositories that a set of keys has signed, so that what is signed next is what it was and not what somebody has put in its place.

<keys>/release/known.json    {SHA-256 of the first root: version of the last timestamp}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.release.trust import Trusted
from obelisk.system.files import write_durably, written_by_name


@dataclass(frozen=True, slots=True)
class Known:
    """What `path` remembers."""

    path: Path

    def check(self, first_root: bytes, trusted: Trusted, place: str) -> None:
        """Make sure that a repository is one of these, and not older than it was.

        Raises:
            TrustError: it is neither.
        """
        entry = self._read().get(hashlib.sha256(first_root).hexdigest())
        if entry is None:
            raise TrustError(
                f"these keys have never signed {place}",
                code="repository-unknown",
                hint=f"if it is yours, look at `obelisk keys show {place}`, then run `obelisk keys trust {place}`",
            )
        if trusted.timestamp.signed.version < entry:
            raise TrustError(
                f"{place} is older than what was last signed: version {trusted.timestamp.signed.version}, not {entry}",
                code="repository-rolled-back",
                hint=f"hosts refuse it as well: restore the newest copy; or, if hosts never saw that, `obelisk keys trust {place}`",
            )

    def version(self, first_root: bytes) -> int:
        """The version of the last timestamp that was signed for a repository; 0 when there was none."""
        return self._read().get(hashlib.sha256(first_root).hexdigest(), 0)

    def remember(self, first_root: bytes, version: int) -> None:
        """Note that the timestamp of that version has been signed.

        Raises:
            StateError: it cannot be written.
        """
        known = self._read()
        name = hashlib.sha256(first_root).hexdigest()
        known[name] = max(version, known.get(name, 0))
        self._write(known)

    def accept(self, first_root: bytes, version: int) -> None:
        """Let these keys sign a repository as it is now, whatever they have signed of it before.

        Raises:
            StateError: it cannot be written.
        """
        self._write(self._read() | {hashlib.sha256(first_root).hexdigest(): version})

    def _write(self, known: Mapping[str, int]) -> None:
        with written_by_name(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self.path, json.dumps(known, indent=1, sort_keys=True).encode() + b"\n")

    def _read(self) -> dict[str, int]:
        try:
            return {str(name): int(version) for name, version in json.loads(self.path.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise StateError(
                f"{self.path} is damaged: {error}",
                code="known-damaged",
                hint="remove it, then `obelisk keys trust REPO` for each repository",
            ) from error
