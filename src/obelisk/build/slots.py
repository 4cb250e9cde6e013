"""The disk of a host: sizes and partition definitions, after the Discoverable Partitions Specification.

    ESP 1 (2 GiB, FAT)  EFI/systemd, EFI/BOOT, EFI/Linux/<name>_<version>.efi
    root 2              slot A: <name>_<version>          EROFS
    verity 3            slot A: <name>_<version>_verity   dm-verity's hash tree
    root 4              slot B: _empty                    made by the first boot
    verity 5            slot B: _empty                    and so on, as many slots as the spec asks for
    state 6             Btrfs, the rest of the disk       made by the first boot, grows with the disk

Partition ids of a slot follow from the root hash: its first 128 bits name the root, its last the verity partition.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from string import ascii_lowercase

from obelisk.model.image import Manifest, PartKind
from obelisk.model.partitions import partition_uuids, tree_label
from obelisk.model.spec import Spec
from obelisk.model.state import Encryption

ESP_BYTES = 2 << 30
STATE_LEAST_BYTES = 512 << 20
DEFAULT_SLOT_BYTES = 2 << 30
MIB = 1 << 20
STATE_LABEL = "state"
_CROWDED = 0.85  # of a slot: then it is time to say so


def root_bytes(spec: Spec) -> int:
    """The size of each root partition: the size budget, or room for an image to grow."""
    return _up_to_mib(spec.size_budget_bytes or DEFAULT_SLOT_BYTES)


def verity_bytes(root: int) -> int:
    """The size of the verity partition that covers `root` bytes: 32 bytes a block of 4 KiB, on every level of the tree."""
    blocks, hashes = root // 4096, 1
    while blocks > 1:
        blocks = -(-blocks // 128)
        hashes += blocks
    return _up_to_mib(hashes * 4096)


@dataclass(frozen=True, slots=True)
class Layout:
    """What decides the bytes of a shipped disk besides the files on it."""

    label: str
    root_hash: str
    root_bytes: int
    epoch: int
    slots: int = 2


def layout_of(manifest: Manifest) -> Layout:
    """The layout of an image's disk."""
    return Layout(manifest.label, manifest.root_hash, manifest.root_slot_bytes, manifest.epoch, manifest.slot_count)


def outgrown(manifest: Manifest, others: Iterable[Manifest]) -> tuple[str, ...]:
    """What to say, releases ahead, of an image that fills its slot; and of hosts of other versions whose slots it no longer fits into."""
    if manifest.is_application:
        return ()
    said = []
    size = manifest.part(PartKind.ROOT).size_bytes
    share = size / manifest.root_slot_bytes
    if share > _CROWDED:
        said.append(
            f"the root fills {share:.0%} of its slot ({manifest.root_slot_bytes // MIB} MiB): raise `size_budget` before hosts are "
            "installed, for they keep the slots that they have"
        )
    small = [other for other in others if other.name == manifest.name and other.root_slot_bytes < size]
    if small:
        labels = ", ".join(sorted({other.label for other in small}))
        said.append(f"hosts that were installed with {labels} have slots that are too small for it")
    return tuple(said)


def shipped_definitions(layout: Layout) -> dict[str, str]:
    """repart.d(5) definitions of the disk as it is shipped: ESP and slot A; sources are paths in the room that runs systemd-repart."""
    root_uuid, verity_uuid = partition_uuids(layout.root_hash)
    root = _definition(
        Type="root-x86-64", Label=layout.label, UUID=str(root_uuid), CopyBlocks="/root.erofs", ReadOnly="yes", **_exactly(layout.root_bytes)
    )
    verity = _definition(
        Type="root-x86-64-verity",
        Label=tree_label(layout.label),
        UUID=str(verity_uuid),
        CopyBlocks="/root.verity",
        ReadOnly="yes",
        **_exactly(verity_bytes(layout.root_bytes)),
    )
    esp = _definition(Type="esp", Label="esp", Format="vfat", CopyFiles="/esp:/", **_exactly(ESP_BYTES))
    return {"10-esp.conf": esp, "20-root-a.conf": root, "21-verity-a.conf": verity}


def host_definitions(root: int, count: int, encryption: Encryption) -> dict[str, str]:
    """repart.d(5) definitions that the machine itself applies: what is shipped, the other slots and the state volume."""
    verity = verity_bytes(root)
    definitions = {"10-esp.conf": _definition(Type="esp", Label="esp", **_exactly(ESP_BYTES))}
    for index, slot in enumerate(ascii_lowercase[:count]):
        definitions[f"{20 + 10 * index}-root-{slot}.conf"] = _definition(
            Type="root-x86-64", Label="_empty", ReadOnly="yes", **_exactly(root)
        )
        definitions[f"{21 + 10 * index}-verity-{slot}.conf"] = _definition(
            Type="root-x86-64-verity", Label="_empty", ReadOnly="yes", **_exactly(verity)
        )
    # systemd-repart encrypts and formats first and writes the partition table then: cut, it leaves no partition.
    encrypted = {"Format": "btrfs", "Encrypt": "tpm2"} if encryption is Encryption.TPM2 else {}
    state = _definition(Type="linux-generic", Label=STATE_LABEL, SizeMinBytes=str(STATE_LEAST_BYTES), **encrypted)
    definitions["90-state.conf"] = state
    return definitions


def host_disk_bytes(layout: Layout, *, state: int = 4 << 30) -> int:
    """The size of a disk that holds all slots and `state` bytes."""
    return ESP_BYTES + layout.slots * (layout.root_bytes + verity_bytes(layout.root_bytes)) + state + 16 * MIB


def _exactly(size: int) -> dict[str, str]:
    return {"SizeMinBytes": str(size), "SizeMaxBytes": str(size)}


def _definition(**settings: str) -> str:
    return "[Partition]\n" + "".join(f"{name}={value}\n" for name, value in settings.items())


def _up_to_mib(size: int) -> int:
    return -(-size // MIB) * MIB
