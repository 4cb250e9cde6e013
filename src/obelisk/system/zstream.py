"""Whole files as zstd streams, by libzstd, in little memory; for what every zstd has to read.

Frames of a few blocks, as packs have them, are another module's.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.system import zstd

_CHUNK_BYTES = 1 << 20
_LEVEL, _CHECKSUM, _WORKERS = 100, 201, 400  # ZSTD_cParameter
_CONTINUE, _END = 0, 2  # ZSTD_EndDirective
_WINDOW_LOG_MAX = 100  # ZSTD_dParameter
_WINDOW = 27  # 128 MiB: what zstd(1) takes without being asked for more


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer, which are alike."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


def compress(source: Path, target: Path, *, level: int, workers: int, on_bytes: Callable[[int], None]) -> None:
    """Compress a file into the new file `target`; `on_bytes` is told the sizes of what was read.

    The same library makes the same of the same file, whatever the number of workers, unless it is 0.

    Raises:
        MissingFeatureError: there is no libzstd.
    """
    library = _library()
    with source.open("rb") as reader, target.open("xb") as writer, _context(library.ZSTD_createCCtx, library.ZSTD_freeCCtx) as context:
        _check(library.ZSTD_CCtx_setParameter(context, _LEVEL, level))
        _check(library.ZSTD_CCtx_setParameter(context, _CHECKSUM, 1))
        library.ZSTD_CCtx_setParameter(context, _WORKERS, workers)  # a library without threads says no, and does it alone
        _check(library.ZSTD_CCtx_setPledgedSrcSize(context, source.stat().st_size))
        room = ctypes.create_string_buffer(_CHUNK_BYTES)
        more = True
        while more:
            data = reader.read(_CHUNK_BYTES)
            more = bool(data)
            given = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
            left = 1
            while given.position < given.size or (not more and left):
                made = _Buffer(ctypes.addressof(room), _CHUNK_BYTES, 0)
                directive = _CONTINUE if more else _END
                left = _check(library.ZSTD_compressStream2(context, ctypes.byref(made), ctypes.byref(given), directive))
                writer.write(memoryview(room)[: made.position])
            on_bytes(len(data))


def decompress(source: Path, target: Path, *, limit: int) -> None:
    """Decompress a file into the new file `target`, which gets no larger than `limit` bytes.

    Raises:
        TrustError: the file is no whole zstd stream, or a larger one.
        MissingFeatureError: there is no libzstd.
    """
    library = _library()
    with source.open("rb") as reader, target.open("xb") as writer, _context(library.ZSTD_createDCtx, library.ZSTD_freeDCtx) as context:
        _check(library.ZSTD_DCtx_setParameter(context, _WINDOW_LOG_MAX, _WINDOW))
        room = ctypes.create_string_buffer(_CHUNK_BYTES)
        left = 1
        while data := reader.read(_CHUNK_BYTES):
            given = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
            full = False
            while given.position < given.size or full:
                made = _Buffer(ctypes.addressof(room), _CHUNK_BYTES, 0)
                left = _check(library.ZSTD_decompressStream(context, ctypes.byref(made), ctypes.byref(given)))
                full = made.position == made.size and left > 0
                limit -= made.position
                if limit < 0:
                    raise _damaged("it is larger than it should be")
                writer.write(memoryview(room)[: made.position])
        if left:
            raise _damaged("it is cut short")


def _damaged(why: str) -> TrustError:
    return TrustError(f"a compressed file is damaged: {why}", code="zstd-damaged", hint="fetch it again")


@contextmanager
def _context(create: Callable[[], int], free: Callable[[int], int]) -> Iterator[int]:
    context = create()
    if not context:
        raise MemoryError
    try:
        yield context
    finally:
        free(context)


def _check(result: int) -> int:
    library = _library()
    if library.ZSTD_isError(result):
        raise _damaged(library.ZSTD_getErrorName(result).decode())
    return result


@cache
def _library() -> ctypes.CDLL:
    size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    functions: zstd.Functions = (
        ("ZSTD_isError", ctypes.c_uint, [size]),
        ("ZSTD_getErrorName", ctypes.c_char_p, [size]),
        ("ZSTD_createCCtx", pointer, []),
        ("ZSTD_freeCCtx", size, [pointer]),
        ("ZSTD_CCtx_setParameter", size, [pointer, number, number]),
        ("ZSTD_CCtx_setPledgedSrcSize", size, [pointer, ctypes.c_ulonglong]),
        ("ZSTD_compressStream2", size, [pointer, pointer, pointer, number]),
        ("ZSTD_createDCtx", pointer, []),
        ("ZSTD_freeDCtx", size, [pointer]),
        ("ZSTD_DCtx_setParameter", size, [pointer, number, number]),
        ("ZSTD_decompressStream", size, [pointer, pointer, pointer]),
    )
    return zstd.load(functions)
