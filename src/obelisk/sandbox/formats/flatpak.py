"""Flatpak's metadata: what an application of Flatpak's may do, as a key file. Pure.

Flatpak shares the machine's whole network or none, with its loopback, knows neither ports nor limits, and lets every application run what
it has written and share its terminal. So a grant of network is written only where it is for everything, limits stand in a group of
Obelisk's own that Flatpak passes over, and what Flatpak always allows is told. Its `x11` is the X server of the session, in which programs
watch each other: it is not written for `x11` here, which is a server of the application's own, but read as that.

Source: flatpak-metadata(5), flatpak-build-finish(1).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

from obelisk.errors import InputError
from obelisk.model.application import Application
from obelisk.model.exposure import explain, sorted_powers
from obelisk.model.policy import (
    NO_LIMIT,
    X11,
    Ask,
    Call,
    Calls,
    Connect,
    Device,
    Limits,
    Own,
    Policy,
    Power,
    Read,
    Talk,
    Terminal,
    Use,
    Wayland,
    Write,
    WriteExecute,
    policy,
    power_of,
)
from obelisk.sandbox import keyfile
from obelisk.sandbox.formats.foreign import Access, Foreign, Subject, Written, is_own_place, paths_granted
from obelisk.sandbox.keyfile import Groups
from obelisk.sandbox.plan import HOME

_LIMITS = "X-Obelisk Limits"
_PREFIX = "application.obelisk."
_NETWORK = frozenset({Connect("0.0.0.0/0"), Connect("::/0")})
_BUS = "Session Bus Policy"
_ON_BUS = {"talk": "dbus_talk", "own": "dbus_own"}
_DEVICES = {"kvm": Device.KVM, "dri": Device.GPU}
_KNOWN = frozenset({"Application", "Context", "Environment", _BUS, _LIMITS})
_ALWAYS = (WriteExecute(), Terminal(), Call(Calls.MEMORY_LOCK), Call(Calls.SCHEDULING), Call(Calls.IO_URING))
# Directories of people, where they usually are. Source: xdg-user-dirs, defaults.
_XDG = {
    "xdg-desktop": "~/Desktop",
    "xdg-documents": "~/Documents",
    "xdg-download": "~/Downloads",
    "xdg-music": "~/Music",
    "xdg-pictures": "~/Pictures",
    "xdg-public-share": "~/Public",
    "xdg-templates": "~/Templates",
    "xdg-videos": "~/Videos",
    "xdg-config": "~/.config",
    "xdg-cache": "~/.cache",
    "xdg-data": "~/.local/share",
    "home": "~",
}
_MODES = {"": Access.WRITE, "rw": Access.WRITE, "create": Access.WRITE}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def write(subject: Subject) -> Written:
    """The metadata."""
    app, held = subject.app, subject.policy
    notes = [
        "not in it: the runtime that Flatpak mounts at /usr; the files of the application, which it has at /app",
        "always so in Flatpak: it runs what it has written, shares the terminal, locks memory, sets priorities, uses io_uring",
        "always so in Flatpak, where there is a session bus: it talks to the portals, and is the name of the application",
        "the limits stand in a group of Obelisk's, which Flatpak passes over",
    ]
    context: dict[str, str] = {}
    powers = set(held.powers) - set(_ALWAYS)
    if powers >= _NETWORK:
        powers -= _NETWORK
        context["shared"] = keyfile.values(("network",))
        notes.append("`network` of Flatpak's is more: it also listens at any port, and reaches what listens on this machine alone")
    devices = [name for name, device in _DEVICES.items() if Use(device) in powers]
    if devices:
        powers -= {Use(device) for device in _DEVICES.values()}
        context["devices"] = keyfile.values(devices)
        notes += ["`dri` of Flatpak's is more: whole cards, with the modes of screens"] if "dri" in devices else []
    if Wayland() in powers:
        powers.remove(Wayland())
        context["sockets"] = keyfile.values(("wayland",))
    names = {power.name: word for word, kind in (("talk", Talk), ("own", Own)) for power in held.of(kind)}
    powers -= {*held.of((Talk, Own)), *held.of(Ask)}
    paths = [_spelled(power) for power in held.of(Read) + held.of(Write)]
    if paths:
        context["filesystems"] = keyfile.values(paths)
    kept = [path.removeprefix(f"{HOME}/") for path in app.data if path.startswith(f"{HOME}/")]
    if kept:
        context["persistent"] = keyfile.values(kept)
    notes += [f"not in it: {explain(power)}" for power in sorted_powers(held) if power in powers and not isinstance(power, Read | Write)]
    own = [path for path in (*app.data, *app.scratch) if path.removeprefix(f"{HOME}/") not in kept]
    notes += [f"not in it: the directory {path}; Flatpak has such places below the home directory" for path in own]
    notes += [f"not in it: the credential {name}" for name in sorted(app.credentials)]
    notes += ["not in it: the words that follow the command"] if app.command[1:] else []
    notes += [f"not in it: starting in {app.directory}"] if app.directory != "/" else []
    groups: dict[str, dict[str, str]] = {
        "Application": {"name": f"{_PREFIX}{subject.name}", "command": keyfile.value(app.command[0])},
        "Context": context,
        "Environment": {name: keyfile.value(text) for name, text in app.environment},
        _BUS: names,
        _LIMITS: {name: str(limit) for name, limit in asdict(held.limits).items() if limit != NO_LIMIT},
    }
    comments = "".join(f"# {note}\n" for note in notes)
    return Written(comments + "\n" + keyfile.render({name: keys for name, keys in groups.items() if keys}), tuple(notes))


def _spelled(power: Read | Write) -> str:
    path = "home" if power.path == "~" else power.path.replace("\\", "\\\\").replace(":", "\\:")
    return f"{path}:ro" if isinstance(power, Read) else path


# Reading


def read(content: bytes, home: Path) -> Foreign:
    """The application of metadata; `home` is what `~` means on this machine.

    Raises:
        InputError: it is none, or names no command.
    """
    groups = keyfile.parse(content)
    if "Application" not in groups:
        raise InputError(
            "this is no metadata of an application: it has no group [Application]", code="import-format", hint="name another --format"
        )
    context = groups.get("Context", {})
    lists = {key: keyfile.read_values(raw) for key, raw in context.items()}
    left_out: list[str] = []
    command = _command(groups["Application"], left_out)
    powers: set[Power] = set()
    powers |= _shared(lists.get("shared", ()), left_out)
    powers |= _devices(lists.get("devices", ()), left_out)
    powers |= _features(lists.get("features", ()), left_out)
    granted, told = paths_granted(_paths(lists.get("filesystems", ()), left_out), home)
    left_out += told
    powers |= _sockets(lists.get("sockets", ()), left_out)
    powers |= _names(groups.get(_BUS, {}), left_out)
    left_out += [
        f"{key} = {context[key]}"
        for key in sorted(context.keys() - {"shared", "devices", "features", "filesystems", "sockets", "persistent", "unset-environment"})
    ]
    left_out += [f"what stands in [{name}]" for name in groups if name not in _KNOWN]
    data = []
    for place in lists.get("persistent", ()):
        path = f"{HOME}/{place}"
        if is_own_place(path):
            data.append(path)
        else:
            left_out.append(f"keeping {place} of the home directory")
    environment = {}
    for name, raw in groups.get("Environment", {}).items():
        if _VARIABLE.fullmatch(name):
            environment[name] = keyfile.read_value(raw)
        else:
            left_out.append(f"the variable {name}")
    held = policy(powers | granted, _limits(groups, left_out))
    app = Application(command, tuple(sorted(environment.items())), data=tuple(dict.fromkeys(data)), policy=held)
    return Foreign(app, (*left_out, *_missing(held)))


def _missing(held: Policy) -> Iterator[str]:
    """What every application of Flatpak's may do without asking."""
    yield "running what it has written, where that is needed: write_execute = true"
    yield "keeping ~/.var/app: what it keeps has to be named in app.data"
    yield 'asking the person for files by the desktop, where that is needed: portals = ["file-chooser"]'
    if not held.has(Terminal()):
        yield "sharing the terminal, where that is needed: terminal = true"


def _command(keys: Mapping[str, str], left_out: list[str]) -> tuple[str, ...]:
    name = keyfile.read_value(keys.get("command", ""))
    if not name:
        raise InputError("[Application] names no command", code="import-command", hint="add command=, the program that is to be started")
    if name.startswith("/"):
        return (name,)
    left_out.append(f"looking for the program {name} in /app/bin: it is taken for /usr/bin/{name}")
    return (f"/usr/bin/{name}",)


def _shared(names: tuple[str, ...], left_out: list[str]) -> set[Power]:
    wanted = {name for name in names if f"!{name}" not in names and not name.startswith("!")}
    for name in sorted(wanted):
        what = (
            "listening at ports and what listens on this machine alone: ports are to be granted"
            if name == "network"
            else "what it shares with the machine"
        )
        left_out.append(f"{name}: {what}")
    return set(_NETWORK) if "network" in wanted else set()


def _devices(names: tuple[str, ...], left_out: list[str]) -> set[Power]:
    powers: set[Power] = set()
    for name in (name for name in names if f"!{name}" not in names and not name.startswith("!")):
        if name in _DEVICES:
            powers.add(Use(_DEVICES[name]))
            left_out += ["whole cards, with the modes of screens: of the devices dri the render nodes"] if name == "dri" else []
        elif name == "all":
            powers |= {Use(device) for device in Device}
            left_out.append("devices that belong to no class")
        else:
            left_out.append(f"the devices {name}")
    return powers


def _sockets(names: tuple[str, ...], left_out: list[str]) -> set[Power]:
    """Of the desktop's, windows. An X server is one of the application's own, where a compositor is not instead."""
    wanted = {name for name in names if f"!{name}" not in names and not name.startswith("!")}
    powers: set[Power] = {Wayland()} if "wayland" in wanted else set()
    if "x11" in wanted or ("fallback-x11" in wanted and not powers):
        powers.add(X11())
        left_out.append("the X server of the session, and what other programs do there: it has one of its own")
    known = {"wayland", "x11", "fallback-x11"}
    left_out += [f"the socket {name}" for name in sorted(wanted) if name not in known or (name == "fallback-x11" and X11() not in powers)]
    return powers


def _names(words: Mapping[str, str], left_out: list[str]) -> set[Power]:
    """Names on the session bus. Where less is allowed for one of several, none of these is granted: grants have no exceptions."""
    powers: set[Power] = set()
    for name, word in words.items():
        if word not in _ON_BUS:
            left_out += [f"{word} for {name} on the session bus"] if word != "none" else []
            continue
        try:
            power = power_of(_ON_BUS[word], name)
        except ValueError as error:
            left_out.append(str(error))
            continue
        held = policy([power])
        less = [other for other, said in words.items() if said != word and _is_less(said, word) and _covers(held, other)]
        if less:
            left_out.append(f"{word} for {name} on the session bus: less is allowed for {', '.join(less)}, and grants have no exceptions")
        else:
            powers.add(power)
    return powers


def _is_less(word: str, than: str) -> bool:
    return word not in _ON_BUS or (word, than) == ("talk", "own")


def _covers(held: Policy, name: str) -> bool:
    try:
        return held.has(power_of("dbus_talk", name))
    except ValueError:
        return False


def _features(names: tuple[str, ...], left_out: list[str]) -> set[Power]:
    wanted = {name for name in names if f"!{name}" not in names and not name.startswith("!")}
    left_out += [f"the feature {name}" + (" beyond looking into its own processes" if name == "devel" else "") for name in sorted(wanted)]
    return {Call(Calls.DEBUG)} if "devel" in wanted else set()


def _paths(entries: tuple[str, ...], left_out: list[str]) -> dict[str, Access]:
    """What may be done with which path. Of several words about one the strictest counts."""
    wanted: dict[str, Access] = {}
    for entry in entries:
        place, mode = _parted(entry.removeprefix("!"))
        access = Access.NONE if entry.startswith("!") else _MODES.get(mode, Access.READ)
        top, slash, rest = place.partition("/")
        path = f"{_XDG[top]}{slash}{rest}" if top in _XDG else place
        path = path.rstrip("/") or "/"
        if place.startswith("host") and "/" not in place:
            if access is not Access.NONE and place == "host":
                wanted["~"] = min(access, wanted.get("~", access))
            elif access is Access.NONE:
                continue
            left_out.append(f"the files of the machine ({place})" + (", but those of the home directory" if place == "host" else ""))
            continue
        if top.startswith("xdg-") and top in _XDG and access is not Access.NONE:
            left_out.append(f"{place} where that is not {path}")
        if not path.startswith(("/", "~")):
            left_out += [f"the files {entry}"] if access is not Access.NONE else []
            continue
        if mode == "create" and access is not Access.NONE:
            left_out.append(f"making {path}: it has to be there")
        wanted[path] = min(access, wanted.get(path, access))
    return wanted


def _parted(entry: str) -> tuple[str, str]:
    """Path and mode of an entry: they are parted by a colon that is not escaped."""
    path, characters = "", iter(entry)
    for character in characters:
        if character == ":":
            return path, "".join(characters)
        path += next(characters, "\\") if character == "\\" else character
    return path, ""


def _limits(groups: Groups, left_out: list[str]) -> Limits:
    found = {}
    names = {each.name for each in fields(Limits)}
    for name, raw in groups.get(_LIMITS, {}).items():
        if name in names and _NUMBER.fullmatch(raw):
            found[name] = int(raw)
        else:
            left_out.append(f"{name}={raw} of [{_LIMITS}]")
    return Limits(**found)
