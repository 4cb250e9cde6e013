"""The plainest way of blocks: each root lies whole in the repository, as one pack; images share what is equal altogether.

index    {"schema": "obelisk.whole/1", "root": {"sha256", "size"}}
edge     none is made shorter than the root itself: it is the root
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.events import Sink
from obelisk.model.canonical import canonical
from obelisk.model.image import PartKind
from obelisk.model.release import File
from obelisk.release.delivery import Find, ImageFiles, Packed, Repacked

_SCHEMA = "obelisk.whole/1"


class Whole:
    """See `obelisk.release.delivery.Delivery`."""

    def pack(self, image: ImageFiles, earlier: Sequence[File], find: Find, work: Path, _sink: Sink) -> Packed:
        """The root as it is."""
        part = image.manifest.part(PartKind.ROOT)
        root = File(part.sha256, part.size_bytes)
        index = work / f"{image.manifest.id}.index"
        index.write_bytes(canonical({"schema": _SCHEMA, "root": root.to_json()}))
        known = any(root in self.packs(find(each)) for each in earlier)
        return Packed(index, () if known else (image.root,))

    def packs(self, index: Path) -> frozenset[File]:
        """The root."""
        damaged = TrustError(f"{index} is damaged", code="index-damaged", hint="restore it from a copy of the repository")
        try:
            raw = json.loads(index.read_bytes())
            schema, root = raw["schema"], File.from_json(raw["root"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged from error
        if schema != _SCHEMA:
            raise damaged
        return frozenset({root})

    def edge(self, _before: ImageFiles, after: ImageFiles, _work: Path, _sink: Sink) -> Path:
        """The new root."""
        return after.root

    def restore(self, index: Path, find: Find, target: Path) -> None:
        """A copy of the root."""
        (root,) = self.packs(index)
        shutil.copyfile(find(root), target)

    def repack(self, _indexes: Iterable[File], _find: Find, _work: Path, _sink: Sink) -> Repacked:
        """Nothing: no pack has parts that are of no use."""
        return Repacked({})
