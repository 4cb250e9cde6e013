"""A network by host names: only what a granted name answers is reached, as long as the answer holds, and nothing else is asked."""

import ast
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from ordinary import UID
from sandboxes import ROOT_USER, WITH_TUNNEL, Bare, application, places
from tool import Tool

from obelisk.model import service as instances
from obelisk.model.application import Application, Service
from obelisk.model.canonical import canonical
from obelisk.model.policy import Connect, Listen, Policy, Reach, policy
from obelisk.model.service import SERVICE_FILE, Terms
from obelisk.sandbox import network
from obelisk.sandbox.installed import State
from obelisk.system import resolver as program
from obelisk.system.confine import Owner

APP = Application(("/usr/bin/python3", "-I", "-c"))

# A network of this test's own, with a name server, and servers that tell at which address and port they were reached.
_WORLD = r"""
import json, os, socket, struct, subprocess, sys, threading
place, names = sys.argv[1], json.loads(sys.argv[2])
for words in ("link set lo up", "link add outer type veth peer name inner", "address add 10.9.0.2/24 dev outer", "link set outer up",
              "link set inner up", "route add default via 10.9.0.1",
              *(f"address add 10.8.0.{n}/32 dev lo" for n in (1, 2, 3, 53))):
    subprocess.run(["ip", *words.split()], check=True)
asked = []
def answer(message):
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    name, (kind,) = ".".join(labels).lower(), struct.unpack(">H", message[at + 1 : at + 3])
    asked.append(name)
    open(f"{place}/asked", "w").write(json.dumps(asked))
    found = names.get(name)
    records = []
    for value, ttl in found or []:
        if value[0].isdigit():
            if kind == 1:
                records.append(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, ttl, 4) + socket.inet_aton(value))
        else:
            target = b"".join(bytes([len(p)]) + p.encode() for p in value.split(".")) + b"\0"
            records.append(b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, ttl, len(target)) + target)
            records += [target + struct.pack(">HHIH", 1, 1, t, 4) + socket.inet_aton(v) for v, t in names[value]] if kind == 1 else []
    flags = 0x8180 | (0 if found is not None else 3)
    return struct.pack(">6H", struct.unpack(">H", message[:2])[0], flags, 1, len(records), 0, 0) + message[12 : at + 5] + b"".join(records)
def serve_names():
    while True:
        message, sender = server.recvfrom(4096)
        server.sendto(answer(message), sender)
def serve(listening):
    while True:
        connection, _ = listening.accept()
        connection.sendall(("%s:%d" % connection.getsockname()).encode())
        connection.close()
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.8.0.53", 53))
threading.Thread(target=serve_names, daemon=True).start()
for address in ("10.8.0.1", "10.8.0.2", "10.8.0.3", "10.8.0.53"):
    for port in (8080, 9090):
        threading.Thread(target=serve, args=(socket.create_server((address, port)),), daemon=True).start()
raise SystemExit(subprocess.run(sys.argv[3:]).returncode)
"""
NAMES = {
    "granted.test": [("10.8.0.1", 300)],
    "alias.test": [("other.test", 300)],
    "other.test": [("10.8.0.2", 300)],
    "brief.test": [("10.8.0.3", 1)],
    "inward.test": [("127.0.0.1", 300), ("169.254.1.1", 300)],
}
_TRIES = """
import json, socket, struct, sys, time
def reach(host, port):
    try:
        with socket.create_connection((host, port), timeout=3) as there:
            return there.recv(100).decode()
    except OSError as error:
        return type(error).__name__
def ask(server, name, number=7):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack(">6H", number, 256, 1, 0, 0, 0) + labels + bytes([0, 0, 1, 0, 1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        try:
            asking.sendto(message, (server, 53))
            return asking.recv(500)[3] & 15
        except OSError as error:
            return type(error).__name__
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with places() as place:
        yield place


def say(place: Path, held: Policy, command: str, *, owner: Owner = ROOT_USER) -> str:
    """What a program says in the sandbox, started by `owner` in the network of this test's own."""
    bare = Bare(place, owner)
    resolver, servers = bare.plan / "resolv.conf", place / "servers"
    resolver.write_text(network.RESOLVER)
    (bare.plan / "resolver.py").write_bytes(Path(program.__file__).read_bytes())
    servers.write_text("nameserver 10.8.0.53\n")
    inner = f'mount --bind {servers} /etc/resolv.conf; exec "$@"'
    world = ["unshare", "--net", "python3", "-I", "-c", _WORLD, str(place), json.dumps(NAMES)]
    words = [*WITH_TUNNEL, "sh", "-euc", inner, "sh", *world, *bare.start(APP, held, resolver=resolver), _TRIES + command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


GRANTED = policy([Reach(f"{name}.test", 8080) for name in ("granted", "alias", "brief", "inward", "nowhere")])


@pytest.mark.parametrize("owner", [ROOT_USER, Owner(UID, UID)], ids=["root", "ordinary user"])
def test_a_granted_name_is_reached_at_its_port_and_no_other_is(place: Path, owner: Owner) -> None:
    command = """print([
        reach("10.8.0.1", 8080), reach("granted.test", 8080), reach("10.8.0.1", 8080), reach("10.8.0.1", 9090), reach("granted.test", 9090),
        reach("alias.test", 8080), reach("other.test", 8080), reach("nowhere.test", 8080), reach("inward.test", 8080),
        reach("10.8.0.53", 8080), reach("10.8.0.3", 8080)])"""
    assert ast.literal_eval(say(place, GRANTED, command, owner=owner)) == [
        "OSError",
        "10.8.0.1:8080",
        "10.8.0.1:8080",
        "PermissionError",
        "PermissionError",
        "10.8.0.2:8080",
        "gaierror",
        "gaierror",
        "gaierror",
        "OSError",
        "OSError",
    ]
    assert {*json.loads((place / "asked").read_text())} == {"granted.test", "alias.test", "nowhere.test", "inward.test"}


def test_the_way_closes_when_the_answer_no_longer_holds(place: Path) -> None:
    brief, address = 'reach("brief.test", 8080)', 'reach("10.8.0.3", 8080)'
    command = f"print([{brief}, {address}, time.sleep(12), {address}, {brief}])"
    assert ast.literal_eval(say(place, GRANTED, command)) == ["10.8.0.3:8080", "10.8.0.3:8080", None, "OSError", "10.8.0.3:8080"]


def test_nobody_but_the_resolver_asks_the_machines_and_nobody_answers_in_its_name(place: Path) -> None:
    """An application may bind a socket to any address, and take the resolver's port after it: neither leads anywhere."""
    command = """
servers = ("127.0.0.1", "192.0.2.53", "10.8.0.53")
print([ask("127.0.0.1", "granted.test"), *(ask(server, "secret.test") for server in servers)])
answers = []
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forged:
    forged.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
    forged.bind(("192.0.2.53", 5353))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.1", 0))
        there.settimeout(1)
        try:
            forged.sendto(b"x", there.getsockname())
            answers.append(there.recv(10))
        except OSError as error:
            answers.append(type(error).__name__)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as marked:
    try:
        marked.setsockopt(socket.SOL_SOCKET, 36, 0x6F62656C)
        answers.append("marked")
    except OSError as error:
        answers.append(type(error).__name__)
print(answers)
"""
    asked, answers = map(ast.literal_eval, say(place, GRANTED, command).splitlines())
    assert asked[:2] == [0, 5]
    assert all(isinstance(each, str) for each in asked[2:]), asked
    assert answers[0] != b"x"
    assert answers[1] == "PermissionError"
    assert "secret.test" not in json.loads((place / "asked").read_text())


def test_a_port_that_the_resolver_asked_from_leads_nowhere_for_others(place: Path) -> None:
    """The kernel remembers who has spoken with whom; what the rules say of the machine's resolver comes before that."""
    command = """
reach("granted.test", 8080)
found = []
for port in range(32768, 61000, 1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        try:
            taken.bind(("0.0.0.0", port))
            taken.sendto(b"", ("192.0.2.53", 53))
            found.append(port)
        except OSError:
            pass
print(found)
"""
    assert say(place, GRANTED, command) == "[]\n"


def test_networks_and_names_go_together_and_plain_networks_have_no_resolver(place: Path) -> None:
    both = policy([Reach("granted.test", 8080), Connect("10.8.0.2/32", 9090)])
    command = 'print([reach("granted.test", 8080), reach("10.8.0.2", 9090), reach("10.8.0.2", 8080), ask("127.0.0.1", "granted.test")])'
    assert ast.literal_eval(say(place, both, command)) == ["10.8.0.1:8080", "10.8.0.2:9090", "OSError", 0]
    plain = ast.literal_eval(say(place, policy([Connect("10.8.0.2/32", 9090)]), command))
    assert plain == ["gaierror", "10.8.0.2:9090", "PermissionError", "TimeoutError"]


def test_the_resolver_ends_with_the_application(place: Path) -> None:
    say(place, GRANTED, 'reach("granted.test", 8080)')
    left = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            left += [status] if str(place).encode() in status.read_bytes() else []
    assert left == []


def test_a_service_is_reached_by_its_name_and_nothing_else_of_the_loopback(applications: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of instances and an installed application; neither's port stands in the policy."""
    asks = 'use IO::Socket::INET; for (@ARGV) { $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$_", Timeout => 5); '
    asks += 'print $s ? scalar <$s> : "$!\\n" }'
    with places() as place, ExitStack() as held:
        there = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [server.getsockname()[1] for server in there]
        for number, server in enumerate(there):
            threading.Thread(target=_greets, args=(server, f"number {number}\n".encode()), daemon=True).start()
        monkeypatch.setenv("OBELISK_SERVICES", str(place / "services"))
        _known(place, "shop", ports[0], "db", ports[1])
        text = '[app]\ncommand = ["/usr/bin/perl", "-e"]\n[grants]\nconnect = ["service:shop", "service:db"]\n'
        app = replace(application(applications, "caller", text), prefix=WITH_TUNNEL)
        assert "opens connections to the service db of this machine" in app.run("app", "show", str(app.spec))
        said = app.run("app", "run", str(app.spec), "--", asks, *map(str, ports)).splitlines()
        assert said == ["number 0", "number 1", "Permission denied"]  # by Landlock, before there is nobody
        # Its port changes, or it goes.
        _known(place, "shop", ports[2], "db", ports[1])
        assert app.run("app", "run", str(app.spec), "--", asks, str(ports[2])) == "number 2\n"
        shutil.rmtree(place / "services")
        error = app.refused("app", "ready", str(app.spec), status=5)
        assert (error["code"], "the service shop" in error["message"]) == ("service-missing", True)
        assert "proof: " in app.run("test", str(app.spec))


def _greets(server: socket.socket, word: bytes) -> None:
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(word)


def _known(place: Path, service: str, port: int, installed: str, other: int) -> None:
    """What the machine knows of a service of instances, and of an application that is installed."""
    terms = Terms(name=service, port=port, guest_port=80)
    (place / "services" / service).mkdir(parents=True, exist_ok=True)
    (place / "services" / service / SERVICE_FILE).write_bytes(canonical({"schema": instances.SCHEMA, **instances.Service(terms).to_json()}))
    kept = place / "installed" / installed
    (kept / "images/one").mkdir(parents=True, exist_ok=True)
    (kept / "state.json").write_bytes(State("one").to_bytes())
    app = Application(("/usr/bin/db",), policy=policy([Listen(other)]), service=Service())
    (kept / "images/one/application.json").write_bytes(app.to_bytes())
