"""Every state in which a power cut can leave a host's disk, and whether the old or the new image would boot from it.

A machine ran with a log of its disk's writes and flushes (format of dm-log-writes). What was written before a flush that completed is on
the disk; of what was written after it, any part may be: any subset of the writes, and of each write any blocks. `Explorer.states` walks
along the log: at each flush the state with all before it, and torn states, drawn with a seed, with some of what came after.

`judge` looks at a state as firmware, loader, kernel and initrd do, without any of them: partition table (the second one where the first
is damaged), ESP, the entry that systemd-boot would choose, its UKI, the partitions that its root hash names, every block of them.
"""

import random
import struct
import subprocess
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cmp_to_key
from pathlib import Path
from uuid import UUID

from obelisk.model.host import PARTIAL, Entry
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.model.partitions import partition_uuids
from obelisk.model.version import compare

BLOCK = 4096
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD = 1, 2, 4

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Write:
    """One entry of the log: `length` bytes to `offset` on the disk, whose content is at `at` in the log; or a flush."""

    offset: int
    length: int
    at: int
    flush: bool
    discard: bool


def read_log(log: Path) -> tuple[Write, ...]:
    """The entries in order. Source: Linux, Documentation/admin-guide/device-mapper/log-writes.rst."""
    writes = []
    with log.open("rb") as file:
        magic, version, count, sector = struct.unpack("<QQQI", file.read(28))
        assert (magic, version) == (_MAGIC, 1)
        position = sector
        for _ in range(count):
            file.seek(position)
            start, sectors, flags, _data = struct.unpack("<QQQQ", file.read(32))
            position += sector
            discard = bool(flags & _DISCARD)
            writes.append(Write(start * sector, sectors * sector, position, bool(flags & (_FLUSH | _FUA)), discard))
            if not discard:
                position += sectors * sector
    return tuple(writes)


# What is on a disk


@dataclass(frozen=True, slots=True)
class Entry64:
    """A partition: where it begins, its id and its label."""

    start: int
    size: int
    uuid: UUID
    label: str


def partitions(read: Read, disk_bytes: int) -> tuple[Entry64, ...]:
    """The partitions, from the first table, or from the last where the first is damaged. Source: UEFI specification 2.10, section 5.3."""
    for at in (512, disk_bytes - 512):
        header = read(at, 512)
        if header[:8] != b"EFI PART":
            continue
        size, stated = struct.unpack_from("<I", header, 12)[0], struct.unpack_from("<I", header, 16)[0]
        if zlib.crc32(header[:16] + b"\0\0\0\0" + header[20:size]) != stated:
            continue
        table, count, entry_bytes, entries_crc = struct.unpack_from("<QIII", header, 72)
        entries = read(table * 512, count * entry_bytes)
        if zlib.crc32(entries) != entries_crc:
            continue
        found = []
        for index in range(count):
            raw = entries[index * entry_bytes : (index + 1) * entry_bytes]
            if raw[:16] != bytes(16):
                first, last = struct.unpack_from("<QQ", raw, 32)
                label = raw[56:128].decode("utf-16-le").split("\0")[0]
                found.append(Entry64(first * 512, (last - first + 1) * 512, UUID(bytes_le=raw[16:32]), label))
        return tuple(found)
    return ()


class Fat:
    """A FAT32 file system, read. Source: Microsoft, FAT: General Overview of On-Disk Format, 1.03."""

    def __init__(self, read: Read) -> None:
        self._read = read
        sector = read(0, 512)
        self._sector, self._per_cluster, reserved, copies = struct.unpack_from("<HBHB", sector, 11)
        self._fat_sectors, self._root = struct.unpack_from("<I", sector, 36)[0], struct.unpack_from("<I", sector, 44)[0]
        self._next = memoryview(read(reserved * self._sector, self._fat_sectors * self._sector)).cast("I")
        self._data = (reserved + copies * self._fat_sectors) * self._sector
        self.cluster_bytes = self._sector * self._per_cluster

    def files(self, *path: str) -> dict[str, tuple[int, int]]:
        """Name -> (first cluster, size) of the directory's entries; nothing when there is no such directory."""
        cluster = self._root
        for name in path:
            found = {known.lower(): entry for known, entry in self._entries(cluster).items()}.get(name.lower())
            if found is None:
                return {}
            cluster = found[0]
        return self._entries(cluster)

    def content(self, file: tuple[int, int]) -> bytes:
        """The bytes of a file."""
        return self._chain(file[0], file[1])[: file[1]]

    def _chain(self, cluster: int, limit: int) -> bytes:
        pieces: list[bytes] = []
        left = -(-limit // self.cluster_bytes)
        while 2 <= cluster < min(0x0FFFFFF8, len(self._next)) and left > 0:
            first, count = cluster, 0
            # What follows each other on the disk is read at once.
            while cluster == first + count and count < left:
                cluster, count = self._next[cluster] & 0x0FFFFFFF, count + 1
            pieces.append(self._read(self._data + (first - 2) * self.cluster_bytes, count * self.cluster_bytes))
            left -= count
        return b"".join(pieces)

    def _entries(self, cluster: int) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        long: list[str] = []
        raw = self._chain(cluster, 1 << 20)
        for at in range(0, len(raw), 32):
            entry = raw[at : at + 32]
            if entry[0] == 0:
                break
            if entry[0] == 0xE5:
                long = []
            elif entry[11] == 0x0F:
                piece = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le", errors="replace")
                long.insert(0, piece.split("\0")[0].rstrip("\uffff"))
            else:
                name, suffix = (entry[part].decode("latin-1").rstrip().lower() for part in (slice(8), slice(8, 11)))
                first = struct.unpack_from("<H", entry, 20)[0] << 16 | struct.unpack_from("<H", entry, 26)[0]
                found["".join(long) or f"{name}.{suffix}".rstrip(".")] = (first, struct.unpack_from("<I", entry, 28)[0])
                long = []
        return found


# The walk


class Disk:
    """A disk as it is at one place of the log, with some writes more over it."""

    def __init__(self, base: Path, log: Path) -> None:
        self.file = base.open("r+b", buffering=0)
        self.log = log.open("rb", buffering=0)
        self.size = base.stat().st_size
        self.over: dict[int, bytes] = {}

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        self.log.close()

    def read(self, offset: int, length: int) -> bytes:
        """What is there."""
        self.file.seek(offset)
        data = self.file.read(length).ljust(length, b"\0")
        if not self.over:
            return data
        changed = bytearray(data)
        for block in range(offset // BLOCK, -(-(offset + length) // BLOCK)):
            if (piece := self.over.get(block)) is not None:
                start, stop = max(block * BLOCK, offset), min((block + 1) * BLOCK, offset + length)
                changed[start - offset : stop - offset] = piece[start - block * BLOCK : stop - block * BLOCK]
        return bytes(changed)

    def data(self, write: Write) -> bytes:
        """What a write brings."""
        if write.discard:
            return bytes(write.length)
        self.log.seek(write.at)
        return self.log.read(write.length)

    def apply(self, write: Write) -> None:
        """Make a write permanent."""
        if write.length:
            self.file.seek(write.offset)
            self.file.write(self.data(write))

    def lay_over(self, write: Write, blocks: Sequence[int]) -> None:
        """Show these blocks of a write, by their number in it, until `over` is cleared."""
        data = self.data(write)
        for number in blocks:
            at = write.offset + number * BLOCK
            # A write that is not aligned touches parts of blocks.
            piece = data[number * BLOCK : (number + 1) * BLOCK]
            position = 0
            while position < len(piece):
                block, within = divmod(at + position, BLOCK)
                part = piece[position : position + BLOCK - within]
                before = self.over.get(block) or self.read(block * BLOCK, BLOCK)
                self.over[block] = before[:within] + part + before[within + len(part) :]
                position += len(part)


@dataclass(slots=True)
class Tally:
    """How many states were judged, by what the disk was about; and what was wrong with those that were lost."""

    states: dict[str, int] = field(default_factory=dict)
    boots: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All states."""
        return sum(self.states.values())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What would boot from a state (a label; empty: nothing), in which phase of an upgrade (or window) it is, and what is wrong."""

    boots: str
    phase: str
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """A time of which partitions and ESP do not tell: its name, and where it begins and ends in the log, in bytes."""

    name: str
    start: int
    stop: int


class Image:
    """An image's files, to compare disks with."""

    def __init__(self, directory: Path) -> None:
        self.manifest: Manifest = parse_manifest((directory / "manifest.json").read_bytes())
        self._parts = {part.kind: (directory / part.file).read_bytes() for part in self.manifest.parts}

    def content(self, kind: PartKind) -> bytes:
        """The bytes of a part."""
        return self._parts[kind]


class Explorer:
    """Walks along the log of one machine, which ran from the disk in `base` (it is changed) with the images given."""

    def __init__(self, base: Path, log: Path, images: Sequence[Path], *, seed: int, windows: Sequence[Window] = ()) -> None:
        self.disk = Disk(base, log)
        self.writes = read_log(log)
        self.images = {image.manifest.label: image for image in map(Image, images)}
        self.random = random.Random(seed)
        self.tally = Tally()
        self._windows = windows
        # By where a partition begins and what it should begin with: the blocks in which the two differ now.
        self._wrong: dict[tuple[int, str, PartKind], set[int]] = {}

    def explore(self, *, torn: int, flushes: bool = True, on_state: Callable[[int, Verdict], None] | None = None) -> Tally:
        """Judge the state at every flush, and `torn` states after each, of what was written until the next one.

        `on_state` is told the number of the write that the state is after, and the verdict; the disk shows the state at that moment.
        Without `flushes`, the machine is taken for one that never flushed: then states have to be lost, or the judge sees nothing.
        """
        flushed = [index for index, write in enumerate(self.writes) if write.flush] if flushes else []
        start = 0
        for index in [*flushed, len(self.writes)]:
            since = [write for write in self.writes[start:index] if write.length]
            for _ in range(torn if since else 0):
                self._tear(since)
                self._count(index, on_state)
                self._forget()
            for write in self.writes[start : index + 1]:
                self._apply(write)
            self._count(index, on_state)
            start = index + 1
        return self.tally

    def _tear(self, since: Sequence[Write]) -> None:
        kind = self.random.random()
        if kind < 0.4:
            stop = self.random.randrange(len(since))
            chosen = list(since[:stop])
            self._show(since[stop], partly=True)
        elif kind < 0.8:
            share = self.random.random()
            chosen = [write for write in since if self.random.random() < share]
        else:  # the last ones first
            chosen = list(since[self.random.randrange(len(since)) :])
        for write in chosen:
            self._show(write, partly=self.random.random() < 0.2)

    def _show(self, write: Write, *, partly: bool) -> None:
        count = -(-write.length // BLOCK)
        blocks = [number for number in range(count) if not partly or self.random.random() < 0.5]
        self.disk.lay_over(write, blocks)

    def _forget(self) -> None:
        self.disk.over.clear()

    def _apply(self, write: Write) -> None:
        self.disk.apply(write)
        for (start, label, kind), wrong in self._wrong.items():
            content = self.images[label].content(kind)
            first, last = (write.offset - start) // BLOCK, -(-(write.offset + write.length - start) // BLOCK)
            for block in range(max(first, 0), min(last, len(content) // BLOCK)):
                self._compare(content, start, block, wrong)

    def _compare(self, content: bytes, start: int, block: int, wrong: set[int]) -> None:
        if self.disk.read(start + block * BLOCK, BLOCK) == content[block * BLOCK : (block + 1) * BLOCK]:
            wrong.discard(block)
        else:
            wrong.add(block)

    def _holds(self, start: int, label: str, kind: PartKind) -> bool:
        """Whether the partition at `start` begins with that part of the image, by what is known of it and what is laid over it."""
        content = self.images[label].content(kind)
        key = (start, label, kind)
        if key not in self._wrong:
            over, self.disk.over = self.disk.over, {}
            wrong: set[int] = set()
            self._wrong[key] = wrong
            for at in range(0, len(content), 1 << 20):
                stop = min(at + (1 << 20), len(content))
                if self.disk.read(start + at, stop - at) != content[at:stop]:
                    for block in range(at // BLOCK, stop // BLOCK):
                        self._compare(content, start, block, wrong)
            self.disk.over = over
        first = start // BLOCK
        covered = {block - first for block in self.disk.over if first <= block < first + len(content) // BLOCK}
        if self._wrong[key] - covered:
            return False
        return all(self.disk.over[block + first] == content[block * BLOCK : (block + 1) * BLOCK] for block in covered)

    def _count(self, index: int, on_state: Callable[[int, Verdict], None] | None) -> None:
        verdict = self.judge()
        place = self.writes[min(index, len(self.writes) - 1)].at
        for window in self._windows:
            if window.start <= place < window.stop:
                verdict = replace(verdict, phase=window.name)
        self.tally.states[verdict.phase] = self.tally.states.get(verdict.phase, 0) + 1
        self.tally.boots[verdict.boots] = self.tally.boots.get(verdict.boots, 0) + 1
        if verdict.fault:
            self.tally.lost.append(f"after write {index} of {len(self.writes)} ({verdict.phase}): {verdict.fault}")
        if on_state is not None:
            on_state(index, verdict)

    def judge(self) -> Verdict:
        """What would become of a machine with this disk."""
        table = partitions(self.disk.read, self.disk.size)
        esp = next((entry for entry in table if entry.label == "esp"), None)
        if esp is None:
            return Verdict("", "?", "no partition table")
        fat = Fat(lambda offset, length: self.disk.read(esp.start + offset, length))
        # The loader lists what has the sections of a UKI. Linux writes a renamed file's new name first, which then has no content yet.
        files = {name: where for name, where in fat.files("EFI", "Linux").items() if where[1]}
        entries = [entry for name in files if (entry := Entry.parse(name)) is not None]
        phase = self._phase(table, entries)
        if not entries:
            return Verdict("", phase, "no entry on the ESP")
        # Source: systemd-boot(7): what has no boots left comes last, else the newer version first.
        chosen = min(entries, key=cmp_to_key(_boot_order))
        if fault := self._fault(table, fat, chosen, files):
            return Verdict("", phase, f"{chosen.file} starts, and {fault}")
        return Verdict(chosen.label, phase)

    def _fault(self, table: Sequence[Entry64], fat: Fat, chosen: Entry, files: dict[str, tuple[int, int]]) -> str:
        """Why the chosen entry would not come up; empty when it would."""
        for *place, name in (("EFI", "BOOT", "bootx64.efi"), ("EFI", "systemd", "systemd-bootx64.efi")):
            if name not in {known.lower() for known in fat.files(*place)}:
                return f"{name} is missing"
        image = self.images.get(chosen.label)
        if image is None:
            return "it is of no image"
        if fat.content(files[chosen.file]) != image.content(PartKind.UKI):
            return "it is not whole"
        starts = {entry.uuid: entry.start for entry in table}
        for identity, kind in zip(partition_uuids(image.manifest.root_hash), (PartKind.ROOT, PartKind.VERITY), strict=True):
            if identity not in starts:
                return f"no partition has the id of its {kind}"
            if not self._holds(starts[identity], chosen.label, kind):
                return f"its {kind} is damaged"
        return ""

    def freeze(self, target: Path) -> None:
        """Write the state that the disk shows now to a file."""
        subprocess.run(["cp", "--sparse=always", self.disk.file.name, target], check=True)
        with target.open("r+b") as file:
            for block, data in self.disk.over.items():
                file.seek(block * BLOCK)
                file.write(data)

    def _phase(self, table: Sequence[Entry64], entries: Sequence[Entry]) -> str:
        """Where in an upgrade the disk is, for the tally."""
        if any(entry.label.startswith(PARTIAL) for entry in table):
            return "staging"
        labels = sorted((entry.label for entry in table if entry.label in self.images), key=cmp_to_key(_age))
        newest = next((entry for entry in entries if labels and entry.label == labels[-1]), None)
        if len(labels) < 2:
            return "before"
        if newest is None:
            return "labelled"
        if not newest.counted:
            return "blessed"
        return "rolled back" if newest.failed and not newest.done else "trying" if newest.done else "pending"


def _boot_order(one: Entry, other: Entry) -> int:
    return (one.failed - other.failed) or -compare(one.version, other.version)


def _age(one: str, other: str) -> int:
    return compare(one.rpartition("_")[2], other.rpartition("_")[2])
