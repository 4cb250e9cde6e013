"""Repositories to test clients with: TUF that signs what it is told to, also what it never should; and mirrors in memory."""

import base64
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from host_samples import manifest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from obelisk.errors import TransportError
from obelisk.model.image import Manifest, PartKind
from obelisk.model.proof import FIXED, PAYLOAD_TYPE, PREDICATE
from obelisk.model.release import Channel, EdgeFile, File, Hosts, Listing, Release, Testers
from obelisk.release.client.remote import MissingError

ROLES = ("root", "timestamp", "snapshot", "targets")
LATER = timedelta(days=100)
Signed = Root | Timestamp | Snapshot | Targets
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


def fresh(signed: S) -> S:
    """Metadata that was not published yet, good for some time."""
    signed.version = 0
    signed.expires = datetime.now(UTC).replace(microsecond=0) + LATER
    return signed


@dataclass
class Authority:
    """The owner of a repository. What it has published is in `files`, by path; what it will publish may be changed at will.

    `hashes`: timestamp and snapshot name the digests of what they lead to. `signers` are the keys that sign, which need not be those
    that count.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    hashes: bool = False
    signers: dict[str, list[CryptoSigner]] = field(default_factory=lambda: {role: [CryptoSigner.generate_ed25519()] for role in ROLES})
    root: Root = field(default_factory=lambda: fresh(Root()))
    timestamp: Timestamp = field(default_factory=lambda: fresh(Timestamp()))
    snapshot: Snapshot = field(default_factory=lambda: fresh(Snapshot()))
    targets: Targets = field(default_factory=lambda: fresh(Targets()))
    delegated: dict[str, Targets] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, signers in self.signers.items():
            for signer in signers:
                self.root.add_key(signer.public_key, role)
        self.publish_root()
        self.publish()

    @property
    def first_root(self) -> bytes:
        """What hosts are given."""
        return self.files["metadata/1.root.json"]

    def rotate(self, role: str, *, signed_by_old: bool = False) -> None:
        """Another key for a role. Root is to be published after it, and what the role signs."""
        old = self.signers[role]
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519(), *(old if signed_by_old else ())]
        self.root.add_key(self.signers[role][0].public_key, role)

    def add_key(self, role: str) -> None:
        """One more key for a role."""
        signer = CryptoSigner.generate_ed25519()
        self.root.add_key(signer.public_key, role)
        self.signers[role].append(signer)

    def put(self, path: str, data: bytes, *, role: str = "targets") -> None:
        """A target; it counts when targets are published."""
        target = TargetFile.from_data(path, data, ["sha256"])
        (self.targets if role == "targets" else self.delegated[role]).targets[path] = target
        directory, slash, name = path.rpartition("/")
        self.files[f"targets/{directory}{slash}{target.hashes['sha256']}.{name}"] = data

    def delegate(self, parent: str, role: str, paths: Sequence[str] = ("*",), *, terminating: bool = False) -> None:
        """Targets below targets."""
        delegator = self.targets if parent == "targets" else self.delegated[parent]
        self.delegated.setdefault(role, fresh(Targets()))
        self.signers.setdefault(role, [CryptoSigner.generate_ed25519()])
        if delegator.delegations is None:
            delegator.delegations = Delegations({}, roles={})
        assert delegator.delegations.roles is not None
        delegator.delegations.roles[role] = DelegatedRole(role, [], 1, terminating, list(paths))
        for signer in self.signers[role]:
            delegator.add_key(signer.public_key, role)

    def publish(self) -> None:
        """The next version of all but root."""
        for role in self.delegated:
            self.publish_targets(role)
        self.publish_targets()
        self.publish_snapshot()

    def publish_root(self) -> bytes:
        """The next version of root."""
        self.root.version += 1
        return self._write(f"{self.root.version}.root.json", self.root, "root")

    def publish_targets(self, role: str = "targets", *, noted: bool = True) -> bytes:
        """The next version of targets; `noted` in the next snapshot."""
        targets = self.targets if role == "targets" else self.delegated[role]
        targets.version += 1
        data = self._write(f"{targets.version}.{quote(role, '')}.json", targets, role)
        if noted:
            self.snapshot.meta[f"{role}.json"] = self._meta(targets.version, data)
        return data

    def publish_snapshot(self) -> bytes:
        """The next version of snapshot and timestamp."""
        self.snapshot.version += 1
        data = self.write_snapshot()
        self.timestamp.snapshot_meta = self._meta(self.snapshot.version, data)
        self.publish_timestamp()
        return data

    def write_snapshot(self) -> bytes:
        """The snapshot as it is."""
        return self._write(f"{self.snapshot.version}.snapshot.json", self.snapshot, "snapshot")

    def publish_timestamp(self) -> bytes:
        """The next version of timestamp."""
        self.timestamp.version += 1
        return self.write_timestamp()

    def write_timestamp(self) -> bytes:
        """The timestamp as it is."""
        return self._write("timestamp.json", self.timestamp, "timestamp")

    def _meta(self, version: int, data: bytes) -> MetaFile:
        if not self.hashes:
            return MetaFile(version)
        return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def _write(self, name: str, signed: Signed, role: str) -> bytes:
        metadata = Metadata(cast("Targets", deepcopy(signed)))  # or any other of the roles
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes(JSONSerializer())
        self.files[f"metadata/{name}"] = data
        return data


@dataclass
class MemoryMirror:
    """A mirror of files in memory. `requests` are the paths that it was asked for; it is down when there are no files."""

    files: Mapping[str, bytes] | None
    name: str = "memory"
    requests: list[str] = field(default_factory=list)
    ranges_known: bool = True
    piece_bytes: int = 1000
    sent_bytes: int = 0

    def stream(self, path: str, *, start: int, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """See `Mirror`."""
        yield from self.part(path, range(start, 1 << 40), most_bytes=most_bytes)

    def part(self, path: str, wanted: range, *, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        """See `Mirror`."""
        self.requests.append(path)
        if self.files is None:
            message = f"{self.name} is down"
            raise TransportError(message, code="http-unreachable", hint="none")
        if path not in self.files:
            message = f"{self.name} has no {path}"
            raise MissingError(message)
        data = self.files[path]
        if len(data) > most_bytes:
            message = f"{self.name}/{path} is too long"
            raise TransportError(message, code="http-too-long", hint="none")
        start, stop = (wanted.start, min(wanted.stop, len(data))) if self.ranges_known else (0, len(data))
        for at in range(start, stop, self.piece_bytes):
            piece = data[at : min(at + self.piece_bytes, stop)]
            self.sent_bytes += len(piece)
            yield at, piece


TESTER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def pem(key: Ed25519PrivateKey) -> str:
    """The public half."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def proof(
    image_id: str, *, key: Ed25519PrivateKey = TESTER, result: str = "PASSED", passed: Sequence[str] = FIXED, planned: Sequence[str] = FIXED
) -> bytes:
    """A test-result in its envelope."""
    payload = json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "shop_2", "digest": {"sha256": image_id}}],
            "predicateType": PREDICATE,
            "predicate": {"result": result, "passedTests": list(passed), "obelisk": {"planned": list(planned)}},
        }
    ).encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    signature = base64.b64encode(key.sign(signed)).decode()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "x", "sig": signature}],
    }
    return json.dumps(envelope).encode()


def file_of(data: bytes) -> File:
    """Its name below files/."""
    return File(hashlib.sha256(data).hexdigest(), len(data))


def kernel_of(image: Manifest) -> bytes:
    """The beginning of a PE file whose one section is the command line, and some bytes that stand for the rest."""
    line = f"roothash={image.root_hash}".encode()
    header = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0" + struct.pack("<HH", 0x8664, 1) + bytes(16)
    section = struct.pack("<8sIIII", b".cmdline", len(line), 0, len(line), 0x100).ljust(40, b"\0")
    return (header + section).ljust(0x100, b"\0") + line + f"kernel of {image.version} ".encode() * 5000


@dataclass
class Publisher:
    """Releases of `shop`, with their channel `stable`, in an authority's files. Roots and kernels are a few bytes."""

    authority: Authority = field(default_factory=Authority)
    channel: Channel = field(default_factory=lambda: Channel("shop", "stable"))
    kernels: dict[str, bytes] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.authority.put("testers.json", Testers((pem(TESTER),)).to_bytes())

    def keep(self, data: bytes) -> File:
        """A file below files/."""
        file = file_of(data)
        self.authority.files[file.path] = data
        return file

    def release(
        self, version: str, *, minimum: str = "", proof_of: bytes | None = None, kernel: bytes = b"", listed: bool = True
    ) -> Manifest:
        """Release a version; in the channel when `listed`."""
        plain = manifest(version, root_hash=hashlib.sha256(version.encode()).hexdigest())
        file = self.keep(kernel or kernel_of(plain))
        parts = tuple(
            replace(part, sha256=file.sha256, size_bytes=file.size_bytes) if part.kind is PartKind.UKI else part for part in plain.parts
        )
        image = replace(plain, parts=parts)
        proofs = (self.keep(proof(image.id) if proof_of is None else proof_of),)
        index = self.keep(f"index of {version}".encode())
        edges = tuple(
            EdgeFile(old.image, old.version, self.keep(f"edge {old.version} {version}".encode())) for old in self.releases.values()
        )
        root = image.part(PartKind.ROOT)
        release = Release(
            image.id,
            image.name,
            version,
            image.root_hash,
            root.size_bytes,
            minimum,
            self.keep(image.to_bytes()),
            proofs,
            None,
            index,
            edges,
        )
        self.authority.put(release.target, release.to_bytes())
        self.releases[version] = release
        if listed:
            listing = Listing(version, image.id, datetime.now(UTC).isoformat(timespec="seconds"), "somebody")
            self.channel = replace(self.channel, listings=(*self.channel.listings, listing), highest=version)
        self.publish()
        return image

    def withdraw(self, version: str, why: str = "it eats data", hosts: Hosts = Hosts.STAY) -> None:
        """Withdraw a version."""
        listings = tuple(replace(each, withdrawn=why, hosts=hosts) if each.version == version else each for each in self.channel.listings)
        self.channel = replace(self.channel, listings=listings)
        self.publish()

    def publish(self) -> None:
        """The channel, and the metadata over it."""
        self.authority.put(self.channel.target, self.channel.to_bytes())
        self.authority.publish()
