"""Where each key of a TOML document stands: the index that `tomllib` does not give.

Reads documents that `tomllib` has accepted, and relies on that: it finds the ends of keys and values, it does not check them. Every key,
table and list element of the parsed document has exactly one line here. A table that is both implied by a longer header and written
out stands where it is written out.

Source: TOML 1.0, sections Keys, String, Array, Table, Inline Table, Array of Tables.
"""

import json
import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass
from typing import NoReturn

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_BLANK = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Up to two quotes may stand directly before the three that end a multi-line string, hence {3,5}.
_STRING = re.compile(
    r"""
      "{3} (?:\\.|[^\\])*? "{3,5}
    | '{3} .*? '{3,5}
    | " (?:\\.|[^"\\\n])* "
    | ' [^'\n]* '
    """,
    re.DOTALL | re.VERBOSE,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


@dataclass(frozen=True, slots=True)
class Positions:
    """Lines of a document, counted from 1, by path: keys as text, list elements as numbers from 0."""

    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest thing around it that is written down."""
        for length in range(len(path), 0, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return line
        return 1


def index(text: str) -> Positions:
    """The positions of everything in `text`, which must be valid TOML."""
    return Positions(_Scanner(text).scan())


def spell(path: KeyPath) -> str:
    """`path` as one would write it: `files."/etc/motd".mode`, `packages[2]`."""
    spelled = ""
    for part in path:
        if isinstance(part, int):
            spelled += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else quote(part)
            spelled += f".{key}" if spelled else key
    return spelled


def quote(text: str) -> str:
    """`text` as a basic string of TOML, on one line."""
    # JSON's strings are TOML's, but for the one control character that JSON leaves alone.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class _Scanner:
    """One pass over a document."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.breaks = [match.start() for match in re.finditer("\n", text)]
        self.elements: dict[KeyPath, int] = {}  # how many [[tables]] each list has so far

    def scan(self) -> dict[KeyPath, int]:
        """The line of every path."""
        table: KeyPath = ()
        while self.skip(_BLANK) < len(self.text):
            line = self.line()
            if self.take("[["):
                keys = self.keys()
                self.take("]]")
                parent = self.resolve(keys[:-1])
                self.note(parent, line)
                of = (*parent, keys[-1])
                table = (*of, self.elements.get(of, 0))
                self.elements[of] = self.elements.get(of, 0) + 1
                self.note(table, line)
            elif self.take("["):
                table = self.resolve(self.keys())
                self.take("]")
                self.note(table, line)
                self.lines[table] = line
            else:
                self.pair(table)
        return self.lines

    def line(self) -> int:
        return bisect_right(self.breaks, self.at - 1) + 1

    def skip(self, pattern: re.Pattern[str]) -> int:
        """Step over what matches (possibly nothing) and say where that ends."""
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return self.at

    def take(self, token: str) -> bool:
        """Step over `token` when it is next."""
        found = self.text.startswith(token, self.at)
        self.at += len(token) * found
        return found

    def keys(self) -> tuple[str, ...]:
        """A dotted key, and the blanks around it."""
        keys: list[str] = []
        while True:
            start = self.skip(_KEY_BLANK)
            quoted = self.text[start] in "\"'"
            raw = self.text[start : self.skip(_STRING if quoted else _BARE_KEY)]
            keys.append(next(iter(tomllib.loads(f"{raw}=0"))) if quoted else raw)
            self.skip(_KEY_BLANK)
            if not self.take("."):
                return tuple(keys)

    def resolve(self, keys: tuple[str, ...]) -> KeyPath:
        """The path that a header means: a list of tables stands for its last element."""
        path: KeyPath = ()
        for key in keys:
            path = (*path, key)
            if path in self.elements:
                path = (*path, self.elements[path] - 1)
        return path

    def note(self, path: KeyPath, line: int) -> None:
        """`path`, and what it implies, stands at `line` unless something said so before."""
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def pair(self, table: KeyPath) -> None:
        """A key and its value inside `table`."""
        line = self.line()
        path = (*table, *self.keys())
        if not self.take("="):
            self.lost()
        self.note(path, line)
        self.value(path)

    def value(self, path: KeyPath) -> None:
        self.skip(_BLANK)
        if self.take("["):
            element = 0
            while self.skip(_BLANK) < len(self.text) and not self.take("]"):
                self.note((*path, element), self.line())
                self.value((*path, element))
                self.skip(_BLANK)
                self.take(",")
                element += 1
        elif self.take("{"):
            while self.skip(_BLANK) < len(self.text) and not self.take("}"):
                self.pair(path)
                self.skip(_BLANK)
                self.take(",")
        else:
            start = self.at
            if self.skip(_STRING if self.text[start] in "\"'" else _SCALAR) == start:
                self.lost()

    def lost(self) -> NoReturn:
        """What `tomllib` has accepted always leads on; anything else is a bug, and must not become an endless loop."""
        message = f"the position index and tomllib disagree at line {self.line()}"
        raise AssertionError(message)
