"""New data out of old and a difference, as bsdiff has it: pieces of the old to which something is added, and pieces that are new.

A unit is some blocks of new data that are made out of some blocks of old. Its steps say: take `copied` bytes of the old from where we are
and add the difference to them; take `added` new bytes; then move `seek` bytes on in the old. Source: Colin Percival, Naive differences
of executable code, 2003.

Adding is done on whole numbers of thousands of digits, with lanes of 8 or of 32 bits that do not carry over into each other; a loop over
bytes would take a hundred times as long.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from obelisk.release.client import varint
from obelisk.release.client.solid import Reader
from obelisk.system.blocks import BLOCK_BYTES

UNIT_BLOCKS = 2048
"""The largest unit: so much new data."""
WINDOW_BLOCKS = 4096
"""And so much old data, which a reader holds in memory."""
STEPS = 1 << 19
"""The most steps of a unit."""
PIECE_BYTES = 1 << 16
_PLANES = (3, 3, 4)  # bytes of copied, added, seek


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a unit, column by column."""

    copied: Sequence[int]
    added: Sequence[int]
    seek: Sequence[int]

    def __len__(self) -> int:
        return len(self.copied)


def pack_steps(steps: Steps) -> bytes:
    """As the stream of control has them: planes of bytes, the lowest bytes of all numbers first."""
    columns = (steps.copied, steps.added, [varint.zigzag(seek) for seek in steps.seek])
    return b"".join(_planes(column, count) for column, count in zip(columns, _PLANES, strict=True))


def read_steps(stream: Reader, count: int) -> Steps:
    """`count` steps; ValueError when the stream has not so many."""
    copied, added, seek = (_numbers(stream.read(count * planes), count) for planes in _PLANES)
    return Steps(copied, added, [varint.unzigzag(number) for number in seek])


def _planes(numbers: Sequence[int], planes: int) -> bytes:
    words = array("I", numbers)
    if sys.byteorder == "big":
        words.byteswap()
    data = words.tobytes()
    return b"".join(data[plane::4] for plane in range(planes))


def _numbers(planes: bytes, count: int) -> Sequence[int]:
    data = bytearray(4 * count)
    for plane in range(len(planes) // count if count else 0):
        data[plane::4] = planes[plane * count : (plane + 1) * count]
    words = array("I")
    words.frombytes(data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def pieces(steps: Steps, old: bytes, size: int) -> Iterator[tuple[list[tuple[int, int]], int]]:
    """What to predict of the next piece of at most 64 KiB: places in the old data and lengths, new data as a place of -1; and its length.

    Raises:
        ValueError: a step leaves the old data or the new, or the steps do not add up to `size`.
    """
    at = done = filled = 0
    plan: list[tuple[int, int]] = []
    limit = len(old)
    may_be_empty = True  # the first step, which then says where to begin
    for copied, added, seek in zip(steps.copied, steps.added, steps.seek, strict=True):
        done += copied + added
        if at < 0 or at + copied > limit or done > size or not (copied + added or may_be_empty):
            raise ValueError("a step leaves its data")
        may_be_empty = False
        for place, length in ((at, copied), (-1, added)):
            start, rest = place, length
            while rest:
                count = min(rest, PIECE_BYTES - filled)
                plan.append((start, count))
                filled += count
                rest -= count
                if start >= 0:
                    start += count
                if filled == PIECE_BYTES:
                    yield plan, filled
                    plan, filled = [], 0
        at += copied + seek
    if done != size:
        raise ValueError("the steps make too little")
    if filled:
        yield plan, filled


def rebuild(steps: Steps, old: bytes, blocks: int, difference: Reader, new: Reader) -> Iterator[bytes]:
    """The new data, in pieces of at most 64 KiB: old bytes with the difference added byte by byte, and bytes out of `new`.

    Raises:
        ValueError: steps or streams are damaged.
    """
    for plan, _size in pieces(steps, old, blocks * BLOCK_BYTES):
        delta = difference.read(sum(length for at, length in plan if at >= 0))
        fresh = new.read(sum(length for at, length in plan if at < 0))
        predicted, added = [], []
        zero = delta.count(0) == len(delta)
        here = there = 0
        for at, length in plan:
            if at >= 0:
                predicted.append(old[at : at + length])
                added.append(delta[here : here + length])
                here += length
            else:
                predicted.append(fresh[there : there + length])
                added.append(bytes(length))
                there += length
        piece = b"".join(predicted)
        yield piece if zero else add(piece, b"".join(added), _BYTES)


def rebuild_words(steps: Steps, old: bytes, blocks: int, difference: Reader) -> Iterator[bytes]:
    """The new data, where the difference to all of it, new bytes to zeros, was taken in words of 32 bits.

    Raises:
        ValueError: steps or stream are damaged.
    """
    for plan, size in pieces(steps, old, blocks * BLOCK_BYTES):
        predicted = b"".join(old[at : at + length] if at >= 0 else bytes(length) for at, length in plan)
        yield add(predicted, difference.read(size), _WORDS)


_BYTES, _WORDS = 1, 4


def _masks(lane: int) -> tuple[int, int]:
    count = PIECE_BYTES // lane
    rest = int.from_bytes((b"\xff" * (lane - 1) + b"\x7f") * count, "little")
    return rest, int.from_bytes((bytes(lane - 1) + b"\x80") * count, "little")


_MASKS = {lane: _masks(lane) for lane in (_BYTES, _WORDS)}


def add(one: bytes, other: bytes, lane: int) -> bytes:
    """The sums of the numbers of `lane` bytes in two pieces of equal size, without what would carry over."""
    rest, top = _MASKS[lane]
    left, right = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    return (((left & rest) + (right & rest)) ^ ((left ^ right) & top)).to_bytes(len(one), "little")


def subtract(one: bytes, other: bytes, lane: int) -> bytes:
    """What `add` has to add to `other` to get `one`."""
    rest, top = _MASKS[lane]
    left, right = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    used = (1 << 8 * len(one)) - 1
    top &= used
    # The top bit of each lane is set for the subtraction, so that nothing is borrowed from the next lane.
    return (((left | top) - (right & rest)) ^ ((left ^ right ^ top) & top)).to_bytes(len(one), "little")
