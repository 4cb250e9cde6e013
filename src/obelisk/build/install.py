"""`obelisk install` on a builder: an image's disk onto a device, or into a file that becomes one.

Only what the disk has is written; its first boot completes it (slots, state).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from obelisk.build import slots
from obelisk.build.image import disk_of
from obelisk.events import Sink
from obelisk.store import Store, StoredImage
from obelisk.system.blocks import BLOCK_BYTES, CHUNK_BYTES, BlockDevice
from obelisk.system.bubblewrap import Room
from obelisk.system.files import drafted
from obelisk.system.overwriting import Piece, is_device, overwrite, require_size


def install(image: StoredImage, target: Path, *, erase: str | None, store: Store, room: Room, sink: Sink) -> int:
    """Write the image's disk to `target` and return how many bytes that were. `erase` has to be the name of what is overwritten.

    Raises:
        InputError: the target would be overwritten and was not named, or is neither a device nor a file.
        StateError: it is in use, or too small.
        TrustError: it does not keep what is written to it.
    """
    label = image.manifest.label
    layout = slots.layout_of(image.manifest)
    device = is_device(target, erase, again=f"obelisk install {label} {target}")
    with store.workspace() as work:
        raw = disk_of(image, store, room, work)
        if device:
            require_size(target, slots.host_disk_bytes(layout, state=slots.STATE_LEAST_BYTES), label)
            return _write(raw, target, label, sink)
        with drafted(target, size=slots.host_disk_bytes(layout)) as draft:
            return _write(raw, draft, label, sink)


def _write(raw: Path, target: Path, label: str, sink: Sink) -> int:
    with BlockDevice(raw) as source:
        pieces = [Piece(source, at, at, length) for at, length in _extents(raw)]
        return overwrite(target, pieces, slots.MIB + slots.ESP_BYTES, label, sink)


def _extents(raw: Path) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data: offsets and lengths, each at most a chunk, in whole blocks."""
    with raw.open("rb") as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES
            except OSError:  # only a hole is left
                return
            end = -(-os.lseek(file.fileno(), start, os.SEEK_HOLE) // BLOCK_BYTES) * BLOCK_BYTES
            for at in range(start, end, CHUNK_BYTES):
                yield at, min(CHUNK_BYTES, end - at)
            position = end
