"""The cases of TUF's public conformance suite, for the client that hosts have: its trust, its keys checked by libcrypto.

Each test has the name of its case there. Not among them, by name and with the reason:

- test_implicit_refresh: a host never asks for a target before it has refreshed, there is no call for it. What the case is about, that
  metadata is kept when a target is missing, is `test_missing_target_after_refresh` here.
- test_static_repo: repositories that others have published, which are not here. Their formats are those of python-tuf, as ours.
- ECDSA on P-384 and others of which hosts know nothing: metadata whose keys they are does not count, see `test_unknown_scheme`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME, CryptoSigner
from trust_samples import Authority, MemoryMirror
from tuf.ngclient._internal import trusted_metadata_set

from obelisk.errors import ObeliskError, TransportError, TrustError
from obelisk.release.client import keys, trust
from obelisk.release.client.remote import Mirrors

PAST = datetime.now(UTC).replace(microsecond=0) - timedelta(days=5)


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_disks() -> Iterator[None]:
    """Whether it is durable is not what is asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture(autouse=True)
def host_keys() -> Iterator[None]:
    """Signatures are checked as on hosts."""
    before = dict(KEY_FOR_TYPE_AND_SCHEME)
    keys.register()
    yield
    KEY_FOR_TYPE_AND_SCHEME.clear()
    KEY_FOR_TYPE_AND_SCHEME.update(before)


@dataclass
class Client:
    """A host with a place for what it trusts."""

    keep: Path
    owner: Authority
    root: bytes = b""
    repository: trust.Repository | None = None

    def __post_init__(self) -> None:
        self.root = self.root or self.owner.first_root
        self.mirror = MemoryMirror(self.owner.files)

    def refresh(self) -> str:
        """Refresh; the code of the error, or nothing."""
        self.mirror.requests.clear()
        try:
            self.repository = trust.refresh(self.keep, self.root, Mirrors([self.mirror]))
        except (TrustError, TransportError) as error:
            return error.code if error.hint else "no hint"
        return ""

    def target(self, path: str) -> bytes | None:
        """The content of a target, None when the client does not take it."""
        assert self.repository is not None
        try:
            return self.repository._document(path, path)
        except ObeliskError:
            return None

    def version(self, role: str) -> int:
        """The version of the metadata that is kept."""
        return int(json.loads((self.keep / f"{role}.json").read_bytes())["signed"]["version"])

    @property
    def roles(self) -> set[str]:
        """Whose metadata is kept."""
        return {path.stem for path in self.keep.glob("*.json")}


@pytest.fixture
def owner() -> Authority:
    return Authority()


@pytest.fixture
def client(tmp_path: Path, owner: Authority) -> Client:
    return Client(tmp_path / "trust", owner)


def let_time_pass(monkeypatch: pytest.MonkeyPatch, *, days: int) -> None:
    """To python-tuf, it is some days later."""
    clock = SimpleNamespace(now=lambda _zone: datetime.now(UTC) + timedelta(days=days))
    monkeypatch.setattr(trusted_metadata_set, "datetime", SimpleNamespace(datetime=clock, timezone=timezone))


ALL = {"root", "timestamp", "snapshot", "targets"}
BASIC = [f"metadata/{name}.json" for name in ("2.root", "timestamp", "1.snapshot", "1.targets")]


# Basics


def test_basic_init_and_refresh(client: Client) -> None:
    assert client.refresh() == ""
    assert client.mirror.requests == BASIC
    assert {role: client.version(role) for role in ALL} == dict.fromkeys(ALL, 1)


def test_missing_target_after_refresh(client: Client) -> None:
    assert client.refresh() == ""
    assert client.target("nonexistent artifact") is None
    assert client.mirror.requests == BASIC
    assert client.roles == ALL


def test_timestamp_content_changes(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.timestamp.snapshot_meta.version = 100
    owner.write_timestamp()
    assert client.refresh() == ""
    kept = json.loads((client.keep / "timestamp.json").read_bytes())
    assert kept["signed"]["meta"]["snapshot.json"]["version"] == 1


def test_timestamp_eq_versions_check(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    before = (client.keep / "timestamp.json").read_bytes()
    owner.timestamp.expires += timedelta(days=1)
    owner.write_timestamp()
    assert client.refresh() == ""
    assert (client.keep / "timestamp.json").read_bytes() == before


def test_new_targets_hash_mismatch(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.hashes = True
    owner.publish()
    assert client.refresh() == ""
    # other targets than those whose digest the snapshot has
    owner.targets.version += 1
    owner.snapshot.meta["targets.json"].version = owner.targets.version
    owner._write(f"{owner.targets.version}.targets.json", owner.targets, "targets")
    owner.publish_snapshot()
    assert client.refresh() != ""
    assert (client.version("snapshot"), client.version("targets")) == (3, 2)


def test_new_targets_version_mismatch(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.publish_targets(noted=False)
    assert client.refresh() == ""
    assert client.version("targets") == 1
    owner.snapshot.meta["targets.json"].version = 3
    owner.files["metadata/3.targets.json"] = owner.files["metadata/2.targets.json"]
    owner.publish_snapshot()
    assert client.refresh() == "metadata-version"
    assert client.version("targets") == 1


def test_invalid_initial_root(client: Client) -> None:
    root = json.loads(client.root)
    del root["signed"]["version"]
    client.root = json.dumps(root).encode()
    assert client.refresh() == "metadata-damaged"
    assert client.mirror.requests == []


def test_unsigned_initial_root(client: Client) -> None:
    root = json.loads(client.root)
    root["signatures"][0]["sig"] = "00" * 64
    client.root = json.dumps(root).encode()
    assert client.refresh() == "metadata-unsigned"
    assert client.mirror.requests == []


def test_custom_fields(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.root.unrecognized_fields["custom-field"] = "value"
    keyid = owner.root.roles["root"].keyids[0]
    owner.root.keys[keyid].unrecognized_fields["extra-field"] = {"a": 1, "b": 2}
    owner.root.roles["root"].unrecognized_fields["another-field"] = "value"
    owner.publish_root()
    assert client.refresh() == ""
    assert client.version("root") == 2


# Expiry


def test_root_expired(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.publish_root()
    assert client.refresh() == ""
    owner.root.expires = PAST
    owner.publish_root()
    owner.publish()
    assert client.refresh() == "metadata-expired"
    assert [client.version(role) for role in ("root", "timestamp", "snapshot")] == [3, 1, 1]


def test_timestamp_expired(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.timestamp.expires = PAST
    owner.publish_timestamp()
    assert client.refresh() == "metadata-expired"
    assert client.version("timestamp") == 1


def test_snapshot_expired(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.snapshot.expires = PAST
    owner.publish_snapshot()
    assert client.refresh() == "metadata-expired"
    assert client.version("snapshot") == 1


def test_targets_expired(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    owner.targets.expires = PAST
    owner.publish()
    assert client.refresh() == "metadata-expired"
    assert client.version("targets") == 1


def test_expired_metadata(client: Client, owner: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    owner.timestamp.expires = now + timedelta(days=7)
    owner.publish_timestamp()
    assert client.refresh() == ""
    owner.publish_targets()
    owner.timestamp.expires = now + timedelta(days=21)
    owner.publish_snapshot()
    let_time_pass(monkeypatch, days=18)
    assert client.refresh() == ""
    assert [client.version(role) for role in ("timestamp", "snapshot", "targets")] == [3, 2, 2]


def test_delegated_targets_expired(client: Client, owner: Authority) -> None:
    owner.delegate("targets", "delegated", ["delegatedpath/*"])
    owner.delegated["delegated"].expires = PAST
    owner.put("delegatedpath/target", b"content", role="delegated")
    owner.publish()
    assert client.refresh() == ""
    assert client.target("delegatedpath/target") is None
    assert client.roles == ALL


@pytest.mark.parametrize(
    "renewed", [False, True], ids=["test_expired_local_delegated_targets", "test_expired_local_delegated_targets_updates"]
)
def test_expired_local_delegated(client: Client, owner: Authority, monkeypatch: pytest.MonkeyPatch, *, renewed: bool) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    owner.delegate("targets", "delegated", ["delegatedpath/*"])
    owner.delegated["delegated"].expires = now + timedelta(days=7)
    owner.put("delegatedpath/first", b"first", role="delegated")
    owner.put("delegatedpath/second", b"second", role="delegated")
    owner.publish()
    assert client.refresh() == ""
    assert client.target("delegatedpath/first") == b"first"
    if renewed:
        owner.delegated["delegated"].expires = now + timedelta(days=21)
        owner.publish()
    let_time_pass(monkeypatch, days=18)
    assert client.refresh() == ""
    assert client.target("delegatedpath/second") == (b"second" if renewed else None)


# Targets


def test_client_downloads_expected_file(client: Client, owner: Authority) -> None:
    owner.put("target_file.txt", b"contents")
    owner.publish()
    assert client.refresh() == ""
    assert client.target("target_file.txt") == b"contents"


def test_client_downloads_expected_file_in_sub_dir(client: Client, owner: Authority) -> None:
    owner.put("path/to/a/target_file.txt", b"contents")
    owner.publish()
    assert client.refresh() == ""
    assert client.target("path/to/a/target_file.txt") == b"contents"


def test_repository_substitutes_target_file(client: Client, owner: Authority) -> None:
    owner.put("one", b"contents")
    owner.put("two", b"other contents")
    owner.publish()
    assert client.refresh() == ""
    assert client.target("one") == b"contents"
    for path in owner.files:
        if path.startswith("targets/"):
            owner.files[path] = b"malicious"
    assert client.target("one") is None
    assert client.target("two") is None


def test_multiple_changes_to_target(client: Client, owner: Authority) -> None:
    for turn in range(11):
        owner.put("target_file.txt", b"contents %d" % turn)
        owner.put(f"new-{turn}", b"new %d" % turn)
        owner.publish()
        if turn % 5 == 0:
            assert client.refresh() == ""
            assert client.target("target_file.txt") == b"contents %d" % turn
            assert client.target(f"new-{turn}") == b"new %d" % turn
            digest = owner.targets.targets["target_file.txt"].hashes["sha256"]
            owner.files[f"targets/{digest}.target_file.txt"] = b"malicious %d" % turn
            assert client.target("target_file.txt") is None


# Keys


def reach_threshold(client: Client, owner: Authority) -> None:
    owner.root.roles["snapshot"].threshold = 3
    owner.publish_root()
    owner.add_key("snapshot")
    owner.publish_root()
    owner.publish_snapshot()
    assert client.refresh() == "metadata-unsigned"
    owner.add_key("snapshot")
    owner.add_key("snapshot")
    owner.publish_root()
    owner.publish_snapshot()
    assert client.refresh() == ""
    assert (client.version("root"), client.version("snapshot")) == (4, 3)


def test_root_has_keys_but_not_snapshot(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    reach_threshold(client, owner)
    for _ in range(2):
        owner.root.add_key(CryptoSigner.generate_ecdsa().public_key, "snapshot")  # which does not sign
    owner.root.roles["snapshot"].threshold = 5
    owner.publish_root()
    owner.publish_snapshot()
    assert client.refresh() == "metadata-unsigned"
    assert (client.version("root"), client.version("snapshot")) == (5, 3)


def test_wrong_hashing_algorithm(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    reach_threshold(client, owner)
    owner.root.keys[owner.root.roles["snapshot"].keyids[0]].unrecognized_fields["keyid_hash_algorithms"] = ["md5"]
    owner.publish_root()
    owner.publish_snapshot()
    assert client.refresh() == ""
    assert (client.version("root"), client.version("snapshot")) == (5, 4)


def test_snapshot_threshold(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    for _ in range(4):
        owner.add_key("snapshot")
    owner.root.roles["snapshot"].threshold = 6
    owner.publish_root()
    owner.publish_snapshot()
    assert client.refresh() == "metadata-unsigned"
    assert client.version("snapshot") == 1


def test_duplicate_keys_root(client: Client, owner: Authority) -> None:
    assert client.refresh() == ""
    signer = CryptoSigner.generate_ecdsa()
    for _ in range(9):
        owner.root.add_key(signer.public_key, "snapshot")
    owner.signers["snapshot"] += [signer] * 9
    owner.root.roles["snapshot"].threshold = 6
    owner.publish_root()
    owner.publish_snapshot()
    assert client.refresh() == "metadata-unsigned"
    assert client.version("snapshot") == 1


def test_unknown_scheme(client: Client, owner: Authority) -> None:
    owner.root.keys[owner.root.roles["timestamp"].keyids[0]].scheme = "ecdsa-sha2-nistp384"
    owner.publish_root()
    assert client.refresh() == "metadata-damaged"
    assert client.version("root") == 1


# Names that need quoting


@pytest.mark.parametrize("role", ["?", "#", "/delegatedrole", "../delegatedrole"])
def test_unusual_role_name(client: Client, owner: Authority, role: str) -> None:
    owner.delegate("targets", role)
    owner.publish()
    assert client.refresh() == ""
    assert client.target("nonexistent target") is None
    assert f"metadata/1.{quote(role, '')}.json" in client.mirror.requests
    assert len(client.roles) == 5
    assert {path.parent for path in client.keep.parent.rglob("*delegatedrole.json")} <= {client.keep}


# Rollback


def test_simple_snapshot_rollback(client: Client, owner: Authority) -> None:
    owner.publish_snapshot()
    assert client.refresh() == ""
    owner.snapshot.version = 1
    owner.write_snapshot()
    assert client.refresh() == ""
    assert client.version("snapshot") == 2
    assert client.mirror.requests[-1] == "metadata/timestamp.json"


def test_new_timestamp_version_rollback(client: Client, owner: Authority) -> None:
    owner.publish_timestamp()
    assert client.refresh() == ""
    owner.timestamp.version = 1
    owner.write_timestamp()
    assert client.refresh() == "metadata-version"
    assert client.version("timestamp") == 2
    assert client.mirror.requests[-1] == "metadata/timestamp.json"


@pytest.mark.parametrize("hashes", [False, True], ids=["basic", "with hashes"])
def test_snapshot_rollback(client: Client, owner: Authority, *, hashes: bool) -> None:
    owner.hashes = hashes
    owner.publish_snapshot()
    assert client.refresh() == ""
    owner.snapshot.version = 0
    owner.publish_snapshot()
    assert client.refresh() == "metadata-version"
    assert (client.version("timestamp"), client.version("snapshot")) == (2, 2)
    assert client.mirror.requests[-1] == "metadata/timestamp.json"


@pytest.mark.parametrize("hashes", [False, True], ids=["basic", "with hashes"])
def test_targets_rollback(client: Client, owner: Authority, *, hashes: bool) -> None:
    owner.hashes = hashes
    owner.publish()
    owner.publish()
    assert client.refresh() == ""
    owner.targets.version = 1
    owner.publish()
    assert client.refresh() == "metadata-version"
    assert client.version("targets") == 3


def test_new_snapshot_version_mismatch(client: Client, owner: Authority) -> None:
    owner.snapshot.version = 2
    data = owner.write_snapshot()
    owner.files["metadata/1.snapshot.json"] = data
    assert client.refresh() == "metadata-version"
    assert client.roles == {"root", "timestamp"}
    assert client.mirror.requests[-1] == "metadata/1.snapshot.json"


def test_new_targets_fast_forward_recovery(client: Client, owner: Authority) -> None:
    owner.targets.version = 99
    owner.publish()
    assert client.refresh() == ""
    assert client.version("targets") == 100
    owner.rotate("snapshot")
    owner.publish_root()
    owner.targets.version = 1
    owner.publish()
    assert client.refresh() == ""
    assert client.version("targets") == 2


def test_new_snapshot_fast_forward_recovery(client: Client, owner: Authority) -> None:
    owner.snapshot.version = 99_998
    owner.publish()
    assert client.refresh() == ""
    assert client.version("snapshot") == 99_999
    owner.rotate("snapshot")
    owner.rotate("timestamp")
    owner.publish_root()
    owner.snapshot.version = 0
    owner.publish()
    assert client.refresh() == ""
    assert client.version("snapshot") == 1


def test_new_timestamp_fast_forward_recovery(client: Client, owner: Authority) -> None:
    owner.timestamp.version = 99
    owner.publish_timestamp()
    assert client.refresh() == ""
    assert client.version("timestamp") == 100
    owner.rotate("timestamp")
    owner.publish_root()
    owner.timestamp.version = 0
    owner.publish_timestamp()
    assert client.refresh() == ""
    assert client.version("timestamp") == 1


# Rotation of keys: the numbers of the keys that count, the threshold, the numbers of those that sign

Version = tuple[list[int], int, list[int]]
FIVE = [0, 1, 2, 3, 4]
OTHER_FIVE = [0, 1, 3, 4, 5]
ROOTS: dict[str, tuple[bool, list[Version]]] = {
    "1-of-1-key-rotation": (True, [([1], 1, [1]), ([2], 1, [2, 1]), ([2], 1, [2])]),
    "1-of-1-key-rotation-unused-signatures": (True, [([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 1, 4]), ([2], 1, [3, 2, 4])]),
    "3-of-5-sign-with-different-keycombos": (True, [(FIVE, 3, signers) for signers in ([0, 2, 4], [0, 4, 1], [0, 1, 3], [0, 1, 3])]),
    "3-of-5-one-key-rotated": (True, [(FIVE, 3, [0, 2, 4]), (OTHER_FIVE, 3, [0, 4, 1])]),
    "3-of-5-one-key-rotated-with-intermediate-step": (
        True,
        [(FIVE, 3, [0, 2, 4]), (OTHER_FIVE, 3, [0, 2, 4, 5]), (OTHER_FIVE, 3, [0, 4, 5])],
    ),
    "3-of-5-all-keys-rotated-with-intermediate-step": (
        True,
        [(FIVE, 3, [0, 2, 4]), ([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7]), ([5, 6, 7, 8, 9], 3, [5, 6, 7])],
    ),
    "1-of-3-threshold-increase-to-2-of-3": (True, [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2])]),
    "2-of-3-threshold-decrease-to-1-of-3": (True, [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1, 2]), ([1, 2, 3], 1, [1])]),
    "1-of-2-threshold-increase-to-2-of-2": (True, [([1], 1, [1]), ([1, 2], 2, [1, 2])]),
    "1-of-1-key-rotation-fail-not-signed-with-old-key": (False, [([1], 1, [1]), ([2], 1, [2, 3, 4])]),
    "1-of-1-key-rotation-fail-not-signed-with-new-key": (False, [([1], 1, [1]), ([2], 1, [1, 3, 4])]),
    "3-of-5-one-key-rotate-fails-not-signed-with-3-new-keys": (False, [(FIVE, 3, [0, 2, 4]), (OTHER_FIVE, 3, [0, 2, 4])]),
    "3-of-5-one-key-rotate-fails-not-signed-with-3-old-keys": (False, [(FIVE, 3, [0, 2, 4]), (OTHER_FIVE, 3, [0, 4, 5])]),
    "1-of-3-threshold-bump-to-2-of-3-fails-new-threshold-not-reached": (False, [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [2])]),
    "2-of-3-threshold-decr-to-1-of-3-fails-old-threshold-not-reached": (False, [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1])]),
}
OTHERS: dict[str, tuple[bool, Version]] = {
    "1-of-1-key-rotation": (True, ([2], 1, [2])),
    "1-of-1-key-rotation-unused-signatures": (True, ([1], 1, [3, 1, 4])),
    "1-of-1-key-rotation-fail-not-signed-with-new-key": (False, ([2], 1, [1, 3, 4])),
    "3-of-5-one-key-signature-wrong-not-signed-with-3-expected-keys": (False, (OTHER_FIVE, 3, [0, 2, 4])),
    "2-of-5-one-key-signature-missing-threshold-not-reached": (False, (OTHER_FIVE, 3, [0, 4])),
    "3-of-5-sign-first-combo": (True, (FIVE, 3, [0, 2, 4])),
    "3-of-5-sign-second-combo": (True, (FIVE, 3, [0, 4, 1])),
    "3-of-5-sign-third-combo": (True, (FIVE, 3, [0, 1, 3])),
    "3-of-5-sign-fourth-combo": (True, (FIVE, 3, [1, 2, 3])),
    "3-of-5-sign-fifth-combo": (True, (FIVE, 3, [2, 3, 4])),
}


def set_keys(owner: Authority, role: str, version: Version, signers: list[CryptoSigner]) -> None:
    counting, threshold, signing = version
    owner.root.roles[role].keyids.clear()
    owner.root.roles[role].threshold = threshold
    for number in counting:
        owner.root.add_key(signers[number].public_key, role)
    owner.signers[role] = [signers[number] for number in signing]


@pytest.mark.parametrize(("good", "versions"), ROOTS.values(), ids=ROOTS)
def test_root_rotation(tmp_path: Path, owner: Authority, versions: list[Version], *, good: bool) -> None:
    signers = [CryptoSigner.generate_ed25519() for _ in range(10)]
    owner.root.version = 0
    for version in versions:
        set_keys(owner, "root", version, signers)
        owner.publish_root()
    client = Client(tmp_path, owner)
    assert (client.refresh() == "") is good
    last = len(versions) if good else len(versions) - 1
    assert (client.keep / "root.json").read_bytes() == owner.files[f"metadata/{last}.root.json"]


@pytest.mark.parametrize(("good", "version"), OTHERS.values(), ids=OTHERS)
def test_non_root_rotations(client: Client, owner: Authority, version: Version, *, good: bool) -> None:
    signers = [CryptoSigner.generate_ed25519() for _ in range(10)]
    assert client.refresh() == ""
    for role in ("timestamp", "snapshot", "targets"):
        set_keys(owner, role, version, signers)
        owner.publish_root()
        owner.publish()
        assert (client.refresh() == "") is good
        if good:
            number = "" if role == "timestamp" else f"{client.version(role)}."
            assert (client.keep / f"{role}.json").read_bytes() == owner.files[f"metadata/{number}{role}.json"]


# Delegations

Delegation = tuple[str, str, list[str], bool]


def to(parent: str, role: str, *paths: str, terminating: bool = False) -> Delegation:
    return parent, role, list(paths or ("*",)), terminating


GRAPHS: dict[str, tuple[list[Delegation], list[str]]] = {
    "basic-delegation": ([to("targets", "A")], ["A"]),
    "single-level-delegations": ([to("targets", "A"), to("targets", "B")], ["A", "B"]),
    "two-level-delegations": ([to("targets", "A"), to("targets", "B"), to("B", "C")], ["A", "B", "C"]),
    "two-level-test-DFS-order-of-traversal": (
        [to("targets", "A"), to("targets", "B"), to("A", "C"), to("A", "D")],
        ["A", "C", "D", "B"],
    ),
    "three-level-delegation-test-DFS-order-of-traversal": (
        [to("targets", "A"), to("targets", "B"), to("A", "C"), to("C", "D")],
        ["A", "C", "D", "B"],
    ),
    "two-level-terminating-ignores-all-but-roles-descendants": (
        [to("targets", "A"), to("targets", "B"), to("A", "C", terminating=True), to("A", "D")],
        ["A", "C"],
    ),
    "three-level-terminating-ignores-all-but-roles-descendants": (
        [to("targets", "A"), to("targets", "B"), to("A", "C", terminating=True), to("C", "D")],
        ["A", "C", "D"],
    ),
    "two-level-ignores-all-branches-not-matching-paths": (
        [to("targets", "A", "*.py"), to("targets", "B"), to("A", "C")],
        ["B"],
    ),
    "three-level-ignores-all-branches-not-matching-paths": (
        [to("targets", "A"), to("targets", "B"), to("A", "C", "*.py"), to("C", "D")],
        ["A", "B"],
    ),
    "cyclic-graph": (
        [to("targets", "A"), to("targets", "B"), to("B", "C"), to("C", "D"), to("D", "B")],
        ["A", "B", "C", "D"],
    ),
    "two-roles-delegating-to-a-third": (
        [to("targets", "A"), to("targets", "B"), to("B", "C"), to("A", "C")],
        ["A", "C", "B"],
    ),
    "two-roles-delegating-to-a-third-different-paths": (
        [to("targets", "A"), to("targets", "B"), to("B", "C"), to("A", "C", "*.py")],
        ["A", "B", "C"],
    ),
}


@pytest.mark.parametrize(("delegations", "visited"), GRAPHS.values(), ids=GRAPHS)
def test_graph_traversal(client: Client, owner: Authority, delegations: list[Delegation], visited: list[str]) -> None:
    for parent, role, paths, terminating in delegations:
        owner.delegate(parent, role, paths, terminating=terminating)
    owner.publish()
    assert client.refresh() == ""
    assert client.target("missingpath") is None
    assert client.mirror.requests[4:] == [f"metadata/1.{role}.json" for role in visited]


@pytest.mark.parametrize(
    ("path", "found", "visited"),
    [
        ("targetfile", True, []),
        ("README.md", True, ["A"]),
        ("releases/x/x_v1", True, ["B", "C"]),
        ("releases/y/y_v1.zip", True, ["B", "D"]),
        ("releases/z/z_v1.zip", False, ["B"]),
    ],
    ids=["no delegations", "wildcard", "separators x", "separators y", "not delegated by all in the chain"],
)
def test_targetfile_search(client: Client, owner: Authority, path: str, visited: list[str], *, found: bool) -> None:
    owner.delegate("targets", "A", ["*.doc", "*.md"])
    owner.delegate("targets", "B", ["releases/*/*"])
    owner.delegate("B", "C", ["releases/x/*"])
    owner.delegate("B", "D", ["releases/y/*.zip"])
    content = {name: f"by {role}".encode() for role, name in (("targets", "targetfile"), ("A", "README.md"), ("C", "releases/x/x_v1"))}
    for role, name in (("targets", "targetfile"), ("A", "README.md"), ("C", "releases/x/x_v1")):
        owner.put(name, content[name], role=role)
    for name in ("releases/y/y_v1.zip", "releases/z/z_v1.zip"):
        content[name] = b"by D"
        owner.put(name, content[name], role="D")
    owner.publish()
    assert client.refresh() == ""
    assert client.target(path) == (content[path] if found else None)
    assert [name for name in client.mirror.requests[4:] if name.startswith("metadata/")] == [f"metadata/1.{role}.json" for role in visited]
