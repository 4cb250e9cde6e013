"""`obelisk build`: from spec and lock to an image in the store."""

import json
from collections.abc import Mapping
from pathlib import Path

from obelisk import spec as specs
from obelisk.build import slots
from obelisk.build.graph import Step, execute
from obelisk.build.keys import SigningKey
from obelisk.build.provenance import provenance
from obelisk.build.sbom import sbom_step
from obelisk.build.seal import assemble_disk, command_line, disk_step, initrd_step, loader_step, root_step, uki_step
from obelisk.build.trees import base_step, configured_step, foundation_step, tools_step
from obelisk.events import Sink, task
from obelisk.model.image import ImagePackage, Manifest, Part, PartKind
from obelisk.model.lock import Lock
from obelisk.model.spec import Spec
from obelisk.store import Store, StoredImage
from obelisk.system.bubblewrap import Room, jobs
from obelisk.system.files import hash_file

ARCHITECTURE = "amd64"

_PARTS = (
    (PartKind.ROOT, "root", "root.erofs"),
    (PartKind.VERITY, "root", "root.verity"),
    (PartKind.UKI, "uki", "uki.efi"),
    (PartKind.LOADER, "loader", "systemd-bootx64.efi"),
    (PartKind.ENROL_PK, "loader", "PK.auth"),
    (PartKind.ENROL_KEK, "loader", "KEK.auth"),
    (PartKind.ENROL_DB, "loader", "db.auth"),
    (PartKind.SBOM_SPDX, "sbom", "sbom.spdx.json"),
    (PartKind.SBOM_CYCLONEDX, "sbom", "sbom.cdx.json"),
)


def plan(spec: Spec, lock: Lock, key: SigningKey, store: Store, sink: Sink) -> dict[str, Step]:
    """The steps that make the image of `spec`, by name, in an order in which each follows what it needs. Nothing runs yet."""
    tools = tools_step(lock.tools, store, sink, spec)
    foundation = foundation_step(spec, lock, tools, store, sink)
    base = base_step(spec, lock, foundation, tools, store, sink)
    configured = configured_step(spec, lock, foundation, base, tools)
    beside = (initrd_step(foundation, tools), loader_step(lock, key, tools), sbom_step(spec, lock))
    steps = {step.name: step for step in (tools, foundation, base, *beside, configured)}
    steps["root"] = root_step(spec, lock, steps)
    steps["uki"] = uki_step(spec, lock, key, steps)
    steps["disk"] = disk_step(spec, lock, key, steps)
    return steps


def build(spec: Spec, lock: Lock, key: SigningKey, store: Store, sink: Sink) -> StoredImage:
    """The image of `spec`: found where every step is done already, else built. Its disk is in the step `disk`.

    Raises:
        ObeliskError: a step failed; what was finished stays, and the next build goes on from there.
    """
    steps = plan(spec, lock, key, store, sink)
    outputs = execute(tuple(steps.values()), store, sink, jobs=jobs())
    return seal(spec, lock, key, outputs, store, sink, disk=steps["disk"].key)


def seal(  # noqa: PLR0913 - what identifies an image
    spec: Spec, lock: Lock, key: SigningKey, outputs: Mapping[str, Path], store: Store, sink: Sink, *, disk: str
) -> StoredImage:
    """Write the manifest over finished steps and keep the image in the store."""
    ref = str(spec.file.resolve())
    with task(sink, "image", "Image") as running:
        files = {file: outputs[step] / file for _, step, file in _PARTS}
        parts = tuple(_part(kind, outputs[step], file) for kind, step, file in _PARTS)
        manifest = _manifest(spec, lock, key, outputs, parts)
        known = next((image for image in store.images() if image.id == manifest.id), None)
        if known is None:
            store.add_image(manifest, files, {"provenance.dsse.json": provenance(manifest, spec, lock, key), "disk-step": disk.encode()})
            known = store.image(manifest.id)
        store.set_ref(ref, known.id)
        running.detail = known.id[:12]
    return known


def disk_of(image: StoredImage, store: Store, room: Room, work: Path) -> Path:
    """The disk of an image, as it is shipped: the build's own where it is still there, else assembled again in `work`."""
    note = image.extra("disk-step")
    found = store.find_step(note.read_text()) if note is not None else None
    if found is not None:
        return found / "disk.raw"
    files = {part.kind: image.directory / part.file for part in image.manifest.parts}
    return assemble_disk(room, work, files, slots.layout_of(image.manifest))


def _manifest(spec: Spec, lock: Lock, key: SigningKey, outputs: Mapping[str, Path], parts: tuple[Part, ...]) -> Manifest:
    base = json.loads((outputs["base"] / "result.json").read_text())
    configured = json.loads((outputs["configured"] / "result.json").read_text())
    root_hash = json.loads((outputs["root"] / "result.json").read_text())["root_hash"]
    root_bytes = slots.root_bytes(spec)
    return Manifest(
        name=spec.name,
        version=spec.version,
        distribution=str(spec.distribution),
        architecture=ARCHITECTURE,
        role=spec.role.value,
        epoch=lock.system.epoch,
        kernel=base["kernel"],
        cmdline=command_line(spec, root_hash),
        root_hash=root_hash,
        root_slot_bytes=root_bytes,
        verity_slot_bytes=slots.verity_bytes(root_bytes),
        secure_boot_certificate=key.certificate_sha256,
        test_key=key.test_key,
        spec_sha256=specs.digest_inputs(spec),
        lock_sha256=lock.sha256,
        tools_sha256=lock.tools.sha256,
        setuid=tuple(configured["setuid"]),
        parts=parts,
        packages=tuple(ImagePackage(p.name, p.version, p.architecture, p.sha256) for p in lock.system.packages),
    )


def _part(kind: PartKind, output: Path, file: str) -> Part:
    """The part with its digest, which is kept beside the step's output: hashing half a gigabyte once is enough."""
    path = output / file
    note = output / f"{file}.sha256"
    sha256 = note.read_text() if note.exists() else hash_file(path)
    return Part(kind, file, path.stat().st_size, sha256)
