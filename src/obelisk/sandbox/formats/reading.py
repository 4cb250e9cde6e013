"""Reads JSON of others: what is absent is empty, and what is of another type than it has to be is named."""

from collections.abc import Mapping
from typing import Any, TypeVar

from obelisk.errors import InputError

T = TypeVar("T")
_WORDS: Mapping[type, str] = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def member(raw: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """The value of a key; an empty one of that kind where the key is absent or null.

    Raises:
        InputError: it is of another kind.
    """
    value = raw.get(key)
    if value is None:
        return kind()
    if type(value) is not kind:
        raise InputError(f"{key} is not {_WORDS[kind]}", code="import-format", hint="correct the file")
    return value


def text(raw: Mapping[str, Any], key: str) -> str:
    """A string."""
    return member(raw, key, str)


def number(raw: Mapping[str, Any], key: str) -> int:
    """A whole number."""
    return member(raw, key, int)


def items(raw: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects."""
    return elements(raw, key, dict)


def texts(raw: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings."""
    return elements(raw, key, str)


def elements(raw: Mapping[str, Any], key: str, kind: type[T]) -> list[T]:
    """A list whose elements are all of one kind.

    Raises:
        InputError: one is of another.
    """
    found = member(raw, key, list)
    if any(type(each) is not kind for each in found):
        raise InputError(f"{key} has an element that is not {_WORDS[kind]}", code="import-format", hint="correct the file")
    return found
