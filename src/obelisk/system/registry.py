"""One repository of an OCI registry, over HTTP. What comes from it is compared with its digest, or is as the caller finds it.

Blobs that the registry has are not sent again. Large ones go up in pieces, and an interrupted piece goes on where it stopped.

Source: OCI Distribution Specification 1.1.
"""

import hashlib
import http
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Self
from urllib.parse import urlencode, urljoin, urlsplit

from obelisk.errors import TransportError, TrustError
from obelisk.system.logins import Login
from obelisk.system.registry_wire import DOCUMENT_BYTES, Answer, LostError, Request, Wire, told

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

# What registries have from before OCI; its documents are read the same way.
_DOCKER = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
PIECE_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 18
_TRIES = 3
_PAGES = 50
_NEXT = re.compile(r'<([^>]+)>; *rel="?next"?')

OnBytes = Callable[[int], None]


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
        self._wire = Wire(self._base, repository, login)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._wire.close()

    # Blobs

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has the blob `sha256:…`."""
        return self._wire.ask(Request("HEAD", self._url(f"blobs/{digest}")), {200, 404}).status != http.HTTPStatus.NOT_FOUND

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
                self._wire.ask(request, {201})
            except LostError:
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
                answer = self._wire.ask(Request("PATCH", place, headers, lambda: _pieces(source, at, length, on_bytes), length), {202})  # noqa: B023 - called within the turn
                place, at = answer.location(), at + length
            except LostError:
                lost += 1
                if lost == _TRIES:
                    raise
                answer = self._wire.ask(Request("GET", place), {204, 202})
                place, at = answer.location() or place, _arrived(answer)
        self._wire.ask(Request("PUT", _with(place, digest=digest)), {201})

    def _begin(self) -> str:
        return self._wire.ask(Request("POST", self._url("blobs/uploads/")), {202}).location()

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
                except LostError:
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
        with self._wire.answer(Request("GET", self._url(f"blobs/{digest}"), headers), {200, 206}) as (response, url):
            skipped = start if response.status == http.HTTPStatus.OK else 0
            expected = size - start + skipped
            if response.length is not None and response.length != expected:
                raise self._damaged(digest, f"has {response.length + start - skipped} bytes, and must have {size}")
            left = expected
            with told(url):
                while data := response.read(min(_CHUNK_BYTES, left + 1)):
                    left -= len(data)
                    if left < 0:
                        raise self._damaged(digest, f"has more than {size} bytes")
                    yield data[skipped:]
                    skipped = max(skipped - len(data), 0)
            if left:
                raise LostError(f"{url}: cut short", code="registry-cut-short", hint="try again")

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
        request = Request("GET", self._url(f"manifests/{reference}"), {"Accept": ", ".join((MANIFEST, INDEX, *_DOCKER))})
        answer = self._wire.ask(request, {200, 404})
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
        self._wire.ask(request, {201})
        self.sent_bytes += len(document)

    def referrers(self, digest: str) -> tuple[bytes, ...] | None:
        """The pages of the index of manifests whose subject has that digest; None: the registry does not keep one.

        Raises:
            TransportError: there is no end to them.
        """
        pages: list[bytes] = []
        url = self._url(f"referrers/{digest}")
        while len(pages) < _PAGES:
            answer = self._wire.ask(Request("GET", url, {"Accept": INDEX}), {200, 404})
            if answer.status == http.HTTPStatus.NOT_FOUND or answer.headers.get("content-type", "").partition(";")[0] != INDEX:
                return None
            pages.append(answer.body)
            more = _NEXT.search(answer.headers.get("link", ""))
            if more is None:
                return tuple(pages)
            url = self._own(urljoin(answer.url, more[1]))
        raise TransportError(f"{url}: lists without an end what refers to an image", code="registry-too-long", hint="is this a registry?")

    def _own(self, url: str) -> str:
        if not url.startswith(f"{self._base}/"):
            raise TransportError(f"{self._base}: sends one on to {url}", code="registry-redirect", hint="the registry is set up wrong")
        return url

    def _url(self, path: str) -> str:
        return f"{self._base}/v2/{self.repository}/{path}"


_OCTETS = {"Content-Type": "application/octet-stream"}


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
