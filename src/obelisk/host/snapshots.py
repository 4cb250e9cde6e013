"""Snapshots of the state volume: read-only subvolumes with a note of when, why and by which image they were taken.

    snapshots/<number>-<name>/about.json, snapshots/<number>-<name>/tree     one snapshot
    snapshots/.migrated/tree                                                a copy of the state that is being migrated
    snapshots/.rehearsed/tree                                               the state of one moment, while a rehearsal copies it
    host/restore                                                            what the next boot puts in the place of `live`

A restore is prepared here and done by the next boot, before anything uses the state (see `start`). The file `restore` holds one line:
IMAGE SNAPSHOT REPLACED — the label of the image whose boot shall do it (`-`: any), the snapshot, and the snapshot that the state which
it replaces becomes (`-`: that is deleted). A migrated copy goes when it was restored, or when the boot is another image's.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import InputError
from obelisk.model.canonical import canonical
from obelisk.model.state import FIRST
from obelisk.system import btrfs
from obelisk.system.files import sync_directory, write_durably

PLACE = "snapshots"
LIVE = "live"
RESTORE = "restore"
MIGRATED = ".migrated"
_REHEARSED = ".rehearsed"
_VERSION = "version"
_NAME = re.compile(r"(\d{4,})-([a-z0-9][a-z0-9._-]{0,63})")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot. `image` ran when it was taken; `automatic` ones are taken before upgrades and go by the retention rule."""

    number: int
    name: str
    at: str
    image: str
    reason: str
    automatic: bool

    @property
    def directory(self) -> str:
        """Its name on the volume."""
        return f"{self.number:04}-{self.name}"


def snapshots(top: Path) -> tuple[Snapshot, ...]:
    """All complete snapshots, oldest first."""
    found = []
    for path in (top / PLACE).glob("*-*"):
        match = _NAME.fullmatch(path.name)
        if match is None or not btrfs.is_subvolume(path / "tree"):
            continue
        try:
            about = json.loads((path / "about.json").read_bytes())
            found.append(Snapshot(int(match[1]), match[2], about["at"], about["image"], about["reason"], bool(about["automatic"])))
        except (OSError, ValueError, KeyError):
            continue
    return tuple(sorted(found, key=lambda each: each.number))


def create(top: Path, name: str, *, at: str, image: str, reason: str, automatic: bool) -> Snapshot:
    """Take a snapshot of the state as it is now. It is there whole, or not at all.

    Raises:
        InputError: the name is malformed.
    """
    made = Snapshot(next_number(top), name, at, image, reason, automatic)
    if _NAME.fullmatch(made.directory) is None:
        raise InputError(f"{name!r} is no name for a snapshot", code="snapshot-name", hint="small letters, digits, dots and hyphens")
    draft = top / PLACE / f".{made.directory}.new"
    _clear(draft)
    draft.mkdir(parents=True)
    write_durably(draft / "about.json", _about(made))
    btrfs.snapshot(top / LIVE, draft / "tree", read_only=True)
    draft.rename(top / PLACE / made.directory)
    btrfs.sync(top)
    return made


def tree(top: Path, snapshot: Snapshot) -> Path:
    """Where the state is that a snapshot holds."""
    return top / PLACE / snapshot.directory / "tree"


def version(tree: Path) -> int:
    """The version of the state in `tree`."""
    try:
        return int((tree / _VERSION).read_text())
    except FileNotFoundError:
        return FIRST


def set_version(tree: Path, number: int) -> None:
    """Note the version of the state in `tree`."""
    write_durably(tree / _VERSION, f"{number}\n".encode())


def begin_migrated(top: Path, source: Path) -> Path:
    """A copy of the state in `source` to run migrations in, in the place of any that there was."""
    place = top / PLACE / MIGRATED
    _clear(place)
    place.mkdir(parents=True)
    btrfs.snapshot(source, place / "tree", read_only=False)
    return place / "tree"


def discard_migrated(top: Path) -> None:
    """Remove what `begin_migrated` made. May be repeated."""
    _clear(top / PLACE / MIGRATED)


def begin_rehearsed(top: Path) -> Path:
    """The state as it is now, to be copied, in the place of any that there was."""
    place = top / PLACE / _REHEARSED
    _clear(place)
    place.mkdir(parents=True)
    btrfs.snapshot(top / LIVE, place / "tree", read_only=True)
    return place / "tree"


def discard_rehearsed(top: Path) -> None:
    """Remove what `begin_rehearsed` made. May be repeated."""
    _clear(top / PLACE / _REHEARSED)


def replaced_state(top: Path, *, at: str, image: str, reason: str, automatic: bool = True) -> Snapshot:
    """What the state that `image` left becomes when another takes its place."""
    return Snapshot(next_number(top), f"replaced-{image}".replace("_", "-"), at, image, reason, automatic)


def find(top: Path, name: str) -> Snapshot:
    """The snapshot of that number, name or both; of several of one name, the newest.

    Raises:
        InputError: there is none.
    """
    known = snapshots(top)
    for each in reversed(known):
        if name in {each.directory, each.name, str(each.number), f"{each.number:04}"}:
            return each
    names = ", ".join(each.directory for each in known) or "there are none"
    raise InputError(f"there is no snapshot {name!r}", code="snapshot-unknown", hint=f"snapshots: {names}")


def make_fresh(top: Path, *, at: str, image: str) -> tuple[Snapshot, Path]:
    """A snapshot that is still empty and can be written, and where its tree is: what a reset puts in the place of the state."""
    fresh = Snapshot(next_number(top), "fresh", at, image, "made by a reset", automatic=True)
    place = top / PLACE / fresh.directory
    place.mkdir(parents=True)
    btrfs.create(place / "tree")
    set_version(place / "tree", version(top / LIVE))
    write_durably(place / "about.json", _about(fresh))
    return fresh, place / "tree"


def delete(top: Path, snapshot: Snapshot) -> None:
    """Remove a snapshot. May be repeated."""
    _clear(top / PLACE / snapshot.directory)


def prune(top: Path, keep: int) -> tuple[Snapshot, ...]:
    """Remove all automatic snapshots but the newest `keep`, and what was left of snapshots that were cut; return those removed."""
    for draft in (top / PLACE).glob(".*.new"):
        _clear(draft)
    automatic = [each for each in snapshots(top) if each.automatic]
    gone = tuple(automatic[: max(len(automatic) - keep, 0)])
    for each in gone:
        delete(top, each)
    return gone


def next_number(top: Path) -> int:
    """A number that no snapshot has had so far, as long as the newest one is kept."""
    numbers = [int(match[1]) for path in (top / PLACE).glob("*") if (match := _NAME.fullmatch(path.name.lstrip(".").removesuffix(".new")))]
    return max(numbers, default=0) + 1


def order_restore(top: Path, keep: Path, directory: str, *, image: str | None, replaced: Snapshot) -> None:
    """Have the next boot (of `image`, if given) put the tree of that directory in the place of the state, which becomes `replaced`.

    Nothing happens by this alone, and `cancel_restore` undoes it. `replaced.number` is to be `next_number`.
    """
    place = top / PLACE / replaced.directory
    place.mkdir(parents=True, exist_ok=True)  # without a tree in it, it is no snapshot yet
    write_durably(place / "about.json", _about(replaced))
    _order(keep, directory, image or "-", replaced.directory)


def order_reset(keep: Path, fresh: Snapshot) -> None:
    """Have the next boot put `fresh` in the place of the state, which is deleted."""
    _order(keep, fresh.directory, "-", "-")


def _order(keep: Path, directory: str, image: str, replaced: str) -> None:
    write_durably(keep / RESTORE, f"{image} {directory} {replaced}\n".encode())


def _about(snapshot: Snapshot) -> bytes:
    return canonical({"at": snapshot.at, "image": snapshot.image, "reason": snapshot.reason, "automatic": snapshot.automatic})


def cancel_restore(keep: Path) -> None:
    """Forget an order that no boot has carried out."""
    (keep / RESTORE).unlink(missing_ok=True)
    sync_directory(keep)


def _clear(directory: Path) -> None:
    if btrfs.is_subvolume(directory / "tree"):
        btrfs.delete(directory / "tree")
    for file in directory.glob("*"):
        file.unlink()
    if directory.exists():
        directory.rmdir()
