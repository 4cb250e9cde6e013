"""What a repository says: releases, channels, and whose proofs count.

    metadata/                      TUF, with consistent snapshots
    targets/channels/<name>/<SHA-256>.<channel>.json     `Channel`
    targets/releases/<SHA-256>.<image id>.json           `Release`
    targets/<SHA-256>.testers.json                       `Testers`
    files/<2 digits>/<SHA-256>     everything large: parts of images, indexes, packs, edges, proofs

Documents are canonical JSON and TUF targets; what lies in files/ is trusted because a trusted document names its digest.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from obelisk.errors import TrustError
from obelisk.model.canonical import Json, canonical

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHANNEL = re.compile(r"[a-z][a-z0-9-]{0,30}")


def is_channel(text: str) -> bool:
    """Whether a channel may have that name: small letters, digits and hyphens, at most 31, a letter first."""
    return _CHANNEL.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class File:
    """A file below files/, named by its content."""

    sha256: str
    size_bytes: int

    @property
    def path(self) -> str:
        """Where it lies in a repository."""
        return f"files/{self.sha256[:2]}/{self.sha256}"

    def to_json(self) -> Json:
        """As documents hold it."""
        return {"sha256": self.sha256, "size": self.size_bytes}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read from a document; ValueError and KeyError when it is no file."""
        if not _DIGEST.fullmatch(raw["sha256"]) or not isinstance(raw["size"], int) or raw["size"] < 0:
            raise ValueError(raw)
        return cls(raw["sha256"], raw["size"])


@dataclass(frozen=True, slots=True)
class EdgeFile:
    """A precomputed way from one image to the release's: one file."""

    from_image: str
    from_version: str
    file: File


@dataclass(frozen=True, slots=True)
class Release:
    """An image made available. `minimum` is the oldest version whose hosts can take it; empty: any.

    The parts of the image lie below files/ by the digests that its manifest names, but for the root: `index` says where its blocks are.
    """

    image: str
    name: str
    version: str
    root_hash: str
    root_bytes: int
    minimum: str
    manifest: File
    proofs: tuple[File, ...]
    provenance: File | None
    index: File
    edges: tuple[EdgeFile, ...] = ()

    @property
    def target(self) -> str:
        """The TUF target path of its document."""
        return f"releases/{self.image}.json"

    def to_bytes(self) -> bytes:
        """Its document."""
        return canonical(
            {
                "schema": "obelisk.release/1",
                "image": self.image,
                "name": self.name,
                "version": self.version,
                "root_hash": self.root_hash,
                "root_size": self.root_bytes,
                "minimum": self.minimum,
                "manifest": self.manifest.to_json(),
                "proofs": [proof.to_json() for proof in self.proofs],
                "provenance": self.provenance.to_json() if self.provenance else None,
                "index": self.index.to_json(),
                "edges": [{"from": e.from_image, "version": e.from_version, "file": e.file.to_json()} for e in self.edges],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read its document.

        Raises:
            TrustError: it is none.
        """
        raw = _document(data, "obelisk.release/1")
        try:
            return cls(
                _digest(raw["image"]),
                str(raw["name"]),
                str(raw["version"]),
                _digest(raw["root_hash"]),
                int(raw["root_size"]),
                str(raw["minimum"]),
                File.from_json(raw["manifest"]),
                tuple(File.from_json(proof) for proof in raw["proofs"]),
                File.from_json(raw["provenance"]) if raw["provenance"] else None,
                File.from_json(raw["index"]),
                tuple(EdgeFile(_digest(e["from"]), str(e["version"]), File.from_json(e["file"])) for e in raw["edges"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged("release", error) from error


class Hosts(StrEnum):
    """What hosts do that run a withdrawn release: `STAY` until there is a newer one, or go `BACK` to the image before."""

    STAY = "stay"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Listing:
    """One release in a channel. `at` is RFC 3339 in UTC; `source` the channel that it was promoted from, or empty.

    `withdrawn` says why it must not be installed any more, or is empty. `growth` is what an application may do that the release before it
    in the channel may not, in words, and `approved` why that was to be; both empty where there was nothing to approve.
    """

    version: str
    image: str
    at: str
    by: str
    why: str = ""
    source: str = ""
    withdrawn: str = ""
    hosts: Hosts = Hosts.STAY
    growth: tuple[str, ...] = ()
    approved: str = ""

    def to_json(self) -> Json:
        """As channels hold it."""
        fields: dict[str, Json] = {"version": self.version, "image": self.image, "at": self.at, "by": self.by, "why": self.why}
        if self.source:
            fields["source"] = self.source
        if self.withdrawn:
            fields |= {"withdrawn": self.withdrawn, "hosts": self.hosts.value}
        if self.growth:
            fields |= {"growth": list(self.growth), "approved": self.approved}
        return fields

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read from a channel; KeyError and ValueError when it is none."""
        return cls(
            str(raw["version"]),
            _digest(raw["image"]),
            str(raw["at"]),
            str(raw["by"]),
            str(raw["why"]),
            str(raw.get("source", "")),
            str(raw.get("withdrawn", "")),
            Hosts(raw.get("hosts", Hosts.STAY)),
            tuple(str(line) for line in raw.get("growth", ())),
            str(raw.get("approved", "")),
        )


@dataclass(frozen=True, slots=True)
class Channel:
    """Releases of one image's name, oldest first, in versions that only grow.

    `highest` is the highest version that was ever listed, so that a retired one is not used again.
    """

    name: str
    channel: str
    listings: tuple[Listing, ...] = ()
    highest: str = ""

    @property
    def target(self) -> str:
        """The TUF target path of its document."""
        return channel_target(self.name, self.channel)

    @property
    def current(self) -> Listing | None:
        """The release that hosts are to run: the newest that is not withdrawn."""
        return next((listing for listing in reversed(self.listings) if not listing.withdrawn), None)

    def to_bytes(self) -> bytes:
        """Its document."""
        return canonical(
            {
                "schema": "obelisk.channel/1",
                "name": self.name,
                "channel": self.channel,
                "highest": self.highest,
                "releases": [listing.to_json() for listing in self.listings],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read its document.

        Raises:
            TrustError: it is none.
        """
        raw = _document(data, "obelisk.channel/1")
        try:
            listings = tuple(Listing.from_json(listing) for listing in raw["releases"])
            return cls(str(raw["name"]), str(raw["channel"]), listings, str(raw["highest"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged("channel", error) from error


def channel_target(name: str, channel: str) -> str:
    """The TUF target path of a channel's document."""
    return f"channels/{name}/{channel}.json"


TESTERS_TARGET = "testers.json"


@dataclass(frozen=True, slots=True)
class Testers:
    """Whose proofs count: Ed25519 public keys as PEM."""

    keys: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Its document."""
        return canonical({"schema": "obelisk.testers/1", "keys": list(self.keys)})

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read its document.

        Raises:
            TrustError: it is none.
        """
        raw = _document(data, "obelisk.testers/1")
        try:
            return cls(tuple(str(key) for key in raw["keys"]))
        except (KeyError, TypeError) as error:
            raise _damaged("testers", error) from error


def _document(data: bytes, schema: str) -> Mapping[str, Any]:
    try:
        raw = json.loads(data)
        found = raw["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(schema, error) from error
    if found != schema:
        raise TrustError(
            f"the repository has a document of schema {found!r}, this version reads {schema!r}",
            code="document-schema",
            hint="use a version of obelisk that knows it",
        )
    checked: Mapping[str, Any] = raw
    return checked


def _digest(text: object) -> str:
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ValueError(text)
    return text


def _damaged(what: str, error: Exception) -> TrustError:
    return TrustError(f"the repository's {what} is damaged: {error}", code="document-damaged", hint="tell whoever runs the repository")
