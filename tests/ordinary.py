"""A person without root rights, with a checkout, a store and keys of their own, for as long as a command of theirs runs."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from tool import ROOT, Tool

UID = 54321
FIRST_SUBORDINATE = 700_000

# The user, and the parents that lead to their home, exist for this command and what it starts only.
_BECOME = """
set -eu
for file in passwd group subuid subgid; do
    { cat "/etc/$file" || true; cat "$1/$file"; } >"$1/$file.all"
    [ -e "/etc/$file" ] || : >"/etc/$file"
    mount --bind "$1/$file.all" "/etc/$file"
done
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/home
mount --bind "$2" /mnt/home
cd /mnt/home
uid=$3
shift 3
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups env HOME=/mnt/home "$@"
"""


def ordinary_user(workshop: Tool, place: Path) -> Tool:
    """Somebody with copies of the workshop's keys and spec, and an empty store, at home below the existing directory `place`."""
    accounts, home = place / "accounts", place / "home"
    accounts.mkdir()
    home.mkdir()
    for name, line in {"passwd": f"{UID}:{UID}::/mnt/home:/bin/sh", "group": f"{UID}:", "subuid": "", "subgid": ""}.items():
        subordinate = f"somebody:{FIRST_SUBORDINATE}:65536\n"
        (accounts / name).write_text(f"somebody:x:{line}\n" if line else subordinate)
    shutil.copytree(ROOT, home / "checkout", symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv*", ".cache", "__pycache__"))
    shutil.copytree(workshop.home / "keys", home / "keys")
    shutil.copytree(workshop.spec, home / workshop.spec.name)
    subprocess.run(["chown", "--recursive", f"{UID}:{UID}", home], check=True)
    become = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _BECOME, "sh", str(accounts), str(home), str(UID))
    seen = Path("/mnt/home")
    return replace(workshop, home=seen, spec=seen / workshop.spec.name, prefix=become, checkout=seen / "checkout")
