"""What an application keeps, as it was at one moment: saved before another version gets it, and put back when that version goes.

    DATA/<name>/            the data itself; a subvolume where root has made it on Btrfs
    DATA/.saved/<name>/<image id>/     as the image left it
    DATA/.saved/<name>/draft, left     unfinished, and what was put away

Nothing of it is touched while the application runs. Each step may be repeated after it was cut.
"""

from enum import StrEnum
from pathlib import Path

from obelisk.errors import CommandError, MissingFeatureError
from obelisk.system import btrfs
from obelisk.system.command import run
from obelisk.system.files import sync_directory
from obelisk.system.filesystem import sync_filesystem
from obelisk.system.namespace import remove_tree


class How(StrEnum):
    """How data was saved, in the words that people are told."""

    NOTHING = "there is no data yet"
    SNAPSHOT = "a Btrfs snapshot"
    REFLINK = "a copy that shares its blocks"
    COPY = "a full copy"


class Data:
    """The data of one application, and what was saved of it."""

    def __init__(self, directory: Path) -> None:
        self._live = directory
        self._saved = directory.parent / ".saved" / directory.name

    def begin(self) -> None:
        """Have a place for data that snapshots can be taken of, where the file system offers that. Data that is there stays."""
        if self._live.exists():
            return
        self._live.parent.mkdir(parents=True, exist_ok=True)
        try:
            btrfs.create(self._live)
        except (CommandError, MissingFeatureError):
            self._live.mkdir(exist_ok=True)

    def save(self, image: str) -> How:
        """Save it under the id of the image that has written it. Durable when this returns."""
        if not self._live.exists():
            return How.NOTHING
        self._saved.mkdir(parents=True, exist_ok=True)
        self._saved.parent.chmod(0o700)
        how = self._copy(self._live, self._saved / "draft")
        self.forget(image)
        (self._saved / "draft").rename(self._saved / image)
        sync_directory(self._saved)
        return how

    def put_back(self, image: str) -> bool:
        """Let the data be as that image left it; whether anything was saved of it. What there was meanwhile goes."""
        if not self.has(image):
            return False
        self._copy(self._saved / image, self._saved / "draft")
        _remove(self._saved / "left")
        if self._live.exists():
            self._live.rename(self._saved / "left")
        (self._saved / "draft").rename(self._live)
        sync_directory(self._live.parent)
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
        _remove(self._live)

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


def _remove(path: Path) -> None:
    if btrfs.is_subvolume(path):
        try:
            btrfs.delete(path)
        except (CommandError, MissingFeatureError):
            remove_tree(path)  # not a subvolume after all, or an ordinary user's
    else:
        remove_tree(path)
