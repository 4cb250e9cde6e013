"""The sealed result of a lock: parts, and the manifest whose digest is the image's id.

A manifest is canonical JSON. It holds nothing that varies between two builds of the same lock: no times, paths or hosts.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from obelisk.errors import TrustError
from obelisk.model.canonical import Json, canonical, digest
from obelisk.model.state import FIRST, Encryption

SCHEMA = "obelisk.image/1"
_SLOTS = 2


class PartKind(StrEnum):
    """What a part is for; the value is also its name in the manifest."""

    ROOT = "root"
    VERITY = "verity"
    UKI = "uki"
    LOADER = "loader"
    ENROL_PK = "enrol-pk"
    ENROL_KEK = "enrol-kek"
    ENROL_DB = "enrol-db"
    UPDATE_PK = "update-pk"
    UPDATE_KEK = "update-kek"
    UPDATE_DB = "update-db"
    UPDATE_DBX = "update-dbx"
    SBOM_SPDX = "sbom-spdx"
    SBOM_CYCLONEDX = "sbom-cyclonedx"
    APPLICATION = "application"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of an image."""

    kind: PartKind
    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ImagePackage:
    """A package inside the image."""

    name: str
    version: str
    architecture: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that identifies an image. `slot_bytes` are the sizes of the root and verity partitions that hold any of its versions.

    It works with state of version `state_version`, and migrates to it what is of `state_oldest` or later. An application (role `app`) has
    neither kernel nor command line nor slots: these are empty and 0.
    """

    name: str
    version: str
    distribution: str
    architecture: str
    role: str
    epoch: int
    kernel: str
    cmdline: str
    root_hash: str
    root_slot_bytes: int
    verity_slot_bytes: int
    slot_count: int
    secure_boot_certificate: str
    test_key: bool
    spec_sha256: str
    lock_sha256: str
    tools_sha256: str
    setuid: tuple[str, ...]
    parts: tuple[Part, ...]
    packages: tuple[ImagePackage, ...]
    state_version: int = FIRST
    state_oldest: int = FIRST
    state_encryption: Encryption = Encryption.NONE

    def to_json(self) -> Json:
        """The manifest as plain data, ready for `canonical`."""
        # What came later is left out where it says nothing new, so that the ids of older images stay.
        count: dict[str, Json] = {"count": self.slot_count} if self.slot_count != _SLOTS else {}
        state: dict[str, Json] = {"version": self.state_version, "oldest": self.state_oldest}
        if self.state_encryption is not Encryption.NONE:
            state["encryption"] = self.state_encryption.value
        return ({"state": state} if state != {"version": FIRST, "oldest": FIRST} else {}) | {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "distribution": self.distribution,
            "architecture": self.architecture,
            "role": self.role,
            "epoch": self.epoch,
            "kernel": self.kernel,
            "cmdline": self.cmdline,
            "root_hash": self.root_hash,
            "slot": {"root": self.root_slot_bytes, "verity": self.verity_slot_bytes, **count},
            "secure_boot": {"certificate_sha256": self.secure_boot_certificate, "test_key": self.test_key},
            "inputs": {"spec": self.spec_sha256, "lock": self.lock_sha256, "tools": self.tools_sha256},
            "setuid": list(self.setuid),
            "parts": [{"kind": part.kind.value, "file": part.file, "size": part.size_bytes, "sha256": part.sha256} for part in self.parts],
            "packages": [[p.name, p.version, p.architecture, p.sha256] for p in self.packages],
        }

    @property
    def id(self) -> str:
        """The image's id: SHA-256 of the canonical manifest."""
        return digest(self.to_json())

    @property
    def is_application(self) -> bool:
        """Whether it runs in a sandbox, and is no machine."""
        return self.role == "app"

    @property
    def label(self) -> str:
        """`name_version`, as partition labels and the UKI's file name carry it."""
        return f"{self.name}_{self.version}"

    def to_bytes(self) -> bytes:
        """The manifest as it is stored and signed."""
        return canonical(self.to_json())

    def part(self, kind: PartKind) -> Part:
        """The part of that kind.

        Raises:
            KeyError: the image has none.
        """
        for part in self.parts:
            if part.kind is kind:
                return part
        raise KeyError(kind.value)


def parse_manifest(data: bytes, *, image_id: str | None = None) -> Manifest:
    """Read a stored manifest, checking its digest against `image_id` when given.

    Raises:
        TrustError: the bytes are not the manifest of that id, or not a manifest at all.
    """
    try:
        raw: dict[str, Any] = json.loads(data)
        if raw["schema"] != SCHEMA:
            raise TrustError(
                f"the manifest has schema {raw['schema']!r}, this version reads {SCHEMA!r}",
                code="manifest-schema",
                hint="use the version of obelisk that made the image, or build it again",
            )
        manifest = Manifest(
            name=raw["name"],
            version=raw["version"],
            distribution=raw["distribution"],
            architecture=raw["architecture"],
            role=raw["role"],
            epoch=raw["epoch"],
            kernel=raw["kernel"],
            cmdline=raw["cmdline"],
            root_hash=raw["root_hash"],
            root_slot_bytes=raw["slot"]["root"],
            verity_slot_bytes=raw["slot"]["verity"],
            slot_count=raw["slot"].get("count", _SLOTS),
            secure_boot_certificate=raw["secure_boot"]["certificate_sha256"],
            test_key=raw["secure_boot"]["test_key"],
            spec_sha256=raw["inputs"]["spec"],
            lock_sha256=raw["inputs"]["lock"],
            tools_sha256=raw["inputs"]["tools"],
            setuid=tuple(raw["setuid"]),
            parts=tuple(Part(PartKind(p["kind"]), p["file"], p["size"], p["sha256"]) for p in raw["parts"]),
            packages=tuple(ImagePackage(*package) for package in raw["packages"]),
            state_version=raw["state"]["version"] if "state" in raw else FIRST,
            state_oldest=raw["state"]["oldest"] if "state" in raw else FIRST,
            state_encryption=Encryption(raw["state"].get("encryption", Encryption.NONE)) if "state" in raw else Encryption.NONE,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError(f"the manifest is damaged: {error}", code="manifest-damaged", hint="run `obelisk verify`") from error
    if image_id is not None and manifest.id != image_id:
        raise TrustError(
            f"the manifest of image {image_id[:12]} has the digest {manifest.id[:12]}", code="manifest-digest", hint="run `obelisk verify`"
        )
    return manifest
