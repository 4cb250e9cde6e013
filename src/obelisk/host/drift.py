"""`obelisk host drift`: what lies in the state volume that nothing in the image declares.

Declared is what the image's packages brought, what its tmpfiles.d and its units' own directories name, the homes of its users, and what
the spec lists. A declared directory declares all below it, except for the few that hold everybody's (/var/lib, /var/log and their like).
Where the image keeps only what its spec lists, the rest of the state volume is what was there before: no program sees it any more.
"""

import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from obelisk.model.canonical import Json
from obelisk.system.command import run

_SHARED = frozenset(
    f"/{path}" for path in ("var", "var/lib", "var/log", "var/spool", "var/opt", "var/local", "var/mail", "home", "root", "var/lib/private")
)
_ALWAYS = ("/var/cache", "/var/tmp", "/var/lib/obelisk", "/var/lib/systemd", "/var/log/journal", "/var/lib/dpkg", "/var/run", "/var/lock")  # noqa: S108
_DIRECTORIES = re.compile(r"^\s*(State|Cache|Logs)Directory\s*=\s*(.*)$", re.MULTILINE)
_BASES = {"State": "/var/lib", "Cache": "/var/cache", "Logs": "/var/log"}
UNITS = ("usr/lib/systemd/system", "etc/systemd/system")


@dataclass(frozen=True, slots=True)
class Stray:
    """A path that nothing declares, with all that is below it. `since` is when it was made (RFC 3339), `owner` who owns it."""

    path: str
    owner: str
    since: str
    files: int
    size_bytes: int

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"path": self.path, "owner": self.owner, "since": self.since, "files": self.files, "size": self.size_bytes}


def drift(root: Path = Path("/"), state: Path = Path("/run/obelisk/state")) -> tuple[Stray, ...]:
    """All such paths on the state volume at `state`, the topmost of each, largest first."""
    listed = root / "usr/lib/obelisk/state.kept"
    known = frozenset(listed.read_text().splitlines()) if listed.exists() else declared(root)
    found = []
    for top in {"/var", "/home", "/root"} - known:
        found += [_measure(state, path) for path in _strays(state, top, known)]
    return tuple(sorted(found, key=lambda each: (-each.size_bytes, each.path)))


def declared(root: Path) -> frozenset[str]:
    """The paths that the image declares."""
    paths: set[str] = set()
    for line in run(["systemd-tmpfiles", "--cat-config", f"--root={root}"], timeout_s=60).stdout.splitlines():
        words = line.split()
        if len(words) > 1 and words[0][0] in "dDvqQfFLCpbcwe":
            paths.add(words[1].strip('"'))
    for listing in (root / "usr/lib/sysimage/dpkg/info").glob("*.list"):
        paths.update(line for line in listing.read_text().splitlines() if line.startswith("/var/"))
    paths.update(_directories_of_units(root))
    for line in (root / "etc/passwd").read_text().splitlines():
        home = line.split(":")[5]
        if home.startswith("/home/"):
            paths.add(home)
    found = {path.rstrip("/") for path in paths if path.startswith(("/var/", "/home/", "/root/"))} - _SHARED
    own = root / "usr/lib/obelisk/state.declared"
    return frozenset({*found, *_ALWAYS, *(own.read_text().splitlines() if own.exists() else ())})


def _directories_of_units(root: Path) -> Iterator[str]:
    """What units have systemd make for them; a dynamic user's lies below `private`. Source: systemd.exec(5)."""
    for place in UNITS:
        for unit in (root / place).rglob("*.service"):
            if unit.is_file():
                for kind, names in _DIRECTORIES.findall(unit.read_text(errors="replace")):
                    for name in names.split():
                        yield f"{_BASES[kind]}/{name.split(':')[0]}"
                        yield f"{_BASES[kind]}/private/{name.split(':')[0]}"


def _strays(root: Path, top: str, known: frozenset[str]) -> Iterator[str]:
    """Goes down only where something declared may lie below."""
    above = {parent for path in known for parent in _parents(path)}
    pending = [top]
    while pending:
        place = pending.pop()
        try:
            entries = sorted(os.scandir(root / place.lstrip("/")), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            path = f"{place}/{entry.name}"
            if path in known:
                continue
            if entry.is_dir(follow_symlinks=False) and (path in above or path in _SHARED):
                pending.append(path)
            elif path not in _SHARED:
                yield path


def _parents(path: str) -> Iterator[str]:
    while "/" in path[1:]:
        path = path.rsplit("/", 1)[0]
        yield path


def _measure(root: Path, path: str) -> Stray:
    place = root / path.lstrip("/")
    files, size = 0, 0
    for directory, _names, names in os.walk(place):
        for name in names:
            files += 1
            size += os.lstat(f"{directory}/{name}").st_size
    found = place.lstat()
    if not place.is_dir() or place.is_symlink():
        files, size = 1, found.st_size
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    # Python does not tell when a file was born.
    born = int(run(["stat", "--format=%W", place], timeout_s=10).stdout)
    since = datetime.fromtimestamp(born or found.st_mtime, UTC).isoformat(timespec="seconds")
    return Stray(path, owner, since, files, size)
