"""Reads and writes `obelisk.lock`: TOML with one package a line, so that a change of versions reads well in a diff.

What is read has the form that `obelisk lock` writes, whoever wrote it: its words become parts of addresses, paths and scripts.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from obelisk.errors import InputError
from obelisk.model import toml
from obelisk.model.lock import Account, Blob, ImportedImage, Lock, Package, PackageSet, Pinned
from obelisk.system.files import write_durably, written_by_name

FORMAT = 2
_HEADER = "# Every input of the image, pinned. Written by `obelisk lock`; commit it, do not edit it.\n"
_REMEDY = (
    "restore it from version control, or remove it and run `obelisk lock`, which takes the newest versions and may shift ids of accounts"
)

_DIGEST = "[0-9a-f]{64}"
_ACCOUNT = r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?"
_LARGEST_ID = (1 << 32) - 2
_PACKAGE = {
    "version": "[0-9A-Za-z.+:~-]+",
    "architecture": "[a-z0-9-]+",
    "sha256": _DIGEST,
    "origin": "[a-z0-9-]+/[A-Za-z0-9._/-]+",
    "path": r"(?!/)(?!(.*/)?\.\.(/|$))[^\s\x00-\x1f\x7f'\"\\]+",
}


def read_lock(path: Path) -> Lock:
    """The lock in `path`.

    Raises:
        InputError: the file is missing, damaged, or of another format.
    """
    try:
        raw = tomllib.loads(path.read_text())
        if (form := _count(raw, "format", "the lock")) != FORMAT:
            raise InputError(f"lock format {form} is not {FORMAT}", place=str(path), code="lock-format", hint=_REMEDY)
        foundation = _package_set(raw, "foundation")
        return Lock(
            request=_text(raw, "request", _DIGEST, "the lock"),
            foundation=foundation,
            base=_package_set(raw, "base", without=foundation),
            tools=_package_set(raw, "tools"),
            users=tuple(_user(name, text) for name, text in _table(raw, "users").items()),
            groups=tuple(_group(name, number) for name, number in _table(raw, "groups").items()),
            pinned=Pinned(*(tuple(_names(_table(raw, "pinned"), each.name)) for each in fields(Pinned))),
            image=_image(_table(raw, "image")) if "image" in raw else None,
        )
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", code="lock-missing", hint="run `obelisk lock` first") from error
    except ValueError as error:
        raise InputError(f"the lock is damaged: {error}", place=str(path), code="lock-damaged", hint=_REMEDY) from error


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the lock in `path` atomically.

    Raises:
        StateError: it cannot be written.
    """
    text = [_HEADER, f"format = {FORMAT}\n", f'request = "{lock.request}"\n']
    pinned = [f"{each.name} = [{', '.join(map(_quoted, getattr(lock.pinned, each.name)))}]\n" for each in fields(Pinned)]
    text += ["\n[pinned]\n", *pinned, "\n[users]\n"]
    text += [f"{_quoted(user.name)} = {_quoted(f'{user.id}:{user.entry}')}\n" for user in sorted(lock.users, key=lambda a: (a.id, a.name))]
    text.append("\n[groups]\n")
    text += [f"{_quoted(group.name)} = {group.id}\n" for group in sorted(lock.groups, key=lambda a: (a.id, a.name))]
    for title, packages in (("foundation", lock.foundation), ("base", lock.base), ("tools", lock.tools)):
        text.append(f"\n[{title}]\nsuite = {_quoted(packages.suite)}\nepoch = {packages.epoch}\npackages = [\n")
        text += [f"  {_package_line(package)},\n" for package in packages.packages]
        text.append("]\n")
    text += [] if lock.image is None else _image_lines(lock.image)
    with written_by_name(path):
        write_durably(path, "".join(text).encode())


def _image_lines(image: ImportedImage) -> Iterator[str]:
    yield f'\n[image]\nsha256 = "{image.sha256}"\n'
    yield f"command = {toml.strings(image.command)}\n"
    yield f"environment = {toml.strings(f'{name}={value}' for name, value in image.environment)}\n"
    yield f"directory = {toml.string(image.directory)}\nconfig = {_blob_line(image.config)}\nlayers = [\n"
    yield from (f"  {_blob_line(layer)},\n" for layer in image.layers)
    yield "]\n"


def _blob_line(blob: Blob) -> str:
    return f'{{ sha256 = "{blob.sha256}", size = {blob.size_bytes}, type = {_quoted(blob.media_type)} }}'


def difference(old: Lock | None, new: Lock) -> tuple[str, ...]:
    """What changes from `old` to `new`, a line a package: `+ name version`, `- name version`, `name old -> new`."""
    lines: list[str] = []
    for title, before, after in (
        ("", old.system if old else None, new.system),
        ("tools: ", old.tools if old else None, new.tools),
    ):
        was = {p.name: p for p in before.packages} if before else {}
        now = {p.name: p for p in after.packages}
        for name in sorted(was.keys() | now.keys()):
            if name not in was:
                lines.append(f"{title}+ {name} {now[name].version}")
            elif name not in now:
                lines.append(f"{title}- {name} {was[name].version}")
            elif was[name].sha256 != now[name].sha256:
                lines.append(f"{title}{name} {was[name].version} -> {now[name].version}")
    one, other = (lock.image.sha256[:12] if lock is not None and lock.image is not None else "" for lock in (old, new))
    if one != other:
        lines.append(f"image {one} -> {other}" if one and other else f"+ image {other}" if other else "- image")
    return tuple(lines)


def _image(table: dict[str, Any]) -> ImportedImage:
    environment = []
    for each in _texts(table, "environment"):
        name, assigned, value = each.partition("=")
        _name(name, r"[A-Za-z_][A-Za-z0-9_]*", "a variable of the image")
        if not assigned or "\0" in value:
            raise ValueError(f"{each!r} is no variable of the image")
        environment.append((name, value))
    return ImportedImage(
        _text(table, "sha256", _DIGEST, "image"),
        _blob(table.get("config")),
        tuple(map(_blob, _list(table, "layers", "image"))),
        tuple(_texts(table, "command")),
        tuple(environment),
        _text(table, "directory", r"(/[^\x00]*)?", "image"),
    )


def _blob(raw: object) -> Blob:
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r} is no blob of the image")  # noqa: TRY004 - wrong content of a file, not a wrong call
    return Blob(_text(raw, "sha256", _DIGEST, "a blob"), _count(raw, "size", "a blob"), _text(raw, "type", r"[a-z0-9.+/-]+", "a blob"))


def _texts(table: dict[str, Any], key: str) -> Iterator[str]:
    for each in _list(table, key, "image"):
        yield _name(each, r"[^\x00]*", f"image: {key}")


def _user(name: str, text: object) -> Account:
    _name(name, _ACCOUNT, "user")
    # uid, then the rest of a line of passwd(5): gid, comment, home, shell.
    found = re.fullmatch(r"(\d{1,10}):(\d{1,10}:[^:\n\0]*:[^:\n\0]*:[^:\n\0]*)", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"user {name} is {text!r}, not uid:gid:comment:home:shell")
    return Account(name, _id(int(found[1]), name), found[2])


def _group(name: str, number: object) -> Account:
    return Account(_name(name, _ACCOUNT, "group"), _id(number, name))


def _id(number: object, name: str) -> int:
    if type(number) is not int or not 0 <= number <= _LARGEST_ID:
        raise ValueError(f"the id of {name} is {number!r}")
    return number


def _package_set(raw: dict[str, Any], title: str, *, without: PackageSet | None = None) -> PackageSet:
    elsewhere = {package.name for package in without.packages} if without else set()
    table = _table(raw, title)
    found: dict[str, Package] = {}
    for each in _list(table, "packages", title):
        if not isinstance(each, dict):
            raise ValueError(f"{each!r} in {title} is not a package")  # noqa: TRY004 - wrong content of a file, not a wrong call
        name = _text(each, "name", "[a-z0-9][a-z0-9+.-]+", f"a package in {title}")
        if name in found or name in elsewhere:
            raise ValueError(f"{name} is there twice, the second time in {title}")
        version, architecture, sha256, origin, path = (_text(each, key, form, name) for key, form in _PACKAGE.items())
        found[name] = Package(name, version, architecture, sha256, _count(each, "size", name), origin, path)
    return PackageSet(_text(table, "suite", "[a-z0-9-]+", title), _count(table, "epoch", title), tuple(found.values()))


def _table(raw: dict[str, Any], key: str) -> dict[str, Any]:
    found = raw.get(key)
    if not isinstance(found, dict):
        raise ValueError(f"it has no table {key!r}")  # noqa: TRY004 - likewise
    return found


def _list(table: dict[str, Any], key: str, where: str) -> list[Any]:
    found = table.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{where} has no list {key!r}")  # noqa: TRY004 - likewise
    return found


def _text(table: dict[str, Any], key: str, form: str, where: str) -> str:
    if key not in table:
        raise ValueError(f"{where} has no {key}")
    return _name(table[key], form, f"{where}: {key}")


def _name(text: object, form: str, what: str) -> str:
    if not isinstance(text, str) or re.fullmatch(form, text) is None:
        raise ValueError(f"{what} {text!r} has not the form that a lock has")
    return text


def _names(table: dict[str, Any], key: str) -> Iterator[str]:
    return (_name(name, _ACCOUNT, "account") for name in _list(table, key, "pinned"))


def _count(table: dict[str, Any], key: str, where: str) -> int:
    found = table.get(key)
    if type(found) is not int or found < 0:
        raise ValueError(f"{where}: {key} is {found!r}, not a number")
    return found


def _package_line(package: Package) -> str:
    fields: dict[str, str | int] = {
        "name": package.name,
        "version": package.version,
        "architecture": package.architecture,
        "size": package.size_bytes,
        "sha256": package.sha256,
        "origin": package.origin,
        "path": package.path,
    }
    return "{ " + ", ".join(f"{key} = {_quoted(value) if isinstance(value, str) else value}" for key, value in fields.items()) + " }"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
