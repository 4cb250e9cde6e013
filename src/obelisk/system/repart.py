"""systemd-repart(8), offline: a partitioned disk in a file, without a loop device."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from obelisk.system.bubblewrap import Bind, Room
from obelisk.system.command import OnLine


def make_disk(  # noqa: PLR0913 - keywords name each
    room: Room, disk: Path, definitions: Path, *, seed: UUID, epoch: int, binds: Sequence[Bind], on_line: OnLine | None = None
) -> None:
    """Make the file `disk` from repart.d(5) `definitions`; equal inputs give equal bytes."""
    argv = [
        "systemd-repart",
        "--empty=create",
        "--size=auto",
        "--offline=yes",
        "--dry-run=no",
        "--no-pager",
        f"--seed={seed}",
        f"--definitions={definitions}",
        str(disk),
    ]
    room.run(argv, binds=binds, env={"SOURCE_DATE_EPOCH": str(epoch)}, on_line=on_line)
