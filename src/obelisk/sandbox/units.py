"""What systemd is told of an installed application, and the program by which people start one. Pure: texts from values.

A unit does not name an image: its ExecStart is a link that `prepare` sets, to the plan of the version that is installed. The link lies in
memory, so it is missing after a restart of the machine; then `prepare` checks every block, compiles the plan for the kernel that runs now,
and sets it. At every other start there is no interpreter.

Source: systemd.service(5), systemd.socket(5), systemd.exec(5), systemd.resource-control(5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from obelisk.model.application import Application, Service
from obelisk.model.policy import Listen, Policy, Read, Usb, Use, Write, WriteExecute
from obelisk.sandbox import desktop, network
from obelisk.sandbox.calls import granted_calls
from obelisk.sandbox.plan import Guard, bounds_of, handed_sockets, host_path
from obelisk.system import cgroups

PREFIX = "obelisk-app-"
_AROUND = 8  # bubblewrap twice, pasta, and what they start on the way
# What `start` does as root: mounts, and the ids of the application.
_CAPABILITIES = "CAP_SYS_ADMIN CAP_SETUID CAP_SETGID CAP_DAC_OVERRIDE CAP_FOWNER"
# Programs that are not by the C library bound themselves by it; the rest of @resources is granted or refused.
_SETS_LIMITS = frozenset({"setrlimit"})
# RestrictSUIDSGID is left out: it takes openat2 away, by which bubblewrap (from 0.11 on) opens what it mounts.
_HARDENING = (
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
    # Refused by name, because this filter is also that of bubblewrap and pasta, and systemd does not know the calls of kernels younger
    # than itself. What it shares with the application's own filter it holds by itself, from the first program on.
    "SystemCallFilter=~@clock @cpu-emulation @debug @keyring @module @obsolete @raw-io @reboot @resources @swap",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
    # One process that is killed for want of memory is the application's affair, as without systemd.
    "OOMPolicy=continue",
)
# By netlink bubblewrap sets up the interface of the application's own network.
_FAMILIES, _FAMILIES_NETWORKED = "AF_UNIX AF_NETLINK", "AF_UNIX AF_NETLINK AF_INET AF_INET6"
# A namespace of mounts is systemd's to make for root alone. What covers a part of /proc is left out: the kernel lets nobody mount
# a /proc of their own where a part of theirs is covered, and the application has one of its own. Nor is anything of /sys in its sight.
_HARDENING_BY_ROOT = (
    "ProtectSystem=strict",
    "ProtectKernelModules=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "PrivateTmp=yes",
    "PrivateMounts=yes",
)
# The sockets that systemd hands over are of its own network, and their filter of addresses is that of the socket unit. Behind pasta,
# which mounts no /proc for the processes of its own, bubblewrap does not find itself where those of others are hidden.
_NETWORKLESS_BY_ROOT = ("ProtectProc=invisible", "PrivateNetwork=yes", "IPAddressDeny=any")


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
    def entry(self) -> str:
        """The name of its desktop entry."""
        return f"{PREFIX}{self.name}.desktop"

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


def texts(seat: Seat, label: str, app: Application, policy: Policy, *, elsewhere: Mapping[int, int] | None = None) -> dict[str, str]:
    """The unit files of a service, by their names: one or two. `label` is what people know the version by. None for a command.

    `elsewhere` has where at the machine's loopback sockets listen in place of its ports.
    """
    if app.service is None:
        return {}
    ports = _ports(app.service, policy)
    units = {seat.service: _service(seat, label, app, policy, sockets=bool(ports))}
    if ports:
        moved = elsewhere or {}
        units[seat.socket] = _socket(seat, label, [f"{network.LOOPBACK}:{moved[port]}" if port in moved else str(port) for port in ports])
    return units


def program(seat: Seat, policy: Policy) -> str:
    """The program that starts a command: two lines of sh around the link. What is started in another desktop session is prepared anew."""
    start, prepare = _quoted(str(seat.start)), _prepare(seat)
    there = f"[ -e {start} ]"
    if desktop.is_wanted(policy):
        named = " ".join(f"${{{name}-}}" for name in desktop.VARIABLES)
        there = f'[ "$(cat {_quoted(str(seat.start.with_name(desktop.NAMED)))} 2>/dev/null)" = "{named}" ]'
    alone = "" if not seat.by_root else f'[ "$(id -u)" = 0 ] || {{ echo "{seat.name} was installed for root alone" >&2; exit 126; }}\n'
    return f'#!/bin/sh\n{alone}{there} || {prepare} || exit\nexec {start} "$@"\n'


def _ports(service: Service, policy: Policy) -> tuple[int, ...]:
    if not service.sockets:
        return ()
    handed_sockets(policy)
    return tuple(power.port for power in policy.of(Listen))


def _service(seat: Seat, label: str, app: Application, policy: Policy, *, sockets: bool) -> str:
    service = app.service or Service()
    # A connection may ask for the service while another version is put in place: it waits for that. Who died over it holds no lock.
    # What it makes is for the application to see, whatever the mask of the service. Even so, systemd gives it a view of its own on what is
    # mounted, and what root mounts there would be gone when it ends: it is done in the view of whoever started it, which is systemd.
    outside = "nsenter --target $PPID --mount -- " if seat.by_root else ""
    look = f"umask 022; flock --shared {_quoted(str(seat.moving))} true 2>/dev/null; "
    look += f"test -e {_quoted(str(seat.start))} || exec {outside}{_prepare(seat)}"
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
        "IgnoreSIGPIPE=no",  # pasta of Debian 12 ends where somebody ignores it already, and programs expect it as it is elsewhere
        *(f"{key}={value}" for key, value in cgroups.settings(bounds_of(policy), starters=_AROUND)),
        f"LimitNOFILE={max(policy.limits.open_files, 1024)}",
        *_hardening(seat, policy, networked=networked),
        *(_by_root(seat, app, policy, networked=networked) if seat.by_root else []),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if seat.by_root else 'default.target'}",
    ]
    return "\n".join((*lines, ""))


def _hardening(seat: Seat, policy: Policy, *, networked: bool) -> list[str]:
    # In pasta's namespace bubblewrap is root by the program that it is, which takes new privileges; `confine` gives them up for the
    # application. To a user's manager each of these settings means to give them up before.
    if networked and not seat.by_root:
        return []
    return [
        *([] if networked else ["NoNewPrivileges=yes"]),
        *_HARDENING,
        f"SystemCallFilter={' '.join(sorted(granted_calls(policy) | _SETS_LIMITS))}",
        f"RestrictAddressFamilies={_FAMILIES_NETWORKED if networked else _FAMILIES}",
        *([] if policy.has(WriteExecute()) else ["MemoryDenyWriteExecute=yes"]),
    ]


def _by_root(seat: Seat, app: Application, policy: Policy, *, networked: bool) -> list[str]:
    places = [host_path(grant.path, seat.home) for grant in policy.of(Read) + policy.of(Write)]
    written = [seat.data, *(host_path(grant.path, seat.home) for grant in policy.of(Write))]
    rights = [_CAPABILITIES]
    rights += ["CAP_CHOWN"] if app.credentials else []
    rights += ["CAP_NET_BIND_SERVICE"] if networked and any(power.port < network.FIRST_FREE_PORT for power in policy.of(Listen)) else []
    at_home = any(str(place).startswith(("/home", "/root")) for place in places)
    return [
        *_HARDENING_BY_ROOT,
        *(() if networked else _NETWORKLESS_BY_ROOT),
        f"CapabilityBoundingSet={' '.join(rights)}",
        f"ReadWritePaths={' '.join(_word(f'-{place}') for place in written)}",
        *([] if at_home else ["ProtectHome=yes"]),
        *([] if networked or policy.of((Use, Usb)) else ["PrivateDevices=yes"]),
    ]


def _socket(seat: Seat, label: str, places: Sequence[str]) -> str:
    lines = [
        "[Unit]",
        f"Description=Sockets of {label.rpartition('_')[0].replace('%', '%%') or seat.name}, an application of Obelisk's",
        "",
        "[Socket]",
        *(f"ListenStream={place}" for place in places),
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
