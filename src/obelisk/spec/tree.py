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
_SEARCHABLE = stat.S_IROTH | stat.S_IXOTH


class EntryKind(StrEnum):
    """What a tree entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHARACTER = "character device"
    BLOCK = "block device"


_DEVICES = {stat.S_IFCHR: EntryKind.CHARACTER, stat.S_IFBLK: EntryKind.BLOCK}


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
    entries: dict[str, TreeEntry] = field(default_factory=dict)
    refused: dict[_Reason, list[str]] = field(default_factory=dict)

    def directory(self, source: Path, above: str, allow: Allowed) -> None:
        """Take in what is in `source`, which is at `above` (empty for the root) as the tree spells it."""
        try:
            found = sorted(source.iterdir())
        except OSError:
            self.refuse(source, _UNREADABLE)
            return
        for inner in found:
            if any(fnmatchcase(inner.name, pattern) for pattern in _LEFT_OUT):
                continue
            entry = _entry(inner, f"{above}/{inner.name}", allow)
            if isinstance(entry, _Reason):
                self.refuse(inner, entry)
                continue
            known = self.entries.setdefault(entry.path, entry)
            if known is not entry and not known.kind is entry.kind is EntryKind.DIRECTORY:
                self.refuse(inner, _TWICE)
            elif entry.kind is EntryKind.DIRECTORY:
                self.directory(inner, f"{above}/{inner.name}", allow)

    def refuse(self, source: Path, reason: _Reason) -> None:
        """Note that `source` cannot be laid over the root."""
        name = str(source.relative_to(self.root.parent))
        self.refused.setdefault(reason, []).append(name if name.isprintable() else repr(name)[1:-1])


def _entry(source: Path, spelled: str, allow: Allowed) -> TreeEntry | _Reason:
    """What to lay over the root for `source`, or why it is refused."""
    if not _is_plain(source.name):
        return _NAME
    path = image_path(spelled)
    if closed := refusal(path):
        return _Reason("spec-forbidden", closed.reason, closed.hint)
    try:
        status = source.lstat()
        target = str(source.readlink()) if stat.S_ISLNK(status.st_mode) else ""
    except OSError:
        return _UNREADABLE
    if path != spelled and spelled.count("/") == 1 and not stat.S_ISDIR(status.st_mode):
        return _MERGED_LINK
    if target:
        return TreeEntry(path, source, EntryKind.SYMLINK, 0o777, target=target) if _is_plain(target) else _NAME
    return _inode(source, path, status, allow)


def _inode(source: Path, path: str, status: os.stat_result, allow: Allowed) -> TreeEntry | _Reason:
    bits = status.st_mode
    match stat.S_IFMT(bits):
        case stat.S_IFDIR:
            # setgid on a directory comes from shared checkouts and says nothing about the image
            return TreeEntry(path, source, EntryKind.DIRECTORY, 0o755) if bits & _SEARCHABLE == _SEARCHABLE else _PRIVATE
        case stat.S_IFREG:
            return _file(source, path, bits, allow)
        case stat.S_IFBLK | stat.S_IFCHR as kind:
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            return TreeEntry(path, source, _DEVICES[kind], bits & 0o777, device=device) if path in allow.devices else _DEVICE
        case _:
            return _SPECIAL


def _file(source: Path, path: str, bits: int, allow: Allowed) -> TreeEntry | _Reason:
    special = bits & (stat.S_ISUID | stat.S_ISGID)
    if special and path not in allow.setuid:
        return _SETUID
    if not bits & stat.S_IROTH and not special:
        return _PRIVATE
    if not os.access(source, os.R_OK):
        return _UNREADABLE
    return TreeEntry(path, source, EntryKind.FILE, (0o755 if bits & stat.S_IXUSR else 0o644) | special)


def scan_tree(root: Path, allow: Allowed, *, path: KeyPath, findings: Findings) -> tuple[TreeEntry, ...]:
    """What is in the directory `root`, parents before what is in them; problems are reported for the key `path`."""
    scan = _Scan(root)
    scan.directory(root, "", allow)
    for reason, names in scan.refused.items():
        more = len(names) - _NAMES_SHOWN
        told = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        findings.report(path, f"{told}: {reason.text}", code=reason.code, hint=reason.hint)
    return tuple(scan.entries[path] for path in sorted(scan.entries, key=lambda path: path.split("/")))


def collisions(paths: dict[str, KeyPath], entries: tuple[TreeEntry, ...]) -> Iterator[tuple[KeyPath, str]]:
    """Keys of `files` that cannot stand beside another one or beside the tree, each with the reason."""
    tree = {entry.path: entry for entry in entries}
    for path, key in paths.items():
        if (entry := tree.get(path)) is not None:
            yield (key, f"the tree has the {entry.kind} {entry.source.name} at the same place")
        elif any(below.startswith(path + "/") for below in tree):
            yield key, f"the tree has files below '{path}', so it cannot be a file"
        for above in parents(path):
            if above in paths:
                yield key, f"'{above}' is a file and cannot have others below it"
            if above in tree and tree[above].kind is not EntryKind.DIRECTORY:
                yield (key, f"'{above}' is a {tree[above].kind} in the tree and cannot have files below it")


def _is_plain(name: str) -> bool:
    """Whether a name is UTF-8 and has no control characters, so that lists of names can be one a line."""
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 arrive as lone surrogates
        return False
    return not any(character < " " or character == "\x7f" for character in name)
