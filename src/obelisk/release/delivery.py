"""What publishing asks of transport: how the blocks of an image lie in files, and which ways lead from one image to another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from obelisk.events import Sink, task
from obelisk.model.image import Manifest
from obelisk.model.release import File, Release
from obelisk.release import edges, packing
from obelisk.release.client import blocks, hashtree, index, planning
from obelisk.release.client.remote import DirectoryMirror, Mirrors
from obelisk.system.blocks import BLOCK_BYTES

Find = Callable[[File], Path]
"""Where a file of the repository lies."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """An image as files on this machine: its root, the hash tree of it, and its kernel image, which an application does not have."""

    manifest: Manifest
    root: Path
    tree: Path
    uki: Path | None


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

    def pack(self, image: ImageFiles, earlier: Sequence[Release], find: Find, work: Path, sink: Sink) -> Packed:
        """An index of the image over the packs of `earlier` releases and new ones with the blocks that these do not have.

        Raises:
            TrustError: an earlier index, or the image, is damaged.
        """
        ...

    def packs(self, release: Release, find: Find) -> frozenset[File]:
        """The packs that a release needs.

        Raises:
            TrustError: its index is damaged.
        """
        ...

    def edge(self, before: ImageFiles, after: ImageFiles, work: Path, sink: Sink) -> Path:
        """One file that makes the second image out of the first.

        Raises:
            TrustError: an image is damaged.
        """
        ...

    def restore(self, release: Release, find: Find, target: Path) -> None:
        """Write the root of a release to `target`, which must not exist.

        Raises:
            TrustError: its index or a pack is damaged.
            TransportError: a pack is missing.
        """
        ...

    def repack(self, releases: Sequence[Release], find: Find, work: Path, sink: Sink) -> Repacked:
        """Indexes anew for those of `releases`, which are all that remain, whose packs are mostly of no use to any of them.

        Raises:
            TrustError: an index is damaged.
        """
        ...


class Blocks:
    """Packs of compressed blocks that releases share, and edges of what differs in files."""

    def pack(self, image: ImageFiles, earlier: Sequence[Release], find: Find, work: Path, sink: Sink) -> Packed:
        """See `Delivery`."""
        tree = hashtree.parse(image.tree.read_bytes(), image.manifest.root_hash)
        known = [_read(release, find) for release in earlier if release.name == image.manifest.name]
        total = image.root.stat().st_size
        with task(sink, f"pack/{image.manifest.version}", f"Blocks of {image.manifest.label}", total=total, unit="B") as running:
            made, pack = packing.store_blocks(image.root, tree, known, work, on_bytes=running.counting(total))
            running.detail = f"{pack.file.size_bytes if pack else 0} bytes are new"
        return Packed(made.path, (pack.path,) if pack else ())

    def packs(self, release: Release, find: Find) -> frozenset[File]:
        """See `Delivery`. Reads no more than the front of the index."""
        with find(release.index).open("rb") as file:
            header = file.read(index.HEADER.size)
            front = header + file.read(index.front_bytes(header) - len(header))
        return frozenset(index.decode(front, release.root_hash, release.root_bytes).packs)

    def edge(self, before: ImageFiles, after: ImageFiles, work: Path, sink: Sink) -> Path:
        """See `Delivery`."""
        path = work / f"edge-{before.manifest.id}-{after.manifest.id}"
        total = after.root.stat().st_size
        title = f"Edge from {before.manifest.version} to {after.manifest.version}"
        with task(sink, f"edge/{before.manifest.version}", title, total=total, unit="B") as running:
            edges.make_edge(_image(before), _image(after), path, on_bytes=running.counting(total))
            running.detail = f"{path.stat().st_size} bytes"
        return path

    def restore(self, release: Release, find: Find, target: Path) -> None:
        """See `Delivery`. Each block is checked against the root hash."""
        mirrors = Mirrors([DirectoryMirror(find(release.index).parents[2])])
        tree = target.with_name(f"{target.name}.tree")
        for path, size in ((target, release.root_bytes), (tree, hashtree.tree_bytes(release.root_bytes // BLOCK_BYTES))):
            with path.open("xb") as file:
                file.truncate(size)
        try:
            wanted = planning.Wanted(release.root_hash, release.root_bytes, release.index)
            plan = planning.plan(mirrors, wanted, target, (), on_bytes=_unseen)
            blocks.carry_out(mirrors, plan, target, tree, (), on_bytes=_unseen)
        except BaseException:
            target.unlink()
            raise
        finally:
            tree.unlink()

    def repack(self, releases: Sequence[Release], find: Find, work: Path, sink: Sink) -> Repacked:
        """See `Delivery`."""
        known = {release.index.sha256: _read(release, find) for release in releases}
        with task(sink, "repack", "What packs are left with"):
            made, pack = packing.compact(known, find, work)
        return Repacked({name: stored.path for name, stored in made.items()}, (pack.path,) if pack else ())


def _read(release: Release, find: Find) -> packing.Known:
    return packing.read_index(find(release.index), release.root_hash, release.root_bytes)


def _image(files: ImageFiles) -> edges.Image:
    return edges.Image(files.root, hashtree.parse(files.tree.read_bytes(), files.manifest.root_hash), files.uki)


def _unseen(_count: int) -> None:
    pass
