"""Fetches from web servers, whatever they answer: nothing longer than was asked for, nothing slower than is bearable.

What is fetched is not trusted here; whoever asks compares it with a digest or a signature. A server may be dead, slow, endless, or lie
about lengths and ranges: each ends in a `TransportError` that names the address and the cause. Connections stay open between requests.

Source: RFC 9110 (semantics, ranges, conditional requests), RFC 9112 (HTTP/1.1).
"""

import http.client
import io
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from obelisk import __version__
from obelisk.errors import InputError, TransportError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 1 << 16
_MOVED = frozenset({301, 302, 303, 307, 308})
_PARTIAL = 206
_UNCHANGED = 304
_LEAST_ERROR = 400
_WHOLE = 200
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_SENDS_PER_S = 10  # with a limited bandwidth: smooth, and still few turns


class HttpError(TransportError):
    """The server answered with an error. `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, code="http-status", hint="is that the address of a repository? Otherwise try again later")
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """What is put up with. A connection is left that brings fewer than `least_bytes_s` while `window_s` seconds were spent waiting.

    `bandwidth_bytes_s` None: as fast as it comes.
    """

    connect_s: float = 15.0
    idle_s: float = 30.0
    window_s: float = 30.0
    least_bytes_s: int = 512
    redirects: int = 5
    bandwidth_bytes_s: int | None = None


@dataclass(frozen=True, slots=True)
class Proxies:
    """Through whom to go: `given`, or else as http_proxy and https_proxy in the environment say; not to where no_proxy says."""

    given: str = ""

    def of(self, scheme: str, host: str) -> str:
        """The proxy's address for a host; empty: none."""
        known = getproxies_environment()
        return "" if proxy_bypass(host, known) else self.given or known.get(scheme, "")


class Answer:
    """What a server sends: bytes of the file from `start` on. `unchanged`: none, for the file still is what the ETag said.

    `length` is how many bytes must come, None where the server does not say.
    """

    def __init__(self, url: str, response: http.client.HTTPResponse, *, start: int, length: int | None, most_bytes: int) -> None:
        self.url = url
        self.start = start
        self.length = length
        self.etag = response.headers.get("ETag", "")
        self.unchanged = response.status == _UNCHANGED
        self._response = response
        self._most_bytes = most_bytes
        if length is not None and length > most_bytes:
            raise _too_long(url, f"announces {length} bytes", most_bytes)

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they come.

        Raises:
            TransportError: the answer is cut short, longer than allowed, or too slow.
        """
        got = 0
        with _told(self.url):
            try:
                while data := self._response.read1(CHUNK_BYTES):
                    got += len(data)
                    if got > self._most_bytes:
                        raise _too_long(self.url, "sends more", self._most_bytes)
                    yield data
            except http.client.IncompleteRead as error:
                raise _cut_short(self.url, got, self.length) from error
        if self.length is not None and got < self.length:
            raise _cut_short(self.url, got, self.length)

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self.chunks())


class _Own(threading.local):
    """What each thread has for itself: its connections, and how fast they are."""

    def __init__(self, limits: Limits, throttle: "_Throttle") -> None:
        self.open: dict[tuple[str, str, str], http.client.HTTPConnection] = {}
        self.pace = _Pace(limits, throttle)


class Client:
    """Connections to web servers, which threads may share. Close it when they are done, or use it in a `with` block."""

    def __init__(self, limits: Limits | None = None, *, proxies: Proxies | None = None, authorities: str | None = None) -> None:
        """`authorities` is a PEM file of certificates to trust for TLS instead of the system's."""
        self._limits = limits or Limits()
        self._proxies = proxies or Proxies()
        self._authorities = authorities
        self._context: ssl.SSLContext | None = None
        self._own = _Own(self._limits, _Throttle(self._limits.bandwidth_bytes_s))
        self._all: list[http.client.HTTPConnection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._own.open.clear()

    @contextmanager
    def get(self, url: str, *, most_bytes: int, part: range | None = None, etag: str = "") -> Iterator[Answer]:
        """What is at `url`, or `part` of it, while the block lasts; at most `most_bytes`, a part exactly.

        A server that knows no ranges sends all: see `Answer.start`. With `etag`, an unchanged file is not sent again.

        Raises:
            TransportError: it cannot be fetched; an HttpError when the server says so.
        """
        headers = {"User-Agent": f"obelisk/{__version__}", "Accept-Encoding": "identity"}
        if part is not None:
            headers["Range"] = f"bytes={part.start}-{part.stop - 1}"
        if etag:
            headers["If-None-Match"] = etag
        address, response = self._follow(url, headers)
        try:
            yield _checked(address, response, part, most_bytes)
        finally:
            if response.length == 0 and not response.isclosed():
                response.read()  # which it takes to notice that it is complete
            if not response.isclosed():  # the rest of an answer would be taken for the next one
                self._drop(urlsplit(address))
            response.close()

    def _follow(self, url: str, headers: dict[str, str]) -> tuple[str, http.client.HTTPResponse]:
        """The answer behind all redirections, and its address."""
        address = url
        for _hop in range(self._limits.redirects + 1):
            with _told(address):
                response = self._request(_parsed(address), headers)
            if response.status not in _MOVED:
                return address, response
            response.close()
            self._drop(urlsplit(address))
            with _told(address):
                target = urljoin(address, response.headers.get("Location", ""))
                scheme = urlsplit(target).scheme
            if scheme not in {"http", "https"} or (scheme == "http" and urlsplit(address).scheme == "https"):
                raise TransportError(
                    f"{url}: the server sends one on to {target}, which is not {urlsplit(address).scheme}",
                    code="http-redirect",
                    hint="name another mirror, or the address that is meant",
                )
            address = target
        raise TransportError(
            f"{url}: the server sends one on more than {self._limits.redirects} times, last to {address}",
            code="http-redirect",
            hint="the server is set up wrong; name another mirror",
        )

    def _request(self, url: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        self._own.pace.begin()
        kept = self._key(url) in self._own.open
        try:
            return self._ask(url, headers)
        except (ConnectionError, http.client.BadStatusLine, http.client.ImproperConnectionState):
            self._drop(url)
            if not kept:
                raise
        # A server may close a connection that is kept open at any time, and says nothing of it; or an answer was left half read.
        return self._ask(url, headers)

    def _ask(self, url: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        through = self._proxies.of(url.scheme, url.hostname or "")
        proxy = _parsed(through if "://" in through else f"http://{through}") if through else None
        connection = self._own.open.get(self._key(url))
        if connection is None or connection.sock is None:  # as one is after an answer that ends its connection
            self._drop(url)
            connection = self._connect(url, proxy)
        self._own.open[self._key(url)] = connection
        target = url._replace(scheme="", netloc="", fragment="", path=url.path or "/").geturl()
        if proxy and url.scheme == "http":  # the proxy is told where to go; through one for https there is a tunnel
            target = url._replace(netloc=_bare(url), fragment="").geturl()
            headers = headers | _authorization(proxy)
        try:
            connection.request("GET", target, headers=headers)
            return connection.getresponse()
        except BaseException:
            self._drop(url)
            raise

    def _connect(self, url: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
        host, port = url.hostname or "", url.port
        at = (proxy.hostname or "", proxy.port) if proxy else (host, port)
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            self._context = self._context or ssl.create_default_context(cafile=self._authorities)
            connection = http.client.HTTPSConnection(*at, timeout=self._limits.connect_s, context=self._context)
            if proxy:
                connection.set_tunnel(host, port or http.client.HTTPS_PORT, _authorization(proxy))
        else:
            connection = http.client.HTTPConnection(*at, timeout=self._limits.connect_s)
        connection.auto_open = 0  # else a closed one would be opened again without being watched
        connection.connect()
        connection.sock = _Watched(connection.sock, self._own.pace, self._limits)
        self._all.append(connection)
        return connection

    def _key(self, url: SplitResult) -> tuple[str, str, str]:
        return url.scheme, url.netloc, self._proxies.of(url.scheme, url.hostname or "")

    def _drop(self, url: SplitResult) -> None:
        connection = self._own.open.pop(self._key(url), None)
        if connection is not None:
            connection.close()
            with suppress(ValueError):
                self._all.remove(connection)


class _TooSlowError(Exception):
    """Less came than `Limits` asks for."""


class _Throttle:
    """How fast bytes may come, over all connections."""

    def __init__(self, bytes_s: int | None) -> None:
        self._bytes_s = bytes_s
        self._due_s = 0.0
        self._lock = threading.Lock()

    def most(self, wanted: int) -> int:
        """How many of so many bytes to take at once."""
        return wanted if self._bytes_s is None else min(wanted, max(self._bytes_s // _SENDS_PER_S, 1))

    def took(self, count: int) -> None:
        """So many came; returns when the next may be asked for."""
        if self._bytes_s is None:
            return
        with self._lock:
            now = time.monotonic()
            self._due_s = max(self._due_s, now) + count / self._bytes_s
            wait_s = self._due_s - now
        time.sleep(wait_s)


class _Pace:
    """How fast bytes come on one connection, counting only the time that was spent waiting for them."""

    def __init__(self, limits: Limits, throttle: _Throttle) -> None:
        self._limits = limits
        self._throttle = throttle
        self._waited_s = 0.0
        self._got = 0

    def begin(self) -> None:
        """A new request."""
        self._waited_s, self._got = 0.0, 0

    def most(self, wanted: int) -> int:
        """How many of so many bytes to take at once."""
        return self._throttle.most(wanted)

    def took(self, count: int, waited_s: float) -> None:
        """So many bytes came after so long a wait; returns when the next may be asked for."""
        self._waited_s += waited_s
        self._got += count
        if self._waited_s >= self._limits.window_s:
            if self._got < self._limits.least_bytes_s * self._waited_s:
                raise _TooSlowError
            self.begin()
        self._throttle.took(count)


class _Watched:
    """A connected socket whose bytes come at a bearable pace, or not at all: also those of headers and of the lengths of chunks."""

    def __init__(self, plain: socket.socket, pace: _Pace, limits: Limits) -> None:
        self._plain = plain
        self._pace = pace
        self.sendall = plain.sendall
        self.close = plain.close
        plain.settimeout(limits.idle_s)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What an answer is read from. It may outlive `close`, as the file of any socket."""
        return io.BufferedReader(_Reader(self._plain.makefile("rb", buffering=0), self._pace), CHUNK_BYTES)


class _Reader(io.RawIOBase):
    def __init__(self, source: socket.SocketIO, pace: _Pace) -> None:
        super().__init__()
        self._source = source
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        view = memoryview(buffer)
        began = time.monotonic()
        count = self._source.readinto(view[: self._pace.most(len(view))])
        self._pace.took(count or 0, time.monotonic() - began)
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


def _checked(url: str, response: http.client.HTTPResponse, part: range | None, most_bytes: int) -> Answer:
    """The answer, if it is one to what was asked."""
    status, said = response.status, f"{response.status} {response.reason}".rstrip()
    if status >= _LEAST_ERROR:
        raise HttpError(f"{url}: the server says {said}", status)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _wrong(url, f"the server sends it as {response.headers['Content-Encoding']}, which nobody asked for")
    if status == _PARTIAL and part is not None:
        sends = response.headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(sends)
        if found is None or (int(found[1]), int(found[2]) + 1) != (part.start, part.stop):
            raise _wrong(url, f"bytes {part.start}-{part.stop - 1} are wanted, the server sends {sends or 'some that it does not name'}")
        if response.length not in {None, len(part)}:
            raise _wrong(url, f"the server says that bytes {part.start}-{part.stop - 1} are {response.length}")
        return Answer(url, response, start=part.start, length=len(part), most_bytes=len(part))
    if status not in {_WHOLE, _UNCHANGED}:
        raise _wrong(url, f"the server answers {said}")
    return Answer(url, response, start=0, length=response.length, most_bytes=most_bytes)


def _parsed(url: str) -> SplitResult:
    refused = InputError(f"{url!r} is no address that can be fetched from", code="http-address", hint="for example https://example.org/os")
    try:
        parsed = urlsplit(url)
        if parsed.scheme not in {"http", "https"} or not parsed.hostname or parsed.port == 0:
            raise refused
    except ValueError as error:
        raise refused from error
    return parsed


def _bare(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    word = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(word.encode()).decode()}"}


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Say of what goes wrong with a connection where that was, and what it means. Nothing but the network is used inside."""
    again = "try again, or name another mirror"
    try:
        yield
    except _TooSlowError as error:
        raise TransportError(f"{url}: the server is too slow to wait for", code="http-slow", hint=again) from error
    except ssl.SSLCertVerificationError as error:
        raise TransportError(
            f"{url}: the server's certificate is refused: {error.verify_message}",
            code="http-tls",
            hint="is this machine's clock right? An authority of your own must be among the image's certificates",
        ) from error
    except TimeoutError as error:
        raise TransportError(f"{url}: the server does not answer, or no longer", code="http-stalled", hint=again) from error
    except (http.client.HTTPException, ValueError) as error:
        gone = isinstance(error, http.client.RemoteDisconnected)
        what = "the server ends the connection" if gone else f"the server talks no HTTP: {str(error) or type(error).__name__}"
        raise _wrong(url, what) from error
    except OSError as error:
        raise TransportError(
            f"{url}: {error.strerror or error}", code="http-unreachable", hint=f"is there a network? Else {again}"
        ) from error


def _wrong(url: str, what: str) -> TransportError:
    return TransportError(f"{url}: {what}", code="http-wrong", hint="the server is set up wrong, or lies; name another mirror")


def _cut_short(url: str, got: int, length: int | None) -> TransportError:
    of = f" of {length}" if length is not None else ""
    return TransportError(f"{url}: cut short after {got}{of} bytes", code="http-cut-short", hint="try again: what came is kept")


def _too_long(url: str, what: str, most_bytes: int) -> TransportError:
    message = f"{url}: the server {what}, where at most {most_bytes} belong"
    return TransportError(message, code="http-too-long", hint="it has something else there; name another mirror")
