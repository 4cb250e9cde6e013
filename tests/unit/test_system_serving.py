"""The local server: ranges, conditions, caches, and nothing that is not meant to be seen."""

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from obelisk.errors import StateError
from obelisk.system import serving
from obelisk.system.serving import Server, Site, listening

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "site" / "files").mkdir(parents=True)
    (tmp_path / "site" / "files" / "ab").write_bytes(CONTENT)
    (tmp_path / "site" / "empty").write_bytes(b"")
    (tmp_path / "site" / "timestamp.json").write_bytes(b"{}")
    (tmp_path / "site" / ".lock").write_bytes(b"hidden")
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "site" / "link").symlink_to(tmp_path / "secret")
    site = Site(tmp_path / "site", lambda name: name.startswith("files/"), lambda _line: None)
    with listening(site, bind="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=100-199", 206, slice(100, 200)),
        ("bytes=1000-", 206, slice(1000, 1024)),
        ("bytes=-24", 206, slice(1000, 1024)),
        ("bytes=1000-99999", 206, slice(1000, 1024)),
        ("bytes=0-1023", 200, slice(0, 1024)),
        ("bytes=-99999", 200, slice(0, 1024)),
        ("bytes=1024-", 416, slice(0, 0)),
        ("bytes=9-3", 416, slice(0, 0)),
        ("bytes=-0", 416, slice(0, 0)),
        ("bytes=0-1,5-6", 200, slice(0, 1024)),
        ("lines=1-2", 200, slice(0, 1024)),
    ],
)
def test_a_range_is_what_was_asked_for(server: Server, wanted: str, status: int, part: slice) -> None:
    answer, body = _get(server, "/files/ab", Range=wanted)
    assert (answer.status, body) == (status, CONTENT[part])
    if status == 206:
        start, stop, _ = part.indices(1024)
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/1024"


def test_what_is_known_already_is_not_sent_again(server: Server) -> None:
    answer, _ = _get(server, "/timestamp.json")
    assert (answer.headers["Cache-Control"], answer.headers["Content-Type"]) == ("no-cache", "application/json")
    again, body = _get(server, "/timestamp.json", If_None_Match=answer.headers["ETag"])
    assert (again.status, body) == (304, b"")
    (server.site.root / "timestamp.json").write_bytes(b"{ }")
    changed, body = _get(server, "/timestamp.json", If_None_Match=answer.headers["ETag"])
    assert (changed.status, body) == (200, b"{ }")
    assert "immutable" in _get(server, "/files/ab")[0].headers["Cache-Control"]


def test_a_range_of_what_has_changed_is_the_whole(server: Server) -> None:
    answer, body = _get(server, "/files/ab", Range="bytes=0-3", If_Range='"other"')
    assert (answer.status, body) == (200, CONTENT)


def test_one_connection_serves_many_requests(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for path, size in (("/files/ab", 1024), ("/empty", 0), ("/none", None), ("/files/ab", 1024)):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert (answer.status, len(body)) == (200, size) if size is not None else answer.status == 404
    connection.request("HEAD", "/files/ab")
    assert connection.getresponse().headers["Content-Length"] == "1024"
    connection.close()


@pytest.mark.parametrize(
    "path", ["/", "/files", "/files/", "/none", "/.lock", "/../secret", "/files/../../secret", "/%2e%2e/secret", "/link", "/a%00b"]
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    assert _get(server, path)[0].status == 404


def test_a_port_that_is_taken_is_named(server: Server) -> None:
    with pytest.raises(StateError) as refused, listening(server.site, bind="127.0.0.1", port=server.port):
        pass
    assert refused.value.code == "port-taken"


def test_as_a_program_it_serves_the_connection_that_it_is_given(server: Server) -> None:
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-m", "obelisk.system.serving", str(server.site.root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(serving.__file__).parents[2])}
    with ours, subprocess.Popen(argv, stdin=theirs.fileno(), env=environment) as process:
        theirs.close()
        ours.settimeout(30)
        client = http.client.HTTPConnection("site")
        client.sock = ours
        for path, wanted in (("/files/ab", CONTENT), ("/timestamp.json", b"{}")):
            client.request("GET", path)
            assert client.getresponse().read() == wanted
        client.close()
        ours.close()
        assert process.wait(30) == 0
