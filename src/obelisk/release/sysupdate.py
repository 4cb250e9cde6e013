"""A channel as a stock systemd-sysupdate follows it, without Obelisk on the host.

    sysupdate/<name>/<channel>/
        <name>_<version>_<partition id>.root.raw.xz    the root; sysupdate gives the partition that id
        <name>_<version>_<partition id>.verity.raw     its hash tree, which nothing compresses
        <name>_<version>.efi                           the UKI
        <name>_<version>.json                          the manifest; its SHA-256 is the image's id
        BEST-BEFORE-<year>-<month>-<day>               empty; from that day on newer systemd than 257 refuses the listing
        SHA256SUMS, SHA256SUMS.gpg                     the files above, and an OpenPGP signature of that
    sysupdate/<name>/.<channel>.new/                   being made, or just replaced

The directory is made beside the one that is there and takes its place in one step: readers find the old listing with the old files, or
the new with the new. Files that are the same are hard links, among channels and to the repository's own.

Trust here is an OpenPGP key on the host and the day of the marker: less than TUF gives, and all that systemd-sysupdate has. What a
channel has withdrawn is not listed; systemd-sysupdate never goes back by itself from what it has installed.

Source: sysupdate.d(5), systemd-sysupdate(8).
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from obelisk.errors import CommandError, StateError, TrustError
from obelisk.events import Sink, Task, task
from obelisk.model.image import Manifest, Part, PartKind, parse_manifest
from obelisk.model.partitions import partition_uuids, tree_label
from obelisk.model.release import Channel, File, Listing
from obelisk.system import gpg, xz
from obelisk.system.bubblewrap import Room
from obelisk.system.exchange import exchange
from obelisk.system.files import clone_or_copy, hash_file, sync_directory, sync_file, written_by_name

DIRECTORY = "sysupdate"
LISTING = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.gpg"
KEPT = 3
"""How many releases are offered: a withdrawal then still leaves something, and the space stays bounded."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0]+)")
_MARKER = "BEST-BEFORE-"
_TRIES = 3


class Image(Protocol):
    """An image whose root, hash tree and kernel image are files of this machine."""

    @property
    def manifest(self) -> Manifest: ...  # noqa: D102 - these are what the class says

    @property
    def root(self) -> Path: ...  # noqa: D102

    @property
    def tree(self) -> Path: ...  # noqa: D102

    @property
    def uki(self) -> Path: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs listings: an OpenPGP key file, and the tools tree whose gpg reads it."""

    room: Room
    key: Path

    @classmethod
    def of(cls, room: Room, key: Path) -> "Signer":
        """The signer with the key in that file, which is made (mode 0600) where there is none.

        Raises:
            TrustError: others can read the key.
            StateError: it cannot be written.
        """
        if not key.exists():
            with written_by_name(key):
                key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                gpg.make_key(room, key, owner="Obelisk releases")
        if key.stat().st_mode & 0o077:
            raise TrustError(f"{key} can be read by others", code="keys-readable", hint=f"chmod 600 {key}, and consider a new key")
        return cls(room, key)

    def sign(self, data: bytes) -> bytes:
        """A detached signature.

        Raises:
            TrustError: gpg refuses the key.
        """
        with _naming(self.key):
            return gpg.sign(self.room, self.key, data)

    def has_signed(self, data: bytes, signature: Path) -> bool:
        """Whether that file is a signature of `data` by this key, and not by the one before."""
        return signature.exists() and gpg.is_signature(self.room, self.key, data, signature.read_bytes())

    def keyring(self) -> bytes:
        """What hosts keep as /etc/systemd/import-pubring.gpg.

        Raises:
            TrustError: gpg refuses the key.
        """
        with _naming(self.key):
            return gpg.public_keyring(self.room, self.key)


@contextmanager
def _naming(key: Path) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise TrustError(
            f"gpg cannot use {key}: {error.output.strip()}",
            code="sysupdate-key",
            hint="restore the key from a copy; a new one takes a new keyring on every host",
        ) from error


# What a directory has to hold


@dataclass(frozen=True, slots=True)
class Names:
    """The files of one release."""

    root: str
    verity: str
    uki: str
    manifest: str

    @classmethod
    def of(cls, manifest: Manifest) -> "Names":
        """Those of an image."""
        root, verity = partition_uuids(manifest.root_hash)
        label = manifest.label
        return cls(f"{label}_{root}.root.raw.xz", f"{label}_{verity}.verity.raw", f"{label}.efi", f"{label}.json")

    def all(self) -> tuple[str, ...]:
        """Each of them."""
        return (self.root, self.verity, self.uki, self.manifest)


def offered(channel: Channel) -> tuple[Listing, ...]:
    """The releases to offer: the newest `KEPT` that are not withdrawn, oldest first."""
    return tuple(listing for listing in channel.listings if not listing.withdrawn)[-KEPT:]


def marker(expires: date) -> str:
    """The name of the file that tells until when a listing counts."""
    return f"{_MARKER}{expires.isoformat()}"


def listing_text(digests: Mapping[str, str]) -> bytes:
    """SHA256SUMS, from file name to SHA-256."""
    return "".join(f"{digest} *{name}\n" for name, digest in sorted(digests.items())).encode()


def parse_listing(data: bytes) -> dict[str, str]:
    """File name to SHA-256.

    Raises:
        TrustError: it is no such listing.
    """
    found = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        matched = _LINE.fullmatch(line)
        if matched is None:
            raise TrustError(f"{LISTING} is damaged in line {number}", code="sysupdate-listing", hint="have the directory made again")
        found[matched[2]] = matched[1]
    return found


def transfers(name: str, url: str, *, slots: int = 2, tries: int = _TRIES) -> dict[str, str]:
    """The sysupdate.d(5) files, by file name, with which a host follows the directory at `url`. The UKI comes last: it makes bootable.

    `slots` is how many versions the disk has room for, `tries` how many boots a new one gets to prove itself.
    """
    counted = " ".join(f"{name}_@v{counter}.efi" for counter in ("+@l-@d", "+@l", ""))
    partition = {"Type": "partition", "Path": "auto"}
    wanted: dict[str, tuple[str, dict[str, str]]] = {
        "10-verity": (
            f"{name}_@v_@u.verity.raw",
            {**partition, "MatchPattern": tree_label(f"{name}_@v"), "MatchPartitionType": "root-x86-64-verity", "ReadOnly": "1"},
        ),
        "20-root": (
            f"{name}_@v_@u.root.raw.xz",
            {**partition, "MatchPattern": f"{name}_@v", "MatchPartitionType": "root-x86-64", "ReadOnly": "1"},
        ),
        "30-manifest": (f"{name}_@v.json", {**_on_esp("EFI/obelisk"), "MatchPattern": f"{name}_@v.json"}),
        "40-uki": (
            f"{name}_@v.efi",
            {**_on_esp("EFI/Linux"), "MatchPattern": counted, "TriesLeft": str(tries), "TriesDone": "0"},
        ),
    }
    found = {}
    for file, (pattern, target) in wanted.items():
        sections = {
            # The running version is never overwritten.
            "Transfer": {"ProtectVersion": "%A"},
            "Source": {"Type": "url-file", "Path": url, "MatchPattern": pattern},
            "Target": {**target, "InstancesMax": str(slots)},
        }
        found[f"{file}.transfer"] = "\n".join(
            f"[{section}]\n" + "".join(f"{key}={value}\n" for key, value in settings.items()) for section, settings in sections.items()
        )
    return found


def _on_esp(directory: str) -> dict[str, str]:
    return {"Type": "regular-file", "Path": f"/{directory}", "PathRelativeTo": "boot", "Mode": "0444"}


# Making it so


def place(repository: Path, name: str, channel: str) -> Path:
    """Where a channel's directory is in a repository."""
    return repository / DIRECTORY / name / channel


def kept(repository: Path) -> tuple[tuple[str, str], ...]:
    """Which channels have a directory, as image's name and channel: those to `sync` when they change or their metadata is renewed."""
    found = sorted((repository / DIRECTORY).glob("*/*"))
    return tuple((path.parent.name, path.name) for path in found if path.is_dir() and not path.name.startswith("."))


def sync(repository: Path, channel: Channel, find: Callable[[str], Image], *, signer: Signer, expires: date, sink: Sink) -> Path:
    """Make the directory of a channel what the channel says; return it. To be called after the channel itself has changed.

    `find` gives the image of an id, and is asked only for what no channel's directory has yet. `expires` is the day (UTC) on which the
    channel's metadata expires. Durable when this returns; may be repeated, and takes up after any interruption. One at a time for a
    repository: its lock is the caller's.

    Raises:
        TrustError: an image is damaged, or the key is.
        StateError: the directory cannot be written.
    """
    target = place(repository, channel.name, channel.channel)
    title = f"Writing what systemd-sysupdate reads of {channel.name} {channel.channel}"
    with task(sink, "sysupdate", title) as running, written_by_name(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(target)
        shutil.rmtree(draft, ignore_errors=True)
        present = _present(target.parent)
        draft.mkdir()
        digests: dict[str, str] = {}
        for listing in offered(channel):
            if (found := present.get(listing.image)) is not None:
                digests |= _take_over(found, draft)
            else:
                digests |= _Maker(repository, draft, signer.room, running).add(find(listing.image), listing.image)
        digests[marker(expires)] = sha256(b"").hexdigest()
        (draft / marker(expires)).touch()
        text = listing_text(digests)
        if _says(target, text) and signer.has_signed(text, target / SIGNATURE):
            shutil.rmtree(draft)
            running.detail = "nothing to change"
            return target
        (draft / LISTING).write_bytes(text)
        (draft / SIGNATURE).write_bytes(signer.sign(text))
        _publish(draft, target)
        running.detail = f"{len(offered(channel))} releases"
    return target


def remove(repository: Path, name: str, channel: str) -> None:
    """Stop offering a channel to systemd-sysupdate. May be repeated."""
    target = place(repository, name, channel)
    draft = _draft(target)
    shutil.rmtree(draft, ignore_errors=True)
    if target.is_dir():
        target.rename(draft)  # gone at once, and not file by file under a reader
        sync_directory(target.parent)
        shutil.rmtree(draft)


def check(repository: Path) -> Iterator[tuple[Path, str]]:
    """Read everything for systemd-sysupdate in a repository; what is wrong, file by file. Signatures are the hosts' to check."""
    for directory in sorted((repository / DIRECTORY).glob("*/*")):
        if directory.name.startswith("."):
            yield directory, "left behind by an interrupted change; the next one removes it"
        else:
            yield from _check(directory)


def _check(directory: Path) -> Iterator[tuple[Path, str]]:
    try:
        digests = parse_listing((directory / LISTING).read_bytes())
    except FileNotFoundError:
        yield directory / LISTING, "missing"
        return
    except TrustError as error:
        yield directory / LISTING, error.message
        return
    present = {path.name for path in directory.iterdir()}
    expected = {*digests, LISTING, SIGNATURE}
    for name in sorted(expected - present):
        yield directory / name, "missing"
    for name in sorted(present - expected):
        yield directory / name, f"is not in {LISTING}"
    for name in sorted(digests.keys() & present):
        if hash_file(directory / name) != digests[name]:
            yield directory / name, f"is not what {LISTING} says"


@dataclass(frozen=True, slots=True)
class _Release:
    """The files of a release in the directory of some channel, with what its listing says of them."""

    directory: Path
    digests: Mapping[str, str]


def _present(parent: Path) -> dict[str, _Release]:
    """What the directories of an image's channels have, by image id. One that cannot be read has nothing."""
    found: dict[str, _Release] = {}
    for directory in sorted(parent.iterdir()):
        try:
            digests = parse_listing((directory / LISTING).read_bytes())
        except (OSError, TrustError):
            continue
        for name, image in digests.items():
            if not name.endswith(".json"):
                continue
            try:
                names = Names.of(parse_manifest((directory / name).read_bytes(), image_id=image)).all()
                if all((directory / file).is_file() for file in names):
                    found[image] = _Release(directory, {file: digests[file] for file in names})
            except (OSError, KeyError, TrustError):
                continue
    return found


def _take_over(release: _Release, draft: Path) -> Mapping[str, str]:
    for name in release.digests:
        _link(release.directory / name, draft / name)
    return release.digests


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the files of releases that are new here."""

    repository: Path
    draft: Path
    room: Room
    running: Task

    def add(self, image: Image, wanted: str) -> dict[str, str]:
        """The files of one image, and their digests."""
        manifest = image.manifest
        if manifest.id != wanted:
            raise TrustError(f"image {wanted[:12]} has the digest {manifest.id[:12]}", code="manifest-digest", hint="run `obelisk verify`")
        names = Names.of(manifest)
        (self.draft / names.manifest).write_bytes(manifest.to_bytes())
        found = {names.manifest: wanted}
        for kind, name, given in ((PartKind.VERITY, names.verity, image.tree), (PartKind.UKI, names.uki, image.uki)):
            part = manifest.part(kind)
            own = self.repository / File(part.sha256, part.size_bytes).path
            if own.is_file():
                _require(own, part)
                _link(own, self.draft / name)
            else:
                _require(given, part)
                clone_or_copy(given, self.draft / name)
            found[name] = part.sha256
        _require(image.root, manifest.part(PartKind.ROOT))
        xz.compress(self.room, image.root, self.draft / names.root, self.running)
        found[names.root] = hash_file(self.draft / names.root)
        return found


def _require(path: Path, part: Part) -> None:
    try:
        sound = hash_file(path) == part.sha256
    except FileNotFoundError:
        sound = False
    if not sound:
        raise TrustError(
            f"{path} is not the {part.kind.value} of the image", code="part-damaged", hint="run `obelisk verify`, and `obelisk repo verify`"
        )


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        clone_or_copy(source, target)


def _says(target: Path, text: bytes) -> bool:
    try:
        return (target / LISTING).read_bytes() == text
    except OSError:
        return False


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.new")


def _publish(draft: Path, target: Path) -> None:
    """Let the complete directory `draft` take the place of `target`."""
    for path in draft.iterdir():
        if path.stat().st_nlink == 1:
            path.chmod(0o644)
        sync_file(path)
    sync_directory(draft)
    if not target.is_dir():
        draft.rename(target)
    elif not exchange(draft, target):
        raise StateError(
            f"the file system of {target.parent} cannot exchange directories",
            code="sysupdate-exchange",
            hint="keep the repository on ext4, XFS, Btrfs or tmpfs, and copy it from there",
        )
    sync_directory(target.parent)
    shutil.rmtree(draft, ignore_errors=True)
