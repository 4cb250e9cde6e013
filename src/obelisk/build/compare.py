"""What changes for the user from one image to another: packages, kernel, files, set-id programs, command line."""

from dataclasses import dataclass

from obelisk.model.image import PartKind
from obelisk.store import StoredImage
from obelisk.system import erofs
from obelisk.system.bubblewrap import Room


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; `before` or `after` is empty where there is nothing."""

    kind: str
    name: str
    before: str
    after: str


def compare(before: StoredImage, after: StoredImage, room: Room) -> tuple[Change, ...]:
    """The differences, by kind and then by name."""
    one, other = before.manifest, after.manifest
    changes = [
        Change("setting", name, str(a), str(b))
        for name, a, b in (
            ("version", one.version, other.version),
            ("distribution", one.distribution, other.distribution),
            ("kernel", one.kernel, other.kernel),
            ("signed by", one.secure_boot_certificate[:16], other.secure_boot_certificate[:16]),
            ("slot", one.root_slot_bytes, other.root_slot_bytes),
        )
        if a != b
    ]
    changes += _by_name("package", {p.name: p.version for p in one.packages}, {p.name: p.version for p in other.packages})
    changes += _by_name("set-id", dict.fromkeys(one.setuid, "yes"), dict.fromkeys(other.setuid, "yes"))
    if one.root_hash != other.root_hash:
        files = [erofs.listing(room, image.part_path(PartKind.ROOT)) for image in (before, after)]
        changes += _by_name("file", files[0], files[1])
    return tuple(changes)


def _by_name(kind: str, before: dict[str, str], after: dict[str, str]) -> list[Change]:
    names = sorted(before.keys() | after.keys())
    return [Change(kind, n, before.get(n, ""), after.get(n, "")) for n in names if before.get(n) != after.get(n)]
