"""Serves a directory of files that rarely change by HTTP, for trying things out: whole files and single ranges, on several connections.

Names that begin with a dot are not served, nor is anything outside of the directory, nor listings. As a program (`python3 -m
obelisk.system.serving DIRECTORY`) it serves the one connection that its standard input is: so a machine without a network reaches a
directory; see `obelisk.system.qemu`.

Source: RFC 9110, sections 13 (conditional requests) and 14 (ranges); RFC 8246 (immutable).
"""

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from obelisk.errors import StateError

_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
_IDLE_S = 60

OnRequest = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Site:
    """A directory, and which of its files (by path below it) never change under their name."""

    root: Path
    immutable: Callable[[str], bool]
    on_request: OnRequest


class Server(ThreadingHTTPServer):
    """Serves one site; a thread for each connection."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], site: Site) -> None:
        super().__init__(address, _Handler)
        self.site = site

    @property
    def port(self) -> int:
        """The port, also when any free one was asked for."""
        return self.server_address[1]

    def handle_error(self, _request: object, _client_address: object) -> None:
        """A client that went away in the middle is nothing to tell about."""


@contextmanager
def listening(site: Site, *, bind: str, port: int) -> Iterator[Server]:
    """A server that listens; call `serve_forever`. Port 0 is any that is free.

    Raises:
        StateError: the address cannot be had.
    """
    try:
        server = Server((bind, port), site)
    except OSError as error:
        raise StateError(
            f"{bind} port {port} cannot be had: {error.strerror or error}", code="port-taken", hint="name another by --port or --bind"
        ) from error
    with server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: Server

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        self.server.site.on_request(f"{self.address_string()} {format % args}")

    def version_string(self) -> str:
        return "obelisk"

    def _answer(self, *, body: bool) -> None:
        found = self._find()
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        name, file = found
        with file:
            status = os.fstat(file.fileno())
            tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
            headers = {"ETag": tag, "Last-Modified": formatdate(status.st_mtime, usegmt=True), "Accept-Ranges": "bytes"}
            headers["Cache-Control"] = "public, max-age=31536000, immutable" if self.server.site.immutable(name) else "no-cache"
            if tag in (self.headers.get("If-None-Match") or "") or self.headers.get("If-None-Match") == "*":
                self._head(HTTPStatus.NOT_MODIFIED, headers)
                return
            wanted = self.headers.get("Range") if self.headers.get("If-Range", tag) == tag else None
            part = _range(wanted, status.st_size)
            if part is None:
                self._head(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{status.st_size}", "Content-Length": "0"}
                )
                return
            headers["Content-Length"] = str(len(part))
            headers["Content-Type"] = "application/json" if name.endswith(".json") else "application/octet-stream"
            if len(part) < status.st_size:
                headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{status.st_size}"
                self._head(HTTPStatus.PARTIAL_CONTENT, headers)
            else:
                self._head(HTTPStatus.OK, headers)
            if body and part:
                self.wfile.flush()
                self.connection.sendfile(file, part.start, len(part))

    def _find(self) -> tuple[str, BinaryIO] | None:
        path = PurePosixPath(unquote(urlsplit(self.path).path).lstrip("/"))
        if any(part.startswith(".") or "\0" in part for part in path.parts):
            return None
        place = self.server.site.root / path
        try:
            if place.resolve().is_relative_to(self.server.site.root.resolve()) and place.is_file():
                return str(path), place.open("rb")
        except OSError:
            pass  # gone, or not ours to read: the same to whoever asks
        return None

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _range(wanted: str | None, size: int) -> range | None:
    """The bytes to send; None when there are none such. What is no single range of bytes means the whole file."""
    match = _RANGE.fullmatch(wanted.strip()) if wanted else None
    if match is None or match[0] == "bytes=-":
        return range(size)
    if not match[1]:
        last = min(int(match[2]), size)
        return range(size - last, size) if last else None
    start = int(match[1])
    stop = min(int(match[2]) + 1, size) if match[2] else size
    return range(start, stop) if start < stop else None


class _Single(Server):
    """A server that listens nowhere: it has the one connection already."""

    def __init__(self, site: Site) -> None:
        self.site = site


def _serve_input(directory: Path) -> None:
    single = _Single(Site(directory, lambda _name: False, lambda _line: None))
    with socket.socket(fileno=os.dup(0)) as connection:
        _Handler(connection, ("", 0), single)


if __name__ == "__main__":
    _serve_input(Path(sys.argv[1]))
