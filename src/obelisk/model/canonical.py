"""Canonical JSON and digests: the one way in which values become bytes that are hashed or signed.

Canonical means: UTF-8, keys sorted, no insignificant white space, integers only (floats are refused), one trailing newline in files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

Json = None | bool | int | str | Sequence["Json"] | Mapping[str, "Json"]


def canonical(value: Json) -> bytes:
    """The canonical JSON bytes of `value`.

    Raises:
        TypeError: the value holds a float or another type that has no canonical form.
    """
    _refuse_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Json) -> str:
    """SHA-256 of the canonical form, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _refuse_floats(value: Json) -> None:
    if isinstance(value, float):
        message = f"{value!r} has no canonical form: use an integer and name its unit"
        raise TypeError(message)
    if isinstance(value, Mapping):
        for inner in value.values():
            _refuse_floats(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            _refuse_floats(inner)
