"""Which instance is on which host: a file an instance, and a lock that one command at a time holds.

    .placements/<name>.json     the record, replaced as a whole
               /.<name>.lock    held while a command changes the instance
               /.rates.json     what was seen of the network between two hosts

The hosts have the truth, this says where to look for it. While an instance is on its way the record names both ends, so whatever a killed
command leaves, the next one finds.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from obelisk.errors import InputError, StateError
from obelisk.system.files import locked, write_durably


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an instance is. `to` is the host that it is on its way to, else empty.

    `coming`: it is being made, and what there is of it goes when that fails. `off`: it was switched off, and is not started by repairs.
    `home` is the host that it left because that was emptied, and to which it returns.
    """

    name: str
    uuid: str
    image: str
    host: str
    to: str = ""
    coming: bool = False
    off: bool = False
    home: str = ""


class Placements:
    """The records in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def all(self) -> tuple[Placement, ...]:
        """Every record, by name."""
        return tuple(self.get(file.stem) for file in sorted(self.directory.glob("[!.]*.json")))

    def find(self, name: str) -> Placement | None:
        """The record of that name, or None.

        Raises:
            InputError: it is damaged.
        """
        file = self._file(name)
        try:
            raw: dict[str, Any] = json.loads(file.read_bytes())
            return Placement(**raw)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"not the record of an instance: {error}",
                place=str(file),
                code="placement-damaged",
                hint="remove it, and look on the hosts",
            ) from error

    def get(self, name: str) -> Placement:
        """The record of that name.

        Raises:
            InputError: there is none.
        """
        found = self.find(name)
        if found is None:
            raise InputError(f"there is no instance {name!r} on a host", code="instance-unknown", hint="obelisk instance list")
        return found

    def put(self, placement: Placement) -> None:
        """Write a record."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_durably(self._file(placement.name), json.dumps(asdict(placement), indent=2).encode() + b"\n")

    def remove(self, name: str) -> None:
        """Forget an instance."""
        self._file(name).unlink(missing_ok=True)

    @contextmanager
    def owned(self, name: str) -> Iterator[None]:
        """Be the one command that changes this instance.

        Raises:
            StateError: another one is at it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with _busy(name), locked(self.directory / f".{name}.lock", wait=False):
            yield

    def rate(self, source: str, target: str) -> int | None:
        """Bytes a second that the last migration between these hosts saw; None before the first."""
        return self._rates().get(f"{source} {target}")

    def note_rate(self, source: str, target: str, rate: int) -> None:
        """Remember what the network between these hosts carried."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.directory / ".rates.lock"):
            rates = self._rates() | {f"{source} {target}": rate}
            write_durably(self.directory / ".rates.json", json.dumps(rates, indent=2).encode() + b"\n")

    def _rates(self) -> dict[str, int]:
        try:
            return {str(pair): int(rate) for pair, rate in json.loads((self.directory / ".rates.json").read_bytes()).items()}
        except (FileNotFoundError, ValueError, AttributeError):
            return {}  # an estimate more is all that is lost

    def _file(self, name: str) -> Path:
        if not name or "/" in name or name.startswith("."):
            raise InputError(f"{name!r} is no name for an instance", code="instance-name", hint="small letters, digits and dashes")
        return self.directory / f"{name}.json"


@contextmanager
def _busy(name: str) -> Iterator[None]:
    try:
        yield
    except StateError as error:
        if error.code != "locked":
            raise
        raise StateError(
            f"another command is at work on {name}",
            code="instance-busy",
            hint="wait for it to end; `obelisk instance show` tells how far it is",
        ) from error
