"""Tiny images, a transport of sixteen bytes a block, keys, and a client, for tests of repositories."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from release_samples import blocks, sample
from store_samples import sha256
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from obelisk.build.keys import SigningKey
from obelisk.errors import TrustError
from obelisk.events import Sink, silent
from obelisk.model.application import Application
from obelisk.model.image import ImagePackage, Manifest, Part, PartKind
from obelisk.model.proof import FIXED, FIXED_FOR_APPLICATION
from obelisk.model.publication import Act, Terms
from obelisk.model.release import TESTERS_TARGET, Channel, File, Release, Testers, channel_target
from obelisk.release.delivery import Find, ImageFiles, Packed, Repacked
from obelisk.release.keys import Keyring, Wish, create
from obelisk.release.publisher import Founding, Publisher
from obelisk.release.publishing import Wanted, release
from obelisk.release.repository import files_of
from obelisk.release.shelf import Shelf
from obelisk.store import StoredImage
from obelisk.trial import Outcome, Report, proof

BLOCK = 16
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


class Tiny:
    """A transport: an index lists packs, and for each block of a root the pack and place that it lies at."""

    def pack(self, image: ImageFiles, earlier: Sequence[Release], find: Find, work: Path, _sink: Sink) -> Packed:
        known: dict[bytes, tuple[File, int]] = {}
        for each in earlier:
            for pack, at in self._places(find(each.index)):
                known.setdefault(find(pack).read_bytes()[at : at + BLOCK], (pack, at))
        blocks = _blocks(image.root.read_bytes())
        new = b"".join(dict.fromkeys(block for block in blocks if block not in known))
        fresh = File(sha256(new), len(new))
        (work / "pack").write_bytes(new)
        places = [known.get(block) or (fresh, new.index(block)) for block in blocks]
        return Packed(self._write(places, work / "index"), (work / "pack",) if new else ())

    def packs(self, release: Release, find: Find) -> frozenset[File]:
        return frozenset(pack for pack, _ in self._places(find(release.index)))

    def edge(self, before: ImageFiles, after: ImageFiles, work: Path, _sink: Sink) -> Path:
        path = work / "edge"
        path.write_bytes(before.root.read_bytes() + b" becomes " + after.root.read_bytes())
        return path

    def restore(self, release: Release, find: Find, target: Path) -> None:
        target.write_bytes(b"".join(find(pack).read_bytes()[at : at + BLOCK] for pack, at in self._places(find(release.index))))

    def repack(self, releases: Sequence[Release], find: Find, work: Path, _sink: Sink) -> Repacked:
        """Packs of which half is of no use are written anew, all into one."""
        places = {each.index: self._places(find(each.index)) for each in releases}
        used = {place for each in places.values() for place in each}
        sparse = {pack for pack, _ in used if 2 * BLOCK * sum(each == pack for each, _ in used) <= pack.size_bytes}
        if not sparse:
            return Repacked({})
        live = [place for place in sorted(used, key=lambda place: (place[0].sha256, place[1])) if place[0] in sparse]
        new = b"".join(find(pack).read_bytes()[at : at + BLOCK] for pack, at in live)
        (work / "repack").write_bytes(new)
        fresh = File(sha256(new), len(new))
        moved = {place: (fresh, number * BLOCK) for number, place in enumerate(live)}
        changed = {
            each.sha256: self._write([moved.get(place, place) for place in old], work / f"index-{each.sha256}")
            for each, old in places.items()
            if any(place in moved for place in old)
        }
        return Repacked(changed, (work / "repack",))

    def _places(self, index: Path) -> list[tuple[File, int]]:
        try:
            return [(File(pack, size), at) for pack, size, at in json.loads(index.read_bytes())]
        except ValueError as error:
            raise TrustError(f"{index} is damaged", code="index-damaged") from error

    def _write(self, places: Iterable[tuple[File, int]], path: Path) -> Path:
        path.write_text(json.dumps([(pack.sha256, pack.size_bytes, at) for pack, at in places]))
        return path


def _blocks(data: bytes) -> list[bytes]:
    return [data[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(data), BLOCK)]


@cache
def _tester(number: int) -> tuple[bytes, str]:
    assert number
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def tester(number: int) -> str:
    """A tester's public key."""
    return _tester(number)[1]


def proof_of(image: StoredImage, place: Path, *, by: int = 1) -> bytes:
    """A tester's proof of an image."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "attestation.key").write_bytes(_tester(by)[0])
    fixed = FIXED_FOR_APPLICATION if image.manifest.is_application else FIXED
    outcomes = tuple(Outcome(name, passed=True, duration_ms=1) for name in fixed)
    return proof(Report(image.id, image.manifest.label, "tcg", fixed, outcomes), SigningKey(place, "0" * 64, test_key=False))


def image(  # noqa: PLR0913 - keywords name each
    place: Path,
    version: str,
    content: bytes = b"",
    *,
    name: str = "shop",
    test_key: bool = False,
    packages: Sequence[ImagePackage] = (),
    certificate: str = "c" * 64,
    brings: bytes = b"",
) -> StoredImage:
    """An image whose root is `content`, or its version; signed by a certificate, and bringing hosts an update of their firmware's db."""
    parts = {
        PartKind.ROOT: b"".join(_blocks(content or f"root of version {version}".encode())),
        PartKind.VERITY: b"tree of " + (content or version.encode()),
        PartKind.UKI: b"the kernel is always the same",
        **({PartKind.UPDATE_DB: brings} if brings else {}),
    }
    manifest = Manifest(
        name=name,
        version=version,
        distribution="debian:trixie",
        architecture="amd64",
        role="server",
        epoch=0,
        kernel="6.12",
        cmdline="",
        root_hash=sha256(b"tree" + parts[PartKind.ROOT]),
        root_slot_bytes=1 << 30,
        verity_slot_bytes=1 << 24,
        slot_count=2,
        secure_boot_certificate=certificate,
        test_key=test_key,
        spec_sha256="",
        lock_sha256="",
        tools_sha256="",
        setuid=(),
        parts=tuple(Part(kind, f"{kind}.part", len(data), sha256(data)) for kind, data in parts.items()),
        packages=tuple(packages),
    )
    directory = place / "images" / manifest.id
    directory.mkdir(parents=True, exist_ok=True)
    for kind, data in parts.items():
        (directory / f"{kind}.part").write_bytes(data)
    return StoredImage(manifest.id, manifest, directory, 0)


def keyring(place: Path, *, roots: int = 1, threshold: int = 1, stick: Path | None = None) -> Keyring:
    """Fresh release keys; root keys on a stick."""
    found = Keyring(place / "release", (stick or place / "stick",), lambda _path: b"")
    create(found, Wish(roots, threshold, (stick or place / "stick",)))
    return found


def publisher(place: Path, keys: Keyring, *, now: datetime = NOW, shelf: Shelf | None = None) -> Publisher:
    """A publisher whose repository is `place`/repo, and whose store is empty."""
    work = place / "work"
    work.mkdir(parents=True, exist_ok=True)
    return Publisher(shelf or Shelf(place / "repo"), keys, Tiny(), Act("tess", now, "it is good"), work, lambda _image: None, silent)


def wanted(
    place: Path, version: str, channel: str = "stable", *, content: bytes = b"", minimum: str = "", edges: str = "previous"
) -> Wanted:
    """An image with its proof, to be released."""
    made = image(place, version, content)
    return Wanted(made, (proof_of(made, place / "tester"),), channel, Terms(minimum), edges)


def founding() -> Founding:
    """What a repository begins with."""
    return Founding(Testers((tester(1),)))


def at(who: Publisher, now: datetime) -> Publisher:
    """The same publisher at another time."""
    return replace(who, act=replace(who.act, at=now))


class Directory(FetcherInterface):
    """Fetches from a directory; `instead` has bytes in the place of some files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instead: dict[str, bytes] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("repo://")
        if name in self.instead:
            yield self.instead[name]
            return
        try:
            yield (self.root / name).read_bytes()
        except FileNotFoundError as error:
            raise DownloadHTTPError(name, 404) from error


class Client:
    """A host's view of a repository, by python-tuf's own client. `place` keeps what it has trusted from one look to the next."""

    def __init__(self, place: Path, repo: Path, root: bytes) -> None:
        self.place = place
        self.fetcher = Directory(repo)
        self.root = root
        (place / "metadata").mkdir(parents=True, exist_ok=True)
        (place / "targets").mkdir(exist_ok=True)
        self._updater = self._new()

    def _new(self) -> Updater:
        known = self.place / "metadata" / "root.json"
        bootstrap = None if known.exists() else self.root
        return Updater(
            str(self.place / "metadata"),
            "repo://metadata/",
            str(self.place / "targets"),
            "repo://targets/",
            self.fetcher,
            bootstrap=bootstrap,
        )

    def refresh(self) -> None:
        """Read timestamp, snapshot and targets anew."""
        self._updater = self._new()
        self._updater.refresh()

    def document(self, target: str) -> bytes | None:
        """A document, as of the last `refresh`."""
        info = self._updater.get_targetinfo(target)
        if info is None:
            return None
        file = self.place / "targets" / "document"
        self._updater.download_target(info, str(file))
        return file.read_bytes()

    def testers(self) -> Testers:
        """Whose proofs count."""
        data = self.document(TESTERS_TARGET)
        assert data is not None
        return Testers.parse(data)

    def channel(self, channel: str, name: str = "shop") -> Channel:
        """A channel."""
        data = self.document(channel_target(name, channel))
        return Channel.parse(data) if data is not None else Channel(name, channel)

    def current(self, channel: str, name: str = "shop") -> Release | None:
        """The release that hosts are to run, all of whose files are there and right."""
        listing = self.channel(channel, name).current
        if listing is None:
            return None
        data = self.document(f"releases/{listing.image}.json")
        assert data is not None, listing
        release = Release.parse(data)
        for file in files_of(Shelf(self.fetcher.root), release, Tiny()):
            assert sha256((self.fetcher.root / file.path).read_bytes()) == file.sha256
        return release

    def restored(self, release: Release, target: Path) -> bytes:
        """The root of a release, out of the repository."""
        find: Callable[[File], Path] = lambda file: self.fetcher.root / file.path  # noqa: E731
        Tiny().restore(release, find, target)
        return target.read_bytes()


def client(place: Path) -> Client:
    """A client of `place`/repo that has never looked at it."""
    number = len(list(place.glob("client-*")))
    return Client(place / f"client-{number}", place / "repo", (place / "repo/metadata/1.root.json").read_bytes())


def restorable(place: Path, version: str, *numbers: int) -> StoredImage:
    """An image whose root has these blocks, and which a repository can give back."""
    made = sample(place / f"image-{version}", blocks(*numbers), uki=b"kernel of " + version.encode() * 500)
    files = {PartKind.ROOT: made.root, PartKind.VERITY: made.tree_file, PartKind.UKI: made.uki}
    parts = tuple(Part(kind, path.name, path.stat().st_size, sha256(path.read_bytes())) for kind, path in files.items())
    manifest = replace(image(place, version).manifest, parts=parts, root_hash=made.root_hash)
    return StoredImage(manifest.id, manifest, made.root.parent, 0)


def application(place: Path, version: str, app: Application, *numbers: int, touched: Sequence[int] = ()) -> StoredImage:
    """An application of these blocks, which says `app` of itself. Of the blocks at `touched` a byte is another."""
    data = bytearray(blocks(*numbers))
    for at in touched:
        data[at * 4096 + 7] ^= 1
    made = sample(place / f"app-{version}-{len(list(place.glob('app-*')))}", bytes(data))
    made.uki.write_bytes(app.to_bytes())
    files = {PartKind.ROOT: made.root, PartKind.VERITY: made.tree_file, PartKind.APPLICATION: made.uki}
    parts = tuple(Part(kind, path.name, path.stat().st_size, sha256(path.read_bytes())) for kind, path in files.items())
    manifest = replace(image(place, version).manifest, parts=parts, root_hash=made.root_hash, role="app", kernel="", test_key=True)
    (made.root.parent / "manifest.json").write_bytes(manifest.to_bytes())
    return StoredImage(manifest.id, manifest, made.root.parent, 0)


def released(who: Publisher, place: Path, image: StoredImage, channel: str = "stable", edges: str = "previous") -> Release:
    """Release an image with its proof."""
    proofs = (proof_of(image, place / "tester"),)
    return release(who, Wanted(image, proofs, channel, Terms(), edges), founding())
