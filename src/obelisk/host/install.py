"""`obelisk install` on a host, or a live image: the running image onto another disk.

What is written is what a builder ships: the ESP, with this image alone, and slot A. Its first boot completes the disk. The root is read
through dm-verity, so only what the root hash names can arrive there; the partition table comes last, and without it nothing boots.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from obelisk.errors import InputError, TrustError
from obelisk.events import Sink
from obelisk.host import esp, staging
from obelisk.host.here import Here
from obelisk.model.host import Entry, Slot
from obelisk.model.image import Manifest, PartKind
from obelisk.system import sfdisk
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice
from obelisk.system.files import drafted, hash_file
from obelisk.system.mounts import mounted
from obelisk.system.overwriting import Piece, is_device, overwrite, require_size
from obelisk.system.sfdisk import TableEntry

_MIB = 1 << 20
_STATE_LEAST_BYTES = 512 << 20
_STATE_BYTES = 4 << 30  # in a file
_VERIFIED_ROOT = Path("/dev/mapper/root")


def install(here: Here, image: str, target: Path, *, erase: str | None, sink: Sink) -> int:
    """Write the running image to `target` and return how many bytes that were. `erase` has to be the name of what is overwritten.

    Raises:
        InputError: `image` is another one, or the target would be overwritten and was not named, or is neither a device nor a file.
        StateError: it is in use, or too small.
        TrustError: a part of the running image is damaged, or the target does not keep what is written to it.
    """
    if image not in {here.name, here.label}:
        raise InputError(
            f"{image} is not the running image",
            code="install-image",
            hint=f"from here, {here.label} can be installed; others from a builder, or by `obelisk host upgrade` afterwards",
        )
    device = is_device(target, erase, again=f"obelisk install {here.label} {target}")
    with here.alone(), ExitStack() as held:
        table = sfdisk.read_table(here.disk)
        slots = here.slots()
        slot = here.booted_slot(slots)
        with here.esp() as place:
            manifest = _manifest(place, here.label)
        entries = _table(table, slot)
        _, root, tree = entries
        wanted = root.start_bytes + len(slots) * (root.size_bytes + tree.size_bytes)
        if device:
            require_size(target, wanted + _STATE_LEAST_BYTES, here.label)
            goal = target
        else:
            goal = held.enter_context(drafted(target, size=wanted + _STATE_BYTES))
        pieces = _pieces(held, table, slot, manifest, entries)
        written = overwrite(goal, pieces, entries[0].start_bytes + entries[0].size_bytes, here.label, sink)
        _leave_one(here, goal, entries[0], manifest)
        sfdisk.write_table(goal, entries)
    return written


def _manifest(place: Path, label: str) -> Manifest:
    manifest, entry = esp.manifest_of(place, label), esp.find(place, label)
    if manifest is None or entry is None or hash_file(esp.path_of(place, entry)) != manifest.part(PartKind.UKI).sha256:
        raise TrustError(
            f"on the ESP, manifest or kernel image of {label} is missing or damaged",
            code="esp-damaged",
            hint="`obelisk host verify` says more; `--repair SOURCE` mends it",
        )
    return manifest


def _table(table: tuple[TableEntry, ...], slot: Slot) -> tuple[TableEntry, ...]:
    """The partitions of the new disk: ESP, root and hash tree, from the first mebibyte on."""
    ours = {slot.root.number, slot.tree.number}
    chosen = [entry for entry in table if entry.type == sfdisk.ESP][:1] + [entry for entry in table if entry.number in ours]
    at, entries = _MIB, []
    for number, entry in enumerate(sorted(chosen, key=lambda entry: (entry.type != sfdisk.ESP, entry.number)), start=1):
        uuid = str(uuid4()) if entry.type == sfdisk.ESP else entry.uuid
        entries.append(replace(entry, number=number, start_bytes=at, uuid=uuid))
        at += entry.size_bytes
    return tuple(entries)


def _pieces(
    held: ExitStack, table: tuple[TableEntry, ...], slot: Slot, manifest: Manifest, entries: tuple[TableEntry, ...]
) -> Iterator[Piece]:
    boot = next(entry for entry in table if entry.type == sfdisk.ESP)
    tree = Path(slot.tree.device)
    blocks = manifest.part(PartKind.ROOT).size_bytes // BLOCK_BYTES
    with BlockDevice(tree) as device:
        staging.read_tree(device, blocks, manifest.root_hash)
    lengths = (boot.size_bytes, manifest.part(PartKind.ROOT).size_bytes, manifest.part(PartKind.VERITY).size_bytes)
    empty = bytes(CHUNK_BYTES)
    for path, length, entry in zip((boot.device, _VERIFIED_ROOT, tree), lengths, entries, strict=True):
        source = held.enter_context(BlockDevice(path))
        for at in range(0, length, CHUNK_BYTES):
            size = min(CHUNK_BYTES, length - at)
            # Most of the ESP is free, and what is not written there is zeros.
            if path != boot.device or source.read(at, size) != empty[:size]:
                yield Piece(source, at, entry.start_bytes + at, size)


def _leave_one(here: Here, goal: Path, entry: TableEntry, manifest: Manifest) -> None:
    """Of the copied ESP, keep what starts this image, for good; the seed of random numbers is each machine's own."""
    where = f"loop,offset={entry.start_bytes},sizelimit={entry.size_bytes}"
    with mounted(goal, here.run / "installed", "vfat", "umask=0077", where) as place:
        for other in {*esp.entries(place)}:
            if other.label != manifest.label:
                esp.remove(place, other.label)
            elif other.counted:
                esp.change(place, other, Entry(other.name, other.version))
        esp.sweep(place)
        (place / "loader/random-seed").unlink(missing_ok=True)
