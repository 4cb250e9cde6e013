"""Policies in plain words: what is granted, what changes from one to another, and how much is open."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from obelisk.model.application import Application
from obelisk.model.policy import (
    NO_LIMIT,
    X11,
    Ask,
    Call,
    Calls,
    Connect,
    Contact,
    Device,
    Layer,
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
)


@dataclass(frozen=True, slots=True)
class Change:
    """What a policy allows that another did not, and the reverse, in plain words."""

    gained: tuple[str, ...]
    lost: tuple[str, ...]


def difference(old: Policy, new: Policy) -> Change:
    """What changes from `old` to `new`. Nothing is gained exactly when `old` covers `new`."""
    return Change(_beyond(new, old), _beyond(old, new))


def grown(before: tuple[Application, Policy], after: tuple[Application, Policy]) -> tuple[str, ...]:
    """What the second of two applications may do under its policy, and the first may not, in plain words."""
    secrets = sorted({*after[0].credentials} - {*before[0].credentials})
    return (*difference(before[1], after[1]).gained, *(f"reads the credential {name}" for name in secrets))


def _beyond(one: Policy, other: Policy) -> tuple[str, ...]:
    powers = [explain(power) for power in sorted_powers(one) if not other.has(power)]
    higher = [
        f"{_LIMITS[each.name]}: {_amount(each.name, getattr(one.limits, each.name))} where it was "
        f"{_amount(each.name, getattr(other.limits, each.name))}"
        for each in fields(Limits)
        if getattr(one.limits, each.name) > getattr(other.limits, each.name)
    ]
    return (*powers, *higher, *(_without(layer) for layer in sorted(one.may_miss - other.may_miss)))


def sorted_powers(one: Policy) -> tuple[Power, ...]:
    """The powers in the order in which people read them."""
    kinds = list(Power.__args__)
    return tuple(sorted(one.powers, key=lambda power: (kinds.index(type(power)), str(power))))


def explain(power: Power) -> str:  # noqa: C901, PLR0911, PLR0912 - a line for each kind
    """What a power means, in plain words."""
    match power:
        case Read(path):
            return f"reads {_place(path)} of this machine"
        case Write(path):
            return f"reads and changes {_place(path)} of this machine"
        case Use(device):
            return _DEVICES[device]
        case Usb(vendor, product):
            return f"uses what is plugged in by USB as {vendor}:{product}, past its drivers"
        case Listen(port):
            return f"accepts connections at TCP port {port} of this machine"
        case Connect(network, port):
            where = "any address" if _is_everywhere(network) else network
            family = " (IPv6)" if network == "::/0" else ""
            return f"opens connections to {where}{family}, " + (f"port {port}" if port else "any port")
        case Reach(name, port):
            return f"opens connections to the addresses that {name} has, port {port}"
        case Contact(name):
            return f"opens connections to the service {name} of this machine"
        case Call(calls):
            return _CALLS[calls]
        case Talk(name):
            return f"talks to {_names(name)} on the session bus, and has all done that may be asked of it there"
        case Own(name):
            return f"is {_names(name)} on the session bus, and talks to it"
        case Ask(portal):
            return _PORTALS[portal]
        case X11() | Wayland() | WriteExecute() | Nest() | Terminal():
            return _FLAGS[power]


def granted(one: Policy) -> tuple[str, ...]:
    """What a policy grants, a line each; then the layers that may be missing."""
    return (*map(explain, sorted_powers(one)), *(_without(layer) for layer in sorted(one.may_miss)))


def limits(one: Policy) -> tuple[str, ...]:
    """The limits, a line each."""
    return tuple(f"{_LIMITS[each.name]}: {_amount(each.name, getattr(one.limits, each.name))}" for each in fields(Limits))


def score(one: Policy) -> int:
    """How much is open, from 0 (nothing is granted) to 100. A rough sum for comparing, no measure of safety."""
    return min(100, sum(map(_weight, one.powers)) + 15 * len(one.may_miss))


def _weight(power: Power) -> int:  # noqa: PLR0911 - a line for each kind
    match power:
        case Read(path):
            return 20 if path == "~" or path.count("/") == 1 else 5
        case Write(path):
            return 40 if path == "~" or path.count("/") == 1 else 10
        case Use(device):
            return 25 if device in {Device.KVM, Device.GPU} else 15
        case Usb():
            return 15
        case Listen() | Reach() | Contact() | Ask():
            return 5
        case Connect(network, port):
            return (20 if _is_everywhere(network) else 5) + (0 if port else 5)
        case Talk(name) | Own(name):
            return 30 if name.endswith(".*") else 10
        case Call():
            return 10
        case X11() | Wayland() | WriteExecute() | Nest() | Terminal():
            return {X11(): 5, Nest(): 30}.get(power, 10)


def _is_everywhere(network: str) -> bool:
    return network in {"0.0.0.0/0", "::/0"}


def _names(name: str) -> str:
    return f"{name.removesuffix('.*')} and every name below it" if name.endswith(".*") else name


def _place(path: str) -> str:
    return "all of your home" if path == "~" else path


def _amount(name: str, value: int) -> str:
    if value == NO_LIMIT:
        return "no limit"
    return f"{value >> 20} MiB" if name.endswith("bytes") else f"{value} %" if name.endswith("percent") else str(value)


def _without(layer: Layer) -> str:
    return f"also starts on machines without the layer `{layer}`"


_LIMITS = {
    "memory_bytes": "data of each process",
    "processes": "processes and threads",
    "open_files": "open files of each process",
    "scratch_bytes": "each directory in memory",
    "total_memory_bytes": "memory of all processes together, files in memory included",
    "cpu_percent": "time of all processes together, of one processor's",
    "data_bytes": "what its directories of data hold, all together",
}
_DEVICES = {
    Device.AUDIO: "plays and records sound",
    Device.CAMERA: "sees through the cameras",
    Device.GPU: "draws and computes by the graphics processors",
    Device.KVM: "runs virtual machines by KVM",
}
_CALLS = {
    Calls.DEBUG: "looks into its own processes, as a debugger does",
    Calls.IO_URING: "uses io_uring, a large interface of the kernel",
    Calls.KEYRING: "uses the kernel's key rings",
    Calls.MEMORY_LOCK: "keeps memory from being swapped out",
    Calls.SCHEDULING: "changes priorities and processors of its processes",
}
_PORTALS = {
    Portal.FILE_CHOOSER: "asks the person for files by the desktop's dialogue, and reads and changes those that are chosen, from then on",
}
_FLAGS: Mapping[Power, str] = {
    X11(): "shows windows, on an X server of its own",
    Wayland(): "shows windows, and does whatever else the Wayland compositor lets every program do",
    WriteExecute(): "runs code that it has written itself, in memory or in files",
    Nest(): "makes user namespaces, through which more of the kernel can be reached",
    Terminal(): "shares the session of the terminal that it is started from, and has pseudo-terminals",
}
