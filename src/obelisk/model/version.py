"""The order of versions, as systemd-boot and every other reader of images has it.

Source: UAPI.10 Version Format Specification.
"""

import re

_NUMBER = re.compile(r"[0-9]+")
_LETTERS = re.compile(r"[A-Za-z]+")
_IGNORED = re.compile(r"[^A-Za-z0-9~.^-]+")


def compare(first: str, second: str) -> int:
    """Negative, zero or positive, as `first` is older than, the same as, or newer than `second`."""
    a, b = _IGNORED.sub("", first), _IGNORED.sub("", second)
    while True:
        if a.startswith("~") or b.startswith("~"):
            if not (a.startswith("~") and b.startswith("~")):
                return -1 if a.startswith("~") else 1
            a, b = a[1:], b[1:]
            continue
        if not a or not b:
            return bool(a) - bool(b)
        mark = next((mark for mark in "-^." if mark in (a[0], b[0])), None)
        if mark is not None:
            if a[0] != b[0]:
                return -1 if a[0] == mark else 1
            a, b = a[1:], b[1:]
            continue
        if a[0].isdigit() or b[0].isdigit():
            one, other = _prefix(_NUMBER, a), _prefix(_NUMBER, b)
            found = _sign(int(one or "-1"), int(other or "-1"))
        else:
            one, other = _prefix(_LETTERS, a), _prefix(_LETTERS, b)
            found = (one > other) - (one < other)
        if found:
            return found
        a, b = a[len(one) :], b[len(other) :]


def _prefix(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.match(text)
    return found[0] if found else ""


def _sign(one: int, other: int) -> int:
    return (one > other) - (one < other)
