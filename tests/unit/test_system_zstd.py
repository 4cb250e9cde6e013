"""zstd frames, by the library."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.errors import TrustError
from obelisk.system import zstd


@given(st.binary(max_size=5000), st.sampled_from([1, 3, 19]))
def test_what_is_compressed_comes_back(data: bytes, level: int) -> None:
    assert zstd.decompress(zstd.compress(data, level), len(data)) == data


def test_repetition_shrinks() -> None:
    assert len(zstd.compress(b"obelisk" * 1000, 3)) < 100


def test_content_beyond_the_limit_is_refused() -> None:
    with pytest.raises(TrustError):
        zstd.decompress(zstd.compress(bytes(5001), 3), 5000)


@given(st.binary(max_size=200))
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        zstd.decompress(b"\0" + data, 1000)


@given(st.integers(min_value=0, max_value=400), st.integers(min_value=1, max_value=255))
def test_a_flipped_byte_gives_an_error_or_content_within_the_limit(at: int, flip: int) -> None:
    frame = bytearray(zstd.compress(bytes(range(256)) * 4, 3))
    frame[at % len(frame)] ^= flip
    with suppress(TrustError):
        assert len(zstd.decompress(bytes(frame), 2000)) <= 2000


@given(st.integers(min_value=0, max_value=100))
def test_a_frame_that_is_cut_short_is_refused(size: int) -> None:
    frame = zstd.compress(bytes(range(256)), 3)
    with pytest.raises(TrustError):
        zstd.decompress(frame[: size % len(frame)], 1000)


def test_threads_have_contexts_of_their_own() -> None:
    frames = [zstd.compress(bytes([number]) * 100_000, 1) for number in range(50)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda frame: zstd.decompress(frame, 100_000), frames))
    assert found == [bytes([number]) * 100_000 for number in range(50)]
