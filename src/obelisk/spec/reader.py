"""Reads parsed TOML by its shape: reports everything that is wrong, and gives what is right, with defaults filled in.

What comes out has the types that the shape says, so that later checks need not look again; they still run when something was wrong
elsewhere, so that a person sees all problems at once. For that, a wrong value gives way to its default or is left out, and an entry (one
user, one file) or list with anything wrong in it is left out whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from obelisk.spec.positions import KeyPath, quote, spell
from obelisk.spec.problems import Findings, closest, nearest
from obelisk.spec.shape import Kind, Shape

T = TypeVar("T")

_WORDS = {Kind.TEXT: "text", Kind.WHOLE: "a whole number", Kind.FLAG: "true or false", Kind.LIST: "a list", Kind.TABLE: "a table"}
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_TYPES: Mapping[Kind, type] = {Kind.TEXT: str, Kind.WHOLE: int, Kind.FLAG: bool, Kind.LIST: list, Kind.TABLE: dict}
_SHOWN_CHARACTERS = 60
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class Table:
    """A table that has been read: every value has the type that its shape says."""

    path: KeyPath
    values: Mapping[str, Any]

    def at(self, *keys: str | int) -> KeyPath:
        """The path of something in this table."""
        return (*self.path, *keys)

    def get(self, key: str, kind: type[T]) -> T:
        """The value of a key that is required or has a default."""
        value = self.values[key]
        if not isinstance(value, kind):
            message = f"schema.json does not make {spell(self.at(key))} a {kind.__name__}"
            raise TypeError(message)
        return value

    def find(self, key: str, kind: type[T]) -> T | None:
        """The value of a key that may be absent."""
        return self.get(key, kind) if key in self.values else None

    def texts(self, key: str) -> tuple[str, ...]:
        """The elements of a list of texts."""
        return tuple(self.get(key, list))

    def table(self, key: str) -> "Table":
        """A table inside this one, empty when absent."""
        return self.get(key, Table)

    def tables(self, key: str) -> tuple[tuple[str, "Table"], ...]:
        """The entries of a table or list of tables, with their names, in the order of the file."""
        value = self.values[key]
        return tuple(value.values.items()) if isinstance(value, Table) else tuple((str(n), entry) for n, entry in enumerate(value))


def read(document: Mapping[str, Any], shape: Shape, findings: Findings) -> Table:
    """The whole document as a table. A required key that is missing or wrong is left as empty text."""
    table = _Reader(shape, findings).table((), document, shape)
    return Table((), {**dict.fromkeys(shape.required, ""), **table.values})


@dataclass(frozen=True, slots=True)
class _Absent:
    """What is left of a wrong value."""


_ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class _Reader:
    root: Shape
    findings: Findings

    def value(self, path: KeyPath, value: object, shape: Shape) -> object:
        """What `value` means, or `_ABSENT` after reporting why it means nothing."""
        if type(value) is not _TYPES[shape.kind]:  # a bool is an int to isinstance
            return self.wrong(path, value, shape)
        if isinstance(value, dict):
            before = len(self.findings.problems)
            table = self.entries(path, value, shape) if shape.entries else self.table(path, value, shape)
            is_entry = shape.entries is None and len(path) > 1
            return _ABSENT if is_entry and len(self.findings.problems) > before else table
        if isinstance(value, list):
            return self.list(path, value, shape)
        if isinstance(value, int):
            low, high = shape.minimum, shape.maximum
            right = (low is None or value >= low) and (high is None or value <= high)
        else:
            right = isinstance(value, str) and _is_like(value, shape)
        return value if right else self.wrong(path, value, shape)

    def table(self, path: KeyPath, value: Mapping[str, Any], shape: Shape) -> Table:
        """A table whose keys are known."""
        read: dict[str, object] = {}
        present = set(value)
        for key, inner in value.items():
            if key in shape.properties:
                read[key] = self.value((*path, key), inner, shape.properties[key])
            else:
                present |= closest(key, shape.properties)  # a key that is only misspelled is not missing as well
                self.findings.report((*path, key), "there is no such key", code="spec-key", hint=self.meant(path, key, shape))
        for key in shape.required:
            if key not in present:
                self.findings.report(path, f"`{key}` is missing", code="spec-missing", hint=_example(key, shape.properties[key]))
        names = ", ".join(f"`{key}`" for key in shape.choice)
        if sum(key in value for key in shape.choice) > 1:
            self.findings.report(path, f"give exactly one of {names}", code="spec-conflict")
        elif shape.choice and not present & set(shape.choice):
            self.findings.report(path, f"give exactly one of {names}", code="spec-missing")
        for key, others in shape.needs.items():
            for other in others:
                if key in value and other not in present:
                    self.findings.report((*path, key), f"`{key}` goes with `{other}` only", code="spec-conflict")
        defaults = {key: _default((*path, key), inner) for key, inner in shape.properties.items()}
        kept = {key: inner for key, inner in read.items() if inner is not _ABSENT}
        return Table(path, {**{key: inner for key, inner in defaults.items() if inner is not _ABSENT}, **kept})

    def entries(self, path: KeyPath, value: Mapping[str, Any], shape: Shape) -> Table:
        """A table whose keys are names that the spec gives."""
        read: dict[str, object] = {}
        for name, inner in value.items():
            here = (*path, name)
            if shape.names is not None and not _is_like(name, shape.names):
                self.findings.report(here, f"the name must be {shape.names.rule}, not '{_shown(name)}'", code="spec-value")
            elif shape.entries is not None and (entry := self.value(here, inner, shape.entries)) is not _ABSENT:
                read[name] = entry
        return Table(path, read)

    def list(self, path: KeyPath, value: list[object], shape: Shape) -> object:
        if len(value) < shape.min_items:
            self.findings.report(path, f"must have at least {shape.min_items} element", code="spec-value", hint=shape.hint)
            return _ABSENT
        read: list[object] = []
        for number, inner in enumerate(value):
            here = (*path, number)
            if shape.unique and inner in value[:number]:
                self.findings.report(here, f"'{_shown(inner)}' is listed twice", code="spec-conflict", hint="remove one of them")
            elif shape.items is not None and (element := self.value(here, inner, shape.items)) is not _ABSENT:
                read.append(element)
        # Later checks name elements by number, so a list of plain values stays whole or goes.
        whole = len(read) == len(value) or (shape.items is not None and shape.items.kind is Kind.TABLE)
        return read if whole else _ABSENT

    def wrong(self, path: KeyPath, value: object, shape: Shape) -> _Absent:
        """Report that `value` is not what `shape` wants."""
        if type(value) is _TYPES[shape.kind]:
            wanted = shape.rule or "one of " + ", ".join(shape.enum)
            got = str(value) if isinstance(value, int) else f"'{_shown(value)}'"
        else:
            wanted, got = _WORDS[shape.kind], _type_word(value)
        not_this = "" if shape.secret else f", not {got}"
        self.findings.report(path, f"must be {wanted}{not_this}", code="spec-value", hint=_remedy(value, shape))
        return _ABSENT

    def meant(self, path: KeyPath, key: str, shape: Shape) -> str:
        """Where the key belongs, or the known key most like it."""
        if close := nearest(key, shape.properties):
            return close
        if path and key in self.root.properties:
            return f"`{key}` belongs above the first [table]: everything below [{spell(path)}] is part of that"
        for name, inner in self.root.properties.items():
            if key in inner.properties:
                return f"did you mean `{name}.{key}`?"
        return "known here: " + ", ".join(shape.properties)


def _is_like(value: str, shape: Shape) -> bool:
    return (
        (not shape.enum or value in shape.enum)
        and (shape.pattern is None or shape.pattern.search(value) is not None)
        and (shape.max_length is None or len(value) <= shape.max_length)
    )


def _default(path: KeyPath, shape: Shape) -> object:
    """What an absent value means: its default, for a table what is in it."""
    if shape.kind is Kind.TABLE:
        inner = {} if shape.entries else {key: _default((*path, key), value) for key, value in shape.properties.items()}
        return Table(path, {key: value for key, value in inner.items() if value is not _ABSENT})
    return _ABSENT if shape.default is None else shape.default


def _remedy(value: object, shape: Shape) -> str:
    if shape.kind is Kind.WHOLE and isinstance(value, str) and value.isascii() and value.isdigit():
        return f"write it without quotes: {value}"
    return shape.hint or _form(value, shape)


def _form(value: object, shape: Shape) -> str:
    """How `value` would be written in the type that is wanted."""
    match shape.kind, value:
        case Kind.TEXT, str():
            return nearest(value, shape.enum)
        case Kind.TEXT, int() | float() if not isinstance(value, bool):
            return f'write it in quotes: "{value}"'
        case Kind.LIST, str():
            return f'write it in brackets: ["{_shown(value)}"]'
        case Kind.FLAG, str():
            return "write true or false, without quotes"
        case _:
            return ""


def _example(key: str, shape: Shape) -> str:
    return f"for example: {key} = {inline(shape.examples[0])}" if shape.examples else ""


def inline(value: object) -> str:
    """A value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(element) for element in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{spell((key,))} = {inline(inner)}" for key, inner in value.items()) + " }"
    return str(value)


def size(text: str) -> int:
    """The bytes that a size such as `2G` means."""
    return int(text[:-1]) * int(1024 ** _POWERS[text[-1]])


def seconds(text: str) -> int:
    """The seconds that a time such as `2min` means."""
    number = text.rstrip("smihn")
    return int(number) * _SECONDS[text.removeprefix(number)]


def _type_word(value: object) -> str:
    for kind, python in _TYPES.items():
        if type(value) is python:
            return _WORDS[kind]
    return "a number with a fraction" if isinstance(value, float) else "a date or time"


def _shown(value: object) -> str:
    text = str(value)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
