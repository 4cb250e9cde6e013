"""Repositories: what is released can be had, and nothing else; refusals change nothing."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import repository_samples as samples
from repository_samples import DAY, NOW

from obelisk.errors import InputError, ObeliskError, StateError, TrustError
from obelisk.model.release import Hosts
from obelisk.release.keys import Keyring
from obelisk.release.publishing import promote, release, withdraw
from obelisk.release.repository import files_of
from obelisk.release.retiring import retire


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written need not outlive the test."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)


def test_what_is_released_is_what_a_client_gets(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    made = release(who, samples.wanted(tmp_path, "1", content=b"the root of the first"), samples.founding())
    host = samples.client(tmp_path)
    host.refresh()
    assert host.current("stable") == made
    assert host.restored(made, tmp_path / "root").startswith(b"the root of the first")
    listing = host.channel("stable").current
    assert listing is not None
    assert (listing.version, listing.by, listing.why, listing.at) == ("1", "tess", "it is good", NOW.strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert host.testers().keys == (samples.tester(1),)


def test_a_release_has_an_edge_from_what_hosts_run(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    first = release(who, samples.wanted(tmp_path, "1"), samples.founding())
    second = release(who, samples.wanted(tmp_path, "2"), samples.founding())
    third = release(who, samples.wanted(tmp_path, "3", edges="2"), samples.founding())
    assert [edge.from_image for edge in second.edges] == [first.image]
    assert [edge.from_version for edge in third.edges] == ["2", "1"]
    one, two = (f"root of version {number}".encode().ljust(32, b"\0") for number in (1, 2))
    assert who.find(second.edges[0].file).read_bytes() == one + b" becomes " + two
    assert release(who, samples.wanted(tmp_path, "4", edges="none"), samples.founding()).edges == ()


def test_promotion_is_the_same_bits_with_a_way_from_what_the_channel_has(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    release(who, samples.wanted(tmp_path, "1", "stable"), samples.founding())
    for version in ("2", "3"):
        release(who, samples.wanted(tmp_path, version, "testing", edges="1"), samples.founding())
    before = set((tmp_path / "repo/files").rglob("*"))
    promoted = promote(who, "3", "testing", "stable")
    host = samples.client(tmp_path)
    host.refresh()
    assert host.current("stable") == host.current("testing") == promoted
    listing = host.channel("stable").current
    assert listing is not None
    assert listing.source == "testing"
    new = [path for path in set((tmp_path / "repo/files").rglob("*")) - before if path.is_file()]
    assert [edge.from_version for edge in promoted.edges] == ["2", "1"]
    assert new == [who.find(promoted.edges[1].file)]


def test_releases_share_what_they_have_in_common(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    common = bytes(range(256)) * 8
    release(who, samples.wanted(tmp_path, "1", content=common), samples.founding())
    made = release(who, samples.wanted(tmp_path, "2", content=common + b"a little more", edges="none"), samples.founding())
    sizes = sorted(pack.size_bytes for pack in who.delivery.packs(made, who.find))
    assert sizes == [16, 256]


def test_the_same_image_again_changes_nothing(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    one = samples.wanted(tmp_path, "1")
    release(who, one, samples.founding())
    before = (tmp_path / "repo/metadata/timestamp.json").read_bytes()
    release(who, one, samples.founding())
    assert (tmp_path / "repo/metadata/timestamp.json").read_bytes() == before


def _same_version_other_image(place: Path) -> None:
    release(samples.publisher(place, _KEYS[place]), samples.wanted(place, "2", content=b"other"), samples.founding())


def _older_version(place: Path) -> None:
    release(samples.publisher(place, _KEYS[place]), samples.wanted(place, "1.5"), samples.founding())


def _unproven(place: Path) -> None:
    who = samples.publisher(place, _KEYS[place])
    release(who, replace(samples.wanted(place, "3"), proofs=()), samples.founding())


def _proven_by_a_stranger(place: Path) -> None:
    wanted = samples.wanted(place, "3")
    stranger = samples.proof_of(wanted.image, place / "stranger", by=2)
    release(samples.publisher(place, _KEYS[place]), replace(wanted, proofs=(stranger,)), samples.founding())


def _proof_of_another(place: Path) -> None:
    other = samples.wanted(place, "2").proofs
    release(samples.publisher(place, _KEYS[place]), replace(samples.wanted(place, "3"), proofs=other), samples.founding())


def _test_key(place: Path) -> None:
    image = samples.image(place, "3", test_key=True)
    wanted = replace(samples.wanted(place, "3"), image=image, proofs=(samples.proof_of(image, place / "tester"),))
    release(samples.publisher(place, _KEYS[place]), wanted, samples.founding())


def _damaged_part(place: Path) -> None:
    wanted = samples.wanted(place, "3")
    (wanted.image.directory / "verity.part").write_bytes(b"tree of X")
    release(samples.publisher(place, _KEYS[place]), wanted, samples.founding())


def _channel_name(place: Path) -> None:
    release(samples.publisher(place, _KEYS[place]), samples.wanted(place, "3", "../stable"), samples.founding())


def _stranding_minimum(place: Path) -> None:
    release(samples.publisher(place, _KEYS[place]), samples.wanted(place, "4", minimum="3"), samples.founding())


def _minimum_of_itself(place: Path) -> None:
    release(samples.publisher(place, _KEYS[place]), samples.wanted(place, "4", minimum="4"), samples.founding())


def _promote_nothing(place: Path) -> None:
    promote(samples.publisher(place, _KEYS[place]), "2", "testing", "late")


def _promote_older(place: Path) -> None:
    promote(samples.publisher(place, _KEYS[place]), "1", "testing", "stable")


def _withdraw_without_reason(place: Path) -> None:
    who = samples.publisher(place, _KEYS[place])
    withdraw(replace(who, act=replace(who.act, why=" ")), "2", hosts=Hosts.STAY)


def _withdraw_unknown(place: Path) -> None:
    withdraw(samples.publisher(place, _KEYS[place]), "9", hosts=Hosts.STAY)


def _keep_none(place: Path) -> None:
    retire(samples.publisher(place, _KEYS[place]), keep=0, before=NOW)


def _without_targets_key(place: Path) -> None:
    (_KEYS[place].directory / "targets.key").unlink()
    release(samples.publisher(place, _KEYS[place]), samples.wanted(place, "3"), samples.founding())


def _readable_key(place: Path) -> None:
    (_KEYS[place].directory / "targets.key").chmod(0o644)
    release(samples.publisher(place, _KEYS[place]), samples.wanted(place, "3"), samples.founding())


_KEYS: dict[Path, Keyring] = {}


@pytest.mark.parametrize(
    ("act", "kind", "code"),
    [
        (_same_version_other_image, StateError, "release-version-taken"),
        (_older_version, StateError, "release-not-newer"),
        (_unproven, TrustError, "release-unproven"),
        (_proven_by_a_stranger, TrustError, "release-unproven"),
        (_proof_of_another, TrustError, "release-unproven"),
        (_test_key, TrustError, "release-test-key"),
        (_damaged_part, TrustError, "digest-mismatch"),
        (_channel_name, InputError, "channel-name"),
        (_stranding_minimum, StateError, "release-minimum-strands"),
        (_minimum_of_itself, InputError, "release-minimum"),
        (_promote_nothing, InputError, "release-unknown"),
        (_promote_older, StateError, "release-not-newer"),
        (_withdraw_without_reason, InputError, "withdraw-why"),
        (_withdraw_unknown, InputError, "release-unknown"),
        (_keep_none, InputError, "retire-keep"),
        (_without_targets_key, StateError, "keys-missing"),
        (_readable_key, TrustError, "keys-readable"),
    ],
)
def test_what_is_refused_changes_nothing(tmp_path: Path, act: object, kind: type[ObeliskError], code: str) -> None:
    keys = _KEYS[tmp_path] = samples.keyring(tmp_path)
    who = samples.publisher(tmp_path, keys)
    release(who, samples.wanted(tmp_path, "1", "testing"), samples.founding())
    release(who, samples.wanted(tmp_path, "2"), samples.founding())
    before = {path: path.read_bytes() for path in (tmp_path / "repo/metadata").iterdir()}
    assert callable(act)
    with pytest.raises(kind) as refused:
        act(tmp_path)
    assert refused.value.code == code
    assert {path: path.read_bytes() for path in (tmp_path / "repo/metadata").iterdir()} == before


def test_what_was_withdrawn_is_not_current_and_stays_out(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    for version in ("1", "2"):
        release(who, samples.wanted(tmp_path, version, "testing"), samples.founding())
        promote(who, version, "testing", "stable")
    done = withdraw(who, "2", hosts=Hosts.BACK)
    assert done.now_current == (("stable", "1"), ("testing", "1"))
    host = samples.client(tmp_path)
    host.refresh()
    current, last = host.current("stable"), host.channel("stable").listings[-1]
    assert current is not None
    assert (current.version, last.withdrawn, last.hosts) == ("1", "it is good", Hosts.BACK)
    for again in (
        lambda: release(who, samples.wanted(tmp_path, "2", "late"), samples.founding()),
        lambda: promote(who, "2", "testing", "late"),
        lambda: withdraw(who, "2", hosts=Hosts.STAY),
    ):
        with pytest.raises(StateError) as refused:
            again()
        assert refused.value.code == "release-withdrawn"


def test_retiring_frees_what_no_channel_needs_and_nothing_else(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    for number in range(1, 6):
        content = b"".join(b"%015d " % n for n in range(40)) + b"version %d" % number
        release(samples.at(who, NOW - (9 - number) * DAY), samples.wanted(tmp_path, str(number), content=content), samples.founding())
    planned = retire(who, keep=2, before=NOW, dry_run=True)
    done = retire(who, keep=2, before=NOW, grace=timedelta(0))
    assert [each.version for each in done.retirement.gone] == [each.version for each in planned.retirement.gone]
    assert {each.version for each in done.retirement.gone} == {"1", "2", "3"}
    host = samples.client(tmp_path)
    host.refresh()
    assert [each.version for each in host.channel("stable").listings] == ["4", "5"]
    current = host.current("stable")
    assert current is not None
    assert b"version 5" in host.restored(current, tmp_path / "root")
    left = {path.name for path in (tmp_path / "repo/files").rglob("*") if path.is_file()}
    needed = {file.sha256 for each in who.opened().contents.releases for file in files_of(who.shelf, each, who.delivery)}
    assert left == needed


def test_retired_files_stay_for_those_who_are_reading(tmp_path: Path) -> None:
    who = samples.publisher(tmp_path, samples.keyring(tmp_path))
    for version in ("1", "2"):
        release(samples.at(who, NOW - 2 * DAY), samples.wanted(tmp_path, version, content=version.encode() * 99), samples.founding())
    host = samples.client(tmp_path)
    host.refresh()
    done = retire(who, keep=1, before=NOW)
    assert done.swept.waiting_bytes > 0
    assert host.document(f"releases/{done.retirement.gone[0].image}.json")
    assert files_of(who.shelf, done.retirement.gone[0], who.delivery)
    later = retire(samples.at(who, NOW + timedelta(hours=2)), keep=1, before=NOW)
    assert (later.swept.waiting_bytes, later.retirement.gone) == (0, ())
    assert not who.find(done.retirement.gone[0].index).exists()


def test_one_publisher_at_a_time(tmp_path: Path) -> None:
    keys = samples.keyring(tmp_path)
    who = samples.publisher(tmp_path, keys)
    with who.shelf.writing(), pytest.raises(StateError) as refused:
        release(samples.publisher(tmp_path, keys), samples.wanted(tmp_path, "1"), samples.founding())
    assert refused.value.code == "repository-locked"
