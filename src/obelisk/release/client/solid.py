"""Solid streams: many pieces of data compressed as one by LZMA2, written in order and read in the same order, a little at a time.

What a stream is good for decides its filters, and both sides have them from here: a file has no say in how much memory reading it takes.
"""

import lzma
import os
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

_READ_BYTES = 1 << 16
_KIB, _MIB = 1 << 10, 1 << 20


class Stream(IntEnum):
    """The streams of an edge, in the order in which they lie in the file."""

    PLAN = 0
    CONTROL = 1
    """Where in the old data the next piece is, and how long it is: planes of bytes."""
    DIFFERENCE = 2
    """What is to be added to old data."""
    CODE = 3
    """New data of programs for x86."""
    TEXT = 4
    OTHER = 5
    METADATA_CONTROL = 6
    METADATA_DIFFERENCE = 7
    METADATA = 8


def filters(stream: Stream) -> Sequence[dict[str, Any]]:
    """The chain of a stream, as `lzma` wants it. All dictionaries together are what a reader has to hold."""
    dictionary, parameters = _PARAMETERS[stream]
    chain = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary, **parameters}
    return [{"id": lzma.FILTER_X86}, chain] if stream is Stream.CODE else [chain]


_PARAMETERS: dict[Stream, tuple[int, dict[str, int]]] = {
    Stream.PLAN: (_MIB, {"lc": 0}),
    Stream.CONTROL: (2 * _MIB, {"lc": 0, "pb": 0}),
    Stream.DIFFERENCE: (12 * _MIB, {"lc": 2, "lp": 2, "pb": 2}),
    Stream.CODE: (12 * _MIB, {}),
    Stream.TEXT: (12 * _MIB, {"lc": 4, "pb": 0}),
    Stream.OTHER: (8 * _MIB, {}),
    Stream.METADATA_CONTROL: (_MIB, {"lc": 0, "pb": 0}),
    Stream.METADATA_DIFFERENCE: (4 * _MIB, {"lc": 0, "lp": 2, "pb": 2}),
    Stream.METADATA: (_MIB, {"lc": 0, "lp": 2, "pb": 2}),
}


class Writer:
    """One stream that is being made, in memory. One of nothing has no bytes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._compressor: lzma.LZMACompressor | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Add `data` to its end."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _MIB:
            self._compress()

    def finish(self) -> bytes:
        """The whole stream."""
        if self._waiting_bytes:
            self._compress()
        if self._compressor is not None:
            self._parts.append(self._compressor.flush())
        return b"".join(self._parts)

    def _compress(self) -> None:
        if self._compressor is None:
            chain = [dict(each) for each in filters(self._stream)]
            if self._waiting_bytes < _MIB:  # it is the whole stream: one who writes needs ten times the dictionary, and time to clear it
                chain[-1]["dict_size"] = max(self._waiting_bytes, 4 * _KIB)
            self._compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=chain)
        self._parts.append(self._compressor.compress(b"".join(self._waiting)))
        self._waiting, self._waiting_bytes = [], 0


class Reader:
    """One stream that lies in `size` bytes of an open file from `offset` on."""

    def __init__(self, stream: Stream, descriptor: int, offset: int, size: int) -> None:
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters(stream))
        self._descriptor = descriptor
        self._offset = offset
        self._left = size
        self._ready = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next `size` bytes. No more memory is taken than they need, and the stream's dictionary.

        Raises:
            ValueError: the stream has fewer, or is damaged.
        """
        if size <= len(self._ready):
            found, self._ready = self._ready[:size], self._ready[size:]
            return bytes(found)
        parts = [self._ready]
        missing = size - len(self._ready)
        while missing > 0:
            more = memoryview(self._more(missing))
            parts.append(more[:missing])
            self._ready = more[missing:]
            missing -= len(more)
        return b"".join(parts)

    def _more(self, wanted: int) -> bytes:
        while True:
            if self._decompressor.eof:
                raise ValueError("the stream ends too early")
            data = b""
            if self._decompressor.needs_input:
                data = os.pread(self._descriptor, min(_READ_BYTES, self._left), self._offset)
                if not data:
                    raise ValueError("the stream is cut short")
                self._offset += len(data)
                self._left -= len(data)
            try:
                found = self._decompressor.decompress(data, max(wanted, _READ_BYTES))
            except lzma.LZMAError as error:
                raise ValueError(f"the stream is damaged: {error}") from error
            if found:
                return found
