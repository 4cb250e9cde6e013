"""What systemd is told of an installed application, and the program by which people start one. Pure: texts from values.

A unit does not name an image: its ExecStart is a link that `prepare` sets, to the plan of the version that is installed. The link lies in
memory, so it is missing after a restart of the machine; then `prepare` checks every block, compiles the plan for the kernel that runs now,
and sets it. At every other start there is no interpreter.

Source: systemd.service(5), systemd.socket(5), systemd.exec(5), systemd.resource-control(5).
"""

from dataclasses import dataclass
from pathlib import Path

from obelisk.model.application import Application, Service
from obelisk.model.policy import Listen, Policy, Read, Use, Write, WriteExecute
from obelisk.sandbox import network
from obelisk.sandbox.plan import Guard, bounds_of, handed_sockets, host_path
from obelisk.system import cgroups

PREFIX = "obelisk-app-"
_AROUND = 8  # bubblewrap twice, pasta, and what they start on the way
# What `start` does as root: mounts, and the ids of the application.
_CAPABILITIES = "CAP_SYS_ADMIN CAP_SETUID CAP_SETGID CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER"
# RestrictSUIDSGID is left out: it takes openat2 away, by which bubblewrap (from 0.11 on) opens what it mounts.
_HARDENING = (
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
)
# A namespace of mounts is systemd's to make for root alone. What covers a part of /proc is left out: the kernel lets nobody mount
# a /proc of their own where a part of theirs is covered, and the application has one of its own. Nor is anything of /sys in its sight.
_HARDENING_BY_ROOT = (
    "ProtectSystem=strict",
    "ProtectKernelModules=yes",
    "ProtectClock=yes",
    "PrivateTmp=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an installed application stands: its link `start`, its data, whose home `~` is, and whether root launches it.

    `obelisk` are the words that start Obelisk. Who puts another version in place holds a lock on `moving` (flock(1)).
    """

    name: str
    start: Path
    moving: Path
    data: Path
    home: Path
    by_root: bool
    obelisk: tuple[str, ...]

    @property
    def service(self) -> str:
        """The name of its service."""
        return f"{PREFIX}{self.name}.service"

    @property
    def socket(self) -> str:
        """The name of the unit that holds its sockets."""
        return f"{PREFIX}{self.name}.socket"


def guard_of(app: Application, policy: Policy) -> Guard | None:
    """How a plan of the application is guarded; None for a command, which people start.

    Raises:
        MissingFeatureError: see `handed_sockets`.
    """
    if app.service is None:
        return None
    return Guard(len(_ports(app.service, policy)))


def texts(seat: Seat, label: str, app: Application, policy: Policy) -> dict[str, str]:
    """The unit files of a service, by their names: one or two. `label` is what people know the version by. None for a command."""
    if app.service is None:
        return {}
    ports = _ports(app.service, policy)
    units = {seat.service: _service(seat, label, app.service, policy, sockets=bool(ports))}
    if ports:
        units[seat.socket] = _socket(seat, label, ports)
    return units


def program(seat: Seat) -> str:
    """The program that starts a command: two lines of sh around the link."""
    start, prepare = _quoted(str(seat.start)), _prepare(seat)
    alone = "" if not seat.by_root else f'[ "$(id -u)" = 0 ] || {{ echo "{seat.name} was installed for root alone" >&2; exit 126; }}\n'
    return f'#!/bin/sh\n{alone}[ -e {start} ] || {prepare} || exit\nexec {start} "$@"\n'


def _ports(service: Service, policy: Policy) -> tuple[int, ...]:
    if not service.sockets:
        return ()
    handed_sockets(policy)
    return tuple(power.port for power in policy.of(Listen))


def _service(seat: Seat, label: str, service: Service, policy: Policy, *, sockets: bool) -> str:
    # A connection may ask for the service while another version is put in place: it waits for that. Who died over it holds no lock.
    # Even so, systemd gives it a view of its own on what is mounted, and what root mounts there would be gone when it ends.
    outside = "nsenter --target 1 --mount -- " if seat.by_root else ""
    prepare = f"exec {outside}{_prepare(seat)}"
    look = f"flock --shared {_quoted(str(seat.moving))} true 2>/dev/null; test -e {_quoted(str(seat.start))} || {prepare}"
    networked = network.is_wanted(policy) and not sockets
    lines = [
        "[Unit]",
        f"Description={label.replace('%', '%%')}, an application of Obelisk's",
        *(["After=network-online.target", "Wants=network-online.target"] if networked and seat.by_root else []),
        *([f"Requires={seat.socket}", f"After={seat.socket}"] if sockets else []),
        # However often it fails: a service that is given up takes its sockets with it.
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        # As it is, without what confines the service: it mounts.
        f"ExecStartPre=+/bin/sh -c {_word(look)}",
        f"ExecStart={_word(str(seat.start)).replace('$$', '$')}",  # variables count in all words but the first
        "Restart=on-failure",
        "RestartSec=1",
        "TimeoutStartSec=10min",
        f"TimeoutStopSec={service.stop_s}",
        # To each of its processes; those around the application let the signal wait (see Guard).
        "KillMode=control-group",
        *(f"{key}={value}" for key, value in cgroups.settings(bounds_of(policy), starters=_AROUND)),
        f"LimitNOFILE={max(policy.limits.open_files, 1024)}",
        *_HARDENING,
        # What pasta starts is root of its namespace by another execve, which this would forbid. Inside it holds in any case.
        *([] if networked else ["NoNewPrivileges=yes"]),
        *([] if policy.has(WriteExecute()) else ["MemoryDenyWriteExecute=yes"]),
        *(_by_root(seat, policy, networked=networked) if seat.by_root else []),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if seat.by_root else 'default.target'}",
    ]
    return "\n".join((*lines, ""))


def _by_root(seat: Seat, policy: Policy, *, networked: bool) -> list[str]:
    places = [host_path(grant.path, seat.home) for grant in policy.of(Read) + policy.of(Write)]
    written = [seat.data, *(host_path(grant.path, seat.home) for grant in policy.of(Write))]
    at_home = any(str(place).startswith(("/home", "/root")) for place in places)
    return [
        *_HARDENING_BY_ROOT,
        f"CapabilityBoundingSet={_CAPABILITIES}",
        f"ReadWritePaths={' '.join(_word(f'-{place}') for place in written)}",
        *([] if at_home else ["ProtectHome=tmpfs"]),
        *([] if networked or policy.of(Use) else ["PrivateDevices=yes"]),
    ]


def _socket(seat: Seat, label: str, ports: tuple[int, ...]) -> str:
    lines = [
        "[Unit]",
        f"Description=Sockets of {label.rpartition('_')[0].replace('%', '%%') or seat.name}, an application of Obelisk's",
        "",
        "[Socket]",
        *(f"ListenStream={port}" for port in ports),
        f"Service={seat.service}",
        # Connections wait while one version follows another, and are not what starts a service that has failed.
        "FlushPending=no",
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    return "\n".join((*lines, ""))


def _prepare(seat: Seat) -> str:
    return " ".join(map(_quoted, (*seat.obelisk, "app", "prepare", seat.name)))


def _quoted(word: str) -> str:
    """A word of sh's."""
    return "'" + word.replace("'", "'\\''") + "'"


def _word(text: str) -> str:
    """A word of a unit file's. Source: systemd.service(5), systemd.syntax(7)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
