"""New data out of old and a difference, as bsdiff has it: pieces of the old to which something is added, and pieces that are new.

A unit is some blocks of new data that are made out of some blocks of old. Its steps say: take `copied` bytes of the old from where we are;
take `added` new bytes; then move `seek` bytes on in the old. To all that was taken the difference is added. Source: Colin Percival, Naive
differences of executable code, 2003.

The difference is one of words of 32 bits, not of bytes: tables of addresses and numbers, which most of what changes in programs and file
systems is, then differ by the same word over and over, which compresses better by a tenth than bytes do. Adding is done on whole numbers
of thousands of digits, with lanes that do not carry over into each other; a loop over words would take a hundred times as long.
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
    """The new data, in pieces of at most 64 KiB.

    Raises:
        ValueError: steps or streams are damaged.
    """
    for plan, size in pieces(steps, old, blocks * BLOCK_BYTES):
        predicted = predict(plan, old, new.read(sum(length for at, length in plan if at < 0)))
        delta = difference.read(size)
        yield predicted if delta.count(0) == size else add(predicted, delta)


def predict(plan: Sequence[tuple[int, int]], old: bytes, new: bytes) -> bytes:
    """What a piece would be if there were no difference; `new` are its new bytes."""
    parts, used = [], 0
    for at, length in plan:
        if at >= 0:
            parts.append(old[at : at + length])
        else:
            parts.append(new[used : used + length])
            used += length
    return b"".join(parts)


_WORDS = PIECE_BYTES // 4
_REST = int.from_bytes(b"\xff\xff\xff\x7f" * _WORDS, "little")
_TOP = int.from_bytes(b"\0\0\0\x80" * _WORDS, "little")


def add(one: bytes, other: bytes) -> bytes:
    """The sums of the words in two pieces of equal size, without what would carry over."""
    left, right = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    return (((left & _REST) + (right & _REST)) ^ ((left ^ right) & _TOP)).to_bytes(len(one), "little")


def subtract(one: bytes, other: bytes) -> bytes:
    """What `add` has to add to `other` to get `one`."""
    left, right = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    top = _TOP & ((1 << 8 * len(one)) - 1)
    # The top bit of each word is set for the subtraction, so that nothing is borrowed from the next one.
    return (((left | top) - (right & _REST)) ^ ((left ^ right ^ top) & top)).to_bytes(len(one), "little")
