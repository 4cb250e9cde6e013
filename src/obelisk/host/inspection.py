"""`obelisk host verify`: every block of the slots against its hash tree, every UKI against its manifest, every entry against its slot."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import InputError, TrustError
from obelisk.events import Sink, task
from obelisk.host import esp, journal, staging
from obelisk.host.here import Here
from obelisk.host.source import Source
from obelisk.model import uki
from obelisk.model.host import Entry, Event, Slot, known_good
from obelisk.model.image import Manifest, PartKind
from obelisk.release.client import hashtree
from obelisk.system.blocks import BLOCK_BYTES, BlockDevice
from obelisk.system.files import hash_file


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be. `image` is the label of the image it belongs to; empty for what belongs to none."""

    image: str
    what: str
    blocks: int = 0


def check_slot(
    slot: Slot, entry: Entry | None, place: Path, manifest: Manifest | None, *, on_bytes: Callable[[int], None]
) -> tuple[Finding, ...]:
    """What is wrong with the image in a slot: its UKI, its hash tree, its blocks."""
    label = slot.label or ""
    if entry is None:
        return (Finding(label, f"slot {slot.letter} holds {label}, and no entry on the ESP starts it"),)
    program = esp.path_of(place, entry)
    findings = []
    if manifest is None:
        findings.append(Finding(label, "its manifest is missing from the ESP, or damaged"))
    elif hash_file(program) != manifest.part(PartKind.UKI).sha256:
        findings.append(Finding(label, f"its kernel image {entry.file} is not what its manifest says"))
    try:
        root_hash = manifest.root_hash if manifest else uki.root_hash(program.read_bytes())
        blocks = (manifest.part(PartKind.ROOT).size_bytes if manifest else slot.root.size_bytes) // BLOCK_BYTES
        with BlockDevice(Path(slot.tree.device)) as device:
            tree = staging.read_tree(device, blocks, root_hash)
    except TrustError as error:
        return (*findings, Finding(label, error.message))
    if slot.root.uuid.replace("-", "") != root_hash[:32]:
        findings.append(Finding(label, f"slot {slot.letter} does not have the id that its kernel image looks for"))
    with BlockDevice(Path(slot.root.device)) as device:
        wrong = hashtree.find_wrong(device, tree, on_bytes=on_bytes)
    if wrong:
        count = sum(len(run) for run in wrong)
        findings.append(Finding(label, f"{count} of {tree.data_blocks} blocks are damaged, the first at {wrong[0].start}", count))
    return tuple(findings)


def verify(here: Here, sink: Sink) -> tuple[Finding, ...]:
    """Everything on the disk that a boot relies on; what is wrong with it is noted in the journal, too."""
    findings: list[Finding] = []
    with here.esp() as place:
        entries = {entry.label: entry for entry in esp.entries(place)}
        slots = here.slots()
        for slot in slots:
            if slot.label is None:
                continue
            manifest = esp.manifest_of(place, slot.label)
            total = manifest.part(PartKind.ROOT).size_bytes if manifest else slot.root.size_bytes
            with task(sink, f"verify/{slot.letter}", f"Reading slot {slot.letter}, {slot.label}", total=total, unit="B") as running:
                read = [0]

                def on_bytes(count: int, read: list[int] = read, running=running) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
                    read[0] += count
                    running.progress(read[0])

                found = check_slot(slot, entries.get(slot.label), place, manifest, on_bytes=on_bytes)
                running.detail = "sound" if not found else f"{len(found)} findings"
            findings += found
        held = {slot.label for slot in slots}
        findings += [
            Finding(label, f"the entry {entry.file} starts no slot of this disk") for label, entry in entries.items() if label not in held
        ]
        findings += [Finding("", f"{path} on the ESP belongs to no image") for path in esp.strangers(place)]
    for finding in findings:
        if finding.blocks:
            here.note(Event.DAMAGED, finding.image, detail=finding.what)
    return tuple(findings)


def repair(here: Here, source: Source, sink: Sink) -> int:
    """Write an image's slot, UKI and manifest again from their source, where they are not what they must be; return the bytes written.

    Blocks of the running slot are written too: a block is written only where it is damaged, and only to be what the running system
    expects.

    Raises:
        InputError: the source is of no image on this disk.
        TrustError: the source itself is damaged.
    """
    manifest = source.manifest
    with here.alone():
        slot = next((slot for slot in here.slots() if slot.label == manifest.label), None)
        if slot is None or slot.root.uuid.replace("-", "") != manifest.root_hash[:32]:
            known = ", ".join(slot.label for slot in here.slots() if slot.label) or "none"
            raise InputError(f"{manifest.label} is in no slot here", code="source-other", hint=f"images on this disk: {known}")
        with task(sink, "repair", f"Repairing {manifest.label} in slot {slot.letter}") as running:
            root, tree = Path(slot.root.device), Path(slot.tree.device)
            written, wrong = source.write(root, tree, on_bytes=lambda _count: None)
            staging.check_image(root, tree, source, wrong, on_bytes=lambda _count: None)
            with here.esp() as place:
                entry = esp.find(place, manifest.label)
                part = manifest.part(PartKind.UKI)
                known_to_esp = esp.manifest_of(place, manifest.label)
                if entry is None or known_to_esp != manifest or hash_file(esp.path_of(place, entry)) != part.sha256:
                    # Without its entry, only an image that was healthy here gets one that is not counted.
                    fresh = entry or Entry(
                        manifest.name, manifest.version, None if manifest.label in known_good(journal.read(here.keep)) else 1
                    )
                    esp.install(place, fresh, source.path(PartKind.UKI), manifest, part.sha256)
                    written += part.size_bytes
            running.detail = f"{written} bytes written"
        if written:
            here.note(Event.REPAIRED, manifest.label, image_id=manifest.id, detail=f"{written} bytes written")
    return written
