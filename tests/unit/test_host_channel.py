"""How a release comes to a host, on files in the place of its disk."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from channel_samples import FakeWay, Scene, make_scene
from host_samples import record
from trust_samples import STRANGER, TESTER, MemoryMirror, Publisher, kernel_of, pem, proof

from obelisk.errors import InputError, StateError, TransportError, TrustError
from obelisk.events import Progress, Started, silent
from obelisk.host import channel, journal
from obelisk.host import status as statuses
from obelisk.host.subscription import Subscription
from obelisk.host.ways import by_cost
from obelisk.model import release as documents
from obelisk.model.following import GoBack, Refuse, Stay, Take
from obelisk.model.host import Event, Phase
from obelisk.model.image import PartKind
from obelisk.model.release import Hosts
from obelisk.system.filesystem import Space


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_disks() -> Iterator[None]:
    """Whether it is durable is not what is asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)


def test_a_newer_release_comes_in_order_and_is_written(scene: Scene, tmp_path: Path) -> None:
    image = scene.publisher.release("2")
    source = scene.prepare()
    assert source.manifest == image
    asked = scene.mirror.requests
    release = scene.publisher.releases["2"]
    image_id = release.target.removesuffix(".json").split("/")[1]
    order = ["metadata/timestamp.json", "channels/", image_id, "testers.json", release.proofs[0].path, release.manifest.path]
    order.append(source.manifest.part(PartKind.UKI).sha256)
    places = [next(index for index, path in enumerate(asked) if word in path) for word in order]
    assert places == sorted(places)
    assert source.write(tmp_path / "root", tmp_path / "tree", on_bytes=lambda _count: None) == (8, [range(1)])
    assert source.path(PartKind.UKI).read_bytes() == kernel_of(image)
    channel.discard(scene.here)
    assert list(scene.here.incoming.iterdir()) == []


def test_the_size_is_said_before_it_starts_and_bytes_are_told(scene: Scene) -> None:
    scene.publisher.release("2")
    scene.prepare()
    started = next(event for event in scene.told if isinstance(event, Started) and event.task == "upgrade/fetch")
    assert started.title == "Fetching the blocks that differ: 3.0 MiB of 101.1 MiB, in 5 requests"
    assert (started.unit, started.total) == ("B", scene.ways[0].fetch_bytes)
    done = [event.done for event in scene.told if isinstance(event, Progress) and event.task == "upgrade/fetch"]
    assert done == sorted(done)
    assert done[-1] == started.total


def test_what_is_installed_already_is_not_fetched_again(scene: Scene, tmp_path: Path) -> None:
    image = scene.publisher.release("2")
    (scene.here.run / "esp/EFI/Linux/shop_2+3.efi").touch()
    for event, phase in ((Event.BEGUN, None), (Event.DONE, Phase.PENDING)):
        journal.append(scene.here.keep, replace(record(event, phase=phase), image_id=image.id))
    source = scene.prepare()
    assert source.manifest == image
    assert scene.ways == []
    assert not any(image.part(PartKind.UKI).sha256 in path for path in scene.mirror.requests)
    with pytest.raises(StateError, match="no longer"):
        source.write(tmp_path / "root", tmp_path / "tree", on_bytes=lambda _count: None)


def test_what_came_is_not_fetched_again(scene: Scene) -> None:
    image = scene.publisher.release("2")
    kernel = kernel_of(image)
    scene.publisher.authority.files[f"files/{image.part(PartKind.UKI).sha256[:2]}/{image.part(PartKind.UKI).sha256}"] = kernel[:50_000]
    assert scene.refused().code == "mirror-wrong"
    scene.publisher.keep(kernel)
    before = scene.mirror.sent_bytes
    scene.prepare()
    assert scene.mirror.sent_bytes - before < len(kernel) - 50_000 + 20_000  # the rest, and some documents


def test_another_release_s_files_go_when_a_new_one_is_begun(scene: Scene) -> None:
    scene.publisher.release("2")
    old = scene.prepare().incoming
    scene.publisher.release("3")
    source = scene.prepare()
    assert source.manifest.version == "3"
    assert list(scene.here.incoming.iterdir()) == [source.incoming]
    assert old != source.incoming


def damaged_proof(_image: str) -> bytes:
    return b"{}"


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("signed by none of the repository's testers", lambda image: proof(image, key=STRANGER)),
        ("the proof does not hold", lambda _image: proof("0" * 64)),
        ("the proof does not hold", lambda image: proof(image, result="FAILED")),
        ("the proof does not hold", lambda image: proof(image, passed=["boots"])),
        ("the proof does not hold", lambda image: proof(image, planned=())),
        ("a proof is damaged", damaged_proof),
        ("a proof is damaged", lambda image: proof(image).replace(b'"sig"', b'"sgi"')),
        ("a proof is damaged", lambda _image: b"[" * 100_000),
        ("signed by none", lambda image: proof(image).replace(b"payloadType", b"x").replace(b'"x": "', b'"payloadType": "x')),
    ],
    ids=["stranger", "other image", "failed", "cut short", "nothing planned", "empty", "no signature", "deep", "other type"],
)
def test_without_a_proof_that_counts_nothing_of_the_image_is_fetched(scene: Scene, words: str, make: Callable[[str], bytes]) -> None:
    image = Publisher().release("2")
    scene.publisher.release("2", proof_of=make(image.id))
    assert scene.publisher.releases["2"].image == image.id
    error = scene.refused()
    assert (error.code, error.exit_status) == ("proof-missing", TrustError.exit_status)
    assert words in error.message
    assert error.hint
    release = scene.publisher.releases["2"]
    assert not any(release.manifest.path in path for path in scene.mirror.requests)
    assert not scene.here.incoming.exists()


def test_who_tested_may_know_other_scenarios_than_this_host(scene: Scene) -> None:
    image = Publisher().release("2")
    scene.publisher.release("2", proof_of=proof(image.id, planned=("a later one",), passed=("a later one",)))
    assert scene.prepare().manifest == image


def test_one_good_proof_of_several_is_enough(scene: Scene) -> None:
    image = scene.publisher.release("2")
    release = scene.publisher.releases["2"]
    others = (scene.publisher.keep(b"{}"), scene.publisher.keep(proof(image.id, key=STRANGER)))
    scene.publisher.authority.put("testers.json", documents.Testers(("no key", pem(STRANGER)[:40], pem(TESTER))).to_bytes())
    scene.publisher.authority.put(release.target, replace(release, proofs=(*others, *release.proofs)).to_bytes())
    scene.publisher.publish()
    assert scene.prepare().manifest == image


def test_a_tester_who_is_one_no_longer_proves_nothing(scene: Scene) -> None:
    scene.publisher.release("2")
    scene.publisher.authority.put("testers.json", documents.Testers((pem(STRANGER),)).to_bytes())
    scene.publisher.publish()
    assert scene.refused().code == "proof-missing"


@pytest.mark.parametrize("change", ["version", "root_hash", "root_bytes"])
def test_release_and_manifest_say_the_same(scene: Scene, change: str) -> None:
    scene.publisher.release("2")
    release = scene.publisher.releases["2"]
    other = {"version": "3", "root_hash": "9" * 64, "root_bytes": 1}[change]
    scene.publisher.authority.put(release.target, replace(release, **{change: other}).to_bytes())  # type: ignore[arg-type]
    scene.publisher.publish()
    assert scene.refused().code == "target-mixed"


def test_a_kernel_of_another_root_is_not_taken(scene: Scene, tmp_path: Path) -> None:
    other = Publisher().release("9")
    scene.publisher.release("2", kernel=kernel_of(other))
    source = scene.prepare()
    with pytest.raises(TrustError) as caught:
        source.write(tmp_path / "root", tmp_path / "tree", on_bytes=lambda _count: None)
    assert caught.value.code == "uki-foreign"


def test_a_host_that_may_not_take_it_fetches_nothing(scene: Scene) -> None:
    (scene.here.run / "esp/EFI/Linux/shop_1.efi").rename(scene.here.run / "esp/EFI/Linux/shop_1+2-1.efi")
    image = scene.publisher.release("2")
    assert scene.refused().code == "on-trial"
    assert not any(image.part(PartKind.UKI).sha256 in path for path in scene.mirror.requests)


def test_without_room_nothing_is_fetched(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "space", lambda path: Space(path, 64 << 20, 1 << 30, None))
    image = scene.publisher.release("2")
    error = scene.refused()
    assert error.code == "state-full"
    assert "64.0 MiB free, this upgrade needs 64.1 MiB" in error.message
    assert not any(image.part(PartKind.UKI).sha256 in path for path in scene.mirror.requests)


def test_where_the_cheaper_way_is_damaged_the_other_is_taken(scene: Scene, tmp_path: Path) -> None:
    scene.damaged = (True, False)
    scene.publisher.release("2")
    source = scene.prepare()
    assert source.write(tmp_path / "root", tmp_path / "tree", on_bytes=lambda _count: None) == (8, [range(1)])
    assert scene.notes == ["the edge is damaged; going on with the blocks that differ"]
    scene.damaged = (True,)
    with pytest.raises(TrustError, match="the edge is damaged"):
        scene.prepare().write(tmp_path / "root", tmp_path / "tree", on_bytes=lambda _count: None)


def test_the_cheapest_way_is_first_and_requests_count() -> None:
    few, many, large = (FakeWay(None, None, None, requests=n, download_bytes=b) for n, b in ((1, 1 << 20), (900, 1 << 19), (1, 1 << 22)))  # type: ignore[arg-type]
    assert by_cost([large, many, few]) == [few, large, many]


def test_a_host_is_told_what_it_is_to_do(scene: Scene) -> None:
    assert isinstance(scene.look().decision, Stay)
    scene.publisher.release("2")
    offer = scene.look()
    assert isinstance(offer.decision, Take)
    assert offer.release == scene.publisher.releases["2"]
    scene.publisher.withdraw("2")
    assert isinstance(scene.look().decision, Stay)
    scene.publisher.withdraw("1", hosts=Hosts.BACK)
    assert scene.look().decision == GoBack("0", "1 was withdrawn: it eats data")
    with pytest.raises(AssertionError):
        scene.prepare()


def test_what_failed_here_is_not_taken_again_unless_it_is_named(scene: Scene) -> None:
    image = scene.publisher.release("2")
    for event in (Event.FELL_BACK, Event.UNFIT):
        (scene.here.keep / journal.FILE).unlink()
        journal.append(scene.here.keep, replace(record(event), image_id=image.id))
        assert isinstance(scene.look().decision, Refuse)
        assert scene.prepare(retry="2").manifest == image


def test_the_minimum_of_a_release_is_read_from_its_document(scene: Scene) -> None:
    scene.publisher.release("2")
    scene.publisher.release("3", minimum="2")
    decision = scene.look().decision
    assert isinstance(decision, Take)
    assert decision.listing.version == "2"


def test_what_is_gone_since_the_metadata_came_is_asked_for_anew(scene: Scene) -> None:
    scene.publisher.release("2")
    release = scene.publisher.releases["2"]
    del scene.publisher.authority.files[release.proofs[0].path]
    error = scene.refused()
    assert error.code == "mirror-lacks"

    class Changing(MemoryMirror):
        """Publishes another release as soon as the proof of the one before is wanted."""

        def part(self, path: str, wanted: range, *, most_bytes: int) -> Iterator[tuple[int, bytes]]:
            if path == release.proofs[0].path and "3" not in scene.publisher.releases:
                scene.publisher.release("3")
            yield from super().part(path, wanted, most_bytes=most_bytes)

    scene.mirror = Changing(scene.publisher.authority.files)
    assert scene.prepare().manifest.version == "3"
    assert any("asking what is there now" in note for note in scene.notes)


def test_a_clock_that_is_behind_is_noticed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.publisher.release("2")
    past = datetime.now(UTC) - timedelta(days=30)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            assert tz is UTC
            return past

    monkeypatch.setattr(channel, "datetime", Clock)
    with pytest.raises(StateError, match=f"clock says {past:%Y-%m-%d %H:%M} UTC") as caught:
        scene.look()
    assert "timedatectl" in caught.value.hint


def test_metadata_that_ends_soon_is_warned_of(scene: Scene) -> None:
    scene.publisher.authority.timestamp.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=3)
    scene.publisher.authority.publish_timestamp()
    scene.look()
    assert any("timestamp metadata expires at" in note for note in scene.notes)


def test_a_mirror_that_is_down_is_told_and_passed_over(scene: Scene) -> None:
    scene.look(sources=[MemoryMirror(None, "first"), scene.mirror])
    assert scene.notes == ["first is down; asking memory"]
    with pytest.raises(TransportError, match="first is down"):
        scene.look(sources=[MemoryMirror(None, "first")])


def test_mirrors_are_addresses_and_directories(tmp_path: Path) -> None:
    with channel.mirrors(Subscription("stable", ("http://127.0.0.1:1/os", str(tmp_path)), b""), silent) as found:
        assert [mirror.name for mirror in found._mirrors] == ["http://127.0.0.1:1/os", str(tmp_path)]
    with pytest.raises(InputError), channel.mirrors(Subscription("stable", ("nowhere",), b""), silent):
        pass


def test_status_tells_what_was_last_heard_of_the_channel(scene: Scene, tmp_path: Path) -> None:
    here = scene.here
    assert statuses.followed(here, tmp_path / "none") is None
    (tmp_path / "conf").write_text("channel=stable\nrepository=http://a\n")
    (tmp_path / "root.json").write_text("{}")
    never = statuses.followed(here, tmp_path)
    assert never is not None
    assert str(never) == "stable, which was never asked: `obelisk host upgrade --check`"
    scene.publisher.release("2")
    scene.look()
    found = statuses.followed(here, tmp_path)
    assert found is not None
    assert str(found).startswith("stable, at 2 as of ")
    assert found.to_json()["withdrawn"] is None
    scene.publisher.withdraw("1")
    scene.look()
    withdrawn = statuses.followed(here, tmp_path / "none")
    assert withdrawn is not None
    assert withdrawn.withdrawn == "it eats data"
