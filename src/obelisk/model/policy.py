"""What an application may do: powers, granted one by one, and limits. What is not granted is refused.

A policy is a set of powers. Two policies compose in two ways, and both are lattice operations: `meet` allows what both allow, and is how
an operator narrows what an image asks for; `join` allows what either allows, and is used only where the operator says so. Neither
allows anything that no operand allows. Powers that another one covers are dropped, so equal policies are equal values with equal digests.

Paths are absolute, or begin with `~/` for the home of whoever runs the application; the two kinds are never compared with each other.

A stored policy names the first schema that has words for all that it grants, so an older version still reads what it understands.
"""

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self, TypeVar

from obelisk.errors import InputError
from obelisk.model.canonical import Json, canonical, digest

E = TypeVar("E", bound=StrEnum)

SCHEMAS = ("obelisk.policy/1", "obelisk.policy/2", "obelisk.policy/3", "obelisk.policy/4", "obelisk.policy/5")
"""The second has the powers of desktop programs, the third portals, the fourth services by name and the limit of data."""
NO_LIMIT = (1 << 63) - 1
"""Above everything that a limit can be."""
LEAST_DATA_BYTES = 16 << 20
"""The smallest volume that has room for its own keeping."""
_HIGHEST_PORT = 65535
_PATH = re.compile(r"(~|(~?(/(?!\.{1,2}(/|\Z))[^/\x00-\x1f\x7f]+)+))")
# The image's own, or the kernel's: nothing of the host appears there.
_CLOSED = (
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "opt",
    "proc",
    "root",
    "run",
    "sbin",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
)
_OWN_HOME = "/home/app"
# A name on a bus, or all names at and below one. Source: D-Bus specification, "Valid Names"; xdg-dbus-proxy(1).
_LONGEST_BUS_NAME = 255
_BUS_NAME = re.compile(r"[A-Za-z_-][A-Za-z0-9_-]*(\.[A-Za-z_-][A-Za-z0-9_-]*)+(\.\*)?")
# The bus itself; and portals, whose name is for all of them: which are open says a power of its own.
_CLOSED_NAMES = {"org.freedesktop.DBus": "", "org.freedesktop.portal": "; `portals` grants them one by one"}
# A host's, in lower case, with a letter in its last part, which no address has.
_NAME = re.compile(r"(?!-)([a-z0-9_-]{1,63}(?<!-)\.)*(?!-)(?=[0-9-]*[a-z])[a-z0-9-]{1,63}(?<!-)")
_LONGEST_NAME = 253
_USB, _USB_ID = "usb:", re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_SERVICE, _SERVICE_NAME = "service:", re.compile(r"(?=[0-9-]*[a-z])[a-z0-9-]{1,63}")  # a host may be called service too


class Device(StrEnum):
    """Classes of devices of the host."""

    AUDIO = "audio"
    CAMERA = "camera"
    GPU = "gpu"
    KVM = "kvm"


class Calls(StrEnum):
    """Groups of system calls that no application has by default."""

    DEBUG = "debug"
    IO_URING = "io-uring"
    KEYRING = "keyring"
    MEMORY_LOCK = "memory-lock"
    SCHEDULING = "scheduling"


class Portal(StrEnum):
    """Portals of the desktop: each does for an application what a person then says yes to."""

    FILE_CHOOSER = "file-chooser"


class Layer(StrEnum):
    """Layers of confinement that a policy may do without, where a machine has none. All others are never done without.

    `cgroup` counts only where there is a limit for all processes together, `volume` only where there is one of data.
    """

    CGROUP = "cgroup"
    LANDLOCK = "landlock"
    NESTING = "nesting"
    VOLUME = "volume"
    WRITE_EXECUTE = "write-execute"


@dataclass(frozen=True, slots=True, order=True)
class Read:
    """Sees a file or directory of the host, with all that is below."""

    path: str


@dataclass(frozen=True, slots=True, order=True)
class Write:
    """Sees and changes a file or directory of the host, with all that is below."""

    path: str


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """Uses the host's devices of a class."""

    device: Device


@dataclass(frozen=True, slots=True, order=True)
class Usb:
    """Uses what is plugged in by USB, of one product: the numbers of its vendor and its own, in four hexadecimal digits each."""

    vendor: str
    product: str

    def __str__(self) -> str:
        return f"{_USB}{self.vendor}:{self.product}"


@dataclass(frozen=True, slots=True, order=True)
class Listen:
    """Accepts connections at a TCP port of this machine, one below 1024 included."""

    port: int


@dataclass(frozen=True, slots=True, order=True)
class Connect:
    """Opens connections to a network (CIDR, in its canonical spelling), at one port or, where that is 0, at any."""

    network: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.network}:{self.port or '*'}"


@dataclass(frozen=True, slots=True, order=True)
class Reach:
    """Opens connections to the addresses that a host name has, at one port."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class Contact:
    """Opens connections to a service of this machine, by its name, whatever port that has; the application finds it at localhost."""

    name: str

    def __str__(self) -> str:
        return f"{_SERVICE}{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """Makes the system calls of a group."""

    calls: Calls


@dataclass(frozen=True, slots=True, order=True)
class Talk:
    """Calls whoever has a name on the session bus, and hears what they say to all; `.*` at the end is for every name at and below it."""

    name: str


@dataclass(frozen=True, slots=True, order=True)
class Own:
    """Has a name on the session bus itself, and may be called by it."""

    name: str


@dataclass(frozen=True, slots=True, order=True)
class Ask:
    """Asks the person by a portal of the desktop, and has what that person then gives it."""

    portal: Portal


@dataclass(frozen=True, slots=True, order=True)
class X11:
    """Shows windows on an X server of its own, which shows them as one window."""


@dataclass(frozen=True, slots=True, order=True)
class Wayland:
    """Shows windows by the socket of the Wayland compositor."""


@dataclass(frozen=True, slots=True, order=True)
class WriteExecute:
    """Runs what it has written, in memory or in a file: compilers that work just in time need that."""


@dataclass(frozen=True, slots=True, order=True)
class Nest:
    """Makes further user namespaces: sandboxes of its own."""


@dataclass(frozen=True, slots=True, order=True)
class Terminal:
    """Shares the session of the terminal that it was started from, and has pseudo-terminals."""


Power = (
    Read | Write | Use | Usb | Listen | Connect | Reach | Contact | Call | Talk | Own | Ask | X11 | Wayland | WriteExecute | Nest | Terminal
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that an application takes. `memory_bytes` is for the data of each process, `scratch_bytes` for each directory in memory.

    `total_memory_bytes` and `cpu_percent`, of one processor, are for all processes together, `data_bytes` is for all directories of data
    together; `NO_LIMIT` where there is none.
    """

    memory_bytes: int = 2 << 30
    processes: int = 256
    open_files: int = 4096
    scratch_bytes: int = 64 << 20
    total_memory_bytes: int = NO_LIMIT
    cpu_percent: int = NO_LIMIT
    data_bytes: int = NO_LIMIT

    @property
    def are_total(self) -> bool:
        """Whether anything is limited for all processes together."""
        return self.total_memory_bytes != NO_LIMIT or self.cpu_percent != NO_LIMIT


@dataclass(frozen=True, slots=True)
class Policy:
    """What is granted. Made by `policy`, which brings the powers into their one form."""

    powers: frozenset[Power] = frozenset()
    limits: Limits = field(default_factory=Limits)
    may_miss: frozenset[Layer] = frozenset()

    def to_json(self) -> Json:
        """The policy as plain data, ready for `canonical`."""
        grants: dict[str, Json] = {}
        for key, kind in _LISTS.items():
            values = sorted(_value(power) for power in self.powers if isinstance(power, kind))
            if values:
                grants[key] = values
        for key, flag in _FLAGS.items():
            if flag in self.powers:
                grants[key] = True
        later = {"data_bytes"} if self.limits.data_bytes == NO_LIMIT else set()  # versions that cannot know it need not
        amounts = {each.name: getattr(self.limits, each.name) for each in fields(Limits) if each.name not in later}
        limits: dict[str, Json] = {name: None if value == NO_LIMIT else value for name, value in amounts.items()}
        return {"schema": self._schema, "grants": grants, "limits": limits, "may_miss": sorted(layer.value for layer in self.may_miss)}

    def to_bytes(self) -> bytes:
        """The policy as it is stored."""
        return canonical(self.to_json())

    @property
    def _schema(self) -> str:
        if self.of(Usb):
            return SCHEMAS[4]
        if self.limits.data_bytes != NO_LIMIT or Layer.VOLUME in self.may_miss or self.of(Contact):
            return SCHEMAS[3]
        if self.of(Ask):
            return SCHEMAS[2]
        return SCHEMAS[any(isinstance(power, _SECOND) or power == Use(Device.GPU) for power in self.powers)]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form."""
        return digest(self.to_json())

    def has(self, power: Power) -> bool:
        """Whether the policy allows all that `power` does."""
        return any(_meet(power, held) == power for held in self.powers)

    def of(self, kind: type[Any] | tuple[type[Any], ...]) -> tuple[Any, ...]:
        """The powers of one kind, or of several one kind after the other, in order."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        return tuple(power for each in kinds for power in sorted(power for power in self.powers if isinstance(power, each)))

    def with_powers(self, powers: Iterable[Power]) -> Self:
        """The same limits with other powers."""
        return replace(self, powers=_normal(powers))


_UNLIMITED = frozenset(each.name for each in fields(Limits) if each.default == NO_LIMIT)
_LISTS: Mapping[str, type | tuple[type, ...]] = {
    "read": Read,
    "write": Write,
    "devices": (Use, Usb),
    "listen": Listen,
    "connect": (Connect, Reach, Contact),
    "syscalls": Call,
    "dbus_talk": Talk,
    "dbus_own": Own,
    "portals": Ask,
}
_FLAGS: Mapping[str, Power] = {
    "x11": X11(),
    "wayland": Wayland(),
    "write_execute": WriteExecute(),
    "namespaces": Nest(),
    "terminal": Terminal(),
}
LISTS, FLAGS = tuple(_LISTS), tuple(_FLAGS)
"""The keys of grants."""
# What the first schema has no words for.
_SECOND = (Talk, Own, X11, Wayland)


def policy(powers: Iterable[Power] = (), limits: Limits | None = None, may_miss: Iterable[Layer] = ()) -> Policy:
    """A policy in its one form."""
    return Policy(_normal(powers), limits or Limits(), frozenset(may_miss))


def meet(one: Policy, other: Policy) -> Policy:
    """What both allow; of two limits the smaller."""
    powers = {both for mine in one.powers for theirs in other.powers if (both := _meet(mine, theirs)) is not None}
    return Policy(_normal(powers), _limits(min, one, other), one.may_miss & other.may_miss)


def join(one: Policy, other: Policy) -> Policy:
    """What either allows; of two limits the larger. Only an operator's word leads here."""
    return Policy(_normal(one.powers | other.powers), _limits(max, one, other), one.may_miss | other.may_miss)


def _meet(one: Power, other: Power) -> Power | None:
    """What both powers allow, or None when that is nothing."""
    match one, other:
        case ((Read(mine) | Write(mine)), (Read(theirs) | Write(theirs))):
            deeper = mine if _is_below(mine, theirs) else theirs if _is_below(theirs, mine) else None
            if deeper is None:
                return None
            return Write(deeper) if isinstance(one, Write) and isinstance(other, Write) else Read(deeper)
        case Connect(mine, port), Connect(theirs, their_port):
            smaller = _common(mine, theirs)
            if smaller is None or (port and their_port and port != their_port):
                return None
            return Connect(smaller, port or their_port)
        case ((Talk(mine) | Own(mine)), (Talk(theirs) | Own(theirs))):
            kind = Own if isinstance(one, Own) and isinstance(other, Own) else Talk
            return kind(mine) if _is_named(mine, theirs) else kind(theirs) if _is_named(theirs, mine) else None
        case _:
            return one if one == other else None


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _is_named(name: str, top: str) -> bool:
    """Whether `top` is for every name that `name` is for."""
    base = top.removesuffix(".*")
    return name == top or (base != top and f"{name.removesuffix('.*')}.".startswith(f"{base}."))


def _common(mine: str, theirs: str) -> str | None:
    one, other = ipaddress.ip_network(mine), ipaddress.ip_network(theirs)
    if one.version != other.version or not one.overlaps(other):
        return None
    return mine if one.prefixlen >= other.prefixlen else theirs


def _normal(powers: Iterable[Power]) -> frozenset[Power]:
    """Without powers that another one covers."""
    every = frozenset(powers)
    return frozenset(one for one in every if not any(other != one and _meet(one, other) == one for other in every))


def _limits(choose: Any, one: Policy, other: Policy) -> Limits:  # noqa: ANN401 - min or max
    return Limits(**{each.name: choose(getattr(one.limits, each.name), getattr(other.limits, each.name)) for each in fields(Limits)})


# Reading


def parse(data: bytes) -> Policy:
    """The policy in stored bytes.

    Raises:
        InputError: they are none, or of a schema that this version does not read.
    """
    try:
        raw = json.loads(data)
        known = isinstance(raw, dict) and "schema" in raw
    except ValueError:
        known, raw = False, {}
    return from_json(raw if known else {"schema": ""})


def from_json(raw: Mapping[str, Any]) -> Policy:
    """The policy that `raw` describes, with `grants`, `limits` and `may_miss` as `to_json` writes them; what is absent is default.

    Raises:
        InputError: something in it is unknown or cannot be granted, or it is of a schema that this version does not read.
    """
    if raw.get("schema", SCHEMAS[0]) not in SCHEMAS:
        raise InputError(
            "this is no policy that this version reads", code="policy-schema", hint=f"it reads {', '.join(SCHEMAS)}; a later one may do"
        )
    try:
        _refuse_unknown(raw, ("schema", "grants", "limits", "may_miss"), "key")
        powers = tuple(powers_of(raw.get("grants", {})))
        limits = _limits_of(raw.get("limits", {}))
        may_miss = frozenset(Layer(layer) for layer in raw.get("may_miss", ()))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the policy is wrong: {error}", code="policy-value", hint="docs/sandbox.md has every key") from error
    return policy(powers, limits, may_miss)


def powers_of(grants: Mapping[str, Any]) -> Iterable[Power]:
    """The powers that a table of grants names.

    Raises:
        ValueError: one that does not exist, or cannot be granted; the message says which.
    """
    _refuse_unknown(grants, (*_LISTS, *_FLAGS), "grant")
    for key in _LISTS:
        values = grants.get(key, ())
        if not isinstance(values, list | tuple):
            raise ValueError(f"{key} must be a list")  # noqa: TRY004 - wrong content of a file, not a wrong call
        for value in values:
            yield power_of(key, value)
    for key, flag in _FLAGS.items():
        if type(grants.get(key, False)) is not bool:
            raise ValueError(f"{key} must be true or false")
        if grants.get(key, False):
            yield flag


def power_of(key: str, value: object) -> Power:  # noqa: PLR0911 - a line for each kind
    """The power that one element of the list `key` names.

    Raises:
        ValueError: it names none, or one that cannot be granted.
    """
    match key, value:
        case "read", str():
            return Read(_path(value))
        case "write", str():
            return Write(_path(value))
        case "devices", str():
            return _device(value)
        case "listen", int() if type(value) is int and 1 <= value <= _HIGHEST_PORT:
            return Listen(value)
        case "connect", str():
            return _destination(value)
        case "syscalls", str():
            return Call(_member(Calls, value, "group of system calls"))
        case "dbus_talk", str():
            return Talk(_bus_name(value))
        case "dbus_own", str():
            return Own(_bus_name(value))
        case "portals", str():
            return Ask(_member(Portal, value, "portal"))
        case _:
            raise ValueError(f"{value!r} cannot stand in {key}")


def _path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise ValueError(f"{path!r} is no absolute path without `..`, doubled or trailing slashes, and does not begin with ~/")
    top = path.split("/")[1] if path.startswith("/") else ""
    if top in _CLOSED or _is_below(path, _OWN_HOME) or path == "/home":
        raise ValueError(f"{path!r} cannot be granted: what is there in the sandbox belongs to the image or to the kernel")
    return path


def _device(text: str) -> Use | Usb:
    bare = text.removeprefix(_USB)
    if bare == text:
        return Use(_member(Device, text, f"class of devices, nor {_USB}VENDOR:PRODUCT"))
    if not _USB_ID.fullmatch(bare):
        raise ValueError(f"{text!r} does not name what is plugged in by USB, as usb:046d:c31c does: lsusb tells the numbers")
    return Usb(*bare.split(":"))


def _destination(text: str) -> Connect | Reach | Contact:
    if text.startswith(_SERVICE) and _SERVICE_NAME.fullmatch(text.removeprefix(_SERVICE)):
        return Contact(text.removeprefix(_SERVICE))
    address, _, port = text.rpartition(":")
    bare = address.removeprefix("[").removesuffix("]")
    if _NAME.fullmatch(address) and len(address) <= _LONGEST_NAME and port.isascii() and port.isdigit() and 1 <= int(port) <= _HIGHEST_PORT:
        return Reach(address, int(port))
    try:
        network = ipaddress.ip_network(bare)
    except ValueError as error:
        examples = "10.0.0.0/8:5432, [2001:db8::/32]:443, 192.0.2.1/32:*, example.org:443 or service:shop"
        raise ValueError(f"{text!r} is no destination such as {examples}") from error
    if port != "*" and not (port.isascii() and port.isdigit() and 1 <= int(port) <= _HIGHEST_PORT):
        raise ValueError(f"{text!r} has no port from 1 to {_HIGHEST_PORT}, nor `*` for any")
    return Connect(str(network), 0 if port == "*" else int(port))


def _bus_name(name: str) -> str:
    if not _BUS_NAME.fullmatch(name) or len(name) > _LONGEST_BUS_NAME:
        raise ValueError(f"{name!r} is no name on a bus such as org.example.Editor, or org.example.* for all at and below org.example")
    for closed, remedy in _CLOSED_NAMES.items():
        if _is_named(name, f"{closed}.*") or _is_named(f"{closed}.*", name):
            raise ValueError(f"{name!r} cannot be granted: it is a name of {closed}" + remedy)
    return name


def _member(kind: type[E], value: str, what: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is no {what}: there are {', '.join(kind)}") from error


def _limits_of(raw: Mapping[str, Any]) -> Limits:
    _refuse_unknown(raw, [each.name for each in fields(Limits)], "limit")
    # JSON has a word for no limit, which TOML has not.
    found = {key: NO_LIMIT if key in _UNLIMITED and (value is None or value == "none") else value for key, value in raw.items()}
    for key, value in found.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"the limit {key} must be a whole number above 0")
    if found.get("data_bytes", NO_LIMIT) < LEAST_DATA_BYTES:
        raise ValueError(f"the limit data_bytes must be at least {LEAST_DATA_BYTES}")
    return Limits(**found)


def _value(power: Any) -> Any:  # noqa: ANN401 - of any of the kinds that have one
    if isinstance(power, Connect):
        network = f"[{power.network}]" if ":" in power.network else power.network
        return f"{network}:{power.port or '*'}"
    if isinstance(power, Reach | Contact | Usb):
        return str(power)
    value = getattr(power, fields(power)[0].name)
    return value.value if isinstance(value, StrEnum) else value


def _refuse_unknown(raw: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    if unknown := raw.keys() - set(known):
        raise ValueError(f"there is no {what} {', '.join(f'`{name}`' for name in sorted(unknown))}; there are {', '.join(known)}")


def spelled(power: Power) -> str:
    """A power as a line of `[grants]`."""
    for key, flag in _FLAGS.items():
        if power == flag:
            return f"{key} = true"
    key = next(key for key, kind in _LISTS.items() if isinstance(power, kind))
    return f"{key} = [{json.dumps(_value(power), ensure_ascii=False)}]"
