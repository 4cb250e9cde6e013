"""What a host believes of a repository, and what it says of what it does not believe."""

import errno
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from lying_server import Lie, LyingServer, serving
from trust_samples import Authority, MemoryMirror, Publisher

from obelisk.errors import StateError, TransportError, TrustError
from obelisk.model.release import Channel
from obelisk.release.client import seen, trust
from obelisk.release.client.remote import Mirrors, MissingError, WebMirror
from obelisk.system.http import Client, Limits


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_disks() -> Iterator[None]:
    """Whether it is durable is not what is asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher()
    made.release("1")
    made.release("2")
    return made


def refresh(keep: Path, publisher: Publisher, *sources: MemoryMirror) -> trust.Repository:
    return trust.refresh(keep, publisher.authority.first_root, Mirrors(sources or [MemoryMirror(publisher.authority.files)]))


def refused(keep: Path, publisher: Publisher, *sources: MemoryMirror) -> TrustError:
    with pytest.raises(TrustError) as caught:
        refresh(keep, publisher, *sources)
    return caught.value


def test_documents_are_those_of_the_repository(tmp_path: Path, publisher: Publisher) -> None:
    found = refresh(tmp_path, publisher)
    assert found.channel("shop", "stable") == publisher.channel
    assert found.release(publisher.releases["2"].image) == publisher.releases["2"]
    assert len(found.testers().keys) == 1


def test_what_is_not_there_is_named(tmp_path: Path, publisher: Publisher) -> None:
    found = refresh(tmp_path, publisher)
    with pytest.raises(TrustError, match="no channel 'testing' for shop"):
        found.channel("shop", "testing")
    with pytest.raises(TrustError, match="no release of image 000000000000"):
        found.release("0" * 64)


def test_a_signed_document_of_something_else_is_refused(tmp_path: Path, publisher: Publisher) -> None:
    publisher.authority.put("channels/shop/stable.json", Channel("other", "stable").to_bytes())
    publisher.authority.put("releases/" + "0" * 64 + ".json", publisher.releases["1"].to_bytes())
    publisher.authority.publish()
    found = refresh(tmp_path, publisher)
    for ask in (lambda: found.channel("shop", "stable"), lambda: found.release("0" * 64)):
        with pytest.raises(TrustError) as caught:
            ask()
        assert caught.value.code == "target-mixed"


def test_expired_metadata_names_what_when_the_clock_and_the_remedy(tmp_path: Path, publisher: Publisher) -> None:
    past = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=5)
    publisher.authority.timestamp.expires = past
    publisher.authority.publish_timestamp()
    error = refused(tmp_path, publisher)
    assert f"timestamp at {past:%Y-%m-%d %H:%M} UTC; this machine's clock says {datetime.now(UTC):%Y-%m-%d}" in error.message
    assert "timedatectl" in error.hint
    assert "obelisk repo refresh" in error.hint


def test_metadata_that_expires_soon_is_told_before(tmp_path: Path, publisher: Publisher) -> None:
    now = datetime.now(UTC)
    assert [expiry.warning(now) for expiry in refresh(tmp_path, publisher).expiries] == [""] * 4
    publisher.authority.timestamp.expires = now.replace(microsecond=0) + timedelta(hours=20)
    publisher.authority.publish_timestamp()
    first, *others = refresh(tmp_path, publisher).expiries
    assert "timestamp metadata expires at" in first.warning(now)
    assert not any(expiry.warning(now) for expiry in others)
    assert all(expiry.warning(now + timedelta(days=99)) for expiry in others)


def test_who_signs_for_a_short_time_is_not_warned_of_all_the_time(tmp_path: Path, publisher: Publisher) -> None:
    now = datetime.now(UTC)
    timestamp = publisher.authority.timestamp
    timestamp.expires = now.replace(microsecond=0) + timedelta(hours=10)
    timestamp.unrecognized_fields["x-obelisk-lifetime-s"] = 12 * 3600
    publisher.authority.publish_timestamp()
    first, *_others = refresh(tmp_path, publisher).expiries
    assert not first.warning(now)
    assert first.warning(now + timedelta(hours=8))


def test_an_old_repository_is_refused_by_who_has_seen_a_newer_one(tmp_path: Path, publisher: Publisher) -> None:
    old = dict(publisher.authority.files)
    publisher.release("3")
    refresh(tmp_path, publisher)
    error = refused(tmp_path, publisher, MemoryMirror(old, "stale"))
    assert error.code == "metadata-version"
    assert error.message.startswith("stale: ")
    assert refresh(tmp_path / "new", publisher, MemoryMirror(old, "stale")).channel("shop", "stable").highest == "2"


def test_another_owner_s_repository_is_refused(tmp_path: Path, publisher: Publisher) -> None:
    error = refused(tmp_path, publisher, MemoryMirror(Authority().files, "other"))
    assert error.code == "metadata-unsigned"
    assert "root.json" in error.hint


def test_a_stale_a_lying_and_a_dead_mirror_are_passed_over_and_named(tmp_path: Path, publisher: Publisher) -> None:
    stale = MemoryMirror(dict(publisher.authority.files), "stale")
    publisher.release("3")
    refresh(tmp_path, publisher)
    said: list[str] = []
    sources = [MemoryMirror(None, "dead"), stale, MemoryMirror(Authority().files, "other"), MemoryMirror(publisher.authority.files, "good")]
    found = trust.refresh(tmp_path, publisher.authority.first_root, Mirrors(sources, say=said.append))
    assert found.channel("shop", "stable").highest == "3"
    assert [line.rpartition("; asking ")[2] for line in said] == ["stale", "other", "good"]


def test_documents_may_come_from_another_mirror_than_metadata(tmp_path: Path, publisher: Publisher) -> None:
    files = publisher.authority.files
    bare = MemoryMirror({path: data for path, data in files.items() if path.startswith("metadata/")}, "bare")
    wrong = MemoryMirror({path: data[::-1] if path.startswith("targets/") else data for path, data in files.items()}, "wrong")
    found = refresh(tmp_path, publisher, bare, wrong, MemoryMirror(files))
    assert found.channel("shop", "stable") == publisher.channel
    only = refresh(tmp_path / "only", publisher, wrong)
    with pytest.raises(TrustError, match=r"wrong/targets/channels/shop/.* is not what the signed metadata says"):
        only.channel("shop", "stable")


def test_root_keys_may_have_changed_since_the_image_was_built(tmp_path: Path, publisher: Publisher) -> None:
    for turn in range(3):
        publisher.authority.rotate("root", signed_by_old=True)
        publisher.authority.rotate("timestamp")
        publisher.authority.publish_root()
        publisher.authority.signers["root"] = publisher.authority.signers["root"][:1]
        publisher.release(f"3.{turn}")
    assert refresh(tmp_path, publisher).channel("shop", "stable").highest == "3.2"


def test_what_is_kept_may_be_damaged_or_gone(tmp_path: Path, publisher: Publisher) -> None:
    refresh(tmp_path, publisher)
    for path in (tmp_path / "timestamp.json", tmp_path / "snapshot.json", tmp_path / "root_history/1.root.json"):
        path.write_bytes(b'{"half')
    assert refresh(tmp_path, publisher).channel("shop", "stable") == publisher.channel
    shutil.rmtree(tmp_path)
    assert refresh(tmp_path, publisher).channel("shop", "stable") == publisher.channel


def test_an_unchanged_timestamp_is_not_sent_again(tmp_path: Path, publisher: Publisher) -> None:
    with serving(LyingServer(publisher.authority.files)) as server, Client(Limits()) as client:
        sources = Mirrors([WebMirror(server.address, client)])
        trust.refresh(tmp_path, publisher.authority.first_root, sources)
        server.requests.clear()
        trust.refresh(tmp_path, publisher.authority.first_root, sources)
        assert [(request.path, bool(request.etag)) for request in server.requests] == [
            ("/metadata/2.root.json", False),
            ("/metadata/timestamp.json", True),
        ]
        publisher.release("3")
        assert trust.refresh(tmp_path, publisher.authority.first_root, sources).channel("shop", "stable").highest == "3"
        # What an ETag stands for is only what was kept of that mirror and was found to be good.
        (tmp_path / "timestamp.json").write_bytes(b"{}")
        server.requests.clear()
        trust.refresh(tmp_path, publisher.authority.first_root, sources)
        assert not server.requests[1].etag


@pytest.mark.parametrize(
    "lie",
    [Lie.TRUNCATED, Lie.FLIPPED, Lie.SWAPPED, Lie.ENDLESS, Lie.SLOW, Lie.STALLED, Lie.LOOP, Lie.GARBAGE],
    ids=lambda lie: lie.name.lower(),
)
@pytest.mark.parametrize("path", ["metadata/timestamp", "metadata/3.snapshot", "targets/channels"])
def test_a_lie_is_refused_and_another_mirror_asked(tmp_path: Path, publisher: Publisher, lie: Lie, path: str) -> None:
    quick = Limits(connect_s=0.3, idle_s=0.3, window_s=0.2, least_bytes_s=2000)
    with serving(LyingServer(publisher.authority.files, lies={path: lie})) as server, Client(quick) as client:
        alone = Mirrors([WebMirror(server.address, client)])
        with pytest.raises((TrustError, TransportError)) as caught:
            trust.refresh(tmp_path, publisher.authority.first_root, alone).channel("shop", "stable")
        assert server.address in caught.value.message
        assert caught.value.hint
        both = Mirrors([WebMirror(server.address, client), MemoryMirror(publisher.authority.files)])
        assert trust.refresh(tmp_path, publisher.authority.first_root, both).channel("shop", "stable") == publisher.channel


def test_no_repository_is_told_from_a_server_that_is_down(tmp_path: Path, publisher: Publisher) -> None:
    with pytest.raises(MissingError):
        refresh(tmp_path, publisher, MemoryMirror({}, "empty"))
    with pytest.raises(TransportError) as caught:
        refresh(tmp_path, publisher, MemoryMirror(None, "down"))
    assert not isinstance(caught.value, MissingError)


def test_the_channel_is_remembered_for_those_who_only_want_to_know(tmp_path: Path, publisher: Publisher) -> None:
    assert seen.last(tmp_path) is None
    refresh(tmp_path, publisher).channel("shop", "stable")
    found = seen.last(tmp_path)
    assert found is not None
    assert found[0] == publisher.channel
    assert datetime.now(UTC) - datetime.fromisoformat(found[1]) < timedelta(minutes=5)
    for damaged in (b"", b"[]", b'{"at": "x"}', json.dumps({"at": "x", "channel": "{}"}).encode()):
        (tmp_path / "channel.json").write_bytes(damaged)
        assert seen.last(tmp_path) is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("os.replace", "os.symlink"):
        with monkeypatch.context() as patched:
            patched.setattr(broken, full)
            with pytest.raises(StateError, match="trust cannot be written: No space left on device"):
                refresh(tmp_path / "trust", publisher)
    assert refresh(tmp_path / "trust", publisher).channel("shop", "stable") == publisher.channel
