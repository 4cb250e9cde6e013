"""Applications from a channel: what is taken, what is refused, what is fetched, and what is never taken again by itself."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import repository_samples as samples
from installed_samples import PORT, SERVED, World, in_memory
from store_samples import sha256

from obelisk.cli import installing
from obelisk.cli.main import _parser
from obelisk.errors import InputError, ObeliskError, StateError, TransportError, TrustError
from obelisk.host import subscription
from obelisk.host.subscription import Subscription
from obelisk.model.image import PartKind
from obelisk.model.policy import Listen, Policy, policy
from obelisk.model.publication import Terms
from obelisk.model.release import File, Hosts
from obelisk.release.client import planning
from obelisk.release.client.remote import DirectoryMirror
from obelisk.release.delivery import Blocks
from obelisk.release.publishing import Wanted, release, withdraw
from obelisk.release.repository import Repository
from obelisk.sandbox import channel
from obelisk.sandbox.installed import INCOMING, Installation
from obelisk.sandbox.ready import application_of
from obelisk.store import StoredImage

WIDE = policy([Listen(8080), Listen(9090)])


class Town:
    """A machine, and a repository whose channel has applications for it."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        in_memory(monkeypatch)
        monkeypatch.setattr("obelisk.sandbox.channel.remove_tree", _remove)
        (top / "world").mkdir()
        self.world = World(top / "world")
        self.capsys = capsys
        self.publisher = replace(samples.publisher(top, samples.keyring(top)), delivery=Blocks())
        self.repo = self.publisher.shelf.root
        self.own: Subscription | None = None
        self.fetched = 0

        def installation(name: str, _systemd: object, _sink: object) -> Installation:
            assert name == "shop"
            return self.world.installation()

        def names() -> list[str]:
            return sorted(path.parent.name for path in (self.world.top / "installed").glob("*/state.json"))

        part = DirectoryMirror.part

        def counted(mirror: DirectoryMirror, path: str, wanted: range, *, most_bytes: int) -> Iterator[tuple[int, bytes]]:
            for at, data in part(mirror, path, wanted, most_bytes=most_bytes):
                self.fetched += len(data)
                yield at, data

        ground = SimpleNamespace(installation=installation, names=names, machine=SimpleNamespace(is_root=True))
        monkeypatch.setattr(installing, "_ground", lambda _arguments, _sink: ground)
        monkeypatch.setattr(installing, "_systemd", lambda _ground: self.world)
        monkeypatch.setattr(installing, "policy_of", self._policy_of)
        monkeypatch.setattr(subscription, "read", lambda: self.own)
        monkeypatch.setattr(DirectoryMirror, "part", counted)

    def _policy_of(self, image: StoredImage) -> Policy:
        return application_of(image).policy

    def put(self, version: str, *numbers: int, granted: Policy = PORT, touched: Sequence[int] = (), edges: str = "none") -> str:
        """Release a version of these blocks; the id of its image."""
        said = replace(SERVED, policy=granted)
        place = self.repo.parent
        image = samples.application(place, version, said, *(numbers or (*range(1, 300), int(version) + 1000)), touched=touched)
        self.world.apps[image.id] = (said, granted)
        wanted = Wanted(image, (samples.proof_of(image, place / "tester"),), "stable", Terms(), edges, "because")
        release(self.publisher, wanted, samples.founding())
        return image.id

    def run(self, *words: str) -> dict[str, object]:
        """The answer to a command."""
        self.capsys.readouterr()
        assert installing.app(_parser().parse_args(["app", *words, "--json"])) == 0
        last: dict[str, object] = json.loads(self.capsys.readouterr().out.splitlines()[-1])
        return last

    def install(self, *more: str) -> dict[str, object]:
        root = str(self.repo / "metadata/1.root.json")
        return self.run("install", "shop", "--channel", "stable", "--from", str(self.repo), "--root", root, *more)

    def refused(self, *words: str) -> ObeliskError:
        with pytest.raises(ObeliskError) as caught:
            self.run(*words) if words else self.install()
        return caught.value

    @property
    def kept(self) -> Path:
        return self.world.installation().places.kept

    def incoming(self) -> list[str]:
        return [path.name for path in (self.kept / INCOMING).glob("*")]


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Town:
    return Town(tmp_path, monkeypatch, capsys)


def test_what_is_installed_from_a_channel_follows_it_and_fetches_only_blocks_that_it_does_not_have(town: Town) -> None:
    one = town.put("1")
    assert town.install()["image"] == one
    assert town.world.running == one
    first = town.fetched
    assert town.run("upgrade", "shop")["changed"] is False
    town.world.said.clear()
    assert town.install()["image"] == one  # what the operator's files say takes effect
    assert "start obelisk-app-shop.service" in town.world.said
    two = town.put("2")
    town.fetched = 0
    answered = town.run("upgrade")
    assert (answered["image"], answered["prior"], town.world.running) == (two, one, two)
    assert first > 1_000_000
    assert town.fetched < 200_000  # one block of 4096 bytes, documents, parts, and the index
    there = town.world.installation().image(two)
    parts = {part.kind: part for part in there.manifest.parts}
    assert sha256(there.part_path(PartKind.ROOT).read_bytes()) == parts[PartKind.ROOT].sha256
    assert sha256(there.part_path(PartKind.VERITY).read_bytes()) == parts[PartKind.VERITY].sha256
    assert town.incoming() == []
    assert '"channel":"stable"' in json.dumps(town.run("list"), separators=(",", ":"))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_ready_made_edge_is_taken_where_it_is_the_cheaper_way_and_blocks_where_it_is_damaged(town: Town, *, damaged: bool) -> None:
    town.put("1")
    town.install()
    changed = town.put("2", *range(1, 300), 1001, touched=range(100, 160), edges="previous")
    found = Repository.open(town.publisher.shelf).contents.release(changed)
    assert found is not None
    (way,) = found.edges
    assert way.file.size_bytes < 20_000  # its blocks are 240 kB that nothing compresses
    if damaged:
        (town.repo / way.file.path).write_bytes(bytes(way.file.size_bytes))
    town.fetched = 0
    assert town.run("upgrade")["image"] == changed
    assert town.world.running == changed
    assert (town.fetched > 240_000) is damaged
    assert [path.name for path in (town.kept / "images" / changed).glob("edge*")] == []


def test_more_powers_are_refused_before_blocks_are_fetched_until_the_operator_approves(town: Town) -> None:
    one = town.put("1")
    town.install()
    two = town.put("2", granted=WIDE)  # the publisher's approval is not the operator's
    error = town.refused("upgrade", "shop")
    assert (type(error), error.code) == (StateError, "app-growth")
    assert "accepts connections at TCP port 9090" in error.message
    assert town.world.running == one
    assert [path.name for path in (town.kept / INCOMING / two).iterdir()] == ["uki"]  # what it says of itself
    assert town.run("upgrade", "--check")["decision"] == "take"
    assert town.run("upgrade", "--approve")["image"] == two
    assert town.world.running == two


def test_withdrawn_releases_are_never_taken_and_left_where_the_publisher_says_so(town: Town) -> None:
    one = town.put("1")
    two = town.put("2")
    withdraw(town.publisher, "2", hosts=Hosts.STAY)
    assert town.install()["image"] == one
    three = town.put("3")
    assert town.run("upgrade")["image"] == three
    withdraw(town.publisher, "3", hosts=Hosts.BACK)
    answered = town.run("upgrade")
    assert (answered["image"], town.world.running) == (one, one)
    assert town.run("upgrade")["changed"] is False
    assert two not in {path.name for path in (town.kept / "images").iterdir()}


def test_where_all_is_withdrawn_nothing_is_installed(town: Town) -> None:
    town.put("1")
    withdraw(town.publisher, "1", hosts=Hosts.STAY)
    error = town.refused()
    assert error.code == "nothing-released"
    assert town.world.running == ""


def test_a_version_that_was_not_healthy_or_that_somebody_left_is_taken_again_only_by_name(town: Town) -> None:
    one, two = town.put("1"), ""
    town.install()
    two = town.put("2")
    town.world.unhealthy.add(two)
    assert town.refused("upgrade").code == "app-unhealthy"
    assert town.world.running == one
    error = town.refused("upgrade")
    assert (error.code, town.world.running) == ("failed-before", one)
    assert "obelisk app upgrade shop --retry VERSION" in error.hint
    assert town.run("upgrade", "--check")["decision"] == "refuse"
    town.world.unhealthy.clear()
    assert town.refused("upgrade", "shop", "--retry", "7").code == "retry-other"
    assert town.run("upgrade", "shop", "--retry", "2")["image"] == two
    town.run("rollback", "shop")
    assert town.refused("upgrade").code == "failed-before"
    three = town.put("3")
    assert town.run("upgrade")["image"] == three


def test_a_version_is_rehearsed_unless_it_is_to_come_in_place(town: Town) -> None:
    town.put("1")
    town.install()
    two = town.put("2")
    assert town.run("upgrade")["image"] == two
    assert town.world.rehearsed == [two]
    three = town.put("3")
    assert town.run("upgrade", "--in-place")["image"] == three
    assert town.world.rehearsed == [two]


def test_an_interrupted_release_is_resumed(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_BATCH_GROUPS", 4)
    one = town.put("1", *range(1, 1500))
    calls = 0
    ranges = DirectoryMirror.part

    def failing(mirror: DirectoryMirror, path: str, wanted: range, *, most_bytes: int) -> Iterator[tuple[int, bytes]]:
        nonlocal calls
        calls += len(wanted) > 1_000_000
        if calls > 1:
            raise TransportError("the line is cut", code="cut")
        yield from ranges(mirror, path, wanted, most_bytes=most_bytes)

    with monkeypatch.context() as patched:
        patched.setattr(DirectoryMirror, "part", failing)
        assert town.refused().message == "the line is cut"
    assert town.incoming() == [one]
    assert town.world.running == ""
    town.fetched = 0
    assert town.install()["image"] == one
    assert 2_000_000 < town.fetched < 5_000_000  # of 6 MB


@pytest.mark.parametrize("what", ["pack", "manifest", "proof", "part"])
def test_nothing_is_installed_of_a_release_that_is_damaged(town: Town, what: str) -> None:
    one = town.put("1")
    contents = Repository.open(town.publisher.shelf).contents
    found = contents.release(one)
    assert found is not None
    manifest = Repository.open(town.publisher.shelf).manifest(found)
    part = manifest.part(PartKind.APPLICATION)
    (pack,) = Blocks().packs(found, lambda file: town.repo / file.path)
    named = {"pack": pack, "manifest": found.manifest, "proof": found.proofs[0], "part": File(part.sha256, part.size_bytes)}
    file = town.repo / named[what].path
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert isinstance(town.refused(), TrustError)
    assert town.world.running == ""
    assert not (town.kept / "images").exists() or not list((town.kept / "images").iterdir())


def test_without_a_proof_that_counts_nothing_is_taken(town: Town) -> None:
    town.put("1")
    there = Repository.open(town.publisher.shelf)
    contents = there.contents
    town.publisher.commit(there, replace(contents, testers=replace(contents.testers, keys=(samples.tester(2),))))
    error = town.refused()
    assert (type(error), error.code) == (TrustError, "proof-missing")


def test_a_machines_image_is_no_application(town: Town) -> None:
    place = town.repo.parent
    samples.released(town.publisher, place, samples.restorable(place, "1", 1, 2))
    error = town.refused()
    assert (type(error), error.code) == (InputError, "not-application")


def test_trust_begins_with_a_root_that_somebody_gave(town: Town, tmp_path: Path) -> None:
    town.put("1")
    words = ("install", "shop", "--channel", "stable", "--from", str(town.repo))
    assert town.refused(*words).code == "root-unnamed"
    assert town.refused(*words[:4]).code == "mirror-unnamed"
    assert town.refused(*words, "--root", str(tmp_path / "none")).code == "root-missing"
    assert town.refused("install", "shop", *words[4:]).code == "channel-unnamed"
    (tmp_path / "other").mkdir()
    other = replace(samples.publisher(tmp_path / "other", samples.keyring(tmp_path / "other")), delivery=Blocks())
    image = samples.application(tmp_path / "other", "1", SERVED, 1)
    wanted = Wanted(image, (samples.proof_of(image, tmp_path / "other/tester"),), "stable", Terms(), "none")
    release(other, wanted, samples.founding())
    assert isinstance(town.refused(*words, "--root", str(other.shelf.root / "metadata/1.root.json")), TrustError)
    assert town.world.running == ""


def test_a_host_asks_the_repository_that_its_own_image_follows_by_default(town: Town) -> None:
    one = town.put("1")
    town.own = Subscription("edge", (str(town.repo),), (town.repo / "metadata/1.root.json").read_bytes())
    assert town.run("install", "shop", "--channel", "stable")["image"] == one
    assert channel.following(town.kept) == channel.Following("stable")
    two = town.put("2")
    assert town.run("upgrade")["image"] == two


def test_what_follows_nothing_is_not_upgraded(town: Town) -> None:
    town.world.install(town.world.image("1"))
    assert town.refused("upgrade", "shop").code == "no-channel"
    town.capsys.readouterr()
    assert installing.app(_parser().parse_args(["app", "upgrade"])) == 0
    assert town.capsys.readouterr().out == "nothing that is installed follows a channel\n"


def test_an_older_repository_than_was_seen_is_refused(town: Town, tmp_path: Path) -> None:
    town.put("1")
    shutil.copytree(town.repo, tmp_path / "old")
    town.install()
    town.put("2")
    town.run("upgrade")
    shutil.rmtree(town.repo)
    (tmp_path / "old").rename(town.repo)
    error = town.refused("upgrade")
    assert (type(error), error.code) == (TrustError, "metadata-version")
