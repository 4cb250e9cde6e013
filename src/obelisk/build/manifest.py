"""The manifest of an image, from finished steps: what the image's id is the digest of."""

import json
from collections.abc import Mapping
from pathlib import Path

from obelisk import spec as specs
from obelisk.build import slots
from obelisk.build.keys import SigningKey
from obelisk.build.seal import command_line
from obelisk.model.image import ImagePackage, Manifest, Part, PartKind
from obelisk.model.lock import Lock
from obelisk.model.spec import Spec
from obelisk.system.files import hash_file

ARCHITECTURE = "amd64"

_BILLS = ((PartKind.SBOM_SPDX, "sbom", "sbom.spdx.json"), (PartKind.SBOM_CYCLONEDX, "sbom", "sbom.cdx.json"))
MACHINE = (
    (PartKind.ROOT, "root", "root.erofs"),
    (PartKind.VERITY, "root", "root.verity"),
    (PartKind.UKI, "uki", "uki.efi"),
    (PartKind.LOADER, "loader", "systemd-bootx64.efi"),
    (PartKind.ENROL_PK, "loader", "PK.auth"),
    (PartKind.ENROL_KEK, "loader", "KEK.auth"),
    (PartKind.ENROL_DB, "loader", "db.auth"),
    *_BILLS,
)
APPLICATION = (
    (PartKind.ROOT, "root", "root.erofs"),
    (PartKind.VERITY, "root", "root.verity"),
    (PartKind.APPLICATION, "configured", "application.json"),
    *_BILLS,
)


STEPS = tuple(sorted({"base", "configured", *(step for _, step, _ in MACHINE)}))
"""The steps that a machine's manifest speaks of."""


def parts_of(spec: Spec, key: SigningKey) -> tuple[tuple[PartKind, str, str], ...]:
    """The parts of an image of `spec`: kind, step, and file in its output."""
    if spec.application is not None:
        return APPLICATION
    return (*MACHINE, *((kind, "loader", f"{kind.value}.auth") for kind in key.updates))


def manifest_of(spec: Spec, lock: Lock, key: SigningKey, outputs: Mapping[str, Path]) -> Manifest:
    """The manifest; `outputs` are the directories of the steps that it speaks of: those of its parts, `base` and `configured`."""
    parts = tuple(_part(kind, outputs[step], file) for kind, step, file in parts_of(spec, key))
    is_machine = spec.application is None
    base = json.loads((outputs["base"] / "result.json").read_text())
    configured = json.loads((outputs["configured"] / "result.json").read_text())
    root_hash = json.loads((outputs["root"] / "result.json").read_text())["root_hash"]
    root_bytes = slots.root_bytes(spec) if is_machine else 0
    return Manifest(
        name=spec.name,
        version=spec.version,
        distribution=str(spec.distribution),
        architecture=ARCHITECTURE,
        role=spec.role.value,
        epoch=lock.system.epoch,
        kernel=base["kernel"],
        cmdline=command_line(spec, root_hash) if is_machine else "",
        root_hash=root_hash,
        root_slot_bytes=root_bytes,
        verity_slot_bytes=slots.verity_bytes(root_bytes) if is_machine else 0,
        slot_count=spec.upgrade.slots,
        secure_boot_certificate=key.certificate_sha256,
        test_key=key.test_key,
        spec_sha256=specs.digest_inputs(spec),
        lock_sha256=lock.sha256,
        tools_sha256=lock.tools.sha256,
        setuid=tuple(configured["setuid"]),
        parts=parts,
        packages=tuple(ImagePackage(p.name, p.version, p.architecture, p.sha256) for p in lock.system.packages),
        state_version=spec.state.version,
        state_oldest=spec.state.oldest,
        state_encryption=spec.state.encryption,
    )


def _part(kind: PartKind, output: Path, file: str) -> Part:
    """The part with its digest, which is kept beside the step's output: hashing half a gigabyte once is enough."""
    path = output / file
    note = output / f"{file}.sha256"
    sha256 = note.read_text() if note.exists() else hash_file(path)
    return Part(kind, file, path.stat().st_size, sha256)
