"""`obelisk host status`: what runs here, what it would fall back to, and how it is."""

import json
from dataclasses import dataclass
from pathlib import Path

from obelisk.host import encryption, esp, journal, snapshots, subscription
from obelisk.host.encryption import Keys
from obelisk.host.here import Here
from obelisk.model.canonical import Json
from obelisk.model.host import (
    Entry,
    Event,
    Idle,
    Pending,
    Record,
    Slot,
    Trying,
    Underway,
    failed_images,
    known_good,
    progress,
    unfit_images,
)
from obelisk.system.efivars import secure_boot
from obelisk.system.filesystem import space


@dataclass(frozen=True, slots=True)
class Followed:
    """A channel as it was last seen: its newest version, and when that was; empty: never. `withdrawn` says why what runs was, if it was."""

    channel: str
    newest: str = ""
    at: str = ""
    withdrawn: str = ""

    def __str__(self) -> str:
        if not self.at:
            return f"{self.channel}, which was never asked: `obelisk host upgrade --check`"
        return f"{self.channel}, at {self.newest or 'nothing'} as of {self.at}"

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"name": self.channel, "newest": self.newest or None, "at": self.at or None, "withdrawn": self.withdrawn or None}


@dataclass(frozen=True, slots=True)
class Status:
    """All that `status` shows. `health` is `healthy`, `unhealthy` or `starting`; `failing` names the checks that failed.

    `brought` are the endings of what the image brings to firmware and loader, and what waits yet.
    `state_keys` None: the state is not encrypted. `followed` None: the image follows no channel.
    """

    here: Here
    image_id: str
    slots: tuple[Slot, ...]
    entries: tuple[Entry, ...]
    booted: str
    fallback: str
    health: str
    failing: tuple[str, ...]
    on_trial: bool
    secure_boot: bool
    brought: tuple[str, ...]
    state_free_bytes: int
    state_total_bytes: int
    state_version: int
    state_keys: Keys | None
    upgrade: str
    last: Record | None
    followed: Followed | None = None

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        entries = {entry.label: entry for entry in self.entries}
        return {
            "name": self.here.name,
            "version": self.here.version,
            "image": self.image_id,
            "root_hash": self.here.root_hash,
            "booted": self.booted,
            "fallback": self.fallback,
            "health": self.health,
            "failing": list(self.failing),
            "on_trial": self.on_trial,
            "secure_boot": self.secure_boot,
            "firmware_waits": list(self.brought),
            "upgrade": self.upgrade,
            "channel": self.followed.to_json() if self.followed else None,
            "state": {
                "free": self.state_free_bytes,
                "total": self.state_total_bytes,
                "version": self.state_version,
                "encryption": self.state_keys.to_json() if self.state_keys else None,
            },
            "slots": [
                {
                    "slot": slot.letter,
                    "holds": slot.label,
                    "entry": entries[slot.label].file if slot.label in entries else None,
                    "size": slot.root.size_bytes,
                }
                for slot in self.slots
            ],
        }


def status(here: Here) -> Status:
    """The status of this host."""
    records = journal.read(here.keep)
    slots = here.slots()
    with here.esp() as place:
        entries = esp.entries(place)
        manifest = esp.manifest_of(place, here.label)
        brought = esp.brought(place, here.label)
    good, bad = known_good(records), failed_images(records) | unfit_images(records)
    mine = next((entry for entry in entries if entry.label == here.label), None)
    others = [slot.label for slot in slots if slot.label and slot.label != here.label and slot.label in good]
    health, failing = _health(here.run)
    room = space(here.keep)
    return Status(
        here,
        manifest.id if manifest else "",
        slots,
        entries,
        here.booted_slot(slots).letter,
        next((label for label in others if any(entry.label == label for entry in entries)), ""),
        health,
        failing,
        mine is not None and mine.counted,
        secure_boot(),
        brought,
        room.free_bytes,
        room.total_bytes,
        snapshots.version(here.state),
        encryption.keys(here),
        _upgrade(records, bad),
        next((record for record in reversed(records) if record.event in {Event.BLESSED, Event.FELL_BACK, Event.ROLLED_BACK}), None),
        followed(here),
    )


def followed(here: Here, place: Path = subscription.PLACE) -> Followed | None:
    """What this host follows, and what it last heard of it. Asks no network."""
    sealed = subscription.read(place)
    if not here.trust.exists():
        return Followed(sealed.channel) if sealed else None
    from obelisk.release.client import seen  # noqa: PLC0415 - what hosts that follow nothing do without

    found = seen.last(here.trust)
    if found is None:
        return Followed(sealed.channel) if sealed else None
    channel, at = found
    mine = next((listing for listing in channel.listings if listing.version == here.version), None)
    return Followed(channel.channel, channel.current.version if channel.current else "", at, mine.withdrawn if mine else "")


def _upgrade(records: tuple[Record, ...], failed: frozenset[str]) -> str:
    match progress(records):
        case Idle():
            return f"{len(failed)} image{'s' if len(failed) > 1 else ''} refused, because of failures here" if failed else "none"
        case Underway(image, _, done):
            return f"{image} is not complete: {len(done)} phases done"
        case Pending(image):
            return f"{image} is installed and starts at the next boot"
        case Trying(image):
            return f"{image} is on trial"


def _health(run: Path) -> tuple[str, tuple[str, ...]]:
    try:
        checks = json.loads((run / "health.json").read_bytes())
        failing = tuple(str(check["name"]) for check in checks if not check["ok"])
    except (OSError, ValueError, KeyError, TypeError):
        return "starting", ()
    return ("unhealthy" if failing else "healthy"), failing
