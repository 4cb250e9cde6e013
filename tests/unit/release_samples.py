"""Images for tests of transport: small, of random blocks, and with hash trees made apart from the code under test."""

import random
from dataclasses import dataclass
from pathlib import Path

from host_samples import tree_over

from obelisk.model.release import File
from obelisk.release.client import hashtree
from obelisk.release.client.hashtree import HashTree
from obelisk.release.client.planning import Have, Wanted
from obelisk.release.edges import Image
from obelisk.release.packing import Known, Stored, read_index, store_blocks

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """An image on disk."""

    data: bytes
    root: Path
    tree_file: Path
    root_hash: str
    uki: Path

    @property
    def tree(self) -> HashTree:
        return hashtree.parse(self.tree_file.read_bytes(), self.root_hash)

    @property
    def image(self) -> Image:
        return Image(self.root, self.tree, self.uki)

    @property
    def have(self) -> Have:
        return Have(self.tree, self.root)

    def wanted(self, index: File) -> Wanted:
        return Wanted(self.root_hash, len(self.data), index)


def sample(place: Path, data: bytes, *, uki: bytes = b"kernel", salt: bytes = b"salt") -> Sample:
    """An image of these bytes, whose files lie in `place`."""
    place.mkdir(parents=True)
    tree, root_hash = tree_over(data, salt=salt)
    for name, content in (("root", data), ("tree", tree), ("uki", uki)):
        (place / name).write_bytes(content)
    return Sample(data, place / "root", place / "tree", root_hash, place / "uki")


def blocks(*numbers: int) -> bytes:
    """Blocks that hardly compress, one for each number; equal for equal numbers, zeros for 0."""
    return b"".join(random.Random(number).randbytes(BLOCK) if number else bytes(BLOCK) for number in numbers)


def publish(top: Path, image: Sample, known: tuple[Known, ...] = ()) -> tuple[File, Known]:
    """Put an image's blocks into the repository at `top`: the file of its index, and the index."""
    top.mkdir(exist_ok=True)
    index, pack = store_blocks(image.root, image.tree, known, top, on_bytes=ignore)
    for stored in (index, pack):
        if stored is not None:
            settle(top, stored)
    return index.file, read_index(top / index.file.path, image.root_hash, len(image.data))


def settle(top: Path, stored: Stored) -> None:
    """Give a file of the repository its name."""
    path = top / stored.file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.path.rename(path)


def slot(place: Path, size_blocks: int, data: bytes = b"") -> tuple[Path, Path]:
    """A slot that holds `data`, and the partition for its tree."""
    root, tree = place / "slot", place / "slot.tree"
    root.write_bytes(data.ljust(size_blocks * BLOCK, b"\0"))
    tree.write_bytes(bytes(100 * BLOCK))
    return root, tree


def ignore(_count: int) -> None:
    """Progress that nobody wants to see."""
