"""Control groups, version 2: bounds for all processes of an application together, however many there are and whenever they were started.

    systemd               obelisk-<name>.slice, a unit in memory; each start is a scope in it, which systemd-run asks the manager for: the
                          system's for root, the user's own for anybody else
    root without systemd  /sys/fs/cgroup/obelisk/<name>, which each start enters

Under systemd only systemd makes groups, by its rule of one writer; where it does not run, root makes its own. Nothing here removes a group
in which something runs.

Source: cgroups(7); the kernel's admin-guide/cgroup-v2; systemd-run(1), systemd.slice(5), systemd.resource-control(5).
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from obelisk.errors import MissingFeatureError
from obelisk.system.command import find_program, run
from obelisk.system.confine import Owner, opened_and_written
from obelisk.system.files import write_durably
from obelisk.system.program import Call, Execute

_TOP = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "memory", "pids")
_NAMES = " ".join(_CONTROLLERS)
_PERIOD_US = 100_000
# Bubblewrap, pasta and the shell before it, on their way to the application.
_STARTERS = 16
# Until then scopes had no OOMPolicy, and went on. Source: systemd's NEWS.
_ENDS_ALL_SINCE = 253


class Way(StrEnum):
    """By whom groups are made on a machine."""

    NONE = "nobody"
    DIRECT = "root"
    SYSTEM = "the system's manager"
    USER = "the user's manager"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a group takes. `cpu_percent` is of one processor; None bounds nothing."""

    processes: int
    memory_bytes: int | None = None
    cpu_percent: int | None = None


@dataclass(frozen=True, slots=True)
class Here:
    """How groups come about on this machine; `fault` is the remedy where they do not. `program` is systemd-run, where that is the way.

    `ends_all`: when the kernel kills one process of a scope for want of memory, systemd ends the others, unless it is told not to.
    """

    way: Way
    fault: str = ""
    program: str = ""
    ends_all: bool = False


NOWHERE = Here(Way.NONE)


def here(owner: Owner, *, top: Path = _TOP, run_directory: Path = Path("/run")) -> Here:
    """What this machine offers to this user."""
    if not _has_all(top / "cgroup.controllers"):
        return Here(Way.NONE, f"it takes control groups of version 2 with {_NAMES} at {top}")
    if (run_directory / "systemd/system").is_dir():
        return _by_systemd(owner, top)
    if owner.uid != 0:
        return Here(Way.NONE, "without systemd, root makes control groups")
    # In the root of all groups controllers can be enabled whatever runs there; below, only where nothing does.
    ready = _has_all(top / "cgroup.subtree_control") or not (top / "cgroup.type").exists()
    return Here(Way.DIRECT) if ready else Here(Way.NONE, f"enable {_NAMES} in {top}/cgroup.subtree_control")


def _by_systemd(owner: Owner, top: Path) -> Here:
    program = find_program("systemd-run")
    if program is None:
        return Here(Way.NONE, "install systemd-run, of the package systemd")
    way = Way.SYSTEM if owner.uid == 0 else Way.USER
    if way is Way.SYSTEM or _has_all(top / f"user.slice/user-{owner.uid}.slice/user@{owner.uid}.service/cgroup.controllers"):
        return Here(way, program=str(program), ends_all=_version(str(program)) >= _ENDS_ALL_SINCE)
    return Here(Way.NONE, f"log in, so that systemd runs for you, with `Delegate={_NAMES}` in the unit user@.service")


def _version(program: str) -> int:
    found = re.match(r"systemd (\d+)", run([program, "--version"], timeout_s=20).stdout)
    return int(found[1]) if found else 0


def prepare(way: Way, name: str, bounds: Bounds, owner: Owner, *, top: Path = _TOP) -> None:
    """Have the group `name` with these bounds, also while something runs in it. May be repeated.

    Raises:
        MissingFeatureError: the kernel refuses.
    """
    if way is Way.DIRECT:
        group = top / "obelisk" / name
        try:
            for parent in (top, top / "obelisk"):
                parent.mkdir(exist_ok=True)
                (parent / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in _CONTROLLERS))
            group.mkdir(exist_ok=True)
            for file, value in _files(bounds).items():
                if file != "memory.swap.max" or (group / file).exists():  # kernels without swap have none
                    (group / file).write_text(value)
        except OSError as error:
            raise MissingFeatureError(
                f"the control group {group} cannot be made: {error.strerror}",
                code="no-cgroup",
                hint="see who may write there, or name the layer `cgroup` under `may_miss` of the operator's [override]",
            ) from error
    elif way is not Way.NONE:
        unit = _units(way, owner) / slice_of(name)
        content = f"[Unit]\nDescription=Bounds of {name}\n[Slice]\n" + "".join(f"{key}={value}\n" for key, value in settings(bounds))
        if not unit.exists() or unit.read_text() != content:
            unit.parent.mkdir(parents=True, exist_ok=True)
            write_durably(unit, content.encode(), mode=0o644)
            run(["systemctl", *_manager(way), "daemon-reload"], env=_environment(way, owner), timeout_s=120)


def remove(way: Way, name: str, owner: Owner, *, top: Path = _TOP) -> None:
    """Take the group away, unless something runs in it. May be repeated."""
    if way is Way.DIRECT:
        with suppress(OSError):
            (top / "obelisk" / name).rmdir()
    elif way is not Way.NONE:
        (_units(way, owner) / slice_of(name)).unlink(missing_ok=True)


def enter(name: str, *, top: Path = _TOP) -> list[Call]:
    """Go on in a group that root has prepared."""
    return opened_and_written(str(top / "obelisk" / name / "cgroup.procs"), b"0", f"enter its control group {name}: make it ready again")


def scope(by: Here, name: str, owner: Owner, command: Sequence[str]) -> Execute:
    """The program that goes on as `command` in a scope of the group, by one of systemd's managers."""
    go_on = ("--property=OOMPolicy=continue",) if by.ends_all else ()
    words = ("systemd-run", *_manager(by.way), "--scope", "--quiet", "--collect", f"--slice={slice_of(name)}", *go_on, "--", *command)
    return Execute(by.program, words, tuple(f"{key}={value}" for key, value in sorted(_environment(by.way, owner).items())))


def slice_of(name: str) -> str:
    """The unit of a group; a dash would make it one inside of another."""
    return "obelisk-{}.slice".format(name.replace("-", "\\x2d"))


def _files(bounds: Bounds) -> dict[str, str]:
    quota = "max" if bounds.cpu_percent is None else str(bounds.cpu_percent * _PERIOD_US // 100)
    return {
        "memory.max": "max" if bounds.memory_bytes is None else str(bounds.memory_bytes),
        "memory.swap.max": "max" if bounds.memory_bytes is None else "0",
        "cpu.max": f"{quota} {_PERIOD_US}",
        "pids.max": str(bounds.processes + _STARTERS),
    }


def settings(bounds: Bounds, *, starters: int = _STARTERS) -> list[tuple[str, str]]:
    """What a unit of systemd's says of them; so many processes more are on their way to the application."""
    memory = [] if bounds.memory_bytes is None else [("MemoryMax", str(bounds.memory_bytes)), ("MemorySwapMax", "0")]
    time = [] if bounds.cpu_percent is None else [("CPUQuota", f"{bounds.cpu_percent}%")]
    return [*memory, *time, ("TasksMax", str(bounds.processes + starters))]


def _manager(way: Way) -> tuple[str, ...]:
    return ("--user",) if way is Way.USER else ()


def _units(way: Way, owner: Owner) -> Path:
    return Path(f"/run/user/{owner.uid}/systemd/user" if way is Way.USER else "/run/systemd/system")


def _environment(way: Way, owner: Owner) -> dict[str, str]:
    found = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    return found | ({"XDG_RUNTIME_DIR": f"/run/user/{owner.uid}"} if way is Way.USER else {})


def _has_all(file: Path) -> bool:
    """Whether a list of controllers has all that are needed."""
    try:
        return {*_CONTROLLERS} <= {*file.read_text().split()}
    except OSError:
        return False
