"""A service of systemd that starts an application from its image, with the sandbox that systemd has for it. Pure; only written.

The kernel checks the root by dm-verity as it is read (RootImage=, RootHash=). systemd's filter of addresses holds for both directions and
knows no ports, so of grants of network only those to whole networks are written; for a port to listen at, a socket unit is the narrow way.
What would open more than the policy stands in the file as a comment.

Source: systemd.exec(5), systemd.resource-control(5), systemd.service(5) of systemd 252.
"""

from collections.abc import Iterator
from dataclasses import replace

from obelisk.model.exposure import explain
from obelisk.model.policy import (
    NO_LIMIT,
    Call,
    Calls,
    Connect,
    Contact,
    Device,
    Listen,
    Nest,
    Policy,
    Reach,
    Read,
    Terminal,
    Usb,
    Use,
    Write,
    WriteExecute,
)
from obelisk.sandbox import desktop
from obelisk.sandbox.calls import filter_of
from obelisk.sandbox.formats.foreign import Subject, Written
from obelisk.sandbox.plan import HOME, environment_of, host_path, inside_path
from obelisk.system.syscalls import NUMBERS

_NAMES = {number: name for name, number in NUMBERS.items()}
_DEVICES = {Device.AUDIO: "char-alsa", Device.CAMERA: "char-video4linux", Device.GPU: "char-drm", Device.KVM: "/dev/kvm"}
# Where systemd keeps directories for services, below which it knows them by one name.
_KEPT = {"/var/lib/": "StateDirectory", "/var/cache/": "CacheDirectory", "/var/log/": "LogsDirectory"}
_MARKS = ":\"'\\"
# Directories of every image of Debian's in which memory takes the places of what is mounted.
_TOPS = ("/mnt/", "/media/")
_OPEN = "PrivateNetwork=no, IPAddressAllow=any, RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK, SocketBindDeny=any"
# PrivateIPC= is left out: in a namespace of its own systemd never hears from udev that the image's device is there, and does not start it.
_ALWAYS = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "PrivateUsers": "yes",
    "PrivateTmp": "yes",
    "PrivateMounts": "yes",
    "ProtectSystem": "strict",
    "ProtectProc": "invisible",
    "ProcSubset": "pid",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "KeyringMode": "private",
    "RemoveIPC": "yes",
    "UMask": "0077",
    # One process that is killed for want of memory is the application's affair, as without systemd.
    "OOMPolicy": "continue",
    "MountAPIVFS": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
}


def write(subject: Subject) -> Written:
    """The unit."""
    notes = tuple(_notes(subject))
    lines = [f"# {note}" for note in notes]
    lines += ["", "[Unit]", f"Description={_escaped(subject.name)}, an application in a sandbox", "", "[Service]", "Type=exec"]
    lines += [f"{name}={text}" for name, text in _settings(subject)]
    return Written("\n".join((*lines, "", "[Install]", "WantedBy=multi-user.target", "")), notes)


def _settings(subject: Subject) -> Iterator[tuple[str, str]]:
    app, held = subject.app, subject.policy
    yield "ExecStart", " ".join(_quoted(word, command=True) for word in app.command)
    for name in sorted(app.credentials):
        yield "LoadCredential", f"{name}:{_escaped(str(subject.credentials / name))}"
    for variable in environment_of(replace(app, credentials=()), desktop.without(held)):  # systemd says itself where they are
        yield "Environment", _quoted(variable)
    yield "WorkingDirectory", _escaped(app.directory)
    yield "DynamicUser", "yes"
    yield "RootImage", _escaped(str(subject.root.file))
    yield "RootHash", subject.root.sha256
    yield "RootVerity", _escaped(str(subject.root.tree))
    yield from _ALWAYS.items()
    yield from _files(subject)
    yield from _devices(subject)
    yield from _network(subject)
    yield "RestrictNamespaces", "user mnt pid net ipc uts cgroup" if held.has(Nest()) else "yes"
    yield "RestrictRealtime", "no" if held.has(Call(Calls.SCHEDULING)) else "yes"
    if not held.has(WriteExecute()):
        yield "MemoryDenyWriteExecute", "yes"
        # What systemd mounts for another reason it leaves out of the rule for "/", so each of these has one of its own.
        granted = [inside_path(grant.path) for grant in _shown(held)]
        kept = [path for path in app.data if _kept(path) is not None]
        yield "NoExecPaths", " ".join(("/", *(f"-{_path(path)}" for path in ("/tmp", "/var/tmp", *kept, *granted))))  # noqa: S108 - inside
        yield "ExecPaths", "/usr /opt /srv"
    calls = {_NAMES[number] for number in filter_of(held).allowed}
    if not held.has(WriteExecute()):
        calls.discard("memfd_create")  # what is in such a file runs, unless an argument says otherwise, at which no unit can look
    # With EPERM for clone3, C libraries would not try clone; the filter of RestrictNamespaces= answers ENOSYS.
    yield "SystemCallFilter", " ".join(sorted({*calls, "clone3"}))
    limits = held.limits
    yield "LimitCORE", "0"
    yield "LimitDATA", str(limits.memory_bytes)
    yield "LimitNPROC", str(limits.processes)
    yield "TasksMax", str(limits.processes)
    yield "LimitNOFILE", str(limits.open_files)
    if limits.total_memory_bytes != NO_LIMIT:
        yield "MemoryMax", str(limits.total_memory_bytes)
        yield "MemorySwapMax", "0"
    if limits.cpu_percent != NO_LIMIT:
        yield "CPUQuota", f"{limits.cpu_percent}%"


def _files(subject: Subject) -> Iterator[tuple[str, str]]:
    app, held = subject.app, subject.policy
    runs = "" if held.has(WriteExecute()) else ",noexec"
    yield "ProtectHome", "tmpfs"
    # Drivers of graphics processors look there for what they are.
    yield "InaccessiblePaths", "/dev/pts" if held.has(Use(Device.GPU)) else "/dev/pts /sys"
    for path in (HOME, "/dev/shm", *filter(_is_plain, app.scratch)):  # noqa: S108 - inside
        yield "TemporaryFileSystem", f"{_path(path)}:rw,nosuid,nodev{runs},size={held.limits.scratch_bytes},mode=1777"
    for path in app.data:
        if kept := _kept(path):
            yield kept[0], kept[1]
    shown = _shown(held)
    for top in sorted({f"/{grant.path.split('/')[1]}" for grant in shown if grant.path.startswith(_TOPS)}):
        yield "TemporaryFileSystem", f"{top}:ro"
    for grant in shown:
        kind = "BindPaths" if isinstance(grant, Write) else "BindReadOnlyPaths"
        yield kind, f"{_path(str(host_path(grant.path, subject.home)))}:{_path(inside_path(grant.path))}:rbind"
        if isinstance(grant, Write):
            yield "ReadWritePaths", _path(inside_path(grant.path))


def _shown(held: Policy) -> list[Read | Write]:
    """The grants of files that a unit can have."""
    return [grant for grant in held.of(Read) + held.of(Write) if _has_place(grant)]


def _has_place(grant: Read | Write) -> bool:
    """Whether there is something at which it can be mounted: the root of the image cannot be changed for it."""
    return (_is_plain(grant.path) and grant.path in {"/mnt", "/media"}) or grant.path.startswith((*_TOPS, "/home/", "~"))


def _is_plain(path: str) -> bool:
    """Whether a path can stand in lists of paths, of which each setting has its own idea how often they are unquoted."""
    return not {*path} & {*_MARKS}


def _kept(path: str) -> tuple[str, str] | None:
    """The setting that keeps a directory, and its name there."""
    found = next(((top, setting) for top, setting in _KEPT.items() if path.startswith(top) and _is_plain(path)), None)
    return None if found is None else (found[1], _path(path.removeprefix(found[0])))


def _devices(subject: Subject) -> Iterator[tuple[str, str]]:
    used = subject.policy.of(Use)
    plugged = subject.policy.of(Usb)
    yield "PrivateDevices", "no" if used or plugged else "yes"
    yield "DevicePolicy", "closed"
    for power in used:
        yield "DeviceAllow", f"{_DEVICES[power.device]} rw"
    if plugged:
        yield "DeviceAllow", "char-usb_device rw"
    if groups := sorted({node.group for node in subject.nodes}):
        yield "SupplementaryGroups", " ".join(map(str, groups))


def _network(subject: Subject) -> Iterator[tuple[str, str]]:
    networks = [power.network for power in subject.policy.of(Connect) if not power.port]
    yield "PrivateNetwork", "no" if networks else "yes"
    yield "RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK" if networks else "AF_UNIX"
    yield "IPAddressDeny", "any"
    if networks:
        yield "IPAddressAllow", " ".join(networks)
        yield "SocketBindDeny", "any"
        yield "BindReadOnlyPaths", "-/etc/resolv.conf"


def _notes(subject: Subject) -> Iterator[str]:
    held = subject.policy
    yield "not in it: Landlock; limits of each directory of /tmp and /var/tmp, which lie on the machine's disk"
    if not held.has(WriteExecute()):
        # A read-only /proc would close it, but there systemd writes the numbers of its users last.
        yield "wider: it can change its own code by /proc/self/mem"
        yield "not in it: files that are memory alone (memfd_create), also those that say of themselves that they do not run"
    yield "its directories of data are those that systemd keeps, and not those of `obelisk app run`"
    if held.limits.data_bytes != NO_LIMIT:
        yield "wider: what they hold has no bound"
    yield "wider: shared memory of System V and message queues are the machine's, as far as others have opened theirs to everybody"
    yield "wider: it sees the machine's name"
    yield from _notes_on_network(held)
    if held.has(Terminal()):
        yield "not in it: the terminal, which a service has none of"
    for power in held.of(desktop.SESSION):
        yield f"not in it: {explain(power)}. A service is started without a session"
    for power in held.of(Use):
        yield f"wider: it sees the names of all devices; it uses those of `{power.device}`, and others that the same driver has"
    if held.of(Usb):
        yield "wider: of what is plugged in by USB it uses all that its groups may, not the granted products alone"
    for grant in held.of(Read) + held.of(Write):
        if not _has_place(grant):
            yield f"not in it: {explain(grant)}. There is a place for it below /mnt, /media and /home, under names without {_MARKS}"
    for path in (
        *(path for path in subject.app.data if _kept(path) is None),
        *(path for path in subject.app.scratch if not _is_plain(path)),
    ):
        yield f"not in it: the directory {path}; systemd keeps those below {', '.join(_KEPT)}, under names without {_MARKS}"


def _notes_on_network(held: Policy) -> Iterator[str]:
    for power in held.of(Listen):
        yield f"not in it: {explain(power)}. A socket unit with ListenStream={power.port} hands it the socket and no network"
        yield f"wider by far, where it cannot take that: {_OPEN}, SocketBindAllow=tcp:{power.port}"
    for power in held.of(Contact):
        yield f"not in it: {explain(power)}. Its port is one of the machine's loopback: {_OPEN}"
    for power in held.of(Reach):
        yield f"not in it: {explain(power)}, which systemd knows no names of"
    for power in held.of(Connect):
        if power.port:
            yield f"not in it: {explain(power)}. IPAddressAllow={power.network} opens every port there, in both directions"
        else:
            yield f"wider: {power.network} reaches it too; in the machine's network are sockets with names in no directory (abstract ones)"


def _escaped(text: str) -> str:
    """Text in which nothing is a specifier."""
    return text.replace("%", "%%")


def _path(path: str) -> str:
    """A path of a list."""
    return _quoted(path) if " " in path else _escaped(path)


def _quoted(text: str, *, command: bool = False) -> str:
    """A word as systemd reads it, of a command also without variables."""
    word = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f'"{word.replace("$", "$$") if command else word}"'
