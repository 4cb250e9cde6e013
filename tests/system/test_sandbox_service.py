"""A service ends when it is asked to, as it wants to: signals reach the application and nothing that stands around it.

Programs of this machine stand in for an image; systemd's part, one signal to every process of a service, is played.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sandboxes import WITH_TUNNEL

from obelisk.model.application import Application
from obelisk.model.policy import Listen, Policy, policy
from obelisk.sandbox.machine import Machine, this_machine
from obelisk.sandbox.plan import Guard, Place, compile_plan
from obelisk.system.confine import Owner

SERVER = r"""
import os, signal, socket, sys, time
def end(number, frame):
    os.write(1, b"finishing\n")
    time.sleep(0.3)
    os.write(1, b"finished\n")
    sys.exit(7)
signal.signal(signal.SIGTERM, end if "stubborn" not in sys.argv else signal.SIG_IGN)
print("up", os.getpid(), os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS"), flush=True)
if "serve" in sys.argv:
    listener = socket.socket(fileno=3)
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"served")
        connection.close()
while True:
    time.sleep(10)
"""
PORT = 18391


@pytest.fixture(scope="module")
def machine() -> Machine:
    """This one; whether it can give a network is the tunnel's business, which the tests bring."""
    return replace(this_machine(), network="")


@pytest.fixture
def place() -> Iterator[Place]:
    """Where a plan lies; the root is this machine's own."""
    directory = Path(tempfile.mkdtemp(prefix="obelisk-test-", dir="/run"))
    (directory / "plan/stage").mkdir(parents=True)
    for each in (directory, directory / "plan"):
        each.chmod(0o755)
    yield Place("served", Path("/"), directory / "plan", directory / "data", Path("/root"), Owner(61201, 61201))
    shutil.rmtree(directory)


class Service:
    """A running service: its processes, parents first, and what it says."""

    def __init__(self, place: Place, machine: Machine, granted: Policy, *words: str, listener: socket.socket | None = None) -> None:
        app = Application(("/usr/bin/python3", "-I", "-c", SERVER, *words))
        plan = compile_plan(app, granted, place, machine, guard=Guard(0 if listener is None else 1))
        for name, content in (("start", plan.start), ("confine", plan.confine), ("network.nft", plan.rules.encode())):
            (place.plan / name).write_bytes(content)
            (place.plan / name).chmod(0o755)
        handed = [] if listener is None else ["bash", "-c", f'exec "$0" "$@" 3<&{listener.fileno()}']
        prefix = WITH_TUNNEL if granted.of(Listen) and listener is None else ()
        self.process = subprocess.Popen(
            [*prefix, *handed, place.plan / "start"],
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=() if listener is None else (listener.fileno(),),
        )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline().split()

    def processes(self) -> list[int]:
        """All of them, as systemd finds them in the control group."""

        def below(process: int) -> Iterator[int]:
            yield process
            for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
                yield from below(int(child))

        return list(below(self.process.pid))

    def signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            os.kill(process, number)

    def end(self) -> tuple[str, int]:
        """What it says until it ends, and its status."""
        said = self.process.communicate(timeout=20)[0]
        return said, self.process.returncode


def assert_gone(processes: list[int]) -> None:
    """None is there any more, or will be in a moment."""
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("granted", [policy(), policy([Listen(PORT)])], ids=["without a network", "with a network"])
def test_a_service_that_is_asked_to_end_finishes_its_work_and_ends_with_its_own_status(
    place: Place, machine: Machine, granted: Policy
) -> None:
    service = Service(place, machine, granted)
    assert service.first == ["up", "2", "None", "None"]
    everything = service.processes()
    assert len(everything) >= 3
    service.signal(signal.SIGTERM)
    assert service.end() == ("finishing\nfinished\n", 7)
    assert_gone(everything)


@pytest.mark.parametrize("granted", [policy(), policy([Listen(PORT)])], ids=["without a network", "with a network"])
def test_of_a_service_that_does_not_end_nothing_is_left_after_its_time(place: Place, machine: Machine, granted: Policy) -> None:
    service = Service(place, machine, granted, "stubborn")
    everything = service.processes()
    service.signal(signal.SIGTERM)
    time.sleep(0.5)
    assert all(Path(f"/proc/{process}").exists() for process in everything)
    # The first is enough: the others do not outlive it.
    os.kill(everything[0], signal.SIGKILL)
    assert service.end() == ("", -signal.SIGKILL)
    assert_gone(everything)


def test_a_service_is_handed_a_socket_and_has_no_network_besides(place: Place, machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = Service(place, machine, policy([Listen(PORT)]), "serve", listener=listener)
        assert service.first == ["up", "2", "2", "1"]
        with socket.create_connection(listener.getsockname(), timeout=10) as connection:
            assert connection.recv(10) == b"served"
        interfaces = Path(f"/proc/{service.processes()[-1]}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        service.signal(signal.SIGTERM)
        assert service.end() == ("finishing\nfinished\n", 7)
