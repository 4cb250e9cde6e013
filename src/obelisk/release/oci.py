"""An image, and what is said about it, as OCI artifacts: the documents, without any registry.

    the image    manifest, artifactType application/vnd.obelisk.image.v1
                   config   manifest.json, so that the config's digest is the image's id
                   layers   one for each part, application/vnd.obelisk.part.<kind>.v1, with +zstd when it is compressed
    about it     manifests whose subject is the image's: SBOMs, provenance and proofs, each one layer
    for registries without the referrers API
                 index under the tag sha256-<digest of the image's manifest>, which lists those manifests

The documents of the same image are the same bytes every time. Titles are file names, so that tools for artifacts write files as
`obelisk host upgrade DIRECTORY` expects them, but for the compression of the root.

Source: OCI Image Specification 1.1 (manifest, artifacts), OCI Distribution Specification 1.1 (referrers, referrers tag schema).
"""

import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from obelisk.errors import InputError, TrustError
from obelisk.model.canonical import Json, canonical
from obelisk.model.image import Manifest, PartKind
from obelisk.system.registry import INDEX, MANIFEST

IMAGE = "application/vnd.obelisk.image.v1"
CONFIG = "application/vnd.obelisk.image.manifest.v1+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_BYTES = b"{}"
PREDICATE = "in-toto.io/predicate-type"
TITLE = "org.opencontainers.image.title"

SBOMS = {PartKind.SBOM_SPDX: "application/spdx+json", PartKind.SBOM_CYCLONEDX: "application/vnd.cyclonedx+json"}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART = re.compile(r"application/vnd\.obelisk\.part\.([a-z-]+)\.v1(\+zstd)?")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of another document or a blob. `digest` is `sha256:…`."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Self:
        """That of some bytes."""
        return cls(media_type, digest_of(data), len(data))

    def to_json(self) -> Json:
        """As documents hold it."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size_bytes,
            **({"artifactType": self.artifact_type} if self.artifact_type else {}),
            **({"annotations": dict(self.annotations)} if self.annotations else {}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read from a document; ValueError and its like when it is none."""
        if not _DIGEST.fullmatch(raw["digest"]) or type(raw["size"]) is not int or raw["size"] < 0:
            raise ValueError(raw)
        annotations = {str(key): str(value) for key, value in (raw.get("annotations") or {}).items()}
        return cls(str(raw["mediaType"]), raw["digest"], raw["size"], annotations, str(raw.get("artifactType") or ""))


def digest_of(data: bytes) -> str:
    """The digest of some bytes, as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# The image


@dataclass(frozen=True, slots=True)
class Layer:
    """A part as it travels: `blob`, which is compressed or is the part itself."""

    kind: PartKind
    compressed: bool
    blob: Descriptor


@dataclass(frozen=True, slots=True)
class Artifact:
    """An image as a registry has it: `config` is the image's manifest."""

    config: Descriptor
    layers: tuple[Layer, ...]


def layer(manifest: Manifest, kind: PartKind, *, compressed: tuple[str, int] | None = None) -> Layer:
    """How a part travels; `compressed` is the digest (64 digits) and the size of its zstd stream."""
    part = manifest.part(kind)
    sha256, size = compressed or (part.sha256, part.size_bytes)
    title = f"{part.file}.zst" if compressed else part.file
    media_type = f"application/vnd.obelisk.part.{kind.value}.v1{'+zstd' if compressed else ''}"
    return Layer(kind, compressed is not None, Descriptor(media_type, f"sha256:{sha256}", size, {TITLE: title}))


def image_document(manifest: Manifest, layers: Iterable[Layer]) -> bytes:
    """The artifact's manifest."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": IMAGE,
            "config": Descriptor.of(CONFIG, manifest.to_bytes()).to_json(),
            "layers": [layer.blob.to_json() for layer in layers],
            "annotations": {
                TITLE: manifest.name,
                "org.opencontainers.image.version": manifest.version,
                "org.opencontainers.image.created": datetime.fromtimestamp(manifest.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        }
    )


def parse_image(document: bytes, place: str) -> Artifact:
    """Read the artifact's manifest, which came from `place`.

    Raises:
        InputError: it is an artifact or an image of another kind.
        TrustError: it is damaged.
    """
    raw = _document(document, place)
    config = raw.get("config")
    kind = raw.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else "") or raw.get("mediaType")
    if kind != IMAGE:
        raise InputError(
            f"{place} is no image of obelisk, but {kind or 'something without a type'}",
            code="registry-kind",
            hint="name a tag that `obelisk push` has made",
        )
    try:
        layers = tuple(_layer(Descriptor.from_json(one)) for one in raw["layers"])
        return Artifact(Descriptor.from_json(raw["config"]), layers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(place, error) from error


def _layer(blob: Descriptor) -> Layer:
    found = _PART.fullmatch(blob.media_type)
    if found is None:
        message = f"a layer of type {blob.media_type}"
        raise ValueError(message)
    return Layer(PartKind(found[1]), found[2] is not None, blob)


def match_parts(artifact: Artifact, manifest: Manifest, place: str) -> tuple[Layer, ...]:
    """The layer of each part, in the order of the manifest.

    Raises:
        TrustError: a part has none, or one that cannot be it.
    """
    by_kind = {layer.kind: layer for layer in artifact.layers}
    found = []
    for part in manifest.parts:
        one = by_kind.get(part.kind)
        if one is None or (not one.compressed and (one.blob.digest, one.blob.size_bytes) != (f"sha256:{part.sha256}", part.size_bytes)):
            raise _damaged(place, f"no layer is the part {part.kind.value} of the image")
        found.append(one)
    return tuple(found)


# What is said about it


@dataclass(frozen=True, slots=True)
class Statement:
    """Something about an image: `blob` and what it is. `media_type` is also the type of the artifact."""

    media_type: str
    blob: Descriptor
    annotations: Mapping[str, str] = field(default_factory=dict)


def sbom(manifest: Manifest, kind: PartKind) -> Statement:
    """A bill of materials, which is a part of the image too."""
    part = manifest.part(kind)
    return Statement(SBOMS[kind], Descriptor(SBOMS[kind], f"sha256:{part.sha256}", part.size_bytes, {TITLE: part.file}))


def attestation(envelope: bytes, name: str) -> Statement:
    """A signed statement: provenance or a proof. `name` is the file's.

    Raises:
        TrustError: it is none.
    """
    predicate = predicate_of(envelope)
    blob = Descriptor(ENVELOPE, digest_of(envelope), len(envelope), {TITLE: name, PREDICATE: predicate})
    return Statement(ENVELOPE, blob, {PREDICATE: predicate})


def predicate_of(envelope: bytes) -> str:
    """What kind of statement a DSSE envelope holds.

    Raises:
        TrustError: it is none.
    """
    return str(_statement(envelope)["predicateType"])


def is_about(envelope: bytes, image_id: str) -> bool:
    """Whether a DSSE envelope holds a statement about that image and nothing else; who signed it is not looked at.

    Raises:
        TrustError: it holds none.
    """
    try:
        return {subject["digest"]["sha256"] for subject in _statement(envelope)["subject"]} == {image_id}
    except (KeyError, TypeError) as error:
        raise _damaged("a statement", error) from error


def _statement(envelope: bytes) -> Mapping[str, Any]:
    try:
        statement: Mapping[str, Any] = json.loads(b64decode(json.loads(envelope)["payload"]))
        statement["predicateType"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged("a statement", error) from error
    return statement


def statement_document(statement: Statement, subject: Descriptor) -> bytes:
    """The manifest that says of `subject` what the statement does."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": statement.media_type,
            "config": Descriptor.of(EMPTY, EMPTY_BYTES).to_json(),
            "layers": [statement.blob.to_json()],
            "subject": Descriptor(subject.media_type, subject.digest, subject.size_bytes).to_json(),
            **({"annotations": dict(statement.annotations)} if statement.annotations else {}),
        }
    )


def parse_statement(document: bytes, subject: str, place: str) -> Statement | None:
    """What a referring manifest says of the subject with that digest; None when it is of another form, or about something else.

    Raises:
        TrustError: it is damaged.
    """
    raw = _document(document, place)
    try:
        if raw.get("mediaType") != MANIFEST or raw["subject"]["digest"] != subject or len(raw["layers"]) != 1:
            return None
        return Statement(str(raw.get("artifactType", "")), Descriptor.from_json(raw["layers"][0]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


# Which statements there are, where the registry keeps no account


def fallback_tag(digest: str) -> str:
    """The tag of the index that lists what refers to a manifest."""
    return digest.replace(":", "-")


def listed(document: bytes, place: str) -> tuple[Descriptor, ...]:
    """What an index lists.

    Raises:
        TrustError: it is none.
    """
    raw = _document(document, place)
    try:
        return tuple(Descriptor.from_json(one) for one in raw["manifests"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(place, error) from error


def index_document(entries: Iterable[Descriptor]) -> bytes:
    """An index of these, each once, in the order in which they come."""
    unique = {entry.digest: entry for entry in entries}
    return canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry.to_json() for entry in unique.values()]})


def _document(document: bytes, place: str) -> Mapping[str, Any]:
    try:
        raw = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _damaged(place, error) from error
    if not isinstance(raw, dict):
        raise _damaged(place, "it is no JSON object")
    return raw


def _damaged(place: str, why: object) -> TrustError:
    return TrustError(f"{place} is damaged: {why}", code="registry-damaged", hint="push the image again, or pull it from elsewhere")
