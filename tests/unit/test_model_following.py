"""What a host makes of a channel: a table."""

import pytest

from obelisk.model.following import Decision, Follower, GoBack, Refuse, Stay, Take, follow
from obelisk.model.release import Channel, Hosts, Listing

V1, V2, V3, V4 = ("1" * 64, "2" * 64, "3" * 64, "4" * 64)
IMAGES = {"1": V1, "2": V2, "3": V3, "4": V4}


def listing(version: str, withdrawn: str = "", hosts: Hosts = Hosts.STAY) -> Listing:
    return Listing(version, IMAGES[version], "2026-01-01T00:00:00+00:00", "somebody", withdrawn=withdrawn, hosts=hosts)


def channel(*listings: Listing) -> Channel:
    return Channel("shop", "stable", listings, max((each.version for each in listings), default=""))


def host(version: str, *failed: str, fallback: str = "") -> Follower:
    return Follower(version, IMAGES.get(version, "f" * 64), frozenset(failed), fallback)


def decide(given: Channel, follower: Follower, minimums: dict[str, str] | None = None, *, retry: bool = False) -> Decision:
    return follow(given, follower, lambda each: (minimums or {}).get(each.version, ""), retry=retry)


ONE, TWO, THREE, FOUR = (listing(version) for version in "1234")
BAD_TWO, BACK_TWO = listing("2", "it eats data"), listing("2", "it eats data", Hosts.BACK)


@pytest.mark.parametrize(
    ("given", "follower", "taken"),
    [
        (channel(ONE, TWO), host("1"), TWO),
        (channel(ONE, TWO, THREE), host("1"), THREE),
        (channel(TWO), host("1"), TWO),
        (channel(ONE, BAD_TWO, THREE), host("2"), THREE),
        (channel(ONE, BACK_TWO, THREE), host("2", fallback="1"), THREE),
        (channel(ONE, TWO, listing("3", "no")), host("1"), TWO),
        (channel(ONE, TWO), host("1", V3), TWO),
        (channel(TWO), host("0.5"), TWO),
    ],
    ids=[
        "newer",
        "newest",
        "retired here",
        "off a withdrawn one",
        "rather on than back",
        "not a withdrawn one",
        "another failed",
        "unlisted",
    ],
)
def test_the_newest_that_may_be_is_taken(given: Channel, follower: Follower, taken: Listing) -> None:
    decision = decide(given, follower)
    assert isinstance(decision, Take)
    assert decision.listing == taken


@pytest.mark.parametrize(
    ("given", "follower", "words"),
    [
        (channel(ONE, TWO), host("2"), "2 is the newest in stable"),
        (channel(ONE, TWO), Follower("2"), "2 is the newest in stable"),
        (channel(ONE, TWO), host("3"), "stable is at 2, which is older than the running 3"),
        (channel(), host("1"), "it has no releases"),
        (channel(listing("2", "no")), host("1"), "all its releases are withdrawn"),
    ],
    ids=["newest", "image unknown", "older", "empty", "all withdrawn"],
)
def test_where_there_is_nothing_newer_it_stays(given: Channel, follower: Follower, words: str) -> None:
    decision = decide(given, follower)
    assert isinstance(decision, Stay)
    assert words in decision.reason
    assert not decision.withdrawn


def test_a_withdrawn_release_stays_until_there_is_a_newer_one_or_is_left_as_its_owner_says() -> None:
    stay = decide(channel(ONE, BAD_TWO), host("2", fallback="1"))
    assert stay == Stay(
        "2 was withdrawn: it eats data; it stays until there is a newer one (stable is at 1, which is older than the running 2)",
        withdrawn=True,
    )
    back = decide(channel(ONE, BACK_TWO), host("2", fallback="1"))
    assert back == GoBack("1", "2 was withdrawn: it eats data")


def test_back_is_only_to_what_is_there_and_good() -> None:
    for follower, given in (
        (host("2"), channel(ONE, BACK_TWO)),
        (host("2", fallback="1"), channel(listing("1", "also bad"), BACK_TWO)),
    ):
        decision = decide(given, follower)
        assert isinstance(decision, Stay)
        assert decision.withdrawn
        assert "nothing to go back to" in decision.reason


def test_back_is_the_way_where_the_newer_one_cannot_be_taken() -> None:
    assert isinstance(decide(channel(ONE, BACK_TWO, THREE), host("2", V3, fallback="1")), GoBack)
    refused = decide(channel(ONE, BAD_TWO, THREE), host("2", V3, fallback="1"))
    assert isinstance(refused, Refuse)
    assert refused.reason.startswith("2 was withdrawn: it eats data; 3, the newest in stable, was tried")


def test_another_image_of_the_version_that_was_withdrawn_is_another_matter() -> None:
    decision = decide(channel(ONE, BACK_TWO), Follower("2", "9" * 64, fallback="1"))
    assert decision == Stay("stable is at 1, which is older than the running 2")


def test_what_failed_here_waits_for_a_newer_one_unless_it_is_named() -> None:
    refused = decide(channel(ONE, TWO), host("1", V2))
    assert isinstance(refused, Refuse)
    assert refused.code == "failed-before"
    assert "--retry 2" in refused.remedy
    assert isinstance(decide(channel(ONE, TWO), host("1", V2), retry=True), Take)
    assert decide(channel(ONE, TWO, THREE), host("1", V2)) == Take(THREE, "3 is the newest in stable")


def test_one_version_is_one_image() -> None:
    refused = decide(channel(ONE, TWO), Follower("2", "9" * 64))
    assert isinstance(refused, Refuse)
    assert refused.code == "same-version"


@pytest.mark.parametrize(
    ("minimums", "failed", "taken"),
    [
        ({"4": "1"}, (), "4"),
        ({"4": "2"}, (), "3"),
        ({"4": "3"}, (), "3"),
        ({"4": "3", "3": "2"}, (), "2"),
        ({"4": "2"}, (V3,), "2"),
        ({"4": "3", "3": "2", "2": "1"}, (), "2"),
    ],
)
def test_a_release_that_cannot_be_taken_from_here_is_reached_in_steps(
    minimums: dict[str, str], failed: tuple[str, ...], taken: str
) -> None:
    decision = decide(channel(ONE, TWO, THREE, FOUR), host("1", *failed), minimums)
    assert isinstance(decision, Take)
    assert decision.listing.version == taken
    if taken != "4":
        assert f"4 can be taken from {minimums['4']} on, and {taken} leads there" in decision.reason


def test_without_a_step_on_the_way_it_is_said_what_to_do() -> None:
    for given in (channel(ONE, FOUR), channel(ONE, listing("2", "no"), FOUR)):
        refused = decide(given, host("1"), {"4": "3"})
        assert isinstance(refused, Refuse)
        assert refused.code == "minimum-version"
        assert refused.reason == "4 can be taken from 3 on, this host runs 1"
        assert "version 3 first" in refused.remedy
