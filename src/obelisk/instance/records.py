"""What is kept of instances on this machine, and who may change it.

    <root>/<name>/record.json          the instance, its layers, and what a killed command has to have finished; replaced as a whole
                 /image/               linux, initrd, disk.raw: the image's, by hard links
                 /layers/<id>.qcow2    its state: each file has what changed since the one below it; only the last is written
                 /snapshots/<id>/      snapshot.json, memory, and the layers below that moment, by hard links
                 /…                    what a running machine has: see `obelisk.system.resident`
          /.new-<name>/                an instance that is being made; appears under its name by one rename, else it is swept
          /.images/<id>/               files of images that instances here use; shared, never written
          /.locks/<name>               held by the one command that works on the instance

No file that a snapshot has is ever written again, and each directory has links to all files that it needs: so whatever is removed, nothing
else is touched, and the file system counts for us what is still in use.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from obelisk.errors import InputError, StateError
from obelisk.model.canonical import canonical
from obelisk.model.instance import Instance, Snapshot, instance_json, read_instance, read_snapshot
from obelisk.system.files import clone_or_copy, locked, sync_directory, sync_file, write_durably
from obelisk.system.namespace import remove_tree
from obelisk.system.resident import Resident

_NEW = ".new-"
_FILE = "record.json"
TEMPLATE = "template"
"""Where, in a draft, the machine lies that prepares memory for copies."""


@dataclass(frozen=True, slots=True)
class Bootable:
    """What of an image a machine starts from. `disk` opens the raw disk, which is not changed; None where all of it is in the initrd."""

    id: str
    label: str
    linux: bytes
    initrd: bytes
    command_line: str
    disk: Callable[[], AbstractContextManager[Path]] | None = None


Images = Callable[[str], Bootable]
"""The image of an id. Raises InputError `image-missing`."""


@dataclass(frozen=True, slots=True)
class Record:
    """The content of record.json. `layers` go from the lowest to the one that is written; `restoring` is the snapshot on its way back."""

    instance: Instance
    command_line: str
    layers: tuple[str, ...]
    restoring: str = ""


class Place:
    """One instance's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layers = directory / "layers"
        self.snapshots = directory / "snapshots"
        self.machine = Resident(directory)

    def read(self) -> Record:
        """The record.

        Raises:
            StateError: it is damaged.
        """
        try:
            raw = json.loads((self.directory / _FILE).read_bytes())
            return Record(read_instance(raw["instance"]), raw["command_line"], tuple(raw["layers"]), raw["restoring"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"{self.directory / _FILE} is damaged: {error}", code="instance-damaged", hint="bring the directory back from a backup"
            ) from error

    def write(self, record: Record) -> None:
        """Replace the record."""
        raw = {
            "instance": instance_json(record.instance),
            "command_line": record.command_line,
            "layers": list(record.layers),
            "restoring": record.restoring,
        }
        write_durably(self.directory / _FILE, canonical(raw) + b"\n", mode=0o600)  # credentials are in it

    def set_on(self, record: Record, *, on: bool) -> Record:
        """Note whether it is meant to run."""
        if record.instance.on is not on:
            record = replace(record, instance=replace(record.instance, on=on))
            self.write(record)
        return record

    def kept(self) -> tuple[Snapshot, ...]:
        """The snapshots, oldest first; without those whose description cannot be read, which `damaged` names."""
        found = []
        for file in self._descriptions():
            with suppress(StateError):
                found.append(read_snapshot(file.read_bytes()))
        return tuple(sorted(found, key=lambda each: (each.at, each.id)))

    def damaged(self) -> tuple[str, ...]:
        """The ids of snapshots whose description cannot be read."""
        ids = []
        for file in self._descriptions():
            try:
                read_snapshot(file.read_bytes())
            except StateError:
                ids.append(file.parent.name)
        return tuple(ids)

    def _descriptions(self) -> list[Path]:
        return sorted(file for file in self.snapshots.glob("*/snapshot.json") if not file.parent.name.startswith("."))

    def remove_drafts(self) -> None:
        """Remove what killed commands left of snapshots, and layers that the record does not name."""
        for draft in self.snapshots.glob(".*"):
            Resident(draft / TEMPLATE).end()
            remove_tree(draft)
        named = {f"{layer}.qcow2" for layer in self.read().layers}
        for file in self.layers.iterdir():
            if file.name not in named:
                file.unlink()

    def link_image(self, other: "Place") -> None:
        """Have the files of another instance's image."""
        (self.directory / "image").mkdir(exist_ok=True)
        for file in (other.directory / "image").iterdir():
            os.link(file, self.directory / "image" / file.name)

    def link_layers(self, source: Path, layers: tuple[str, ...]) -> None:
        """Have these layers here too."""
        for layer in layers:
            target = self.layers / f"{layer}.qcow2"
            if not target.exists():
                os.link(source / f"{layer}.qcow2", target)


class Records:
    """All instances below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Of all instances, in order."""
        return sorted(file.parent.name for file in self.root.glob(f"[!.]*/{_FILE}"))

    def place(self, name: str) -> Place:
        """The directory of an instance.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.names():
            known = ", ".join(self.names())
            raise InputError(
                f"there is no instance {name}",
                code="instance-unknown",
                hint=f"there are {known}" if known else "make one: obelisk instance create",
            )
        return Place(self.root / name)

    @contextmanager
    def owned(self, name: str) -> Iterator[Place]:
        """An instance for one command alone.

        Raises:
            InputError: there is none of that name.
            StateError: another command works on it.
        """
        self.place(name)
        with self._lock(name):
            self.sweep(besides=name)
            yield self.place(name)

    @contextmanager
    def coming(self, name: str) -> Iterator[Place]:
        """A new instance: it appears when the block ends well, and is gone when it does not.

        Raises:
            InputError: the name is taken.
            StateError: another command makes one of that name.
        """
        (self.root / ".locks").mkdir(mode=0o700, parents=True, exist_ok=True)
        self.refuse_taken(name)
        with self._lock(name):
            self.refuse_taken(name)
            self.sweep(besides=name)
            draft = Place(self.root / f"{_NEW}{name}")
            _remove(draft)
            try:
                draft.layers.mkdir(parents=True)
                draft.snapshots.mkdir()
                (draft.directory / "image").mkdir()
                draft.directory.chmod(0o700)
                yield draft
                sync_directory(draft.directory)
                draft.directory.rename(self.root / name)
                sync_directory(self.root)
            except BaseException:
                _remove(draft)
                raise

    def refuse_taken(self, name: str) -> None:
        """Refuse a name that an instance has.

        Raises:
            InputError: that.
        """
        if (self.root / name).exists():
            raise InputError(
                f"there is an instance {name} already", code="name-taken", hint=f"choose another name, or: obelisk instance retire {name}"
            )

    def remove(self, place: Place) -> None:
        """Remove an instance that this command owns, with its process, and files of images that no instance has."""
        gone = place.directory.with_name(f"{_NEW}{place.directory.name}")
        place.machine.end()
        place.directory.rename(gone)
        sync_directory(self.root)
        _remove(Place(gone))
        self.sweep_images()

    def sweep(self, *, besides: str = "") -> None:
        """Remove what killed commands left of instances that they made or removed, with their processes."""
        for directory in self.root.glob(f"{_NEW}*"):
            name = directory.name.removeprefix(_NEW)
            if name != besides:
                with suppress(StateError), self._lock(name):
                    _remove(Place(directory))

    # Images

    def take_image(self, image: Bootable, place: Place) -> None:
        """Give an instance that is made the files of its image: the same ones that others of that image have."""
        with self._lock(".images", wait=True):
            home = self.root / ".images" / image.id
            if not home.exists():
                draft = home.with_name(f".{image.id}.{secrets.token_hex(4)}")
                draft.mkdir(parents=True, mode=0o700)
                for name, content in (("linux", image.linux), ("initrd", image.initrd)):
                    (draft / name).write_bytes(content)
                    sync_file(draft / name)
                if image.disk is not None:
                    with image.disk() as disk:
                        _link_or_copy(disk, draft / "disk.raw")
                sync_directory(draft)
                draft.rename(home)
                sync_directory(home.parent)
            for file in home.iterdir():
                os.link(file, place.directory / "image" / file.name)

    def sweep_images(self) -> None:
        """Remove files of images that no instance has."""
        with self._lock(".images", wait=True):
            for home in (self.root / ".images").glob("*"):
                linux = home / "linux"
                if home.name.startswith(".") or not linux.exists() or linux.stat().st_nlink == 1:
                    remove_tree(home)

    @contextmanager
    def _lock(self, name: str, *, wait: bool = False) -> Iterator[None]:
        try:
            with locked(self.root / ".locks" / name, wait=wait):
                yield
        except StateError as error:
            if error.code != "locked":
                raise
            raise StateError(
                f"another command works on {name}", code="instance-busy", hint="wait for it to finish, then try again"
            ) from error


def _remove(place: Place) -> None:
    place.machine.end()
    remove_tree(place.directory)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system, or somebody else's
        clone_or_copy(source, target)
        sync_file(target)
