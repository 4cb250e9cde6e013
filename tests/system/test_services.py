"""Services on a machine of namespaces, with real connections: none is refused or cut while one iteration replaces another."""

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from homes import BRIDGE, MACHINE, PORT, SHOP, Street, inside, ip, street, within
from tool import ROOT

from obelisk.instance.traffic import HOME
from obelisk.model.service import Phase

REPLACEMENTS = 20
TRIES = 15
KEPT = replace(SHOP, keep_s=600)
IMPATIENT = replace(SHOP, health_s=3)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """A machine without a service."""
    top = tmp_path_factory.mktemp("s")
    with street(top) as made:
        yield made
    assert made.prefix not in ip("netns", "list")


@contextmanager
def loaded(place: Street, *, seconds: int, where: str, address: str, header: str = "") -> Iterator[list[str]]:
    """Connections as fast as they can be had; afterwards, what wrk says of them."""
    # As much as the machine has left: commands go first.
    words = ["nice", "wrk", "--threads", "1", "--connections", "8", "--duration", f"{seconds}s", "--timeout", "10s"]
    words += ["--header", header] if header else []
    process = subprocess.Popen(
        [*within(where), *words, f"http://{address}:{PORT}/"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    try:
        yield said
    finally:
        process.send_signal(2)  # wrk then ends at once, and tells
        said.append(process.communicate(timeout=30)[0])
    assert place.machine in ip("netns", "list")


def lost(said: list[str]) -> tuple[int, list[str]]:
    """How many requests were answered, and what was not as it has to be."""
    answered = re.search(r"(\d+) requests in", said[0])
    assert answered, said
    return int(answered[1]), re.findall(r"Socket errors.*|Non-2xx.*|unable.*", said[0])


def in_order(place: Street) -> None:
    """The kernel, the instances and what is stored say the same."""
    service = place.services().look("shop")
    assert service.at_work is None
    assert service.standing(Phase.CURRENT) is not None
    there = {instance for iteration in service.iterations for instance in iteration.made}
    assert {each.name for each in (place.top / "instances").iterdir()} == there
    assert all(place.look(instance).running for instance in there)
    assert service.applied is not None
    led = {f"{address}:80" for address in re.findall(r": (10\.77\.0\.\d+) \. 80", inside(place.machine, "nft", "list", "ruleset"))}
    assert led == {share.address for share in service.applied}


def slow(place: Street, tenths: int) -> subprocess.Popen[str]:
    """A connection that lasts, and has begun."""
    program = f"import urllib.request as r; answer = r.urlopen('http://{MACHINE}:{PORT}/slow/{tenths}', timeout=60)"
    return begun(place, f"{program}; print(flush=True); print(answer.read().decode())", {"no_proxy": "*"})


def begun(place: Street, program: str, variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A program of the client's, which has said its first line."""
    argv = [*within(place.client), "python3", "-I", "-c", program]
    environment = {"PATH": "/usr/bin:/usr/sbin", **(variables or {})}
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    return process


def test_no_request_is_lost_through_deploys_and_rollbacks_under_full_load(place: Street) -> None:
    place.ok("create", terms=KEPT)
    place.ok("deploy", "v0")
    lasting = []
    closing = {"header": "Connection: close"}
    with (
        loaded(place, seconds=300, where=place.client, address=MACHINE, **closing) as elsewhere,
        loaded(place, seconds=300, where=place.machine, address="127.0.0.1", **closing) as here,
        loaded(place, seconds=300, where=place.client, address=MACHINE) as staying,
    ):
        led = "v0"
        for number in range(1, REPLACEMENTS + 1):
            if number % 5 == 0:
                lasting.append((led, slow(place, 30)))
            if number % 4 == 0:
                place.ok("rollback")
            else:
                place.ok("deploy", f"v{number}")
            current = place.services().look("shop").standing(Phase.CURRENT)
            assert current is not None
            led = current.image
            assert set(place.gets(place.client, 5)) == {led}
    for image, process in lasting:
        assert process.communicate(timeout=60)[0].strip() == image
    for said in (elsewhere, here, staying):
        answered, wrong = lost(said)
        assert answered > 1000
        assert wrong == []
    deadline = time.monotonic() + SHOP.drain_s + 5
    while any(iteration.phase is Phase.DRAINING for iteration in place.services().look("shop").iterations):
        assert time.monotonic() < deadline
        time.sleep(1)
        place.ok("tend")
    in_order(place)


def test_a_command_that_is_killed_anywhere_loses_no_request_and_leaves_nothing(place: Street) -> None:
    chance = random.Random(6)
    place.ok("create")
    place.ok("deploy", "v0")
    killed = 0
    with loaded(place, seconds=300, where=place.client, address=MACHINE, header="Connection: close") as said:
        began = time.monotonic()
        place.ok("deploy", "whole")
        took = time.monotonic() - began
        for number in range(TRIES):
            process = subprocess.Popen(place.words("deploy", f"v{number}"), stderr=subprocess.DEVNULL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(took * chance.uniform(0.2, 1))
            process.kill()
            killed += process.wait() == -9
            if number % 5 == 4:
                place.ok("tend")
                in_order(place)
    assert killed > TRIES // 2
    answered, wrong = lost(said)
    assert (answered > 1000, wrong) == (True, [])


def test_connections_are_led_from_everywhere(place: Street) -> None:
    place.ok("create")
    place.ok("deploy", "v1")
    for where in (place.machine, f"{place.prefix}-shop-1-1"):
        assert place.get(where, BRIDGE) == "v1"
    for address in ("127.0.0.1", "127.0.0.9", MACHINE):
        assert place.get(place.machine, address) == "v1"
    assert place.get(place.client) == "v1"


def test_a_canary_gets_its_share_of_new_connections_and_instances_get_equal_ones(place: Street) -> None:
    two = replace(KEPT, instances=2)
    place.ok("create", terms=two)
    place.ok("deploy", "v1", terms=two)
    place.ok("deploy", "v2", "10", terms=two)
    answers = place.gets(place.client, 200)
    assert (answers.count("v2"), answers.count("v1")) == (20, 180)
    place.ok("promote")
    assert set(place.gets(place.client, 10)) == {"v2"}
    place.ok("rollback")
    assert set(place.gets(place.client, 10)) == {"v1"}


def test_an_iteration_drains_until_its_last_connection_has_ended(place: Street) -> None:
    place.ok("create")
    place.ok("deploy", "v1")
    asks = "input(); s.sendall(b'GET / HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n'); print(s.makefile().read().split()[-1])"
    lasting = begun(place, f"import socket; s = socket.create_connection(('{MACHINE}', {PORT})); print(flush=True); {asks}")
    place.ok("deploy", "v2")
    time.sleep(2)
    place.ok("tend")
    services = place.services()
    assert place.look("shop-1-1").running
    counted = inside(place.machine, sys.executable, "-I", "-c", _COUNT, str(place.top), str(ROOT / "tests"))
    assert counted.split() == ["1", "0"]
    assert lasting.communicate("\n", timeout=60)[0].strip() == "v1"
    deadline = time.monotonic() + 10  # the other end has to close it too
    while place.look("shop-1-1").running:
        assert time.monotonic() < deadline
        place.ok("tend")
    assert services.look("shop").find(1).phase is Phase.GONE


def test_the_kernel_forgets_the_connections_of_an_instance_when_told_to(place: Street) -> None:
    place.ok("create")
    place.ok("deploy", "v1")
    assert place.get(place.client) == "v1"
    lasting = begun(place, f"import socket; s = socket.create_connection(('{MACHINE}', {PORT})); print(flush=True); input()")
    address = place.look("shop-1-1").address

    def known() -> int:
        return int(inside(place.machine, sys.executable, "-I", "-c", _KNOWN, address))

    assert known() > 1
    inside(place.machine, sys.executable, "-I", "-c", _FORGET, address, "")
    assert known() == 1
    inside(place.machine, sys.executable, "-I", "-c", _FORGET, "10.77.0.250:80", "open too")
    assert known() == 1
    inside(place.machine, sys.executable, "-I", "-c", _FORGET, address, "open too")
    assert known() == 0
    lasting.communicate("\n", timeout=20)


def test_what_the_kernel_forgets_is_never_a_newer_connection_from_the_same_port(place: Street) -> None:
    """While what is closed is looked for, and then forgotten one by one, clients use its ports again."""
    place.ok("create")
    place.ok("deploy", "v1")
    again = subprocess.Popen(
        [*within(place.client), "python3", "-c", _AGAIN, MACHINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert again.stdout is not None
    assert again.stdin is not None
    assert again.stdout.readline() == "v1\n"
    argv = [*within(place.machine), sys.executable, "-I", "-c", _FORGET_LATE, place.look("shop-1-1").address]
    forgetting = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert forgetting.stdout is not None
    assert forgetting.stdout.readline() == "1\n"
    place.ok("deploy", "v2")
    again.stdin.write("\n")
    again.stdin.flush()
    assert again.stdout.readline() == "again\n"
    forgetting.communicate("\n", timeout=20)
    assert forgetting.returncode == 0
    assert again.communicate("\n", timeout=20)[0] == "v2\n"


def test_a_deploy_that_fails_takes_no_connection_and_leaves_its_reason(place: Street) -> None:
    place.ok("create", terms=IMPATIENT)
    place.ok("deploy", "v1")
    with loaded(place, seconds=60, where=place.client, address=MACHINE, header="Connection: close") as said:
        for image, reason in (("bad", "gave no good answer to GET /health in 3 s"), ("dead", "did not stay up")):
            done = place.run("deploy", image)
            assert (done.returncode, reason in done.stderr) == (5, True), done.stderr
    answered, wrong = lost(said)
    assert (answered > 100, wrong) == (True, [])
    assert [each.name for each in (place.top / "instances").iterdir()] == ["shop-1-1"]
    in_order(place)


def test_what_others_have_broken_is_mended(place: Street) -> None:
    place.ok("create")
    place.ok("deploy", "v1")
    inside(place.machine, "nft", "flush", "ruleset")
    place.retire("shop-1-1")
    place.ok("tend")
    assert place.get(place.client) == "v1"
    in_order(place)


def test_a_port_at_which_a_program_listens_is_refused(place: Street) -> None:
    listener = subprocess.Popen(
        [*within(place.machine), "python3", "-m", "http.server", str(PORT), "--bind", "127.0.0.1"], stderr=-3, stdout=-3
    )
    try:
        wait_for_listener(place, str(PORT))
        done = place.run("create")
        assert (done.returncode, done.stderr.split(":")[0]) == (5, "port-taken")
    finally:
        listener.kill()
        listener.wait()
    place.ok("create")


def test_the_second_of_two_commands_is_told_of_the_first(place: Street) -> None:
    place.ok("create", terms=IMPATIENT)
    first = subprocess.Popen(place.words("deploy", "bad"), stderr=subprocess.DEVNULL)
    while place.services().look("shop").at_work is None:
        assert first.poll() is None
        time.sleep(0.02)
    done = place.run("deploy", "v1")
    assert done.stderr.startswith("service-busy")
    assert first.wait(60) == 5
    place.ok("deploy", "v1")


def test_a_retired_service_leaves_nothing(place: Street) -> None:
    place.ok("create")
    place.ok("deploy", "v1")
    place.ok("deploy", "v2")
    place.ok("retire")
    assert list((place.top / "instances").iterdir()) == []
    assert inside(place.machine, "nft", "list", "ruleset") == ""
    assert place.services().names() == ()
    with pytest.raises(subprocess.CalledProcessError):
        place.get(place.client)


def test_an_instance_at_an_address_of_the_machine_is_reached_by_the_service_alone(place: Street) -> None:
    """As engines have it that lead ports of the machine into instances."""
    place.ok("create")
    inside(place.client, "ip", "route", "add", HOME, "via", MACHINE)
    engine = [*within(place.machine), sys.executable, "-I", str(ROOT / "tests/home.py"), "v1", "9998", "at-home"]
    forward = subprocess.Popen(engine)
    try:
        wait_for_listener(place, "9998")
        reach = ["python3", "-I", "-c", f"import socket; socket.create_connection(('{HOME}', 9998), 2)"]
        inside(place.client, *reach)
        place.ok("lead", f"{HOME}:9998")
        for where, address in ((place.client, MACHINE), (place.machine, "127.0.0.1"), (place.machine, MACHINE)):
            assert place.get(where, address) == "v1"
        with pytest.raises(subprocess.CalledProcessError):
            inside(place.client, *reach)
        for device in ("out", "homes"):  # a machine without a network
            inside(place.machine, "ip", "address", "flush", "dev", device)
        assert place.get(place.machine, "127.0.0.1") == "v1"
    finally:
        forward.kill()
        forward.wait()


def wait_for_listener(place: Street, port: str) -> None:
    """Until a program of the machine listens at the port."""
    deadline = time.monotonic() + 20
    while f":{port} " not in inside(place.machine, "ss", "-Hltn"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


_KNOWN = """\
import sys; from obelisk.system import conntrack
with conntrack._asking() as asked:
    print(len([*conntrack._connections(asked, sys.argv[1])]))
"""
_FORGET = "import sys; from obelisk.system import conntrack; conntrack.forget(sys.argv[1], open_too=bool(sys.argv[2]))"
_CLIENT_PORT = 40001
_FORGET_LATE = f"""\
import sys; from obelisk.system import conntrack
with conntrack._asking() as asked:
    found = [each[conntrack._REPLY] for each in conntrack._connections(asked, sys.argv[1])]
    found = [each for each in found if ({_CLIENT_PORT}).to_bytes(2, "big") in each]
    print(len(found), flush=True)
    input()
    for each in found:
        conntrack._delete(asked, each)
"""
_AGAIN = f"""\
import socket, sys
def begun(path):
    made = socket.socket()
    made.settimeout(10)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", {_CLIENT_PORT}))
    made.connect((sys.argv[1], {PORT}))
    made.sendall(f"GET {{path}} HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n".encode())
    return made
def ended(made):
    with made, made.makefile("rb") as answer:
        print(answer.read().decode().split()[-1], flush=True)
ended(begun("/"))
input()
second = begun("/slow/30")
print("again", flush=True)
input()
ended(second)
"""
_COUNT = """\
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path; from homes import Street
services = Street(Path(sys.argv[1])).services()
print(*services.open_connections(services.look("shop")).values())
"""
