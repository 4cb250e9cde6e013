"""Records, slots and images for tests of hosts."""

import hashlib
import struct

from obelisk.host.admission import Facts
from obelisk.model.host import Entry, Event, Idle, Partition, Phase, Progress, Record, Slot
from obelisk.model.image import Manifest, Part, PartKind

MIB = 1 << 20


def manifest(
    version: str = "2", *, name: str = "shop", root_mib: int = 100, root_hash: str = "ab" * 32, architecture: str = "amd64"
) -> Manifest:
    """An image's manifest."""
    parts = (
        Part(PartKind.ROOT, "root.erofs", root_mib * MIB, "1" * 64),
        Part(PartKind.VERITY, "root.verity", MIB, "2" * 64),
        Part(PartKind.UKI, "uki.efi", 20 * MIB, "3" * 64),
    )
    return Manifest(
        name=name,
        version=version,
        distribution="debian:trixie",
        architecture=architecture,
        role="server",
        epoch=0,
        kernel="6.12",
        cmdline="",
        root_hash=root_hash,
        root_slot_bytes=512 * MIB,
        verity_slot_bytes=5 * MIB,
        slot_count=2,
        secure_boot_certificate="c" * 64,
        test_key=True,
        spec_sha256="",
        lock_sha256="",
        tools_sha256="",
        setuid=(),
        parts=parts,
        packages=(),
    )


def slot(letter: str, label: str, *, uuid: str = "", root_mib: int = 512) -> Slot:
    """A slot with that partition label."""
    number = 2 + 2 * (ord(letter) - ord("a"))
    return Slot(
        letter,
        Partition(number, f"/dev/vda{number}", root_mib * MIB, label, uuid),
        Partition(number + 1, f"/dev/vda{number + 1}", 5 * MIB, f"{label}_verity", ""),
    )


def facts(
    version: str = "1",
    *,
    slots: tuple[Slot, ...] = (slot("a", "shop_1"), slot("b", "_empty")),
    entries: tuple[Entry, ...] = (Entry("shop", "1"),),
    progress: Progress = Idle(),  # noqa: B008 - frozen
    failed: frozenset[str] = frozenset(),
    good: frozenset[str] = frozenset({"shop_1"}),
) -> Facts:
    """A host that runs `version` from its first slot."""
    return Facts("shop", version, "cd" * 32, slots, slots[0], entries, progress, failed, good)


def record(event: Event, image: str = "shop_2", *, boot: str = "boot-1", phase: Phase | None = None, detail: str = "") -> Record:
    """A line of a journal."""
    return Record(event, "2026-01-01T00:00:00+00:00", boot, image, f"id-{image}", phase, None, detail)


def sealed(blocks: int, *, salt: bytes = b"salt") -> tuple[bytes, bytes, str]:
    """A device of so many blocks, its hash tree and its root hash; made apart from the code under test."""
    data = b"".join(bytes([number % 251]) * 4096 for number in range(blocks))
    return data, *tree_over(data, salt=salt)


def tree_over(data: bytes, *, salt: bytes = b"salt") -> tuple[bytes, str]:
    """The hash tree of a device and its root hash; made apart from the code under test."""
    blocks = len(data) // 4096
    levels = []
    level = [hashlib.sha256(salt + data[at : at + 4096]).digest() for at in range(0, len(data), 4096)]
    while len(level) > 1:
        packed = [b"".join(level[at : at + 128]).ljust(4096, b"\0") for at in range(0, len(level), 128)]
        levels.append(b"".join(packed))
        level = [hashlib.sha256(salt + block).digest() for block in packed]
    superblock = struct.pack("<8sII16s32sIIQH6x256s168x", b"verity", 1, 1, b"", b"sha256", 4096, 4096, blocks, len(salt), salt)
    return superblock.ljust(4096, b"\0") + b"".join(reversed(levels)), level[0].hex()
