"""Any to any, decided: what a host has to fetch of an image, given what it has.

First it is found out which blocks are in their place in the slot already, and which lie in another slot; what is left decides which frames
of which packs are fetched, and so how many bytes, before any of them is.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.model.release import File
from obelisk.release.client import hashtree, index
from obelisk.release.client.hashtree import DIGEST_BYTES, GROUP_BLOCKS, HashTree, Run
from obelisk.release.client.index import HEADER, PREFIX_BYTES, ZEROS, Index
from obelisk.release.client.remote import Mirrors
from obelisk.system.blocks import BLOCK_BYTES, BlockDevice
from obelisk.system.forked import in_parallel

GAP_BYTES = 16 << 10
"""So many bytes that nobody wants are fetched rather than another request made."""
_FRONT_BYTES = 64 << 10  # of an index, in the first request
_GROUP_BYTES = GROUP_BLOCKS * BLOCK_BYTES
_BATCH_GROUPS = 16  # 8 MiB, which are in memory while they are put together, and as much that is fetched meanwhile
_REQUEST_BYTES = 8 << 20
_WORTH_FORKING = 16
WHICH_BITS = 40


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


def plan(remote: Mirrors, wanted: Wanted, root: Path, haves: Sequence[Have], *, on_bytes: Callable[[int], None]) -> Plan:
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


def _fetch_front(remote: Mirrors, wanted: Wanted) -> tuple[bytes, int]:
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


def _expectations(remote: Mirrors, file: File, found: Index, front: int, haves: Sequence[Have]) -> tuple[_Expected, int]:
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
    blocks = blocks_of(found, group)
    try:
        data = device.read(blocks.start * BLOCK_BYTES, len(blocks) * BLOCK_BYTES)
    except OSError:
        return f"wrong {' '.join(map(str, blocks))}"
    leaves = hashtree.digests(data, found.salt)
    if len(leaves) == len(blocks) * DIGEST_BYTES and hashtree.group_digest(leaves, found.salt, found.blocks) == found.group(group):
        return f"right {leaves.hex()}"
    fits = [expected.fits(block, leaves[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]) for at, block in enumerate(blocks)]
    return f"wrong {' '.join(str(block) for block, fit in zip(blocks, fits, strict=True) if not fit)}"


def blocks_of(found: Index, group: int) -> Run:
    """The blocks of a group."""
    return range(group * GROUP_BLOCKS, min((group + 1) * GROUP_BLOCKS, found.blocks))


def _find(blocks: int, missing: Sequence[int], expected: _Expected, haves: Sequence[Have], zeros: bytes) -> "array[int]":
    """Where one of our roots seems to have the blocks that are missing: which root, above `WHICH_BITS` bits, and where in it; or -1."""
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
            found[block] = which << WHICH_BITS | number - firsts[which]
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
