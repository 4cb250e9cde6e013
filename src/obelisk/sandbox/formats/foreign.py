"""What every format has in common: what is written down, and what came of reading."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path

from obelisk.model import toml
from obelisk.model.application import WRITABLE, Application
from obelisk.model.exposure import sorted_powers
from obelisk.model.policy import LEAST_DATA_BYTES, NO_LIMIT, Limits, Policy, Power, power_of, spelled
from obelisk.sandbox.plan import MEMORY, host_path
from obelisk.system.confine import Owner

# What a spec can say. Sizes are a whole number of up to six digits and one of K, M, G, T.
_DIGITS = 6
_PROCESSES = (1, 100_000)
_OPEN_FILES = (16, 1_000_000)
_CPU_PERCENT = (1, 100_000)


@dataclass(frozen=True, slots=True)
class Node:
    """A character device of this machine: its path, its numbers, and the group that may use it."""

    path: str
    major: int
    minor: int
    group: int


@dataclass(frozen=True, slots=True)
class Root:
    """An image's root and its hash tree as files of this machine; `sha256` is the root hash."""

    file: Path
    tree: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Subject:
    """An application as it is written down: with the policy that holds, and where things of it are on this machine.

    `nodes` are the devices that are granted. `data`, `home` and `owner` are as in a launch plan; the
    secrets of the application are files in `credentials`.
    """

    name: str
    app: Application
    root: Root
    data: Path
    home: Path
    owner: Owner
    nodes: tuple[Node, ...] = ()
    credentials: Path = Path("/")

    @property
    def policy(self) -> Policy:
        """What it may do."""
        return self.app.policy


@dataclass(frozen=True, slots=True)
class Written:
    """A file of another format. `notes` tell what of the policy is not in it, and what its readers allow beyond the policy."""

    text: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Foreign:
    """An application that was read. `left_out` is what it may there and not here; `wider` what it may here and not there."""

    app: Application
    left_out: tuple[str, ...]
    wider: tuple[str, ...] = ()

    def settled(self) -> "Foreign":
        """With limits as a spec can say them: the next lower ones, or the lowest that there are."""
        limits = self.app.policy.limits
        fitted = Limits(
            memory_bytes=_size(limits.memory_bytes)[1],
            processes=_between(limits.processes, _PROCESSES),
            open_files=_between(limits.open_files, _OPEN_FILES),
            scratch_bytes=_size(limits.scratch_bytes)[1],
            total_memory_bytes=NO_LIMIT if limits.total_memory_bytes == NO_LIMIT else _size(limits.total_memory_bytes)[1],
            cpu_percent=NO_LIMIT if limits.cpu_percent == NO_LIMIT else _between(limits.cpu_percent, _CPU_PERCENT),
            data_bytes=NO_LIMIT if limits.data_bytes == NO_LIMIT else max(LEAST_DATA_BYTES, _size(limits.data_bytes)[1]),
        )
        raised = tuple(
            f"the limit {name} is {getattr(fitted, name)} where it was {getattr(limits, name)}: no spec says less"
            for name in (each.name for each in fields(Limits))
            if getattr(fitted, name) > getattr(limits, name)
        )
        app = replace(self.app, policy=replace(self.app.policy, limits=fitted))
        return Foreign(app, self.left_out, (*self.wider, *raised))

    def as_toml(self, source: str) -> str:
        """The tables `app`, `grants` and `limits` of a spec; what does not fit is told in comments. `source` is where it comes from."""
        app, limits = self.app, self.app.policy.limits
        lines = [f"# From {_one_line(source)}."]
        for title, told in (("Left out:", self.left_out), ("Wider than there:", self.wider)):
            lines += [f"# {title}", *(f"#   {_one_line(line)}" for line in told)] if told else []
        lines += ["", "[app]", f"command = {toml.strings(app.command)}"]
        lines += [f"environment = {toml.strings(tuple(f'{name}={value}' for name, value in app.environment))}"] if app.environment else []
        lines += [f"directory = {toml.string(app.directory)}"] if app.directory != "/" else []
        lines += [f"{key} = {toml.strings(paths)}" for key, paths in (("scratch", app.scratch), ("data", app.data)) if paths]
        lines += ["", "[grants]", *_grants(app.policy)] if app.policy.powers else []
        lines += ["", "[limits]", f'memory = "{_size(limits.memory_bytes)[0]}"', f"processes = {limits.processes}"]
        lines += [f"open_files = {limits.open_files}", f'scratch = "{_size(limits.scratch_bytes)[0]}"']
        lines += [f'total_memory = "{_size(limits.total_memory_bytes)[0]}"'] if limits.total_memory_bytes != NO_LIMIT else []
        lines += [f"cpu_percent = {limits.cpu_percent}"] if limits.cpu_percent != NO_LIMIT else []
        lines += [f'data = "{_size(limits.data_bytes)[0]}"'] if limits.data_bytes != NO_LIMIT and app.data else []
        return "\n".join((*lines, ""))


class Access(IntEnum):
    """What may be done with a file or directory of the machine."""

    NONE = 0
    READ = 1
    WRITE = 2


def paths_granted(wanted: Mapping[str, Access], home: Path) -> tuple[frozenset[Power], tuple[str, ...]]:
    """The grants for paths of the machine, and what they leave out.

    A grant holds for all that is below its path. Where something below may be used less than what is around it, all of that is granted
    as little, be it named from the root or from `home`.
    """
    real = {path: str(host_path(path, home)) for path in wanted}
    powers: set[Power] = set()
    left_out = []
    for path, access in sorted(wanted.items()):
        below = {inner: held for inner, held in wanted.items() if f"{real[inner]}/".startswith(f"{real[path]}/") and held < access}
        held = min(below.values(), default=access)
        if below:
            verb = "reading and changing" if access is Access.WRITE else "reading"
            left_out.append(f"{verb} all of {path}: less is allowed for {', '.join(sorted(below))}, and grants have no exceptions")
        try:
            powers |= {power_of("write" if held is Access.WRITE else "read", path)} if held else set()
        except ValueError as error:
            left_out.append(str(error))
    return frozenset(powers), tuple(left_out)


def is_own_place(path: str) -> bool:
    """Whether an application can have a directory of its own at `path`."""
    parts = path.split("/")[1:]
    return path.startswith(WRITABLE) and path not in MEMORY and not ({"", ".", ".."} & {*parts}) and path.isprintable()


def _one_line(text: str) -> str:
    """As it can stand in a comment: no input ends one."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _grants(policy: Policy) -> Iterator[str]:
    """A line for each key."""
    values: dict[str, list[str]] = {}
    for power in sorted_powers(policy):
        key, _, value = spelled(power).partition(" = ")
        values.setdefault(key, []).append(value)
    for key, found in values.items():
        yield f"{key} = true" if found == ["true"] else f"{key} = [{', '.join(each[1:-1] for each in found)}]"


def _size(size_bytes: int) -> tuple[str, int]:
    """The largest size of a spec that is not above this one, spelled and in bytes; the smallest there is, where none is."""
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        number, rest = divmod(size_bytes, 1 << 10 * power)
        if not rest and 1 <= number < 10**_DIGITS:
            return f"{number}{letter}", size_bytes
    for power, letter in ((1, "K"), (2, "M"), (3, "G")):
        number = max(size_bytes >> 10 * power, 1)
        if number < 10**_DIGITS:
            return f"{number}{letter}", number << 10 * power
    number = min(size_bytes >> 40, 10**_DIGITS - 1)
    return f"{number}T", number << 40


def _between(number: int, bounds: tuple[int, int]) -> int:
    return min(max(number, bounds[0]), bounds[1])
