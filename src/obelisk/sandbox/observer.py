"""What an application is refused, by which layer, and the grant that would allow it: told while it runs, by its own system calls.

The observer holds the listener of the application's filter. It is asked about each call that the filter refuses, and refuses it as the
filter would have; and about calls with paths and addresses, which it always lets go on to the layers that decide about those. Of these it
tells what the policy says, by the same mounts and rules that the plan was compiled from; what fails for another reason, such as a file
that is nowhere, is no refusal. Nothing is allowed for being watched, and only such a run is slower.
"""

import ipaddress
import os
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from obelisk.model.application import CREDENTIALS, Application
from obelisk.model.policy import X11, Connect, Listen, Policy, Power, Reach, Read, Wayland, Write, WriteExecute, power_of
from obelisk.sandbox.calls import CHANGING, LOOKING, OPENING, filter_of, power_for
from obelisk.sandbox.desktop import BUS, COMPOSITOR, SCREENS, uses_bus
from obelisk.sandbox.plan import HOME, MEMORY, inside_path
from obelisk.sandbox.ready import device_at
from obelisk.system.notices import Notice
from obelisk.system.syscalls import NUMBERS

_NAMES = {number: name for name, number in NUMBERS.items()}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AT_FDCWD = (1 << 32) - 100
_UNIX, _INET, _INET6 = 1, 2, 10
_OWN = ("/proc", "/dev", "/sys")
_ADDRESS_BYTES = 28
_LONGEST_SOCKET = 110
_SESSIONS: Mapping[str, Power] = {COMPOSITOR: Wayland(), f"{SCREENS}/X0": X11()}


NETWORK = "a socket of the internet's"
"""What `listen` and `connect` allow: which of them, and to where, the call does not tell."""
SESSION_BUS = "connecting to the session bus"
"""What `dbus_talk`, `dbus_own` and `portals` allow: which names it would use there, the call does not tell."""


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """What was refused, and the power that would allow it; None when none would. Ordered by layer."""

    layer: str
    what: str
    power: Power | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Times:
    """How often something was refused, and when first and last, in seconds since 1970."""

    count: int
    first: float
    last: float


@dataclass(slots=True)
class Observer:
    """Answers for one run. `home` is what `~` means on the machine."""

    app: Application
    policy: Policy
    home: Path
    refusals: dict[Refusal, Times] = field(default_factory=dict)

    def __call__(self, notice: Notice) -> int:
        """The error with which the call is refused, 0 to let it go on."""
        name = _NAMES.get(notice.number, f"call {notice.number}")
        error = filter_of(self.policy).refusal(notice.number, notice.arguments)
        if error:
            if not self._is_routine(name, notice):
                self._note(Refusal("seccomp", f"the system call {name}", power_for(name)))
            return error
        for refusal in self._elsewhere(name, notice):
            self._note(refusal)
        return 0

    def _note(self, refusal: Refusal) -> None:
        now = time.time()
        before = self.refusals.get(refusal, Times(0, now, now))
        self.refusals[refusal] = Times(before.count + 1, before.first, now)

    def _is_routine(self, name: str, notice: Notice) -> bool:
        """What every program tries and does without: a newer form of fork, and sockets of families that a network grant brings."""
        if name == "clone3":
            return True
        if name == "socket" and notice.arguments[0] & 0xFFFFFFFF in {_INET, _INET6}:
            self._note(Refusal("seccomp", NETWORK))
            return True
        return False

    def _elsewhere(self, name: str, notice: Notice) -> Iterator[Refusal]:
        if name in {"connect", "bind"}:
            # Addresses of local sockets may be shorter than their longest; what is read of others ends where those do.
            yield from self._address(name, notice.memory(1, min(notice.arguments[2] & 0xFFFF, _LONGEST_SOCKET)))
        elif name == "execve":
            path = _path(notice, 0, None)
            if self._is_writable(path) and not self.policy.has(WriteExecute()):
                yield Refusal("files", f"running {path}, which it can write", WriteExecute())
        elif name in OPENING:
            at, flags = OPENING[name]
            yield from self._file(notice, _path(notice, at, 0 if at else None), writing=bool(_flags(name, notice, flags) & _WRITING))
        elif name in CHANGING:
            yield from self._file(
                notice, _path(notice, CHANGING[name], CHANGING[name] - 1 if CHANGING[name] in {1, 3} else None), writing=True
            )
        elif name in LOOKING:
            yield from self._file(notice, _path(notice, LOOKING[name], 0 if LOOKING[name] else None), writing=False)

    def _file(self, notice: Notice, path: str, *, writing: bool) -> Iterator[Refusal]:
        inside = Path(f"/proc/{notice.thread}/root{path}")
        if (device := device_at(path)) and not _is_there(inside) and Path(path).exists():
            yield Refusal("files", f"the device {path}", device)
        if not path.startswith("/") or path.startswith(_OWN):
            return
        host = _on_host(path, self.home)
        if writing and not self._is_writable(path) and (_is_there(inside) or _is_there(inside.parent)):
            granted = next((power for power in self.policy.of(Read) if _is_below(path, inside_path(power.path))), None)
            yield Refusal("files", f"changing {path}", None if granted is None else _grant("write", granted.path))
        elif not _is_there(inside) and _is_there(host):
            power = _grant("write" if writing else "read", _as_granted(path))
            if power is not None:
                yield Refusal("files", f"{path}, which it does not see", power)

    def _address(self, name: str, content: bytes) -> Iterator[Refusal]:
        family, port = struct.unpack_from("<H", content)[0] if len(content) > 1 else 0, int.from_bytes(content[2:4], "big")
        if family == _UNIX and name == "connect":
            yield from self._socket(content[2:].partition(b"\0")[0].decode(errors="replace"))
        if family not in {_INET, _INET6} or not port:
            return
        address = ipaddress.ip_address(content[4:8] if family == _INET else content[8:24])
        if name == "bind":
            if not self.policy.has(Listen(port)):
                yield Refusal("network", f"listening at port {port}", Listen(port))
        elif not (address.is_loopback or address.is_unspecified):  # both lead to itself
            power = Connect(str(ipaddress.ip_network(address)), port)
            # Whose address it is that a granted name may have, the call does not tell.
            named = any(reach.port == port for reach in self.policy.of(Reach))
            if not named and not self.policy.has(power):
                yield Refusal("network", f"connecting to {address}, port {port}", power)

    def _socket(self, path: str) -> Iterator[Refusal]:
        power = _SESSIONS.get(path)
        if power is not None and not self.policy.has(power):
            yield Refusal("files", f"connecting to {path}", power)
        if path == BUS and not uses_bus(self.policy):
            yield Refusal("files", SESSION_BUS)

    def _is_writable(self, path: str) -> bool:
        if self.app.credentials and _is_below(path, CREDENTIALS):
            return False
        tops = [*MEMORY, *self.app.scratch, *self.app.data, *(inside_path(power.path) for power in self.policy.of(Write))]
        closest = max((top for top in tops if _is_below(path, top)), key=len, default="")
        shadow = max((at for power in self.policy.of(Read) if _is_below(path, at := inside_path(power.path))), key=len, default="")
        return bool(closest) and len(closest) > len(shadow)


def _flags(name: str, notice: Notice, flags: int | None) -> int:
    if flags is None:
        return os.O_WRONLY
    if name == "openat2":
        return int.from_bytes(notice.memory(flags, 8)[:8], "little")
    return notice.arguments[flags]


def _path(notice: Notice, at: int, directory: int | None) -> str:
    """The absolute path that an argument names inside; a relative one starts at a directory argument, or the working directory."""
    path = notice.text(at)
    if path.startswith("/") or not path:
        return os.path.normpath(path) if path else ""
    number = _AT_FDCWD if directory is None else notice.arguments[directory] & 0xFFFFFFFF
    start = notice.link("cwd" if number == _AT_FDCWD else f"fd/{number}")
    return os.path.normpath(f"{start}/{path}")


def _on_host(path: str, home: Path) -> Path:
    return Path(str(home) + path.removeprefix(HOME)) if _is_below(path, HOME) else Path(path)


def _as_granted(path: str) -> str:
    return "~" + path.removeprefix(HOME) if _is_below(path, HOME) else path


def _grant(key: str, path: str) -> Power | None:
    try:
        return power_of(key, path)
    except ValueError:
        return None  # what belongs to the image cannot be granted


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True
