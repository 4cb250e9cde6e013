"""What a desktop program shares with the session of whoever starts it: the compositor's socket, names on the bus, an X server of its own.

Only Wayland's socket is handed over as it is. Between the application and the session bus is xdg-dbus-proxy, which lets through what is
granted; between it and the screen, where X11 is granted, an X server that is one window there: Xwayland in a Wayland session, Xephyr in
one of X. Both are the machine's own programs, because they keep the application to its policy, and run beside it in sandboxes that hold
nothing but the machine's /usr, the one socket of the session that each needs, and the directory in which the application finds theirs.

Pure, but for `session_of`, which looks where the session's sockets are.

Source: xdg-dbus-proxy(1); Xserver(1), `-displayfd`; D-Bus specification, "Server Addresses"; wl_display_connect(3).
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from obelisk.errors import MissingFeatureError
from obelisk.model.policy import X11, Own, Policy, Talk, Wayland
from obelisk.sandbox.machine import Machine
from obelisk.system.program import Execute

SESSION = (Talk, Own, X11, Wayland)
"""The kinds of powers that are of a session."""
VARIABLES = ("XDG_RUNTIME_DIR", "WAYLAND_DISPLAY", "DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "XAUTHORITY")
"""What names a session."""
NAMED = "session"
"""The file of a plan that holds their values in the session that the plan is for, parted by spaces."""
RUNTIME = "/run/user"
"""$XDG_RUNTIME_DIR inside."""
COMPOSITOR, BUS, SCREENS = f"{RUNTIME}/wayland-0", f"{RUNTIME}/bus", "/tmp/.X11-unix"  # noqa: S108 - inside the sandbox
REPORT = 8
"""The descriptor at which a helper says that it can be talked to."""
HELD = 9
"""The other end of that, which a helper's own sandbox holds: it goes on as long as the application does, and not for being heard."""

PROCESSES = 8
"""The most processes and threads that a helper and what is around it have; 5 were counted with a proxy of the bus, 3 with an X server."""

_SESSION = "/run/session"
_AUTHORITY = "/run/authority"
# Libraries of X find a server only beside others. What the application sees in this place is an empty file.
_OUTER = 1
_SCREEN = "1280x800"


@dataclass(frozen=True, slots=True)
class Session:
    """The sockets of a desktop session on the machine, and X's file of secrets; empty where there is none."""

    compositor: str = ""
    bus: str = ""
    screen: str = ""
    authority: str = ""


@dataclass(frozen=True, slots=True)
class Helper:
    """A program beside the application. It sees `source` of the machine at `seen`, and makes its socket in `shared` of the application."""

    name: str
    program: Execute
    seen: tuple[tuple[str, str], ...]
    shared: str


def session_of(environment: Mapping[str, str], home: Path) -> Session:
    """The session that the variables of whoever starts an application name."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    compositor = environment.get("WAYLAND_DISPLAY", "")
    if compositor and not compositor.startswith("/"):
        compositor = f"{runtime}/{compositor}" if runtime else ""
    address = re.search(r"(?:\A|;)unix:(?:[^;]*,)?path=([^,;]+)", environment.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus"))
    screen = re.fullmatch(r"(?:unix)?:([0-9]+)(?:\.[0-9]+)?", environment.get("DISPLAY", ""))
    authority = environment.get("XAUTHORITY") or str(home / ".Xauthority")
    return Session(
        _socket(compositor),
        _socket(unquote(address[1]) if address else ""),
        _socket(f"{SCREENS}/X{screen[1]}" if screen else ""),
        authority if Path(authority).is_file() else "",
    )


def named(environment: Mapping[str, str]) -> str:
    """What the file `NAMED` holds."""
    return " ".join(environment.get(name, "") for name in VARIABLES)


def _socket(path: str) -> str:
    """The path, if a socket is there."""
    try:
        return path if path and stat.S_ISSOCK(Path(path).stat().st_mode) else ""
    except OSError:
        return ""


def uses_bus(policy: Policy) -> bool:
    """Whether the policy grants any name on the session bus."""
    return bool(policy.of(Talk) or policy.of(Own))


def shows_windows(policy: Policy) -> bool:
    """Whether the policy grants windows."""
    return policy.has(Wayland()) or policy.has(X11())


def is_wanted(policy: Policy) -> bool:
    """Whether the policy grants anything of a session."""
    return uses_bus(policy) or shows_windows(policy)


def without(policy: Policy) -> Policy:
    """The policy without what it grants of a session."""
    return policy.with_powers(power for power in policy.powers if not isinstance(power, SESSION))


def sockets(policy: Policy, session: Session) -> tuple[str, ...]:
    """The sockets of the session that an application, or a helper of its, connects to."""
    wanted = (session.bus if uses_bus(policy) else "", (session.compositor or session.screen) if shows_windows(policy) else "")
    return tuple(socket for socket in wanted if socket)


def helpers(policy: Policy, session: Session, machine: Machine) -> tuple[Helper, ...]:
    """The programs beside an application.

    Raises:
        MissingFeatureError: the session, or a program on this machine, that a grant needs is not there.
    """
    if policy.has(Wayland()) and not session.compositor:
        raise MissingFeatureError(
            "there is no Wayland session to show windows in", code="no-wayland", hint="start it where $WAYLAND_DISPLAY names a socket"
        )
    found = (_bus(policy, session, machine),) if uses_bus(policy) else ()
    return (*found, _screen(session, machine)) if policy.has(X11()) else found


def _bus(policy: Policy, session: Session, machine: Machine) -> Helper:
    if not session.bus:
        hint = "start it where $DBUS_SESSION_BUS_ADDRESS has the form unix:path=…, or $XDG_RUNTIME_DIR/bus is a socket"
        raise MissingFeatureError("there is no session bus", code="no-session-bus", hint=hint)
    if not machine.bus_proxy:
        raise MissingFeatureError("xdg-dbus-proxy is not installed", code="no-bus-proxy", hint="install the package xdg-dbus-proxy")
    names = [f"--talk={power.name}" for power in policy.of(Talk)] + [f"--own={power.name}" for power in policy.of(Own)]
    words = ("xdg-dbus-proxy", f"--fd={REPORT}", f"unix:path={_SESSION}", BUS, "--filter", *names)
    return Helper("bus", Execute(machine.bus_proxy, words), ((session.bus, _SESSION),), RUNTIME)


def _screen(session: Session, machine: Machine) -> Helper:
    # Whoever reaches its socket may use it (-ac): that is in the application's own memory, where nobody else is.
    common = (":0", "-ac", "-displayfd", str(REPORT), "-noreset", "-nolisten", "tcp", "-nolisten", "local", "-extension", "GLX")
    path = "PATH=/usr/bin:/bin"
    if session.compositor:
        if not machine.xwayland:
            raise MissingFeatureError("Xwayland is not installed", code="no-x-server", hint="install the package xwayland")
        environment = (path, f"XDG_RUNTIME_DIR={Path(_SESSION).parent}", f"WAYLAND_DISPLAY={Path(_SESSION).name}")
        program = Execute(machine.xwayland, ("Xwayland", *common, "-shm"), environment)
        return Helper("screen", program, ((session.compositor, _SESSION),), SCREENS)
    if not session.screen:
        hint = "start it where $WAYLAND_DISPLAY names a socket, or $DISPLAY a screen of this machine"
        raise MissingFeatureError("there is no session to show windows in", code="no-display", hint=hint)
    if not machine.xephyr:
        raise MissingFeatureError("Xephyr is not installed", code="no-x-server", hint="install the package xserver-xephyr")
    secrets = ((session.authority, _AUTHORITY),) if session.authority else ()
    found = (path, f"DISPLAY=:{_OUTER}", *(f"XAUTHORITY={inside}" for _file, inside in secrets))
    program = Execute(machine.xephyr, ("Xephyr", *common, "-screen", _SCREEN, "-resizeable"), found)
    return Helper("screen", program, ((session.screen, f"{SCREENS}/X{_OUTER}"), *secrets), SCREENS)


def environment(policy: Policy, *, observed: bool) -> dict[str, str]:
    """The variables by which programs find what is granted. One that is observed looks for everything, so that it can be told of it."""
    found = {"XDG_RUNTIME_DIR": RUNTIME} if observed or is_wanted(policy) else {}
    if observed or policy.has(Wayland()):
        found["WAYLAND_DISPLAY"] = Path(COMPOSITOR).name
    if observed or policy.has(X11()):
        found["DISPLAY"] = ":0"
    if observed or uses_bus(policy):
        found["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={BUS}"
    if is_wanted(policy):
        found["XDG_SESSION_TYPE"] = "x11" if policy.has(X11()) and not policy.has(Wayland()) else "wayland"
    return found
