"""From an application, its policy and a machine to a launch plan: two programs that start it confined, without Python or a shell.

    start     as whoever launches: own mounts, memory where the application writes, root's rights given up; then bubblewrap
    pasta     with a network: one of its own, which rules of nftables keep to what is granted
    bwrap     own user, mount, process, IPC, host name, control group and network namespaces; the application's root, read-only
    beside    with a desktop: a proxy for the session bus, an X server, each in a sandbox of its own, from `start` on until bwrap ends
    confine   inside: limits, Landlock, no writable executable memory, filter of system calls; then the application

`compile_plan` is pure. Every layer holds by itself: that a path is not mounted does not rely on Landlock, nor the reverse. What a machine
lacks stops the compilation, unless the policy says that it may be missing.
"""

import resource
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from obelisk.errors import MissingFeatureError
from obelisk.model.application import CREDENTIALS, Application
from obelisk.model.policy import (
    NO_LIMIT,
    X11,
    Ask,
    Connect,
    Contact,
    Layer,
    Listen,
    Nest,
    Policy,
    Reach,
    Read,
    Terminal,
    Wayland,
    Write,
    WriteExecute,
)
from obelisk.sandbox import desktop, network
from obelisk.sandbox.calls import WATCHED, filter_of
from obelisk.sandbox.desktop import Helper, Session
from obelisk.sandbox.machine import Machine
from obelisk.system import cgroups, confine, landlock
from obelisk.system.cgroups import Way
from obelisk.system.landlock import CHANGE, READ, Files, Rule, Ruleset
from obelisk.system.program import Beside, Call, Execute, assemble

HOME = "/home/app"
UID = 1000
"""The application's user inside; which one it is outside says `Place.owner`."""

# Parts of the image's root, and whether programs run from them.
_IMAGE = {"/usr": True, "/etc": False, "/opt": True, "/srv": True, "/var": False}
_LINKS = ("bin", "sbin", "lib", "lib64")
MEMORY = {"/dev/shm": 0o1777, "/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755, HOME: 0o700}  # noqa: S108 - inside the sandbox
_NODES = tuple(f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero"))
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_CONFINE = "/.confine"
_NAMESPACES = ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup")
_PROCESS = "2"  # the application's number in its own namespace: the first is bubblewrap, which waits for it
IDENTITY = "identity"
"""The file of a plan that tells portals who a helper speaks for."""
# Where later versions of portals look for a process of who asks. Of several starts the latest is noted.
_NOTE = "bwrapinfo.json"
CREDENTIAL_BYTES = 1 << 20
"""The most that a credential is, as of systemd's."""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": HOME, "USER": "app", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Top:
    """What is at the top of an image's root besides the parts that every one has: directories and files, and links with their targets."""

    directories: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = tuple((name, f"usr/{name}") for name in _LINKS)

    def without(self, names: Collection[str]) -> "Top":
        """What is left of it where the machine's own is shown under these names."""
        directories = tuple(name for name in self.directories if name not in names)
        files = tuple(name for name in self.files if name not in names)
        return Top(directories, files, tuple(link for link in self.links if link[0] not in names))


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are on the machine: the checked root, an empty directory, and where the plan and the application's data lie.

    `owner` is whose rights the application has over files; `groups` are those of the `devices` that it uses, some of which are
    `directories` of nodes. `home` is what `~` means.
    `resolver` is the file that names the machine's name servers. `group` is the name of its control group, where there is one;
    `credentials` are names of secrets, and the files that hold them. `session` is what the desktop of whoever launches has, and
    `system` directories and files of /sys that the devices' drivers look into, with links that lead to them. `top` is what the root has,
    `services` are the ports of those that are granted by name, `elsewhere` where at the machine's loopback its own ports are, if not at the
    machine's ports.
    """

    name: str
    root: Path
    plan: Path
    data: Path
    home: Path
    owner: confine.Owner
    groups: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    resolver: Path | None = None
    group: str = ""
    credentials: tuple[tuple[str, Path], ...] = ()
    session: Session = field(default_factory=Session)
    system: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    top: Top = field(default_factory=Top)
    services: tuple[int, ...] = ()
    elsewhere: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Guard:
    """What starts the plan is no person but systemd, which looks after what runs.

    The signals of systemd go to every process of a service. The application takes them, and what stands around it lets them wait, so
    that it is the application that decides how and when it ends. `sockets` are those that it is handed, as descriptors from 3 on.
    Source: sd_listen_fds(3), systemd.kill(5).
    """

    sockets: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The programs, and rules of nftables where there is a network. `layers` tells which layers hold and which do not, and why.

    `launch` is what `start` goes on as, in a scope of systemd's; empty where `start` does it all. `beside` are the programs that
    become helpers, by the names of their files. `identity` tells portals who a helper speaks for.
    """

    start: bytes
    launch: bytes
    confine: bytes
    rules: str
    beside: tuple[tuple[str, bytes], ...]
    identity: bytes
    layers: tuple[tuple[str, str], ...]


def compile_plan(
    app: Application, policy: Policy, place: Place, machine: Machine, *, listener: int | None = None, guard: Guard | None = None
) -> Plan:
    """The plan. With `listener`, an open socket, refused system calls are put before an observer (see `obelisk.sandbox.observer`).

    With `guard`, it is for a service (see `Guard`). A service that is handed its sockets listens at no port itself.

    Raises:
        MissingFeatureError: the machine lacks a layer that the policy does not allow to be missing.
    """
    refused = sorted(missing_layers(policy, machine) - policy.may_miss)
    if refused:
        faults = {Layer.CGROUP: machine.groups.fault, Layer.VOLUME: machine.volumes}
        remedy = "".join(f"{faults[layer]}; else " for layer in refused if layer in faults)
        raise MissingFeatureError(
            f"this machine lacks {', '.join(f'the layer `{layer}`' for layer in refused)} of confinement",
            code="layer-missing",
            hint=f"{remedy}run it elsewhere, or name the layer under `may_miss` of the operator's [override]",
        )
    if guard is not None and guard.sockets:
        policy = handed_sockets(policy)
    if network.is_wanted(policy) and machine.network:
        raise MissingFeatureError("this machine cannot give it the network that is granted", code="no-network", hint=machine.network)
    if policy.of(Reach) and not machine.python:
        raise MissingFeatureError(
            "no Python on this machine can be run by every user, and the resolver of granted names is a program in it",
            code="no-interpreter",
            hint="install python3 below /usr, or grant networks instead of names",
        )
    for port in _kept_for_root(policy, machine):
        if not machine.is_root:
            raise MissingFeatureError(
                f"port {port} of this machine is kept for root",
                code="port-privileged",
                hint=f"let root start it, grant one from {machine.first_port} on, or lower the sysctl net.ipv4.ip_unprivileged_port_start",
            )
    helpers = desktop.helpers(policy, place.session, machine, place.name)
    grouped = is_grouped(policy, machine, guard)
    entering = cgroups.enter(place.group) if grouped and machine.groups.way is Way.DIRECT else []
    before = confine.close_descriptors(keep=listener) if guard is None else confine.close_descriptors(first=3 + guard.sockets)
    before += confine.usual_modes()
    before += confine.hold_signals() if guard is not None else []
    steps: list[Call | Beside] = [*entering, *before, *_outside(app, policy, place, machine)]
    for helper in helpers:
        steps += _beside(helper, place, machine)
    # What pasta starts is root in a namespace of pasta's, and needs the rights of that there. Afterwards bubblewrap takes the step.
    steps += [] if network.is_wanted(policy) else confine.no_new_privileges()
    outside = assemble(steps, _bubblewrap(policy, place, machine))
    mounts = tuple(_mounts(app, policy, place))
    within = _inside(app, mounts, policy, machine, place, listener=listener)
    within = [*confine.take_signals(), *within] if guard is not None else within
    variables = environment_of(app, policy, guard, observed=listener is not None)
    inside = assemble(within, Execute(app.command[0], app.command, variables))
    start, launch = outside, b""
    if grouped and machine.groups.way is not Way.DIRECT:
        scope = cgroups.scope(machine.groups, place.group, machine.owner, (str(place.plan / "launch"),))
        start, launch = assemble([], scope), outside
    beside = tuple((_file_of(helper), assemble(_inside_helper(helper, machine), helper.program)) for helper in helpers)
    # Where Landlock knows of ports, an application hears from it that it may not connect.
    rules = network.rules(policy, refused_at_once=machine.landlock >= landlock.NETWORK_SINCE)
    return Plan(start, launch, inside, rules, beside, desktop.identity(place.name), layers_of(policy, machine))


def _kept_for_root(policy: Policy, machine: Machine) -> tuple[int, ...]:
    """The ports that it listens at, and that the machine gives to root alone."""
    return tuple(power.port for power in policy.of(Listen) if power.port < machine.first_port)


def missing_layers(policy: Policy, machine: Machine) -> frozenset[Layer]:
    """The layers that the policy asks for and the machine does not have."""
    grouped = not policy.limits.are_total or machine.groups.way is not Way.NONE
    kept = policy.limits.data_bytes == NO_LIMIT or not machine.volumes
    return machine.missing | (frozenset() if grouped else {Layer.CGROUP}) | (frozenset() if kept else {Layer.VOLUME})


def is_grouped(policy: Policy, machine: Machine, guard: Guard | None) -> bool:
    """Whether its plan puts the application into a control group; that of a service is systemd's, and its unit has the bounds."""
    return guard is None and policy.limits.are_total and machine.groups.way is not Way.NONE


def bounds_of(policy: Policy) -> cgroups.Bounds:
    """What all processes of the application together may take, with the helpers beside it."""
    limits, helpers = policy.limits, desktop.uses_bus(policy) + policy.has(X11())
    memory, time = (None if value == NO_LIMIT else value for value in (limits.total_memory_bytes, limits.cpu_percent))
    return cgroups.Bounds(limits.processes + desktop.PROCESSES * helpers, memory, time)


@dataclass(frozen=True, slots=True)
class _Mount:
    """Something of the machine, or of its memory where `source` is None, at `inside`. `exists`: the image has a place for it.

    `mode` is that of a directory; 0 where what it is has to be looked at.
    """

    inside: str
    source: Path | None
    writable: bool
    mode: int
    exists: bool

    @property
    def is_file(self) -> bool:
        return self.source is not None and not self.mode and not self.source.is_dir()


def _mounts(app: Application, policy: Policy, place: Place) -> Iterator[_Mount]:
    """Everything besides the image, parents before what is in them."""
    wanted: dict[str, tuple[Path | None, bool, int]] = {path: (None, True, mode) for path, mode in MEMORY.items()}
    wanted |= dict.fromkeys(app.scratch, (None, True, 493))
    for grant in policy.of(Read) + policy.of(Write):
        wanted[inside_path(grant.path)] = (host_path(grant.path, place.home), isinstance(grant, Write), 0)
    wanted |= {path: (data_directory(place.data, path), True, 0) for path in app.data}
    if (policy.of(Connect) or policy.of(Reach)) and place.resolver is not None:
        wanted["/etc/resolv.conf"] = (place.resolver, False, 0)
    if desktop.is_wanted(policy):
        wanted[desktop.RUNTIME] = (None, True, 0o700)
    if policy.has(Wayland()):
        wanted[desktop.COMPOSITOR] = (Path(place.session.compositor), False, 0)
    if policy.of(Ask):
        wanted[place.session.documents] = (Path(desktop.documents_of(place.session, place.name)), True, 0o500)
    wanted |= {path: (Path(path), False, 0) for path in place.system}
    own = [f"/{name}" for name in _shown_top(policy, place).directories]
    for path in sorted(wanted, key=lambda path: (path.count("/"), path)):
        in_image = path.startswith(tuple(f"{top}/" for top in (*_IMAGE, *own)))
        exists = in_image and not path.startswith(tuple(f"{memory}/" for memory in MEMORY))
        yield _Mount(path, *wanted[path], exists)


def host_path(granted: str, home: Path) -> Path:
    """The path of the machine that a grant means."""
    return Path(str(home) + granted.removeprefix("~")) if granted.startswith("~") else Path(granted)


def inside_path(granted: str) -> str:
    """Where the application sees it."""
    return HOME + granted.removeprefix("~") if granted.startswith("~") else granted


def data_directory(data: Path, inside: str) -> Path:
    """Where what an application keeps at `inside` lies on the machine."""
    return data / inside.strip("/").replace("-", "--").replace("/", "-")


def _outside(app: Application, policy: Policy, place: Place, machine: Machine) -> list[Call]:
    """What `start` does before it starts another program: the whole root is put together here.

    That takes system calls alone, where bubblewrap reads every mount anew.
    """
    stage = str(place.plan / "stage")
    runs = policy.has(WriteExecute())
    mine = confine.Owner(0, 0) if machine.is_root else machine.owner
    calls = confine.own_mounts() if machine.is_root else confine.own_mounts_of_user(machine.owner)
    calls += confine.memory(stage, 1 << 20, mine)
    made = {""}
    for top in ("/proc", "/dev", "/var", *_IMAGE):
        calls += confine.directory(f"{stage}{top}") if top not in made else []
        made.add(top)
    for top in _IMAGE:
        calls += confine.bound(f"{place.root}{top}", f"{stage}{top}", writable=False, executable=True)
    calls += _top(policy, place, stage, made)
    calls += _devices(place, stage, made)
    for mount in _mounts(app, policy, place):
        at = f"{stage}{mount.inside}"
        if not mount.exists:
            for parent in _missing(mount.inside.rpartition("/")[0], made):
                calls += confine.directory(f"{stage}{parent}")
            calls += confine.file(at) if mount.is_file else confine.directory(at)
            made.add(mount.inside)
        if mount.source is None:
            calls += confine.memory(at, policy.limits.scratch_bytes, place.owner, mode=mount.mode, executable=runs)
        else:
            calls += confine.bound(str(mount.source), at, writable=mount.writable, executable=runs)
    calls += _links(place, stage, made)
    calls += _credentials(place, stage)
    calls += confine.file(f"{stage}{_CONFINE}")
    calls += confine.bound(f"{place.plan}/confine", f"{stage}{_CONFINE}", writable=False, executable=True)
    calls += confine.read_only(stage)
    if machine.is_root:
        # It is pasta that listens, before it enters a user namespace of its own; from there on, the right counts for nothing outside.
        calls += confine.become(place.owner, place.groups, listening=bool(_kept_for_root(policy, machine)))
    return calls


def _top(policy: Policy, place: Place, stage: str, made: set[str]) -> Iterator[Call]:
    """The rest of the image's root."""
    top = _shown_top(policy, place)
    for name in top.directories:
        yield from confine.directory(f"{stage}/{name}")
        made.add(f"/{name}")
    for name in top.files:
        yield from confine.file(f"{stage}/{name}")
    for name in (*top.directories, *top.files):
        yield from confine.bound(f"{place.root}/{name}", f"{stage}/{name}", writable=False, executable=True)
    for name, target in top.links:
        yield from confine.link(target, f"{stage}/{name}")


def _shown_top(policy: Policy, place: Place) -> Top:
    granted = (inside_path(grant.path).split("/")[1] for grant in policy.of(Read) + policy.of(Write))
    return place.top.without({name for name in granted if name != HOME.split("/")[1]})


def _beside(helper: Helper, place: Place, machine: Machine) -> list[Call | Beside]:
    """What `start` does for a helper: its sandbox, which ends when `start`, or what that has become, does."""
    shared = f"{place.plan}/stage{helper.shared}"
    words = ["bwrap", *_NAMESPACES, "--unshare-net", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    words += ["--disable-userns"] if machine.no_nesting else []
    words += ["--ro-bind", "/usr", "/usr"]
    words += [word for link in _LINKS for word in ("--symlink", f"usr/{link}", f"/{link}")]
    words += ["--dir", "/etc", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    words += ["--tmpfs", "/tmp", "--tmpfs", "/run", "--bind", shared, helper.shared]  # noqa: S108 - inside the sandbox
    words += [word for source, inside in helper.seen for word in ("--ro-bind", source, inside)]
    words += ["--ro-bind", f"{place.plan}/{IDENTITY}", desktop.KNOWN_BY, "--info-fd", str(desktop.NOTED)] if helper.known else []
    words += ["--ro-bind", f"{place.plan}/{_file_of(helper)}", _CONFINE, "--sync-fd", str(desktop.HELD), "--chdir", "/", "--", _CONFINE]
    calls: list[Call | Beside] = [*confine.directory(shared)] if helper.shared != desktop.RUNTIME else []
    program = Execute(machine.bubblewrap, tuple(words))
    name = Path(helper.program.path).name
    noted = confine.writable_at(f"{helper.known}/{_NOTE}", desktop.NOTED) if helper.known else []
    return calls + confine.helped_by(program, name, report=desktop.REPORT, held=desktop.HELD, more=noted)


def _inside_helper(helper: Helper, machine: Machine) -> list[Call]:
    """What a helper gives up before it begins: all that an application without any grant does."""
    calls = confine.limit(resource.RLIMIT_CORE, 0) + confine.no_new_privileges()
    if machine.landlock:
        change = READ | CHANGE
        rules = [Rule("/usr", READ | Files.EXECUTE), Rule("/", Files.READ_DIR), Rule("/proc", READ)]
        rules += [Rule(top, change) for top in ("/tmp", "/run", helper.shared)]  # noqa: S108 - inside the sandbox
        rules.append(Rule("/dev", READ | Files.WRITE_FILE | Files.TRUNCATE | Files.IOCTL_DEV))
        calls += Ruleset((*rules, Rule("/etc", READ))).calls(machine.landlock)
    if machine.no_write_execute:
        calls += confine.refuse_write_execute()
    return calls + confine.filtered(filter_of(Policy()).program())


def _file_of(helper: Helper) -> str:
    return f"beside-{helper.name}"


def _credentials(place: Place, stage: str) -> Iterator[Call]:
    """Secrets in memory, read anew at each start: of the plan only their names are part."""
    if place.credentials:
        at = f"{stage}{CREDENTIALS}"
        yield from confine.directory(at)
        yield from confine.memory(at, CREDENTIAL_BYTES * len(place.credentials), place.owner, mode=0o500)
        for name, file in place.credentials:
            yield from confine.copied(str(file), f"{at}/{name}", place.owner, f"the credential {name}, {file}")
        yield from confine.read_only(at)


def _devices(place: Place, stage: str, made: set[str]) -> Iterator[Call]:
    """The nodes that every program needs, and those that are granted."""
    for link, target in _DEVICE_LINKS.items():
        yield from confine.link(target, f"{stage}/dev/{link}")
    for node in (*_NODES, *place.devices):
        for parent in _missing(node.rpartition("/")[0], made):
            yield from confine.directory(f"{stage}{parent}")
        yield from confine.directory(f"{stage}{node}") if node in place.directories else confine.file(f"{stage}{node}")
        yield from confine.device(node, f"{stage}{node}")


def _links(place: Place, stage: str, made: set[str]) -> Iterator[Call]:
    """The links that lead to what is shown of /sys."""
    for target, link in place.links:
        for parent in _missing(link.rpartition("/")[0], made):
            yield from confine.directory(f"{stage}{parent}")
        yield from confine.link(target, f"{stage}{link}")


def _missing(path: str, made: set[str]) -> Iterator[str]:
    """The directories down to `path` that are not there yet, which then are."""
    if path not in made:
        yield from _missing(path.rpartition("/")[0], made)
        made.add(path)
        yield path


def _bubblewrap(policy: Policy, place: Place, machine: Machine) -> Execute:
    """What `start` goes on as."""
    # The bus compares who a program says it is with who its proxy is.
    uid, gid = (place.owner.uid, place.owner.gid) if desktop.uses_bus(policy) else (UID, UID)
    words = ["bwrap", *_NAMESPACES]
    words += [] if network.is_wanted(policy) else ["--unshare-net"]
    words += ["--uid", str(uid), "--gid", str(gid), "--hostname", place.name, "--die-with-parent", "--cap-drop", "ALL"]
    if machine.no_nesting and not policy.has(Nest()):
        words += ["--disable-userns"]
    if not policy.has(Terminal()):
        words += ["--new-session"]
    stage = place.plan / "stage"
    words += ["--dev-bind", str(stage), "/", "--proc", "/proc"]
    for name in machine.masked_files:
        words += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    if policy.has(Terminal()):
        # A place of its own for pseudo-terminals comes with all of bubblewrap's /dev.
        words += ["--dev", "/dev", "--bind", f"{stage}/dev/shm", "/dev/shm"]  # noqa: S108
        words += [word for device in place.devices for word in ("--dev-bind", device, device)]
        words += ["--remount-ro", "/dev"]
    words += ["--chdir", "/", "--", _CONFINE]
    if not network.is_wanted(policy):
        return Execute(machine.bubblewrap, tuple(words))
    rules = str(place.plan / "network.nft")
    return Execute(
        machine.pasta,
        network.words(
            policy,
            rules,
            machine.nft,
            (machine.bubblewrap, *words[1:]),
            resolver=(machine.python, "-I", str(place.plan / "resolver.py")),
            services=place.services,
            elsewhere=dict(place.elsewhere),
        ),
    )


def _inside(
    app: Application, mounts: tuple[_Mount, ...], policy: Policy, machine: Machine, place: Place, *, listener: int | None
) -> list[Call]:
    """What `confine` does. The filter comes last: the steps before it use calls that it refuses."""
    limits = policy.limits
    calls = confine.limit(resource.RLIMIT_CORE, 0)
    calls += confine.limit(resource.RLIMIT_DATA, limits.memory_bytes)
    calls += confine.limit(resource.RLIMIT_NPROC, limits.processes)
    calls += confine.limit(resource.RLIMIT_NOFILE, min(limits.open_files, machine.open_files))
    calls += confine.change_directory(app.directory)
    calls += confine.no_new_privileges()
    if machine.landlock:
        calls += _ruleset(mounts, policy, _shown_top(policy, place), place.services).calls(machine.landlock)
    if machine.no_write_execute and not policy.has(WriteExecute()):
        calls += confine.refuse_write_execute()
    return calls + confine.filtered(
        filter_of(policy).program(ask=listener is not None, watched=frozenset() if listener is None else WATCHED), listener=listener
    )


def _ruleset(mounts: tuple[_Mount, ...], policy: Policy, top: Top, services: Collection[int]) -> Ruleset:
    run = Files.EXECUTE if policy.has(WriteExecute()) else Files(0)
    rules = [Rule(place, READ | (Files.EXECUTE if runs else Files(0))) for place, runs in _IMAGE.items()]
    rules += [Rule(f"/{name}", READ | Files.EXECUTE, is_file=name in top.files) for name in (*top.directories, *top.files)]
    # By /proc/self/mem a process writes to its own memory, whatever the protection of that is. Sandboxes of its own want their uid_map.
    rules += [Rule("/", Files.READ_DIR), Rule("/proc", READ | (Files.WRITE_FILE if policy.has(Nest()) else Files(0)))]
    rules += [Rule("/dev", READ | Files.WRITE_FILE | Files.TRUNCATE | Files.IOCTL_DEV)]
    for mount in mounts:
        rights = READ | run | (CHANGE if mount.writable else Files(0))
        rules.append(Rule(mount.inside, rights, is_file=mount.is_file))
    listens = tuple(power.port for power in policy.of(Listen))
    connects = (*(power.port for power in policy.of(Connect) + policy.of(Reach)), *services)
    # To its own ports it may talk: they are in its own network.
    return Ruleset(tuple(rules), bind=listens, connect=None if 0 in connects else (*listens, *connects))


def handed_sockets(policy: Policy) -> Policy:
    """What is left of a policy to a service whose ports systemd listens at: all but the ports, and so often no network at all.

    Raises:
        MissingFeatureError: it opens connections as well, and pasta, which would give it the network for that, passes no sockets on.
    """
    if policy.of((Connect, Reach, Contact)):
        raise MissingFeatureError(
            "it is handed its sockets by systemd, and cannot be given a network for connections as well",
            code="sockets-and-network",
            hint="leave out `connect`, or `app.sockets`",
        )
    return policy.with_powers(power for power in policy.powers if not isinstance(power, Listen))


def environment_of(app: Application, policy: Policy, guard: Guard | None = None, *, observed: bool = False) -> tuple[str, ...]:
    """What the application finds in its environment, `NAME=value` each."""
    more = {"TERM": "xterm-256color"} if policy.has(Terminal()) else {}
    more |= {"CREDENTIALS_DIRECTORY": CREDENTIALS} if app.credentials else {}
    more |= desktop.environment(policy, observed=observed)
    sockets = {"LISTEN_FDS": str(guard.sockets), "LISTEN_PID": _PROCESS} if guard is not None and guard.sockets else {}
    given = {**ENVIRONMENT, **more, **dict(app.environment), **sockets}
    return tuple(f"{name}={value}" for name, value in sorted(given.items()))


def layers_of(policy: Policy, machine: Machine) -> tuple[tuple[str, str], ...]:
    """Which layers hold on a machine, and what each means under the policy."""
    read = ", and again by the kernel whenever it is read" if machine.verity and machine.is_root else "; a change after that is not noticed"
    fixed = (
        ("blocks", f"each was compared with the hash tree when it was made ready{read}"),
        ("namespaces", "user, mount, process, IPC, host name, control group, network"),
        (
            "files",
            "the image is read-only; what is writable is memory or granted" + ("" if policy.has(WriteExecute()) else ", and never runs"),
        ),
        ("rights", "no capabilities, no new privileges"),
        ("seccomp", f"{len(filter_of(policy).allowed)} system calls are allowed, all others refused"),
        ("limits", "data, processes, open files, memory for files"),
    )
    may_miss = {
        Layer.LANDLOCK: f"ABI {machine.landlock}: files" + (", TCP ports" * (machine.landlock >= landlock.NETWORK_SINCE)),
        Layer.NESTING: "granted: it makes namespaces" if policy.has(Nest()) else "no further user namespaces",
        Layer.WRITE_EXECUTE: "granted: it runs what it writes" if policy.has(WriteExecute()) else "no memory is writable and executable",
    }
    if policy.limits.are_total:
        may_miss[Layer.CGROUP] = f"limits of all processes together, in a group made by {machine.groups.way}"
    if policy.limits.data_bytes != NO_LIMIT:
        may_miss[Layer.VOLUME] = "what it keeps is in a volume of its own, which is as large as it may become"
    missing = missing_layers(policy, machine)
    return (*fixed, *((layer.value, "missing on this machine" if layer in missing else text) for layer, text in may_miss.items()))
