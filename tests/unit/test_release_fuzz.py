"""Whatever a repository's documents are, a host takes them or says what is wrong; nothing else."""

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust_samples import Authority, MemoryMirror, Publisher, proof

from obelisk.errors import ObeliskError, TrustError
from obelisk.model import release as documents
from obelisk.model.release import Channel, Release
from obelisk.release.client import trust
from obelisk.release.client.proof import accept
from obelisk.release.client.remote import Mirrors

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["root", "2030-01-01T00:00:00Z", -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_disks() -> Iterator[None]:
    """Whether it is durable is not what is asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _descriptor: None)
        yield


@cache
def publisher() -> Publisher:
    made = Publisher()
    made.release("1")
    made.release("2")
    return made


def read(files: dict[str, bytes]) -> tuple[Channel, Release]:
    """What a host makes of a repository that it has never seen."""
    with tempfile.TemporaryDirectory() as keep:
        found = trust.refresh(Path(keep), publisher().authority.first_root, Mirrors([MemoryMirror(files)]))
        channel = found.channel("shop", "stable")
        found.testers()
        return channel, found.release(publisher().releases["2"].image)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values in a document."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def put(value: Any, path: tuple[str | int, ...], new: object) -> Any:  # noqa: ANN401
    """The document with another value at a place."""
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)  # type: ignore[index]
    return copy


METADATA = ["metadata/1.root.json", "metadata/timestamp.json", "metadata/3.snapshot.json", "metadata/3.targets.json"]


@settings(max_examples=60)
@given(st.sampled_from([*METADATA[1:], "targets"]), st.data())
def test_bytes_that_were_damaged_on_the_way_are_never_taken(name: str, data: st.DataObject) -> None:
    files = dict(publisher().authority.files)
    path = data.draw(st.sampled_from(sorted(path for path in files if path.startswith(name))))
    at = data.draw(st.integers(0, len(files[path]) - 1))
    files[path] = files[path][:at] + data.draw(st.binary(max_size=5)) + files[path][at + data.draw(st.integers(0, 5)) :]
    try:
        channel, release = read(files)
    except ObeliskError as error:
        assert error.hint or error.code == "document-schema"  # noqa: PT017
    else:
        # what is not covered by signatures: white space, keys and signatures that do not count, files that nobody reads
        assert (channel, release) == (publisher().channel, publisher().releases["2"])


@settings(max_examples=80)
@given(st.sampled_from(METADATA), st.data())
def test_nonsense_under_a_good_signature_is_refused_in_words(name: str, data: st.DataObject) -> None:
    owner: Authority = publisher().authority
    files = dict(owner.files)
    metadata = json.loads(files[name])
    path = data.draw(st.sampled_from(places(metadata["signed"])))
    signed = put(metadata["signed"], path, data.draw(JSON))
    role = name.removesuffix(".json").rpartition("/")[2].rpartition(".")[2]
    try:
        message = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
        signature = owner.signers[role][0].sign(message).to_dict()
    except (TypeError, ValueError):
        return
    files[name] = json.dumps({"signed": signed, "signatures": [signature]}).encode()
    root = files[METADATA[0]]
    with tempfile.TemporaryDirectory() as keep:
        try:
            trust.refresh(Path(keep), root, Mirrors([MemoryMirror(files)])).channel("shop", "stable")
        except ObeliskError as error:
            assert error.message  # noqa: PT017


@given(st.sampled_from([Channel, Release, documents.Testers]), JSON, st.data())
def test_documents_are_documents_or_refused(kind: type[Channel | Release | documents.Testers], new: object, data: st.DataObject) -> None:
    good = {
        Channel: publisher().channel.to_bytes(),
        Release: publisher().releases["2"].to_bytes(),
        documents.Testers: documents.Testers(("x",)).to_bytes(),
    }[kind]
    value = json.loads(good)
    text = json.dumps(put(value, data.draw(st.sampled_from(places(value))), new)).encode()
    try:
        kind.parse(text)
    except TrustError as error:
        assert error.code.startswith("document-")  # noqa: PT017


@given(JSON, st.data())
def test_proofs_hold_or_are_refused(new: object, data: st.DataObject) -> None:
    image = "a" * 64
    value = json.loads(proof(image))
    path = data.draw(st.sampled_from(places(value)))
    testers = publisher().authority.files
    keys = next(documents.Testers.parse(content) for name, content in testers.items() if name.endswith(".testers.json"))
    try:
        accept([json.dumps(put(value, path, new)).encode()], keys, image)
    except TrustError as error:
        assert error.code == "proof-missing"  # noqa: PT017
    else:
        assert put(value, path, new)["payload"] == value["payload"]
