"""An OCI registry in memory, on 127.0.0.1, that can be told to behave like this one or that one, and to fail."""

import hashlib
import json
import re
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Faults:
    """What goes wrong, each so many times."""

    cut_download: int = 0
    cut_upload: int = 0
    expire_token: int = 0
    errors: int = 0


@dataclass
class Registry:
    """What it has, how it behaves, and what was asked of it."""

    referrers: bool = False
    login: tuple[str, str] | None = None
    bearer: bool = False
    redirect: str = ""
    faults: Faults = field(default_factory=Faults)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    host: str = ""
    certificate: Path | None = None

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its host and port."""
        registry = self

        class Handler(_Handler):
            state = registry

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            if self.certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            self.host = f"127.0.0.1:{server.server_port}"
            try:
                yield self.host
            finally:
                server.shutdown()
                thread.join()

    def written(self) -> list[str]:
        """The requests that stored something."""
        return [request for request in self.requests if request.split()[0] in {"PUT", "PATCH", "POST"}]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would wait for the client between headers and body
    state: Registry

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Let a client go away whenever it likes."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def _serve(self) -> None:
        state, url = self.state, urlsplit(self.path)
        state.requests.append(f"{self.command} {url.path}")
        state.shown.append(self.headers.get("Authorization", ""))
        length = int(self.headers.get("Content-Length", 0))
        if self.command == "PATCH" and state.faults.cut_upload:
            state.faults.cut_upload -= 1
            upload = url.path.rpartition("/")[2]
            state.uploads[upload] += self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if state.faults.errors:
            state.faults.errors -= 1
            self._say(503, json.dumps({"errors": [{"code": "UNAVAILABLE", "message": "busy"}]}).encode())
        elif url.path == "/token":
            self._token(parse_qs(url.query))
        elif not self._allowed():
            challenge = f'Bearer realm="http://{state.host}/token",service="fake",scope="repository:shop:pull,push"'
            self._say(401, b"{}", {"WWW-Authenticate": challenge if state.bearer else 'Basic realm="fake"'})
        elif found := re.fullmatch(r"/v2/[a-z/]+/blobs/uploads/(\w*)", url.path):
            self._upload(found[1], body, parse_qs(url.query))
        elif found := re.fullmatch(r"/v2/([a-z/]+)/(blobs|manifests|referrers)/([^/]+)", url.path):
            getattr(self, f"_{found[2]}")(found[3], body)
        else:
            self._say(404, b"not found")

    def _allowed(self) -> bool:
        state, shown = self.state, self.headers.get("Authorization", "")
        if state.bearer:
            token = shown.removeprefix("Bearer ")
            if token in state.tokens and state.faults.expire_token and self.command == "PATCH":
                state.faults.expire_token -= 1
                state.tokens.discard(token)
            return token in state.tokens
        return state.login is None or shown == _basic(state.login)

    def _token(self, query: dict[str, list[str]]) -> None:
        state = self.state
        if state.login is not None and self.headers.get("Authorization") != _basic(state.login):
            self._say(401, b"{}")
            return
        token = f"token{len(state.shown)}"
        assert query["service"] == ["fake"]
        state.tokens.add(token)
        self._say(200, json.dumps({"token": token}).encode())

    def _upload(self, upload: str, body: bytes, query: dict[str, list[str]]) -> None:
        state = self.state
        if self.command == "POST":
            upload = f"u{len(state.requests)}"
            state.uploads[upload] = b""
            self._say(202, b"", {"Location": f"/v2/shop/blobs/uploads/{upload}?state=1"})
            return
        state.uploads[upload] += body
        place = {"Location": f"/v2/shop/blobs/uploads/{upload}?state=2", "Range": f"0-{len(state.uploads[upload]) - 1}"}
        if self.command == "PUT":
            data = state.uploads.pop(upload)
            (digest,) = query["digest"]
            if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
                self._say(400, json.dumps({"errors": [{"code": "DIGEST_INVALID", "message": "wrong digest"}]}).encode())
                return
            state.blobs[digest] = data
            self._say(201, b"", {"Location": "/"})
        else:
            self._say(202 if self.command == "PATCH" else 204, b"", place)

    def _blobs(self, digest: str, _body: bytes) -> None:
        state = self.state
        data = state.blobs.get(digest)
        if data is None:
            self._say(404, b"{}")
        elif state.redirect and self.command == "GET":
            self._say(307, b"", {"Location": f"{state.redirect}{self.path}"})
        elif self.command == "GET" and state.faults.cut_download:
            state.faults.cut_download -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self._say(206, data[int(found[1]) :])
        else:
            self._say(200, data)

    def _manifests(self, reference: str, body: bytes) -> None:
        state = self.state
        if self.command == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            state.manifests[reference] = state.manifests[digest] = body
            state.types[digest] = self.headers["Content-Type"]
            self._say(201, b"", {"Docker-Content-Digest": digest})
        elif reference in state.manifests:
            self._say(200, state.manifests[reference])
        else:
            self._say(404, json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "none"}]}).encode())

    def _referrers(self, subject: str, _body: bytes) -> None:
        if not self.state.referrers:
            self._say(404, b"404 page not found")
            return
        entries = []
        for digest, data in self.state.manifests.items():
            raw = json.loads(data)
            if digest.startswith("sha256:") and raw.get("subject", {}).get("digest") == subject:
                entry = {"mediaType": raw["mediaType"], "digest": digest, "size": len(data), "artifactType": raw["artifactType"]}
                entries.append(entry | ({"annotations": raw["annotations"]} if "annotations" in raw else {}))
        # Two on a page, as registries do it with more.
        page = int(parse_qs(urlsplit(self.path).query).get("page", ["0"])[0])
        headers = {"Content-Type": INDEX}
        if len(entries) > 2 * page + 2:
            headers["Link"] = f'<{urlsplit(self.path).path}?page={page + 1}>; rel="next"'
        shown = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[2 * page : 2 * page + 2]}
        self._say(200, json.dumps(shown).encode(), headers)

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _basic(login: tuple[str, str]) -> str:
    return f"Basic {b64encode(':'.join(login).encode()).decode()}"
