"""Keys over time: each role's key can be replaced, lost or stolen, and hosts follow; what an old key signs afterwards counts no more."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import repository_samples as samples
from repository_samples import DAY, NOW
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from obelisk.errors import InputError, StateError, TrustError
from obelisk.release.keys import Keyring, Role, Wish, create, passphrase_from, public_key
from obelisk.release.publisher import Publisher
from obelisk.release.publishing import release
from obelisk.release.rotating import RootWish, refresh, rotate, rotate_root, set_testers

ONLINE = [Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP]


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written need not outlive the test."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)


def _begun(place: Path, *, roots: int = 1, threshold: int = 1) -> Publisher:
    who = samples.publisher(place, samples.keyring(place, roots=roots, threshold=threshold))
    release(who, samples.wanted(place, "1"), samples.founding())
    return who


def _version(host: samples.Client) -> str:
    host.refresh()
    current = host.current("stable")
    assert current is not None
    return current.version


@pytest.mark.parametrize("fate", ["kept", "lost"])
@pytest.mark.parametrize("role", ONLINE)
def test_hosts_follow_a_new_key_of_a_role(tmp_path: Path, role: Role, fate: str) -> None:
    who = _begun(tmp_path)
    host = samples.client(tmp_path)
    assert _version(host) == "1"
    old = who.opened().trusted.key_ids(role)
    if fate == "lost":
        for half in who.keyring.directory.glob(f"{role}.*"):
            half.unlink()
    done = rotate(who, role)
    assert (done.dropped, set(done.key_ids) & set(old)) == (old, set())
    assert _version(host) == "1"
    release(who, samples.wanted(tmp_path, "2"), samples.founding())
    assert _version(host) == _version(samples.client(tmp_path)) == "2"


@pytest.mark.parametrize("role", [Role.SNAPSHOT, Role.TIMESTAMP])
def test_a_thief_who_ran_ahead_with_a_stolen_key_is_left_behind(tmp_path: Path, role: Role) -> None:
    """Versions that the thief has signed are far above ours; with the key gone, they do not hold hosts back."""
    who = _begun(tmp_path)
    host = samples.client(tmp_path)
    there = who.opened()
    keys = {each: who.keyring.signers(each, there.trusted.key_ids(each)) for each in Role}
    snapshot: Metadata[Snapshot] = Metadata.from_bytes(there.trusted.snapshot.to_bytes())
    if role is Role.SNAPSHOT:
        snapshot.signed.version = 1_000_000
        snapshot.sign(keys[Role.SNAPSHOT][0])
    data = snapshot.to_bytes()
    timestamp: Metadata[Timestamp] = Metadata.from_bytes(there.trusted.timestamp.to_bytes())
    timestamp.signed.version = 1_000_000
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    timestamp.sign(keys[Role.TIMESTAMP][0])
    host.fetcher.instead = {"metadata/timestamp.json": timestamp.to_bytes(), f"metadata/{snapshot.signed.version}.snapshot.json": data}
    host.refresh()
    host.fetcher.instead = {}
    with pytest.raises(RepositoryError):
        host.refresh()
    rotate(who, Role.TIMESTAMP)
    if role is Role.SNAPSHOT:
        rotate(who, Role.SNAPSHOT)
    assert _version(host) == "1"


@pytest.mark.parametrize("role", ONLINE)
def test_what_a_replaced_key_signs_counts_no_more(tmp_path: Path, role: Role) -> None:
    who = _begun(tmp_path)
    host = samples.client(tmp_path)
    there = who.opened()
    thief = who.keyring.signers(role, there.trusted.key_ids(role))[0]
    rotate(who, role)
    now = who.opened().trusted
    forged = Metadata.from_bytes(getattr(now, role.value).to_bytes())
    forged.signatures.clear()
    forged.signed.version += 1
    forged.sign(thief)
    name = "timestamp.json" if role is Role.TIMESTAMP else f"{forged.signed.version}.{role}.json"
    who.shelf.write(f"metadata/{name}", forged.to_bytes())
    if role is Role.TIMESTAMP:
        with pytest.raises(RepositoryError):
            host.refresh()
        with pytest.raises(TrustError) as refused:
            who.opened()
        assert refused.value.code == "metadata-damaged"
    else:
        assert _version(host) == "1"


@pytest.mark.parametrize(("role", "cut"), [(role, cut) for role, writes in zip(ONLINE, (5, 4, 3), strict=True) for cut in range(writes)])
def test_a_rotation_that_was_cut_is_finished_by_the_next(tmp_path: Path, role: Role, cut: int) -> None:
    who = _begun(tmp_path)
    host = samples.client(tmp_path)
    left = [cut]
    write = who.shelf.write

    def cutting(name: str, data: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(name, data)
        assert _version(samples.client(tmp_path)) == "1"

    who.shelf.write = cutting  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        rotate(who, role)
    who.shelf.write = write  # type: ignore[method-assign]
    assert _version(host) == "1"
    rotate(who, role)
    assert _version(host) == "1"
    assert len(who.opened().trusted.key_ids(role)) == 1
    assert len(who.keyring.files(role)) == 2
    release(who, samples.wanted(tmp_path, "2"), samples.founding())
    assert _version(host) == "2"


def test_another_repository_of_the_same_keys_takes_the_new_key_over(tmp_path: Path) -> None:
    keys = samples.keyring(tmp_path)
    first, second = (samples.publisher(tmp_path / name, keys) for name in ("first", "second"))
    for who in (first, second):
        release(who, samples.wanted(tmp_path / who.shelf.root.parent.name, "1"), samples.founding())
    one = rotate(first, Role.TARGETS)
    release(second, samples.wanted(tmp_path / "second", "2"), samples.founding())
    two = rotate(second, Role.TARGETS)
    assert (one.key_ids, two.made) == (two.key_ids, ())
    assert _version(samples.client(tmp_path / "second")) == "2"


def test_a_root_key_that_is_lost_is_replaced_by_the_others(tmp_path: Path) -> None:
    who = _begun(tmp_path, roots=3, threshold=2)
    host = samples.client(tmp_path)
    lost = who.keyring.files(Role.ROOT)[2]
    lost.path.unlink()
    done = rotate_root(who, RootWish(drop=(lost.public.keyid[:12],)))
    assert done.dropped == (lost.public.keyid,)
    assert (len(done.key_ids), len(done.made)) == (3, 1)
    assert _version(host) == "1"
    host_of_today = samples.Client(tmp_path / "today", tmp_path / "repo", (tmp_path / "repo/metadata/2.root.json").read_bytes())
    rotate(who, Role.TARGETS)
    assert _version(host) == _version(host_of_today) == "1"


def test_a_stolen_root_key_alone_signs_nothing(tmp_path: Path) -> None:
    who = _begun(tmp_path, roots=3, threshold=2)
    stolen = who.keyring.files(Role.ROOT)[0]
    thief = replace(who, keyring=Keyring(who.keyring.directory, (tmp_path / "thief",), lambda _path: b""))
    (tmp_path / "thief").mkdir()
    for half in (stolen.path, stolen.path.with_suffix(".pub")):
        (tmp_path / "thief" / half.name).write_bytes(half.read_bytes())
        (tmp_path / "thief" / half.name).chmod(0o600)
    attempts: list[Callable[[], object]] = [lambda: rotate_root(thief, RootWish()), lambda: rotate(thief, Role.TARGETS)]
    for attempt in attempts:
        with pytest.raises(StateError) as refused:
            attempt()
        assert refused.value.code == "keys-missing"
    rotate_root(who, RootWish(drop=(stolen.public.keyid,)))
    assert stolen.public.keyid not in who.opened().trusted.key_ids(Role.ROOT)
    assert _version(samples.client(tmp_path)) == "1"


def test_a_root_key_that_was_dropped_never_comes_in_again(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    (first,) = who.opened().trusted.key_ids(Role.ROOT)
    rotate_root(who, RootWish())
    rotate_root(who, RootWish())
    assert first not in who.opened().trusted.key_ids(Role.ROOT)
    assert first not in {key.keyid for key in who.keyring.publics(Role.ROOT)}
    assert len(list((tmp_path / "repo/metadata").glob("*.root.json"))) == 3
    assert _version(samples.client(tmp_path)) == "1"


def test_the_threshold_of_the_root_can_change(tmp_path: Path) -> None:
    who = _begun(tmp_path, roots=2, threshold=1)
    rotate_root(who, RootWish(threshold=2))
    assert who.opened().trusted.threshold(Role.ROOT) == 2
    assert _version(samples.client(tmp_path)) == "1"
    with pytest.raises(InputError):
        rotate_root(who, RootWish(threshold=3))
    with pytest.raises(InputError):
        rotate_root(who, RootWish(drop=("0123456789ab",)))


def test_a_repository_is_not_begun_with_fewer_root_keys_than_have_to_sign(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path, roots=3, threshold=2))
    for file in who.keyring.files(Role.ROOT)[:2]:
        file.path.unlink()
    with pytest.raises(StateError) as refused:
        release(who, samples.wanted(tmp_path, "1"), samples.founding())
    assert refused.value.code == "keys-missing"
    assert not (tmp_path / "repo/metadata").exists()


def test_a_new_tester_comes_in_and_an_old_one_goes_when_nothing_needs_it(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    old, new = samples.tester(1), samples.tester(2)
    set_testers(who, add=[new])
    drop = [public_key(old.encode(), "old")]
    with pytest.raises(StateError) as refused:
        set_testers(who, drop=drop)
    assert refused.value.code == "tester-needed"
    again = samples.wanted(tmp_path, "1")
    release(who, replace(again, proofs=(samples.proof_of(again.image, tmp_path / "new", by=2),)), samples.founding())
    assert set_testers(who, drop=drop).keys == (new,)
    host = samples.client(tmp_path)
    host.refresh()
    assert host.testers().keys == (new,)
    with pytest.raises(TrustError):
        release(who, samples.wanted(tmp_path, "2"), samples.founding())


def test_a_stolen_testers_key_can_go_at_once(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    assert set_testers(who, drop=[public_key(samples.tester(1).encode(), "old")], force=True).keys == ()


EXPIRY = {Role.ROOT: 365, Role.TARGETS: 90, Role.SNAPSHOT: 14, Role.TIMESTAMP: 3}


def test_metadata_holds_for_as_long_as_its_role_says(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    trusted = who.opened().trusted
    assert {role: trusted.signed(role).expires - NOW for role in Role} == {role: days * DAY for role, days in EXPIRY.items()}


@pytest.mark.parametrize(("later", "warned"), [(1, set()), (2.5, {"timestamp"}), (11, {"timestamp", "snapshot"}), (300, set(Role))])
def test_whoever_opens_a_repository_is_warned_before_it_expires(tmp_path: Path, later: float, warned: set[str]) -> None:
    who = _begun(tmp_path)
    said: list[str] = []
    replace(samples.at(who, NOW + timedelta(days=later)), sink=lambda event: said.append(getattr(event, "message", ""))).opened()
    assert {line.split()[0] for line in said} == {str(role) for role in warned}
    assert all("expired on" in line or "expires on" in line for line in said)


def test_a_refresh_signs_what_expires_with_the_keys_that_are_here(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    assert refresh(who, {}).roles == (Role.TIMESTAMP,)
    later = samples.at(who, NOW + 8 * DAY)
    assert refresh(later, {}).roles == (Role.SNAPSHOT, Role.TIMESTAMP)
    for half in who.keyring.directory.glob("targets.*"):
        half.unlink()
    said: list[str] = []
    much_later = replace(samples.at(who, NOW + 60 * DAY), sink=lambda event: said.append(getattr(event, "message", "")))
    assert refresh(much_later, {}).roles == (Role.SNAPSHOT, Role.TIMESTAMP)
    assert any(line.startswith("targets expires") for line in said)
    with pytest.raises(StateError):
        refresh(much_later, {}, everything=True)


def test_a_lifetime_that_was_set_stays(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    refresh(who, {Role.TIMESTAMP: 7 * DAY, Role.TARGETS: 30 * DAY})
    release(samples.at(who, NOW + DAY), samples.wanted(tmp_path, "2"), samples.founding())
    trusted = who.opened().trusted
    assert (trusted.timestamp.signed.expires, trusted.targets.signed.expires) == (NOW + 8 * DAY, NOW + 31 * DAY)


def test_an_expired_repository_is_refused_by_hosts_and_mended_by_a_refresh(tmp_path: Path) -> None:
    who = samples.at(_begun(tmp_path), NOW - 9 * DAY)
    refresh(who, {})
    host = samples.client(tmp_path)
    with pytest.raises(ExpiredMetadataError):
        host.refresh()
    refresh(samples.at(who, NOW), {})
    assert _version(host) == "1"


def test_a_repository_that_is_older_than_what_was_signed_is_not_signed_again(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    old = who.shelf.metadata("timestamp.json")
    assert old is not None
    release(who, samples.wanted(tmp_path, "2"), samples.founding())
    who.shelf.write("metadata/timestamp.json", old)
    with pytest.raises(TrustError) as refused:
        release(who, samples.wanted(tmp_path, "3"), samples.founding())
    assert refused.value.code == "repository-rolled-back"


def test_a_repository_that_these_keys_have_never_signed_is_not_signed(tmp_path: Path) -> None:
    """Whoever puts another root in its place must not get a signature for what it lists."""
    who = _begun(tmp_path)
    _begun(tmp_path / "stranger")
    for path in (tmp_path / "repo/metadata").iterdir():
        path.unlink()
    for path in (tmp_path / "stranger/repo/metadata").iterdir():
        (tmp_path / "repo/metadata" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TrustError) as refused:
        release(who, samples.wanted(tmp_path, "2"), samples.founding())
    assert refused.value.code == "repository-unknown"


def test_a_repository_that_lost_its_timestamp_is_not_begun_anew(tmp_path: Path) -> None:
    who = _begun(tmp_path)
    (tmp_path / "repo/metadata/timestamp.json").unlink()
    with pytest.raises(TrustError) as refused:
        release(who, samples.wanted(tmp_path, "2"), samples.founding())
    assert refused.value.code == "metadata-damaged"


def _flip(data: bytes) -> bytes:
    return data.replace(b'"version":1', b'"version":7', 1)


def _cut(data: bytes) -> bytes:
    return data[:-30]


def _unsigned(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "signatures": []}).encode()


@pytest.mark.parametrize("name", ["1.root.json", "1.targets.json", "1.snapshot.json", "timestamp.json"])
@pytest.mark.parametrize("damage", [_flip, _cut, _unsigned])
def test_damaged_metadata_is_named_and_never_built_upon(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    who = _begun(tmp_path)
    path = tmp_path / "repo/metadata" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrustError) as refused:
        who.opened()
    assert refused.value.code == "metadata-damaged"
    assert name in refused.value.message


def test_keys_with_a_passphrase_open_with_it_alone(tmp_path: Path) -> None:
    right = Keyring(tmp_path / "release", (tmp_path / "stick",), passphrase_from({"OBELISK_PASSPHRASE": "open"}, lambda _path: b"asked"))
    create(right, Wish(places=(tmp_path / "stick",)), passphrase=b"open")
    release(samples.publisher(tmp_path, right), samples.wanted(tmp_path, "1"), samples.founding())
    (tmp_path / "wrong").write_text("shut\n")
    for environment in ({"OBELISK_PASSPHRASE_FILE": str(tmp_path / "wrong")}, {}):
        wrong = replace(right, passphrase=passphrase_from(environment, lambda _path: b"asked"))
        with pytest.raises(TrustError) as refused:
            release(samples.publisher(tmp_path, wrong), samples.wanted(tmp_path, "2"), samples.founding())
        assert refused.value.code == "key-locked"
    file = {"OBELISK_PASSPHRASE_FILE": str(tmp_path / "none")}
    with pytest.raises(InputError):
        passphrase_from(file, lambda _path: b"")(tmp_path)


def test_keys_are_private_and_made_once(tmp_path: Path) -> None:
    keys = samples.keyring(tmp_path, roots=3, threshold=2)
    files = [file for role in Role for file in keys.files(role)]
    assert sorted(file.path.name for file in files) == [
        "root-1.key", "root-2.key", "root-3.key", "snapshot.key", "targets.key", "timestamp.key"
    ]  # fmt: skip
    assert {file.path.stat().st_mode & 0o777 for file in files} == {0o600}
    assert create(keys, Wish(3, 2, (tmp_path / "stick",))) == ()
    assert keys.threshold == 2
    with pytest.raises(InputError):
        create(keys, Wish(3, 4))
