"""Desktop entries of installed applications: what people find and start them by, in the menus of their session.

What an entry says comes from the image's own entry of the program, where there is one; what it starts does not. Of that entry only words
for people are taken, not the kinds of files that it opens: an application sees none but those that it was granted.

Pure, but for `described`, which reads files of the image's root. None of its links leads out of there.

Source: Desktop Entry Specification 1.1, recognised keys, the Exec key; Icon Theme Specification, directory layout.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import InputError
from obelisk.sandbox import keyfile

_GROUP = "Desktop Entry"
# For people, also in their language; and how a window is known as the program's.
_WORDS = re.compile(r"(Name|GenericName|Comment|Keywords)(\[[A-Za-z0-9_.@-]+\])?|Categories|StartupNotify|StartupWMClass")
_ENTRIES = "usr/share/applications"
_ICONS = (*(f"usr/share/icons/hicolor/{size}x{size}/apps" for size in (256, 128, 96, 64, 48, 32)), "usr/share/pixmaps")
_ICON = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 1 << 20
_QUOTED = re.compile(r'(["`$\\])')


@dataclass(frozen=True, slots=True)
class Description:
    """What an image tells of its program: keys and raw values of an entry, and its icon in the format PNG, empty where it has none."""

    words: tuple[tuple[str, str], ...] = ()
    icon: bytes = b""


def described(root: Path, command: tuple[str, ...]) -> Description:
    """What the image whose root is at `root` says of the program that `command` starts. What cannot be read says nothing."""
    for file in sorted((root / _ENTRIES).glob("*.desktop")):
        keys = _keys(_content(root, file))
        if Path(_program(keys.get("Exec", ""))).name == Path(command[0]).name:
            return Description(tuple(_words(keys)), _icon(root, keyfile.read_value(keys.get("Icon", ""))))
    return Description()


def text(name: str, program: Path, found: Description, icon: Path | None) -> str:
    """The entry of the application `name`, which `program` starts; `icon` is a file."""
    fixed = {"Type": "Application", "Version": "1.1", "Name": name}
    started = {"Exec": keyfile.value(_argument(str(program))), "Terminal": "false"}
    shown = {"Icon": keyfile.value(str(icon))} if icon is not None else {}
    return keyfile.render({_GROUP: {**fixed, **dict(found.words), **started, **shown}})


def _keys(content: bytes) -> Mapping[str, str]:
    try:
        return keyfile.parse(content).get(_GROUP, {})
    except InputError:
        return {}


def _words(keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((key, value) for key, value in keys.items() if _WORDS.fullmatch(key) and value.isprintable())


def _program(line: str) -> str:
    try:
        return next(iter(shlex.split(line)), "")
    except ValueError:
        return ""


def _icon(root: Path, name: str) -> bytes:
    if not _ICON.fullmatch(name.removesuffix(".png")):
        return b""
    files = (root / directory / f"{name.removesuffix('.png')}.png" for directory in _ICONS)
    return next((content for file in files if (content := _content(root, file)).startswith(_PNG)), b"")


def _content(root: Path, file: Path) -> bytes:
    """What is in a file of the image; nothing where it is none, too large, or elsewhere."""
    try:
        there = file.resolve(strict=True)
        if not there.is_relative_to(root.resolve()) or not there.is_file() or there.stat().st_size > _MOST_BYTES:
            return b""
        return there.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return b""


def _argument(word: str) -> str:
    """A word of a command line as the key Exec has it."""
    return '"' + _QUOTED.sub(r"\\\1", word).replace("%", "%%") + '"'
