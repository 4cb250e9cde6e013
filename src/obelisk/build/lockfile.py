"""Reads and writes `obelisk.lock`: TOML with one package a line, so that a change of versions reads well in a diff."""

import tomllib
from pathlib import Path
from typing import Any

from obelisk.errors import InputError
from obelisk.model.lock import Account, Lock, Package, PackageSet
from obelisk.system.files import write_durably

FORMAT = 1
_HEADER = "# Every input of the image, pinned. Written by `obelisk lock`; commit it, do not edit it.\n"


def read_lock(path: Path) -> Lock:
    """The lock in `path`.

    Raises:
        InputError: the file is missing, damaged, or of another format.
    """
    try:
        raw = tomllib.loads(path.read_text())
        if raw["format"] != FORMAT:
            raise InputError(
                f"lock format {raw['format']} is not {FORMAT}", place=str(path), code="lock-format", hint="run `obelisk lock --update`"
            )
        return Lock(
            request=raw["request"],
            system=_package_set(raw["system"]),
            tools=_package_set(raw["tools"]),
            users=tuple(_user(name, text) for name, text in raw["users"].items()),
            groups=tuple(Account(name, number) for name, number in raw["groups"].items()),
            pinned=tuple(raw["pinned"]),
        )
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", code="lock-missing", hint="run `obelisk lock` first") from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(
            f"the lock is damaged: {error}", place=str(path), code="lock-damaged", hint="restore it from version control, or lock again"
        ) from error


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the lock in `path` atomically."""
    text = [_HEADER, f"format = {FORMAT}\n", f'request = "{lock.request}"\n']
    text.append(f"pinned = [{', '.join(map(_quoted, lock.pinned))}]\n\n[users]\n")
    text += [f"{_quoted(user.name)} = {_quoted(f'{user.id}:{user.entry}')}\n" for user in sorted(lock.users, key=lambda a: (a.id, a.name))]
    text.append("\n[groups]\n")
    text += [f"{_quoted(group.name)} = {group.id}\n" for group in sorted(lock.groups, key=lambda a: (a.id, a.name))]
    for title, packages in (("system", lock.system), ("tools", lock.tools)):
        text.append(f"\n[{title}]\nsuite = {_quoted(packages.suite)}\nepoch = {packages.epoch}\npackages = [\n")
        text += [f"  {_package_line(package)},\n" for package in packages.packages]
        text.append("]\n")
    write_durably(path, "".join(text).encode())


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
    return tuple(lines)


def _user(name: str, text: str) -> Account:
    number, _, entry = text.partition(":")
    return Account(name, int(number), entry)


def _package_set(raw: dict[str, Any]) -> PackageSet:
    packages = tuple(
        Package(p["name"], p["version"], p["architecture"], p["sha256"], p["size"], p["origin"], p["path"]) for p in raw["packages"]
    )
    return PackageSet(raw["suite"], raw["epoch"], packages)


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
