"""xz(1) of the tools tree: one of the few compressions that every systemd reads."""

from pathlib import Path

from obelisk.events import Task
from obelisk.system.bubblewrap import Room, jobs, read_only, writable

# Of a 287 MB root: level 0 makes 67 MB, 1 makes 62, 2 makes 60 and 6 makes 53, in 10, 20, 32 and 122 s of CPU.
_LEVEL = 1


def compress(room: Room, source: Path, target: Path, running: Task) -> None:
    """Compress a file into the new file `target` on all processors. The same file gives the same bytes on any number of them."""
    running.output(f"compressing {source.name}")
    script = 'exec xz --compress --stdout --check=crc64 --block-size=12MiB "--threads=$1" "-$2" </source >"/out/$3"'
    words = ["sh", "-c", script, "xz", str(max(jobs(), 2)), str(_LEVEL), target.name]
    room.run(words, binds=[read_only(source, "/source"), writable(target.parent, "/out")])
