"""The directory that a spec lays over the root: what is in it, and what it may not hold.

Entries come out the same from any checkout: Git keeps only whether a file is executable, and umasks differ, so modes become 0644 or 0755
(directories 0755) and owners root. A file that others may not read is refused rather than opened up: its mode belongs under `files`,
where it is written down. A directory that the image already has keeps its own mode and owner. Extended attributes are not taken.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from obelisk.model.spec import Allowed
from obelisk.spec.places import image_path, parents, refusal
from obelisk.spec.positions import KeyPath
from obelisk.spec.problems import Findings

_LEFT_OUT = (".git", ".gitkeep", ".DS_Store", "*~", ".#*", "#*#", ".*.sw[op]")
_NAMES_SHOWN = 3


class EntryKind(StrEnum):
    """What a tree entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHARACTER = "character device"
    BLOCK = "block device"


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One thing to lay over the root, owned by root.

    `path` is absolute inside the image, `source` where it comes from, `mode` its permission bits (with setuid and setgid where allowed).
    `target` is what a symlink points to, `device` the major and minor number of a device node.
    """

    path: str
    source: Path
    kind: EntryKind
    mode: int
    target: str = ""
    device: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why entries are refused; one problem is reported for all entries of one reason."""

    code: str
    text: str
    hint: str


_UNREADABLE = _Reason("spec-file", "cannot be read", "check its permissions")
_NAME = _Reason("spec-file", "has a name that is not UTF-8 or has control characters", "rename it")
_PRIVATE = _Reason(
    "spec-file",
    "is not readable by everyone, and a tree cannot say so: Git does not keep it",
    "`chmod -R a+rX` the tree, or give the file under `files` with `source` and `mode`",
)
_SETUID = _Reason("spec-forbidden", "is setuid or setgid", "list its path in the image under allow.setuid, or `chmod ug-s` it")
_DEVICE = _Reason("spec-forbidden", "is a device node", "list its path in the image under allow.devices, or remove it")
_SPECIAL = _Reason("spec-forbidden", "is a socket or pipe, which only a running program makes", "remove it")
_MERGED_LINK = _Reason("spec-conflict", "stands where the distribution has its own link into /usr", "remove it, and use the path below usr")
_TWICE = _Reason("spec-conflict", "is in the tree twice: /bin, /sbin and /lib are links into /usr", "keep the one below usr")


@dataclass(frozen=True, slots=True)
class _Scan:
    root: Path
    allow: Allowed
    entries: dict[str, TreeEntry] = field(default_factory=dict)
    refused: dict[_Reason, list[str]] = field(default_factory=dict)

    def directory(self, source: Path, above: str) -> None:
        """Take in what is in `source`, which is at `above` (empty for the root) as the tree spells it."""
        try:
            names = sorted(os.listdir(source))
        except OSError:
            self.refuse(source, _UNREADABLE)
            return
        for name in names:
            if any(fnmatchcase(name, pattern) for pattern in _LEFT_OUT):
                continue
            if not _is_plain(name):
                self.refuse(source / name, _NAME)
                continue
            spelled = f"{above}/{name}"
            path = image_path(spelled)
            if closed := refusal(path):
                self.refuse(source / name, _Reason("spec-forbidden", closed.reason, closed.hint))
                continue
            try:
                entry = self.entry(source / name, path)
            except OSError:
                self.refuse(source / name, _UNREADABLE)
                continue
            if entry is None:
                continue
            if path == "/usr" + spelled and not above and entry.kind is not EntryKind.DIRECTORY:
                self.refuse(source / name, _MERGED_LINK)
                continue
            known = self.entries.setdefault(path, entry)
            if known is not entry and not known.kind is entry.kind is EntryKind.DIRECTORY:
                self.refuse(source / name, _TWICE)
            elif entry.kind is EntryKind.DIRECTORY:
                self.directory(source / name, spelled)

    def entry(self, source: Path, path: str) -> TreeEntry | None:
        """The entry for `source`, or None after refusing it."""
        status = source.lstat()
        bits = status.st_mode
        if stat.S_ISLNK(bits):
            target = str(source.readlink())
            if not _is_plain(target):
                return self.refuse(source, _NAME)
            return TreeEntry(path, source, EntryKind.SYMLINK, 0o777, target=target)
        if stat.S_ISDIR(bits):
            # setgid on a directory comes from shared checkouts and says nothing about the image
            public = bits & 0o005 == 0o005
            return TreeEntry(path, source, EntryKind.DIRECTORY, 0o755) if public else self.refuse(source, _PRIVATE)
        if stat.S_ISBLK(bits) or stat.S_ISCHR(bits):
            if path not in self.allow.devices:
                return self.refuse(source, _DEVICE)
            kind = EntryKind.BLOCK if stat.S_ISBLK(bits) else EntryKind.CHARACTER
            return TreeEntry(path, source, kind, bits & 0o777, device=(os.major(status.st_rdev), os.minor(status.st_rdev)))
        if not stat.S_ISREG(bits):
            return self.refuse(source, _SPECIAL)
        special = bits & (stat.S_ISUID | stat.S_ISGID)
        if special and path not in self.allow.setuid:
            return self.refuse(source, _SETUID)
        if not bits & stat.S_IROTH and not special:
            return self.refuse(source, _PRIVATE)
        if not os.access(source, os.R_OK):
            return self.refuse(source, _UNREADABLE)
        mode = 0o755 if bits & stat.S_IXUSR else 0o644
        return TreeEntry(path, source, EntryKind.FILE, mode | special)

    def refuse(self, source: Path, reason: _Reason) -> None:
        """Note that `source` cannot be laid over the root."""
        name = str(source.relative_to(self.root.parent))
        self.refused.setdefault(reason, []).append(name if name.isprintable() else os.fsencode(name).decode("utf-8", "backslashreplace"))


def scan_tree(root: Path, allow: Allowed, *, path: KeyPath, findings: Findings) -> tuple[TreeEntry, ...]:
    """What is in the directory `root`, parents before what is in them; problems are reported for the key `path`."""
    scan = _Scan(root, allow)
    scan.directory(root, "")
    for reason, names in scan.refused.items():
        more = len(names) - _NAMES_SHOWN
        told = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        findings.report(path, reason.code, f"{told}: {reason.text}", reason.hint)
    return tuple(scan.entries[path] for path in sorted(scan.entries, key=lambda path: path.split("/")))


def collisions(paths: dict[str, KeyPath], entries: tuple[TreeEntry, ...]) -> Iterator[tuple[KeyPath, str]]:
    """Keys of `files` that cannot stand beside another one or beside the tree, each with the reason."""
    tree = {entry.path: entry for entry in entries}
    for path, key in paths.items():
        if (entry := tree.get(path)) is not None:
            yield key, f"the tree has the {entry.kind} {entry.source.name} at the same place"
        elif any(below.startswith(path + "/") for below in tree):
            yield key, f"the tree has files below '{path}', so it cannot be a file"
        for above in parents(path):
            if above in paths:
                yield key, f"'{above}' is a file and cannot have others below it"
            if above in tree and tree[above].kind is not EntryKind.DIRECTORY:
                yield key, f"'{above}' is a {tree[above].kind} in the tree and cannot have files below it"


def _is_plain(name: str) -> bool:
    """Whether a name is UTF-8 and has no control characters, so that lists of names can be one a line."""
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 arrive as lone surrogates
        return False
    return not any(character < " " or character == "\x7f" for character in name)
