"""systemd-sbsign(1): signs EFI programs for Secure Boot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from obelisk.system.bubblewrap import Bind, Room


def sign(room: Room, program: Path, out: Path, *, binds: Sequence[Bind], env: Mapping[str, str]) -> None:
    """Sign `program` with /key/db.key and /key/db.crt of the room into `out`."""
    words = ["/usr/lib/systemd/systemd-sbsign", "sign", "--private-key=/key/db.key", "--certificate=/key/db.crt"]
    room.run([*words, f"--output={out}", str(program)], binds=binds, env=env)
