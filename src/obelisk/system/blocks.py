"""A block device, or a file in its place, read and written past the page cache: what is read comes from the disk itself.

Where a file system does not offer that (tmpfs), reads and writes go through the cache.
"""

import errno
import mmap
import os
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

BLOCK_BYTES = 4096
CHUNK_BYTES = 1 << 20


class BlockDevice:
    """An open device; use it in a `with` block. Offsets and lengths are multiples of 4096. Threads may share it."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._descriptor = os.open(path, flags)
        self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        self.is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._buffers = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> memoryview:
        """Up to `length` bytes (at most `CHUNK_BYTES`), fewer only at the end. Valid until this thread reads again."""
        buffer = self._buffer()
        got = 0
        while got < length:
            count = os.preadv(self._descriptor, [buffer[got:length]], offset + got)
            if count == 0:
                break
            got += count
        return buffer[:got]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write `data`: what a device has read, or at most `CHUNK_BYTES` of anything. Durable after `flush`."""
        if isinstance(data, memoryview):
            aligned = data
        else:
            aligned = self._buffer()[: len(data)]
            aligned[:] = data
        done = 0
        while done < len(aligned):
            done += os.pwritev(self._descriptor, [aligned[done:]], offset + done)

    def fileno(self) -> int:
        """The descriptor, for what only the kernel can do."""
        return self._descriptor

    def flush(self) -> None:
        """Make everything durable that was written."""
        os.fsync(self._descriptor)

    def _buffer(self) -> memoryview:
        # Direct input and output wants aligned memory, which a mapping is; and a forked process its own.
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(mmap.mmap(-1, CHUNK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        view: memoryview = self._buffers.view
        return view
