"""Any to any, done: a host fetches those blocks of an image that it has nowhere, whatever it has (`planning.plan` finds out which).

The root is put together group after group: a group is written only as a whole and when it is what the root hash promises, so an
interruption costs little more than the frames in flight, and what a hostile repository sends at worst makes nothing.
"""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.model.release import File
from obelisk.release.client import hashtree, index
from obelisk.release.client.hashtree import DIGEST_BYTES, GROUP_BLOCKS, Run
from obelisk.release.client.index import ZEROS, Frame
from obelisk.release.client.planning import WHICH_BITS, Batch, Have, Plan, Span, blocks_of
from obelisk.release.client.remote import Mirrors
from obelisk.release.client.writing import Slot
from obelisk.system import zstd
from obelisk.system.blocks import BLOCK_BYTES, BlockDevice

_KEPT_BLOCKS = 2048  # blocks that a later batch needs of a frame that this one fetched


def carry_out(
    remote: Mirrors, ready: Plan, root: Path, tree: Path, haves: Sequence[Have], *, on_bytes: Callable[[int], None]
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


class _Maker:
    """Puts groups together out of what is there and what comes."""

    def __init__(self, remote: Mirrors, ready: Plan, slot: Slot, own: BlockDevice, devices: Sequence[BlockDevice | None]) -> None:
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
        by_pack = defaultdict[File, list[Span]](list)
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
        span = blocks_of(plan.index, group)
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
                which, there = divmod(elsewhere[first], 1 << WHICH_BITS)
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
        span = blocks_of(found, group)
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
