"""What a machine has installed is always one version, with its own data and its own units, wherever a change of it is cut."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from installed_samples import ALONE, COMMAND, PORT, SERVED, CutError, World, in_memory
from test_sandbox_plan import MACHINE

from obelisk.errors import CommandError, MissingFeatureError, StateError, TrustError
from obelisk.model.application import Application, Service
from obelisk.model.policy import Call, Calls, Connect, Device, Limits, Listen, Policy, Read, Use, Write, WriteExecute, policy
from obelisk.sandbox import data, health, installed, place, units
from obelisk.sandbox.data import How
from obelisk.sandbox.installed import Made, State, Trial, parse_state
from obelisk.sandbox.plan import Guard
from obelisk.sandbox.units import Seat
from obelisk.store import StoredImage
from obelisk.system.bubblewrap import Room
from obelisk.system.confine import Owner
from obelisk.system.systemctl import Generated, Systemctl, Unit


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine on which nothing is installed."""
    in_memory(monkeypatch)
    return World(tmp_path)


def test_a_first_version_is_installed_runs_and_starts_with_the_machine(world: World) -> None:
    one = world.image("1")
    assert world.install(one) == installed.Changed(one.id, "", How.NOTHING)
    assert (world.running, world.listening) == (one.id, True)
    assert world.enabled == {"obelisk-app-shop.service", "obelisk-app-shop.socket"}
    assert world.said[-2:] == ["start obelisk-app-shop.socket", "start obelisk-app-shop.service"]
    assert world.settled() == State(one.id)


def test_the_next_version_gets_the_data_and_the_sockets_stay_open(world: World) -> None:
    one, two = world.image("1"), world.image("2")
    world.install(one)
    world.said.clear()
    changed = world.install(two)
    assert (changed.current, changed.prior) == (two.id, one.id)
    assert changed.how in {How.REFLINK, How.COPY, How.SNAPSHOT}
    assert world.running == two.id
    assert "stop obelisk-app-shop.socket" not in world.said
    assert world.settled() == State(two.id, one.id)


def test_a_version_that_is_not_healthy_goes_and_the_one_before_comes_back_with_its_data(world: World) -> None:
    one, two = world.image("1"), world.image("2")
    world.install(one)
    world.unhealthy.add(two.id)
    world.unfit.add(two.id)
    with pytest.raises(StateError, match="what was installed before is again") as error:
        world.install(two)
    assert error.value.code == "app-unhealthy"
    assert (world.running, world.linked(), world.content.read_text()) == (one.id, one.id, one.id)
    assert world.listening
    assert world.settled() == State(one.id, failed=(two.id,))
    assert not list((world.top / "data/.saved/shop").iterdir())


def test_nothing_is_stopped_for_a_version_that_does_not_become_healthy_beside_the_one_that_runs(world: World) -> None:
    one, two, three = (world.image(version) for version in "123")
    world.install(one)
    assert world.rehearsed == []  # there was nothing to be beside
    world.unhealthy.add(two.id)
    world.said.clear()
    with pytest.raises(StateError, match="what was installed before has gone on") as error:
        world.install(two)
    assert (error.value.code, error.value.hint) == ("app-unhealthy", "journalctl --unit obelisk-app-shop:next.service")
    assert set(world.said) == {"clear"}
    assert world.settled() == State(one.id, failed=(two.id,))
    assert [path.name for path in (world.top / "installed/shop/images").iterdir()] == [one.id]
    world.install(three)
    assert world.rehearsed == [two.id, three.id]


def test_what_cannot_be_made_ready_is_not_rehearsed_nor_to_blame(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = world.image("1"), world.image("2")
    world.install(one)
    made = world.made

    def lacking(image: StoredImage, *, in_use: bool = False) -> Made:
        if image.id == two.id:
            raise StateError("/mnt/x is granted and does not exist", code="grant-missing", hint="make it first")
        return made(image, in_use=in_use)

    monkeypatch.setattr(world, "made", lacking)
    with pytest.raises(StateError) as error:
        world.install(two)
    assert (error.value.code, error.value.hint) == ("grant-missing", "make it first")
    assert (world.rehearsed, world.running) == ([], one.id)
    assert world.settled() == State(one.id)


def test_what_runs_already_is_not_rehearsed_to_go_back_to_it_nor_is_anything_when_it_is_not_to_be_or_nothing_runs(world: World) -> None:
    one, two = world.image("1"), world.image("2")
    world.install(one)
    world.install(two, rehearsed=False)
    world.rollback(with_data=False)
    world.running = ""
    world.install(two)
    assert world.rehearsed == []


def test_of_a_first_version_that_is_not_healthy_nothing_stays(world: World) -> None:
    one = world.image("1")
    world.unhealthy.add(one.id)
    with pytest.raises(StateError, match="nothing is installed"):
        world.install(one)
    assert (world.running, world.listening, world.enabled) == ("", False, set())
    assert not list(world.units.iterdir())
    assert world.settled() == State()


def test_going_back_keeps_the_data_or_brings_it_back_as_told_and_can_be_undone(world: World) -> None:
    one, two = world.image("1"), world.image("2")
    world.install(one)
    world.content.write_text("of the first")
    world.install(two)
    world.content.write_text("of the second")
    seen: list[str] = []
    start = world.start

    def noted(*names: str) -> None:
        if names[0].endswith(".service") or len(names) > 1:
            seen.append(world.content.read_text())
        start(*names)

    world.start = noted  # type: ignore[method-assign]
    world.rollback(with_data=True)
    assert (world.running, seen.pop()) == (one.id, "of the first")
    assert world.settled() == State(one.id, two.id, failed=(two.id,))
    world.rollback(with_data=True)
    assert (world.running, seen.pop()) == (two.id, "of the second")
    assert world.settled() == State(two.id, one.id, failed=(one.id,))
    world.content.write_text("of today")
    world.rollback(with_data=False)
    assert (world.running, seen.pop()) == (one.id, "of today")


def test_without_a_prior_version_there_is_no_going_back(world: World) -> None:
    world.install(world.image("1"))
    with pytest.raises(StateError) as error:
        world.rollback(with_data=False)
    assert error.value.code == "no-prior"


def test_a_third_version_forgets_the_first(world: World) -> None:
    images = [world.image(version) for version in "123"]
    for image in images:
        world.install(image)
    kept = {path.name for path in (world.top / "installed/shop/images").iterdir()}
    assert kept == {images[1].id, images[2].id}
    assert [path.name for path in (world.top / "data/.saved/shop").iterdir()] == [images[1].id]
    assert [image.id for image in world.cleared] == [images[0].id]


@pytest.mark.parametrize("app", [SERVED, ALONE], ids=["sockets", "ports"])
def test_the_same_image_again_lets_what_the_operator_says_take_effect(world: World, app: Application) -> None:
    one = world.image("1", app)
    world.install(one)
    world.image("1", app, policy([Listen(8080)], Limits(processes=7)))
    world.install(one)
    assert "TasksMax=15" in (world.units / "obelisk-app-shop.service").read_text()
    assert world.running == one.id
    assert world.settled() == State(one.id)


def test_what_becomes_a_command_is_a_service_no_longer_and_the_reverse(world: World) -> None:
    served, command = world.image("1"), world.image("2", COMMAND)
    world.install(served)
    world.install(command)
    assert (world.running, world.listening, world.enabled, list(world.units.iterdir())) == ("", False, set(), [])
    assert (world.top / "bin/shop").read_text() == world.made(command).program
    world.rollback(with_data=False)
    assert (world.running, world.listening) == (served.id, True)
    assert not (world.top / "bin/shop").exists()


def test_other_ports_close_the_sockets_and_open_new_ones(world: World) -> None:
    world.install(world.image("1"))
    world.said.clear()
    world.install(world.image("2", SERVED, policy([Listen(8081)])))
    assert "stop obelisk-app-shop.socket" in world.said
    assert "ListenStream=8081" in (world.units / "obelisk-app-shop.socket").read_text()
    assert world.listening


@pytest.mark.parametrize("with_data", [False, True])
def test_removal_undoes_all_and_leaves_the_data_unless_it_is_told_to_go(world: World, *, with_data: bool) -> None:
    world.install(world.image("1"))
    world.install(world.image("2"))
    installation = world.installation()
    with installation.changing():
        installation.remove(with_data=with_data)
    assert (world.running, world.listening, world.enabled, list(world.units.iterdir())) == ("", False, set(), [])
    assert world.content.exists() is not with_data
    assert not world.seat.start.parent.is_symlink()
    assert not (world.top / "installed/shop").exists()
    assert world.settled() == State()


# Killed anywhere


def _steps(monkeypatch: pytest.MonkeyPatch, world: World) -> Callable[[int], Iterator[int]]:
    """Make every effect count; the one with the number that is told cuts everything before it takes place."""
    count = [0, -1]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*given: object, **named: object) -> object:
            count[0] += 1
            if count[0] == count[1]:
                raise CutError
            return function(*given, **named)

        return wrapped

    for name in ("write_durably", "clone_or_copy", "remove_tree"):
        monkeypatch.setattr(installed, name, counted(getattr(installed, name)))
    for name in ("run", "remove_tree"):
        monkeypatch.setattr(data, name, counted(getattr(data, name)))
    for name in ("rename", "unlink", "symlink_to"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    for name in ("reload", "enable", "disable", "start", "stop", "forget"):
        monkeypatch.setattr(world, name, counted(getattr(world, name)))

    def cut_at(step: int) -> Iterator[int]:
        count[:] = [0, step]
        yield step
        count[:] = [0, -1]

    return cut_at


def _failing(world: World) -> None:
    world.unfit.add(world.image("2").id)
    _failing_beside(world)


def _failing_beside(world: World) -> None:
    world.unhealthy.add(world.image("2").id)
    with pytest.raises(StateError):
        world.install(world.image("2"))


CHANGES: dict[str, Callable[[World], object]] = {
    "install": lambda world: world.install(world.image("2")),
    "rollback": lambda world: world.rollback(with_data=True),
    "fails": _failing,
    "fails beside": _failing_beside,
}


@pytest.mark.parametrize("restarted", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("name", CHANGES)
def test_cut_anywhere_one_version_is_installed_and_runs_with_its_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, restarted: bool
) -> None:
    in_memory(monkeypatch)
    step, cut = 0, True
    outcomes = set()
    while True:
        step += 1
        world = World(tmp_path / str(step))
        before = world.image("1")
        if name == "rollback":
            world.install(world.image("0"))
        world.install(before)
        with monkeypatch.context() as patched:
            for _ in _steps(patched, world)(step):
                try:
                    CHANGES[name](world)
                    cut = False
                except CutError:
                    cut = True
        if restarted:
            _restart(world)
        state = world.settled()
        assert state.trial is None
        assert state.current in {before.id, world.image("2").id, world.image("0").id}
        outcomes.add(state.current)
        if not world.running:  # it was stopped and nothing else yet: whoever starts it gets the installed one
            _restart(world)
        assert world.linked() == state.current
        assert world.running == state.current
        assert world.content.read_text() == state.current
        made = world.made(world.installation().image(state.current), in_use=True)
        assert {file.name: file.read_text() for file in world.units.iterdir()} == made.units
        kept = {path.name for path in (world.top / "installed/shop/images").iterdir()}
        assert kept == {each for each in (state.current, state.prior) if each}
        if not cut:
            break
        shutil.rmtree(world.top)
    assert step > (5 if name == "fails beside" else 20)
    assert len(outcomes) == (1 if name.startswith("fails") else 2)


def _restart(world: World) -> None:
    """The machine starts anew: memory is empty, and the unit, by whichever version, has the installed one prepared."""
    world.running = ""
    world.seat.start.parent.unlink(missing_ok=True)
    with suppress(StateError):  # its units were another version's, and are now its own
        world.installation().prepare()
    world.start("obelisk-app-shop.socket", "obelisk-app-shop.service")


def test_after_a_restart_a_trial_that_was_cut_is_undone_by_the_unit_itself_which_then_has_its_own_text(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.image("1"), world.image("2", ALONE, policy([Listen(8080)], Limits(processes=5)))
    world.install(one)

    def cut(_made: Made) -> None:
        raise CutError

    monkeypatch.setattr(world, "healthy", cut)
    with pytest.raises(CutError):
        world.install(two)
    assert world.installation().state == State(one.id, "", Trial(two.id, saved=True))
    world.running = ""
    with pytest.raises(StateError) as error:
        world.installation().prepare()
    assert error.value.code == "units-renewed"
    assert world.said[-2:] == ["later obelisk-app-shop.service", "later obelisk-app-shop.socket"]
    assert (world.linked(), world.content.read_text()) == (one.id, one.id)
    world.installation().prepare()  # now its units are its own
    assert world.installation().state == State(one.id)


def test_what_is_not_installed_is_not_prepared(world: World) -> None:
    with pytest.raises(StateError) as error:
        world.installation().prepare()
    assert error.value.code == "not-installed"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema":"obelisk.installed/2","current":"","prior":"","trial":null}', b"[]"])
def test_a_damaged_note_is_refused(content: bytes) -> None:
    with pytest.raises(TrustError):
        parse_state(content)


# Units


def seat(*, by_root: bool = True) -> Seat:
    return Seat(
        "shop", Path("/run/x/shop/start"), Path("/run/x/shop.moving"), Path("/data/shop"), Path("/root"), by_root, ("/usr/bin/obelisk",)
    )


def service(granted: Policy, app: Application = ALONE, *, by_root: bool = True) -> list[str]:
    return units.texts(seat(by_root=by_root), "shop_1", app, granted)["obelisk-app-shop.service"].splitlines()


def test_a_unit_says_what_bounds_the_service_and_nothing_that_the_policy_widens() -> None:
    plain = service(policy())
    for line in (
        'ExecStart="/run/x/shop/start"',
        "TimeoutStopSec=30",
        "KillMode=control-group",
        "Restart=on-failure",
        "TasksMax=264",
        "LimitNOFILE=4096",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "ProtectProc=invisible",
        "PrivateDevices=yes",
        "PrivateNetwork=yes",
        "IPAddressDeny=any",
        "RestrictAddressFamilies=AF_UNIX AF_NETLINK",
        "SystemCallFilter=setrlimit",
        "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SETUID CAP_SETGID CAP_DAC_OVERRIDE CAP_FOWNER",
        "MemoryDenyWriteExecute=yes",
        'ReadWritePaths="-/data/shop"',
        "WantedBy=multi-user.target",
    ):
        assert line in plain
    assert not [line for line in plain if line.startswith(("MemoryMax", "CPUQuota"))]
    bounded = service(policy((), Limits(total_memory_bytes=1 << 30, cpu_percent=150)))
    assert {f"MemoryMax={1 << 30}", "MemorySwapMax=0", "CPUQuota=150%"} <= set(bounded)
    assert "PrivateDevices=yes" not in service(PORT)
    assert "PrivateDevices=yes" not in service(policy([Use(Device.KVM)]))
    assert "MemoryDenyWriteExecute=yes" not in service(policy([WriteExecute()]))
    assert "ProtectHome=yes" not in service(policy([Read("~/x")]))
    assert "SystemCallFilter=kcmp pidfd_getfd process_vm_readv process_vm_writev ptrace setrlimit" in service(policy([Call(Calls.DEBUG)]))
    secret = service(policy(), replace(ALONE, credentials=("token",)))
    assert [line for line in secret if line.startswith("CapabilityBoundingSet=") and line.endswith(" CAP_CHOWN")]
    # What is mounted where systemd starts this would be gone with it.
    assert [line for line in plain if line.startswith("ExecStartPre=+") and "exec nsenter --target $$PPID --mount -- " in line]
    # It would keep pasta from starting bubblewrap as root of its namespace; this would keep bubblewrap from opening what it mounts.
    assert "NoNewPrivileges=yes" not in service(PORT)
    assert "NoNewPrivileges=yes" in service(PORT, SERVED)
    assert not [line for line in (*plain, *service(PORT)) if line.startswith("RestrictSUIDSGID")]
    assert 'ReadWritePaths="-/data/shop" "-/mnt/a b"' in service(policy([Read("/mnt/r"), Write("/mnt/a b")]))
    theirs = service(policy(), by_root=False)
    assert "WantedBy=default.target" in theirs
    assert "NoNewPrivileges=yes" in theirs
    assert not [line for line in theirs if line.startswith(("Protect", "Capability", "Private", "ReadWrite"))]


def test_a_unit_with_a_network_keeps_nothing_that_pasta_and_what_it_starts_need() -> None:
    networked = service(PORT)
    assert "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6" in networked
    assert "IgnoreSIGPIPE=no" in networked
    kept = ("NoNewPrivileges", "ProtectProc", "PrivateNetwork", "IPAddressDeny", "PrivateDevices")
    assert not [line for line in networked if line.startswith(kept)]
    # In a user's manager each of these gives up new privileges.
    theirs = service(PORT, by_root=False)
    assert not [line for line in theirs if line.startswith((*kept, "SystemCall", "Restrict", "Lock", "Memory"))]


@pytest.mark.parametrize(("app", "granted", "limit"), [(ALONE, policy(), 3.2), (SERVED, PORT, 3.2), (ALONE, PORT, 4.7)])
def test_a_unit_of_root_is_no_wider_than_it_has_to_be(tmp_path: Path, app: Application, granted: Policy, limit: float) -> None:
    unit = tmp_path / "obelisk-app-shop.service"
    unit.write_text(units.texts(seat(), "shop_1", app, granted)[unit.name])
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", told.stdout)
    assert found is not None, told.stdout + told.stderr
    assert float(found[1]) <= limit


def test_a_service_is_handed_a_socket_a_port_and_no_network(tmp_path: Path) -> None:
    texts = units.texts(seat(), "shop_1", SERVED, policy([Listen(9000), Listen(80)]))
    socket = texts["obelisk-app-shop.socket"].splitlines()
    assert [line for line in socket if line.startswith("ListenStream")] == ["ListenStream=80", "ListenStream=9000"]
    assert "Requires=obelisk-app-shop.socket" in texts["obelisk-app-shop.service"]
    assert "PrivateDevices=yes" in texts["obelisk-app-shop.service"]
    assert units.guard_of(SERVED, policy([Listen(9000), Listen(80)])) == Guard(2)
    assert units.guard_of(ALONE, PORT) == Guard(0)
    assert units.guard_of(COMMAND, PORT) is None
    with pytest.raises(MissingFeatureError):
        units.guard_of(SERVED, policy([Listen(80), Connect("0.0.0.0/0")]))
    assert units.texts(seat(), "shop_1", SERVED, policy()).keys() == {"obelisk-app-shop.service"}  # the operator left it no port
    assert tmp_path.exists()


@pytest.mark.parametrize("by_root", [True, False])
@pytest.mark.parametrize("app", [SERVED, ALONE])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, app: Application, *, by_root: bool) -> None:
    start = tmp_path / "all 100% $here"
    start.write_text("#!/bin/sh\n")
    start.chmod(0o755)
    here = Seat("shop", start, tmp_path / "moving", tmp_path, Path("/root"), by_root, ("/usr/bin/env",))
    granted = policy([Listen(8080), Write("/mnt/a b")])
    for name, text in units.texts(here, "shop_1", app, granted).items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.glob("obelisk-app-*"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0


# Health


def test_a_service_is_healthy_when_it_answers_and_stays_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_POLL_S", 0.001)
    answers = iter([False, False, True])
    health.wait_until_healthy(Service(health="x", steady_s=0), lambda: Unit("active", 0, "success"), lambda _url: next(answers))
    assert not list(answers)


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        ([Unit("active", 0, ""), Unit("failed", 0, "exit-code")], "app-down"),
        ([Unit("activating", 0, ""), Unit("active", 1, "exit-code")], "app-down"),
        ([Unit("active", 0, "")] * 500, "app-silent"),
    ],
)
def test_a_service_that_falls_or_is_silent_is_not_healthy(monkeypatch: pytest.MonkeyPatch, seen: list[Unit], code: str) -> None:
    monkeypatch.setattr(health, "_POLL_S", 0.01)
    units_seen = iter(seen)
    with pytest.raises(StateError) as error:
        health.wait_until_healthy(Service(health="x", health_s=1, steady_s=1), lambda: next(units_seen), lambda _url: False)
    assert error.value.code == code


def test_data_is_saved_and_put_back_as_often_as_wanted_although_each_was_cut_before(tmp_path: Path) -> None:
    kept = data.Data(tmp_path / "data/shop")
    assert kept.save("one") is How.NOTHING
    kept.begin()
    file = tmp_path / "data/shop/file"
    file.write_text("one")
    (tmp_path / "data/.saved/shop/draft").mkdir(parents=True)
    assert kept.save("one") in {How.COPY, How.REFLINK, How.SNAPSHOT}
    file.write_text("two")
    (tmp_path / "data/.saved/shop/left").mkdir()
    for _ in range(2):
        assert kept.put_back("one")
        assert file.read_text() == "one"
        file.write_text("two")
    assert not kept.put_back("two")
    kept.remove()
    assert not list((tmp_path / "data").rglob("file"))


def test_what_cannot_be_saved_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world.image("1")
    world.install(one)

    def full(*_given: object, **_named: object) -> None:
        raise CommandError(("cp",), 1, "No space left on device")

    monkeypatch.setattr(data, "run", full)
    with pytest.raises(StateError, match="No space left"):
        world.install(world.image("2"))
    assert (world.running, world.content.read_text()) == (one.id, one.id)
    assert world.settled() == State(one.id)


@pytest.mark.parametrize("host", [True, False])
def test_on_a_host_everything_of_an_application_is_plain_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, host: bool) -> None:
    generator = tmp_path / "generator"
    generator.touch()
    monkeypatch.setattr(place, "GENERATOR", generator if host else tmp_path / "none")
    monkeypatch.setattr("obelisk.sandbox.data.btrfs.create", lambda path: path.mkdir() or (path / "subvolume").touch())
    machine = replace(MACHINE, owner=Owner(0, 0))
    ground = place.Ground.here(machine, {"OBELISK_DATA": str(tmp_path / "apps")}, policy_of=lambda _image: PORT, room=_no_room)
    there = ground.installation("shop", Systemctl(user=False), lambda _event: None)
    state = tmp_path
    assert (there.places.units == state / "units", there.places.programs == state / "bin") == (host, host)
    assert (there.places.units == Path("/etc/systemd/system"), there.places.programs == Path("/usr/local/bin")) == (not host, not host)
    assert (there.seat.obelisk == ("/usr/bin/obelisk",)) is host
    # What is nested in the state is in none of its snapshots.
    there._data.begin()
    assert (there.seat.data / "subvolume").exists() is not host


def _no_room() -> Room:
    raise AssertionError


def test_units_of_a_generator_are_neither_enabled_nor_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(Systemctl, "_run", lambda _self, *words: said.append(words))
    systemd = Generated()
    systemd.enable("x.service")
    systemd.reload()
    systemd.stop("x.service")
    systemd.disable("x.service")
    assert said == [("daemon-reload",), ("stop", "x.service")]
