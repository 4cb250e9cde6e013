"""Whole numbers of any size in as many bytes as they need: seven bits a byte, the lowest first; signed ones zigzag."""

from collections.abc import Iterable


def encode(numbers: Iterable[int]) -> bytes:
    """The bytes of numbers that are not negative."""
    out = bytearray()
    for number in numbers:
        rest = number
        while rest > 0x7F:  # noqa: PLR2004 - what seven bits hold
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def zigzag(number: int) -> int:
    """A signed number as one that is not negative, small where it is near to zero."""
    return number << 1 if number >= 0 else (-number << 1) - 1


def unzigzag(number: int) -> int:
    """The signed number."""
    return -((number + 1) >> 1) if number & 1 else number >> 1


class Reader:
    """Numbers out of bytes, one after the other. ValueError where there is none, or one that is too large to mean anything."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Whether all was read."""
        return self._at >= len(self._data)

    def number(self) -> int:
        """The next number, below 2^63."""
        found = shift = 0
        while self._at < len(self._data) and shift < 63:  # noqa: PLR2004 - bits
            byte = self._data[self._at]
            self._at += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the mark of a last byte
                return found
            shift += 7
        raise ValueError(self._at)

    def signed(self) -> int:
        """The next number, signed."""
        return unzigzag(self.number())

    def raw(self, size: int) -> bytes:
        """The next `size` bytes as they are."""
        if size > len(self._data) - self._at:
            raise ValueError(size)
        self._at += size
        return self._data[self._at - size : self._at]
