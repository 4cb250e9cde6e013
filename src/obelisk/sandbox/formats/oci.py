"""The OCI runtime configuration, `config.json` of a bundle, as runc and crun run it. Pure.

What is written wants the application's files as `rootfs` beside it and a runtime that root starts: without a user namespace of its own,
because then the runtime can make the places that are mounted upon. The network is an empty one.

Source: OCI runtime specification 1.0.2, config.md and config-linux.md.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obelisk.errors import InputError
from obelisk.model.application import CREDENTIALS, Application
from obelisk.model.canonical import Json
from obelisk.model.exposure import explain
from obelisk.model.policy import (
    NO_LIMIT,
    Connect,
    Contact,
    Device,
    Limits,
    Listen,
    Power,
    Reach,
    Read,
    Terminal,
    Usb,
    Use,
    Write,
    WriteExecute,
    policy,
)
from obelisk.sandbox import desktop
from obelisk.sandbox.calls import filter_of
from obelisk.sandbox.formats.calls import as_oci, room_of
from obelisk.sandbox.formats.foreign import Access, Foreign, Subject, Written, is_own_place, paths_granted
from obelisk.sandbox.formats.reading import elements, items, member, number, text, texts
from obelisk.sandbox.machine import MASKED
from obelisk.sandbox.plan import ENVIRONMENT, HOME, MEMORY, data_directory, environment_of, host_path, inside_path
from obelisk.sandbox.ready import NODES, class_of
from obelisk.system import usb

_VERSION = "1.0.2"
_RLIMITS = {"RLIMIT_DATA": "memory_bytes", "RLIMIT_NPROC": "processes", "RLIMIT_NOFILE": "open_files"}
_NAMESPACES = {
    "pid": "processes",
    "ipc": "shared memory and message queues",
    "uts": "host name",
    "mount": "mounts",
    "cgroup": "control groups",
    "network": "network",
}
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_RESOLVER = "/etc/resolv.conf"
_OF_THE_RUNTIME = frozenset({"/etc/hosts", "/etc/hostname", _RESOLVER})
_EVERYWHERE = (Connect("0.0.0.0/0"), Connect("::/0"))
_PLAIN_NODES = frozenset(f"/dev/{name}" for name in ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero"))
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIRECTORY = re.compile(r"(/(?!\.{1,2}(/|\Z))[^/\x00-\x1f\x7f]+)+")
_SIZE = re.compile(r"size=(\d+)([kmg]?)")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_NO_LIMIT = 1 << 62
_PERIOD_US = 100_000
_DATA_BYTES = "obelisk.limits.data_bytes"
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def write(subject: Subject) -> Written:
    """The configuration."""
    app, held = subject.app, subject.policy
    owner = {"uid": subject.owner.uid, "gid": subject.owner.gid}
    groups = sorted({node.group for node in subject.nodes})
    config: Json = {
        "ociVersion": _VERSION,
        **_annotations(held.limits),
        "process": {
            "terminal": held.has(Terminal()),
            "user": {**owner, **({"additionalGids": list(groups)} if groups else {})},
            "args": list(app.command),
            "env": list(environment_of(app, desktop.without(held))),
            "cwd": app.directory,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "rlimits": _rlimits(held.limits),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": subject.name,
        "mounts": list(_mounts(subject)),
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    *({"allow": True, "type": "c", "major": node.major, "minor": node.minor, "access": "rw"} for node in subject.nodes),
                ],
                **_groups(held.limits),
            },
            "devices": [
                {"path": node.path, "type": "c", "major": node.major, "minor": node.minor, "fileMode": 0o660, "uid": 0, "gid": node.group}
                for node in subject.nodes
            ],
            "maskedPaths": [*(f"/proc/{name}" for name in sorted(MASKED)), "/proc/kcore", "/sys/firmware"],
            "readonlyPaths": [f"/proc/{name}" for name in _READ_ONLY],
            "seccomp": as_oci(filter_of(held)),
        },
    }
    return Written(json.dumps(config, indent=2) + "\n", tuple(_notes(subject)))


def _rlimits(limits: Limits) -> list[Json]:
    values = {"RLIMIT_CORE": 0, **{name: getattr(limits, attribute) for name, attribute in _RLIMITS.items()}}
    return [{"type": name, "soft": value, "hard": value} for name, value in values.items()]


def _groups(limits: Limits) -> dict[str, Json]:
    """Limits of all processes together."""
    groups: dict[str, Json] = {"pids": {"limit": limits.processes}}
    if limits.total_memory_bytes != NO_LIMIT:
        groups["memory"] = {"limit": limits.total_memory_bytes, "swap": limits.total_memory_bytes}  # of both together
    if limits.cpu_percent != NO_LIMIT:
        groups["cpu"] = {"quota": limits.cpu_percent * _PERIOD_US // 100, "period": _PERIOD_US}
    return groups


def _annotations(limits: Limits) -> dict[str, Json]:
    return {} if limits.data_bytes == NO_LIMIT else {"annotations": {_DATA_BYTES: str(limits.data_bytes)}}


def _mounts(subject: Subject) -> Iterator[Json]:
    """Parents before what is in them."""
    app, held = subject.app, subject.policy
    runs = [] if held.has(WriteExecute()) else ["noexec"]
    owner = [f"uid={subject.owner.uid}", f"gid={subject.owner.gid}"]
    yield {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}
    yield {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
    }
    if held.has(Terminal()):
        options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
        yield {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": list(options)}
    found: dict[str, Json] = {}
    for path, mode in {**MEMORY, **dict.fromkeys(app.scratch, 0o755)}.items():
        options = ["nosuid", "nodev", *runs, f"size={held.limits.scratch_bytes}", f"mode={mode:o}", *owner]
        found[path] = {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": list(options)}
    shown = {
        inside_path(grant.path): (host_path(grant.path, subject.home), isinstance(grant, Write)) for grant in held.of(Read) + held.of(Write)
    }
    shown |= {path: (data_directory(subject.data, path), True) for path in app.data}
    shown |= {_RESOLVER: (Path(_RESOLVER), False)} if held.of(Connect) else {}
    for path, (source, writable) in shown.items():
        options = ["rbind", "nosuid", "nodev", *runs, "rw" if writable else "ro"]
        found[path] = {"destination": path, "type": "bind", "source": str(source), "options": list(options)}
    yield from (found[path] for path in sorted(found, key=lambda path: (path.count("/"), path)))


def _notes(subject: Subject) -> Iterator[str]:
    files = f"obelisk export {subject.name} --format erofs"
    yield f"the files of {subject.name} have to be in `rootfs` beside the configuration: `{files}` has them"
    for power in subject.policy.of((Listen, Connect, Reach, Contact)):
        yield f"not in it: {explain(power)}. The network of the container is empty; whatever connects it decides what it reaches"
    for power in subject.policy.of(desktop.SESSION):
        yield f"not in it: {explain(power)}. A container is started without a session"
    if subject.policy.has(Use(Device.GPU)):
        yield "not in it: what /sys tells of the graphics processors, by which drivers find them"
    if subject.policy.of(Usb):
        yield "what is plugged in by USB has another node each time: export again then"
    for name in sorted(subject.app.credentials):
        yield f"not in it: the credential {name}, a file for the user {subject.owner.uid} alone to read, at {CREDENTIALS}/{name}"
    if subject.policy.limits.data_bytes != NO_LIMIT:
        yield "the limit of what it keeps is an annotation, which runtimes pass over"
    yield "not in it: Landlock, memory that is never writable and executable by PR_SET_MDWE, a user namespace of its own"


# Reading


@dataclass(slots=True)
class _Found:
    """What has been read so far."""

    powers: set[Power] = field(default_factory=set)
    data: dict[str, None] = field(default_factory=dict)
    scratch: dict[str, None] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    wider: list[str] = field(default_factory=list)

    def limit(self, name: str, value: int) -> None:
        """Take a limit into account, of several the lowest."""
        if 0 <= value < _NO_LIMIT:
            self.limits[name] = min(max(value, 1), self.limits.get(name, _NO_LIMIT))


def read(content: bytes, home: Path) -> Foreign:
    """The application of a configuration; `home` is what `~` means on this machine.

    Raises:
        InputError: it is no configuration, or names no command.
    """
    raw = _parsed(content)
    process, linux = member(raw, "process", dict), member(raw, "linux", dict)
    found = _Found()
    command = _command(process, found)
    _rights(process, found)
    for limit in items(process, "rlimits"):
        kind, value = text(limit, "type"), min(number(limit, "soft"), number(limit, "hard"))
        if kind in _RLIMITS:
            found.limit(_RLIMITS[kind], value)
        elif kind != "RLIMIT_CORE":
            found.wider.append(f"no limit {kind}")
    _spaces(linux, found)
    _places(items(raw, "mounts"), home, found)
    _devices(linux, found)
    _resources(member(linux, "resources", dict), found)
    if not member(member(raw, "root", dict), "readonly", bool):
        found.left_out.append("changing the files of the application: an image never changes")
    found.left_out += [
        f"the {what}" for what, there in (("hooks", "hooks" in raw), ("settings of the kernel (sysctl)", "sysctl" in linux)) if there
    ]
    if process.get("terminal") is True:
        found.powers.add(Terminal())
    _calls(member(linux, "seccomp", dict), found)
    kept = member(raw, "annotations", dict).get(_DATA_BYTES, "")
    if isinstance(kept, str) and _NUMBER.fullmatch(kept):
        found.limit("data_bytes", int(kept))
    held = policy(found.powers, Limits(**found.limits))
    app = Application(
        command, _environment(process, held.has(Terminal()), found), _directory(process, found), (*found.scratch,), (*found.data,), held
    )
    return Foreign(app, tuple(found.left_out), tuple(found.wider))


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(content)
        json.dumps(raw, ensure_ascii=False).encode()  # halves of characters have no place in a spec
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is no JSON: {error}", code="import-format", hint="name another --format, or correct the file") from error
    if not isinstance(raw, dict) or "ociVersion" not in raw:
        raise InputError("this is no OCI runtime configuration: it has no ociVersion", code="import-format", hint="name another --format")
    return raw


def _command(process: Mapping[str, Any], found: _Found) -> tuple[str, ...]:
    words = texts(process, "args")
    if not words or not words[0] or any("\0" in word for word in words):
        raise InputError("process.args names no command", code="import-command", hint="add the program that is to be started")
    if words[0].startswith("/"):
        return tuple(words)
    absolute = f"/usr/bin/{words[0]}"
    found.left_out.append(f"looking for the program {words[0]}: it is taken for {absolute}")
    return (absolute, *words[1:])


def _environment(process: Mapping[str, Any], terminal: bool, found: _Found) -> tuple[tuple[str, str], ...]:  # noqa: FBT001 - the only flag
    own = {**ENVIRONMENT, "CREDENTIALS_DIRECTORY": CREDENTIALS, **({"TERM": "xterm-256color"} if terminal else {})}
    variables: dict[str, str] = {}
    for each in texts(process, "env"):
        name, _, value = each.partition("=")
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            found.left_out.append(f"the variable {name}: no name for one")
        elif own.get(name) != value:
            variables[name] = value
    return tuple(sorted(variables.items()))


def _directory(process: Mapping[str, Any], found: _Found) -> str:
    path = text(process, "cwd") or "/"
    if path == "/" or _DIRECTORY.fullmatch(path):
        return path
    found.left_out.append(f"starting in {path}: no absolute path in its plain form")
    return "/"


def _rights(process: Mapping[str, Any], found: _Found) -> None:
    user = member(process, "user", dict)
    if number(user, "uid") == 0:
        found.left_out.append("the rights of root: it runs as the user `app`")
    if elements(user, "additionalGids", int):
        found.left_out.append("further groups: devices bring theirs")
    sets: dict[str, Any] = member(process, "capabilities", dict)
    if held := {name for kind in sets for name in texts(sets, kind)}:
        found.left_out.append(f"capabilities: {', '.join(sorted(held))}")
    if process.get("noNewPrivileges") is not True:
        found.left_out.append("gaining rights by set-id programs")
    for key, name in (("apparmorProfile", "AppArmor"), ("selinuxLabel", "SELinux")):
        if process.get(key):
            found.wider.append(f"not confined by {name}")


def _spaces(linux: Mapping[str, Any], found: _Found) -> None:
    spaces = {text(space, "type"): text(space, "path") for space in items(linux, "namespaces")}
    for kind, what in _NAMESPACES.items():
        if spaces.get(kind):
            found.left_out.append(f"the {what} of {spaces[kind]}: each application has its own")
        elif kind in spaces:
            continue
        elif kind == "network":
            found.powers |= set(_EVERYWHERE)
            found.left_out.append(
                "the machine's network: it opens connections to everywhere but this machine; ports to listen at are to be granted"
            )
        else:
            found.left_out.append(f"the machine's {what}")


def _places(mounts: list[dict[str, Any]], home: Path, found: _Found) -> None:
    wanted: dict[str, Access] = {}
    for mount in mounts:
        kind, options, at = text(mount, "type"), texts(mount, "options"), text(mount, "destination").rstrip("/") or "/"
        if kind == "bind" or {"bind", "rbind"} & {*options}:
            access = Access.READ if {"ro", "rro"} & {*options} else Access.WRITE
            _bound(text(mount, "source"), at, access, home, found, wanted)
        elif kind == "tmpfs" and at != "/dev":
            sizes = [match for option in options if (match := _SIZE.fullmatch(option))]
            for match in sizes:
                found.limit("scratch_bytes", int(match[1]) * _UNITS[match[2]])
            if is_own_place(at):
                found.data.pop(at, None)
                found.scratch[at] = None
            elif at not in MEMORY:
                found.left_out.append(f"memory at {at}: no place for it")
        elif (kind, at) not in {("proc", "/proc"), ("devpts", "/dev/pts"), ("tmpfs", "/dev")}:
            found.left_out.append(f"the file system {kind} at {at}")
    powers, left_out = paths_granted(wanted, home)
    found.powers |= powers
    found.left_out += left_out


def _bound(source: str, at: str, access: Access, home: Path, found: _Found, wanted: dict[str, Access]) -> None:
    own = f"~{at.removeprefix(HOME)}"
    if f"{at}/".startswith(f"{HOME}/") and source == str(host_path(own, home)):
        wanted[own] = min(access, wanted.get(own, access))
    elif is_own_place(at) and access is Access.WRITE:
        found.scratch.pop(at, None)
        found.data[at] = None
        found.left_out.append(f"what is in {source}: {at} is a directory of the application's own, empty at first")
    elif at in _OF_THE_RUNTIME and access is Access.READ:
        pass  # made for each container by engines; here by `connect`, as far as there is anything to say
    elif source == at:
        wanted[at] = min(access, wanted.get(at, access))
    else:
        found.left_out.append(f"{source} at {at}: what is granted is seen at its own place")


def _devices(linux: Mapping[str, Any], found: _Found) -> None:
    paths = [text(node, "path") for node in items(linux, "devices")]
    classes: dict[Device, list[str]] = {}
    for path in paths:
        device = class_of(path)
        if device is not None:
            classes.setdefault(device, []).append(path)
        elif plugged := usb.numbers(path):
            found.powers.add(Usb(*plugged))
        elif path not in _PLAIN_NODES:
            found.left_out.append(f"the device {path}: there is no class for it")
    for device, nodes in classes.items():
        found.powers.add(Use(device))
        if {f"/dev/{pattern}" for pattern in NODES[device]} != {*nodes}:
            found.wider.append(f"all devices of the class `{device}`, where it had {', '.join(nodes)}")


def _resources(resources: Mapping[str, Any], found: _Found) -> None:
    if limit := number(member(resources, "pids", dict), "limit"):
        found.limit("processes", limit)
    if limit := number(member(resources, "memory", dict), "limit"):
        found.limit("total_memory_bytes", limit)
    time = member(resources, "cpu", dict)
    if (quota := number(time, "quota")) > 0:
        found.limit("cpu_percent", 100 * quota // max(number(time, "period") or _PERIOD_US, 1))
    for key in sorted(resources.keys() - {"pids", "memory", "cpu", "devices"}):
        found.wider.append(f"no limits of {key}")
    for key in sorted(time.keys() - {"quota", "period", "shares"}):
        found.wider.append(f"no limits of cpu.{key}")


def _calls(seccomp: Mapping[str, Any], found: _Found) -> None:
    if not seccomp:
        found.left_out.append("any system call: the default list holds, for there is no filter")
        return
    room = room_of(seccomp)
    found.powers |= set(room.powers())
    held = policy(found.powers)
    if beyond := room.beyond(held):
        found.left_out.append(f"system calls: {', '.join(beyond)}")
    if lacking := room.lacking(held):
        found.wider.append(f"system calls: {', '.join(lacking)}")
