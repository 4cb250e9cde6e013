"""Serves the files of a directory by HTTP/1.1: whole or a range of bytes, and not again to who has them.

For trying a repository out. What stays as it is for ever says so; a web server for many hosts is configured likewise (docs/operations.md).
As a program (`python3 -I webserver.py DIRECTORY`) it serves the one connection that its standard input is: so a virtual machine without a
network reaches a directory; see `obelisk.system.qemu`.

This module needs the standard library alone: it also runs by the Python of the tools tree.
"""

import os
import re
import socket
import sys
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_FOREVER = re.compile(r"(?:files/|targets/.*/?[0-9a-f]{64}\.|metadata/[0-9]+\.)")
"""What never changes under its name."""
_CHUNK_BYTES = 1 << 20
_IDLE_S = 60


class _Handler(BaseHTTPRequestHandler):
    """One connection. `top` is the directory, `told` is told of each answer, in a line."""

    protocol_version = "HTTP/1.1"
    server_version = "obelisk"
    sys_version = ""
    timeout = _IDLE_S
    top: Path
    told: Callable[[str], None]

    def do_GET(self) -> None:
        """Answer with the file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the file."""
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        """Pass on what was asked and answered."""
        self.told(format % args)

    def _answer(self, *, body: bool) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        file = _open(self.top, name)
        if file is None:
            self._empty(HTTPStatus.NOT_FOUND)
            return
        with file:
            found = os.fstat(file.fileno())
            tag = f'"{found.st_size:x}-{found.st_mtime_ns:x}"'
            if tag in re.findall(r'"[^"]*"', self.headers.get("If-None-Match", "")):
                self._empty(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
                return
            wanted = _wanted(self.headers.get("Range", ""), found.st_size)
            if wanted is None:
                self._empty(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{found.st_size}"})
                return
            whole = "Range" not in self.headers or wanted == range(found.st_size)
            self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
            if not whole:
                self.send_header("Content-Range", f"bytes {wanted.start}-{wanted.stop - 1}/{found.st_size}")
            self.send_header("Content-Length", str(len(wanted)))
            self.send_header("Content-Type", "application/json" if name.endswith(".json") else "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", formatdate(found.st_mtime, usegmt=True))
            self.send_header("Cache-Control", "public, max-age=31536000, immutable" if _FOREVER.match(name) else "no-cache")
            self.end_headers()
            if body:
                at = wanted.start
                while at < wanted.stop:
                    piece = os.pread(file.fileno(), min(_CHUNK_BYTES, wanted.stop - at), at)
                    if not piece:  # somebody cuts it meanwhile: the client is to notice
                        self.close_connection = True
                        return
                    self.wfile.write(piece)
                    at += len(piece)

    def _empty(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", "0")
        self.end_headers()


def _open(top: Path, name: str) -> FileIO | None:
    """The file of that name; None where there is none below `top`."""
    if any(piece in {"", ".", ".."} for piece in name.split("/")) or "\0" in name:
        return None
    try:
        path = (top / name).resolve(strict=True)
        if not path.is_relative_to(top) or not path.is_file():
            return None
        return FileIO(path)
    except OSError:
        return None


def _wanted(header: str, size: int) -> range | None:
    """The bytes that a Range header asks for, all of them where it asks for none; None when there are no such bytes.

    Source: RFC 9110, section 14. Several ranges in one request are answered with the whole file, as it allows.
    """
    found = _RANGE.fullmatch(header.replace(" ", ""))
    if found is None or (found[1], found[2]) == ("", ""):
        return range(size)
    if not found[1]:
        return range(max(size - int(found[2]), 0), size) if int(found[2]) else None
    start, stop = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    return range(start, stop) if start < stop else None


def server(directory: Path, bind: str, port: int, told: Callable[[str], None]) -> ThreadingHTTPServer:
    """A server that serves `directory` once `serve_forever` runs; port 0: any that is free. `told` is told of each answer.

    Raises:
        OSError: the address cannot be had.
    """
    bound = type("Handler", (_Handler,), {"top": directory.resolve(), "told": staticmethod(told)})
    made = ThreadingHTTPServer((bind, port), bound)
    made.daemon_threads = True
    return made


def _serve_input(directory: Path) -> None:
    """Serve the connection that standard input is, to its end."""
    bound = type("Handler", (_Handler,), {"top": directory.resolve(), "told": staticmethod(lambda _line: None)})
    with socket.socket(fileno=os.dup(0)) as connection:
        bound(connection, ("", 0), None)


if __name__ == "__main__":
    _serve_input(Path(sys.argv[1]))
