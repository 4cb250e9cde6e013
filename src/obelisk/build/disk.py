"""The disk of an image as it is shipped: ESP and slot A; see `obelisk.build.slots`. Output of the step: disk/disk.raw."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid5

from obelisk import spec as specs
from obelisk.build import slots
from obelisk.build.graph import Step
from obelisk.build.keys import SigningKey
from obelisk.build.manifest import STEPS, manifest_of
from obelisk.build.seal import NAMESPACE
from obelisk.events import Task
from obelisk.model.image import Manifest, PartKind
from obelisk.model.lock import Lock
from obelisk.model.spec import Spec
from obelisk.system import repart
from obelisk.system.bubblewrap import Room, read_only, writable


def disk_step(spec: Spec, lock: Lock, key: SigningKey, steps: Mapping[str, Step]) -> Step:
    """The disk as it is shipped: ESP and slot A, made without a loop device."""

    def produce(work: Path, needs: Mapping[str, Path], _running: Task) -> None:
        files = {PartKind.ROOT: needs["root"] / "root.erofs", PartKind.VERITY: needs["root"] / "root.verity"}
        files |= {kind: needs["uki" if kind is PartKind.UKI else "loader"] / name for kind, name in _ESP_PARTS.items()}
        assemble_disk(Room(needs["tools"] / "tree"), work, files, manifest_of(spec, lock, key, needs))

    decides = (spec.name, spec.version, slots.root_bytes(spec), key.certificate_sha256, specs.digest_inputs(spec), lock.sha256)
    return Step("disk", "Disk", decides, tuple(steps[name] for name in ("tools", *STEPS)), produce, revision=3)


_ESP_PARTS = {
    PartKind.UKI: "uki.efi",
    PartKind.LOADER: "systemd-bootx64.efi",
    PartKind.ENROL_PK: "PK.auth",
    PartKind.ENROL_KEK: "KEK.auth",
    PartKind.ENROL_DB: "db.auth",
}


def assemble_disk(room: Room, work: Path, files: Mapping[PartKind, Path], manifest: Manifest) -> Path:
    """Make `work`/disk.raw from an image's parts and return its path. Equal parts give equal bytes.

    Without a root part, the disk has an ESP alone.
    """
    esp = work / "esp"
    layout = slots.layout_of(manifest)
    lay_out_esp(esp, files, manifest)
    definitions = work / "repart.d"
    definitions.mkdir()
    binds = [writable(work, "/step"), read_only(esp, "/esp")]
    for name, text in slots.shipped_definitions(layout).items():
        if PartKind.ROOT in files or "esp" in name:
            (definitions / name).write_text(text)
    for kind, inside in ((PartKind.ROOT, "/root.erofs"), (PartKind.VERITY, "/root.verity")):
        if kind in files:
            binds.append(read_only(files[kind], inside))
    seed = uuid5(NAMESPACE, layout.root_hash)
    repart.make_disk(room, Path("/step/disk.raw"), Path("/step/repart.d"), seed=seed, epoch=layout.epoch, binds=binds)
    shutil.rmtree(esp)
    shutil.rmtree(definitions)
    return work / "disk.raw"


def lay_out_esp(esp: Path, files: Mapping[PartKind, Path], manifest: Manifest) -> None:
    """The files of the EFI system partition, in a directory."""
    for name in ("EFI/BOOT", "EFI/systemd", "EFI/Linux", "EFI/obelisk", "loader/keys/auto"):
        (esp / name).mkdir(parents=True)
    shutil.copyfile(files[PartKind.LOADER], esp / "EFI/BOOT/BOOTX64.EFI")
    shutil.copyfile(files[PartKind.LOADER], esp / "EFI/systemd/systemd-bootx64.efi")
    shutil.copyfile(files[PartKind.UKI], esp / f"EFI/Linux/{manifest.label}.efi")
    (esp / "EFI/obelisk" / f"{manifest.label}.json").write_bytes(manifest.to_bytes())
    # Keys enrol by themselves only where the firmware is in setup mode, which somebody with access to it has to choose.
    (esp / "loader/loader.conf").write_text("timeout 0\nsecure-boot-enroll force\neditor no\n")
    for kind in (PartKind.ENROL_PK, PartKind.ENROL_KEK, PartKind.ENROL_DB):
        shutil.copyfile(files[kind], esp / "loader/keys/auto" / _ESP_PARTS[kind])
    for path in (esp, *esp.rglob("*")):  # FAT keeps their times
        os.utime(path, (manifest.epoch, manifest.epoch))
