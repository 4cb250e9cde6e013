"""Steps by which a process changes what it sees and gives up what it may, as system calls of a program (`obelisk.system.program`).

Source: mount(2), mount_setattr(2), user_namespaces(7), capabilities(7), capset(2), prctl(2), seccomp(2), setrlimit(2).
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from obelisk.system.program import Argument, Beside, Call, Data, Execute, Kept, Pair, becoming, text
from obelisk.system.syscalls import NUMBERS

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_NOSUID, _NODEV, _NOEXEC, _BIND, _RECURSIVE, _SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
_ATTRIBUTE_READ_ONLY, _ATTRIBUTE_NOSUID, _ATTRIBUTE_NODEV, _ATTRIBUTE_NOEXEC = 1, 2, 4, 8
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_WRITE_ONLY, _CREATE, _EXCLUSIVE, _TRUNCATE, _CLOSE_ON_EXEC = 1, 0o100, 0o200, 0o1000, 0o2000000
_MOST_BYTES = 1 << 30
_F_DUPFD = 0
_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_SET_MDWE, _PR_GET_MDWE = 8, 38, 47, 65, 66
_CAPABILITY_VERSION, _RAISE, _CAP_NET_BIND_SERVICE = 0x20080522, 2, 10
_SET_FILTER, _NEW_LISTENER = 1, 8
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_MOST_DESCRIPTORS = (1 << 32) - 1
_SIG_BLOCK, _SIG_UNBLOCK = 0, 1
_ASKING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a directory belongs to."""

    uid: int
    gid: int


def close_descriptors(*, keep: int | None = None, first: int = 3) -> list[Call]:
    """Close what was inherited from the descriptor `first` on, but one. Those before it stay: input, output, errors, then sockets."""
    ranges = ((first, _MOST_DESCRIPTORS),) if keep is None else ((first, keep - 1), (keep + 1, _MOST_DESCRIPTORS))
    return [_call("close_range", (first, last, 0), "close inherited files") for first, last in ranges if first <= last]


def usual_modes() -> list[Call]:
    """Let what is made have the modes that are asked for, whatever whoever starts it keeps from others."""
    return [_call("umask", (0o022,))]


def hold_signals() -> list[Call]:
    """Let the signals wait by which a process is asked to do something, for itself and for what it becomes."""
    return [_call("rt_sigprocmask", (_SIG_BLOCK, _signals(), 0, 8), "hold signals")]


def take_signals() -> list[Call]:
    """Take those signals again, one that waits already included."""
    return [_call("rt_sigprocmask", (_SIG_UNBLOCK, _signals(), 0, 8), "take signals")]


def own_mounts() -> list[Call]:
    """Go on in a mount namespace of its own, from which nothing comes back. Takes root rights."""
    return [_call("unshare", (_NEW_MOUNTS,), "make a mount namespace"), _separate()]


def own_mounts_of_user(owner: Owner) -> list[Call]:
    """The same for an ordinary user, by a user namespace in which they keep their ids."""
    calls = [_call("unshare", (_NEW_USERS | _NEW_MOUNTS,), "make a user namespace: the kernel or its settings do not allow that here")]
    for name, content in (("setgroups", "deny"), ("uid_map", f"{owner.uid} {owner.uid} 1"), ("gid_map", f"{owner.gid} {owner.gid} 1")):
        calls += opened_and_written(f"/proc/self/{name}", content.encode(), f"write its {name}")
    return [*calls, _separate()]


def opened_and_written(file: str, content: bytes, what: str) -> list[Call]:
    """Write to a file of the kernel's; `what` completes "cannot …"."""
    return [
        _call("open", (text(file), _WRITE_ONLY, 0), what, keep="opened"),
        _call("write", (Kept("opened"), Data((content,)), len(content)), what),
        _call("close", (Kept("opened"),)),
    ]


def memory(place: str, size: int, owner: Owner, *, mode: int = 0o755, executable: bool = False) -> list[Call]:
    """A new file system in memory at `place`, a directory that is there. Unless `executable`, nothing in it runs."""
    flags = _NOSUID | _NODEV | (0 if executable else _NOEXEC)
    options = f"size={size},mode={mode:o},uid={owner.uid},gid={owner.gid}"
    return [_call("mount", (text("tmpfs"), text(place), text("tmpfs"), flags, text(options)), f"mount memory at {place}")]


def directory(place: str) -> list[Call]:
    """Make a directory."""
    return [_call("mkdir", (text(place), 0o755), f"make {place}")]


def link(target: str, place: str) -> list[Call]:
    """Make a symbolic link."""
    return [_call("symlink", (text(target), text(place)), f"make the link {place}")]


def read_only(place: str) -> list[Call]:
    """Let nothing be made or changed any more in what is mounted at `place` itself."""
    settings = Data((struct.pack("<QQQQ", _ATTRIBUTE_READ_ONLY, 0, 0, 0),))
    return [_call("mount_setattr", (_AT_FDCWD, text(place), 0, settings, 32), f"make {place} read-only")]


def file(place: str) -> list[Call]:
    """Make an empty file."""
    return [
        _call("open", (text(place), _WRITE_ONLY | _CREATE, 0o644), f"make {place}", keep="made"),
        _call("close", (Kept("made"),)),
    ]


def copied(source: str, place: str, owner: Owner, what: str) -> list[Call]:
    """Copy a file to `place`, where there is none, for its owner alone to read; `what` it is.

    A file for which there is no room is not cut: the second call finds that there is more, and no room for it.
    """
    return [
        _call("open", (text(source), _CLOSE_ON_EXEC, 0), f"open {what}", keep="source"),
        _call("open", (text(place), _WRITE_ONLY | _CREATE | _EXCLUSIVE | _CLOSE_ON_EXEC, 0o400), f"make a place for {what}", keep="copy"),
        *(_call("sendfile", (Kept("copy"), Kept("source"), 0, _MOST_BYTES), f"copy {what}") for _ in range(2)),
        _call("fchown", (Kept("copy"), owner.uid, owner.gid), f"hand over {what}"),
        _call("close", (Kept("copy"),)),
        _call("close", (Kept("source"),)),
    ]


def bound(source: str, place: str, *, writable: bool, executable: bool) -> list[Call]:
    """Show `source` and all that is mounted below it at `place`, which is there. No device or set-id program counts in it."""
    attributes = _ATTRIBUTE_NOSUID | _ATTRIBUTE_NODEV
    attributes |= (0 if writable else _ATTRIBUTE_READ_ONLY) | (0 if executable else _ATTRIBUTE_NOEXEC)
    settings = Data((struct.pack("<QQQQ", attributes, 0, 0, 0),))
    return [
        _call("mount", (text(source), text(place), 0, _BIND | _RECURSIVE, 0), f"show {source}"),
        _call("mount_setattr", (_AT_FDCWD, text(place), _AT_RECURSIVE, settings, 32), f"restrict what is shown of {source}"),
    ]


def device(node: str, place: str) -> list[Call]:
    """Show a device node of the machine, or a directory of them, at `place`."""
    settings = Data((struct.pack("<QQQQ", _ATTRIBUTE_NOSUID | _ATTRIBUTE_NOEXEC, 0, 0, 0),))
    return [
        _call("mount", (text(node), text(place), 0, _BIND | _RECURSIVE, 0), f"show {node}"),
        _call("mount_setattr", (_AT_FDCWD, text(place), _AT_RECURSIVE, settings, 32), f"restrict what is shown of {node}"),
    ]


def writable_at(file: str, number: int) -> list[Call]:
    """Have `file`, empty, at the descriptor `number` for writing. The two directories that it is in are made where they are missing."""
    parent = file.rpartition("/")[0]
    calls = [_call("mkdir", (text(place), 0o755)) for place in (parent.rpartition("/")[0], parent)]
    calls.append(_call("open", (text(file), _WRITE_ONLY | _CREATE | _TRUNCATE, 0o644), f"write {file}", keep=f"file {number}"))
    calls.append(_call("dup2", (Kept(f"file {number}"), number), f"write {file}"))
    return [*calls, _call("close", (Kept(f"file {number}"),))]


def helped_by(execute: Execute, name: str, *, report: int, held: int, more: Sequence[Call] = ()) -> list[Call | Beside]:
    """Start a program beside this one, and wait until it writes to its descriptor `report`, of which `held` is the other end.

    It gets these two, one after the other, input, output and errors, what it opens by `more`, and nothing else that this process has.
    """
    ends = (("told", report), ("heard", held))
    # By way of high numbers, so that neither end takes the other's place.
    calls = [_call("fcntl", (Kept(end), _F_DUPFD, 64), f"keep a pipe from {name}", keep=f"{end} high") for end, _number in ends]
    calls += [_call("dup2", (Kept(f"{end} high"), number), f"keep a pipe from {name}") for end, number in ends]
    ranges = ((3, report - 1), (held + 1, _MOST_DESCRIPTORS))
    calls += [_call("close_range", (first, last, 0), "close inherited files") for first, last in ranges]
    return [
        _call("pipe2", (Pair("heard", "told"), 0), f"make a pipe from {name}"),
        Beside((*calls, *more, becoming(execute))),
        _call("close", (Kept("told"),)),
        Call(NUMBERS["read"], (Kept("heard"), Data((bytes(1),)), 1), f"hear from {name} that it is ready", least=1),
        _call("close", (Kept("heard"),)),
    ]


def become(owner: Owner, groups: Sequence[int], *, listening: bool = False) -> list[Call]:
    """Give up root's ids for these, and no others. With `listening`, the next program may still listen at every port."""
    calls = [
        _call("setgroups", (len(groups), Data((struct.pack(f"<{len(groups)}I", *groups),))), "give up root's groups"),
        _call("setresgid", (owner.gid,) * 3, "give up root's group"),
        _call("setresuid", (owner.uid,) * 3, "give up root's rights"),
    ]
    if not listening:
        return calls
    right = 1 << _CAP_NET_BIND_SERVICE
    only = Data((struct.pack("<6I", right, right, right, 0, 0, 0),))
    return [
        _call("prctl", (_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep a right"),
        *calls,
        _call("capset", (Data((struct.pack("<II", _CAPABILITY_VERSION, 0),)), only), "give up all rights but the one to listen"),
        _call("prctl", (_PR_CAP_AMBIENT, _RAISE, _CAP_NET_BIND_SERVICE, 0, 0), "pass on the right to listen"),
    ]


def no_new_privileges() -> list[Call]:
    """Nothing that it starts has more rights than it has itself."""
    return [_call("prctl", (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up new privileges")]


def change_directory(place: str) -> list[Call]:
    """Go on in another directory."""
    return [_call("chdir", (text(place),), f"go to {place}")]


def limit(kind: int, value: int) -> list[Call]:
    """Bound a resource, by its number in the module `resource`."""
    return [_call("prlimit64", (0, kind, Data((struct.pack("<QQ", value, value),)), 0), f"limit the resource {kind} to {value}")]


def refuse_write_execute() -> list[Call]:
    """Memory that was writable is never executable, for the process and all that it starts."""
    return [_call("prctl", (_PR_SET_MDWE, 1, 0, 0, 0), "give up writable executable memory")]


def filtered(program: bytes, *, listener: int | None = None) -> list[Call]:
    """Install a filter of system calls. Its listener is sent to the socket `listener`, which is then closed."""
    content = Data((struct.pack("<HHI", len(program) // 8, 0, 0), Data((program,))))
    calls = [
        _call(
            "seccomp",
            (_SET_FILTER, _NEW_LISTENER if listener is not None else 0, content),
            "install its filter of system calls",
            keep="notices",
        )
    ]
    if listener is not None:
        rights = Data((struct.pack("<Qii", 20, _SOL_SOCKET, _SCM_RIGHTS), Kept("notices"), bytes(4)))
        payload = Data((Data((b"!",)), struct.pack("<Q", 1)))
        message = Data((bytes(16), payload, struct.pack("<Q", 1), rights, struct.pack("<QQ", 24, 0)))
        calls += [
            _call("sendmsg", (listener, message, 0), "hand its listener to the observer"),
            _call("close", (listener,)),
            _call("close", (Kept("notices"),)),
        ]
    return calls


def can_refuse_write_execute() -> bool:
    """Whether the running kernel can (Linux 6.3 and later)."""
    return int(ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_MDWE, 0, 0, 0, 0)) >= 0


def most_open_files() -> int:
    """The bound on open files that this process may set."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def myself() -> Owner:
    """The ids of this process."""
    return Owner(os.geteuid(), os.getegid())


def _signals() -> Data:
    return Data((struct.pack("<Q", sum(1 << (number - 1) for number in _ASKING)),))


def _separate() -> Call:
    return _call("mount", (0, text("/"), 0, _SLAVE | _RECURSIVE, 0), "separate its mounts")


def _call(name: str, arguments: tuple[Argument, ...], what: str = "", *, keep: str = "") -> Call:
    return Call(NUMBERS[name], arguments, what, keep)
