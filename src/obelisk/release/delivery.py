"""What publishing needs from transport: how the blocks of an image lie in files, and which ways lead from one image to another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from obelisk.events import Sink
from obelisk.model.image import Manifest
from obelisk.model.release import File

Find = Callable[[File], Path]
"""Where a file of the repository lies."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """An image as files on this machine: its root, the hash tree of it, and its kernel image."""

    manifest: Manifest
    root: Path
    tree: Path
    uki: Path


@dataclass(frozen=True, slots=True)
class Packed:
    """How the blocks of an image lie: its index, and the packs that the repository does not have yet."""

    index: Path
    packs: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Repacked:
    """Indexes that take the place of others (by the SHA-256 of those), and the new packs that they name."""

    indexes: Mapping[str, Path]
    packs: tuple[Path, ...] = ()


class Delivery(Protocol):
    """The ways of blocks. Files are made in `work`, which is the caller's to remove; equal input gives equal files."""

    def pack(self, image: ImageFiles, earlier: Sequence[File], find: Find, work: Path, sink: Sink) -> Packed:
        """An index of the image over the packs of `earlier` indexes and new ones with the blocks that these do not have."""
        ...

    def packs(self, index: Path) -> frozenset[File]:
        """The packs that an index names.

        Raises:
            TrustError: it is damaged.
        """
        ...

    def edge(self, before: ImageFiles, after: ImageFiles, work: Path, sink: Sink) -> Path:
        """One file that makes the second image out of the first."""
        ...

    def restore(self, index: Path, find: Find, target: Path) -> None:
        """Write the root of the image of an index to `target`.

        Raises:
            TrustError: a pack is damaged.
        """
        ...

    def repack(self, indexes: Iterable[File], find: Find, work: Path, sink: Sink) -> Repacked:
        """Indexes anew for those of `indexes`, which are all that remain, whose packs are mostly of no use to any of them."""
        ...
