"""Reads a whole repository and says what is wrong with it, and what of it costs how much."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath

from obelisk.errors import TrustError
from obelisk.events import Sink, task
from obelisk.model.image import Manifest, PartKind
from obelisk.model.release import TESTERS_TARGET, Channel, File, Release, Testers
from obelisk.release.delivery import Delivery
from obelisk.release.proofs import counts
from obelisk.release.repository import Repository, digests, document, document_name, earlier, files_of, superfluous
from obelisk.release.shelf import METADATA, Shelf
from obelisk.system.files import hash_file


class Kind(StrEnum):
    """What is wrong: `SUPERFLUOUS` is nothing that hosts would notice."""

    MISSING = "missing"
    DAMAGED = "damaged"
    SUPERFLUOUS = "superfluous"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be: a path below the repository, and what is wrong with it."""

    kind: Kind
    name: str
    problem: str


def verify(shelf: Shelf, delivery: Delivery, now: datetime, sink: Sink) -> tuple[Finding, ...]:
    """Everything that is wrong: each signature, document and file is read.

    Raises:
        StateError: there is no repository.
    """
    try:
        there = Repository.open(shelf)
    except TrustError as error:
        return (Finding(Kind.DAMAGED, METADATA, error.message),)
    found = []
    expired = [(role, at) for role, at in there.trusted.expiring(now) if at <= now]
    found += [Finding(Kind.DAMAGED, f"{METADATA}/{role}", f"expired on {at:%Y-%m-%d %H:%M} UTC") for role, at in expired]
    read = _Documents(there, found)
    files: dict[File, str] = {}
    for release in read.releases:
        try:
            files |= {file: f"{what} of {release.name} {release.version}" for file, what in files_of(shelf, release, delivery).items()}
            _check_release(there, release, there.manifest(release), read.testers)
        except TrustError as error:
            found.append(Finding(Kind.DAMAGED, release.target, error.message))
    total = sum(file.size_bytes for file in files)
    with task(sink, "verify", f"Reading {len(files)} files", total=total, unit="bytes") as running:
        count = running.counting(total)
        for file in sorted(files, key=lambda each: each.path):
            found += _check(shelf, file, files[file], count)
    if not found:
        kept = {file.path for file in files} | read.names | earlier(shelf, there.trusted, delivery, now)
        found += [Finding(Kind.SUPERFLUOUS, name, "nothing needs it") for name in sorted(superfluous(shelf, kept))]
        found += [Finding(Kind.SUPERFLUOUS, name, "a command was cut while it wrote it") for name in shelf.drafts()]
    return tuple(found)


class _Documents:
    """The documents that can be read; the others are findings."""

    def __init__(self, there: Repository, found: list[Finding]) -> None:
        self.testers = Testers(())
        self.releases: list[Release] = []
        self.names = {f"{METADATA}/{there.trusted.snapshot.signed.version}.snapshot.json"}
        self.names.add(f"{METADATA}/{there.trusted.targets.signed.version}.targets.json")
        channels: list[Channel] = []
        for target, digest in digests(there.trusted.targets.signed.targets).items():
            self.names.add(document_name(target, digest))
            try:
                data = document(there.shelf, target, digest)
                match PurePosixPath(target).parts[0]:
                    case "channels":
                        channels.append(Channel.parse(data))
                    case "releases":
                        self.releases.append(Release.parse(data))
                    case _ if target == TESTERS_TARGET:
                        self.testers = Testers.parse(data)
            except TrustError as error:
                found.append(Finding(Kind.DAMAGED, target, error.message))
        images = {release.image for release in self.releases}
        found += [
            Finding(Kind.MISSING, f"releases/{listing.image}.json", f"{channel.channel} lists {listing.version}, which is not there")
            for channel in channels
            for listing in channel.listings
            if not listing.withdrawn and listing.image not in images
        ]


def _check_release(there: Repository, release: Release, manifest: Manifest, testers: Testers) -> None:
    said = (release.name, release.version, release.root_hash, release.root_bytes)
    if said != (manifest.name, manifest.version, manifest.root_hash, manifest.part(PartKind.ROOT).size_bytes):
        raise TrustError("it does not say what its manifest says", code="document-damaged")
    envelopes = [there.find(file).read_bytes() for file in release.proofs if there.find(file).exists()]
    if not any(counts(testers, envelope, release.image, application=manifest.is_application) for envelope in envelopes):
        raise TrustError("it has no proof that counts: hosts refuse it", code="release-unproven")


def _check(shelf: Shelf, file: File, what: str, count: Callable[[int], None]) -> list[Finding]:
    path = shelf.path(file.path)
    if not path.exists():
        return [Finding(Kind.MISSING, file.path, what)]
    if path.stat().st_size != file.size_bytes or hash_file(path, on_bytes=count) != file.sha256:
        return [Finding(Kind.DAMAGED, file.path, what)]
    return []


@dataclass(frozen=True, slots=True)
class Cost:
    """What one release takes, in bytes: `own` would go with it, `shared` others need as well; `edges` are part of `own` or `shared`.

    `channels` are those that list it. An edge is the version that it leads from, and its size.
    """

    name: str
    version: str
    channels: tuple[str, ...]
    root_bytes: int
    own_bytes: int
    shared_bytes: int
    edges: tuple[tuple[str, int], ...]


def costs(there: Repository, delivery: Delivery) -> tuple[Cost, ...]:
    """What each release takes, in the order of their listing.

    Raises:
        TrustError: a document, a manifest or an index is missing or damaged.
    """
    files = {release.image: set(files_of(there.shelf, release, delivery)) for release in there.contents.releases}
    users: dict[File, int] = {}
    for each in files.values():
        for file in each:
            users[file] = users.get(file, 0) + 1
    found = []
    for release in there.contents.releases:
        listed = tuple(
            channel.channel
            for channel in there.contents.of(release.name)
            if any(each.image == release.image and not each.withdrawn for each in channel.listings)
        )
        own = sum(file.size_bytes for file in files[release.image] if users[file] == 1)
        shared = sum(file.size_bytes for file in files[release.image]) - own
        edges = tuple((edge.from_version, edge.file.size_bytes) for edge in release.edges)
        found.append((_first_listed(there, release), Cost(release.name, release.version, listed, release.root_bytes, own, shared, edges)))
    return tuple(cost for _, cost in sorted(found, key=lambda each: (each[1].name, each[0], each[1].version)))


def _first_listed(there: Repository, release: Release) -> str:
    times = [each.at for channel in there.contents.of(release.name) for each in channel.listings if each.image == release.image]
    return min(times, default="")
