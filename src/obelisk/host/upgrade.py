"""`obelisk host upgrade`: from an image's directory to an entry that the next boot tries, in phases.

Each phase is recorded before and after it, and may be cut at any instant: the running slot and its entry are never written, the other slot
has a label and ids that nothing boots until all of it was read back, and the last step is one rename on the ESP.
"""

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from obelisk.errors import ObeliskError, StateError
from obelisk.events import Sink, Task, task
from obelisk.host import admission, esp, firmware, journal, snapshots, staging
from obelisk.host.admission import Facts
from obelisk.host.here import Here
from obelisk.host.settle import end_rehearsal, note_fallen
from obelisk.host.source import Source
from obelisk.model.host import (
    PARTIAL,
    Entry,
    Event,
    Pending,
    Phase,
    Slot,
    Underway,
    failed_images,
    known_good,
    next_phase,
    progress,
    unfit_images,
)
from obelisk.model.image import Manifest, PartKind
from obelisk.model.partitions import partition_uuids, tree_label
from obelisk.model.state import Encryption
from obelisk.system import btrfs, efivars, sbverify, sfdisk
from obelisk.system.blocks import BLOCK_BYTES
from obelisk.system.filesystem import space

SPARE_STATE_BYTES = 64 << 20
"""Free on the state volume before an upgrade begins: for its records and for what a snapshot makes of changes."""

_TITLES = {
    Phase.CHECK: "Checking image and host",
    Phase.SPACE: "Checking free space",
    Phase.REHEARSE: "Rehearsing it over a copy of the state",
    Phase.STAGE: "Writing the blocks that differ",
    Phase.VERIFY: "Reading the whole slot back",
    Phase.SNAPSHOT: "Taking a snapshot of the state",
    Phase.INSTALL: "Making it bootable",
    Phase.PENDING: "Noting the switch",
}
_BY_BYTES = frozenset({Phase.STAGE, Phase.VERIFY})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an upgrade did. `written_bytes` of `image_bytes` had to be written; `changed`: there was something to do."""

    entry: Entry
    slot: str
    image_bytes: int
    written_bytes: int
    changed: bool = True


def gather(here: Here, entries: tuple[Entry, ...]) -> Facts:
    """What this host knows about itself."""
    records = journal.read(here.keep)
    slots = here.slots()
    return Facts(
        here.name,
        here.version,
        here.root_hash,
        slots,
        here.booted_slot(slots),
        entries,
        progress(records),
        failed_images(records),
        known_good(records) | {here.label},
        snapshots.version(here.state),
        unfit_images(records),
        Encryption.TPM2 if here.opened_by() else Encryption.NONE,
    )


def waiting(facts: Facts, manifest: Manifest) -> Entry | None:
    """The entry of an image that is installed already, and whose trial is the next boot."""
    if not isinstance(facts.progress, Pending) or facts.progress.image_id != manifest.id:
        return None
    return next((entry for entry in facts.entries if entry.label == manifest.label and entry.left), None)


@dataclass(frozen=True, slots=True)
class Wish:
    """How an upgrade is to go: of an image that failed here before (`retry`), after a rehearsal, with so many boots to prove itself."""

    retry: bool = False
    rehearse: bool = False
    tries: int = 3


def upgrade(here: Here, source: Source, sink: Sink, wish: Wish) -> Outcome:
    """Install an image beside the running one. The next boot tries it.

    Raises:
        InputError, StateError, TrustError: it must not be installed here, or not now; nothing was switched.
        MissingFeatureError: a rehearsal is wished for, and this host has none.
    """
    with here.alone():
        return _Upgrade(here, source, sink, wish).run()


class _Upgrade:
    """One attempt; holds what one phase finds out for the next."""

    def __init__(self, here: Here, source: Source, sink: Sink, wish: Wish) -> None:
        self.here = here
        self.source = source
        self.manifest = source.manifest
        self.sink = sink
        self.wish = wish
        self.entry = Entry(self.manifest.name, self.manifest.version, wish.tries)
        self.slot: Slot | None = None
        self.unread: list[range] = []
        self.written_bytes = 0

    def run(self) -> Outcome:
        """All phases that are left."""
        end_rehearsal(self.here)
        note_fallen(self.here)
        with self.here.esp() as place:
            facts = gather(self.here, esp.entries(place))
        image_bytes = self.manifest.part(PartKind.ROOT).size_bytes + self.manifest.part(PartKind.VERITY).size_bytes
        if self.manifest.root_hash == self.here.root_hash:
            return Outcome(Entry(self.here.name, self.here.version), facts.booted.letter, image_bytes, 0, changed=False)
        if (entry := waiting(facts, self.manifest)) is not None:
            return Outcome(entry, self._slot_of(facts).letter, image_bytes, 0, changed=False)
        if (reason := admission.refusal(facts, self.manifest, retry=self.wish.retry)) is not None:
            raise reason
        if self.wish.rehearse:
            _rehearsal().require_programs()
        self._note(Event.BEGUN, detail=f"from {self.here.label}")
        try:
            while isinstance(state := progress(journal.read(self.here.keep)), Underway):
                self._do(next_phase(state, rehearse=self.wish.rehearse))
        except ObeliskError as error:
            self._note(Event.STOPPED, detail=error.message)
            raise
        except OSError as error:  # a disk that fails, or somebody has filled it since `space`
            where = f": {error.filename}" if error.filename else ""
            message = f"the operating system refuses: {error.strerror or error}{where}"
            with suppress(OSError):
                self._note(Event.STOPPED, detail=message)
            raise StateError(
                message, code="host-failing", hint="nothing was switched; when that is mended, the next upgrade goes on from there"
            ) from error
        return Outcome(self.entry, self._slot.letter, image_bytes, self.written_bytes)

    def _do(self, phase: Phase) -> None:
        self._note(Event.STARTED, phase=phase)
        began = time.monotonic()
        with task(self.sink, f"upgrade/{phase}", _TITLES[phase], unit="B" if phase in _BY_BYTES else "") as running:
            match phase:
                case Phase.CHECK:
                    self.check()
                case Phase.SPACE:
                    self.space()
                case Phase.REHEARSE:
                    running.detail = _rehearsal().rehearse(self.here, self.source, self.sink)
                case Phase.STAGE:
                    self.stage(running)
                case Phase.VERIFY:
                    self.verify(running)
                case Phase.SNAPSHOT:
                    self.snapshot(running)
                case Phase.INSTALL:
                    self.install()
                case Phase.PENDING:
                    pass  # that it is recorded is all
        self._note(Event.DONE, phase=phase, duration_ms=round((time.monotonic() - began) * 1000))

    def _note(self, event: Event, *, phase: Phase | None = None, duration_ms: int | None = None, detail: str = "") -> None:
        self.here.note(event, self.manifest.label, image_id=self.manifest.id, phase=phase, duration_ms=duration_ms, detail=detail)

    @property
    def _slot(self) -> Slot:
        if self.slot is None:
            message = "the slot is chosen by the first phase"
            raise AssertionError(message)
        return self.slot

    def _slot_of(self, facts: Facts) -> Slot:
        return next((slot for slot in facts.slots if slot.label == self.manifest.label), facts.booted)

    # The phases

    def check(self) -> None:
        """The image may come to this host, and the firmware will start it."""
        with self.here.esp() as place:
            facts = gather(self.here, esp.entries(place))
        self.slot = admission.choose_slot(facts, self.manifest)
        if self.source.path(PartKind.UKI).exists():  # else it comes with the blocks
            self.require_signed()

    def require_signed(self) -> None:
        """The firmware will start the kernel image."""
        secure = efivars.secure_boot()
        signed = not secure or sbverify.is_signed_by(self.source.path(PartKind.UKI), efivars.trusted_certificates())
        admission.require_trusted(self.manifest, secure_boot=secure, signed=signed)

    def space(self) -> None:
        """Nothing that is to be written later runs out of room."""
        btrfs.reclaim(self.here.keep)
        free = space(self.here.keep).free_bytes
        if free < SPARE_STATE_BYTES:
            raise StateError(
                f"the state volume has {free >> 20} MiB free, an upgrade needs {SPARE_STATE_BYTES >> 20}",
                code="state-full",
                hint="make room: `obelisk host snapshot list`, `obelisk host drift`",
            )
        with self.here.esp() as place:
            esp.sweep(place)
            wanted = self.manifest.part(PartKind.UKI).size_bytes + self.manifest.part(PartKind.ROOT).size_bytes // 1000
            wanted += sum(self.manifest.part(kind).size_bytes for kind in firmware.wanted(place, self.manifest))
            retired = self._slot.label
            going = esp.find(place, retired) if retired else None
            freed = esp.path_of(place, going).stat().st_size if going else 0
            esp.require_room(place, wanted - freed)

    def stage(self, running: Task) -> None:
        """The slot holds the image's blocks, under a label that nothing boots."""
        slot = self._slot
        if slot.label is not None:
            with self.here.esp() as place:
                esp.remove(place, slot.label)
        for partition in (slot.root, slot.tree):
            sfdisk.set_label(self.here.disk, partition.number, PARTIAL + self.manifest.label)
            sfdisk.set_uuid(self.here.disk, partition.number, str(uuid.uuid4()))
        total = self.manifest.part(PartKind.ROOT).size_bytes
        self.written_bytes, self.unread = self.source.write(
            Path(slot.root.device), Path(slot.tree.device), on_bytes=running.counting(self.source.write_bytes)
        )
        running.detail = f"{self.written_bytes >> 20} of {total >> 20} MiB"

    def verify(self, running: Task) -> None:
        """Every block of the slot was read from the disk and is what the root hash promises."""
        slot = self._slot
        # What `stage` found to be right was read from the disk a moment ago.
        total = sum(len(run) for run in self.unread) * BLOCK_BYTES
        staging.check_image(Path(slot.root.device), Path(slot.tree.device), self.source, self.unread, on_bytes=running.counting(total))

    def snapshot(self, running: Task) -> None:
        """The state as the running image leaves it."""
        with self.here.top() as top:
            made = snapshots.create(
                top,
                f"before-{self.manifest.label}".replace("_", "-"),
                at=now(),
                image=self.here.label,
                reason=f"before the upgrade to {self.manifest.label}",
                automatic=True,
            )
        running.detail = made.directory

    def install(self) -> None:
        """The slot gets its ids, then its label, then the entry appears."""
        slot = self._slot
        self.require_signed()
        for partition, identity, label in (
            (slot.root, partition_uuids(self.manifest.root_hash)[0], self.manifest.label),
            (slot.tree, partition_uuids(self.manifest.root_hash)[1], tree_label(self.manifest.label)),
        ):
            sfdisk.set_uuid(self.here.disk, partition.number, str(identity))
            sfdisk.set_label(self.here.disk, partition.number, label)
        snapshots.cancel_restore(self.here.keep)
        with self.here.esp() as place:
            firmware.lay(place, self.manifest, self.source)
            uki = self.manifest.part(PartKind.UKI)
            esp.install(place, self.entry, self.source.path(PartKind.UKI), self.manifest, uki.sha256)


def _rehearsal() -> ModuleType:
    # What most upgrades, and the first steps of a boot, do without.
    from obelisk.host import rehearsal  # noqa: PLC0415

    return rehearsal


def now() -> str:
    """The wall clock, RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
