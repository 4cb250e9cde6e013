"""Nothing that a web server answers goes further than it must."""

import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from lying_server import Lie, LyingServer, serving

from obelisk.errors import InputError, TransportError
from obelisk.system.http import Client, HttpError, Limits, Proxies

DATA = bytes(range(256)) * 400
QUICK = Limits(connect_s=0.4, idle_s=0.4, window_s=0.3, least_bytes_s=2000)


@pytest.fixture
def server() -> Iterator[LyingServer]:
    with serving(LyingServer({"file": DATA, "empty": b""})) as started:
        yield started


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(QUICK) as made:
        yield made


def fetch(client: Client, server: LyingServer, path: str = "file", part: range | None = None, most: int = len(DATA)) -> bytes:
    with client.get(f"{server.address}/{path}", most_bytes=most, part=part) as answer:
        return answer.read()


def test_a_file_comes_whole_and_connections_are_used_again(client: Client, server: LyingServer) -> None:
    for _ in range(3):
        assert fetch(client, server) == DATA
        assert fetch(client, server, "empty") == b""
    parts = [range(1), range(5, 1000), range(len(DATA) - 1, len(DATA))]
    assert [fetch(client, server, part=part) for part in parts] == [DATA[part.start : part.stop] for part in parts]
    assert server.connections == 1


LIES = {
    Lie.TRUNCATED: ("http-cut-short", "cut short"),
    Lie.TRUNCATED_CHUNKED: ("http-cut-short", "cut short"),
    Lie.LONGER: ("http-too-long", "announces"),
    Lie.ENDLESS: ("http-too-long", "sends more"),
    Lie.ENDLESS_CHUNKED: ("http-too-long", "sends more"),
    Lie.SLOW: ("http-slow", "too slow"),
    Lie.SLOW_HEADERS: ("http-slow", "too slow"),
    Lie.STALLED: ("http-stalled", "no longer"),
    Lie.SILENT: ("http-stalled", "does not answer"),
    Lie.LOOP: ("http-redirect", "more than 5 times"),
    Lie.TO_FILE: ("http-redirect", "file:///etc/passwd"),
    Lie.GARBAGE: ("http-wrong", "talks no HTTP"),
    Lie.CLOSED: ("http-wrong", "ends the connection"),
    Lie.COMPRESSED: ("http-wrong", "gzip"),
    Lie.BUSY: ("http-status", "503"),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name.lower())
def test_a_lie_about_a_file_ends_soon_and_is_named_with_the_address(client: Client, server: LyingServer, lie: Lie) -> None:
    server.lies["file"] = lie
    began = time.monotonic()
    with pytest.raises(TransportError) as caught:
        fetch(client, server)
    assert time.monotonic() - began < 2
    code, words = LIES[lie]
    assert caught.value.code == code
    assert words in caught.value.message
    assert f"{server.address}/file" in caught.value.message
    assert caught.value.hint
    server.lies.clear()
    assert fetch(client, server) == DATA  # the client is none the worse for it


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (Lie.OTHER_RANGE, "bytes 101-200"),
        (Lie.UNNAMED_RANGE, "does not name"),
        (Lie.RANGE_LENGTH, "are 101"),
        (Lie.TRUNCATED, "cut short after 50"),
    ],
)
def test_a_range_is_the_one_that_was_asked_for(client: Client, server: LyingServer, lie: Lie, words: str) -> None:
    server.lies["file"] = lie
    with pytest.raises(TransportError, match=words):
        fetch(client, server, part=range(100, 200))


def test_a_server_without_ranges_is_seen_to_be_one(client: Client, server: LyingServer) -> None:
    server.lies["file"] = Lie.NO_RANGES
    with client.get(f"{server.address}/file", most_bytes=len(DATA), part=range(100, 200)) as answer:
        assert answer.start == 0
        assert answer.read() == DATA


def test_what_is_longer_than_it_may_be_is_not_read(client: Client, server: LyingServer) -> None:
    with pytest.raises(TransportError, match="at most 10 belong") as caught:
        fetch(client, server, most=10)
    assert caught.value.code == "http-too-long"


def test_an_unchanged_file_is_not_sent_again(client: Client, server: LyingServer) -> None:
    address = f"{server.address}/file"
    with client.get(address, most_bytes=len(DATA)) as answer:
        assert answer.read() == DATA
    sent = server.sent_bytes
    with client.get(address, most_bytes=len(DATA), etag=answer.etag) as again:
        assert again.unchanged
    assert server.sent_bytes == sent
    server.files["file"] = b"new"
    with client.get(address, most_bytes=len(DATA), etag=answer.etag) as third:
        assert not third.unchanged
        assert third.read() == b"new"
    assert server.connections == 1


def test_redirections_are_followed(client: Client, server: LyingServer) -> None:
    server.moved = {"old": "/older", "older": f"{server.address}/file"}
    assert fetch(client, server, "old") == DATA


def test_a_connection_that_was_closed_meanwhile_is_opened_anew(client: Client, server: LyingServer) -> None:
    assert fetch(client, server) == DATA
    next(iter(client._own.open.values())).sock._plain.shutdown(2)  # type: ignore[union-attr]
    assert fetch(client, server) == DATA
    assert server.connections == 2


def test_a_connection_that_an_answer_ends_is_watched_when_it_is_opened_anew(client: Client, server: LyingServer) -> None:
    server.lies["closing"] = Lie.LAST
    server.files["closing"] = DATA
    for lie, code in ((Lie.SLOW, "http-slow"), (Lie.STALLED, "http-stalled")):
        assert fetch(client, server, "closing") == DATA
        server.lies["file"] = lie
        with pytest.raises(TransportError) as caught:
            fetch(client, server)
        assert caught.value.code == code


def test_a_block_that_ends_early_leaves_nothing_for_the_next(client: Client, server: LyingServer) -> None:
    with client.get(f"{server.address}/file", most_bytes=len(DATA)) as answer:
        assert next(answer.chunks())
    assert fetch(client, server, "empty") == b""


def test_an_answer_that_nobody_reads_on_is_in_nobody_s_way(client: Client, server: LyingServer) -> None:
    with client.get(f"{server.address}/file", most_bytes=len(DATA)) as answer:
        assert next(answer.chunks())
        assert fetch(client, server) == DATA


def test_threads_do_not_get_each_other_s_answers(server: LyingServer) -> None:
    server.files |= {str(number): bytes([number]) * 50_000 for number in range(4)}
    # With time enough: on a busy machine, one of eight threads may not have its turn for as long as a quick client waits.
    with Client() as client, ThreadPoolExecutor(4) as pool:

        def many(number: int) -> set[bytes]:
            return {fetch(client, server, str(number)) for _ in range(20)}

        assert list(pool.map(many, range(4))) == [{server.files[str(number)]} for number in range(4)]
    assert server.connections <= 4


def test_errors_of_the_caller_are_not_taken_for_the_server_s(client: Client, server: LyingServer) -> None:
    error = OSError("mine")
    with pytest.raises(OSError, match="mine"), client.get(f"{server.address}/file", most_bytes=len(DATA)):
        raise error


def test_a_missing_file_is_told_from_a_server_that_is_not_there(client: Client, server: LyingServer) -> None:
    with pytest.raises(HttpError) as caught:
        fetch(client, server, "none")
    assert caught.value.status == 404
    with pytest.raises(TransportError) as refused, client.get("http://127.0.0.1:1/x", most_bytes=1):
        pass
    assert refused.value.code == "http-unreachable"


@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://", "ftp://example.org/", "http://[", "http://h:99999/"])
def test_what_is_no_address_is_refused_as_input(client: Client, address: str) -> None:
    with pytest.raises(InputError, match="no address"), client.get(address, most_bytes=1):
        pass


def test_the_bandwidth_is_kept(server: LyingServer) -> None:
    with Client(Limits(bandwidth_bytes_s=len(DATA) * 4)) as client:
        began = time.monotonic()
        assert fetch(client, server) == DATA
        assert 0.2 < time.monotonic() - began < 1


def test_a_proxy_is_told_the_whole_address_and_nobody_else(server: LyingServer) -> None:
    proxies = Proxies(server.address.replace("http://", "http://user:secret@"))
    address = "http://releases.example/file"
    with Client(QUICK, proxies=proxies) as client, client.get(address, most_bytes=len(DATA)) as answer:
        assert answer.read() == DATA
    assert server.requests[0].path == "http://releases.example/file"


def test_the_environment_names_proxies(server: LyingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "127.0.0.1,.inside.example")
    with Client(QUICK) as client:
        with client.get("http://releases.example/file", most_bytes=len(DATA)) as answer:
            answer.read()
        fetch(client, server)
    assert [request.path for request in server.requests] == ["http://releases.example/file", "/file"]
    assert Proxies().of("http", "a.inside.example") == ""
    assert Proxies("http://p:1").of("https", "a.inside.example") == ""
    assert Proxies("http://p:1").of("https", "a.outside.example") == "http://p:1"


def test_a_proxy_without_the_right_to_go_there_is_named(server: LyingServer) -> None:
    with (
        Client(QUICK, proxies=Proxies(server.address)) as client,
        pytest.raises(TransportError, match="Tunnel connection failed"),
        client.get("https://releases.example/file", most_bytes=1),
    ):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and a certificate of its own for 127.0.0.1."""
    key = ec.derive_private_key(4711, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return file


@pytest.fixture
def secure(certificate: Path) -> Iterator[LyingServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(LyingServer({"file": DATA}), tls=context) as started:
        yield started


def test_tls_is_with_servers_whose_authority_is_known(secure: LyingServer, certificate: Path) -> None:
    with Client(QUICK, authorities=str(certificate)) as client:
        assert fetch(client, secure) == DATA
        assert fetch(client, secure, part=range(5, 10)) == DATA[5:10]
    assert secure.connections == 1
    with Client(QUICK) as stranger, pytest.raises(TransportError, match="certificate is refused") as caught:
        fetch(stranger, secure)
    assert caught.value.code == "http-tls"
    assert "clock" in caught.value.hint


def test_from_https_nobody_is_sent_to_http(secure: LyingServer, server: LyingServer, certificate: Path) -> None:
    secure.moved = {"file": f"{server.address}/file"}
    with Client(QUICK, authorities=str(certificate)) as client, pytest.raises(TransportError, match="which is not https") as caught:
        fetch(client, secure)
    assert caught.value.code == "http-redirect"
    assert server.requests == []
