"""Files as zstd streams: what went in comes out, and nothing else ever does."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.errors import TrustError
from obelisk.system import zstream

DATA = b"".join(number.to_bytes(4, "big") for number in range(700_000))


def ignored(_count: int) -> None:
    """Nobody wants to know."""


def compressed(place: Path, data: bytes) -> bytes:
    (place / "data").write_bytes(data)
    zstream.compress(place / "data", place / "zst", level=3, workers=2, on_bytes=ignored)
    return (place / "zst").read_bytes()


def decompressed(place: Path, data: bytes, limit: int) -> bytes:
    (place / "zst").write_bytes(data)
    zstream.decompress(place / "zst", place / "back", limit=limit)
    return (place / "back").read_bytes()


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, len(DATA)])
def test_a_file_comes_back(tmp_path: Path, size: int) -> None:
    data = DATA[:size]
    assert decompressed(tmp_path, compressed(tmp_path, data), size) == data


def test_all_of_it_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    (tmp_path / "data").write_bytes(DATA)
    zstream.compress(tmp_path / "data", tmp_path / "zst", level=3, workers=2, on_bytes=told.append)
    assert sum(told) == len(DATA)


def test_the_number_of_workers_does_not_show(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    for workers in (1, 3):
        zstream.compress(tmp_path / "data", tmp_path / f"{workers}", level=3, workers=workers, on_bytes=ignored)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_what_is_larger_than_allowed_is_refused_early(tmp_path: Path) -> None:
    bomb = compressed(tmp_path, bytes(64 << 20))
    assert len(bomb) < 1 << 14
    with pytest.raises(TrustError) as caught:
        decompressed(tmp_path, bomb, 1 << 20)
    assert caught.value.code == "zstd-damaged"
    assert (tmp_path / "back").stat().st_size <= 1 << 20


@pytest.mark.parametrize("size", [0, 1, 4, 5, 1000, -1])
def test_what_is_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    whole = compressed(tmp_path, DATA)
    with pytest.raises(TrustError):
        decompressed(tmp_path, whole[:size], len(DATA))


@given(st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_flipped_bit_is_never_taken_for_the_file(at: int, flip: int) -> None:
    with TemporaryDirectory() as place:
        data = bytearray(compressed(Path(place), DATA[: 1 << 16]))
        data[at % len(data)] ^= flip
        try:
            assert decompressed(Path(place), bytes(data), 1 << 16) == DATA[: 1 << 16]
        except TrustError as error:
            refused = error.code
        else:
            refused = "zstd-damaged"
    assert refused == "zstd-damaged"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    with TemporaryDirectory() as place, suppress(TrustError):
        assert len(decompressed(Path(place), data, 1 << 16)) <= 1 << 16
