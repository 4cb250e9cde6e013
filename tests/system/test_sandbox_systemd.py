"""Installed services under a real systemd: one version follows another behind open sockets, and comes back when the next one fails."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from services import DATA, PORT, installation, networked, systemd_of_its_own, version
from tool import ROOT

from obelisk.errors import StateError
from obelisk.sandbox.plan import data_directory


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory with a systemd of its own."""
    with systemd_of_its_own() as place:
        yield place


def install(top: Path, number: str, *, manner: str = "serves", keeps: bool = True) -> None:
    there = installation(top)
    with there.changing() as state:
        there.install(version(top, number, manner=manner, keeps=keeps), state)


def asked() -> tuple[int, str]:
    """What is answered at the port, by a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=15)
    connection.request("GET", "/")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


class Visitors:
    """One request after the other, each noted."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.faults: list[OSError] = []
        self.stopped = threading.Event()

    def come(self) -> None:
        while not self.stopped.wait(0.01):
            try:
                self.answers.append(asked())
            except OSError as error:
                self.faults.append(error)


@contextmanager
def visitors() -> Iterator[Visitors]:
    seen = Visitors()
    thread = threading.Thread(target=seen.come)
    thread.start()
    try:
        yield seen
    finally:
        seen.stopped.set()
        thread.join()


def kept(top: Path, name: str) -> str:
    return (data_directory(top / "data/shop", DATA) / name).read_text()


def test_versions_follow_each_other_and_no_connection_is_refused(top: Path) -> None:
    install(top, "1")
    assert asked() == (200, "1")
    with visitors() as seen:
        time.sleep(0.3)
        install(top, "2")
        time.sleep(0.3)
        with pytest.raises(StateError, match="was not changed"):
            install(top, "3", manner="falls")
        time.sleep(0.3)
        with pytest.raises(StateError, match="was not changed"):
            install(top, "4", manner="ails")
        time.sleep(0.3)
        there = installation(top)
        with there.changing() as state:
            there.rollback(state, with_data=False)
        time.sleep(0.3)
    assert seen.faults == []
    order = [text for number, (_, text) in enumerate(seen.answers) if not number or seen.answers[number - 1][1] != text]
    # The fourth answers while it is tried, with a status that says that it ails; nobody hears of the third.
    assert order == ["1", "2", "4", "2", "1"]
    assert {status for status, text in seen.answers if text in "12"} == {200}
    # Each that was healthy ended in order, when the next came: nothing was killed.
    assert kept(top, "ended") == "1222"


def test_the_next_version_is_proven_beside_the_one_that_serves_which_knows_nothing_of_those_that_fail(top: Path) -> None:
    install(top, "1", keeps=False)
    with visitors() as seen:
        for number, manner in (("2", "falls"), ("3", "ails")):
            with pytest.raises(StateError, match="has gone on"):
                install(top, number, manner=manner, keeps=False)
        failed = len(seen.answers)
        install(top, "4", keeps=False)
        time.sleep(0.3)
    assert seen.faults == []
    assert set(seen.answers[:failed]) == {(200, "1")}
    order = [text for number, (_, text) in enumerate(seen.answers) if not number or seen.answers[number - 1][1] != text]
    assert order == ["1", "4"]
    _nothing_beside(top)


def test_who_is_killed_over_a_rehearsal_leaves_the_version_that_serves(top: Path) -> None:
    install(top, "1", keeps=False)
    installer = _installing(top, "'2', steady_s=60, keeps=False")
    there = installation(top)
    beside, deadline = there.next.service, time.monotonic() + 30
    while there._systemd.look(beside).active != "active":
        assert asked() == (200, "1")
        time.sleep(0.05)
        assert time.monotonic() < deadline
    installer.send_signal(signal.SIGKILL)
    installer.wait()
    assert asked() == (200, "1")
    with there.changing() as state:
        assert (state.current, state.trial) == (version(top, "1", keeps=False).id, None)
    assert asked() == (200, "1")
    _nothing_beside(top)


def _nothing_beside(top: Path) -> None:
    assert not list((top / "runtime-units").iterdir())
    assert not [path for path in (top / "links").iterdir() if "next" in path.name]
    there = installation(top)
    assert there._systemd.look(there.next.service).active == "inactive"


def test_a_version_that_fails_leaves_no_trace_in_the_data(top: Path) -> None:
    install(top, "1")
    for _ in range(5):
        asked()
    there = installation(top)
    with there.changing() as state:
        there._systemd.stop(there.seat.service)
        before = kept(top, "count")
        with pytest.raises(StateError):
            there.install(version(top, "2", manner="ails"), state)
    assert int(kept(top, "count")) == int(before)
    assert asked() == (200, "1")
    assert int(kept(top, "count")) == int(before) + 1


def test_after_a_restart_of_the_machine_the_unit_makes_the_installed_version_ready_by_itself(top: Path) -> None:
    install(top, "1")
    there = installation(top)
    there._systemd.stop(there.seat.service)
    there.seat.start.parent.unlink()
    (top / "plans").rename(top / "plans.before")
    # A connection is what starts it.
    assert asked() == (200, "1")
    assert there.seat.start.exists()


def test_who_is_killed_over_an_installation_leaves_the_version_before(top: Path) -> None:
    install(top, "1")
    installer = _installing(top, "'2', steady_s=60")
    deadline, answered = time.monotonic() + 30, 0
    while asked()[1] != "2":
        answered += 1
        time.sleep(0.05)
        assert time.monotonic() < deadline
    asked_for_health = 1
    installer.send_signal(signal.SIGKILL)
    installer.wait()
    assert installation(top).state.current == version(top, "1").id
    with installation(top).changing() as state:
        assert (state.current, state.trial) == (version(top, "1").id, None)
    assert asked() == (200, "1")
    # What the second had counted is gone, and nothing else: the first was asked once for its health, whenever it was installed.
    assert int(kept(top, "count")) == answered + asked_for_health + 1


def _installing(top: Path, words: str) -> subprocess.Popen[bytes]:
    """A process that installs the version that the words make."""
    script = (
        f"import sys; sys.path[:0] = {[str(ROOT / 'tests'), str(ROOT / 'tests/unit')]!r}\n"
        "from pathlib import Path; import services\n"
        "top = Path(sys.argv[1]); there = services.installation(top)\n"
        f"with there.changing() as state: there.install(services.version(top, {words}), state)\n"
    )
    return subprocess.Popen([sys.executable, "-I", "-c", script, top], env=os.environ)


def test_a_removed_service_is_gone_and_its_data_stays(top: Path) -> None:
    install(top, "1")
    asked()
    there = installation(top)
    with there.changing():
        there.remove(with_data=False)
    with pytest.raises(ConnectionRefusedError):
        asked()
    assert there._systemd.look(there.seat.service).active == "inactive"
    assert kept(top, "count")
    assert not [path for path in (top / "units").iterdir() if "obelisk" in path.name]


def test_what_stands_around_a_service_is_confined_by_its_unit(top: Path) -> None:
    install(top, "1")
    shown = subprocess.run(
        ["systemctl", "--user", "show", "--property=MainPID", "--value", installation(top).seat.service],
        capture_output=True,
        text=True,
        check=True,
    )
    process = Path("/proc") / shown.stdout.strip()
    told = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    # CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN; and none of them after the start.
    assert (int(told["CapBnd"], 16), int(told["CapEff"], 16)) == (1 << 1 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 21, 0)
    assert (process / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()


@pytest.mark.parametrize(("port", "at"), [(PORT, PORT), (857, 857), (857, PORT)], ids=["any", "of root's", "elsewhere"])
def test_a_service_with_a_network_is_reached_at_its_port_and_has_no_rights(top: Path, port: int, at: int) -> None:
    with networked(top, port, at):
        deadline, said = time.monotonic() + 20, b""
        while not said and time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", at), timeout=5) as connection:
                    said = connection.recv(1000)
            except OSError:
                pass
            time.sleep(0.1)
    assert {int(line.split()[1], 16) for line in said.splitlines()} == {0}, said
