"""mkfs.erofs(1): a directory as a read-only file system image."""

import ctypes
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from obelisk.system.bubblewrap import Room, read_only, writable
from obelisk.system.command import run
from obelisk.system.namespace import remove_tree

# Once a write has failed, mkfs.erofs 1.8 waits for ever for its own writer, which has ended.
_UNTIL_THE_FIRST_ERROR = """
mkfifo /tmp/said
"$0" "$@" 2>/tmp/said &
while read -r line || [ -n "$line" ]; do
    printf '%s\\n' "$line" >&2
    case $line in *'<E>'*) kill -KILL $! ;; esac
done </tmp/said
wait $!
"""


@dataclass(frozen=True, slots=True)
class Make:
    """One image to make, bit for bit the same for the same tree. `compression` is mkfs.erofs's `-z` argument, empty for none."""

    tree: Path
    out: Path
    epoch: int
    uuid: UUID
    compression: str = ""

    def argv(self) -> list[str]:
        """The argument list."""
        words = ["mkfs.erofs", "--quiet", f"-T{self.epoch}", f"-U{self.uuid}", "-Enoinline_data"]
        if self.compression:
            words = [*words[:-1], f"-z{self.compression}"]
        return ["sh", "-uc", _UNTIL_THE_FIRST_ERROR, *words, str(self.out), str(self.tree)]

    def environment(self) -> dict[str, str]:
        """With this set, times are clamped to the epoch and not replaced by it."""
        return {"SOURCE_DATE_EPOCH": str(self.epoch)}


def extract(room: Room, image: Path, target: Path) -> None:
    """Copy what is in an image to `target`, a directory that does not exist yet, as files of whoever does it."""
    binds = [read_only(image, "/image"), writable(target.parent, "/out")]
    room.run(["fsck.erofs", f"--extract=/out/{target.name}", "--no-preserve-owner", "/image"], binds=binds)


def mount(image: Path, place: Path) -> None:
    """Mount an image read-only at `place`, until `obelisk.system.mounts.unmount_all`. Takes root rights.

    Linux 6.12 and later read the file itself, older kernels through a loop device that goes with the mount.

    Raises:
        CommandError: the kernel cannot mount it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    read_only = 1 | 2 | 4  # MS_RDONLY, MS_NOSUID, MS_NODEV
    if library.mount(bytes(image), bytes(place), b"erofs", read_only, None) != 0:
        run(["mount", "-t", "erofs", "-o", "ro,nosuid,nodev,loop", image, place], timeout_s=60)


_LISTING = """
import hashlib, os, stat, sys
top = sys.argv[1]
for directory, names, files in os.walk(top):
    for name in sorted(names + files):
        path = os.path.join(directory, name)
        status = os.lstat(path)
        what = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
        if stat.S_ISLNK(status.st_mode):
            what += f" -> {os.readlink(path)}"
        elif stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                what += f" {status.st_size} {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
        print(os.path.relpath(path, top).replace("\\n", "?"), what, sep="\\t")
def lines(*place):
    try:
        with open(os.path.join(top, *place), errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
for line in lines("etc", "passwd"):
    name, _, uid, gid, _, home, shell = (line.split(":") + [""] * 7)[:7]
    print(f"//user/{name}", f"{uid}:{gid} {home} {shell}", sep="\\t")
for system in ("etc/systemd/system", "usr/lib/systemd/system"):
    wants = os.path.join(top, system, "sockets.target.wants")
    for unit in sorted(os.listdir(wants)) if os.path.isdir(wants) else ():
        found = lines("etc/systemd/system", unit) or lines("usr/lib/systemd/system", unit)
        ports = [line.split("=", 1)[1].strip() for line in found if line.startswith(("ListenStream=", "ListenDatagram="))]
        print(f"//socket/{unit}", " ".join(ports), sep="\\t")
"""


def listing(room: Room, image: Path) -> dict[str, str]:
    """What is in an image: path -> mode, owner, size and the beginning of the SHA-256, or a link's target.

    Beside paths, which begin without a slash: `//user/<name>` -> ids, home and shell, `//socket/<unit>` -> where an enabled socket listens.
    """
    with tempfile.TemporaryDirectory(prefix="obelisk-erofs-") as scratch:
        script = 'fsck.erofs --extract=/out/tree /image >/dev/null && exec python3 -I -c "$1" /out/tree'
        binds = [read_only(image, "/image"), writable(Path(scratch), "/out")]
        said = room.run(["sh", "-euc", script, "listing", _LISTING], binds=binds).stdout
        remove_tree(Path(scratch) / "tree")
    return dict(line.split("\t", 1) for line in said.splitlines())
