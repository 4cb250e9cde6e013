"""Root rights where the kernel asks for them: the real ones, or those of a user namespace with a range of subordinate ids.

A tree that an ordinary user builds belongs to subordinate ids, so everything that touches such a tree runs behind `as_root()`.
"""

import os
import pwd
import re
import stat
from functools import cache
from pathlib import Path

from obelisk.errors import MissingFeatureError
from obelisk.system.command import find_program, run

# Debian's own accounts go up to 65534.
_IDS = 65536


@cache
def as_root() -> tuple[str, ...]:
    """The words to put before a command so that it sees itself as root; none for root.

    Raises:
        MissingFeatureError: this user has no subordinate ids, or there is no newuidmap that may use them.
    """
    if os.geteuid() == 0:
        return ()
    user = pwd.getpwuid(os.geteuid()).pw_name
    for helper in ("newuidmap", "newgidmap"):
        program = find_program(helper)
        if program is None:
            raise MissingFeatureError(f"{helper} is not installed", code="no-newuidmap", hint="install the package uidmap")
        # Without its privileges it fails, and unshare(1) then waits for it for ever.
        if not _gains_privileges(program):
            raise MissingFeatureError(
                f"{program} cannot gain the privileges that it needs",
                code="no-newuidmap",
                hint="run outside of containers and sandboxes that forbid set-id programs, or as root",
            )
    for table in ("/etc/subuid", "/etc/subgid"):
        if not _has_range(Path(table), user):
            raise MissingFeatureError(
                f"{user} has no subordinate ids in {table}",
                code="no-subordinate-ids",
                hint=f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
    return ("unshare", "--user", "--map-root-user", "--map-auto", "--mount", "--")


def remove_tree(path: Path) -> None:
    """Remove a directory tree whoever of our ids owns its files. A path that does not exist is fine."""
    if path.is_symlink() or path.exists():
        # A tree may hold directories without write permission, which only root can empty.
        run([*as_root(), "rm", "-rf", "--one-file-system", "--", path], show="rm")


def _has_range(table: Path, user: str) -> bool:
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        owner, _, span = line.partition(":")
        if owner in {user, str(os.geteuid())} and int(span.rpartition(":")[2] or 0) >= _IDS:
            return True
    return False


def _gains_privileges(program: Path) -> bool:
    if re.search(r"^NoNewPrivs:\s*1$", Path("/proc/self/status").read_text(), re.MULTILINE):
        return False
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        return False
    if program.stat().st_mode & stat.S_ISUID:
        return True
    try:
        return bool(os.getxattr(program, "security.capability"))
    except OSError:
        return False


def is_root() -> bool:
    """Whether this process has real root rights."""
    return os.geteuid() == 0
