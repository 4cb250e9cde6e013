"""What changes for the user from one image to another.

From the manifests: version, kernel, sizes, command line, packages, set-id programs. From applications: what they may do. From the roots,
where they are at hand: files, what systemd starts, users, and where enabled sockets listen.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from obelisk.model.application import Application
from obelisk.model.exposure import grown
from obelisk.model.image import Manifest, PartKind
from obelisk.system import erofs
from obelisk.system.bubblewrap import Room

_STARTED = re.compile(r"(?:etc|usr/lib)/systemd/system/([^/]+)\.(?:wants|requires)/([^/]+)")
_SEALED = re.compile(r"\broothash=\S+ ?")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; `before` or `after` is empty where there is nothing."""

    kind: str
    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Side:
    """One of two images. `root` is None where only its manifest is at hand; `application` is what one says of itself."""

    manifest: Manifest
    root: Path | None = None
    application: Application | None = None


def compare(before: Side, after: Side, room: Room | None) -> tuple[Change, ...]:
    """The differences, by kind and then by name. Without a room, or without both roots, only those that manifests tell of."""
    one, other = before.manifest, after.manifest
    changes = _settings(one, other) + _powers(before.application, after.application)
    changes += _by_name("package", {p.name: p.version for p in one.packages}, {p.name: p.version for p in other.packages})
    changes += _by_name("set-id", dict.fromkeys(one.setuid, "yes"), dict.fromkeys(other.setuid, "yes"))
    if one.root_hash != other.root_hash and room is not None and before.root is not None and after.root is not None:
        listings = [erofs.listing(room, root) for root in (before.root, after.root)]
        for kind, prefix in (("user", "//user/"), ("socket", "//socket/")):
            changes += _by_name(kind, *(_below(listing, prefix) for listing in listings))
        changes += _by_name("service", *(started(listing) for listing in listings))
        changes += _by_name("file", *({path: what for path, what in each.items() if not path.startswith("//")} for each in listings))
    return tuple(changes)


def _settings(one: Manifest, other: Manifest) -> list[Change]:
    rows = (
        ("name", one.name, other.name),
        ("version", one.version, other.version),
        ("distribution", one.distribution, other.distribution),
        ("architecture", one.architecture, other.architecture),
        ("role", one.role, other.role),
        ("kernel", one.kernel, other.kernel),
        ("command line", _SEALED.sub("", one.cmdline), _SEALED.sub("", other.cmdline)),
        ("root bytes", one.part(PartKind.ROOT).size_bytes, other.part(PartKind.ROOT).size_bytes),
        ("kernel image bytes", _kernel_bytes(one), _kernel_bytes(other)),
        ("packages", len(one.packages), len(other.packages)),
        ("signed by", one.secure_boot_certificate[:16], other.secure_boot_certificate[:16]),
        ("test key", one.test_key, other.test_key),
        ("slot", one.root_slot_bytes, other.root_slot_bytes),
        ("state version", one.state_version, other.state_version),
        ("state encryption", one.state_encryption, other.state_encryption),
    )
    return [Change("setting", name, str(a), str(b)) for name, a, b in rows if a != b]


def _kernel_bytes(manifest: Manifest) -> int:
    return 0 if manifest.is_application else manifest.part(PartKind.UKI).size_bytes


def _powers(one: Application | None, other: Application | None) -> list[Change]:
    """What one of two applications may do and the other may not, in words."""
    if one is None or other is None:
        return []
    before, after = (one, one.policy), (other, other.policy)
    gained = [Change("power", line, "", "may") for line in grown(before, after)]
    return gained + [Change("power", line, "may", "") for line in grown(after, before)]


def started(listing: dict[str, str]) -> dict[str, str]:
    """What systemd starts by itself, and what for, out of a listing of files."""
    found: dict[str, set[str]] = {}
    for path in listing:
        match = _STARTED.fullmatch(path)
        if match:
            found.setdefault(match[2], set()).add(match[1])
    return {unit: ", ".join(sorted(targets)) for unit, targets in found.items()}


def _below(listing: dict[str, str], prefix: str) -> dict[str, str]:
    return {path.removeprefix(prefix): what for path, what in listing.items() if path.startswith(prefix)}


def _by_name(kind: str, before: dict[str, str], after: dict[str, str]) -> list[Change]:
    names = sorted(before.keys() | after.keys())
    return [Change(kind, n, before.get(n, ""), after.get(n, "")) for n in names if before.get(n) != after.get(n)]
