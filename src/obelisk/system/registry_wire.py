"""Asks an OCI registry: connections, redirections and logins, and what goes wrong with them in words.

A login is shown to the registry itself, or to the maker of tokens that it names, and to nobody that it redirects to. What has come is not
looked at here.

Source: RFC 7235 and 6750; the Docker registry's token authentication.
"""

import http.client
import json
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from obelisk import __version__
from obelisk.errors import InputError, ObeliskError, TransportError
from obelisk.system.logins import Login

DOCUMENT_BYTES = 4 << 20
"""The largest manifest that registries have to take, and so the largest that is read."""

_IDLE_S = 60
_REDIRECTS = 5
_REST_BYTES = 1 << 16  # of an answer that nobody reads: with less left, reading it is cheaper than a new connection
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_TLS_ALONE = "wrong version number"  # what OpenSSL says of an answer without TLS


class RefusedError(TransportError):
    """The registry answered with an error. `status` is HTTP's."""

    def __init__(self, message: str, status: int, *, code: str = "registry-error", hint: str = "try again later") -> None:
        super().__init__(message, code=code, hint=hint)
        self.status = status


class LostError(TransportError):
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


class Wire:
    """Connections to one registry at `base`, `scheme://host[:port]`; one thread at a time. `repository` is what a token is asked for."""

    def __init__(self, base: str, repository: str, login: Login | None) -> None:
        self._base = base
        self._repository = repository
        self._login = login
        self._authorization = ""
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._context: ssl.SSLContext | None = None

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def ask(self, request: Request, wanted: set[int]) -> Answer:
        """The answer, of which a body is read whole, if its status is one of `wanted`.

        Raises:
            RefusedError: it is another.
            TransportError: there is none, or too long a one.
        """
        with self.answer(request, wanted) as (response, url):
            with told(url):
                body = response.read(DOCUMENT_BYTES + 1) if request.method != "HEAD" else b""
            if len(body) > DOCUMENT_BYTES:
                raise TransportError(f"{url}: sends more than a manifest may have", code="registry-too-long", hint="is this a registry?")
            return Answer(response.status, {key.lower(): value for key, value in response.headers.items()}, body, url)

    @contextmanager
    def answer(self, request: Request, wanted: set[int]) -> Iterator[tuple[http.client.HTTPResponse, str]]:
        """The answer whose body the block reads, within `told`, and the address that it comes from.

        Raises:
            RefusedError: its status is none of `wanted`.
            TransportError: there is none.
        """
        response, url = self._follow(request)
        try:
            if response.status == http.HTTPStatus.UNAUTHORIZED and self._log_in(self._drained(response, url)):
                response, url = self._follow(request)
            if response.status not in wanted:
                raise self._refused(request, response, url)
            yield response, url
        finally:
            self._drained(response, url)

    def _follow(self, request: Request) -> tuple[http.client.HTTPResponse, str]:
        url = request.url
        for _hop in range(_REDIRECTS + 1):
            response = self._send(request, urlsplit(url))
            if request.method not in {"GET", "HEAD"} or response.status not in {301, 302, 303, 307, 308}:
                return response, url
            target = urljoin(url, response.headers.get("Location", ""))
            self._drained(response, url)
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
        with told(url.geturl()):
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

    def _drained(self, response: http.client.HTTPResponse, url: str) -> http.client.HTTPResponse:
        """The response, which no longer stands in the way of the next one."""
        if not response.isclosed():
            with suppress(OSError, http.client.HTTPException):
                response.read(_REST_BYTES)
        if not response.isclosed():
            self._drop(urlsplit(url))
        return response

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
        scope = asked.get("scope", f"repository:{self._repository}:pull,push")
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
        with told(realm):
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
            said = _errors(response.read(_REST_BYTES)) if request.method != "HEAD" else ""
        status = response.status
        message = f"{request.method} {url}: {status} {response.reason}".rstrip() + (f": {said}" if said else "")
        if status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            return self._denied(status, message)
        if status == http.HTTPStatus.NOT_FOUND:
            return RefusedError(
                message, status, hint=f"does {urlsplit(self._base).netloc} have a repository {self._repository}, and is it a registry?"
            )
        return RefusedError(message, status)

    def _denied(self, status: int, message: str) -> RefusedError:
        if self._login is None:
            hint = f"log in first: `docker login {urlsplit(self._base).netloc}`, or name a file with the login by --credentials"
        else:
            hint = f"the login of {self._login.name!r} is wrong, or may not do this: `docker login {urlsplit(self._base).netloc}`"
        return RefusedError(message, status, code="registry-denied", hint=hint)


def _proxy(host: str) -> SplitResult | None:
    """The proxy that the environment names for a registry with TLS; without, it is this machine, or somebody has asked for the risk."""
    through = "" if proxy_bypass(host) else getproxies().get("https", "")
    return urlsplit(through if "://" in through else f"http://{through}") if through else None


def _basic(login: Login) -> str:
    return f"Basic {b64encode(f'{login.name}:{login.password}'.encode()).decode()}"


def _errors(body: bytes) -> str:
    """What a registry says of an error, on one line."""
    try:
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in json.loads(body)["errors"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


@contextmanager
def told(url: str) -> Iterator[None]:
    """Say of what goes wrong with a connection where that was, and what it means.

    Raises:
        LostError: the connection has ended.
        TransportError: there is none.
    """
    url = url.partition("?")[0]  # what follows may be a signature that opens a bucket
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
        raise LostError(f"{url}: {what}", code="registry-lost", hint="try again") from error
    except OSError as error:
        raise TransportError(
            f"{url}: {error.strerror or error}", code="registry-unreachable", hint="is the registry's name right, and is it running?"
        ) from error
    except ValueError as error:
        raise InputError(f"{url} is no address", code="registry-address", hint="for example localhost:5000/shop:1") from error
