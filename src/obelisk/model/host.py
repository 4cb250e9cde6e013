"""What a host is made of: slots, boot entries, and how far an upgrade has come.

An upgrade is a list of phases. Its records are kept in a journal; `progress` folds them into the state in which the upgrade is now, and
`next_phase` says from that what is to be done. Both are pure: a host that was cut off anywhere asks them again and goes on.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from obelisk.model.canonical import Json

_ENTRY = re.compile(r"(?P<label>(?P<name>[a-z][a-z0-9-]*)_(?P<version>[0-9a-z.~-]+))(?:\+(?P<left>\d+)(?:-(?P<done>\d+))?)?\.efi")

EMPTY = "_empty"
PARTIAL = "PRT#"
"""Prefix of the partition label of a slot that is being written: nothing boots it. Source: systemd-sysupdate(8)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A UKI on the ESP. `left` None: it is blessed, or was never counted; 0: it has failed, and boots only when nothing else does.

    Source: UAPI.1 Boot Loader Specification, section "Boot counting".
    """

    name: str
    version: str
    left: int | None = None
    done: int = 0

    @classmethod
    def parse(cls, file: str) -> Self | None:
        """The entry of that file name; None for a file that is none of ours."""
        found = _ENTRY.fullmatch(file)
        if found is None:
            return None
        left = int(found["left"]) if found["left"] is not None else None
        return cls(found["name"], found["version"], left, int(found["done"] or 0))

    @property
    def label(self) -> str:
        """`name_version`."""
        return f"{self.name}_{self.version}"

    @property
    def file(self) -> str:
        """The file name."""
        counter = "" if self.left is None else f"+{self.left}" + (f"-{self.done}" if self.done else "")
        return f"{self.label}{counter}.efi"

    @property
    def failed(self) -> bool:
        """Its boots are used up."""
        return self.left == 0

    @property
    def counted(self) -> bool:
        """Its boots are counted: it has not proved itself yet. In the last of them, none is left."""
        return self.left is not None


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: its number on the disk, device, size, label and id."""

    number: int
    device: str
    size_bytes: int
    label: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one image: a root partition and its hash tree's."""

    letter: str
    root: Partition
    tree: Partition

    @property
    def label(self) -> str | None:
        """The image in it, `name_version`; None when it is empty or was left half written."""
        label = self.root.label
        return None if label == EMPTY or label.startswith(PARTIAL) else label


class Phase(StrEnum):
    """The phases of an upgrade, in their order. Each may be cut at any instant and done again. `REHEARSE` is for those that ask for it."""

    CHECK = "check"
    SPACE = "space"
    REHEARSE = "rehearse"
    STAGE = "stage"
    VERIFY = "verify"
    SNAPSHOT = "snapshot"
    INSTALL = "install"
    PENDING = "pending"


PHASES = tuple(Phase)


class Event(StrEnum):
    """What a record of the journal says."""

    BEGUN = "begun"  # an upgrade
    STARTED = "started"  # a phase of it
    DONE = "done"  # a phase of it
    STOPPED = "stopped"  # an upgrade, by an error: nothing was switched
    REHEARSED = "rehearsed"  # the image came up healthy on a copy of the state
    UNFIT = "unfit"  # it did not, and the upgrade ended there
    BOOTED = "booted"
    HEALTHY = "healthy"
    BLESSED = "blessed"
    UNHEALTHY = "unhealthy"
    FELL_BACK = "fell back"
    ROLLED_BACK = "rolled back"
    RESTORED = "restored"
    DAMAGED = "damaged"
    REPAIRED = "repaired"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a host's journal. `at` is this host's wall clock (RFC 3339, UTC), which may be wrong: the order of lines is the truth.

    `image` is the label that it is about, `image_id` the digest of the manifest, `boot` the kernel's boot id.
    """

    event: Event
    at: str
    boot: str
    image: str
    image_id: str = ""
    phase: Phase | None = None
    duration_ms: int | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Json]:
        """As it stands in the journal: what is not known is left out."""
        fields: dict[str, Json] = {"event": self.event.value, "at": self.at, "boot": self.boot, "image": self.image}
        if self.image_id:
            fields["image_id"] = self.image_id
        if self.phase is not None:
            fields["phase"] = self.phase.value
        if self.duration_ms is not None:
            fields["duration_ms"] = self.duration_ms
        if self.detail:
            fields["detail"] = self.detail
        return fields

    @classmethod
    def from_json(cls, raw: object) -> Self | None:
        """The record, or None for what is no record that this version knows."""
        if not isinstance(raw, dict):
            return None
        try:
            phase = raw.get("phase")
            return cls(
                Event(raw["event"]),
                str(raw["at"]),
                str(raw["boot"]),
                str(raw["image"]),
                str(raw.get("image_id", "")),
                Phase(phase) if phase is not None else None,
                int(raw["duration_ms"]) if "duration_ms" in raw else None,
                str(raw.get("detail", "")),
            )
        except (KeyError, ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Idle:
    """No upgrade is under way. `last` is the image of the last one that was."""

    last: str = ""


@dataclass(frozen=True, slots=True)
class Underway:
    """An upgrade to `image` was begun; `done` are the phases that are behind it, in order."""

    image: str
    image_id: str
    done: tuple[Phase, ...] = ()


@dataclass(frozen=True, slots=True)
class Pending:
    """`image` is in its slot and has its entry: the next boot is its trial."""

    image: str
    image_id: str
    boot: str
    """The boot in which it was installed."""


@dataclass(frozen=True, slots=True)
class Trying:
    """`image` has been booted and is not blessed yet. `boots` are the ids of its boots."""

    image: str
    image_id: str
    boots: tuple[str, ...]


Progress = Idle | Underway | Pending | Trying


def progress(records: Iterable[Record]) -> Progress:
    """The state that a journal leads to."""
    state: Progress = Idle()
    for record in records:
        state = advance(state, record)
    return state


def advance(state: Progress, record: Record) -> Progress:  # noqa: PLR0911 - a line of the table each
    """The state after one more record."""
    match record.event, state:
        case Event.BEGUN, _:
            return Underway(record.image, record.image_id)
        case Event.DONE, Underway(image, image_id, done) if record.image == image and record.phase is not None:
            if record.phase is Phase.PENDING:
                return Pending(image, image_id, record.boot)
            return Underway(image, image_id, (*(phase for phase in done if phase is not record.phase), record.phase))
        case Event.BOOTED, Pending(image, image_id, boot) if record.image == image and record.boot != boot:
            return Trying(image, image_id, (record.boot,))
        case Event.BOOTED, Trying(image, image_id, boots) if record.image == image and record.boot not in boots:
            return Trying(image, image_id, (*boots, record.boot))
        case ((Event.BLESSED | Event.FELL_BACK), (Pending(image=image) | Trying(image=image))) if record.image == image:
            return Idle(image)
        case Event.UNFIT, Underway(image=image) if record.image == image:
            return Idle(image)
        case Event.ROLLED_BACK, _:
            return Idle(record.image)
        case _:
            return state


def next_phase(state: Underway, *, rehearse: bool = False) -> Phase:
    """What an upgrade has to do next. Without `rehearse`, that phase is passed over."""
    return next(phase for phase in PHASES if phase not in state.done and (rehearse or phase is not Phase.REHEARSE))


def failed_images(records: Iterable[Record]) -> frozenset[str]:
    """Ids of the images that were tried on this host and fell back, and were not blessed since."""
    failed: set[str] = set()
    for record in records:
        if record.event is Event.FELL_BACK:
            failed.add(record.image_id)
        elif record.event is Event.BLESSED:
            failed.discard(record.image_id)
    return frozenset(failed - {""})


def unfit_images(records: Iterable[Record]) -> frozenset[str]:
    """Ids of the images whose last rehearsal on this host failed, and that were not blessed since."""
    unfit: set[str] = set()
    for record in records:
        if record.event is Event.UNFIT:
            unfit.add(record.image_id)
        elif record.event in {Event.REHEARSED, Event.BLESSED}:
            unfit.discard(record.image_id)
    return frozenset(unfit - {""})


def known_good(records: Iterable[Record]) -> frozenset[str]:
    """Labels of the images that have been healthy on this host, or came with its disk and have run."""
    return frozenset(record.image for record in records if record.event in {Event.HEALTHY, Event.BLESSED})
