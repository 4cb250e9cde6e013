"""The position index: every path of a parsed document has one line, and it is the line where it is written."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obelisk.spec.positions import KeyPath, index, spell

BARE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
TEXTS = st.text(st.sampled_from("ab\"'#[]{}=,.\\ \n\té"), max_size=8)
SCALARS = st.one_of(
    TEXTS,
    st.integers(-9, 9),
    st.booleans(),
    st.just(1.5),
    st.just(date(2026, 1, 2)),
    st.just(datetime(2026, 1, 2, 3, 4, 5)),  # noqa: DTZ001
)
KEYS = st.one_of(st.sampled_from(["a", "b", "c-1"]), st.text(st.sampled_from("ab.\"'# =[]"), max_size=3))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=12
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=4)


@dataclass
class Writer:
    """Writes a document in randomly chosen spellings and notes on which line each path is written."""

    draw: Any
    text: str = ""
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def coin(self) -> bool:
        return bool(self.draw(st.booleans()))

    def add(self, text: str) -> None:
        self.text += text

    def note(self, path: KeyPath) -> None:
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], self.text.count("\n") + 1)

    def gap(self) -> None:
        """What may stand between elements of a list or between lines."""
        self.add(self.draw(st.sampled_from(["", " ", "\n", "\n\n  ", " # it's ]} \"\n", "\t# '''\n\n"])))

    def key(self, key: str) -> None:
        if key and set(key) <= BARE and self.coin():
            self.add(key)
        elif "'" not in key and self.coin():
            self.add(f"'{key}'")
        else:
            self.add(json.dumps(key))

    def dotted(self, keys: tuple[str, ...]) -> None:
        for number, key in enumerate(keys):
            self.add(self.draw(st.sampled_from([".", " . ", ".\t"])) if number else "")
            self.key(key)

    def value(self, path: KeyPath, value: object) -> None:
        if isinstance(value, dict):
            self.add("{")
            for number, (key, inner) in enumerate(value.items()):
                self.add(", " if number else " ")
                self.note((*path, key))
                self.key(key)
                self.add(" = ")
                self.value((*path, key), inner)
            self.add("}")
        elif isinstance(value, list):
            self.add("[")
            for number, inner in enumerate(value):
                self.gap()
                self.note((*path, number))
                self.value((*path, number), inner)
                self.gap()
                self.add("," if number < len(value) - 1 or self.coin() else "")
            self.gap()
            self.add("]")
        elif isinstance(value, str):
            self.string(value)
        elif isinstance(value, datetime):
            self.add(value.isoformat(" " if self.coin() else "T"))
        else:
            self.add(value.isoformat() if isinstance(value, date) else json.dumps(value))

    def string(self, value: str) -> None:
        forms = [json.dumps(value), '"""\n' + value.replace("\\", "\\\\").replace('"""', '""\\"') + '"""']
        if "'''" not in value:
            forms.append(f"'''\n{value}'''")
        if not set(value) & {"'", "\n"}:
            forms.append(f"'{value}'")
        self.add(self.draw(st.sampled_from(forms)))

    def table(self, path: KeyPath, keys: tuple[str, ...], value: dict[str, Any]) -> None:
        """The body of a table: pairs first, then tables and lists of tables with headers of their own."""
        later: list[tuple[str, Any]] = []
        for key, inner in value.items():
            is_list = isinstance(inner, list) and inner and all(isinstance(element, dict) for element in inner)
            if (isinstance(inner, dict) or is_list) and self.coin():
                later.append((key, inner))
            elif isinstance(inner, dict) and inner and self.coin():
                for last, leaf in inner.items():
                    self.pair((*path, key, last), (key, last), leaf)
            else:
                self.pair((*path, key), (key,), inner)
        for key, inner in later:
            for number, element in enumerate(inner if isinstance(inner, list) else [inner]):
                here = (*path, key, number) if isinstance(inner, list) else (*path, key)
                self.note(here)
                self.add("[[" if isinstance(inner, list) else "[")
                self.dotted((*keys, key))
                self.add("]] # header\n" if isinstance(inner, list) else " ]\n")
                self.table(here, (*keys, key), element)

    def pair(self, path: KeyPath, keys: tuple[str, ...], value: object) -> None:
        self.note(path)
        self.dotted(keys)
        self.add(" = ")
        self.value(path, value)
        self.add("\n" if self.coin() else " # end\n")


def paths(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every path of a parsed document."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, element in inner:
        yield (*path, key)
        yield from paths(element, (*path, key))


@settings(max_examples=250, deadline=None)
@given(document=DOCUMENTS, data=st.data())
def test_every_path_has_the_line_where_it_is_written(document: dict[str, Any], data: st.DataObject) -> None:
    writer = Writer(data.draw)
    writer.table((), (), document)
    assert tomllib.loads(writer.text) == document, "the writer is wrong"
    found = index(writer.text).lines
    assert found == writer.lines
    assert set(found) == set(paths(document))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a.b]\nx=1\n[a]\ny=2\n", {("a",): 3, ("a", "b"): 1, ("a", "b", "x"): 2, ("a", "y"): 4}),
        ("[[a]]\n[a.b]\nx=1\n[[a]]\n[[a.c]]\nx=1\n", {("a", 0, "b", "x"): 3, ("a", 1): 4, ("a", 1, "c", 0, "x"): 6}),
        ('a = """x\n"""""\nb = 1\n', {("a",): 1, ("b",): 3}),
        ("a = ''''x'\n'''''\nb = 1\n", {("a",): 1, ("b",): 3}),
        ('a = """\\"""\n"""\nb = 1\n', {("b",): 3}),
        ('"k\\u00e9y".b = [\n  1, # one\n  {c = "]"},\n]\nd = 2', {("kéy", "b", 1, "c"): 3, ("d",): 5}),
        ("# [no]\n\n\ta = 2026-01-02 03:04:05 # x\nb=0x1F\n", {("a",): 3, ("b",): 4}),
    ],
)
def test_forms_that_are_easily_misread(text: str, expected: dict[KeyPath, int]) -> None:
    tomllib.loads(text)
    assert {path: index(text).lines.get(path) for path in expected} == expected


def test_an_unknown_path_stands_where_the_nearest_thing_around_it_stands() -> None:
    positions = index("a = 1\n[b.c]\nd = 1\n")
    assert positions.line(("b", "c", "nothing", 3)) == 2
    assert positions.line(("nothing",)) == 1
    assert positions.line(()) == 1


@pytest.mark.parametrize(
    ("path", "spelled"),
    [
        ((), ""),
        (("a", "b-c", 2), "a.b-c[2]"),
        (("files", "/etc/motd", "mode"), 'files."/etc/motd".mode'),
        (("x", "a\nb"), 'x."a\\nb"'),
        (("", 0), '""[0]'),
    ],
)
def test_paths_are_spelled_as_in_the_file(path: KeyPath, spelled: str) -> None:
    assert spell(path) == spelled
