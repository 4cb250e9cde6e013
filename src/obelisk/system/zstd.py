"""zstd frames by libzstd, which every Debian has: dpkg itself needs it. Calls let other threads run."""

import ctypes
import threading
from collections.abc import Iterable, Sequence
from functools import cache

from obelisk.errors import MissingFeatureError, TrustError

_UNKNOWN = (1 << 64) - 2  # what the size of a frame's content begins with, from here on, when it is not told or the frame is none

Functions = Iterable[tuple[str, type[object], Sequence[type[object]]]]
"""Functions of the library: name, type of the result, types of the arguments."""


def compress(data: bytes | memoryview, level: int) -> bytes:
    """One frame that tells the size of its content. `level` is 1 to 19.

    Raises:
        MissingFeatureError: there is no libzstd.
    """
    library = _library()
    bound = library.ZSTD_compressBound(len(data))
    room = ctypes.create_string_buffer(bound)
    size = library.ZSTD_compressCCtx(_contexts(library).compressing, room, bound, bytes(data), len(data), level)
    if library.ZSTD_isError(size):
        raise MemoryError(library.ZSTD_getErrorName(size).decode())
    return room.raw[:size]


def decompress(frame: bytes, limit: int) -> bytes:
    """The content of one frame, which has at most `limit` bytes: no more memory than that is taken.

    Raises:
        TrustError: it is no whole frame, or a larger one.
        MissingFeatureError: there is no libzstd.
    """
    library = _library()
    size = library.ZSTD_getFrameContentSize(frame, len(frame))
    if size >= _UNKNOWN or size > limit:
        raise _damaged("it has no size, or too large a one")
    # What it says of its size is no more than its word: the room is what bounds it.
    room = ctypes.create_string_buffer(max(size, 1))
    found = library.ZSTD_decompressDCtx(_contexts(library).decompressing, room, size, frame, len(frame))
    if library.ZSTD_isError(found):
        raise _damaged(library.ZSTD_getErrorName(found).decode())
    if found != size:
        raise _damaged("it is cut short")
    return room.raw[:size]


def _damaged(why: str) -> TrustError:
    return TrustError(
        f"a compressed frame is damaged: {why}", code="frame-damaged", hint="fetch it again, from another mirror if there is one"
    )


class _Contexts(threading.local):
    """What a thread keeps between calls, which spares it the making of tables each time."""

    def __init__(self) -> None:
        library = _library()
        self._library = library
        self.compressing = ctypes.c_void_p(library.ZSTD_createCCtx())
        self.decompressing = ctypes.c_void_p(library.ZSTD_createDCtx())

    def __del__(self) -> None:
        self._library.ZSTD_freeCCtx(self.compressing)
        self._library.ZSTD_freeDCtx(self.decompressing)


@cache
def _contexts(_of: ctypes.CDLL) -> _Contexts:
    return _Contexts()


def load(functions: Functions) -> ctypes.CDLL:
    """The library, with these functions of it.

    Raises:
        MissingFeatureError: there is no libzstd.
    """
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise MissingFeatureError("libzstd.so.1 is missing", code="zstd-missing", hint="install Debian's libzstd1, or its like") from error
    for name, result, arguments in functions:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def _library() -> ctypes.CDLL:
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    functions: Functions = (
        ("ZSTD_compressBound", size, [size]),
        ("ZSTD_isError", ctypes.c_uint, [size]),
        ("ZSTD_getErrorName", ctypes.c_char_p, [size]),
        ("ZSTD_getFrameContentSize", ctypes.c_ulonglong, [ctypes.c_char_p, size]),
        ("ZSTD_createCCtx", pointer, []),
        ("ZSTD_createDCtx", pointer, []),
        ("ZSTD_freeCCtx", size, [pointer]),
        ("ZSTD_freeDCtx", size, [pointer]),
        ("ZSTD_compressCCtx", size, [pointer, pointer, size, ctypes.c_char_p, size, ctypes.c_int]),
        ("ZSTD_decompressDCtx", size, [pointer, pointer, size, ctypes.c_char_p, size]),
    )
    return load(functions)
