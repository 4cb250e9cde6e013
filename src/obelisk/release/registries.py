"""Images to and from OCI registries: what `obelisk push` and `obelisk pull` do. `oci` has the documents.

Pushing goes from the bottom up: blobs, what is said about the image, and last its own manifest under the tag. So whoever finds the tag
finds everything. What the registry has is not sent again. Pulling trusts nobody: each byte is compared with a digest that begins with the
tag's manifest, and the image's id is the digest of its own manifest; nothing gets into the store before all of it is there and right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import InputError, StateError, TrustError
from obelisk.events import Note, Sink, task
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.model.reference import Reference
from obelisk.release import oci
from obelisk.release.oci import Descriptor, Layer, Statement
from obelisk.store import Store, StoredImage
from obelisk.system import zstream
from obelisk.system.bubblewrap import jobs
from obelisk.system.files import hash_file
from obelisk.system.registry import INDEX, MANIFEST, Registry

PROVENANCE = "provenance.dsse.json"
_PROVENANCE_TYPE = "https://slsa.dev/provenance/"
_PROOF_TYPE = "https://in-toto.io/attestation/test-result/"
_LEVEL = 9
_MOST_STATEMENTS = 100
"""More than this many about one image are somebody's attempt to keep us busy."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of a push: the digest of the artifact's manifest, the bytes that had to be sent, and what was said about the image."""

    digest: str
    sent_bytes: int
    statements: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came of a pull. `proofs` and `provenance` are envelopes about the image, by whomever."""

    image_id: str
    manifest: Manifest
    digest: str
    proofs: tuple[bytes, ...]
    provenance: bytes | None
    fetched_bytes: int


def push(image: StoredImage, proofs: Sequence[Path], place: Reference, registry: Registry, store: Store, sink: Sink) -> Pushed:
    """Make an image available under a tag, with its bills of materials, provenance and proofs. May be repeated, and then sends nothing.

    Raises:
        InputError: `place` is a digest.
        TransportError: the registry cannot be reached, or refuses.
        TrustError: a part of the image, a proof, or what the registry says of the image is damaged.
    """
    if place.at.startswith("sha256:"):
        raise InputError(f"{place} is a digest", code="registry-reference", hint=f"name a tag: {place.host}/{place.name}:1")
    before = registry.manifest(place.at)
    with store.workspace() as work:
        root = work / "root.zst"
        layers = _as_before(before, image.manifest, str(place), registry) or _layers(image, root, sink)
        sources: dict[str, Path | bytes] = {}
        for one in layers:
            sources[one.blob.digest] = root if one.compressed else image.part_path(one.kind)
        document = oci.image_document(image.manifest, layers)
        subject = Descriptor(MANIFEST, oci.digest_of(document), len(document), artifact_type=oci.IMAGE)
        said = []
        for statement, source in _statements(image, proofs):
            said.append((statement, oci.statement_document(statement, subject)))
            sources[statement.blob.digest] = source
        config = Descriptor.of(oci.CONFIG, image.manifest.to_bytes())
        sources[config.digest] = image.manifest.to_bytes()
        sources[oci.digest_of(oci.EMPTY_BYTES)] = oci.EMPTY_BYTES
        _send_blobs(registry, sources, str(place), sink)
    listed = tuple(
        Descriptor(MANIFEST, oci.digest_of(about), len(about), statement.annotations, statement.media_type) for statement, about in said
    )
    with task(sink, "publish", f"Publishing {place}") as running:
        _refer(registry, subject, listed, [about for _statement, about in said])
        if before != document:
            registry.put_manifest(place.at, document, MANIFEST)
        else:
            running.detail = "it was there"
    return Pushed(subject.digest, registry.sent_bytes, listed)


def _as_before(document: bytes | None, manifest: Manifest, place: str, registry: Registry) -> tuple[Layer, ...] | None:
    """The layers that are there already, if the tag has this image: then the root need not even be compressed."""
    if document is None:
        return None
    try:
        artifact = oci.parse_image(document, place)
        layers = oci.match_parts(artifact, manifest, place)
    except (InputError, TrustError):
        return None  # something else, which the tag now stops to mean
    same = artifact.config.digest == f"sha256:{manifest.id}" and oci.image_document(manifest, layers) == document
    return layers if same and all(registry.has_blob(one.blob.digest) for one in layers) else None


def _layers(image: StoredImage, root: Path, sink: Sink) -> tuple[Layer, ...]:
    manifest = image.manifest
    for part in manifest.parts:
        path = image.part_path(part.kind)
        if hash_file(path) != part.sha256:
            raise TrustError(f"{path} is not the {part.kind.value} of {manifest.label}", code="part-damaged", hint="run `obelisk verify`")
    total = manifest.part(PartKind.ROOT).size_bytes
    with task(sink, "compress", "Compressing the root", total=total, unit="bytes") as running:
        zstream.compress(image.part_path(PartKind.ROOT), root, level=_LEVEL, workers=jobs(), on_bytes=running.counting(total))
        compressed = (hash_file(root), root.stat().st_size)
    return tuple(oci.layer(manifest, part.kind, compressed=compressed if part.kind is PartKind.ROOT else None) for part in manifest.parts)


def _statements(image: StoredImage, proofs: Sequence[Path]) -> Iterator[tuple[Statement, Path]]:
    for part in image.manifest.parts:
        if part.kind in oci.SBOMS:
            yield oci.sbom(image.manifest, part.kind), image.part_path(part.kind)
    provenance = image.extra(PROVENANCE)
    for path, name in (*(((provenance, PROVENANCE),) if provenance else ()), *((proof, "proof.dsse.json") for proof in proofs)):
        yield oci.attestation(path.read_bytes(), name), path


def _send_blobs(registry: Registry, sources: dict[str, Path | bytes], place: str, sink: Sink) -> None:
    missing = {digest: source for digest, source in sources.items() if not registry.has_blob(digest)}
    sizes = {digest: len(source) if isinstance(source, bytes) else source.stat().st_size for digest, source in missing.items()}
    total = sum(sizes.values())
    with task(sink, "push", f"Pushing to {place}", total=total, unit="bytes") as running:
        count = running.counting(total)
        for digest, source in missing.items():
            registry.upload(digest, source, on_bytes=count)
        known = len(sources) - len(missing)
        running.detail = f"{known} of {len(sources)} blobs were there" if known else ""


def _refer(registry: Registry, subject: Descriptor, listed: tuple[Descriptor, ...], documents: Sequence[bytes]) -> None:
    """Have the registry know what is said about the image: by itself, or by an index under the tag for those that keep no account."""
    known, entries = _listed(registry, subject.digest)
    for descriptor, document in zip(listed, documents, strict=True):
        if descriptor.digest not in {entry.digest for entry in entries} or registry.manifest(descriptor.digest) is None:
            registry.put_manifest(descriptor.digest, document, MANIFEST)
    if known is not None and (wanted := oci.index_document((*entries, *listed))) != known:
        registry.put_manifest(oci.fallback_tag(subject.digest), wanted, INDEX)


Judge = Callable[[Manifest, tuple[bytes, ...]], None]


def pull(place: Reference, registry: Registry, store: Store, sink: Sink, *, judge: Judge) -> Pulled:
    """Bring an image into the store, with provenance and proofs, and let the store know it by the place's name. May be repeated.

    `judge` is shown the manifest and the proofs before anything is kept, and raises to have it refused.

    Raises:
        InputError: there is nothing there, or something else.
        TrustError: something is not what its digest says; nothing is added to the store then.
        TransportError: the registry cannot be reached, or refuses.
        StateError: there is no room.
    """
    document = registry.manifest(place.at)
    if document is None:
        raise InputError(
            f"there is no {place}",
            code="registry-unknown",
            hint=f"see that {place.host} has it, and that the tag is written as it was pushed",
        )
    digest = oci.digest_of(document)
    artifact = oci.parse_image(document, str(place))
    image_id = artifact.config.digest.removeprefix("sha256:")
    manifest = parse_manifest(registry.read(artifact.config.digest, artifact.config.size_bytes), image_id=image_id)
    layers = oci.match_parts(artifact, manifest, str(place))
    proofs, provenance = _said(registry, digest, image_id, sink)
    judge(manifest, proofs)
    with store.workspace() as work:
        parts, fetched = _fetch(registry, layers, manifest, store, work, sink)
        with task(sink, "add", f"Adding {manifest.label}"):
            extras: dict[str, bytes | Path] = {PROVENANCE: provenance} if provenance else {}
            store.add_image(manifest, parts, extras)
            for proof in proofs:
                store.add_proof(image_id, proof)
            store.set_ref(str(place), image_id)
    return Pulled(image_id, manifest, digest, proofs, provenance, fetched)


def _fetch(
    registry: Registry, layers: tuple[Layer, ...], manifest: Manifest, store: Store, work: Path, sink: Sink
) -> tuple[dict[str, Path], int]:
    """The files of the parts by kind, and how many bytes had to be fetched."""
    parts: dict[str, Path] = {}
    wanted: list[Layer] = []
    for one in layers:
        blob = store.find_blob(manifest.part(one.kind).sha256)
        if blob is not None:
            parts[one.kind] = blob
        else:
            wanted.append(one)
    total = sum(one.blob.size_bytes for one in wanted)
    with task(sink, "pull", f"Pulling {manifest.label}", total=total, unit="bytes") as running:
        count = running.counting(total)
        for one in wanted:
            part, target = manifest.part(one.kind), work / one.kind.value
            arriving = target.with_suffix(".zst") if one.compressed else target
            registry.download(one.blob.digest, one.blob.size_bytes, arriving, on_bytes=count)
            if one.compressed:
                zstream.decompress(arriving, target, limit=part.size_bytes)
                arriving.unlink()
            if hash_file(target) != part.sha256:
                raise TrustError(
                    f"the layer {one.blob.digest} is not the part {part.kind.value} of {manifest.label}",
                    code="registry-damaged",
                    hint="push the image again, or pull it from elsewhere",
                )
            parts[one.kind] = target
        running.detail = f"{len(layers) - len(wanted)} of {len(layers)} parts were there" if len(wanted) < len(layers) else ""
    return parts, total


def _said(registry: Registry, digest: str, image_id: str, sink: Sink) -> tuple[tuple[bytes, ...], bytes | None]:
    """Proofs and provenance that the registry has about the image. What is about another one, or of no known kind, is left."""
    proofs: list[bytes] = []
    provenance: bytes | None = None
    for entry in referring(registry, digest):
        if entry.artifact_type not in {oci.ENVELOPE, ""} or entry.size_bytes > 1 << 20:
            continue
        document = registry.manifest(entry.digest)
        about = oci.parse_statement(document, digest, f"{registry.repository}@{entry.digest}") if document is not None else None
        if about is None or about.blob.media_type != oci.ENVELOPE:
            continue
        envelope = registry.read(about.blob.digest, about.blob.size_bytes)
        if not oci.is_about(envelope, image_id):
            sink(Note(f"left out {entry.digest}: it is about another image"))
            continue
        predicate = oci.predicate_of(envelope)
        if predicate.startswith(_PROOF_TYPE):
            proofs.append(envelope)
        elif predicate.startswith(_PROVENANCE_TYPE):
            provenance = provenance or envelope
    return tuple(proofs), provenance


def referring(registry: Registry, digest: str) -> tuple[Descriptor, ...]:
    """What the registry has that refers to a manifest.

    Raises:
        StateError: that is more than anybody needs.
        TrustError: the index is damaged.
    """
    _known, entries = _listed(registry, digest)
    if len(entries) > _MOST_STATEMENTS:
        raise StateError(
            f"{registry.repository} has {len(entries)} statements about {digest}",
            code="registry-statements",
            hint=f"at most {_MOST_STATEMENTS} are looked at: delete what is not needed, in the registry",
        )
    return entries


def _listed(registry: Registry, digest: str) -> tuple[bytes | None, tuple[Descriptor, ...]]:
    """What refers to a manifest, and the index under the fallback tag: empty when there is none yet, None when none is needed."""
    pages = registry.referrers(digest)
    tag = oci.fallback_tag(digest)
    known = None if pages is not None else registry.manifest(tag) or b""
    indexes = pages if pages is not None else (known,) if known else ()
    place = f"{registry.host}/{registry.repository}:{tag}"
    return known, tuple(entry for index in indexes for entry in oci.listed(index, place))
