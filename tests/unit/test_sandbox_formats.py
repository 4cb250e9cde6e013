"""Policies in the formats of others: nothing is widened on the way there and back, and what both can say comes back as it was."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from format_samples import HOME, fate, subject, subjects, words
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import policies
from spec_samples import load_text
from test_system_filter import checks

from obelisk.errors import InputError
from obelisk.model.exposure import difference
from obelisk.model.policy import (
    X11,
    Ask,
    Call,
    Calls,
    Connect,
    Contact,
    Device,
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
    Usb,
    Use,
    Wayland,
    Write,
    WriteExecute,
    policy,
)
from obelisk.sandbox import keyfile
from obelisk.sandbox.calls import filter_of
from obelisk.sandbox.formats import READERS, WRITERS, Foreign, Subject, read, write
from obelisk.sandbox.formats.calls import as_oci, decisions
from obelisk.system.seccomp import Check
from obelisk.system.syscalls import NUMBERS

EVERYWHERE = (Connect("0.0.0.0/0"), Connect("::/0"))


def there_and_back(one: Subject, form: str) -> Foreign:
    return READERS[form](write(one, form).text.encode(), HOME)


@pytest.mark.parametrize("form", sorted(READERS))
@settings(max_examples=50)
@given(one=subjects)
def test_nothing_is_wider_after_the_way_there_and_back(form: str, one: Subject) -> None:
    found = there_and_back(one, form)
    assert difference(one.policy, found.app.policy).gained == ()
    assert {*found.app.data} <= {*one.app.data}
    assert {*found.app.scratch} <= {*one.app.scratch}
    assert [line for line in found.wider if "all devices of the class" not in line] == []


@given(subjects)
def test_oci_brings_back_all_but_the_network_the_session_and_what_may_be_missing(one: Subject) -> None:
    found = there_and_back(one, "oci").app
    gone = Listen | Connect | Reach | Contact | Wayland | X11 | Talk | Own | Ask | Usb  # of the last, no node is there
    assert found.policy == policy((p for p in one.policy.powers if not isinstance(p, gone)), one.policy.limits)
    assert (found.command, found.directory) == (one.app.command, one.app.directory)
    assert ({*found.data}, {*found.scratch}) == ({*one.app.data}, {*one.app.scratch})
    own = {"PATH", "HOME", "USER", "LANG", "TERM"}
    assert {*found.environment} == {each for each in one.app.environment if each[0] not in own} | {
        each for each in found.environment if each[0] in own and each in one.app.environment
    }


@given(subjects)
def test_flatpak_brings_back_files_and_limits_and_networks_that_are_everything(one: Subject) -> None:
    found = there_and_back(one, "flatpak").app
    kinds, devices = Read | Write | Wayland | Talk | Own, {Use(Device.KVM), Use(Device.GPU)}
    kept: set[Any] = {p for p in one.policy.powers if isinstance(p, kinds) or p in devices}
    kept |= {*EVERYWHERE} if one.policy.powers >= {*EVERYWHERE} else set()
    assert found.policy == policy(kept, one.policy.limits)
    assert found.command == one.app.command[:1]
    assert found.environment == one.app.environment
    assert {*found.data} == {path for path in one.app.data if path.startswith("/home/app/")}


@given(st.lists(checks, max_size=3), st.lists(st.integers(0, 1 << 33) | st.integers(0, 8), min_size=6, max_size=6))
def test_conditions_are_split_into_sets_that_are_disjoint_and_leave_nothing(tests: list[Check], arguments: list[int]) -> None:
    found = [error for where, error in decisions(tests) if all(arguments[at] & mask == value for at, (mask, value) in where.items())]
    assert found == [next((check.error for check in tests if not check.holds(arguments)), 0)]


@given(
    policies,
    st.sampled_from(("ioctl", "socket", "socketpair", "clone", "mmap", "mprotect", "prctl", "personality", "shmat", "memfd_create"))
    | st.sampled_from(sorted(NUMBERS)),
    st.lists(
        st.sampled_from((0, 1, 2, 3, 4, 6, 7, 8, 10, 16, 22, 35, 0x5412, 0x541C, 0x5423, 0x5000940E, 0x10000000, 0o100000, 0xFFFFFFFF))
        | st.integers(0, (1 << 64) - 1),
        min_size=6,
        max_size=6,
    ),
    st.sampled_from((0, 1 << 32)),
)
def test_a_filter_decides_in_oci_as_it_does_here(one: Policy, name: str, arguments: list[int], high: int) -> None:
    arguments = [argument | high for argument in arguments]
    assert fate(as_oci(filter_of(one)), name, arguments) == filter_of(one).refusal(NUMBERS[name], arguments)


def test_a_filter_has_one_condition_an_argument_and_says_nothing_that_libseccomp_would_merge() -> None:
    written: Any = as_oci(filter_of(policy([Listen(1), Nest()])))
    for rule in written["syscalls"]:
        indices = [test["index"] for test in rule.get("args", ())]
        assert len(indices) == len(set(indices))
    plain = {name for rule in written["syscalls"] if not rule.get("args") for name in rule["names"]}
    assert not plain & {name for rule in written["syscalls"] if rule.get("args") for name in rule["names"]}


@pytest.mark.parametrize("form", sorted(READERS))
@settings(max_examples=50)
@given(one=subjects)
def test_what_is_printed_is_a_spec_of_the_same_application(form: str, one: Subject) -> None:
    found = read(write(one, form).text.encode(), form, HOME)
    raw = tomllib.loads(found.as_toml("a\nfile"))
    assert raw["app"]["command"] == list(found.app.command)
    assert {*raw} <= {"app", "grants", "limits"}


@pytest.mark.parametrize("form", sorted(READERS))
def test_a_spec_reads_what_is_printed(tmp_path: Path, form: str) -> None:
    powers: list[Power] = [
        Read("~/Documents"),
        Write("/mnt/a b"),
        Use(Device.KVM),
        *EVERYWHERE,
        Call(Calls.DEBUG),
        WriteExecute(),
        Terminal(),
        Nest(),
    ]
    one = subject(policy(powers, Limits(3 << 30, 7, 99, 5000, 5 << 30, 150)))
    found = read(write(one, form).text.encode(), None, HOME)
    spec = load_text(tmp_path, 'name = "app"\nrole = "app"\n' + found.as_toml("x"))
    assert spec.application == found.app
    assert found.app.policy.limits == Limits(3 << 30, 7, 99, 4096, 5 << 30, 150)


@given(st.builds(Limits, *(st.integers(1, 1 << 62) for _ in range(6))))
def test_limits_come_out_as_a_spec_can_say_them_and_never_higher_unsaid(limits: Limits) -> None:
    found = Foreign(subject(policy((), limits)).app, ()).settled()
    change = difference(policy((), limits), found.app.policy)
    assert len(change.gained) <= len(found.wider)
    raw = tomllib.loads(found.as_toml("x"))["limits"]
    assert raw["processes"] == found.app.policy.limits.processes
    assert int(raw["memory"][:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[raw["memory"][-1]] == found.app.policy.limits.memory_bytes
    assert Foreign(found.app, ()).settled() == Foreign(found.app, ())


# OCI


def configuration(**changes: object) -> dict[str, Any]:
    """A configuration as engines make it, with changes by `section__key`."""
    raw: dict[str, Any] = json.loads(write(subject(Policy()), "oci").text)
    for key, value in changes.items():
        place, _, name = key.rpartition("__")
        at = raw
        for step in place.split("__") if place else ():
            at = at[step]
        at[name] = value
    return raw


def imported(raw: dict[str, Any]) -> Foreign:
    return read(json.dumps(raw).encode(), "oci", HOME)


def bound(source: str, at: str, *options: str) -> dict[str, Any]:
    return {"destination": at, "type": "bind", "source": source, "options": ["rbind", *options]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"process__capabilities": {"bounding": ["CAP_NET_ADMIN"]}}, "CAP_NET_ADMIN"),
        ({"process__user": {"uid": 0, "gid": 0}}, "rights of root"),
        ({"process__noNewPrivileges": False}, "set-id"),
        ({"linux__namespaces": [{"type": "network"}]}, "the machine's processes"),
        ({"linux__namespaces": [{"type": "network", "path": "/run/netns/x"}]}, "network of /run/netns/x"),
        ({"root__readonly": False}, "an image never changes"),
        ({"hooks": {"prestart": []}}, "hooks"),
        ({"linux__sysctl": {"net.ipv4.ip_forward": "1"}}, "sysctl"),
        ({"mounts": [bound("/etc", "/etc")]}, "belongs to the image"),
        ({"mounts": [bound("/data", "/other")]}, "seen at its own place"),
        ({"mounts": [{"destination": "/sys", "type": "sysfs", "source": "sysfs"}]}, "file system sysfs"),
        ({"linux__devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]}, "/dev/sda"),
        ({"linux__seccomp": None}, "any system call"),
        ({"linux__seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}, "reboot"),
        ({"process__env": ["2=x"]}, "the variable 2"),
        ({"process__args": ["nginx"]}, "/usr/bin/nginx"),
        ({"process__cwd": "/a/../b"}, "starting in"),
    ],
)
def test_what_a_policy_cannot_say_is_left_out_and_told(changes: dict[str, object], said: str) -> None:
    found = imported(configuration(**changes))
    assert any(said in line for line in found.left_out), found.left_out
    assert said in found.as_toml("x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"process__apparmorProfile": "docker-default"}, "AppArmor"),
        ({"process__rlimits": [{"type": "RLIMIT_FSIZE", "soft": 1, "hard": 1}]}, "RLIMIT_FSIZE"),
        ({"linux__resources": {"cpu": {"cpus": "0"}}}, "limits of cpu.cpus"),
        ({"linux__resources": {"blockIO": {"weight": 1}}}, "limits of blockIO"),
        ({"linux__devices": [{"path": "/dev/snd/timer", "type": "c", "major": 116, "minor": 33}]}, "all devices of the class"),
        ({"linux__seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}}, "write"),
    ],
)
def test_what_is_wider_here_is_told(changes: dict[str, object], said: str) -> None:
    assert any(said in line for line in imported(configuration(**changes)).wider)


def test_a_network_that_is_the_machines_becomes_connections_and_no_ports() -> None:
    found = imported(configuration(linux__namespaces=[]))
    assert found.app.policy.powers == {*EVERYWHERE}
    assert any("ports to listen at are to be granted" in line for line in found.left_out)


def test_where_less_is_allowed_below_a_place_all_of_it_is_granted_as_little() -> None:
    mounts = [bound("/data", "/data"), bound("/data/a", "/data/a", "ro")]
    found = imported(configuration(mounts=mounts))
    assert found.app.policy.powers == {Read("/data")}
    assert any("grants have no exceptions" in line for line in found.left_out)
    home = [bound("/home/jo", "/home/app"), bound("/home/jo/a", "/home/jo/a", "ro")]
    assert imported(configuration(mounts=home)).app.policy.powers == {Read("~"), Read("/home/jo/a")}


def test_of_several_limits_the_lowest_counts() -> None:
    limits = [{"type": "RLIMIT_NPROC", "soft": 50, "hard": 60}, {"type": "RLIMIT_DATA", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1}]
    found = imported(configuration(process__rlimits=limits, linux__resources={"pids": {"limit": 40}, "memory": {"limit": -1}}))
    assert (found.app.policy.limits.processes, found.app.policy.limits.memory_bytes) == (40, Limits().memory_bytes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b'{"ociVersion": "1.0.2"}',
        b'{"ociVersion": "1.0.2", "process": []}',
        b'{"ociVersion": "1.0.2", "process": {"args": [1]}}',
        b'{"ociVersion": "1.0.2", "process": {"args": ["/a\\u0000"]}}',
        b'{"ociVersion": "1.0.2", "process": {"args": ["/a"], "rlimits": [{"type": "RLIMIT_DATA", "soft": 1.5}]}}',
        b'{"ociVersion": "1.0.2", "process": {"args": ["/a\\ud800"]}}',
        b'{"ociVersion": "1.0.2", "process": {"args": ["/a"]}, "linux": {"seccomp": {"syscalls": []}}}',
        b'{"ociVersion": "1.0.2", "process": {"args": ["/a"], "capabilities": {"bounding": [[]]}}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_configuration_is_refused(content: bytes) -> None:
    with pytest.raises(InputError):
        read(content, "oci", HOME)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 65), 1 << 65)
    | words
    | st.sampled_from(("/", "/data", "~", "network", "SCMP_ACT_ALLOW")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(("process", "linux", "root", "mounts")), st.data())
def test_whatever_stands_in_a_configuration_is_read_or_refused(section: str, data: st.DataObject) -> None:
    raw = configuration()
    if section == "mounts":
        raw["mounts"] = [*raw["mounts"], {key: data.draw(json_values) for key in ("destination", "type", "source", "options")}]
    else:
        raw[section][data.draw(st.sampled_from(sorted(raw[section])))] = data.draw(json_values)
    try:
        found = imported(raw)
    except InputError:
        return
    tomllib.loads(found.as_toml("x"))


# Flatpak


def flatpak(context: str, more: str = "") -> Foreign:
    return read(f"[Application]\nname=org.example.App\ncommand=app\n[Context]\n{context}\n{more}".encode(), None, HOME)


@pytest.mark.parametrize(
    ("context", "powers"),
    [
        ("filesystems=home:ro;xdg-documents;~/x:create;", {Read("~"), Write("~/Documents"), Write("~/x")}),
        ("filesystems=xdg-music/a:ro;/mnt/x\\\\:y;", {Read("~/Music/a"), Write("/mnt/x:y")}),
        ("filesystems=home;!~/secret;", set()),
        ("filesystems=home;!/home/jo/secret;", set()),
        ("filesystems=/home/jo;!~/secret;", set()),
        ("filesystems=home;~/x:ro;", {Read("~")}),
        ("filesystems=~/x;~/x:ro;", {Read("~/x")}),
        ("filesystems=~/x:odd;", {Read("~/x")}),
        ("filesystems=host:ro;", {Read("~")}),
        ("filesystems=host-etc;xdg-run/app;/etc;!host;", set()),
        ("shared=network;ipc;", {*EVERYWHERE}),
        ("shared=network;!network;", set()),
        ("devices=all;", {Use(device) for device in Device}),
        ("devices=dri;shm;", {Use(Device.GPU)}),
        ("features=devel;", {Call(Calls.DEBUG)}),
        ("sockets=x11;session-bus;", {X11()}),
        ("sockets=wayland;fallback-x11;", {Wayland()}),
        ("sockets=fallback-x11;wayland;!wayland;", {X11()}),
        (
            "\n[Session Bus Policy]\norg.x.Y=talk\norg.x.Z=own\norg.w.*=talk\norg.v.*=see",
            {Talk("org.x.Y"), Own("org.x.Z"), Talk("org.w.*")},
        ),
        ("\n[Session Bus Policy]\norg.w.*=talk\norg.w.A=none\norg.x.*=own\norg.x.A=talk", {Talk("org.x.A")}),
        ("\n[Session Bus Policy]\norg.freedesktop.portal.Desktop=talk\nodd=talk", set()),
    ],
)
def test_what_flatpak_grants_becomes_no_more_than_that(context: str, powers: set[Any]) -> None:
    assert flatpak(context).app.policy.powers == powers


@pytest.mark.parametrize(
    ("context", "more", "said"),
    [
        ("sockets=x11;", "", "the X server of the session"),
        ("sockets=wayland;fallback-x11;", "", "the socket fallback-x11"),
        ("sockets=pulseaudio;", "", "the socket pulseaudio"),
        ("shared=ipc;", "", "ipc"),
        ("shared=network;", "", "what listens on this machine alone"),
        ("devices=dri;", "", "whole cards"),
        ("devices=shm;", "", "the devices shm"),
        ("filesystems=host;", "", "files of the machine (host)"),
        ("filesystems=home;!~/s;", "", "grants have no exceptions"),
        ("filesystems=xdg-run/app;", "", "xdg-run/app"),
        ("filesystems=~/x:create;", "", "it has to be there"),
        ("persistent=../x;", "", "keeping ../x"),
        ("features=devel;", "", "devel"),
        ("odd=1;", "", "odd"),
        ("", "[System Bus Policy]\norg.x.Y=talk", "[System Bus Policy]"),
        ("", "[Session Bus Policy]\norg.x.Y=see", "see for org.x.Y"),
        ("", "[Session Bus Policy]\norg.x.*=own\norg.x.Y=talk", "less is allowed for org.x.Y"),
        ("", "[Session Bus Policy]\norg.freedesktop.DBus=talk", "cannot be granted"),
        ("", "[X-Obelisk Limits]\nprocesses=many", "processes=many"),
        ("", "", "looking for the program app"),
    ],
)
def test_what_flatpak_grants_and_a_policy_cannot_say_is_told(context: str, more: str, said: str) -> None:
    assert any(said in line for line in flatpak(context, more).left_out)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"[Runtime]\nname=x", b"[Application]\nname=x", b"a=b", b"\xff", b"[Application]\ncommand=\0"]
)
def test_what_is_no_metadata_is_refused(content: bytes) -> None:
    with pytest.raises(InputError):
        read(content, "flatpak", HOME)


_lines = st.sampled_from(
    (
        "[Application]",
        "command=x",
        "[Context]",
        "filesystems=home;!~/a;",
        "filesystems=~/a\\:ro;;:",
        "shared=network",
        "devices=all;!kvm",
        "a",
    )
)


@given(st.lists(_lines | words, max_size=8))
def test_whatever_stands_in_metadata_is_read_or_refused(lines: list[str]) -> None:
    try:
        found = read("\n".join(["[Application]", "command=x", *lines]).encode(), "flatpak", HOME)
    except InputError:
        return
    tomllib.loads(found.as_toml("x"))


@given(st.lists(words.filter(bool), max_size=4))
def test_key_files_bring_back_what_is_written(texts: list[str]) -> None:
    groups = keyfile.parse(keyfile.render({"A": {"list": keyfile.values(texts)}, "B": {"one": keyfile.value("".join(texts))}}).encode())
    assert keyfile.read_values(groups["A"]["list"]) == tuple(texts)
    assert keyfile.read_value(groups["B"]["one"]) == "".join(texts)


# All of them


@pytest.mark.parametrize("form", sorted(WRITERS))
@settings(max_examples=50)
@given(one=subjects)
def test_no_line_of_what_is_written_comes_out_of_a_value(form: str, one: Subject) -> None:
    quiet = replace(one, app=replace(one.app, command=("/usr/bin/x",), environment=()))
    loud = replace(one, app=replace(one.app, command=("/usr/bin/x", "a\nUser=root"), environment=(("A", "b\n[Context]\nshared=network;"),)))
    lines = set(write(loud, form).text.splitlines())
    assert not {"User=root", "[Context]", "shared=network;"} & (lines - {*write(quiet, form).text.splitlines()})


@pytest.mark.parametrize(
    ("form", "held", "said"),
    [
        ("oci", policy([Connect("10.0.0.0/8", 443)]), "10.0.0.0/8, port 443"),
        ("oci", policy([Listen(8080)]), "port 8080"),
        ("flatpak", policy([Connect("10.0.0.0/8", 443)]), "10.0.0.0/8, port 443"),
        ("flatpak", policy([Connect("0.0.0.0/0")]), "any address, any port"),
        ("flatpak", policy([Use(Device.AUDIO)]), "sound"),
        ("flatpak", policy([Nest()]), "user namespaces"),
        ("flatpak", policy([X11()]), "an X server of its own"),
        ("flatpak", policy([Ask(Portal.FILE_CHOOSER)]), "it talks to the portals"),
        ("flatpak", policy([Use(Device.GPU)]), "whole cards"),
        ("oci", policy([Use(Device.GPU)]), "what /sys tells"),
        *(
            (form, policy([power]), "without a session")
            for form in ("oci", "systemd")
            for power in (Wayland(), X11(), Talk("a.b"), Own("a.b"), Ask(Portal.FILE_CHOOSER))
        ),
        ("flatpak", policy(EVERYWHERE), "listens at any port"),
        ("systemd", policy([Listen(8080)]), "ListenStream=8080"),
        ("systemd", policy([Connect("10.0.0.0/8", 443)]), "opens every port there"),
        *((form, policy([Reach("db.example.org", 5432)]), "db.example.org has, port 5432") for form in ("oci", "systemd", "flatpak")),
        ("systemd", policy([Terminal()]), "a service has none"),
        ("systemd", policy([Read("/data")]), "There is a place for it below /mnt"),
        ("systemd", policy([Use(Device.KVM)]), "names of all devices"),
    ],
)
def test_what_a_format_cannot_say_is_told(form: str, held: Policy, said: str) -> None:
    assert any(said in note for note in write(subject(held), form).notes)


def test_secrets_are_systemds_to_hand_over_and_nobody_elses() -> None:
    one = subject(Policy())
    one = replace(one, app=replace(one.app, credentials=("key",)), credentials=Path("/etc/obelisk/credentials/app"))
    text = write(one, "systemd").text
    assert "LoadCredential=key:/etc/obelisk/credentials/app/key\n" in text
    assert "CREDENTIALS_DIRECTORY" not in text
    for form in ("oci", "flatpak"):
        assert any("the credential key" in note for note in write(one, form).notes)
        assert not any("CREDENTIALS_DIRECTORY" in name for name, _value in there_and_back(one, form).app.environment)


def unit(held: Policy) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in write(subject(held), "systemd").text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_a_unit_grants_what_the_policy_does_and_no_network_that_is_wider() -> None:
    plain = unit(Policy())
    assert plain["PrivateNetwork"] == plain["PrivateDevices"] == plain["MemoryDenyWriteExecute"] == plain["NoNewPrivileges"] == ["yes"]
    assert plain["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert plain["CapabilityBoundingSet"] == [""]
    assert plain["StateDirectory"] == ["app"]
    assert "PrivateIPC" not in plain  # systemd would wait for ever for the image's device
    assert plain["NoExecPaths"] == ["/ -/tmp -/var/tmp -/var/lib/app"]
    assert unit(policy([Write("/mnt/x")]))["NoExecPaths"][0].endswith(" -/mnt/x")
    assert "MemoryMax" not in plain
    limited = unit(policy((), Limits(total_memory_bytes=1 << 30, cpu_percent=150)))
    assert (limited["MemoryMax"], limited["MemorySwapMax"], limited["CPUQuota"]) == ([str(1 << 30)], ["0"], ["150%"])
    assert not {"ptrace", "memfd_create"} & {*plain["SystemCallFilter"][0].split()}
    assert plain["InaccessiblePaths"] == ["/dev/pts /sys"]
    assert unit(policy([Use(Device.GPU)]))["InaccessiblePaths"] == ["/dev/pts"]
    narrow = unit(policy([Listen(8080), Connect("10.0.0.0/8", 443)]))
    assert narrow["PrivateNetwork"] == ["yes"]
    wide = unit(policy([Connect("10.0.0.0/8"), Read("~/x"), Write("/mnt/x"), Use(Device.KVM), WriteExecute(), Call(Calls.DEBUG), Nest()]))
    assert (wide["PrivateNetwork"], wide["IPAddressDeny"], wide["IPAddressAllow"]) == (["no"], ["any"], ["10.0.0.0/8"])
    assert wide["BindPaths"] == ["/mnt/x:/mnt/x:rbind"]
    assert "/home/jo/x:/home/app/x:rbind" in wide["BindReadOnlyPaths"]
    assert wide["DeviceAllow"] == ["/dev/kvm rw"]
    assert "MemoryDenyWriteExecute" not in wide
    assert "NoExecPaths" not in wide
    assert {"ptrace", "memfd_create"} <= {*wide["SystemCallFilter"][0].split()}
    assert wide["RestrictNamespaces"] != ["yes"]
