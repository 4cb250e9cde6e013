"""systemd-sbsign(1): signs EFI programs for Secure Boot."""

from collections.abc import Sequence
from pathlib import Path

from obelisk.system import faketime
from obelisk.system.bubblewrap import Bind, Room


def sign(room: Room, program: Path, out: Path, *, epoch: int, binds: Sequence[Bind]) -> None:
    """Sign `program` with /key/db.key and /key/db.crt of the room into `out`; the signature names `epoch` as its time."""
    words = ["/usr/lib/systemd/systemd-sbsign", "sign", "--private-key=/key/db.key", "--certificate=/key/db.crt"]
    room.run(faketime.at(epoch, [*words, f"--output={out}", str(program)]), binds=binds)
