"""Key files, the `.ini` dialect of Flatpak and the desktop: groups of keys, in order. Pure.

Source: Desktop Entry Specification, basic format and values; GLib, key file parser.
"""

from collections.abc import Iterator, Mapping, Sequence

from obelisk.errors import InputError

Groups = Mapping[str, Mapping[str, str]]
"""Raw values, as they are escaped in the file, by group and key."""

_BLANK = " \t\r"
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\", ";": ";"}


def parse(content: bytes) -> dict[str, dict[str, str]]:
    """The groups of a file.

    Raises:
        InputError: it is no key file; the message has the number of the line.
    """
    groups: dict[str, dict[str, str]] = {}
    group: dict[str, str] | None = None
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"this is no text: {error}", code="import-format", hint="name another --format") from error
    if b"\0" in content:
        raise InputError("this is no text: it has zero bytes", code="import-format", hint="name another --format")
    for number, line in enumerate(lines, start=1):
        bare = line.strip(_BLANK)
        if not bare or bare.startswith("#"):
            continue
        if bare.startswith("[") and bare.endswith("]"):
            group = groups.setdefault(bare[1:-1], {})
            continue
        key, equals, value = line.removesuffix("\r").partition("=")
        if not equals or group is None:
            raise InputError(f"line {number} is neither a group nor a key with a value", code="import-format", hint="name another --format")
        group[key.strip(_BLANK)] = value.lstrip(_BLANK)
    return groups


def render(groups: Groups) -> str:
    """The file, with a line between groups."""
    return "\n".join("\n".join((f"[{name}]", *(f"{key}={value}" for key, value in keys.items()), "")) for name, keys in groups.items())


def value(text: str) -> str:
    """A string as a value has it."""
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    spaces = len(escaped) - len(escaped.lstrip(" "))
    tail = len(escaped.rstrip(" "))
    return "\\s" * spaces + escaped[spaces:tail] + "\\s" * (len(escaped) - max(tail, spaces))


def values(texts: Sequence[str]) -> str:
    """A list, each element with a `;` behind it."""
    return "".join(value(text).replace(";", "\\;") + ";" for text in texts)


def read_value(raw: str) -> str:
    """The string of a value. What is escaped and need not be stands for itself."""
    return "".join(_unescaped(raw))


def read_values(raw: str) -> tuple[str, ...]:
    """The strings of a list, without empty ones."""
    found, current = [], ""
    for character in _unescaped(raw, split=True):
        if character:
            current += character
        else:
            found.append(current)
            current = ""
    return tuple(each for each in (*found, current) if each)


def _unescaped(raw: str, *, split: bool = False) -> Iterator[str]:
    """Characters; with `split`, an empty one for each end of an element."""
    characters = iter(raw)
    for character in characters:
        if character == "\\":
            follows = next(characters, "\\")
            yield _ESCAPES.get(follows, follows)
        else:
            yield "" if split and character == ";" else character
