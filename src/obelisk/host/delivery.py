"""How a release comes to this host: by a precomputed edge from an image in one of its slots, or block by block out of whatever is here.

What each costs is found out before it starts: an edge's size is known, and for the blocks the slot that is going to be written is read
once. That is left out where an edge is smaller than the kernel image, without which no blocks are of use.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from obelisk.errors import InputError, TransportError, TrustError
from obelisk.events import Note, Sink, task
from obelisk.host import admission, esp, staging
from obelisk.host.here import Here
from obelisk.host.upgrade import gather
from obelisk.host.ways import OnBytes, Way, by_cost
from obelisk.model.host import Slot
from obelisk.model.image import Manifest, PartKind
from obelisk.model.release import File, Release
from obelisk.release.client import blocks, edge, planning
from obelisk.release.client.hashtree import HashTree, Run
from obelisk.release.client.planning import Have, Plan, Wanted
from obelisk.release.client.remote import Mirrors
from obelisk.system.blocks import BLOCK_BYTES, BlockDevice

UKI = "uki"
_EDGE = "edge"


@dataclass(frozen=True, slots=True)
class Old:
    """An image that is in a slot, and stays there: its label, its manifest, the slot, and its hash tree, which was checked."""

    manifest: Manifest
    slot: Slot
    tree: HashTree


def ways(here: Here, release: Release, manifest: Manifest, mirrors: Mirrors, sink: Sink) -> Sequence[Way]:
    """All ways in which a release can come here, the cheapest first.

    Raises:
        StateError: there is no slot for it.
        TransportError, TrustError: what tells the costs cannot be had.
    """
    with here.esp() as place:
        facts = gather(here, esp.entries(place))
    target = admission.choose_slot(facts, manifest)
    olds = tuple(_olds(here, facts.slots, target))
    by_blocks = ByBlocks(here, release, manifest, mirrors, olds, Path(target.root.device), sink)
    edges = [
        ByEdge(here, manifest, mirrors, old, each.file) for each in release.edges for old in olds if old.manifest.id == each.from_image
    ]
    kernel_bytes = manifest.part(PartKind.UKI).size_bytes
    if edges and min(each.file.size_bytes for each in edges) <= kernel_bytes:
        return (*by_cost(edges), by_blocks)
    try:
        return by_cost([*edges, by_blocks])
    except (TransportError, TrustError) as error:
        if not edges:
            raise
        sink(Note(f"{error.message}; going on with {edges[0].title}"))
        return by_cost(edges)


def mending(here: Here, release: Release, manifest: Manifest, mirrors: Mirrors, sink: Sink) -> Way:
    """The way to mend the slot that holds a release: only blocks that are wrong, and that no other slot has, are fetched.

    Raises:
        InputError: no slot holds it.
    """
    slots = here.slots()
    target = next((slot for slot in slots if slot.label == manifest.label), None)
    if target is None:
        raise InputError(f"{manifest.label} is in no slot here", code="source-other", hint="`obelisk host status` shows what is")
    return ByBlocks(here, release, manifest, mirrors, tuple(_olds(here, slots, target)), Path(target.root.device), sink)


def _olds(here: Here, slots: Sequence[Slot], target: Slot) -> Sequence[Old]:
    """The images in the other slots, as far as they are sound enough to be of use."""
    found = []
    for slot in slots:
        if slot.label is None or slot == target:
            continue
        with here.esp() as place:
            manifest = esp.manifest_of(place, slot.label)
        if manifest is None:
            continue
        # A slot that is damaged is no reason against an upgrade; there are other places to have blocks from.
        with suppress(TrustError, OSError), BlockDevice(Path(slot.tree.device)) as device:
            size = manifest.part(PartKind.ROOT).size_bytes
            found.append(Old(manifest, slot, staging.read_tree(device, size // BLOCK_BYTES, manifest.root_hash)))
    return found


@dataclass(frozen=True, slots=True)
class ByEdge:
    """One file that makes the new image out of an old one, kernel image included."""

    here: Here
    manifest: Manifest
    mirrors: Mirrors
    old: Old
    file: File

    @property
    def title(self) -> str:
        """See `Way`."""
        return f"what differs from {self.old.manifest.label}"

    @property
    def download_bytes(self) -> int:
        """See `Way`."""
        return self.file.size_bytes

    @property
    def requests(self) -> int:
        """See `Way`."""
        return 1

    @property
    def fetch_bytes(self) -> int:
        """See `Way`."""
        return self.file.size_bytes

    @property
    def room_bytes(self) -> int:
        """See `Way`."""
        return self.file.size_bytes + self.manifest.part(PartKind.UKI).size_bytes

    @property
    def write_bytes(self) -> int:
        """See `Way`."""
        return self.manifest.part(PartKind.ROOT).size_bytes

    def fetch(self, incoming: Path, on_bytes: OnBytes) -> None:
        """See `Way`."""
        self.mirrors.fetch(self.file, incoming / _EDGE, on_bytes)

    def write(self, incoming: Path, root: Path, tree: Path, *, on_bytes: OnBytes) -> tuple[int, list[Run]]:
        """See `Way`."""
        kernel = self.manifest.part(PartKind.UKI)
        new = edge.New(
            root,
            tree,
            self.manifest.root_hash,
            self.manifest.part(PartKind.ROOT).size_bytes,
            edge.Uki(incoming / UKI, kernel.size_bytes, kernel.sha256),
        )
        with self.here.esp() as place:
            entry = esp.find(place, self.old.manifest.label)
            if entry is None:
                raise TrustError(
                    f"the kernel image of {self.old.manifest.label} is missing from the ESP",
                    code="edge-damaged",
                    hint="`obelisk host verify` says what else is wrong",
                )
            old = edge.Old(Path(self.old.slot.root.device), self.old.tree, esp.path_of(place, entry))
            return edge.apply(incoming / _EDGE, old, new, on_bytes=on_bytes)


@dataclass(slots=True)
class ByBlocks:
    """The blocks that are nowhere here, and the kernel image as a whole. `target` is the root that is going to be written."""

    here: Here
    release: Release
    manifest: Manifest
    mirrors: Mirrors
    olds: Sequence[Old]
    target: Path
    sink: Sink
    _plan: Plan | None = field(default=None, init=False)

    @property
    def title(self) -> str:
        """See `Way`."""
        return "the blocks that are not here yet"

    @property
    def download_bytes(self) -> int:
        """See `Way`."""
        return self._planned().fetch_bytes + self.fetch_bytes

    @property
    def requests(self) -> int:
        """See `Way`."""
        return self._planned().requests + 1

    @property
    def fetch_bytes(self) -> int:
        """See `Way`."""
        return self.manifest.part(PartKind.UKI).size_bytes

    @property
    def room_bytes(self) -> int:
        """See `Way`."""
        return self.fetch_bytes

    @property
    def write_bytes(self) -> int:
        """See `Way`."""
        return self._planned().fetch_bytes

    def fetch(self, incoming: Path, on_bytes: OnBytes) -> None:
        """See `Way`."""
        kernel = self.manifest.part(PartKind.UKI)
        self.mirrors.fetch(File(kernel.sha256, kernel.size_bytes), incoming / UKI, on_bytes)

    def write(self, incoming: Path, root: Path, tree: Path, *, on_bytes: OnBytes) -> tuple[int, list[Run]]:
        """See `Way`."""
        if not (incoming / UKI).exists():
            self.fetch(incoming, lambda _count: None)
        # What was planned holds for the first writing of that slot: another place has other blocks, and after a failure fewer are missing.
        if root == self.target:
            ready, self._plan = self._planned(), None
        else:
            ready = self._find_out(root)
        tries = self.mirrors.count
        while True:
            try:
                return blocks.carry_out(self.mirrors, ready, root, tree, self._haves, on_bytes=on_bytes)
            except TrustError as error:
                tries -= 1
                if not tries:
                    raise
                self.mirrors.blame(error)
            ready = self._find_out(root)

    @property
    def _haves(self) -> list[Have]:
        return [Have(old.tree, Path(old.slot.root.device)) for old in self.olds]

    def _planned(self) -> Plan:
        if self._plan is None:
            self._plan = self._find_out(self.target)
        return self._plan

    def _find_out(self, root: Path) -> Plan:
        wanted = Wanted(self.release.root_hash, self.release.root_bytes, self.release.index)
        total = self.release.root_bytes
        with task(self.sink, "upgrade/plan", "Finding out which blocks are not here", total=total, unit="B") as running:
            ready = planning.plan(self.mirrors, wanted, root, self._haves, on_bytes=running.counting(total))
            running.detail = f"{ready.fetch_bytes / (1 << 20):.1f} MiB in {ready.requests} requests"
        return ready
