"""The EFI system partition, as a mounted directory: the entries that the boot loader offers, and the manifests of their images.

    EFI/Linux/<name>_<version>[+LEFT[-DONE]].efi   what systemd-boot lists; the newest that has boots left goes first
    EFI/Linux/<name>_<version>.new                 a UKI that is being written: no entry, for it does not end in .efi
    EFI/obelisk/<name>_<version>.json              the manifest of the image
    EFI/obelisk/<name>_<version>.pk|.kek|.db|.loader|.dbx   what it brings to firmware and loader, see `firmware`

An entry appears, changes its counter and goes by one rename or removal in one directory.
"""

import os
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.model.host import Entry
from obelisk.model.image import Manifest, parse_manifest
from obelisk.system.files import hash_file, sync_directory, write_durably
from obelisk.system.filesystem import sync_filesystem

ENTRIES = Path("EFI/Linux")
MANIFESTS = Path("EFI/obelisk")
BROUGHT = ("pk", "kek", "db", "loader", "dbx")
"""Endings of the files that an image brings to firmware and loader, in the order in which they are applied."""
SPARE_BYTES = 1 << 20
"""Kept free on the ESP for what the boot loader itself writes."""


def entries(esp: Path) -> tuple[Entry, ...]:
    """The entries of images, in the order of their names."""
    found = (Entry.parse(path.name) for path in sorted((esp / ENTRIES).glob("*.efi")))
    return tuple(entry for entry in found if entry is not None)


def strangers(esp: Path) -> tuple[Path, ...]:
    """Files that the boot loader or the firmware would offer and that are none of ours, relative to the ESP."""
    known = {Path("EFI/BOOT/BOOTX64.EFI"), Path("EFI/systemd/systemd-bootx64.efi")}
    found = [path.relative_to(esp) for path in esp.rglob("*") if path.suffix.lower() == ".efi" and path.is_file()]
    found += [path.relative_to(esp) for path in (esp / "loader/entries").glob("*.conf")]
    ours = {ENTRIES / entry.file for entry in entries(esp)}
    return tuple(sorted(path for path in found if path not in known and path not in ours))


def find(esp: Path, label: str) -> Entry | None:
    """The entry of the image `label`."""
    return next((entry for entry in entries(esp) if entry.label == label), None)


def path_of(esp: Path, entry: Entry) -> Path:
    """Where the UKI of an entry is."""
    return esp / ENTRIES / entry.file


def manifest_of(esp: Path, label: str) -> Manifest | None:
    """The manifest of the image `label`; None when there is none or it is damaged."""
    try:
        return parse_manifest((esp / MANIFESTS / f"{label}.json").read_bytes())
    except (OSError, TrustError):
        return None


def brought(esp: Path, label: str) -> tuple[str, ...]:
    """The endings of what an image has brought to firmware and loader, and what is not applied yet."""
    return tuple(ending for ending in BROUGHT if (esp / MANIFESTS / f"{label}.{ending}").exists())


def remove(esp: Path, label: str) -> None:
    """Take the image `label` off the ESP: the entry first. May be repeated."""
    for entry in entries(esp):
        if entry.label == label:
            path_of(esp, entry).unlink()
    sync_directory(esp / ENTRIES)
    for leftover in (esp / ENTRIES / f"{label}.new", *(esp / MANIFESTS / f"{label}.{ending}" for ending in ("json", *BROUGHT))):
        leftover.unlink(missing_ok=True)
    flush(esp)


def sweep(esp: Path) -> None:
    """Remove UKIs whose writing was cut, and what durable writes left. May be repeated."""
    for pattern in (f"{ENTRIES}/*.new", f"{MANIFESTS}/.*.tmp"):
        for path in esp.glob(pattern):
            path.unlink()


def install(esp: Path, entry: Entry, uki: Path, manifest: Manifest, sha256: str) -> None:
    """Make an image bootable: manifest, then UKI, which appears under its name complete and read back from the disk. May be repeated.

    Raises:
        TrustError: what was written is not what the manifest says.
    """
    (esp / MANIFESTS).mkdir(exist_ok=True)
    write_durably(esp / MANIFESTS / f"{entry.label}.json", manifest.to_bytes())
    draft = esp / ENTRIES / f"{entry.label}.new"
    with uki.open("rb") as source, draft.open("wb") as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
        os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if hash_file(draft) != sha256:
        draft.unlink()
        raise TrustError(
            f"the UKI of {entry.label} reads back from the ESP other than it was written",
            code="esp-damaged",
            hint="the disk may be failing: look at the kernel's messages",
        )
    for other in entries(esp):
        if other.label == entry.label and other != entry:
            path_of(esp, other).unlink()
    draft.rename(path_of(esp, entry))
    flush(esp)


def change(esp: Path, old: Entry, new: Entry) -> None:
    """Give an entry another counter."""
    path_of(esp, old).rename(path_of(esp, new))
    flush(esp)


def free_bytes(esp: Path) -> int:
    """Room for more files."""
    found = os.statvfs(esp)
    return found.f_bavail * found.f_frsize


def require_room(esp: Path, wanted: int) -> None:
    """Make sure that `wanted` bytes fit.

    Raises:
        StateError: they do not.
    """
    free = free_bytes(esp)
    if free < wanted + SPARE_BYTES:
        raise StateError(
            f"the ESP has {free >> 20} MiB free, the new image's kernel needs {(wanted >> 20) + 1}",
            code="esp-full",
            hint="remove what does not belong there; `obelisk host verify` lists it",
        )


def flush(esp: Path) -> None:
    """Make all of the ESP durable."""
    sync_filesystem(esp)
