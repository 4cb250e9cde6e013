"""Applications in a repository: released like machines, growing powers only when somebody says why."""

from dataclasses import replace
from pathlib import Path

import pytest
import repository_samples as samples
from release_samples import slot
from test_release_commands import Desk, desk

from obelisk.errors import InputError, StateError, TrustError
from obelisk.events import silent
from obelisk.model.application import Application
from obelisk.model.image import PartKind
from obelisk.model.policy import Connect, Limits, Listen, policy
from obelisk.model.proof import FIXED
from obelisk.model.publication import Terms
from obelisk.model.release import Hosts, Listing
from obelisk.release.checking import verify
from obelisk.release.client import edge, hashtree
from obelisk.release.delivery import Blocks
from obelisk.release.publisher import Publisher
from obelisk.release.publishing import Wanted, promote, release, withdraw
from obelisk.release.repository import Repository
from obelisk.store import Store

__all__ = ["desk"]
CLOSED = Application(("/usr/bin/shop",))
OPEN = replace(CLOSED, policy=policy([Listen(8080)]))
WIDE = replace(CLOSED, policy=policy([Listen(8080), Connect("0.0.0.0/0", 443)]), credentials=("password",))


@pytest.fixture
def who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)
    return replace(samples.publisher(tmp_path, samples.keyring(tmp_path)), delivery=Blocks())


def put(who: Publisher, version: str, app: Application, *numbers: int, why: str = "", channel: str = "testing") -> None:
    """Release a version of an application, of these blocks."""
    place = who.shelf.root.parent
    image = samples.application(place, version, app, *(numbers or (1, 2, 3)))
    proofs = (samples.proof_of(image, place / "tester"),)
    release(who, Wanted(image, proofs, channel, Terms(), approval=why), samples.founding())


def current(who: Publisher, channel: str = "testing") -> Listing:
    found = Repository.open(who.shelf).contents.channel("shop", channel).current
    assert found is not None
    return found


def test_a_release_that_may_do_more_than_the_one_before_is_refused_in_words_until_somebody_says_why(who: Publisher) -> None:
    put(who, "1", OPEN)
    with pytest.raises(StateError) as error:
        put(who, "2", WIDE)
    assert error.value.code == "release-growth"
    assert "more than 1 in testing" in error.value.message
    assert "opens connections to any address, port 443" in error.value.message
    assert "reads the credential password" in error.value.message
    assert "8080" not in error.value.message
    assert current(who).version == "1"
    put(who, "2", WIDE, why="it has to fetch prices")
    assert current(who).growth == ("opens connections to any address, port 443", "reads the credential password")
    assert current(who).approved == "it has to fetch prices"
    put(who, "3", CLOSED, why="")  # less needs no word
    assert (current(who).version, current(who).growth, current(who).approved) == ("3", (), "")
    assert not [finding for finding in verify(who.shelf, who.delivery, samples.NOW, silent) if finding.kind != "superfluous"]


def test_a_higher_limit_is_growth_as_well(who: Publisher) -> None:
    put(who, "1", CLOSED)
    with pytest.raises(StateError, match="processes and threads: 9999 where it was"):
        put(who, "2", replace(CLOSED, policy=policy([], Limits(processes=9999))))


def test_what_was_approved_and_did_not_grow_is_not_recorded(who: Publisher) -> None:
    put(who, "1", OPEN)
    put(who, "2", OPEN, why="just in case")
    assert (current(who).growth, current(who).approved) == ((), "")


def test_promoting_compares_with_the_channel_that_it_goes_to(who: Publisher) -> None:
    put(who, "1", CLOSED)
    promote(who, "1", "testing", "stable")
    put(who, "2", OPEN, why="it is asked for")
    with pytest.raises(StateError, match="more than 1 in stable") as error:
        promote(who, "2", "testing", "stable")
    assert error.value.code == "release-growth"
    promote(who, "2", "testing", "stable", approval="and held for a week")
    assert (current(who, "stable").approved, current(who, "stable").source) == ("and held for a week", "testing")


def test_a_channel_of_which_all_is_withdrawn_is_compared_with_nothing(who: Publisher) -> None:
    put(who, "1", OPEN)
    withdraw(who, "1", hosts=Hosts.STAY)
    with pytest.raises(StateError, match="more than nothing, which is all that testing has left"):
        put(who, "2", OPEN)


def test_a_name_is_a_machines_or_an_applications(who: Publisher) -> None:
    put(who, "1", CLOSED)
    place = who.shelf.root.parent
    machine = samples.restorable(place, "2", 1, 2)
    with pytest.raises(StateError, match="is a machine, and shop 1 of this repository is an application") as error:
        samples.released(who, place, machine)
    assert error.value.code == "release-kind"


def test_powers_of_a_machine_cannot_be_approved(who: Publisher) -> None:
    place = who.shelf.root.parent
    machine = samples.restorable(place, "1", 1, 2)
    wanted = Wanted(machine, (samples.proof_of(machine, place / "tester"),), "stable", Terms(), approval="why not")
    with pytest.raises(InputError) as error:
        release(who, wanted, samples.founding())
    assert error.value.code == "growth-machine"


def test_a_proof_of_a_machines_scenarios_is_none_of_an_application(who: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FIXED_FOR_APPLICATION", FIXED)
    with pytest.raises(TrustError, match="no proof that counts"):
        put(who, "1", CLOSED)


def test_an_edge_leads_from_one_version_to_the_next_without_a_kernel_image(who: Publisher, tmp_path: Path) -> None:
    put(who, "1", CLOSED, *range(1, 40))
    put(who, "2", CLOSED, *range(1, 39), 99)
    there = Repository.open(who.shelf)
    old, new = (there.contents.find(version) for version in "12")
    (way,) = new.edges
    (tmp_path / "slot").mkdir()
    root, tree = slot(tmp_path / "slot", 39)
    before = samples.application(tmp_path / "again", "1", CLOSED, *range(1, 40))
    parsed = hashtree.parse(before.part_path(PartKind.VERITY).read_bytes(), old.root_hash)
    given = edge.Old(before.part_path(PartKind.ROOT), parsed, None)
    edge.apply(there.find(way.file), given, edge.New(root, tree, new.root_hash, new.root_bytes, None), on_bytes=lambda _count: None)
    after = samples.application(tmp_path / "after", "2", CLOSED, *range(1, 39), 99)
    assert root.read_bytes() == after.part_path(PartKind.ROOT).read_bytes()


def test_from_the_command_line_growth_is_approved_shown_and_told_apart(desk: Desk) -> None:
    def built(version: str, app: Application) -> str:
        image = samples.application(desk.place, version, app, 1, 2)
        with Store.open(desk.place / "store") as store:
            store.add_image(image.manifest, {part.file: image.directory / part.file for part in image.manifest.parts}, {})
            store.add_proof(image.id, samples.proof_of(image, desk.place / "tester"))
        return image.id

    repo = str(desk.place / "repo")
    desk.run("keys", "init", *desk.stick)
    said = desk.run("release", built("1", CLOSED), "--to", repo, "--channel", "stable", *desk.stick)
    assert "give machines that install from it its root" in said
    wide = built("2", OPEN)
    assert "accepts connections at TCP port 8080" in desk.run("release", wide, "--to", repo, "--channel", "stable", status=5)
    desk.run("release", wide, "--to", repo, "--channel", "stable", "--approve-growth", "it serves pages")
    listed = desk.run("repo", "list")
    assert "    may also: accepts connections at TCP port 8080 of this machine\n    approved: it serves pages\n" in listed
    told = desk.run("diff", f"{repo}@1", f"{repo}@stable", status=1)
    assert "power     accepts connections at TCP port 8080 of this machine: - -> may" in told
    assert "approved  in stable, by tess: it serves pages" in told
    refused = desk.run("repo", "sysupdate", repo, "--channel", "stable", status=2)
    assert "shop is an application, and systemd-sysupdate brings machines their next image" in refused
