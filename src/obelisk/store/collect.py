"""Garbage collection: decides what nothing needs any more (`plan`, pure), measures what that frees, and removes it.

Kept are: the last images of each ref with their proofs and blobs; the steps and blobs that the last build of each ref used, and those
that the kept steps were made from; steps and blobs that were used lately. A blob that was only ever part of removed images goes with
them. A kill in the middle leaves a store that is sound: names go before what they name.
"""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from obelisk.errors import InputError
from obelisk.events import Sink, task
from obelisk.store.faults import storage_faults
from obelisk.store.images import Images
from obelisk.store.layout import is_digest
from obelisk.store.refs import Ref, Refs
from obelisk.store.session import Session, discard, sweep
from obelisk.store.steps import Steps, Uses, problem, uses_of

_DAY_S = 86400
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own is
KEEP_DAYS = 14


@dataclass(frozen=True, slots=True)
class StepFacts:
    """A finished step: when it was last used, what it was made from, whether it can still be trusted."""

    used_at: float
    uses: Uses = field(default_factory=Uses)
    sound: bool = True


@dataclass(frozen=True, slots=True)
class AliasFacts:
    """Another name of the step `target`."""

    target: str
    used_at: float


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is in a store: images with the blobs of their parts, blobs with the time of their last use."""

    refs: tuple[Ref, ...]
    images: Mapping[str, frozenset[str]]
    proofs: frozenset[str]
    steps: Mapping[str, StepFacts]
    aliases: Mapping[str, AliasFacts]
    blobs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to remove, each in order."""

    images: tuple[str, ...]
    proofs: tuple[str, ...]
    aliases: tuple[str, ...]
    steps: tuple[str, ...]
    blobs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Freed:
    """How many things of one category were removed, and the bytes that this gave back: a file with several names counts once."""

    count: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, or would remove. `damaged` is what `verify` had moved away."""

    images: Freed
    proofs: Freed
    steps: Freed
    blobs: Freed
    damaged: Freed

    @property
    def size_bytes(self) -> int:
        """All the bytes given back."""
        return sum(freed.size_bytes for freed in (self.images, self.proofs, self.steps, self.blobs, self.damaged))


def plan(found: Inventory, *, used_since: float, keep_images: int) -> Plan:
    """Decide what to remove. `used_since` infinite: keep no step and no blob for later builds."""
    images = {i for ref in found.refs for i in [i for i in ref.images if i in found.images][:keep_images]}
    uses = Uses() if used_since == inf else _closure(found)
    steps = {key for key, facts in found.steps.items() if facts.sound and (key in uses.steps or facts.used_at >= used_since)}
    aliases = {key for key, facts in found.aliases.items() if facts.target in steps and (key in uses.steps or facts.used_at >= used_since)}
    parts = frozenset().union(*(found.images[i] for i in images))
    orphans = frozenset().union(*(blobs for i, blobs in found.images.items() if i not in images)) - parts
    blobs = {sha for sha, used_at in found.blobs.items() if sha in parts | uses.blobs or (used_at >= used_since and sha not in orphans)}
    return Plan(
        images=tuple(sorted(found.images.keys() - images)),
        proofs=tuple(sorted(found.proofs - images)),
        aliases=tuple(sorted(found.aliases.keys() - aliases)),
        steps=tuple(sorted(found.steps.keys() - steps)),
        blobs=tuple(sorted(found.blobs.keys() - blobs)),
    )


def _closure(found: Inventory) -> Uses:
    """Everything that the last builds of all refs rest on."""
    steps: set[str] = set()
    blobs: set[str] = set()
    open_steps: set[str] = set()
    for ref in found.refs:
        open_steps |= ref.uses.steps
        blobs |= ref.uses.blobs
    while open_steps:
        key = open_steps.pop()
        steps.add(key)
        if key in found.aliases:
            open_steps |= {found.aliases[key].target} - steps
        elif key in found.steps:
            open_steps |= found.steps[key].uses.steps - steps
            blobs |= found.steps[key].uses.blobs
    return Uses(frozenset(steps), frozenset(blobs))


class Collector:
    """Collects garbage in one store."""

    def __init__(self, session: Session, steps: Steps, images: Images, refs: Refs) -> None:
        self._session = session
        self._layout = session.layout
        self._steps = steps
        self._images = images
        self._refs = refs

    def run(self, *, now: float, keep_days: int | None, keep_images: int, everything: bool, dry_run: bool, sink: Sink) -> Collected:
        """See `Store.collect`."""
        if keep_images < 1:
            raise InputError("a ref keeps at least one image", code="keep-images", hint="remove a ref whose images are not needed")
        used_since = inf if everything else now - (KEEP_DAYS if keep_days is None else keep_days) * _DAY_S
        with storage_faults(self._layout.root):
            if dry_run:
                self._session.hold()
                return self._measure(plan(self._inventory(), used_since=used_since, keep_images=keep_images), self._old_damage(used_since))
            with self._session.exclusive(), task(sink, "gc", "removing what nothing needs any more") as running:
                sweep(self._layout)
                for lock in self._layout.locks.iterdir():
                    lock.unlink()
                chosen = plan(self._inventory(), used_since=used_since, keep_images=keep_images)
                damage = self._old_damage(used_since)
                collected = self._measure(chosen, damage)
                self._remove(chosen, damage, running.progress)
                running.detail = f"{collected.size_bytes / (1 << 20):,.0f} MiB freed"
            return collected

    def _inventory(self) -> Inventory:
        # A damaged manifest or ref ends the collection here: what it needs is not known.
        images = {i: frozenset(part.sha256 for part in self._images.read(i).manifest.parts) for i in self._images.ids()}
        return Inventory(
            refs=self._refs.all(),
            images=images,
            proofs=frozenset(path.name for path in self._layout.proofs.iterdir()),
            steps={path.name: _facts(path) for path in self._steps.containers()},
            aliases={path.name: AliasFacts(path.readlink().name, path.lstat().st_mtime) for path in self._steps.aliases()},
            blobs={path.name: path.stat().st_mtime for path in self._layout.blobs.glob("??/*") if is_digest(path.name)},
        )

    def _old_damage(self, used_since: float) -> tuple[Path, ...]:
        return tuple(path for path in sorted(self._layout.damaged.iterdir()) if path.lstat().st_ctime < used_since)

    def _measure(self, chosen: Plan, damage: tuple[Path, ...]) -> Collected:
        ledger = _Ledger()
        paths: dict[str, list[Path]] = {
            "images": [self._layout.image(name) for name in chosen.images],
            "proofs": [self._layout.proofs / name for name in chosen.proofs],
            "steps": [self._layout.step(name) for name in chosen.steps],
            "blobs": [self._layout.blob(name) for name in chosen.blobs],
            "damaged": list(damage),
        }
        for category, members in paths.items():
            for path in members:
                ledger.take(category, path)
        sizes = ledger.freed()
        return Collected(**{category: Freed(len(members), sizes.get(category, 0)) for category, members in paths.items()})

    def _remove(self, chosen: Plan, damage: tuple[Path, ...], progress: Callable[[int, int | None], None]) -> None:
        total = len(chosen.images) + len(chosen.proofs) + len(chosen.aliases) + len(chosen.steps) + len(chosen.blobs) + len(damage)
        trash = self._session.fresh("gc")
        trash.mkdir()
        done = 0
        for directory, names in (
            (self._layout.images, chosen.images),
            (self._layout.proofs, chosen.proofs),
            (self._layout.steps, chosen.aliases),
            (self._layout.steps, chosen.steps),
        ):
            for name in names:
                (directory / name).rename(trash / f"{directory.name}-{name}")
                done += 1
                progress(done, total)
        for sha256 in chosen.blobs:
            self._layout.blob(sha256).unlink()
            done += 1
            progress(done, total)
        for path in damage:
            path.rename(trash / f"damaged-{path.name}")
        discard(trash)
        progress(total, total)


def _facts(container: Path) -> StepFacts:
    if problem(container) is not None:
        return StepFacts(0, sound=False)
    return StepFacts((container / "step.json").stat().st_mtime, uses_of(container))


class _Ledger:
    """Adds up what removing trees frees. A file's bytes go to the category that named it first, once all its names are removed.

    Directories that only another user's root may read count as empty.
    """

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], int] = {}
        self._files: dict[tuple[int, int], tuple[str, int, int]] = {}
        self._directories: dict[str, int] = {}

    def take(self, category: str, path: Path) -> None:
        """Count everything at and below `path`."""
        stack = [os.fspath(path)]
        while stack:
            place = stack.pop()
            found = os.lstat(place)
            size = found.st_blocks * _BLOCK_BYTES
            if stat.S_ISDIR(found.st_mode):
                self._directories[category] = self._directories.get(category, 0) + size
                try:
                    stack += [entry.path for entry in os.scandir(place)]
                except PermissionError:
                    continue
            else:
                inode = (found.st_dev, found.st_ino)
                self._links[inode] = self._links.get(inode, 0) + 1
                self._files.setdefault(inode, (category, size, found.st_nlink))

    def freed(self) -> dict[str, int]:
        """Bytes by category."""
        freed = dict(self._directories)
        for inode, (category, size, names) in self._files.items():
            if self._links[inode] >= names:
                freed[category] = freed.get(category, 0) + size
        return freed
