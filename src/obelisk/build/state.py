"""Makes /var of a root tree the template of a machine's state.

An image is read-only and /var is not part of it: each machine has its own, on its state volume. What packages ship there becomes a
template: files move to /usr/share/factory/var, and a tmpfiles.d(5) file says what belongs where. Each boot adds what is missing, after an
upgrade too, and never touches what is there.

The package database describes the image and not the machine, so it moves to /usr/lib/sysimage/dpkg, where it is verified with the rest;
/var/lib/dpkg on the machine is a link to it, through which `dpkg --list` and its kin read.

Invariants: equal trees give equal bytes. /var is left empty. Nothing is written that another tmpfiles.d file of the tree already says,
nor for contents of caches and logs (their directories are kept, because services expect them).

It reads and changes the tree with the rights of its caller, who sees the true owners. Standard library only.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

FACTORY = "usr/share/factory"
DATABASE = "usr/lib/sysimage/dpkg"
RULES = "usr/lib/tmpfiles.d/obelisk-var.conf"

# Neither these nor what is below them: of the build or of package tools, which a machine does not run.
SKIPPED = frozenset(
    {
        "/var/backups",
        "/var/cache/adduser",
        "/var/cache/apt",
        "/var/cache/debconf",
        "/var/cache/ldconfig",
        "/var/cache/man",
        "/var/lib/apt",
        "/var/lib/dpkg",
        "/var/lib/pam",
        "/var/lib/shells.state",
        "/var/lib/systemd/catalog",
        "/var/lib/systemd/credential.secret",
        "/var/lib/systemd/deb-systemd-helper-enabled",
        "/var/lib/systemd/deb-systemd-helper-masked",
        "/var/lib/systemd/deb-systemd-user-helper-enabled",
        "/var/lib/systemd/deb-systemd-user-helper-masked",
        "/var/lib/systemd/random-seed",
        "/var/lib/ucf",
        "/var/log/apt",
        "/var/tmp",  # noqa: S108 - a path inside an image
    }
)
# Of these only the directories: their files come from running programs.
EMPTIED = ("/var/cache/", "/var/log/")

# Types of tmpfiles.d(5) lines that make the path they name.
_MAKING = frozenset("dDfFvqQLCpcbe")
# What the argument of a line, which is taken to its end and not unquoted, can say.
_PLAIN_TARGET = re.compile(r"[^\s%\\\"'-][^\s%\\\"']*")
_HEADER = "# What the packages of this image expect below /var. Made with the image; see tmpfiles.d(5).\n"


def move_state(tree: Path) -> None:
    """Move /var of `tree` aside and write the rules by which each machine makes its own. May be repeated: an empty /var stays as it is.

    Raises:
        OSError: the tree cannot be changed.
    """
    var = tree / "var"
    if not any(var.iterdir()):
        return
    declared = declared_paths(tree)
    lines = [line for path in _below(var) if (line := _line(tree, path, declared)) is not None]
    database = var / "lib/dpkg"
    if database.is_dir() and not database.is_symlink():
        (tree / DATABASE).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(database, tree / DATABASE, symlinks=True)
        lines.append(f"L+ /var/lib/dpkg - - - - /{DATABASE}")
    rules = tree / RULES
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.write_text(_HEADER + "".join(f"{line}\n" for line in lines))
    for path in var.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def declared_paths(tree: Path) -> frozenset[str]:
    """The paths that the tree's own tmpfiles.d files make; a second line for one of them would only be complained about."""
    found = set[str]()
    for directory in ("usr/lib/tmpfiles.d", "etc/tmpfiles.d"):
        for file in (tree / directory).glob("*.conf"):
            if str(file) == str(tree / RULES) or not file.is_file():
                continue
            for line in file.read_text(errors="replace").splitlines():
                words = line.split()
                if len(words) > 1 and words[0][0] in _MAKING and "%" not in words[1]:
                    found.add(words[1].strip("\"'").rstrip("/"))
    return frozenset(found)


def quote(path: str) -> str:
    """A path as the second field of a tmpfiles.d(5) line: specifiers doubled, quoted and escaped only where it must be."""
    doubled = path.replace("%", "%%")
    if re.fullmatch(r"[\w@%+=:,./~-]+", doubled, re.ASCII):
        return doubled
    plain = range(0x20, 0x7F)
    return '"' + "".join(chr(b) if b in plain and b not in b'"\\' else f"\\x{b:02x}" for b in os.fsencode(doubled)) + '"'


def _below(directory: Path) -> Iterator[Path]:
    """Everything below, parents first, in the order of the names; links are not followed."""
    for path in sorted(directory.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _line(tree: Path, path: Path, declared: frozenset[str]) -> str | None:
    """The line for one path, whose content moves to the factory where it has any; None where there is nothing to say."""
    name = f"/{path.relative_to(tree)}"
    if name in declared or any(name == skipped or name.startswith(f"{skipped}/") for skipped in SKIPPED):
        return None
    status = path.lstat()
    attributes = f"{stat.S_IMODE(status.st_mode):04o} {status.st_uid} {status.st_gid}"
    if stat.S_ISDIR(status.st_mode):
        return f"d {quote(name)} {attributes}"
    if name.startswith(EMPTIED) or not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)
        if _PLAIN_TARGET.fullmatch(target):
            return f"L {quote(name)} - - - - {target}"
        attributes = f"- {status.st_uid} {status.st_gid}"
    template = tree / FACTORY / name.lstrip("/")
    template.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, template, follow_symlinks=False)
    os.chown(template, status.st_uid, status.st_gid, follow_symlinks=False)
    # Without an argument, the source is the same path below /usr/share/factory, which spares the argument's own quoting.
    return f"C {quote(name)} {attributes}"
