"""One repository of an OCI registry, over HTTP. What comes from it is compared with its digest, or is as the caller finds it.

Blobs that the registry has are not sent again. Large ones go up in pieces, and an interrupted piece goes on where it stopped. A login is
shown to the registry itself, or to the maker of tokens that it names, and to nobody that it redirects to.

Source: OCI Distribution Specification 1.1; RFC 7235 and 6750; the Docker registry's token authentication.
"""

import hashlib
import http.client
import json
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, unquote, urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from obelisk import __version__
from obelisk.errors import InputError, ObeliskError, TransportError, TrustError
from obelisk.system.logins import Login

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCUMENT_BYTES = 4 << 20
"""The largest manifest that registries have to take, and so the largest that is read."""

PIECE_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 18
_IDLE_S = 60
_TRIES = 3
_REDIRECTS = 5
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_TLS_ALONE = "wrong version number"  # what OpenSSL says of an answer without TLS

OnBytes = Callable[[int], None]


class RefusedError(TransportError):
    """The registry answered with an error. `status` is HTTP's."""

    def __init__(self, message: str, status: int, *, code: str = "registry-error", hint: str = "try again later") -> None:
        super().__init__(message, code=code, hint=hint)
        self.status = status


class _LostError(TransportError):
    """The connection is gone; the same may be tried again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a registry said, without the body, or with one of at most `DOCUMENT_BYTES`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    def location(self) -> str:
        """Where to go on."""
        return urljoin(self.url, self.headers.get("location", ""))


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask. `body` makes the bytes anew for each try, `length` of them."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Iterable[bytes]] | None = None
    length: int = 0


def is_local(host: str) -> bool:
    """Whether `host`, with a port or without, is this machine, whose traffic nobody else sees."""
    name = urlsplit(f"//{host}").hostname or ""
    with suppress(ValueError):
        return ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


class Registry:
    """A repository of a registry; one thread at a time. `sent_bytes` counts what went up in blobs and manifests."""

    def __init__(self, host: str, repository: str, *, login: Login | None = None, plain: bool | None = None) -> None:
        """`host` may have a port. `plain`: without TLS; None: only where the registry is this machine itself."""
        self.host = host
        self.repository = repository
        self.sent_bytes = 0
        scheme = "http" if (is_local(host) if plain is None else plain) else "https"
        self._base = f"{scheme}://{host}"
        self._login = login
        self._authorization = ""
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._context: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    # Blobs

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has the blob `sha256:…`."""
        return self._ask(Request("HEAD", self._url(f"blobs/{digest}")), {200, 404}).status != http.HTTPStatus.NOT_FOUND

    def upload(self, digest: str, source: Path | bytes, *, on_bytes: OnBytes) -> None:
        """Send a blob, which the registry compares with its digest.

        Raises:
            TransportError: it does not get there, or is not wanted.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size <= PIECE_BYTES:
            self._upload_whole(digest, source, size, on_bytes)
        else:
            self._upload_pieces(digest, source, size, on_bytes)
        self.sent_bytes += size

    def _upload_whole(self, digest: str, source: Path | bytes, size: int, on_bytes: OnBytes) -> None:
        for left in reversed(range(_TRIES)):
            place = self._begin()
            try:
                request = Request("PUT", _with(place, digest=digest), _OCTETS, lambda: _pieces(source, 0, size, on_bytes), size)
                self._ask(request, {201})
            except _LostError:
                if not left:
                    raise
            else:
                return

    def _upload_pieces(self, digest: str, source: Path | bytes, size: int, on_bytes: OnBytes) -> None:
        place, at, lost = self._begin(), 0, 0
        while at < size:
            length = min(PIECE_BYTES, size - at)
            headers = {**_OCTETS, "Content-Range": f"{at}-{at + length - 1}"}
            try:
                answer = self._ask(Request("PATCH", place, headers, lambda: _pieces(source, at, length, on_bytes), length), {202})  # noqa: B023 - called within the turn
                place, at = answer.location(), at + length
            except _LostError:
                lost += 1
                if lost == _TRIES:
                    raise
                answer = self._ask(Request("GET", place), {204, 202})
                place, at = answer.location() or place, _arrived(answer)
        self._ask(Request("PUT", _with(place, digest=digest)), {201})

    def _begin(self) -> str:
        return self._ask(Request("POST", self._url("blobs/uploads/")), {202}).location()

    def download(self, digest: str, size: int, target: Path, *, on_bytes: OnBytes) -> None:
        """Write a blob of `size` bytes into the new file `target`, which is as the digest says when this returns.

        Raises:
            TrustError: the registry has other bytes under that digest.
            TransportError: it does not come.
        """
        hasher = hashlib.sha256()
        got = 0
        with target.open("xb") as file:
            for left in reversed(range(_TRIES)):
                try:
                    for data in self._blob(digest, got, size):
                        hasher.update(data)
                        file.write(data)
                        got += len(data)
                        on_bytes(len(data))
                    break
                except _LostError:
                    if not left:
                        raise
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise self._damaged(digest, "has another digest")

    def read(self, digest: str, size: int) -> bytes:
        """A small blob, as the digest says.

        Raises:
            TrustError: the registry has other bytes under that digest, or it is no small one.
            TransportError: it does not come.
        """
        if size > DOCUMENT_BYTES:
            raise self._damaged(digest, f"has {size} bytes, where a document belongs")
        data = b"".join(self._blob(digest, 0, size))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise self._damaged(digest, "has another digest")
        return data

    def _blob(self, digest: str, start: int, size: int) -> Iterator[bytes]:
        """The bytes of a blob from `start` on, exactly as many as there must be."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._answer(Request("GET", self._url(f"blobs/{digest}"), headers), {200, 206}) as (response, url):
            skipped = start if response.status == http.HTTPStatus.OK else 0
            expected = size - start + skipped
            if response.length is not None and response.length != expected:
                raise self._damaged(digest, f"has {response.length + start - skipped} bytes, and must have {size}")
            left = expected
            with _told(url):
                while data := response.read(min(_CHUNK_BYTES, left + 1)):
                    left -= len(data)
                    if left < 0:
                        raise self._damaged(digest, f"has more than {size} bytes")
                    yield data[skipped:]
                    skipped = max(skipped - len(data), 0)
            if left:
                raise _LostError(f"{url}: cut short", code="registry-cut-short", hint="try again")

    def _damaged(self, digest: str, how: str) -> TrustError:
        return TrustError(
            f"{self.host}/{self.repository}: the blob {digest} {how}: the registry's copy is damaged",
            code="registry-damaged",
            hint="delete it there and push the image again, or pull it from elsewhere",
        )

    # Manifests

    def manifest(self, reference: str) -> bytes | None:
        """The manifest or index of a tag, or of a digest, which it is then compared with; None: there is none.

        Raises:
            TrustError: the registry has other bytes under that digest.
        """
        request = Request("GET", self._url(f"manifests/{reference}"), {"Accept": f"{MANIFEST}, {INDEX}"})
        answer = self._ask(request, {200, 404})
        if answer.status == http.HTTPStatus.NOT_FOUND:
            return None
        wanted = reference if reference.startswith("sha256:") else answer.headers.get("docker-content-digest", "")
        found = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        if wanted.startswith("sha256:") and wanted != found:
            raise self._damaged(wanted, f"has the digest {found}")
        return answer.body

    def put_manifest(self, reference: str, document: bytes, media_type: str) -> None:
        """Store a manifest or index under a tag or its digest."""
        request = Request("PUT", self._url(f"manifests/{reference}"), {"Content-Type": media_type}, lambda: (document,), len(document))
        self._ask(request, {201})
        self.sent_bytes += len(document)

    def referrers(self, digest: str) -> bytes | None:
        """The index of manifests whose subject has that digest; None: the registry does not keep one."""
        answer = self._ask(Request("GET", self._url(f"referrers/{digest}"), {"Accept": INDEX}), {200, 404})
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        return answer.body if answer.status == http.HTTPStatus.OK and media_type == INDEX else None

    # Asking

    def _url(self, path: str) -> str:
        return f"{self._base}/v2/{self.repository}/{path}"

    def _ask(self, request: Request, wanted: set[int]) -> Answer:
        """The answer, of which a body is read whole."""
        with self._answer(request, wanted) as (response, url):
            with _told(url):
                body = response.read(DOCUMENT_BYTES + 1) if request.method != "HEAD" else b""
            if len(body) > DOCUMENT_BYTES:
                raise TransportError(f"{url}: sends more than a manifest may have", code="registry-too-long", hint="is this a registry?")
            return Answer(response.status, {key.lower(): value for key, value in response.headers.items()}, body, url)

    @contextmanager
    def _answer(self, request: Request, wanted: set[int]) -> Iterator[tuple[http.client.HTTPResponse, str]]:
        response, url = self._follow(request)
        try:
            if response.status == http.HTTPStatus.UNAUTHORIZED and self._log_in(_drained(response)):
                response, url = self._follow(request)
            if response.status not in wanted:
                raise self._refused(request, response, url)
            yield response, url
        finally:
            if not response.isclosed():
                with suppress(OSError, http.client.HTTPException):
                    response.read(1 << 16)
            if not response.isclosed():
                self._drop(urlsplit(url))

    def _follow(self, request: Request) -> tuple[http.client.HTTPResponse, str]:
        url = request.url
        for _hop in range(_REDIRECTS + 1):
            response = self._send(request, urlsplit(url))
            if request.method not in {"GET", "HEAD"} or response.status not in {301, 302, 303, 307, 308}:
                return response, url
            target = urljoin(url, response.headers.get("Location", ""))
            _drained(response)
            if urlsplit(target).scheme not in {"https", urlsplit(url).scheme}:
                raise TransportError(
                    f"{url}: sends one on to {target}, without TLS", code="registry-redirect", hint="the registry is set up wrong"
                )
            url = target
        raise TransportError(f"{request.url}: sends one on and on", code="registry-redirect", hint="the registry is set up wrong")

    def _send(self, request: Request, url: SplitResult) -> http.client.HTTPResponse:
        headers = {"User-Agent": f"obelisk/{__version__}", **request.headers}
        if self._authorization and f"{url.scheme}://{url.netloc}" == self._base:
            headers["Authorization"] = self._authorization
        if request.body is not None or request.method in {"POST", "PUT", "PATCH"}:
            headers["Content-Length"] = str(request.length)
        target = url._replace(scheme="", netloc="", fragment="").geturl()
        with _told(url.geturl()):
            kept = (url.scheme, url.netloc) in self._connections
            try:
                return self._exchange(url, request, target, headers)
            except (ConnectionError, http.client.BadStatusLine):
                self._drop(url)
                # A server may close a connection that is kept open whenever it likes. What is sent in pieces is asked about first.
                if not kept or request.method == "PATCH":
                    raise
            return self._exchange(url, request, target, headers)

    def _exchange(self, url: SplitResult, request: Request, target: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        connection = self._connections.get((url.scheme, url.netloc)) or self._connect(url)
        self._connections[url.scheme, url.netloc] = connection
        try:
            try:
                connection.request(request.method, target, body=request.body() if request.body else None, headers=dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                # A registry that does not want a body may answer before it has come.
                return connection.getresponse()
            return connection.getresponse()
        except BaseException:
            self._drop(url)
            raise

    def _connect(self, url: SplitResult) -> http.client.HTTPConnection:
        host, port = url.hostname or "", url.port
        if url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_IDLE_S)
        self._context = self._context or ssl.create_default_context()
        proxy = _proxy(host)
        if proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=_IDLE_S, context=self._context)
        connection = http.client.HTTPSConnection(proxy.hostname or "", proxy.port, timeout=_IDLE_S, context=self._context)
        shown = _basic(Login(unquote(proxy.username), unquote(proxy.password or ""))) if proxy.username is not None else ""
        connection.set_tunnel(host, port or http.client.HTTPS_PORT, {"Proxy-Authorization": shown} if shown else {})
        return connection

    def _drop(self, url: SplitResult) -> None:
        connection = self._connections.pop((url.scheme, url.netloc), None)
        if connection is not None:
            connection.close()

    # Logging in

    def _log_in(self, response: http.client.HTTPResponse) -> bool:
        """Get what the registry asks for; False when it has been shown already, or there is nothing to show."""
        before = self._authorization
        for challenge in response.headers.get_all("WWW-Authenticate", []):
            scheme, _space, rest = challenge.partition(" ")
            if scheme.lower() == "basic" and self._login is not None:
                self._authorization = _basic(self._login)
                return self._authorization != before
            if scheme.lower() == "bearer":
                self._authorization = f"Bearer {self._token(dict(_PARAMETER.findall(rest)))}"
                return self._authorization != before
        return False

    def _token(self, asked: Mapping[str, str]) -> str:
        realm = asked.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and not (parts.scheme == "http" and self._base.startswith("http:")):
            raise TransportError(
                f"{self._base}: sends one for a token to {realm!r}", code="registry-realm", hint="the registry is set up wrong"
            )
        scope = asked.get("scope", f"repository:{self.repository}:pull,push")
        query = {"service": asked.get("service", ""), "scope": scope}
        if self._login is not None and self._login.identity:
            form = urlencode(
                {**query, "grant_type": "refresh_token", "client_id": "obelisk", "refresh_token": self._login.password}
            ).encode()
            request = Request("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, lambda: (form,), len(form))
        else:
            headers = {"Authorization": _basic(self._login)} if self._login is not None else {}
            request = Request("GET", f"{realm}{'&' if parts.query else '?'}{urlencode(query)}", headers)
        self._authorization = ""
        with _told(realm):
            response = self._send(request, urlsplit(request.url))
            said = response.read(1 << 20)
        if response.status != http.HTTPStatus.OK:
            raise self._denied(response.status, f"{realm}: gives no token: {response.status} {response.reason}")
        try:
            raw = json.loads(said)
            return str(raw.get("token") or raw["access_token"])
        except (ValueError, KeyError, AttributeError) as error:
            raise TransportError(f"{realm}: gives no token", code="registry-realm", hint="the registry is set up wrong") from error

    def _refused(self, request: Request, response: http.client.HTTPResponse, url: str) -> ObeliskError:
        said = ""
        with suppress(OSError, http.client.HTTPException):
            said = _errors(response.read(1 << 16)) if request.method != "HEAD" else ""
        status = response.status
        message = f"{request.method} {url}: {status} {response.reason}".rstrip() + (f": {said}" if said else "")
        if status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            return self._denied(status, message)
        if status == http.HTTPStatus.NOT_FOUND:
            return RefusedError(message, status, hint=f"does {self.host} have a repository {self.repository}, and is it a registry?")
        return RefusedError(message, status)

    def _denied(self, status: int, message: str) -> RefusedError:
        if self._login is None:
            hint = f"log in first: `docker login {self.host}`, or name a file with the login by --credentials"
        else:
            hint = f"the login of {self._login.name!r} is wrong, or may not do this: `docker login {self.host}`"
        return RefusedError(message, status, code="registry-denied", hint=hint)


_OCTETS = {"Content-Type": "application/octet-stream"}


def _proxy(host: str) -> SplitResult | None:
    """The proxy that the environment names for a registry with TLS; without, it is this machine, or somebody has asked for the risk."""
    through = "" if proxy_bypass(host) else getproxies().get("https", "")
    return urlsplit(through if "://" in through else f"http://{through}") if through else None


def _pieces(source: Path | bytes, start: int, length: int, on_bytes: OnBytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source[start : start + length]
        on_bytes(length)
        return
    with source.open("rb") as file:
        file.seek(start)
        while length and (data := file.read(min(_CHUNK_BYTES, length))):
            yield data
            length -= len(data)
            on_bytes(len(data))


def _with(url: str, **query: str) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"


def _arrived(answer: Answer) -> int:
    """How many bytes of an upload the registry has."""
    found = re.fullmatch(r"(?:bytes=)?0-(-?\d+)", answer.headers.get("range", ""))
    return int(found[1]) + 1 if found and int(found[1]) > 0 else 0


def _basic(login: Login) -> str:
    return f"Basic {b64encode(f'{login.name}:{login.password}'.encode()).decode()}"


def _drained(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    """The response, with what stands in the way of the next one read."""
    with suppress(OSError, http.client.HTTPException):
        response.read(1 << 16)
    return response


def _errors(body: bytes) -> str:
    """What a registry says of an error, on one line."""
    try:
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in json.loads(body)["errors"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Say of what goes wrong with a connection where that was, and what it means."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise TransportError(
            f"{url}: the registry's certificate is refused: {error.verify_message}",
            code="registry-tls",
            hint="have this machine trust its authority, or name that in $SSL_CERT_FILE",
        ) from error
    except ssl.SSLError as error:
        plain = _TLS_ALONE in str(error)
        raise TransportError(
            f"{url}: {'talks no TLS' if plain else error.reason or error}",
            code="registry-tls",
            hint="use --plain-http if everybody between here and there may read and change what travels" if plain else "",
        ) from error
    except (http.client.HTTPException, TimeoutError, ConnectionResetError, BrokenPipeError) as error:
        what = "does not answer" if isinstance(error, TimeoutError) else f"the connection ends: {str(error) or type(error).__name__}"
        raise _LostError(f"{url}: {what}", code="registry-lost", hint="try again") from error
    except OSError as error:
        raise TransportError(
            f"{url}: {error.strerror or error}", code="registry-unreachable", hint="is the registry's name right, and is it running?"
        ) from error
    except ValueError as error:
        raise InputError(f"{url} is no address", code="registry-address", hint="for example localhost:5000/shop:1") from error
