"""What an application keeps, as it was at one moment: saved before another version gets it, and put back when that version goes.

    DATA/<name>/            the data itself; a subvolume where root has made it on Btrfs
    DATA/.volumes/<name>    what it has a bound by: a volume that is mounted at DATA/<name>. Where there is one, the data is what is in it
    DATA/.saved/<name>/<image id>      as the image left it: a directory, or a volume
    DATA/.saved/<name>/draft, left     unfinished, and what was put away

Nothing of it is touched while the application runs. Each step may be repeated after it was cut.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from obelisk.errors import CommandError, MissingFeatureError, StateError
from obelisk.system import btrfs, volumes
from obelisk.system.command import run
from obelisk.system.files import locked, sync_directory
from obelisk.system.filesystem import sync_filesystem
from obelisk.system.mounts import is_shown_elsewhere, unmount_all
from obelisk.system.namespace import remove_tree

_FOUND = "lost+found"  # every ext4 has it


class How(StrEnum):
    """How data was saved, in the words that people are told."""

    NOTHING = "there is no data yet"
    SNAPSHOT = "a Btrfs snapshot"
    REFLINK = "a copy that shares its blocks"
    COPY = "a full copy"


class Data:
    """The data of one application, and what was saved of it. With `subvolumes` it may be one, where the file system has such."""

    def __init__(self, directory: Path, *, subvolumes: bool = True) -> None:
        self._live = directory
        self._subvolumes = subvolumes
        self._volume = directory.parent / ".volumes" / directory.name
        self._lock, self._draft, self._at = (self._volume.with_name(f".{directory.name}.{what}") for what in ("lock", "new", "at"))
        self._saved = directory.parent / ".saved" / directory.name

    def begin(self) -> None:
        """Have a place for data that snapshots can be taken of, where the file system offers that. Data that is there stays."""
        if self._live.exists():
            return
        self._live.parent.mkdir(parents=True, exist_ok=True)
        if not self._subvolumes:
            self._live.mkdir()
            return
        try:
            btrfs.create(self._live)
        except (CommandError, MissingFeatureError):
            self._live.mkdir(exist_ok=True)

    def bound(self, most_bytes: int | None) -> None:
        """Have it in a volume of that size, or in a directory that holds as much as there is room for. What there is moves. For root.

        Raises:
            StateError: it is in use, or does not fit; nothing has changed.
        """
        if most_bytes is None and not self._volume.exists():
            return
        self._private(self._volume.parent)
        with locked(self._lock):
            if most_bytes is None:
                self._leave_volume()
                return
            if not self._volume.exists():
                self._enter_volume(most_bytes)
            if not self._live.is_mount() and (not self._live.exists() or any(self._live.iterdir())):
                _remove(self._live)  # has moved into the volume
                self._live.mkdir(parents=True)
            volumes.have_mounted(self._volume, self._live, most_bytes)

    def rest(self) -> None:
        """Have nothing of it mounted."""
        unmount_all(self._at)
        if self._volume.exists():
            unmount_all(self._live)

    def save(self, image: str) -> How:
        """Save it under the id of the image that has written it. Durable when this returns.

        Raises:
            StateError: something else uses it.
        """
        if not self._live.exists() and not self._volume.exists():
            return How.NOTHING
        source = self._live
        if self._volume.exists():
            self._take_out()
            source = self._volume
        self._private(self._saved)
        how = self._copy(source, self._saved / "draft")
        self.forget(image)
        (self._saved / "draft").rename(self._saved / image)
        sync_directory(self._saved)
        return how

    def show(self, target: Path) -> bool:
        """Have it as it is at this moment at `target`, whatever uses it; False where it can only be copied bit by bit."""
        if self._volume.exists():
            return False
        if not self._live.exists() or not any(self._live.iterdir()):
            return True
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if btrfs.is_subvolume(self._live):
                btrfs.snapshot(self._live, target, read_only=False)
                return True
            # Nobody but root is sure to get rid of a snapshot of other things.
            around = btrfs.subvolume_of(self._live) if os.geteuid() == 0 else None
            if around is None:
                return False
            subvolume, inside = around
            btrfs.snapshot(subvolume, _whole(target), read_only=True)
            run(["cp", "--archive", "--reflink=always", "--", _whole(target) / inside, target], timeout_s=3600)
            _remove(_whole(target))
        except (CommandError, MissingFeatureError):
            return False
        return True

    @staticmethod
    def hide(target: Path) -> None:
        """Undo `show`, wherever it was cut."""
        for each in (_whole(target), target):
            _remove(each)

    def put_back(self, image: str) -> bool:
        """Let the data be as that image left it; whether anything was saved of it. What there was meanwhile goes."""
        if not self.has(image):
            return False
        if self._volume.exists():
            self._take_out()
        draft = self._saved / "draft"
        self._copy(self._saved / image, draft)
        if draft.is_file():
            self._private(self._volume.parent)
            draft.rename(self._volume)
            sync_directory(self._volume.parent)
            self._live.mkdir(exist_ok=True)
        else:
            self._put(draft)
        _remove(self._saved / "left")
        return True

    def has(self, image: str) -> bool:
        """Whether data is saved that the image has left."""
        return (self._saved / image).exists()

    def forget(self, image: str) -> None:
        """Remove what was saved of an image."""
        _remove(self._saved / image)

    def keep_only(self, image: str) -> None:
        """Remove all that is saved but of this image."""
        if self._saved.exists():
            for each in self._saved.iterdir():
                if each.name != image:
                    _remove(each)

    def remove(self) -> None:
        """Remove the data and all that was saved of it."""
        self.keep_only("")
        remove_tree(self._saved)
        self.rest()
        _remove(self._live)
        for file in (self._volume, self._draft, self._lock):
            file.unlink(missing_ok=True)

    def _enter_volume(self, most_bytes: int) -> None:
        unmount_all(self._at)
        volumes.make(self._draft, most_bytes)
        if self._live.exists() and any(self._live.iterdir()):
            if is_shown_elsewhere(self._live):
                raise self._used()
            with self._at_hand(self._draft, most_bytes) as place:
                try:
                    run(["cp", "--archive", "--", f"{self._live}/.", place])
                except CommandError as error:
                    raise StateError(
                        f"what {self._live} holds does not fit into {most_bytes >> 20} MiB",
                        code="volume-full",
                        hint="allow more, or remove some",
                    ) from error
        sync_filesystem(self._draft)
        self._draft.rename(self._volume)
        sync_directory(self._volume.parent)

    def _leave_volume(self) -> None:
        self._take_out()
        draft = self._saved / "draft"
        _remove(draft)
        self._private(self._saved)
        with self._at_hand(self._volume, volumes.size_of(self._volume)) as place:
            draft.mkdir()
            run(["cp", "--archive", "--", f"{place}/.", draft])
        remove_tree(draft / _FOUND)
        sync_filesystem(draft)
        self._put(draft)
        _remove(self._saved / "left")

    def _put(self, draft: Path) -> None:
        """Let a directory be the data. A volume goes last: as long as there is one, what is in it counts."""
        _remove(self._saved / "left")
        if self._live.exists():
            self._live.rename(self._saved / "left")
        draft.rename(self._live)
        sync_directory(self._live.parent)
        self._volume.unlink(missing_ok=True)

    def _take_out(self) -> None:
        """Have the volume mounted nowhere."""
        self.rest()
        if volumes.is_used(self._volume):
            raise self._used()

    def _used(self) -> StateError:
        return StateError(f"something else uses {self._live}", code="data-used", hint="end what runs of this application first")

    @contextmanager
    def _at_hand(self, volume: Path, size_bytes: int) -> Iterator[Path]:
        """A volume mounted aside for as long as the block lasts; durable when it ends."""
        self._at.mkdir(exist_ok=True)
        volumes.have_mounted(volume, self._at, size_bytes)
        try:
            yield self._at
        finally:
            unmount_all(self._at)
            self._at.rmdir()

    def _private(self, directory: Path) -> None:
        """Have a directory beside the data that is nobody else's business."""
        directory.mkdir(parents=True, exist_ok=True)
        top = self._live.parent
        (top / directory.relative_to(top).parts[0]).chmod(0o700)

    def _copy(self, source: Path, target: Path) -> How:
        _remove(target)
        if btrfs.is_subvolume(source):
            try:
                btrfs.snapshot(source, target, read_only=False)
            except (CommandError, MissingFeatureError):
                _remove(target)
            else:
                return How.SNAPSHOT
        how = How.REFLINK
        try:
            run(["cp", "--archive", "--reflink=always", "--", source, target])
        except CommandError:
            how = How.COPY
            _remove(target)
            run(["cp", "--archive", "--reflink=auto", "--", source, target])
        sync_filesystem(target)
        return how


def _whole(target: Path) -> Path:
    return target.with_name(f".{target.name}.whole")


def _remove(path: Path) -> None:
    if btrfs.is_subvolume(path):
        try:
            btrfs.delete(path)
        except (CommandError, MissingFeatureError):
            remove_tree(path)  # not a subvolume after all, or an ordinary user's
    else:
        remove_tree(path)
