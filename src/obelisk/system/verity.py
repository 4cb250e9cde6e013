"""veritysetup(8): the hash tree of a block device, outside the kernel."""

import re
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from obelisk.errors import CommandError
from obelisk.system.bubblewrap import Bind, Room


def seal(room: Room, data: Path, tree: Path, *, salt: str, uuid: UUID, binds: Sequence[Bind]) -> str:
    """Write the hash tree of `data` to `tree` and return the root hash (64 hexadecimal digits). Blocks are 4 KiB, hashes SHA-256."""
    argv = ["veritysetup", "format", f"--salt={salt}", f"--uuid={uuid}", str(data), str(tree)]
    completed = room.run(argv, binds=binds)
    found = re.search(r"^Root hash:\s*([0-9a-f]{64})$", completed.stdout, re.MULTILINE)
    if found is None:
        raise CommandError(tuple(argv), 0, completed.output)
    return found[1]
