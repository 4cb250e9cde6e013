"""`obelisk build`: from spec and lock to an image in the store."""

from collections.abc import Mapping
from pathlib import Path

from obelisk.build.disk import assemble_disk, disk_step
from obelisk.build.graph import Step, execute
from obelisk.build.keys import SigningKey
from obelisk.build.manifest import manifest_of, parts_of
from obelisk.build.provenance import provenance
from obelisk.build.sbom import sbom_step
from obelisk.build.seal import initrd_step, loader_step, root_step, uki_step
from obelisk.build.trees import base_step, configured_step, foundation_step, tools_step
from obelisk.events import Sink, task
from obelisk.model.lock import Lock
from obelisk.model.spec import Spec
from obelisk.store import Store, StoredImage
from obelisk.system.bubblewrap import Room, jobs
from obelisk.system.files import clone_or_copy


def plan(spec: Spec, lock: Lock, key: SigningKey, store: Store, sink: Sink) -> dict[str, Step]:
    """The steps that make the image of `spec`, by name, in an order in which each follows what it needs. Nothing runs yet."""
    tools = tools_step(lock.tools, store, sink, spec)
    foundation = foundation_step(spec, lock, tools, store, sink)
    base = base_step(spec, lock, foundation, tools, store, sink)
    configured = configured_step(spec, lock, foundation, base, tools)
    if spec.application is not None:
        steps = {step.name: step for step in (tools, foundation, base, sbom_step(spec, lock), configured)}
        return steps | {"root": root_step(spec, lock, steps)}
    beside = (initrd_step(foundation, tools), loader_step(key, tools), sbom_step(spec, lock))
    steps = {step.name: step for step in (tools, foundation, base, *beside, configured)}
    steps["root"] = root_step(spec, lock, steps)
    steps["uki"] = uki_step(spec, lock, key, steps)
    steps["disk"] = disk_step(spec, lock, key, steps)
    return steps


def build(spec: Spec, lock: Lock, key: SigningKey, store: Store, sink: Sink) -> StoredImage:
    """The image of `spec`: found where every step is done already, else built. A machine's disk is in the step `disk`.

    Raises:
        ObeliskError: a step failed; what was finished stays, and the next build goes on from there.
    """
    steps = plan(spec, lock, key, store, sink)
    outputs = execute(tuple(steps.values()), store, sink, jobs=jobs())
    return seal(spec, lock, key, outputs, store, sink, disk=steps["disk"].key if "disk" in steps else None)


def seal(  # noqa: PLR0913 - what identifies an image
    spec: Spec, lock: Lock, key: SigningKey, outputs: Mapping[str, Path], store: Store, sink: Sink, *, disk: str | None
) -> StoredImage:
    """Write the manifest over finished steps and keep the image in the store."""
    ref = str(spec.file.resolve())
    with task(sink, "image", "Image") as running:
        files = {file: outputs[step] / file for _, step, file in parts_of(spec, key)}
        disk_note = {} if disk is None else {"disk-step": disk.encode()}
        manifest = manifest_of(spec, lock, key, outputs)
        known = next((image for image in store.images() if image.id == manifest.id), None)
        if known is None:
            store.add_image(manifest, files, {"provenance.dsse.json": provenance(manifest, spec, lock, key), **disk_note})
            known = store.image(manifest.id)
        store.set_ref(ref, known.id)
        running.detail = known.id[:12]
    return known


def sibling(spec: Spec, lock: Lock, key: SigningKey, store: Store, sink: Sink, target: Path) -> Path:
    """Build the image of `spec` without keeping it: manifest and parts as links in the new directory `target`; returns its disk.

    For images that exist for a trial only: they get no name in the store.
    """
    steps = plan(spec, lock, key, store, sink)
    outputs = execute(tuple(steps.values()), store, sink, jobs=jobs())
    manifest = manifest_of(spec, lock, key, outputs)
    target.mkdir()
    (target / "manifest.json").write_bytes(manifest.to_bytes())
    for part, (_, step, file) in zip(manifest.parts, parts_of(spec, key), strict=True):
        clone_or_copy(outputs[step] / file, target / part.file)
    return outputs["disk"] / "disk.raw"


def disk_of(image: StoredImage, store: Store, room: Room, work: Path) -> Path:
    """The disk of an image, as it is shipped: the build's own where it is still there, else assembled again in `work`."""
    note = image.extra("disk-step")
    found = store.find_step(note.read_text()) if note is not None else None
    if found is not None:
        return found / "disk.raw"
    files = {part.kind: image.directory / part.file for part in image.manifest.parts}
    return assemble_disk(room, work, files, image.manifest)
