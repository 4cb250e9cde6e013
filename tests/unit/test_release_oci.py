"""Images in registries: what the documents say, and that a push and a pull give the same image or nothing."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fake_registry import Registry as Fake
from hypothesis import given
from hypothesis import strategies as st
from store_samples import manifest_of

from obelisk.errors import InputError, ObeliskError, StateError, TrustError
from obelisk.events import silent
from obelisk.model.image import Manifest, Part, PartKind
from obelisk.model.reference import Reference
from obelisk.release import oci, registries
from obelisk.release.oci import Descriptor
from obelisk.release.registries import Pulled, Pushed
from obelisk.store import Store
from obelisk.system import zstream
from obelisk.system.registry import INDEX, MANIFEST, Registry

ROOT = b"root of the shop " * 20_000
FILES = {
    PartKind.ROOT: ROOT,
    PartKind.VERITY: b"hash tree",
    PartKind.UKI: b"kernel",
    PartKind.SBOM_SPDX: b'{"spdxVersion": "SPDX-2.3"}',
    PartKind.SBOM_CYCLONEDX: b'{"bomFormat": "CycloneDX"}',
}
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
SLSA = "https://slsa.dev/provenance/v1"


def envelope(image: str, predicate: str, note: str = "") -> bytes:
    statement = {"subject": [{"digest": {"sha256": image}}], "predicateType": predicate, "predicate": {"note": note}}
    return json.dumps({"payload": b64encode(json.dumps(statement).encode()).decode(), "payloadType": "x", "signatures": []}).encode()


either = pytest.mark.parametrize("bench", [False, True], ids=["tag schema", "referrers API"], indirect=True)


class Bench:
    """A store with an image and a proof of it, an empty one, and a registry between them."""

    def __init__(self, place: Path, fake: Fake) -> None:
        self.fake = fake
        self.reference = Reference("127.0.0.1:1", "shop", "1")
        self.store = Store.open(place / "store")
        self.other = Store.open(place / "other")
        parts = tuple(Part(kind, f"{kind.value}.part", len(data), hashlib.sha256(data).hexdigest()) for kind, data in FILES.items())
        self.manifest = replace(manifest_of(ROOT), parts=parts)
        files = {}
        for kind, data in FILES.items():
            files[kind.value] = place / kind.value
            (place / kind.value).write_bytes(data)
        provenance = envelope(self.manifest.id, SLSA)
        self.store.add_image(self.manifest, files, {registries.PROVENANCE: provenance})
        self.store.add_proof(self.manifest.id, envelope(self.manifest.id, TEST_RESULT))

    def push(self) -> Pushed:
        image = self.store.image(self.manifest.id)
        with Registry(self.fake.host, "shop") as registry:
            return registries.push(image, self.store.proofs(image.id), self.reference, registry, self.store, silent)

    def pull(self, judge: registries.Judge = lambda _manifest, _proofs: None, *, at: str = "1") -> Pulled:
        with Registry(self.fake.host, "shop") as registry:
            return registries.pull(replace(self.reference, at=at), registry, self.other, silent, judge=judge)

    def is_empty(self) -> bool:
        """Whether nothing got into the other store."""
        return self.other.images() == () and self.other.refs() == () and not any((self.other.root / "proofs").iterdir())


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    fake = Fake(referrers=getattr(request, "param", False))
    with fake.served():
        made = Bench(tmp_path, fake)
        yield made
        made.store.close()
        made.other.close()


@either
def test_what_is_pushed_is_pulled_with_all_that_is_said_about_it(bench: Bench) -> None:
    pushed = bench.push()
    pulled = bench.pull()
    image = bench.other.image(str(bench.reference))
    assert pulled.image_id == image.id == bench.manifest.id
    assert pulled.digest == pushed.digest
    assert {kind: image.part_path(kind).read_bytes() for kind in FILES} == FILES
    assert [path.read_bytes() for path in bench.other.proofs(image.id)] == [envelope(image.id, TEST_RESULT)]
    provenance = image.extra(registries.PROVENANCE)
    assert provenance is not None
    assert provenance.read_bytes() == envelope(image.id, SLSA)
    assert bench.other.verify(sink=silent) == ()


def test_pulled_by_its_digest_it_is_the_same(bench: Bench) -> None:
    digest = bench.push().digest
    assert bench.pull(at=digest).image_id == bench.manifest.id


def test_the_root_travels_compressed_and_any_zstd_reads_it(bench: Bench, tmp_path: Path) -> None:
    bench.push()
    (layer,) = (one for one in json.loads(bench.fake.manifests["1"])["layers"] if "root" in one["mediaType"])
    assert layer["mediaType"] == "application/vnd.obelisk.part.root.v1+zstd"
    assert layer["size"] < len(ROOT) / 10
    (tmp_path / "zst").write_bytes(bench.fake.blobs[layer["digest"]])
    assert bench.fake.blobs[layer["digest"]].startswith(b"\x28\xb5\x2f\xfd")
    zstream.decompress(tmp_path / "zst", tmp_path / "back", limit=len(ROOT))
    assert (tmp_path / "back").read_bytes() == ROOT


@either
def test_a_second_push_sends_nothing(bench: Bench) -> None:
    assert bench.push().sent_bytes > 0
    bench.fake.requests.clear()
    again = bench.push()
    assert again.sent_bytes == 0
    assert bench.fake.written() == []


@either
def test_a_push_after_a_new_proof_sends_that_alone(bench: Bench) -> None:
    digest = bench.push().digest
    more = envelope(bench.manifest.id, TEST_RESULT, "another tester's")
    bench.store.add_proof(bench.manifest.id, more)
    blobs = set(bench.fake.blobs)
    assert bench.push().digest == digest
    assert [bench.fake.blobs[new] for new in bench.fake.blobs.keys() - blobs] == [more]
    assert set(bench.pull().proofs) == {envelope(bench.manifest.id, TEST_RESULT), more}


def test_the_tag_comes_last(bench: Bench) -> None:
    bench.push()
    assert bench.fake.written()[-1] == "PUT /v2/shop/manifests/1"


@either
def test_what_refers_to_the_image_is_listed_with_its_type(bench: Bench) -> None:
    digest = bench.push().digest
    with Registry(bench.fake.host, "shop") as registry:
        entries = registries.referring(registry, digest)
    assert sorted((entry.artifact_type, entry.annotations.get(oci.PREDICATE, "")) for entry in entries) == [
        ("application/spdx+json", ""),
        ("application/vnd.cyclonedx+json", ""),
        (oci.ENVELOPE, TEST_RESULT),
        (oci.ENVELOPE, SLSA),
    ]
    for entry in entries:
        assert json.loads(bench.fake.manifests[entry.digest])["subject"]["digest"] == digest
    index = bench.fake.manifests.get(digest.replace(":", "-"))
    assert (index is None) == bench.fake.referrers


def test_what_others_say_in_the_index_stays(bench: Bench) -> None:
    digest = bench.push().digest
    tag = digest.replace(":", "-")
    theirs = Descriptor(MANIFEST, "sha256:" + "7" * 64, 7, artifact_type="application/vnd.theirs")
    ours = oci.listed(bench.fake.manifests[tag], tag)
    bench.fake.manifests[tag] = oci.index_document((theirs, *ours[1:]))
    bench.push()
    assert oci.listed(bench.fake.manifests[tag], tag) == (theirs, *ours[1:], ours[0])


def test_parts_that_the_store_has_are_not_fetched(bench: Bench) -> None:
    bench.push()
    bench.other.add_blob(bench.store.image(bench.manifest.id).part_path(PartKind.ROOT))
    assert bench.pull().fetched_bytes == sum(len(data) for kind, data in FILES.items() if kind is not PartKind.ROOT)
    assert bench.pull().fetched_bytes == 0


def test_every_damaged_blob_is_refused_and_leaves_nothing(bench: Bench) -> None:
    bench.push()
    for digest, data in list(bench.fake.blobs.items()):
        if data in {oci.EMPTY_BYTES, FILES[PartKind.ROOT]}:
            continue
        bench.fake.blobs[digest] = bytes([data[0] ^ 1]) + data[1:]
        with pytest.raises(TrustError) as caught:
            bench.pull()
        assert caught.value.code == "registry-damaged"
        assert bench.is_empty()
        bench.fake.blobs[digest] = data
    bench.pull()


def test_a_layer_that_is_another_root_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.push()
    (tmp_path / "evil").write_bytes(b"evil" + ROOT[4:])
    zstream.compress(tmp_path / "evil", tmp_path / "evil.zst", level=1, workers=1, on_bytes=lambda _count: None)
    evil = (tmp_path / "evil.zst").read_bytes()
    document = json.loads(bench.fake.manifests["1"])
    document["layers"][0] |= {"digest": oci.digest_of(evil), "size": len(evil)}
    bench.fake.blobs[oci.digest_of(evil)] = evil
    bench.fake.manifests["1"] = json.dumps(document).encode()
    with pytest.raises(TrustError) as caught:
        bench.pull()
    assert "root" in caught.value.message
    assert bench.is_empty()


def test_a_root_that_never_ends_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.push()
    (tmp_path / "bomb").write_bytes(ROOT + bytes(1 << 24))
    zstream.compress(tmp_path / "bomb", tmp_path / "bomb.zst", level=1, workers=1, on_bytes=lambda _count: None)
    bomb = (tmp_path / "bomb.zst").read_bytes()
    document = json.loads(bench.fake.manifests["1"])
    document["layers"][0] |= {"digest": oci.digest_of(bomb), "size": len(bomb)}
    bench.fake.blobs[oci.digest_of(bomb)] = bomb
    bench.fake.manifests["1"] = json.dumps(document).encode()
    with pytest.raises(TrustError) as caught:
        bench.pull()
    assert caught.value.code == "zstd-damaged"
    assert bench.is_empty()


@either
def test_a_proof_of_another_image_is_left_out(bench: Bench) -> None:
    digest = bench.push().digest
    stray = envelope("5" * 64, TEST_RESULT)
    document = bench.fake.manifests["1"]
    subject = Descriptor(MANIFEST, digest, len(document))
    about = oci.statement_document(oci.attestation(stray, "stray"), subject)
    with Registry(bench.fake.host, "shop") as registry:
        registry.upload(oci.digest_of(stray), stray, on_bytes=lambda _count: None)
        registry.put_manifest(oci.digest_of(about), about, MANIFEST)
        if not bench.fake.referrers:
            tag = oci.fallback_tag(digest)
            known = oci.listed(bench.fake.manifests[tag], tag)
            entry = Descriptor(MANIFEST, oci.digest_of(about), len(about), artifact_type=oci.ENVELOPE)
            registry.put_manifest(tag, oci.index_document((*known, entry)), INDEX)
    assert bench.pull().proofs == (envelope(bench.manifest.id, TEST_RESULT),)


def test_whoever_judges_sees_manifest_and_proofs_before_anything_is_kept(bench: Bench) -> None:
    bench.push()
    seen = []

    def judge(manifest: Manifest, proofs: tuple[bytes, ...]) -> None:
        seen.append((manifest.id, proofs))
        raise TrustError("no", code="no")

    with pytest.raises(TrustError):
        bench.pull(judge)
    assert seen == [(bench.manifest.id, (envelope(bench.manifest.id, TEST_RESULT),))]
    assert bench.is_empty()


def test_a_flood_of_statements_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.push()
    monkeypatch.setattr(registries, "_MOST_STATEMENTS", 3)
    with pytest.raises(StateError) as caught:
        bench.pull()
    assert caught.value.code == "registry-statements"


def test_a_tag_that_is_not_there_is_named(bench: Bench) -> None:
    with pytest.raises(InputError) as caught:
        bench.pull(at="2")
    assert caught.value.code == "registry-unknown"


def test_an_image_of_another_kind_is_named(bench: Bench) -> None:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:" + "0" * 64, "size": 2}
    bench.fake.manifests["1"] = json.dumps({"mediaType": MANIFEST, "config": config, "layers": []}).encode()
    with pytest.raises(InputError) as caught:
        bench.pull()
    assert "application/vnd.oci.image.config.v1+json" in caught.value.message
    # A push may take such a tag over.
    bench.push()
    assert bench.pull().image_id == bench.manifest.id


def test_a_damaged_image_is_not_pushed(bench: Bench) -> None:
    path = bench.store.image(bench.manifest.id).part_path(PartKind.UKI)
    path.chmod(0o644)
    path.write_bytes(b"kernal")
    with pytest.raises(TrustError) as caught:
        bench.push()
    assert caught.value.code == "part-damaged"
    assert bench.fake.written() == []


def test_a_digest_cannot_be_pushed_to(bench: Bench) -> None:
    bench.reference = replace(bench.reference, at="sha256:" + "0" * 64)
    with pytest.raises(InputError) as caught:
        bench.push()
    assert "name a tag" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("localhost:5000/shop:1", ("localhost:5000", "shop", "1")),
        ("localhost/shop:1", ("localhost", "shop", "1")),
        ("registry.example.org/os/shop-two:2026.1", ("registry.example.org", "os/shop-two", "2026.1")),
        ("docker://[::1]:5000/shop:1", ("[::1]:5000", "shop", "1")),
        (f"a.b/c@sha256:{'0' * 64}", ("a.b", "c", f"sha256:{'0' * 64}")),
    ],
)
def test_places_are_understood(text: str, wanted: tuple[str, str, str]) -> None:
    found = Reference.parse(text)
    assert (found.host, found.name, found.at) == wanted
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["shop:1", "os/shop:1", "localhost:5000/Shop:1", "localhost:5000/shop:", "a.b/c@sha256:0", "a.b/../c:1", "a.b/c"]
)
def test_other_places_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Reference.parse(text)
    assert caught.value.code == "registry-reference"


def test_without_a_tag_the_version_is_meant() -> None:
    assert Reference.parse("a.b/c", tag="7").at == "7"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("sha256:" + "0" * 64) | st.just(oci.IMAGE),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["artifactType", "config", "layers", "digest", "size", "mediaType", "manifests", "subject", "annotations"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_document_is_read_or_refused_in_words(value: object) -> None:
    document = json.dumps(value).encode()
    for read in (
        lambda: oci.parse_image(document, "x"),
        lambda: oci.listed(document, "x"),
        lambda: oci.parse_statement(document, "y", "x"),
    ):
        with suppress(ObeliskError):
            read()


@given(st.binary(max_size=200))
def test_any_envelope_is_read_or_refused_in_words(data: bytes) -> None:
    with pytest.raises(TrustError):
        oci.is_about(data, "0" * 64)
