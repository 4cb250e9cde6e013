"""What a desktop program shares with a session: the compositor's socket, names on the bus, portals, an X server of its own.

Only Wayland's socket is handed over as it is. Between the application and the session bus is xdg-dbus-proxy, which lets through what is
granted; between it and the screen, where X11 is granted, an X server that is one window there: Xwayland in a Wayland session, Xephyr in
one of X. Both are the machine's own programs, because they keep the application to its policy, and run beside it in sandboxes that hold
nothing but the machine's /usr, the one socket of the session that each needs, and the directory in which the application finds theirs.

A portal takes whoever calls for the application that /.flatpak-info in the root of that process names, and for one that may do all that
its user may where there is no such file. Who calls is the proxy, so its root has one, with an identity that no application of Flatpak's
can have. What a person then chooses appears below the directory of that identity in the document portal's file system, and that directory
is all of it that the application sees. It is where it is outside, since portals tell files by their paths there.

Pure, but for `session_of`, which looks where the session's sockets are.

Source: xdg-dbus-proxy(1); Xserver(1), `-displayfd`; D-Bus specification, "Server Addresses"; wl_display_connect(3); xdg-desktop-portal,
"Requests", "File Chooser" and "Documents"; flatpak-metadata(5), "Instance".
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from obelisk.errors import MissingFeatureError
from obelisk.model.policy import X11, Ask, Own, Policy, Portal, Talk, Wayland
from obelisk.sandbox.machine import Machine
from obelisk.system.program import Execute

SESSION = (Talk, Own, Ask, X11, Wayland)
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

NOTED = 10
"""The descriptor at which bubblewrap notes the process of a helper that portals ask about."""
KNOWN_BY = "/.flatpak-info"
"""Where portals look for the application that a process belongs to, in the root of that process."""

PROCESSES = 8
"""The most processes and threads that a helper and what is around it have; 5 were counted with a proxy of the bus, 3 with an X server."""

_SESSION = "/run/session"
_AUTHORITY = "/run/authority"
# Libraries of X find a server only beside others. What the application sees in this place is an empty file.
_OUTER = 1
_SCREEN = "1280x800"
_PORTALS, _PORTALS_AT = "org.freedesktop.portal.Desktop", "/org/freedesktop/portal/desktop"
_INTERFACES = {Portal.FILE_CHOOSER: "org.freedesktop.portal.FileChooser"}


@dataclass(frozen=True, slots=True)
class Session:
    """The sockets of a desktop session on the machine, X's file of secrets, where the document portal is; empty where there is none."""

    compositor: str = ""
    bus: str = ""
    screen: str = ""
    authority: str = ""
    documents: str = ""


@dataclass(frozen=True, slots=True)
class Helper:
    """A program beside the application. It sees `source` of the machine at `seen`, and makes its socket in `shared` of the application.

    `known` is the directory of the session in which its process is noted, for portals; empty where it asks none.
    """

    name: str
    program: Execute
    seen: tuple[tuple[str, str], ...]
    shared: str
    known: str = ""


def identity_of(name: str) -> str:
    """As whom portals know the application of that name. Flatpak's have names of three parts at least."""
    return f"obelisk.{name}"


def identity(name: str) -> bytes:
    """The file `KNOWN_BY` of who speaks for the application."""
    return f"[Application]\nname={identity_of(name)}\n\n[Instance]\ninstance-id={identity_of(name)}\n".encode()


def documents_of(session: Session, name: str) -> str:
    """The directory that shows what was chosen for the application of that name."""
    return f"{session.documents}/by-app/{identity_of(name)}"


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
        _documents(f"{runtime}/doc"),
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


def _documents(path: str) -> str:
    """The path, if it is of the document portal, and where an application has memory."""
    try:
        return path if path.startswith("/run/") and Path(path, "by-app").is_dir() else ""
    except OSError:
        return ""  # it shows itself to its own user alone


def uses_bus(policy: Policy) -> bool:
    """Whether the policy grants anything on the session bus."""
    return bool(policy.of((Talk, Own, Ask)))


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


def helpers(policy: Policy, session: Session, machine: Machine, name: str) -> tuple[Helper, ...]:
    """The programs beside the application of that name.

    Raises:
        MissingFeatureError: the session, or a program on this machine, that a grant needs is not there.
    """
    if policy.has(Wayland()) and not session.compositor:
        raise MissingFeatureError(
            "there is no Wayland session to show windows in", code="no-wayland", hint="start it where $WAYLAND_DISPLAY names a socket"
        )
    if policy.of(Ask) and not session.documents:
        hint = "start it in a session whose $XDG_RUNTIME_DIR is below /run; there, `systemctl --user start xdg-document-portal` mounts it"
        raise MissingFeatureError("there is no document portal at $XDG_RUNTIME_DIR/doc to get files by", code="no-documents", hint=hint)
    found = (_bus(policy, session, machine, name),) if uses_bus(policy) else ()
    return (*found, _screen(session, machine)) if policy.has(X11()) else found


def _bus(policy: Policy, session: Session, machine: Machine, name: str) -> Helper:
    if not session.bus:
        hint = "start it where $DBUS_SESSION_BUS_ADDRESS has the form unix:path=…, or $XDG_RUNTIME_DIR/bus is a socket"
        raise MissingFeatureError("there is no session bus", code="no-session-bus", hint=hint)
    if not machine.bus_proxy:
        raise MissingFeatureError("xdg-dbus-proxy is not installed", code="no-bus-proxy", hint="install the package xdg-dbus-proxy")
    names = [f"--talk={power.name}" for power in policy.of(Talk)] + [f"--own={power.name}" for power in policy.of(Own)]
    # A portal answers whoever called, and no rule is needed to hear that. Which version it has is not told: a rule for that would be one
    # for what every portal says of itself.
    rules = [f"{_INTERFACES[power.portal]}.*@{_PORTALS_AT}" for power in policy.of(Ask)]
    rules += [f"org.freedesktop.portal.Request.Close@{_PORTALS_AT}/request/*"] if rules else []
    names += [f"--call={_PORTALS}={rule}" for rule in rules]
    words = ("xdg-dbus-proxy", f"--fd={REPORT}", f"unix:path={_SESSION}", BUS, "--filter", *names)
    known = f"{Path(session.documents).parent}/.flatpak/{identity_of(name)}" if rules else ""
    return Helper("bus", Execute(machine.bus_proxy, words), ((session.bus, _SESSION),), RUNTIME, known)


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
    if policy.has(Ask(Portal.FILE_CHOOSER)):
        found["GTK_USE_PORTAL"] = "1"
    if is_wanted(policy):
        found["XDG_SESSION_TYPE"] = "x11" if policy.has(X11()) and not policy.has(Wayland()) else "wayland"
    return found
