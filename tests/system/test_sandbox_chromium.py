"""Chromium, the hard case of desktop programs: sandboxes of its own inside of ours, and a compiler that runs what it writes."""

from collections.abc import Iterator

import pytest
from desktop import Desktop, opened, session, wayland
from sandboxes import example, places
from tool import Tool


@pytest.fixture(scope="module")
def desktop() -> Iterator[Desktop]:
    """A desktop session, apart from all others."""
    with places() as place, wayland(place) as desktop:
        yield desktop


@pytest.fixture(scope="module")
def chromium(applications: Tool) -> Tool:
    """The browser of the examples."""
    return example(applications, "chromium")


def test_it_shows_a_page_in_a_wayland_session(chromium: Tool, desktop: Desktop) -> None:
    with opened(chromium, desktop, "file:///srv/hello/index.html"):
        # The page is most of its window, which is most of the screen.
        desktop.shows(lambda picture: picture.white > 0.5)


def test_it_passes_its_tests_inside_its_sandbox(chromium: Tool, desktop: Desktop) -> None:
    with session(desktop):
        assert "proof: " in chromium.run("test", str(chromium.spec))
