"""`obelisk host rollback`: the prior known-good image at the next boot, with the state that it left or with the present one."""

from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.events import Sink, task
from obelisk.host import esp, journal, migration, snapshots
from obelisk.host.here import Here
from obelisk.host.inspection import check_slot
from obelisk.host.settings import Settings
from obelisk.host.settle import end_rehearsal
from obelisk.host.upgrade import now
from obelisk.model.host import Entry, Event, Slot, known_good
from obelisk.model.state import FIRST
from obelisk.model.version import compare


@dataclass(frozen=True, slots=True)
class Way:
    """Where a rollback leads: the entry that boots next, and what comes with it: a snapshot, or state with migrations taken back."""

    entry: Entry
    snapshot: snapshots.Snapshot | None
    steps: tuple[int, ...]


def rollback(here: Here, settings: Settings, sink: Sink, *, with_state: bool) -> Way:
    """Have the next boot start the prior known-good image; `with_state` also brings back the state as it was before it was left.

    Otherwise the present state goes with it, without what later migrations made of it. The state that is replaced becomes a snapshot.
    Until the next boot nothing is lost and nothing has changed for programs that run; what they write until then is in that snapshot.

    Raises:
        StateError: there is no image to go back to, or no snapshot, or no way back from a migration.
        TrustError: the image to go back to is damaged.
    """
    with here.alone():
        end_rehearsal(here)
        with here.esp() as place:
            entries = esp.entries(place)
        slots = here.slots()
        entry, slot = _find_image(here, entries, slots)
        with task(sink, "rollback/verify", f"Reading {entry.label} before it is relied on") as running:
            with here.esp() as place:
                manifest = esp.manifest_of(place, entry.label)
                findings = check_slot(slot, entry, place, manifest, on_bytes=lambda _count: None)
            if findings:
                raise TrustError(
                    f"{entry.label} cannot be gone back to: {findings[0].what}",
                    code="fallback-damaged",
                    hint="repair it: `obelisk host verify --repair SOURCE`",
                )
            running.detail = f"slot {slot.letter}"
        with here.top() as top:
            version = manifest.state_version if manifest else FIRST
            if with_state:
                way = Way(entry, _find_snapshot(top, entry, version), ())
            else:
                way = Way(entry, None, migration.steps_back(top, version))
            snapshots.cancel_restore(here.keep)
            if way.steps:
                migration.take_back(top, way.steps, settings)
            directory = way.snapshot.directory if way.snapshot else snapshots.MIGRATED if way.steps else ""
            if directory:
                about = f"the state of {here.label} that a rollback replaced"
                replaced = snapshots.replaced_state(top, at=now(), image=here.label, reason=about)
                snapshots.order_restore(top, here.keep, directory, image=entry.label, replaced=replaced)
        with here.esp() as place:
            # First the way back is free, then this one is closed: cut in between, the newer one boots as before.
            if entry.counted:
                esp.change(place, entry, Entry(entry.name, entry.version))
            for other in esp.entries(place):
                if other.label != entry.label and other.left != 0 and compare(other.version, entry.version) > 0:
                    esp.change(place, other, Entry(other.name, other.version, 0))
        here.note(Event.ROLLED_BACK, here.label, detail=f"to {entry.label}" + (f" with {directory.lstrip('.')} state" if directory else ""))
    return way


def leave_damaged(here: Here, settings: Settings, sink: Sink) -> str:
    """A block of the running image is damaged: have the next boot start the other one, where that is good and whole.

    Returns the label of the image that boots next; empty when there is nothing better than this one.
    """
    here.note(Event.DAMAGED, here.label, detail="a block of the running image was refused when it was read")
    try:
        return rollback(here, settings, sink, with_state=False).entry.label
    except (StateError, TrustError):
        return ""


def _find_image(here: Here, entries: tuple[Entry, ...], slots: tuple[Slot, ...]) -> tuple[Entry, Slot]:
    good = known_good(journal.read(here.keep))
    ways = [
        (entry, slot)
        for entry in entries
        for slot in slots
        if slot.label == entry.label and entry.label != here.label and entry.label in good
    ]
    if not ways:
        raise StateError(
            "there is no other image here that was ever healthy",
            code="no-fallback",
            hint="`obelisk host status` shows what is in the slots",
        )
    entry, slot = ways[0]
    for other in ways[1:]:
        if compare(other[0].version, entry.version) > 0:
            entry, slot = other
    return entry, slot


def _find_snapshot(top: Path, entry: Entry, version: int) -> snapshots.Snapshot:
    """The newest of what that image left."""
    left = [
        each for each in snapshots.snapshots(top) if each.image == entry.label and snapshots.version(snapshots.tree(top, each)) <= version
    ]
    if not left:
        raise StateError(
            f"there is no snapshot of the state as {entry.label} left it",
            code="snapshot-missing",
            hint="go back without it: `obelisk host rollback`; or name one: `obelisk host snapshot list`",
        )
    return left[-1]
