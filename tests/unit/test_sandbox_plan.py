"""From a policy to what confines: system calls, mounts, rules of networks. Nothing more comes out than went in."""

import dataclasses
import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from host_samples import sealed
from hypothesis import given
from hypothesis import strategies as st
from policy_samples import policies
from store_samples import manifest_of

from obelisk.errors import MissingFeatureError, TrustError
from obelisk.model.application import Application
from obelisk.model.image import Part, PartKind
from obelisk.model.policy import (
    X11,
    Ask,
    Call,
    Calls,
    Connect,
    Contact,
    Device,
    Layer,
    Limits,
    Listen,
    Nest,
    Own,
    Policy,
    Portal,
    Power,
    Reach,
    Read,
    Talk,
    Terminal,
    Wayland,
    Write,
    WriteExecute,
    join,
    meet,
    policy,
)
from obelisk.sandbox import network, plan
from obelisk.sandbox.calls import filter_of, power_for
from obelisk.sandbox.desktop import SCREENS, Helper, Session, environment, helpers, session_of, uses_bus
from obelisk.sandbox.machine import Machine
from obelisk.sandbox.observer import NETWORK, SESSION_BUS, Observer, Refusal
from obelisk.sandbox.plan import Guard, Place, compile_plan, data_directory, layers_of
from obelisk.sandbox.ready import check_root, class_of
from obelisk.store import StoredImage
from obelisk.system import cgroups, program
from obelisk.system.cgroups import Way
from obelisk.system.confine import Owner
from obelisk.system.landlock import Files, Rule, Ruleset, files_known
from obelisk.system.notices import Notice
from obelisk.system.syscalls import NUMBERS

APP = Application(("/usr/bin/app",), scratch=("/var/cache/app", "/run/app/deep"), data=("/var/lib/app",))
MACHINE = Machine(
    owner=Owner(0, 0),
    bubblewrap="/usr/bin/bwrap",
    pasta="/usr/bin/pasta",
    nft="/usr/sbin/nft",
    landlock=7,
    network="",
    first_port=80,
    no_nesting=True,
    no_write_execute=True,
    open_files=1 << 20,
    masked_files=("keys",),
    bus_proxy="/usr/bin/xdg-dbus-proxy",
    xwayland="/usr/bin/Xwayland",
    xephyr="/usr/bin/Xephyr",
    groups=cgroups.Here(Way.DIRECT),
    python="/usr/bin/python3",
)
SESSION = Session("/run/user/1/wayland-0", "/run/user/1/bus", f"{SCREENS}/X0", "/home/jo/.Xauthority", "/run/user/1/doc")
PLACE = Place(
    "app",
    Path("/run/root"),
    Path("/run/plan"),
    Path("/data"),
    Path("/home/jo"),
    Owner(61200, 61200),
    resolver=Path("/etc/resolv.conf"),
    session=SESSION,
)


def outside(one: Policy) -> list[program.Call]:
    return plan._outside(APP, one, PLACE, MACHINE)


def words(one: Policy, machine: Machine = MACHINE) -> tuple[str, ...]:
    return plan._bubblewrap(one, PLACE, machine).words


def named(calls: list[program.Call], name: str) -> list[program.Call]:
    return [call for call in calls if call.number == NUMBERS[name]]


def string(argument: program.Argument) -> str:
    assert isinstance(argument, program.Data)
    (content,) = argument.parts
    assert isinstance(content, bytes)
    return content.rstrip(b"\0").decode()


def shown(one: Policy) -> dict[str, tuple[str, int]]:
    """What of the machine is shown where in the stage, and with which attributes."""
    calls = outside(one)
    found: dict[str, tuple[str, int]] = {}
    for number, call in enumerate(calls):
        if call.number == NUMBERS["mount"] and isinstance(call.arguments[0], program.Data) and string(call.arguments[0]) != "tmpfs":
            restricted = calls[number + 1]
            assert restricted.number == NUMBERS["mount_setattr"]
            attributes = restricted.arguments[3]
            assert isinstance(attributes, program.Data)
            assert isinstance(attributes.parts[0], bytes)
            found[string(call.arguments[1]).removeprefix("/run/plan/stage")] = (
                string(call.arguments[0]),
                struct.unpack_from("<Q", attributes.parts[0])[0],
            )
    return found


READ_ONLY, NO_EXECUTION = 1, 8


@given(policies)
def test_of_the_machine_nothing_is_shown_but_what_is_granted(one: Policy) -> None:
    image = {f"/{name}" for name in ("usr", "etc", "opt", "srv", "var")}
    wanted = {plan.inside_path(power.path) for power in one.of(Read) + one.of(Write)}
    names = {"/etc/resolv.conf"} if one.of(Connect) + one.of(Reach) else set()
    names |= {"/run/user/wayland-0"} if one.has(Wayland()) else set()
    names |= {SESSION.documents} if one.of(Ask) else set()
    nodes = {f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")}
    assert set(shown(one)) == image | wanted | names | nodes | {"/var/lib/app", "/.confine"}


@given(policies)
def test_only_what_is_granted_for_writing_can_be_written_and_nothing_that_can_be_runs(one: Policy) -> None:
    writable = {plan.inside_path(power.path) for power in one.of(Write)} | {"/var/lib/app"}
    writable |= {SESSION.documents} if one.of(Ask) else set()
    for place, (_source, attributes) in shown(one).items():
        if place.startswith("/dev/"):
            continue
        assert bool(attributes & READ_ONLY) == (place not in writable), place
        if place in writable and WriteExecute() not in one.powers:
            assert attributes & NO_EXECUTION, place


@given(
    policies,
    policies,
    st.sampled_from(sorted(NUMBERS.values())) | st.integers(0, 600),
    st.lists(st.integers(0, 1 << 33), min_size=6, max_size=6),
)
def test_what_two_policies_allow_together_makes_no_system_call_that_one_of_them_refuses(
    one: Policy, other: Policy, number: int, arguments: list[int]
) -> None:
    if not filter_of(meet(one, other)).refusal(number, arguments):
        assert not filter_of(one).refusal(number, arguments)
        assert not filter_of(other).refusal(number, arguments)
    if not filter_of(one).refusal(number, arguments):
        assert not filter_of(join(one, other)).refusal(number, arguments)


@given(policies)
def test_every_policy_compiles_to_programs_of_one_form(one: Policy) -> None:
    compiled = compile_plan(APP, one, PLACE, MACHINE)
    assert compiled == compile_plan(APP, one, PLACE, MACHINE)
    assert [name for name, _content in compiled.beside] == ["beside-bus"] * uses_bus(one) + ["beside-screen"] * one.has(X11())
    for content in (compiled.start, compiled.confine, *dict(compiled.beside).values()):
        assert content.startswith(b"\x7fELF")
    assert bool(compiled.rules) == bool(one.of((Listen, Connect, Reach, Contact)))


@pytest.mark.parametrize(
    ("layer", "machine"),
    [
        (Layer.LANDLOCK, dataclasses.replace(MACHINE, landlock=0)),
        (Layer.NESTING, dataclasses.replace(MACHINE, no_nesting=False)),
        (Layer.WRITE_EXECUTE, dataclasses.replace(MACHINE, no_write_execute=False)),
    ],
)
def test_a_layer_that_a_machine_lacks_is_an_error_unless_the_policy_says_that_it_may_be_missing(layer: Layer, machine: Machine) -> None:
    with pytest.raises(MissingFeatureError, match=layer.value):
        compile_plan(APP, Policy(), PLACE, machine)
    relaxed = policy((), may_miss=[layer])
    assert compile_plan(APP, relaxed, PLACE, machine).start
    assert dict(layers_of(relaxed, machine))[layer.value] == "missing on this machine"
    assert "missing" not in dict(layers_of(relaxed, MACHINE))[layer.value]


def test_secrets_are_copied_into_memory_at_each_start_and_are_no_part_of_a_plan(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("never to be seen in a plan")
    app = dataclasses.replace(APP, credentials=("password",))
    place = dataclasses.replace(PLACE, credentials=(("password", secret),))
    compiled = compile_plan(app, Policy(), place, MACHINE)
    assert b"never to be seen" not in compiled.start + compiled.confine
    assert b"CREDENTIALS_DIRECTORY=/run/credentials\0" in compiled.confine
    calls = plan._outside(app, Policy(), place, MACHINE)
    opened = [string(call.arguments[0]) for call in named(calls, "open")]
    assert opened[-3:-1] == [str(secret), "/run/plan/stage/run/credentials/password"]
    copied = calls.index(named(calls, "sendfile")[0])
    assert string(calls[copied - 3].arguments[1]) == "/run/plan/stage/run/credentials"
    assert "the credential password" in calls[copied - 2].what
    (restricted,) = (call for call in named(calls, "mount_setattr") if string(call.arguments[1]).endswith("/run/credentials"))
    assert calls.index(restricted) > copied
    assert calls.index(named(calls, "setresuid")[0]) > copied
    assert b"/run/credentials" not in compile_plan(APP, Policy(), PLACE, MACHINE).start


TOTAL = policy((), Limits(total_memory_bytes=1 << 28))


def test_limits_of_all_processes_want_a_control_group_unless_the_policy_says_that_it_may_be_missing() -> None:
    without = dataclasses.replace(MACHINE, groups=cgroups.Here(Way.NONE, "log in"))
    with pytest.raises(MissingFeatureError, match="`cgroup`") as caught:
        compile_plan(APP, TOTAL, PLACE, without)
    assert caught.value.hint.startswith("log in")
    assert compile_plan(APP, Policy(), PLACE, without).launch == b""
    relaxed = dataclasses.replace(TOTAL, may_miss=frozenset({Layer.CGROUP}))
    assert dict(compile_plan(APP, relaxed, PLACE, without).layers)["cgroup"] == "missing on this machine"
    assert compile_plan(APP, relaxed, PLACE, without).start == compile_plan(APP, Policy(), PLACE, without).start
    assert "cgroup" not in dict(layers_of(Policy(), MACHINE))


def test_a_limit_of_data_wants_a_volume_unless_the_policy_says_that_it_may_be_missing() -> None:
    bounded = policy((), Limits(data_bytes=1 << 28))
    without = dataclasses.replace(MACHINE, volumes="install e2fsprogs")
    with pytest.raises(MissingFeatureError, match="`volume`") as caught:
        compile_plan(APP, bounded, PLACE, without)
    assert caught.value.hint.startswith("install e2fsprogs; else ")
    relaxed = dataclasses.replace(bounded, may_miss=frozenset({Layer.VOLUME}))
    assert dict(compile_plan(APP, relaxed, PLACE, without).layers)["volume"] == "missing on this machine"
    assert "missing" not in dict(layers_of(bounded, MACHINE))["volume"]
    assert "volume" not in dict(compile_plan(APP, Policy(), PLACE, without).layers)


def test_a_start_enters_the_group_itself_or_by_systemd_and_then_does_the_same() -> None:
    place = dataclasses.replace(PLACE, group="app-1")
    plain = compile_plan(APP, Policy(), place, MACHINE)
    direct = compile_plan(APP, TOTAL, place, dataclasses.replace(MACHINE, groups=cgroups.Here(Way.DIRECT)))
    assert b"/sys/fs/cgroup/obelisk/app-1/cgroup.procs\0" in direct.start
    assert direct.launch == b""
    for way in (Way.SYSTEM, Way.USER):
        scoped = compile_plan(APP, TOTAL, place, dataclasses.replace(MACHINE, groups=cgroups.Here(way, program="/usr/bin/systemd-run")))
        assert scoped.launch == plain.start
        for word in (b"/usr/bin/systemd-run", b"--scope", b"--slice=obelisk-app\\x2d1.slice", b"/run/plan/launch"):
            assert word + b"\0" in scoped.start
        assert way.value in dict(scoped.layers)["cgroup"]


@pytest.mark.parametrize("way", [Way.SYSTEM, Way.USER, Way.DIRECT])
def test_a_service_stays_in_the_group_of_its_unit(way: Way) -> None:
    """In another one, systemd would neither see it end nor end it."""
    machine = dataclasses.replace(MACHINE, groups=cgroups.Here(way, program="/usr/bin/systemd-run"))
    bounded, plain = (compile_plan(APP, one, PLACE, machine, guard=Guard()) for one in (TOTAL, Policy()))
    assert (bounded.start, bounded.launch) == (plain.start, b"")


def test_a_network_that_the_machine_cannot_give_is_an_error_with_the_remedy() -> None:
    without = dataclasses.replace(MACHINE, network="install passt")
    assert compile_plan(APP, Policy(), PLACE, without).rules == ""
    with pytest.raises(MissingFeatureError) as caught:
        compile_plan(APP, policy([Listen(8080)]), PLACE, without)
    assert caught.value.hint == "install passt"
    somebody = dataclasses.replace(MACHINE, owner=Owner(1000, 1000))
    with pytest.raises(MissingFeatureError, match="kept for root"):
        compile_plan(APP, policy([Listen(79)]), PLACE, somebody)
    compile_plan(APP, policy([Listen(80)]), PLACE, somebody)


def test_root_keeps_the_right_to_listen_for_ports_of_roots_and_no_other() -> None:
    low, high = ({call.what for call in outside(policy([Listen(port)]))} for port in (79, 80))
    assert low - high == {"keep a right", "give up all rights but the one to listen", "pass on the right to listen"}


def test_bubblewrap_is_told_every_namespace_and_what_a_grant_takes_back() -> None:
    plain = words(Policy())
    for word in ("user", "pid", "ipc", "uts", "cgroup", "net"):
        assert f"--unshare-{word}" in plain
    assert {"--new-session", "--die-with-parent", "--disable-userns"} <= set(plain)
    assert plain[plain.index("--cap-drop") + 1] == "ALL"
    assert "--new-session" not in words(policy([Terminal()]))
    assert "--disable-userns" not in words(policy([Nest()]))
    assert "--dev" not in plain
    assert "--dev" in words(policy([Terminal()]))
    networked = words(policy([Listen(8080)]))
    assert networked[0] == "pasta"
    assert "--unshare-net" not in networked
    assert "--no-map-gw" in networked
    assert networked[networked.index("--tcp-ports") + 1] == "8080"
    for way in ("--udp-ports", "--tcp-ns", "--udp-ns"):
        assert networked[networked.index(way) + 1] == "none"


def helper(one: Policy, session: Session = SESSION) -> Helper:
    (only,) = helpers(one, session, MACHINE, "app")
    return only


@given(policies)
def test_the_proxy_is_told_the_names_that_are_granted_and_no_others(one: Policy) -> None:
    found = [each for each in helpers(one, SESSION, MACHINE, "app") if each.name == "bus"]
    assert len(found) == bool(one.of(Talk) or one.of(Own) or one.of(Ask))
    portals = ("FileChooser.*@/org/freedesktop/portal/desktop", "Request.Close@/org/freedesktop/portal/desktop/request/*")
    calls = [f"--call=org.freedesktop.portal.Desktop=org.freedesktop.portal.{rule}" for rule in portals if one.of(Ask)]
    for each in found:
        told = each.program.words
        assert told[1:5] == ("--fd=8", "unix:path=/run/session", "/run/user/bus", "--filter")
        assert sorted(told[5:]) == sorted([f"--talk={p.name}" for p in one.of(Talk)] + [f"--own={p.name}" for p in one.of(Own)] + calls)


@given(policies)
def test_a_helper_sees_the_one_socket_that_it_is_for_and_the_application_only_the_compositors(one: Policy) -> None:
    for each in helpers(one, SESSION, MACHINE, "app"):
        sources = [source for source, _inside in each.seen]
        assert sources == [SESSION.bus if each.name == "bus" else SESSION.compositor]
    assert {source for source, _attributes in shown(one).values()} & {SESSION.bus, SESSION.screen, SESSION.authority} == set()
    assert (SESSION.compositor in {source for source, _attributes in shown(one).values()}) == one.has(Wayland())


@given(policies)
def test_of_the_documents_only_those_of_the_application_are_shown_and_where_portals_say_that_they_are(one: Policy) -> None:
    found = {inside: source for inside, (source, _attributes) in shown(one).items() if source.startswith(SESSION.documents)}
    assert found == ({SESSION.documents: f"{SESSION.documents}/by-app/obelisk.app"} if one.of(Ask) else {})


def test_who_speaks_for_an_application_to_portals_has_its_identity_and_no_other_helper_has() -> None:
    compiled = compile_plan(APP, policy([Ask(Portal.FILE_CHOOSER), X11()]), PLACE, MACHINE)
    assert compiled.identity == b"[Application]\nname=obelisk.app\n\n[Instance]\ninstance-id=obelisk.app\n"
    bus, screen = helpers(policy([Ask(Portal.FILE_CHOOSER), X11()]), SESSION, MACHINE, "app")
    for each, known in ((bus, True), (screen, False), (helper(policy([Talk("org.example.Mail")])), False)):
        calls = plan._beside(each, PLACE, MACHINE)
        (beside,) = [call for call in calls if isinstance(call, program.Beside)]
        code = program.assemble(calls, program.Execute("/bin/true", ("true",)))
        for text in (b"/run/plan/identity", b"/.flatpak-info", b"/run/user/1/.flatpak/obelisk.app/bwrapinfo.json"):
            assert (text + b"\0" in code) == known
        assert bool(named(list(beside.calls), "open")) == known


def test_an_x_server_is_one_of_the_applications_own_inside_of_what_the_session_has() -> None:
    assert helper(policy([X11()])).program.path == MACHINE.xwayland
    nested = helper(policy([X11()]), dataclasses.replace(SESSION, compositor=""))
    assert nested.program.path == MACHINE.xephyr
    assert [source for source, _inside in nested.seen] == [SESSION.screen, SESSION.authority]
    for each in (nested, helper(policy([X11()]))):
        assert ":0" in each.program.words
        assert each.shared == SCREENS
        assert [each.program.words[n + 1] for n, word in enumerate(each.program.words) if word == "-nolisten"] == ["tcp", "local"]


@pytest.mark.parametrize(
    ("power", "session", "machine", "code"),
    [
        (Wayland(), dataclasses.replace(SESSION, compositor=""), MACHINE, "no-wayland"),
        (X11(), Session(bus=SESSION.bus), MACHINE, "no-display"),
        (X11(), SESSION, dataclasses.replace(MACHINE, xwayland=""), "no-x-server"),
        (X11(), dataclasses.replace(SESSION, compositor=""), dataclasses.replace(MACHINE, xephyr=""), "no-x-server"),
        (Talk("org.example.Mail"), dataclasses.replace(SESSION, bus=""), MACHINE, "no-session-bus"),
        (Own("org.example.Mail"), SESSION, dataclasses.replace(MACHINE, bus_proxy=""), "no-bus-proxy"),
        (Ask(Portal.FILE_CHOOSER), dataclasses.replace(SESSION, documents=""), MACHINE, "no-documents"),
        (Ask(Portal.FILE_CHOOSER), dataclasses.replace(SESSION, bus=""), MACHINE, "no-session-bus"),
    ],
)
def test_what_a_desktop_grant_needs_and_is_not_there_is_named_before_anything_starts(
    power: Power, session: Session, machine: Machine, code: str
) -> None:
    with pytest.raises(MissingFeatureError) as caught:
        compile_plan(APP, policy([power]), dataclasses.replace(PLACE, session=session), machine)
    assert caught.value.code == code
    assert caught.value.hint


def test_the_sockets_of_a_session_are_those_that_its_variables_name_and_that_are_there(tmp_path: Path) -> None:
    for name in ("wayland-1", "bus", "a b"):
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(tmp_path / name))
    (tmp_path / "file").touch()
    (tmp_path / "doc/by-app").mkdir(parents=True)  # not below /run, where an application has memory
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert session_of({}, tmp_path) == Session()
    assert session_of(runtime, tmp_path) == Session(bus=f"{tmp_path}/bus")
    assert session_of({**runtime, "WAYLAND_DISPLAY": "wayland-1"}, tmp_path).compositor == f"{tmp_path}/wayland-1"
    assert session_of({"WAYLAND_DISPLAY": f"{tmp_path}/wayland-1"}, tmp_path).compositor == f"{tmp_path}/wayland-1"
    for name in ("wayland-2", "file"):
        assert session_of({**runtime, "WAYLAND_DISPLAY": name}, tmp_path).compositor == ""
    for address, found in (
        (f"unix:path={tmp_path}/a%20b,guid=1", "a b"),
        (f"unix:abstract=/x;unix:guid=1,path={tmp_path}/bus", "bus"),
        (f"tcp:host=localhost,path={tmp_path}/bus", ""),
        ("unix:abstract=/tmp/bus", ""),
    ):
        wanted = f"{tmp_path}/{found}" if found else ""
        assert session_of({**runtime, "DBUS_SESSION_BUS_ADDRESS": address}, tmp_path).bus == wanted
    assert session_of({"DISPLAY": "elsewhere:0"}, tmp_path).screen == ""
    (tmp_path / ".Xauthority").touch()
    assert session_of({}, tmp_path).authority == f"{tmp_path}/.Xauthority"


def test_programs_are_told_of_what_is_granted_and_under_observation_of_all() -> None:
    def variables(one: Policy, *, observed: bool = False) -> set[str]:
        return set(environment(one, observed=observed))

    every = {"XDG_RUNTIME_DIR", "WAYLAND_DISPLAY", "DISPLAY", "DBUS_SESSION_BUS_ADDRESS"}
    assert variables(Policy()) == set()
    assert variables(Policy(), observed=True) == every
    assert variables(policy([Wayland()])) == {"XDG_RUNTIME_DIR", "XDG_SESSION_TYPE", "WAYLAND_DISPLAY"}
    assert variables(policy([X11(), Talk("org.example.Mail"), Wayland()])) == every | {"XDG_SESSION_TYPE"}
    bus = {"XDG_RUNTIME_DIR", "XDG_SESSION_TYPE", "DBUS_SESSION_BUS_ADDRESS"}
    assert variables(policy([Ask(Portal.FILE_CHOOSER)])) == {*bus, "GTK_USE_PORTAL"}


def test_the_bus_sees_the_proxys_user_so_the_application_is_that_one_inside_too() -> None:
    assert words(Policy())[words(Policy()).index("--uid") + 1] == "1000"
    named = words(policy([Talk("org.example.Mail")]))
    assert named[named.index("--uid") + 1] == "61200"


def test_rules_of_a_network_name_what_is_granted_and_drop_the_rest() -> None:
    rules = network.rules(policy([Listen(80), Connect("10.0.0.0/8", 53), Connect("2001:db8::/32")]), refused_at_once=True)
    lines = [line.strip() for line in rules.splitlines()]
    assert (
        lines.count("type filter hook input priority 0; policy drop;")
        == lines.count("type filter hook output priority 0; policy drop;")
        == 1
    )
    granted = [line for line in lines if "daddr" in line or "tcp dport 80" in line]
    assert granted == [
        "tcp dport 80 accept",
        *(f"ip daddr 10.0.0.0/8 {way} dport 53 accept" for way in ("tcp", "udp")),
        "ip6 daddr 2001:db8::/32 accept",
    ]
    # Connections that never leave are not followed; all others are.
    assert lines.count('oif "lo" notrack') == len([line for line in lines if "notrack" in line]) == 1
    assert lines.count("ct state established,related accept") == len(("input", "output"))
    assert network.rules(policy([Read("/data")]), refused_at_once=True) == ""


@pytest.mark.parametrize("at_once", [False, True])
def test_who_only_listens_opens_no_connection_and_none_has_to_be_followed(*, at_once: bool) -> None:
    lines = [line.strip() for line in network.rules(policy([Listen(80), Listen(443)]), refused_at_once=at_once).splitlines()]
    assert [line for line in lines if "port" in line] == [
        *(f"tcp dport {port} accept" for port in (80, 443)),
        *(f"tcp sport {port} tcp flags & (syn | ack) != syn accept" for port in (80, 443)),
    ]
    assert not [line for line in lines if "ct state" in line or "notrack" in line]
    # What comes in is looked at where it comes in, which the application's own loopback is not; what goes out likewise, where nobody waits
    # for an answer that connections are refused.
    assert [line for line in lines if "hook" in line] == [
        'type filter hook ingress device "net0" priority 0; policy drop;',
        'type filter hook egress device "net0" priority 0; policy drop;' if at_once else "type filter hook output priority 0; policy drop;",
    ]
    assert ("reject with icmpx type admin-prohibited" in lines) is not at_once
    given = words(policy([Listen(80)]))
    assert given[given.index("--ns-ifname") + 1] == "net0"


def test_nothing_goes_out_at_the_device_of_who_is_only_granted_services() -> None:
    lines = [line.strip() for line in network.rules(policy([Contact("shop")]), refused_at_once=True).splitlines()]
    assert 'type filter hook egress device "net0" priority 0; policy drop;' in lines
    assert not [line for line in lines if "tcp" in line]


@pytest.mark.parametrize(("abi", "at_once"), [(0, False), (3, False), (4, True)])
def test_whether_another_layer_refuses_connections_depends_on_the_machine(*, abi: int, at_once: bool) -> None:
    held = Policy(policy([Listen(80)]).powers, may_miss=frozenset({Layer.LANDLOCK}))
    rules = compile_plan(APP, held, PLACE, dataclasses.replace(MACHINE, landlock=abi)).rules
    assert ("reject" in rules) is not at_once


NAMED = policy([Reach("db.example.org", 5432), Reach("example.org", 443)])


def test_names_bring_a_resolver_before_the_application_and_ways_that_only_it_opens() -> None:
    named = words(NAMED)
    assert named[named.index("--dns-forward") + 1] == network.UPSTREAM
    start = named.index("/run/plan/resolver.py")
    assert named[start - 2 : start + 6] == (
        "/usr/bin/python3",
        "-I",
        "/run/plan/resolver.py",
        "/usr/sbin/nft",
        network.UPSTREAM,
        "db.example.org:5432",
        "example.org:443",
        "--",
    )
    assert named[start + 6] == "/usr/bin/bwrap"
    lines = [line.strip() for line in network.rules(NAMED, refused_at_once=True).splitlines()]
    assert lines.index(f"ip daddr {network.UPSTREAM} meta mark != 0x6f62656c drop") < lines.index("ct state established,related accept", 13)
    assert "ip daddr . meta l4proto . th dport @names4 accept" in lines
    assert "names4" not in network.rules(policy([Connect("10.0.0.0/8")]), refused_at_once=True)
    assert "--dns-forward" not in words(policy([Connect("10.0.0.0/8")]))
    with pytest.raises(MissingFeatureError, match="resolver"):
        compile_plan(APP, NAMED, PLACE, dataclasses.replace(MACHINE, python=""))


def test_data_of_different_places_never_shares_a_directory() -> None:
    places = ["/var/lib/a", "/var/lib-a", "/var-lib/a", "/var/lib--a", "/var/lib/-a", "/var-/lib/a"]
    assert len({data_directory(Path("/data"), place) for place in places}) == len(places)


def test_landlock_asks_a_kernel_only_for_what_its_version_knows() -> None:
    assert Files.REFER not in files_known(1)
    assert Files.REFER in files_known(2)
    assert Files.TRUNCATE not in files_known(2)
    assert Files.IOCTL_DEV in files_known(5)
    rules = Ruleset((Rule("/usr", Files.READ_DIR | Files.READ_FILE),), bind=(80,), connect=(80, 443))
    for version, size, ports in ((1, 8, 0), (3, 8, 0), (4, 16, 2), (5, 16, 2), (6, 24, 2), (7, 24, 2)):
        calls = rules.calls(version)
        assert calls[0].arguments[1] == size
        assert sum("port" in call.what for call in calls) == ports
        assert calls[-2].number == NUMBERS["landlock_restrict_self"]


@dataclasses.dataclass(frozen=True, slots=True)
class Seen(Notice):
    """A call whose arguments point to these strings."""

    strings: tuple[bytes, ...] = ()

    def memory(self, argument: int, size: int) -> bytes:
        return self.strings[argument][:size]

    def link(self, name: str) -> str:
        return {"cwd": "/srv"}.get(name, "")


def refusals(held: Policy, name: str, *arguments: int, strings: tuple[bytes, ...] = ()) -> tuple[int, list[Refusal]]:
    observer = Observer(dataclasses.replace(APP, credentials=("key",)), held, Path("/home/jo"))
    full = tuple([*arguments, *[0] * 6][:6])
    error = observer(Seen(os.getpid(), NUMBERS[name], full, strings))
    return error, [dataclasses.replace(each) for each in observer.refusals]


def test_a_refused_call_gets_its_error_and_is_told_with_the_grant_for_it() -> None:
    error, (told,) = refusals(Policy(), "ptrace")
    assert (error, told.layer, told.power) == (errno.EPERM, "seccomp", Call(Calls.DEBUG))
    assert refusals(policy([Call(Calls.DEBUG)]), "ptrace") == (0, [])
    error, (told,) = refusals(Policy(), "mount")
    assert (error, told.power) == (errno.EPERM, Nest())
    error, (told,) = refusals(Policy(), "reboot")
    assert (error, told.power) == (errno.EPERM, None)
    assert refusals(Policy(), "clone3") == (errno.ENOSYS, [])
    assert [each.what for each in refusals(Policy(), "socket", 2, 1)[1]] == [NETWORK]


def test_what_other_layers_refuse_goes_on_and_is_told() -> None:
    inet = struct.pack("<H", 2) + struct.pack(">H", 443) + bytes([192, 0, 2, 7])
    networked = policy([Listen(8080)])
    assert refusals(networked, "connect", 3, 0, 16, strings=(b"", inet))[1][0].power == Connect("192.0.2.7/32", 443)
    assert refusals(policy([Connect("192.0.2.0/24", 443)]), "connect", 3, 0, 16, strings=(b"", inet)) == (0, [])
    assert refusals(NAMED, "connect", 3, 0, 16, strings=(b"", inet)) == (0, [])
    assert refusals(networked, "bind", 3, 0, 16, strings=(b"", inet))[1][0].power == Listen(443)
    loopback = inet[:4] + bytes([127, 0, 0, 1])
    assert refusals(networked, "connect", 3, 0, 16, strings=(b"", loopback)) == (0, [])
    assert refusals(Policy(), "execve", strings=(b"/tmp/x\0",))[1][0].power == WriteExecute()
    assert refusals(Policy(), "execve", strings=(b"/usr/bin/env\0",)) == (0, [])


def test_a_connection_to_the_session_is_told_with_the_grant_for_it() -> None:
    def connecting(path: bytes, *held: Power) -> list[Refusal]:
        return refusals(policy(held), "connect", 3, 0, 110, strings=(b"", struct.pack("<H", 1) + path + b"\0"))[1]

    assert connecting(b"/run/user/wayland-0")[0].power == Wayland()
    assert connecting(b"/tmp/.X11-unix/X0")[0].power == X11()
    assert connecting(b"/run/user/bus")[0].what == SESSION_BUS
    assert connecting(b"/run/user/wayland-0", Wayland()) == connecting(b"/run/user/bus", Talk("org.example.Mail")) == []
    assert connecting(b"/run/other") == connecting(b"\0abstract") == []


@pytest.mark.parametrize(
    ("path", "device"),
    [("/dev/dri", Device.GPU), ("/dev/dri/renderD128", Device.GPU), ("/dev/snd/timer", Device.AUDIO), ("/dev/video0", Device.CAMERA),
     ("/dev/kvm", Device.KVM), ("/dev/dri/card0", None), ("/dev/null", None), ("/dev/sda", None)],
)  # fmt: skip
def test_a_device_is_of_the_class_whose_grant_shows_it(path: str, device: Device | None) -> None:
    assert class_of(path) == device


def test_writing_is_told_where_nothing_may_be_written_and_the_grant_is_the_one_that_reads_there() -> None:
    opened = (0, os.O_WRONLY | os.O_CREAT)
    assert refusals(Policy(), "open", *opened, strings=(b"/usr/x\0",))[1][0].power is None
    assert refusals(Policy(), "open", *opened, strings=(b"/tmp/x\0",)) == (0, [])
    assert refusals(Policy(), "open", *opened, strings=(b"/run/x\0",)) == (0, [])
    assert refusals(Policy(), "execve", strings=(b"/run/credentials/x\0",)) == (0, [])
    assert refusals(Policy(), "open", *opened, strings=(b"/var/lib/app/x\0",)) == (0, [])
    assert refusals(policy([Read("/mnt")]), "open", *opened, strings=(b"/mnt/x\0",))[1][0].power == Write("/mnt")
    assert refusals(Policy(), "open", 0, os.O_RDONLY, strings=(b"/usr/does-not-exist\0",)) == (0, [])


def test_every_call_that_a_grant_allows_is_found_by_its_name() -> None:
    for calls in Calls:
        held = filter_of(policy([Call(calls)])).allowed.keys() - filter_of(Policy()).allowed.keys()
        names = {name for name, number in NUMBERS.items() if number in held}
        assert names
        assert {power_for(name) for name in names} == {Call(calls)}


def test_a_service_takes_signals_that_wait_for_all_around_it_and_keeps_its_sockets() -> None:
    def asked(one: bytes, number: int, first: int) -> bool:
        """Whether a program makes this call with this first argument."""
        return b"\x48\xbf" + struct.pack("<Q", first) in one and b"\xb8" + struct.pack("<I", number) + b"\x0f\x05" in one

    served = compile_plan(APP, policy([Listen(8080)]), PLACE, MACHINE, guard=Guard(2))
    block, unblock, mask = 0, 1, NUMBERS["rt_sigprocmask"]
    assert asked(served.start, mask, block)
    assert asked(served.confine, mask, unblock)
    assert asked(served.start, NUMBERS["close_range"], 5)
    assert b"LISTEN_FDS=2\0" in served.confine
    assert b"LISTEN_PID=2\0" in served.confine
    assert served.rules == ""
    assert b"--unshare-net" in served.start
    plain = compile_plan(APP, policy([Listen(8080)]), PLACE, MACHINE)
    assert asked(plain.start, NUMBERS["close_range"], 3)
    assert not asked(plain.start, mask, block)
    assert b"LISTEN_FDS" not in plain.confine
    assert b"--unshare-net" not in plain.start


def test_a_service_that_is_handed_its_sockets_has_no_connections_of_its_own() -> None:
    with pytest.raises(MissingFeatureError) as error:
        compile_plan(APP, policy([Listen(80), Connect("10.0.0.0/8")]), PLACE, MACHINE, guard=Guard(1))
    assert error.value.code == "sockets-and-network"


@pytest.mark.parametrize("fault", ["", "a block", "the end", "the tree"])
def test_every_block_of_a_root_is_checked_before_it_is_used(tmp_path: Path, fault: str) -> None:
    content, tree, root_hash = sealed(300)
    if fault == "a block":
        content = content[:500_000] + b"!" + content[500_001:]
    if fault == "the end":
        content += bytes(4096)
    if fault == "the tree":
        tree = tree[:-1] + bytes([tree[-1] ^ 1])
    (tmp_path / "root").write_bytes(content)
    (tmp_path / "tree").write_bytes(tree)
    parts = (Part(PartKind.ROOT, "root", len(content), "0" * 64), Part(PartKind.VERITY, "tree", len(tree), "0" * 64))
    image = StoredImage("0" * 64, dataclasses.replace(manifest_of(content), parts=parts, root_hash=root_hash), tmp_path, 0)
    if not fault:
        check_root(image)
        return
    with pytest.raises(TrustError):
        check_root(image)
