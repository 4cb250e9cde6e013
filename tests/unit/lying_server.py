"""A web server on 127.0.0.1 that tells the truth, or any of many lies."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Lie(Enum):
    """What a server may do wrong."""

    NOTHING = auto()
    TRUNCATED = auto()  # half of what was announced, then the connection ends
    TRUNCATED_CHUNKED = auto()
    FLIPPED = auto()  # one bit
    SWAPPED = auto()  # another file, of the same size
    LONGER = auto()  # announces more than there is, and sends it
    SHORTER = auto()  # announces less, and sends that
    ENDLESS = auto()  # announces nothing and never ends
    ENDLESS_CHUNKED = auto()
    SLOW = auto()  # a byte at a time
    SLOW_HEADERS = auto()
    STALLED = auto()  # half, then silence
    SILENT = auto()  # no answer at all
    LOOP = auto()  # redirects to itself
    TO_FILE = auto()  # redirects to file:///etc/passwd
    NO_RANGES = auto()  # 200 and all of it, whatever was asked for
    OTHER_RANGE = auto()  # one block further on
    UNNAMED_RANGE = auto()  # 206 without Content-Range
    RANGE_LENGTH = auto()  # the right Content-Range, another Content-Length
    GARBAGE = auto()  # no HTTP
    CLOSED = auto()  # the connection ends before an answer
    COMPRESSED = auto()  # Content-Encoding: gzip
    BUSY = auto()  # 503
    LAST = auto()  # no lie: the connection ends with the answer


@dataclass
class Request:
    """One request: its path, and the Range and If-None-Match that it came with."""

    path: str
    range: str
    etag: str


@dataclass
class LyingServer:
    """`files` by path, or `directory`; `lies` by the beginning of paths; what happened is in `requests` and `sent_bytes`."""

    files: dict[str, bytes] = field(default_factory=dict)
    directory: Path | None = None
    lies: dict[str, Lie] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0
    connections: int = 0
    cut_after: int | None = None  # bytes of a body, and then every connection ends
    moved: dict[str, str] = field(default_factory=dict)
    address: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def content(self, path: str) -> bytes | None:
        """What is at a path."""
        if path in self.files:
            return self.files[path]
        if self.directory is not None and (self.directory / path).is_file():
            return (self.directory / path).read_bytes()
        return None

    def lie(self, path: str) -> Lie:
        """What to say of it."""
        return next((lie for start, lie in self.lies.items() if path.startswith(start)), Lie.NOTHING)


@contextmanager
def serving(server: LyingServer, *, tls: ssl.SSLContext | None = None) -> Iterator[LyingServer]:
    """The server, at `server.address` while the block lasts."""

    class Handler(_Handler):
        truth = server

    with _Server(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        if tls is not None:
            listening.socket = tls.wrap_socket(listening.socket, server_side=True)
        server.address = f"http{'s' if tls else ''}://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.done.set()
            listening.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    truth: LyingServer

    def setup(self) -> None:
        super().setup()
        self.truth.connections += 1

    def log_message(self, *_words: object) -> None:
        pass

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self) -> None:
        truth = self.truth
        path = self.path.split("//", 1)[-1].split("/", 1)[-1] if "://" in self.path else self.path.lstrip("/")
        truth.requests.append(Request(self.path, self.headers.get("Range", ""), self.headers.get("If-None-Match", "")))
        lie = truth.lie(path)
        if path in truth.moved:
            self._redirect(truth.moved[path])
            return
        if self._refuses_to_talk(lie):
            return
        content = truth.content(path)
        if content is None or lie is Lie.BUSY:
            self._head(404 if content is None else 503, {"Content-Length": "4"})
            self._send(b"none")
            return
        etag = f'"{hash(content):x}"'
        if self.headers.get("If-None-Match") == etag:
            self._head(304, {"ETag": etag})
            return
        self._lie(lie, content, etag)

    def _redirect(self, target: str) -> None:
        self._head(302, {"Location": target, "Content-Length": "0"})

    def _refuses_to_talk(self, lie: Lie) -> bool:
        match lie:
            case Lie.LOOP:
                self._redirect(self.path)
            case Lie.TO_FILE:
                self._redirect("file:///etc/passwd")
            case Lie.SILENT:
                self.truth.done.wait(5)
                self.close_connection = True
            case Lie.GARBAGE:
                self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 4)
                self.close_connection = True
            case Lie.CLOSED:
                self.close_connection = True
            case Lie.SLOW_HEADERS:
                self._slowly(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000)
            case _:
                return False
        return True

    def _lie(self, lie: Lie, content: bytes, etag: str) -> None:
        part, status, headers = content, 200, {"ETag": etag}
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if wanted and lie is not Lie.NO_RANGES:
            first, last = (int(number) + (lie is Lie.OTHER_RANGE) for number in wanted.split("-"))
            part, status = content[first : last + 1], 206
            if lie is not Lie.UNNAMED_RANGE:
                headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        if lie in {Lie.ENDLESS, Lie.ENDLESS_CHUNKED, Lie.TRUNCATED_CHUNKED}:
            self._without_length(lie, part, status, headers)
            return
        if lie is Lie.LAST:
            headers["Connection"] = "close"
        if lie is Lie.COMPRESSED:
            headers["Content-Encoding"] = "gzip"
        said = {
            Lie.FLIPPED: part[:-1] + bytes([part[-1] ^ 1]) if part else part,
            Lie.SWAPPED: bytes(len(part)),
            Lie.LONGER: part + b"more",
            Lie.SHORTER: part[:-1],
        }.get(lie, part)
        self._head(status, headers | {"Content-Length": str(len(said) + (lie is Lie.RANGE_LENGTH))})
        if lie is Lie.SLOW:
            self._slowly(said)
        elif lie in {Lie.TRUNCATED, Lie.STALLED}:
            self._send(said[: len(said) // 2])
            if lie is Lie.STALLED:
                self.truth.done.wait(5)
            self.close_connection = True
        else:
            self._send(said)

    def _without_length(self, lie: Lie, part: bytes, status: int, headers: dict[str, str]) -> None:
        if lie is Lie.ENDLESS:
            self._head(status, headers | {"Connection": "close"})
            self._endlessly(lambda data: data)
            return
        self._head(status, headers | {"Transfer-Encoding": "chunked"})
        if lie is Lie.ENDLESS_CHUNKED:
            self._endlessly(lambda data: f"{len(data):x}\r\n".encode() + data + b"\r\n")
            return
        self._send(f"{len(part):x}\r\n".encode() + part[: len(part) // 2])
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, data: bytes) -> None:
        limit = self.truth.cut_after
        if limit is not None and len(data) > limit:
            data = data[:limit]
            self.close_connection = True
        self.truth.sent_bytes += len(data)
        self.wfile.write(data)

    def _slowly(self, data: bytes) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.truth.done.wait(0.02):
                break
        self.close_connection = True

    def _endlessly(self, frame: Callable[[bytes], bytes]) -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end and not self.truth.done.is_set():
            self.wfile.write(frame(b"x" * 4096))
        self.close_connection = True
