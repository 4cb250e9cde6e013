"""The examples of applications work under their policies, and those are the fewest grants with which they do."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from desktop import wayland
from sandboxes import WITH_TUNNEL, example, places
from tool import ROOT, Tool

_BY_ITSELF = {"chromium"}  # tests/browser has it
EXAMPLES = sorted({path.name for path in (ROOT / "examples/apps").iterdir()} - _BY_ITSELF)


@pytest.fixture(scope="module", autouse=True)
def own_places() -> Iterator[None]:
    """What runs here lies apart, in a desktop session of its own."""
    with places() as place, wayland(place) as desktop:
        os.environ |= desktop.variables
        yield


def test_there_are_examples_of_each_kind() -> None:
    assert {"editor", "git", "nginx", "node", "notes", "postgres", "redis"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_passes_its_tests_inside_its_sandbox(applications: Tool, name: str) -> None:
    app = replace(example(applications, name), prefix=WITH_TUNNEL)
    assert "proof: " in app.run("test", str(app.spec))


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_has_the_fewest_grants_with_which_its_tests_pass(applications: Tool, name: str) -> None:
    app = replace(example(applications, name), prefix=WITH_TUNNEL)
    learnt = json.loads(app.run("app", "learn", str(app.spec), "--json").splitlines()[-1])["policy"]
    asked = json.loads(app.run("app", "show", str(app.spec), "--json").splitlines()[-1])["asked"]
    assert learnt == asked


@contextmanager
def running(app: Tool) -> Iterator[None]:
    """The application as a server."""
    process = replace(app, prefix=WITH_TUNNEL).start("app", "run", str(app.spec))
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        process.kill()


def fetched(url: str, data: bytes | None = None) -> str:
    """What a server answers, once it does."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, data, timeout=5) as answer:  # noqa: S310 - our own address
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_server_is_reached_at_its_port_and_keeps_its_data(applications: Tool) -> None:
    app = example(applications, "notes")
    with running(app):
        assert fetched("http://127.0.0.1:8000/", b"the first") == "kept\n"
    with running(app):
        assert fetched("http://127.0.0.1:8000/") == "the first\n"
    app = example(applications, "nginx")
    with running(app):
        assert "Hello from a sandbox" in fetched("http://127.0.0.1:8080/")
