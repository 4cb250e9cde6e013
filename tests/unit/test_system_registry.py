"""The client of registries: what it sends, what it puts up with, and what it says when something is wrong."""

import hashlib
import json
import socket
import stat
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fake_registry import Faults
from fake_registry import Registry as Fake

from obelisk.errors import InputError, TransportError, TrustError
from obelisk.system import logins, registry, registry_wire
from obelisk.system.logins import Login
from obelisk.system.registry import Registry, is_local

DATA = bytes(range(256)) * 5000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
LOGIN = Login("me", "secret")


def ignored(_count: int) -> None:
    """Nobody wants to know."""


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("piece_bytes", [len(DATA), 100_000])
def test_a_blob_goes_up_whole_or_in_pieces_and_comes_back(
    blob: Path, tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PIECE_BYTES", piece_bytes)
    fake = Fake()
    told: list[int] = []
    with fake.served() as host, Registry(host, "shop") as client:
        assert not client.has_blob(DIGEST)
        client.upload(DIGEST, blob, on_bytes=told.append)
        assert client.has_blob(DIGEST)
        client.download(DIGEST, len(DATA), tmp_path / "back", on_bytes=ignored)
    assert fake.blobs == {DIGEST: DATA}
    assert sum(told) == len(DATA) == client.sent_bytes
    assert (tmp_path / "back").read_bytes() == DATA
    assert len([request for request in fake.requests if request.startswith("PATCH")]) == (0 if piece_bytes == len(DATA) else 13)


def test_an_upload_goes_on_where_it_was_cut(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PIECE_BYTES", 400_000)
    fake = Fake(faults=Faults(cut_upload=2))
    with fake.served() as host, Registry(host, "shop") as client:
        client.upload(DIGEST, blob, on_bytes=ignored)
    assert fake.blobs == {DIGEST: DATA}


def test_an_upload_that_is_cut_for_ever_ends(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PIECE_BYTES", 400_000)
    fake = Fake(faults=Faults(cut_upload=1000))
    with fake.served() as host, Registry(host, "shop") as client, pytest.raises(TransportError) as caught:
        client.upload(DIGEST, blob, on_bytes=ignored)
    assert caught.value.code == "registry-lost"


def test_a_download_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    fake = Fake(faults=Faults(cut_download=1), blobs={DIGEST: DATA})
    with fake.served() as host, Registry(host, "shop") as client:
        client.download(DIGEST, len(DATA), tmp_path / "back", on_bytes=ignored)
    assert (tmp_path / "back").read_bytes() == DATA


@pytest.mark.parametrize("damaged", [DATA[:-1], DATA + b"x", DATA[:1000] + b"x" + DATA[1001:]])
def test_a_damaged_blob_is_refused(tmp_path: Path, damaged: bytes) -> None:
    fake = Fake(blobs={DIGEST: damaged})
    with fake.served() as host, Registry(host, "shop") as client:
        with pytest.raises(TrustError) as caught:
            client.download(DIGEST, len(DATA), tmp_path / "back", on_bytes=ignored)
        assert caught.value.code == "registry-damaged"
        assert DIGEST in caught.value.message
        with pytest.raises(TrustError):
            client.read(DIGEST, len(DATA))


def test_a_manifest_other_than_its_digest_is_refused() -> None:
    fake = Fake(manifests={DIGEST: b"{}"})
    with fake.served() as host, Registry(host, "shop") as client, pytest.raises(TrustError) as caught:
        client.manifest(DIGEST)
    assert caught.value.code == "registry-damaged"


def test_a_document_without_an_end_is_refused() -> None:
    fake = Fake(manifests={"1": b"x" * (registry_wire.DOCUMENT_BYTES + 1)})
    with fake.served() as host, Registry(host, "shop") as client, pytest.raises(TransportError) as caught:
        client.manifest("1")
    assert caught.value.code == "registry-too-long"


@pytest.mark.parametrize("bearer", [False, True])
def test_a_login_is_shown_when_it_is_asked_for(blob: Path, *, bearer: bool) -> None:
    fake = Fake(login=("me", "secret"), bearer=bearer)
    with fake.served() as host, Registry(host, "shop", login=LOGIN) as client:
        client.upload(DIGEST, blob, on_bytes=ignored)
    assert fake.blobs == {DIGEST: DATA}
    assert fake.shown[0] == ""


def test_a_token_that_expires_is_replaced(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PIECE_BYTES", 400_000)
    fake = Fake(bearer=True, faults=Faults(expire_token=1))
    with fake.served() as host, Registry(host, "shop") as client:
        client.upload(DIGEST, blob, on_bytes=ignored)
    assert fake.blobs == {DIGEST: DATA}


@pytest.mark.parametrize("bearer", [False, True])
@pytest.mark.parametrize(("login", "hint"), [(None, "log in first"), (Login("me", "wrong"), "'me'")])
def test_without_the_right_login_it_says_how_to_log_in(login: Login | None, hint: str, *, bearer: bool) -> None:
    fake = Fake(login=("me", "secret"), bearer=bearer)
    with fake.served() as host, Registry(host, "shop", login=login) as client, pytest.raises(TransportError) as caught:
        client.manifest("1")
    assert caught.value.code == "registry-denied"
    assert hint in caught.value.hint
    assert "wrong" not in caught.value.message


def test_a_redirected_blob_comes_without_the_login_being_shown_there(tmp_path: Path) -> None:
    bucket = Fake(blobs={DIGEST: DATA})
    with bucket.served() as elsewhere:
        fake = Fake(login=("me", "secret"), redirect=f"http://{elsewhere}", blobs={DIGEST: b""})
        with fake.served() as host, Registry(host, "shop", login=LOGIN) as client:
            client.download(DIGEST, len(DATA), tmp_path / "back", on_bytes=ignored)
    assert (tmp_path / "back").read_bytes() == DATA
    assert bucket.shown == [""]


def test_a_redirection_in_circles_ends(tmp_path: Path) -> None:
    fake = Fake(blobs={DIGEST: DATA})
    with fake.served() as host, Registry(host, "shop") as client:
        fake.redirect = f"http://{host}"
        with pytest.raises(TransportError) as caught:
            client.download(DIGEST, len(DATA), tmp_path / "back", on_bytes=ignored)
    assert caught.value.code == "registry-redirect"


def test_what_the_registry_says_of_an_error_is_passed_on() -> None:
    fake = Fake(faults=Faults(errors=1))
    with fake.served() as host, Registry(host, "shop") as client, pytest.raises(TransportError) as caught:
        client.manifest("1")
    assert "503" in caught.value.message
    assert "UNAVAILABLE: busy" in caught.value.message


def test_no_registry_is_named_by_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    with Registry(host, "shop") as client, pytest.raises(TransportError) as caught:
        client.manifest("1")
    assert caught.value.code == "registry-unreachable"
    assert host in caught.value.message


def test_a_registry_without_tls_is_only_used_when_that_is_asked_for() -> None:
    fake = Fake(manifests={"1": b"{}"})
    with fake.served() as host:
        with Registry(host, "shop", plain=False) as client, pytest.raises(TransportError) as caught:
            client.manifest("1")
        assert "--plain-http" in caught.value.hint
        with Registry(host, "shop", plain=True) as client:
            assert client.manifest("1") == b"{}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(made.public_bytes(Encoding.PEM) + private)
    return file


def test_tls_takes_a_certificate_that_is_trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(manifests={"1": b"{}"}, certificate=certificate)
    with fake.served() as host:
        with Registry(host, "shop", plain=False) as client, pytest.raises(TransportError) as caught:
            client.manifest("1")
        assert caught.value.code == "registry-tls"
        assert "SSL_CERT_FILE" in caught.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Registry(host, "shop", plain=False) as client:
            assert client.manifest("1") == b"{}"


def test_a_login_goes_through_no_proxy_in_the_clear(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fake = Fake(manifests={"1": b"{}"}, certificate=certificate, login=("me", "secret"))
    with fake.served() as host, proxy() as (address, seen):
        monkeypatch.setenv("https_proxy", f"http://friend:of%20ours@{address}")
        with Registry(host, "shop", login=LOGIN, plain=False) as client:
            assert client.manifest("1") == b"{}"
        (asked,) = seen
        assert asked.startswith(f"CONNECT {host} ".encode())
        assert b"Proxy-Authorization: Basic " + b64encode(b"friend:of ours") in asked
        assert b64encode(b"me:secret") not in asked


@contextmanager
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that connects one client at a time, and what it is told."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _address = server.accept()
            with client:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                seen.append(head)
                host, port = head.split()[1].decode().rsplit(":", 1)
                with socket.create_connection((host, int(port))) as there:
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    back = threading.Thread(target=relay, args=(there, client), daemon=True)
                    back.start()
                    relay(client, there)
                    back.join()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", seen
        thread.join()


def relay(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until nothing more does."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "a.localhost"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1:5000", "localhost.example.org", "127.example.org"])
def test_any_other_does(host: str) -> None:
    assert not is_local(host)


# Logins


def stored(path: Path, host: str, text: str = "me:secret") -> Path:
    path.write_text(json.dumps({"auths": {host: {"auth": b64encode(text.encode()).decode()}}}))
    return path


@pytest.mark.parametrize("key", ["localhost:5000", "https://localhost:5000", "https://localhost:5000/v2/"])
def test_a_login_is_found_by_its_host(tmp_path: Path, key: str) -> None:
    file = stored(tmp_path / "config.json", key)
    assert logins.find("localhost:5000", file=file) == LOGIN
    assert logins.find("localhost:5001", file=file) is None


def test_files_of_podman_and_docker_are_looked_at_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert logins.find("a:1") is None
    (tmp_path / ".docker").mkdir()
    stored(tmp_path / ".docker/config.json", "a:1", "docker:x")
    found = logins.find("a:1")
    assert found is not None
    assert found.name == "docker"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(stored(tmp_path / "auth.json", "a:1", "podman:x")))
    found = logins.find("a:1")
    assert found is not None
    assert found.name == "podman"


def test_a_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-vault"
    helper.write_text('#!/bin/sh\nread -r host\n[ "$host" = a:1 ] || exit 1\necho \'{"Username": "me", "Secret": "secret"}\'\n')
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"credsStore": "vault"}))
    assert logins.find("a:1", file=file) == LOGIN
    assert logins.find("b:1", file=file) is None


@pytest.mark.parametrize("text", ["", "[]", '{"auths": []}', '{"auths": {"a:1": {"auth": "!"}}}', '{"auths": {"a:1": {"auth": "eA=="}}}'])
def test_a_damaged_file_of_logins_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        logins.find("a:1", file=file)
    assert str(file) in caught.value.message


def test_a_file_of_logins_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        logins.find("a:1", file=tmp_path / "none")
    assert caught.value.code == "login-file"


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(LOGIN)
