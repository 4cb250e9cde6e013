"""Makes /var of a tree the template of a machine's state.

The directories, links and files that packages ship below /var become lines of tmpfiles.d(5), which each boot applies to what is
missing, and never to what is there; the files themselves move to /usr/share/factory.
"""

import os
import shutil
import stat
from pathlib import Path

FACTORY = "usr/share/factory"
SKIPPED = frozenset({"/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/cache/debconf", "/var/lock", "/var/run"})
MADE_ELSEWHERE = frozenset({"/var", "/var/tmp", "/var/log/journal"})  # noqa: S108 - a path inside an image


def seed(tree: Path) -> None:
    """Move /var of `tree` aside and write the rules that bring it back on each machine."""
    lines: list[str] = []
    known = _known(tree)
    for path in sorted((tree / "var").rglob("*")):
        name = f"/{path.relative_to(tree)}"
        if name in MADE_ELSEWHERE or name in known or any(name == skipped or name.startswith(f"{skipped}/") for skipped in SKIPPED):
            continue
        lines.append(_rule(tree, path, name))
    lines.append("L+ /var/lib/dpkg - - - - /usr/lib/sysimage/dpkg")
    lines += ["d /var/lib/apt 0755 root root", "d /var/cache/apt/archives/partial 0700 root root"]
    lines += [f"L {name} - - - - {target}" for name, target in (("/var/lock", "/run/lock"), ("/var/run", "/run")) if name not in known]
    rules = tree / "usr/lib/tmpfiles.d/obelisk-var.conf"
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.write_text("# What the image's packages expect below /var. Written by the build.\n" + "".join(f"{line}\n" for line in lines))
    for entry in (tree / "var").iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _known(tree: Path) -> set[str]:
    """Paths that the packages' own tmpfiles.d(5) make already."""
    found: set[str] = set()
    for file in sorted((tree / "usr/lib/tmpfiles.d").glob("*.conf")):
        if file.name.startswith("obelisk"):
            continue
        for line in file.read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0].rstrip("!-=~^$+") in {"d", "D", "q", "Q", "v", "L", "f"}:
                found.add(words[1])
    return found


def escape(name: str) -> str:
    """A path as tmpfiles.d(5) reads it: quoted where it must be, specifiers doubled."""
    text = "".join(
        character if character.isprintable() and character not in '"\\' else "".join(f"\\x{byte:02x}" for byte in character.encode())
        for character in name
    ).replace("%", "%%")
    return f'"{text}"' if text != name or " " in name or "'" in name else name


def _rule(tree: Path, path: Path, name: str) -> str:
    status = path.lstat()
    owner = f"{status.st_uid} {status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"L {escape(name)} - - - - {escape(str(path.readlink()))}"
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    if stat.S_ISDIR(status.st_mode):
        return f"d {escape(name)} {mode} {owner}"
    template = tree / FACTORY / name.lstrip("/")
    template.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, template)
    os.chown(template, status.st_uid, status.st_gid)
    return f"C {escape(name)} {mode} {owner} - /{FACTORY}{escape(name)}"
