"""Ways between versions of state: each decision once by name, and what holds for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.model.state import Back, Change, Fits, Irreversible, Migration, Stuck, at_boot, way_back, way_up

TWO, THREE, ONE_WAY = Migration(2, reversible=True), Migration(3, reversible=True), Migration(3, reversible=False)


@pytest.mark.parametrize(
    ("held", "own", "migrations", "kept", "outcome"),
    [
        (1, 1, (), (), Fits()),
        (2, 2, (TWO,), ((1, 1),), Fits()),
        (1, 2, (TWO,), (), Change(None, (2,))),
        (1, 3, (TWO, ONE_WAY), (), Change(None, (2, 3))),
        (2, 3, (TWO, ONE_WAY), ((9, 3),), Change(None, (3,))),
        (2, 1, (), ((4, 1), (5, 1), (6, 2)), Change(5, ())),
        (3, 2, (TWO,), ((4, 2), (5, 1)), Change(5, (2,))),
        (3, 2, (), ((4, 2), (5, 1)), Change(4, ())),
    ],
    ids=[
        "no versions",
        "the same",
        "one step",
        "two steps",
        "up from the present state, not to a snapshot",
        "the newest snapshot that fits",
        "an older one by a migration",
        "not one without a way",
    ],
)
def test_an_image_makes_state_of_its_version(
    held: int, own: int, migrations: tuple[Migration, ...], kept: tuple[tuple[int, int], ...], outcome: object
) -> None:
    assert at_boot(held, own, migrations, kept) == outcome


@pytest.mark.parametrize(
    ("held", "own", "migrations", "kept"), [(1, 3, (ONE_WAY,), ()), (2, 1, (), ()), (3, 1, (), ((1, 2),))], ids=["gap", "none", "too new"]
)
def test_an_image_without_a_way_says_so(held: int, own: int, migrations: tuple[Migration, ...], kept: tuple[tuple[int, int], ...]) -> None:
    outcome = at_boot(held, own, migrations, kept)
    assert isinstance(outcome, Stuck)
    assert f"version {held}" in outcome.reason


@pytest.mark.parametrize(
    ("held", "wanted", "migrations", "outcome"),
    [
        (2, 2, (TWO,), Back(())),
        (1, 2, (), Back(())),
        (2, 1, (TWO,), Back((2,))),
        (3, 1, (TWO, THREE), Back((3, 2))),
        (3, 2, (TWO, ONE_WAY), Irreversible(3)),
        (3, 1, (TWO, ONE_WAY), Irreversible(3)),
        (3, 1, (THREE,), Irreversible(2)),
    ],
    ids=["the same", "the other migrates itself", "one", "the newest first", "one way", "one way on the way", "unknown"],
)
def test_state_goes_back_by_known_ways_only(held: int, wanted: int, migrations: tuple[Migration, ...], outcome: object) -> None:
    assert way_back(held, wanted, migrations) == outcome


VERSIONS = st.integers(1, 6)
MIGRATIONS = st.sets(st.integers(2, 6)).map(lambda tos: tuple(Migration(to, reversible=True) for to in sorted(tos)))


@given(VERSIONS, VERSIONS, MIGRATIONS, st.lists(st.tuples(st.integers(1, 99), VERSIONS), unique_by=lambda each: each[0]))
def test_whatever_is_done_leads_to_the_images_own_version_by_its_own_migrations(
    held: int, own: int, migrations: tuple[Migration, ...], kept: list[tuple[int, int]]
) -> None:
    outcome = at_boot(held, own, migrations, kept)
    if isinstance(outcome, Change):
        start = held if outcome.source is None else dict(kept)[outcome.source]
        assert list(outcome.steps) == list(range(start + 1, own + 1))
        assert {each.to for each in migrations} >= set(outcome.steps)
        # Newer state is never migrated, and older state never given up for a snapshot.
        assert (outcome.source is None) is (held < own)
    assert isinstance(outcome, Fits) is (held == own)


@given(VERSIONS, VERSIONS, MIGRATIONS)
def test_what_went_up_goes_back_the_same_way(low: int, high: int, migrations: tuple[Migration, ...]) -> None:
    up = way_up(low, high, migrations)
    back = way_back(high, low, migrations)
    if up:
        assert back == Back(tuple(reversed(up)))
    elif low < high:
        assert isinstance(back, Irreversible)
