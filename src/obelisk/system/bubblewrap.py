"""bwrap(1): enters a root tree as a clean room with chosen directories bound in.

`Room` is the tools tree, or any other tree, seen as a place in which commands run: own process, IPC and host-name namespaces, own
/tmp, /run and /dev, no network unless asked for, and root rights inside only.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from obelisk.system import seccomp
from obelisk.system.command import MINIMAL_ENVIRONMENT, Completed, OnLine, run
from obelisk.system.namespace import as_root


@dataclass(frozen=True, slots=True)
class Bind:
    """A path of this machine that the room sees at `inside` (default: the same path)."""

    path: Path
    inside: Path | None = None
    writable: bool = False


def read_only(path: Path, inside: str | Path | None = None) -> Bind:
    """`path` is visible in the room and cannot be changed from there."""
    return Bind(path, Path(inside) if inside else None)


def writable(path: Path, inside: str | Path | None = None) -> Bind:
    """`path` is visible in the room and may be changed from there."""
    return Bind(path, Path(inside) if inside else None, writable=True)


@dataclass(frozen=True, slots=True)
class Room:
    """A root tree in which commands run. `/usr` and `/etc` of the tree are read-only there."""

    tree: Path

    def argv(
        self,
        command: Sequence[str | Path],
        *,
        binds: Sequence[Bind] = (),
        network: bool = False,
        devices: Sequence[str] = (),
        cwd: str = "/",
        outlives: bool = False,
    ) -> list[str]:
        """The complete argument list that runs `command` in the room, for callers that keep the process themselves.

        It ends with the process that starts it, unless it `outlives` that.
        """
        words: list[str] = [*as_root(), "bwrap", *([] if outlives else ["--die-with-parent"])]
        words += ["--cap-add", "ALL", "--unshare-ipc", "--unshare-pid", "--unshare-uts"]
        if not network:
            words += ["--unshare-net"]
        for top in ("usr", "etc"):
            words += ["--ro-bind", str(self.tree / top), f"/{top}"]
        for top in ("bin", "sbin", "lib", "lib64"):
            words += ["--symlink", f"usr/{top}", f"/{top}"]
        words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", "/var"]  # noqa: S108
        words += ["--dir", "/var/tmp", "--dir", "/root"]  # noqa: S108 - paths inside the room
        for device in devices:
            words += ["--dev-bind-try", device, device]
        for bind in binds:
            inside = bind.inside or bind.path
            words += ["--bind" if bind.writable else "--ro-bind", str(bind.path), str(inside)]
        words += ["--chdir", cwd, "--", *(str(word) for word in command)]
        return words

    def run(  # noqa: PLR0913 - keywords name each
        self,
        command: Sequence[str | Path],
        *,
        binds: Sequence[Bind] = (),
        network: bool = False,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 3600,
        on_line: OnLine | None = None,
        stdin: bytes = b"",
        durable: bool = True,
    ) -> Completed:
        """Run `command` in the room to its end. Unless it is to be `durable`, nothing in it waits for the disk.

        Raises:
            CommandError: it failed; the error names the command, not the wrapper.
        """
        words = self.argv(command, binds=binds, network=network)
        with ExitStack() as stack:
            inherited = []
            if not durable:
                inherited.append(stack.enter_context(seccomp.as_file(seccomp.without_synchronising())))
                at = words.index("bwrap") + 1
                words[at:at] = ["--seccomp", str(inherited[0])]
            return run(
                words,
                env={**MINIMAL_ENVIRONMENT, **(env or {})},
                timeout_s=timeout_s,
                on_line=on_line,
                stdin=stdin,
                show=str(command[0]),
                inherited=inherited,
            )


def jobs() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
