"""`obelisk host rollback`: the prior known-good image at the next boot, with or without the state that it left."""

from dataclasses import dataclass

from obelisk.errors import StateError, TrustError
from obelisk.events import Sink, task
from obelisk.host import esp, journal, snapshots
from obelisk.host.here import Here
from obelisk.host.inspection import check_slot
from obelisk.host.upgrade import now
from obelisk.model.host import Entry, Event, Slot, known_good
from obelisk.model.version import compare


@dataclass(frozen=True, slots=True)
class Way:
    """Where a rollback leads: the entry that boots next, its slot, and the snapshot that comes back with it."""

    entry: Entry
    slot: Slot
    snapshot: snapshots.Snapshot | None


def rollback(here: Here, sink: Sink, *, with_state: bool) -> Way:
    """Have the next boot start the prior known-good image; `with_state` also brings back the state as it was before it was left.

    The state that this replaces becomes a snapshot. Until the next boot nothing is lost and nothing has changed for programs that run.

    Raises:
        StateError: there is no image to go back to, or no snapshot.
        TrustError: the image to go back to is damaged.
    """
    with here.alone():
        with here.esp() as place:
            entries = esp.entries(place)
        slots = here.slots()
        way = _find_way(here, entries, slots, with_state=with_state)
        with task(sink, "rollback/verify", f"Reading {way.entry.label} before it is relied on") as running:
            with here.esp() as place:
                manifest = esp.manifest_of(place, way.entry.label)
                findings = check_slot(way.slot, way.entry, place, manifest, on_bytes=lambda _count: None)
            if findings:
                raise TrustError(
                    f"{way.entry.label} cannot be gone back to: {findings[0].what}",
                    code="fallback-damaged",
                    hint="repair it: `obelisk host verify --repair SOURCE`",
                )
            running.detail = f"slot {way.slot.letter}"
        snapshots.cancel_restore(here.keep)
        if way.snapshot is not None:
            with here.top() as top:
                about = f"the state of {here.label} that a rollback replaced"
                replaced = snapshots.replaced_state(top, at=now(), image=here.label, reason=about)
                snapshots.order_restore(top, here.keep, way.snapshot, image=way.entry.label, replaced=replaced)
        with here.esp() as place:
            # First the way back is free, then this one is closed: cut in between, the newer one boots as before.
            if way.entry.counted:
                esp.change(place, way.entry, Entry(way.entry.name, way.entry.version))
            for entry in esp.entries(place):
                if entry.label != way.entry.label and entry.left != 0 and compare(entry.version, way.entry.version) > 0:
                    esp.change(place, entry, Entry(entry.name, entry.version, 0))
        here.note(
            Event.ROLLED_BACK, here.label, detail=f"to {way.entry.label}" + (f" with {way.snapshot.directory}" if way.snapshot else "")
        )
    return way


def leave_damaged(here: Here, sink: Sink) -> str:
    """A block of the running image is damaged: have the next boot start the other one, where that is good and whole.

    Returns the label of the image that boots next; empty when there is nothing better than this one.
    """
    here.note(Event.DAMAGED, here.label, detail="a block of the running image was refused when it was read")
    try:
        return rollback(here, sink, with_state=False).entry.label
    except (StateError, TrustError):
        return ""


def _find_way(here: Here, entries: tuple[Entry, ...], slots: tuple[Slot, ...], *, with_state: bool) -> Way:
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
    if not with_state:
        return Way(entry, slot, None)
    with here.top() as top:
        left = [each for each in snapshots.snapshots(top) if each.image == entry.label]
    if not left:
        raise StateError(
            f"there is no snapshot of the state as {entry.label} left it",
            code="snapshot-missing",
            hint="go back without it: `obelisk host rollback`; or name one: `obelisk host snapshot list`",
        )
    return Way(entry, slot, left[-1])
