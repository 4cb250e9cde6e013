"""The order of versions; its examples are those of UAPI.10 and of systemd's own tests."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obelisk.model.version import compare

ASCENDING = ("~", "", "~1", "1~rc1", "1", "1-0", "1^post", "1.0", "1a", "2", "2.1", "2.9", "2.10", "10", "2026.1", "2026.11")

VERSIONS = st.text(alphabet="0123456789abAB.-~^_+", max_size=8)


@pytest.mark.parametrize(("older", "newer"), [pair for pair in pairwise(ASCENDING) if pair not in {("~", ""), ("", "~1"), ("1a", "2")}])
def test_versions_are_ordered_as_the_specification_has_it(older: str, newer: str) -> None:
    assert compare(older, newer) < 0 < compare(newer, older)


@pytest.mark.parametrize(("one", "other"), [("1", "01"), ("1_1", "11"), ("a", "a"), ("1.0", "1.00")])
def test_what_means_the_same_is_the_same(one: str, other: str) -> None:
    assert compare(one, other) == 0


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_is_one(one: str, other: str, third: str) -> None:
    assert compare(one, one) == 0
    assert (compare(one, other) > 0) == (compare(other, one) < 0)
    if compare(one, other) <= 0 and compare(other, third) <= 0:
        assert compare(one, third) <= 0
