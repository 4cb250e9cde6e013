"""Decisions of a publisher: what retiring keeps, which edges are made, and what a channel says afterwards."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import sha256

from obelisk.errors import InputError
from obelisk.model import publication
from obelisk.model import release as documents
from obelisk.model.publication import Act, Contents, reaches
from obelisk.model.release import EdgeFile, File, Hosts, Release

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NOTHING = Contents(documents.Testers(()))


def _file(text: str) -> File:
    return File(sha256(text.encode()), len(text))


def _release(version: str, minimum: str = "", name: str = "shop") -> Release:
    image = sha256(f"{name} {version}".encode())
    return Release(image, name, version, sha256(b"root"), 4096, minimum, _file("manifest"), (_file("proof"),), None, _file("index"))


def _act(day: int = 0, why: str = "it is bad") -> Act:
    return Act("tess", BEGAN + day * DAY, why)


def _channel(*releases: tuple[int, int], channel: str = "stable") -> Contents:
    """A channel with these versions, a day apart, and the minimum of each (0: any)."""
    contents = NOTHING
    for day, (version, minimum) in enumerate(releases):
        contents = publication.listed(contents, _release(str(version), str(minimum) if minimum else ""), channel, _act(day))
    return contents


def _left(contents: Contents, channel: str = "stable") -> list[str]:
    return [listing.version for listing in contents.channel("shop", channel).listings]


@pytest.mark.parametrize(
    ("releases", "keep", "left"),
    [
        ([(1, 0), (2, 0), (3, 0), (4, 0)], 2, ["3", "4"]),
        ([(1, 0), (2, 0)], 5, ["1", "2"]),
        ([(1, 0), (2, 0), (3, 2), (4, 3)], 1, ["2", "3", "4"]),  # from 1 by way of 2 and 3
        ([(1, 0), (2, 0), (3, 0), (4, 2)], 1, ["2", "4"]),  # either of 2 and 3 would do
        ([(1, 0), (2, 0), (3, 0), (4, 3)], 1, ["3", "4"]),
        ([(5, 0), (6, 5), (7, 6), (8, 0)], 1, ["8"]),  # 8 takes any
        ([(5, 3), (6, 3), (7, 6)], 1, ["6", "7"]),
    ],
)
def test_retiring_keeps_the_newest_and_the_ways_to_them(releases: list[tuple[int, int]], keep: int, left: list[str]) -> None:
    done = publication.retire(_channel(*releases), keep=keep, before=BEGAN + 99 * DAY)
    assert _left(done.contents) == left
    assert sorted(each.version for each in done.gone) == sorted({str(version) for version, _ in releases} - set(left))


def test_what_is_younger_stays() -> None:
    contents = _channel((1, 0), (2, 0), (3, 0), (4, 0))
    assert _left(publication.retire(contents, keep=1, before=BEGAN + DAY).contents) == ["3", "4"]


def test_what_another_channel_has_is_not_gone() -> None:
    contents = _channel((1, 0), (2, 0), (3, 0), channel="testing")
    contents = publication.listed(contents, _release("1"), "stable", _act(4), source="testing")
    done = publication.retire(contents, keep=1, before=BEGAN + 99 * DAY)
    assert (_left(done.contents, "testing"), _left(done.contents)) == (["3"], ["1"])
    assert [each.version for each in done.gone] == ["2"]


def test_a_withdrawn_release_goes_and_is_remembered_until_there_is_a_newer_one() -> None:
    contents = _channel((1, 0), (2, 0), (3, 0))
    contents = publication.withdraw(contents, "3", _act(5), hosts=Hosts.BACK).contents
    done = publication.retire(contents, keep=1, before=BEGAN + 99 * DAY)
    assert _left(done.contents) == ["2", "3"]
    assert {each.version for each in done.gone} == {"1", "3"}
    newer = publication.listed(done.contents, _release("4"), "stable", _act(9))
    assert _left(publication.retire(newer, keep=1, before=BEGAN + 99 * DAY).contents) == ["4"]


def test_a_version_that_was_retired_does_not_come_again() -> None:
    contents = publication.retire(_channel((1, 0), (2, 0), (3, 0)), keep=1, before=BEGAN + 99 * DAY).contents
    gone = publication.withdraw(contents, "3", _act(5), hosts=Hosts.STAY).contents
    assert gone.channel("shop", "stable").current is None
    assert gone.channel("shop", "stable").highest == "3"


@st.composite
def _histories(draw: st.DrawFn) -> Contents:
    count = draw(st.integers(1, 9))
    contents = NOTHING
    for version in range(1, count + 1):
        current = contents.channel("shop", "stable").current
        # What `admit` lets in: hosts of the current release can take it.
        least = draw(st.integers(0, int(current.version) if current else 0))
        contents = publication.listed(contents, _release(str(version), str(least) if least else ""), "stable", _act(version))
        if draw(st.booleans()) and draw(st.booleans()):
            contents = publication.withdraw(contents, str(version), _act(version), hosts=Hosts.STAY).contents
    return contents


@given(_histories(), st.integers(1, 4), st.integers(0, 10))
def test_whoever_could_reach_the_current_release_still_can(contents: Contents, keep: int, days: int) -> None:
    before, after = contents, publication.retire(contents, keep=keep, before=BEGAN + days * DAY).contents
    old, new = before.channel("shop", "stable"), after.channel("shop", "stable")
    assert new.current == old.current
    assert new.highest == old.highest
    for version in range(11):
        assert reaches(after, new, str(version)) == reaches(before, old, str(version))
    live = [each for each in old.listings if not each.withdrawn]
    assert set(live[-keep:]) <= set(new.listings)
    assert {each.image for each in after.releases} == {each.image for each in new.listings if not each.withdrawn}
    assert publication.retire(after, keep=keep, before=BEGAN + days * DAY).contents == after


@pytest.mark.parametrize(
    ("wish", "versions"),
    [
        ("previous", ["3", "2"]),
        ("1", ["3"]),
        ("2", ["3", "1"]),
        ("none", []),
        ("", []),
        ("@1", ["1"]),
        ("@1, previous", ["1", "3", "2"]),
        ("99", ["3", "1"]),
    ],
)
def test_edges_come_from_what_hosts_run(wish: str, versions: list[str]) -> None:
    contents = _channel((1, 0), (3, 0))
    contents = publication.listed(contents, _release("2"), "late", _act(3))
    assert [each.version for each in publication.edges_from(contents, _release("4"), "stable", wish)] == versions


def test_an_edge_that_is_there_is_not_made_again() -> None:
    contents = _channel((1, 0))
    new = publication.with_edges(_release("2"), [EdgeFile(_release("1").image, "1", _file("edge"))])
    assert publication.edges_from(contents, new, "stable", "previous,1,@1") == ()


def test_an_edge_leads_from_what_was_withdrawn_too_for_hosts_may_run_it() -> None:
    contents = publication.withdraw(_channel((1, 0), (2, 0)), "2", _act(3), hosts=Hosts.STAY).contents
    assert [each.version for each in publication.edges_from(contents, _release("3"), "stable", "previous")] == ["1", "2"]


def test_an_edge_from_nowhere_is_refused() -> None:
    with pytest.raises(InputError):
        publication.edges_from(_channel((1, 0)), _release("2"), "stable", "@9")


def test_a_release_is_found_by_version_or_channel_and_by_name_where_there_are_several() -> None:
    contents = _channel((1, 0), (2, 0))
    assert contents.find("stable").version == "2"
    contents = publication.listed(contents, _release("1", name="desk"), "stable", _act(4))
    assert contents.find("1", "desk").name == "desk"
    for unclear in ("1", "9", "stable"):
        with pytest.raises(InputError):
            contents.find(unclear)


def test_documents_say_what_they_were_made_from() -> None:
    contents = publication.withdraw(_channel((1, 0), (2, 1)), "2", _act(3), hosts=Hosts.BACK).contents
    said = contents.documents()
    channel = contents.channels[0]
    assert type(channel).parse(said[channel.target]) == channel
    assert {Release.parse(said[each.target]) for each in contents.releases} == set(contents.releases)
