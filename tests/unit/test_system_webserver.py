"""A directory is served as web servers serve one: no more than what was asked for, nothing beside it."""

import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from obelisk.system import webserver

_CONTENT = b"".join(number.to_bytes(4) for number in range(2560))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    top = tmp_path / "site"
    (top / "files/ab").mkdir(parents=True)
    (top / "files/ab" / ("ab" * 32)).write_bytes(_CONTENT)
    (top / "timestamp.json").write_text("{}")
    (tmp_path / "secret").write_text("not for you")
    (top / "link").symlink_to(tmp_path / "secret")
    return top


@pytest.fixture
def client(site: Path) -> Iterator[http.client.HTTPConnection]:
    with webserver.server(site, "127.0.0.1", 0, lambda _line: None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        yield connection
        connection.close()
        server.shutdown()


def _get(client: http.client.HTTPConnection, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    client.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = client.getresponse()
    return response, response.read()


FILE = f"/files/ab/{'ab' * 32}"


@pytest.mark.parametrize(
    ("wanted", "status", "there"),
    [
        ("bytes=0-0", 206, range(1)),
        ("bytes=10-19", 206, range(10, 20)),
        ("bytes=10230-", 206, range(10230, 10240)),
        ("bytes=-7", 206, range(10233, 10240)),
        ("bytes=10230-99999", 206, range(10230, 10240)),
        ("bytes=0-10239", 200, range(10240)),
        ("bytes=10240-", 416, range(0)),
        ("bytes=-0", 416, range(0)),
        ("bytes=5-4", 416, range(0)),
        ("bytes=0-1,5-6", 200, range(10240)),
        ("lines=1-2", 200, range(10240)),
    ],
)
def test_a_range_is_answered_with_that_range(client: http.client.HTTPConnection, wanted: str, status: int, there: range) -> None:
    response, found = _get(client, FILE, Range=wanted)
    assert (response.status, found) == (status, _CONTENT[there.start : there.stop])
    said = f"bytes {there.start}-{there.stop - 1}/10240" if status == 206 else "bytes */10240" if status == 416 else None
    assert response.headers["Content-Range"] == said


def test_who_has_it_is_not_sent_it_again_until_it_changes(client: http.client.HTTPConnection, site: Path) -> None:
    response, _ = _get(client, "/timestamp.json")
    assert response.headers["Cache-Control"] == "no-cache"
    tag = response.headers["ETag"]
    assert _get(client, "/timestamp.json", If_None_Match=tag)[0].status == 304
    (site / "timestamp.json").write_text('{"new": 1}')
    again, body = _get(client, "/timestamp.json", If_None_Match=tag)
    assert (again.status, body) == (200, b'{"new": 1}')


def test_what_is_named_by_its_content_may_be_kept_for_ever(client: http.client.HTTPConnection) -> None:
    assert "immutable" in _get(client, FILE)[0].headers["Cache-Control"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/files",
        "/files/",
        "/nothing",
        "/../secret",
        "/%2e%2e/secret",
        "/files/../../secret",
        "//etc/passwd",
        "/link",
        "/a%00b",
        "/timestamp.json/x",
    ],
)
def test_nothing_else_is_served(client: http.client.HTTPConnection, path: str) -> None:
    response, body = _get(client, path)
    assert (response.status, body) == (404, b"")


def test_as_a_program_it_serves_the_connection_that_it_is_given(site: Path) -> None:
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-I", webserver.__file__, str(site)]
    with theirs, subprocess.Popen(argv, stdin=theirs.fileno()) as process, ours:
        theirs.close()
        ours.settimeout(10)
        client = http.client.HTTPConnection("site")
        client.sock = ours
        assert _get(client, "/timestamp.json")[1] == b"{}"
        assert _get(client, FILE, Range="bytes=1-2")[1] == _CONTENT[1:3]
        client.close()
        ours.close()
        assert process.wait(10) == 0
