"""sfdisk(8): the partition table of a disk that is in use. Each change is one write of the table, and one partition's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import StateError
from obelisk.system.command import run

ROOT = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
ROOT_VERITY = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
"""Types of partitions. Source: UAPI.2 Discoverable Partitions Specification, x86-64."""


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A partition as the table has it; offsets and sizes in bytes, ids and types in small letters."""

    number: int
    device: Path
    start_bytes: int
    size_bytes: int
    type: str
    uuid: str
    label: str


def read_table(disk: Path) -> tuple[TableEntry, ...]:
    """The partitions of a disk or disk image, in the order of their numbers.

    Raises:
        StateError: it has no GPT.
        CommandError: it cannot be read.
    """
    table = json.loads(run(["sfdisk", "--json", disk], timeout_s=60).stdout)["partitiontable"]
    if table.get("label") != "gpt":
        raise StateError(f"{disk} has no GPT", code="disk-gpt", hint="this is not a disk that Obelisk made")
    sector = int(table.get("sectorsize", 512))
    found = []
    for entry in table.get("partitions", ()):
        node = str(entry["node"])
        digits = node[len(node.rstrip("0123456789")) :]
        found.append(
            TableEntry(
                int(digits),
                Path(node),
                int(entry["start"]) * sector,
                int(entry["size"]) * sector,
                str(entry["type"]).lower(),
                str(entry.get("uuid", "")).lower(),
                str(entry.get("name", "")),
            )
        )
    return tuple(sorted(found, key=lambda entry: entry.number))


def set_label(disk: Path, number: int, label: str) -> None:
    """Name a partition. Durable when this returns."""
    _change(disk, "--part-label", number, label)


def set_uuid(disk: Path, number: int, uuid: str) -> None:
    """Give a partition another id. Durable when this returns."""
    _change(disk, "--part-uuid", number, uuid)


def write_table(disk: Path, entries: Sequence[TableEntry]) -> None:
    """Give a disk, or a file in its place, a new GPT with these partitions; of `device`, nothing is used. Durable when this returns."""
    lines = ["label: gpt", "unit: sectors", "sector-size: 512"]
    lines += [
        f"{entry.number}: start={entry.start_bytes // 512}, size={entry.size_bytes // 512}, type={entry.type}, uuid={entry.uuid}, "
        f'name="{entry.label}"' + (", attrs=GUID:60" if entry.type in {ROOT, ROOT_VERITY} else "")
        for entry in entries
    ]
    words = ["sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "never"]
    run([*words, disk], stdin="\n".join(lines).encode(), timeout_s=60)


def _change(disk: Path, what: str, number: int, value: str) -> None:
    # The kernel keeps its own view of a disk that is in use; the next boot reads what is written here.
    run(["sfdisk", "--no-tell-kernel", "--quiet", what, disk, str(number), value], timeout_s=60)
