"""Where a new image comes from: a directory with its manifest and parts, as the builder's store has it; or a channel, see `channel`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from obelisk.errors import InputError, TrustError
from obelisk.host import staging
from obelisk.model import uki
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.release.client import hashtree
from obelisk.release.client.hashtree import Run
from obelisk.system.files import hash_file


class Source(Protocol):
    """An image that may be installed."""

    @property
    def manifest(self) -> Manifest:
        """What it is."""
        ...

    def path(self, kind: PartKind) -> Path:
        """The file of a part; of the kernel image it is there when `write` has returned, and may be before."""
        ...

    @property
    def write_bytes(self) -> int:
        """To what `write` counts: bytes that it reads, or fetches."""
        ...

    def write(self, root: Path, tree: Path, *, on_bytes: Callable[[int], None]) -> tuple[int, list[Run]]:
        """Make the devices hold the image; return the bytes written, and the blocks of the root among them.

        `on_bytes` is told how far it has come. Durable when this returns; may be repeated, and is cheaper then.

        Raises:
            TrustError: the source is not what it must be; nothing wrong was written.
            TransportError: it cannot be fetched.
        """
        ...


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """An image in a directory. Tree and UKI were checked against its manifest; the blocks of the root are checked as they are copied."""

    directory: Path
    manifest: Manifest
    tree: hashtree.HashTree

    def path(self, kind: PartKind) -> Path:
        """The file of a part."""
        return self.directory / self.manifest.part(kind).file

    @property
    def write_bytes(self) -> int:
        """See `Source`."""
        return self.manifest.part(PartKind.ROOT).size_bytes

    def write(self, root: Path, tree: Path, *, on_bytes: Callable[[int], None]) -> tuple[int, list[Run]]:
        """See `Source`."""
        return staging.write_image(root, tree, self, on_bytes=on_bytes)


def open_source(directory: Path) -> DirectorySource:
    """The image in `directory`.

    Raises:
        InputError: there is none.
        TrustError: a part is not what the manifest says, or the UKI starts another root.
    """
    try:
        data = (directory / "manifest.json").read_bytes()
    except OSError as error:
        raise InputError(
            f"{directory} has no image: {error.strerror}",
            code="source-missing",
            hint="name a directory with a manifest.json and its parts; `obelisk show IMAGE` on the builder tells which it is",
        ) from error
    manifest = parse_manifest(data)
    for kind in (PartKind.ROOT, PartKind.VERITY, PartKind.UKI):
        part = manifest.part(kind)
        path = directory / part.file
        if not path.is_file() or path.stat().st_size != part.size_bytes:
            raise TrustError(
                f"{path} is missing or has another size than the manifest says", code="part-damaged", hint="copy the image again, whole"
            )
        if kind is PartKind.UKI and hash_file(path) != part.sha256:
            raise TrustError(f"{path} is not what the manifest says", code="part-damaged", hint="copy the image again, whole")
    tree = hashtree.parse((directory / manifest.part(PartKind.VERITY).file).read_bytes(), manifest.root_hash)
    if uki.root_hash((directory / manifest.part(PartKind.UKI).file).read_bytes()) != manifest.root_hash:
        raise TrustError(
            "the image's kernel starts another root than its manifest names", code="uki-foreign", hint="build or fetch the image again"
        )
    return DirectorySource(directory, manifest, tree)
