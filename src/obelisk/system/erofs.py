"""mkfs.erofs(1): a directory as a read-only file system image."""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Make:
    """One image to make, bit for bit the same for the same tree. `compression` is mkfs.erofs's `-z` argument, empty for none."""

    tree: Path
    out: Path
    epoch: int
    uuid: UUID
    compression: str = ""

    def argv(self) -> list[str]:
        """The argument list."""
        words = ["mkfs.erofs", "--quiet", f"-T{self.epoch}", f"-U{self.uuid}", "-Enoinline_data"]
        if self.compression:
            words = [*words[:-1], f"-z{self.compression}"]
        return [*words, str(self.out), str(self.tree)]

    def environment(self) -> dict[str, str]:
        """With this set, times are clamped to the epoch and not replaced by it."""
        return {"SOURCE_DATE_EPOCH": str(self.epoch)}
