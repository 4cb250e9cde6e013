"""Any to any: a host fetches those blocks of an image that it has nowhere, whatever it has.

First it is found out which blocks are in their place in the slot already, and which lie in another slot; what is left decides which frames
of which packs are fetched, and so how many bytes, before any of them is. Then the root is put together group after group: a group is
written only as a whole and when it is what the root hash promises, so an interruption costs little more than the frames in flight, and
what a hostile repository sends at worst makes nothing.
"""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.model.release import File
from obelisk.release.client import hashtree, index
from obelisk.release.client.delivery import Remote
from obelisk.release.client.hashtree import DIGEST_BYTES, GROUP_BLOCKS, HashTree, Run
from obelisk.release.client.index import HEADER, PREFIX_BYTES, ZEROS, Frame, Index
from obelisk.release.client.writing import Slot
from obelisk.system import zstd
from obelisk.system.blocks import BLOCK_BYTES, BlockDevice
from obelisk.system.forked import in_parallel

GAP_BYTES = 16 << 10
"""So many bytes that nobody wants are fetched rather than another request made."""
_FRONT_BYTES = 64 << 10  # of an index, in the first request
_GROUP_BYTES = GROUP_BLOCKS * BLOCK_BYTES
_BATCH_GROUPS = 32  # 16 MiB, which are in memory while they are put together, and as much that is fetched meanwhile
_KEPT_BLOCKS = 2048  # blocks that a later batch needs of a frame that this one fetched
_REQUEST_BYTES = 8 << 20
_WORTH_FORKING = 16
_WHICH = 40


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be in a slot: root hash and size, and the file of the index that a trusted release names."""

    root_hash: str
    root_bytes: int
    index: File


@dataclass(frozen=True, slots=True)
class Have:
    """A root that is there, whole or not, with its tree, which was checked. Without a device only the tree is used.

    It must not be the slot that is written, except without its device: that of a repair is.
    """

    tree: HashTree
    root: Path | None


@dataclass(frozen=True, slots=True)
class Span:
    """Frames of one pack that one request fetches: `bytes` of it."""

    pack: File
    bytes: range
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups that are put together next, and what is fetched for them."""

    groups: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. `fetch_bytes` and `requests` are still to come, `planning_bytes` were needed to find that out.

    `places` has for each block its number in the frames, `elsewhere` where one of our roots seems to have it, or -1; `wrong` has by group
    the blocks that are not in their place, `right` the leaves of the groups that are.
    """

    wanted: Wanted
    index: Index
    front_bytes: int
    places: "array[int]"
    wrong: dict[int, tuple[int, ...]]
    elsewhere: "array[int]"
    right: dict[int, bytes]
    batches: tuple[Batch, ...]
    fetch_bytes: int
    requests: int
    planning_bytes: int


def plan(remote: Remote, wanted: Wanted, root: Path, haves: Sequence[Have], *, on_bytes: Callable[[int], None]) -> Plan:
    """Find out what has to be fetched to make the device `root` hold what is wanted. `on_bytes` is told how much of it was read.

    Raises:
        TrustError: the index is damaged.
        TransportError: it cannot be fetched.
    """
    front, planning = _fetch_front(remote, wanted)
    found = index.decode(front, wanted.root_hash, wanted.root_bytes)
    haves = [have for have in haves if have.tree.salt == found.salt]
    expected, fetched = _expectations(remote, wanted.index, found, len(front), haves)
    planning += fetched
    right, wrong = _scan(root, found, expected, on_bytes)
    places = array("q", found.places())
    zeros = hashtree.digests(bytes(BLOCK_BYTES), found.salt)
    missing = [block for blocks in wrong.values() for block in blocks if places[block] != ZEROS]
    elsewhere = _find(found.blocks, missing, expected, haves, zeros)
    batches = _batches(found, places, {group: [b for b in blocks if elsewhere[b] < 0] for group, blocks in wrong.items()})
    spans = [span for batch in batches for span in batch.spans]
    total = sum(len(span.bytes) for span in spans)
    return Plan(wanted, found, len(front), places, wrong, elsewhere, right, batches, total, len(spans), planning)


def carry_out(
    remote: Remote, ready: Plan, root: Path, tree: Path, haves: Sequence[Have], *, on_bytes: Callable[[int], None]
) -> tuple[int, list[Run]]:
    """Make the devices hold the image; return the bytes written, and the blocks of the root among them.

    `haves` are those of the plan. `on_bytes` is told how many bytes have been fetched. Durable when this returns. After an interruption a
    new plan has less to do.

    Raises:
        TrustError: what came is not what the root hash promises.
        TransportError: something could not be fetched.
    """
    with ExitStack() as stack:
        slot = stack.enter_context(Slot(root, tree, ready.index.superblock, ready.index.level))
        own = stack.enter_context(BlockDevice(root))
        used = [have for have in haves if have.tree.salt == ready.index.salt]
        devices = [stack.enter_context(BlockDevice(have.root)) if have.root is not None else None for have in used]
        for group, leaves in ready.right.items():
            slot.accept(group, leaves)
        maker = _Maker(remote, ready, slot, own, devices)
        fetcher = stack.enter_context(ThreadPoolExecutor(1))
        coming = [fetcher.submit(maker.fetch, batch, on_bytes) for batch in ready.batches[:1]]
        for number, batch in enumerate(ready.batches):
            blocks = coming.pop().result()
            if number + 1 < len(ready.batches):
                coming.append(fetcher.submit(maker.fetch, ready.batches[number + 1], on_bytes))
            maker.make(batch, blocks)
        return slot.finish()


def _fetch_front(remote: Remote, wanted: Wanted) -> tuple[bytes, int]:
    size = wanted.index.size_bytes
    front = b"".join(data for _range, data in remote.ranges(wanted.index, [range(min(_FRONT_BYTES, size))]))
    fetched = len(front)
    whole = index.front_bytes(front[: HEADER.size])
    if whole > size:
        raise TrustError(
            "the index of the release is damaged: it is cut short", code="index-damaged", hint="tell whoever runs the repository"
        )
    if whole > fetched:
        front += b"".join(data for _range, data in remote.ranges(wanted.index, [range(fetched, whole)]))
    return front[:whole], max(fetched, whole)


class _Expected:
    """What is known of the digest of each block: all of it, or how it begins."""

    def __init__(self, blocks: int) -> None:
        self.leaves: dict[int, bytes] = {}  # by group
        self.prefixes = bytearray(blocks * PREFIX_BYTES)

    def fits(self, block: int, leaf: bytes) -> bool:
        known = self.leaves.get(block // GROUP_BLOCKS)
        if known is not None:
            at = block % GROUP_BLOCKS * DIGEST_BYTES
            return leaf == known[at : at + DIGEST_BYTES]
        return leaf[:PREFIX_BYTES] == self.prefixes[block * PREFIX_BYTES : (block + 1) * PREFIX_BYTES]

    def prefix(self, block: int) -> bytes:
        known = self.leaves.get(block // GROUP_BLOCKS)
        if known is not None:
            at = block % GROUP_BLOCKS * DIGEST_BYTES
            return known[at : at + PREFIX_BYTES]
        return bytes(self.prefixes[block * PREFIX_BYTES : (block + 1) * PREFIX_BYTES])


def _expectations(remote: Remote, file: File, found: Index, front: int, haves: Sequence[Have]) -> tuple[_Expected, int]:
    """What the index and our own trees say of each block, and how many bytes were fetched for it."""
    expected = _Expected(found.blocks)
    own: dict[bytes, bytes] = {}
    for have in haves:
        level = hashtree.parents(have.tree.leaves, found.salt)
        for at in range(0, len(level), DIGEST_BYTES):
            place = at * GROUP_BLOCKS
            own[level[at : at + DIGEST_BYTES]] = have.tree.leaves[place : place + GROUP_BLOCKS * DIGEST_BYTES]
    unknown = []
    for group in range(len(found.level) // DIGEST_BYTES):
        digest = found.group(group)
        if digest in own:
            expected.leaves[group] = own[digest]
        else:
            unknown.append(group)
    runs = [
        index.prefix_range(front, range(run.start * GROUP_BLOCKS, min(run.stop * GROUP_BLOCKS, found.blocks)))
        for run in hashtree.as_runs(unknown)
    ]
    fetched = 0
    for run, data in remote.ranges(file, _joined(runs)):
        at = run.start - front
        expected.prefixes[at : at + len(data)] = data
        fetched += len(data)
    return expected, fetched


def _joined(runs: Sequence[range]) -> list[range]:
    """The same ranges, put together where the gap between two costs less than a request."""
    found: list[range] = []
    for run in runs:
        if found and run.start - found[-1].stop <= GAP_BYTES:
            found[-1] = range(found[-1].start, run.stop)
        else:
            found.append(run)
    return found


def _scan(
    root: Path, found: Index, expected: _Expected, on_bytes: Callable[[int], None]
) -> tuple[dict[int, bytes], dict[int, tuple[int, ...]]]:
    """The groups that are in the slot already, with their leaves; and of the others the blocks that are not in their place."""
    groups = len(found.level) // DIGEST_BYTES
    right: dict[int, bytes] = {}
    wrong: dict[int, tuple[int, ...]] = {}
    with BlockDevice(root) as device:

        def look(first: int, count: int) -> Iterator[str]:
            for group in range(first, groups, count):
                yield f"{group} {_look(device, found, expected, group)}"

        for line in in_parallel(look) if groups >= _WORTH_FORKING else look(0, 1):
            group, kind, rest = line.split(" ", 2)
            if kind == "right":
                right[int(group)] = bytes.fromhex(rest)
            else:
                wrong[int(group)] = tuple(map(int, rest.split()))
            on_bytes(_GROUP_BYTES)
    return right, {group: wrong[group] for group in sorted(wrong)}


def _look(device: BlockDevice, found: Index, expected: _Expected, group: int) -> str:
    blocks = _blocks_of(found, group)
    try:
        data = device.read(blocks.start * BLOCK_BYTES, len(blocks) * BLOCK_BYTES)
    except OSError:
        return f"wrong {' '.join(map(str, blocks))}"
    leaves = hashtree.digests(data, found.salt)
    if len(leaves) == len(blocks) * DIGEST_BYTES and hashtree.group_digest(leaves, found.salt, found.blocks) == found.group(group):
        return f"right {leaves.hex()}"
    fits = [expected.fits(block, leaves[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]) for at, block in enumerate(blocks)]
    return f"wrong {' '.join(str(block) for block, fit in zip(blocks, fits, strict=True) if not fit)}"


def _blocks_of(found: Index, group: int) -> Run:
    return range(group * GROUP_BLOCKS, min((group + 1) * GROUP_BLOCKS, found.blocks))


def _find(blocks: int, missing: Sequence[int], expected: _Expected, haves: Sequence[Have], zeros: bytes) -> "array[int]":
    """Where one of our roots seems to have the blocks that are missing: which root, above `_WHICH` bits, and where in it; or -1."""
    # A number for each block that we have: how its digest begins, then which it is. Sorted, they take an eighth of a dictionary's room.
    numbers: list[int] = []
    firsts = []
    total = 0
    for have in haves:
        firsts.append(total)
        if have.root is not None:
            leaves = have.tree.leaves
            numbers += (
                int.from_bytes(leaves[at : at + PREFIX_BYTES], "big") << 32 | total + at // DIGEST_BYTES
                for at in range(0, len(leaves), DIGEST_BYTES)
            )
        total += have.tree.data_blocks
    numbers.sort()
    there = array("Q", numbers)
    del numbers
    found = array("q", [-1]) * blocks
    for block in missing:
        prefix = expected.prefix(block)
        low = int.from_bytes(prefix, "big") << 32
        at = bisect_left(there, low)
        if at < len(there) and there[at] >> 32 == low >> 32 and prefix != zeros[:PREFIX_BYTES]:
            number = there[at] & 0xFFFFFFFF
            which = max(place for place, first in enumerate(firsts) if first <= number)
            found[block] = which << _WHICH | number - firsts[which]
    return found


def _batches(found: Index, places: "array[int]", wrong: dict[int, list[int]]) -> tuple[Batch, ...]:
    """Groups in their order, some at a time, each batch with the frames that it is the first to need."""
    owners = array("L")
    for number, frame in enumerate(found.frames):
        owners.extend([number] * frame.blocks)
    groups = list(wrong)
    seen: set[int] = set()
    batches = []
    for at in range(0, len(groups), _BATCH_GROUPS):
        some = groups[at : at + _BATCH_GROUPS]
        needed = {owners[places[block]] for group in some for block in wrong[group] if places[block] != ZEROS}
        batches.append(Batch(tuple(some), _spans(found, sorted(needed - seen))))
        seen |= needed
    return tuple(batches)


def _spans(found: Index, numbers: Sequence[int]) -> tuple[Span, ...]:
    """Frames as requests: side by side in one pack, or nearly so."""
    spans: list[Span] = []
    for number in sorted(numbers, key=lambda number: (found.frames[number].pack, found.frames[number].offset)):
        frame = found.frames[number]
        pack = found.packs[frame.pack]
        last = spans[-1] if spans else None
        end = frame.offset + frame.size_bytes
        near = last is not None and last.pack == pack and 0 <= frame.offset - last.bytes.stop <= GAP_BYTES
        if last is not None and near and end - last.bytes.start <= _REQUEST_BYTES:
            spans[-1] = Span(pack, range(last.bytes.start, end), (*last.frames, number))
        else:
            spans.append(Span(pack, range(frame.offset, end), (number,)))
    return tuple(spans)


class _Maker:
    """Puts groups together out of what is there and what comes."""

    def __init__(self, remote: Remote, ready: Plan, slot: Slot, own: BlockDevice, devices: Sequence[BlockDevice | None]) -> None:
        self._remote = remote
        self._plan = ready
        self._slot = slot
        self._own = own
        self._devices = devices
        self._starts = ready.index.starts()
        self._kept: dict[int, bytes] = {}
        # By number in the frames: the last batch that needs it.
        self._last = array("l", [-1]) * self._starts[-1]
        for at, batch in enumerate(ready.batches):
            for group in batch.groups:
                for block in ready.wrong[group]:
                    if ready.elsewhere[block] < 0 and ready.places[block] != ZEROS:
                        self._last[ready.places[block]] = at

    def fetch(self, batch: Batch, on_bytes: Callable[[int], None]) -> dict[int, bytes]:
        """The blocks of the batch's frames that anybody needs, by their numbers in the frames."""
        found: dict[int, bytes] = {}
        by_pack: dict[File, list[Span]] = defaultdict(list)
        for span in batch.spans:
            by_pack[span.pack].append(span)
        for pack, spans in by_pack.items():
            for span, (_range, data) in zip(spans, self._remote.ranges(pack, [span.bytes for span in spans]), strict=True):
                on_bytes(len(data))
                for number in span.frames:
                    frame = self._plan.index.frames[number]
                    self._unpack(number, data[frame.offset - span.bytes.start :][: frame.size_bytes], found)
        return found

    def _unpack(self, number: int, data: bytes, found: dict[int, bytes]) -> None:
        frame = self._plan.index.frames[number]
        content = unpack(frame, data)
        for at in range(frame.blocks):
            place = self._starts[number] + at
            if self._last[place] >= 0:
                found[place] = content[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]

    def make(self, batch: Batch, blocks: dict[int, bytes]) -> None:
        """Write the groups of a batch."""
        blocks |= self._kept
        for group in batch.groups:
            self._make_group(group, blocks)
        at = self._plan.batches.index(batch)
        later = [place for place in blocks if self._last[place] > at]
        self._kept = {place: blocks[place] for place in later[:_KEPT_BLOCKS]}

    def _make_group(self, group: int, blocks: dict[int, bytes]) -> None:
        plan = self._plan
        span = _blocks_of(plan.index, group)
        data = bytearray(self._read_own(span))
        others = []
        for block in plan.wrong[group]:
            if plan.places[block] != ZEROS and plan.elsewhere[block] >= 0:
                others.append(block)
            else:
                at = (block - span.start) * BLOCK_BYTES
                data[at : at + BLOCK_BYTES] = self._block(plan.places[block], blocks)
        for run, which, there in self._elsewhere(others):
            at = (run.start - span.start) * BLOCK_BYTES
            data[at : at + len(run) * BLOCK_BYTES] = self._copy(which, range(there, there + len(run)))
        try:
            self._slot.put(group, bytes(data))
        except ValueError:
            self._mend(group, data)

    def _elsewhere(self, blocks: Sequence[int]) -> Iterator[tuple[Run, int, int]]:
        """Runs of blocks that also lie in a run in a root of ours: they, which root, and where in it."""
        elsewhere = self._plan.elsewhere
        start = 0
        for end in range(1, len(blocks) + 1):
            first = blocks[start]
            length = end - start
            ends = end == len(blocks) or blocks[end] != first + length or elsewhere[blocks[end]] != elsewhere[first] + length
            if ends:
                which, there = divmod(elsewhere[first], 1 << _WHICH)
                yield range(first, first + length), which, there
                start = end

    def _copy(self, which: int, run: Run) -> bytes:
        """Blocks of one of our roots; zeros for what cannot be read, which shows when the group is checked."""
        device, size = self._devices[which], len(run) * BLOCK_BYTES
        if device is None:
            return bytes(size)
        try:
            return bytes(device.read(run.start * BLOCK_BYTES, size)).ljust(size, b"\0")
        except OSError:
            return bytes(size)

    def _read_own(self, span: Run) -> bytes:
        size = len(span) * BLOCK_BYTES
        try:
            return bytes(self._own.read(span.start * BLOCK_BYTES, size)).ljust(size, b"\0")
        except OSError:
            return bytes(size)  # what cannot be read is wrong, and will be written

    def _block(self, place: int, blocks: dict[int, bytes]) -> bytes:
        if place == ZEROS:
            return bytes(BLOCK_BYTES)
        found = blocks.get(place)
        return self._fetch_place(place) if found is None else found

    def _fetch_place(self, place: int) -> bytes:
        """A block out of its frame, fetched by itself."""
        starts = self._starts
        number = bisect_left(starts, place + 1) - 1
        frame = self._plan.index.frames[number]
        wanted = range(frame.offset, frame.offset + frame.size_bytes)
        data = b"".join(data for _range, data in self._remote.ranges(self._plan.index.packs[frame.pack], [wanted]))
        at = (place - starts[number]) * BLOCK_BYTES
        return unpack(frame, data)[at : at + BLOCK_BYTES]

    def _mend(self, group: int, data: bytearray) -> None:
        """A group that is not right: something that we have is damaged, or only begins like what it should be. Its leaves tell what."""
        found = self._plan.index
        places = index.leaves_range(self._plan.front_bytes, found.blocks, range(group, group + 1))
        leaves = b"".join(data for _range, data in self._remote.ranges(self._plan.wanted.index, [places]))
        span = _blocks_of(found, group)
        leaves = leaves[: len(span) * DIGEST_BYTES]
        if hashtree.group_digest(leaves, found.salt, found.blocks) != found.group(group):
            raise _wrong(group)
        for at in hashtree.wrong_blocks(bytes(data), found.salt, leaves):
            place = self._plan.places[span.start + at]
            data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES) if place == ZEROS else self._fetch_place(place)
        try:
            self._slot.put(group, bytes(data))
        except ValueError as error:
            raise _wrong(group) from error


def unpack(frame: Frame, data: bytes) -> bytes:
    """The blocks of a frame.

    Raises:
        TrustError: it is damaged.
    """
    content = zstd.decompress(data, frame.blocks * BLOCK_BYTES)
    if len(content) != frame.blocks * BLOCK_BYTES:
        raise TrustError("a frame of a pack has another number of blocks", code="frame-damaged", hint="try another mirror")
    return content


def _wrong(group: int) -> TrustError:
    return TrustError(
        f"the repository's blocks from {group * GROUP_BLOCKS} on are not what the root hash promises",
        code="blocks-wrong",
        hint="try another mirror; if none has them, tell whoever runs the repository",
    )
