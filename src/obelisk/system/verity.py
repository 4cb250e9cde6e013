"""veritysetup(8): the hash tree of a block device, outside the kernel."""

import re
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from obelisk.errors import CommandError, TrustError
from obelisk.system.bubblewrap import Bind, Room


def seal(room: Room, data: Path, tree: Path, *, salt: str, uuid: UUID, binds: Sequence[Bind]) -> str:
    """Write the hash tree of `data` to `tree` and return the root hash (64 hexadecimal digits). Blocks are 4 KiB, hashes SHA-256."""
    argv = ["veritysetup", "format", f"--salt={salt}", f"--uuid={uuid}", str(data), str(tree)]
    completed = room.run(argv, binds=binds)
    found = re.search(r"^Root hash:\s*([0-9a-f]{64})$", completed.stdout, re.MULTILINE)
    if found is None:
        raise CommandError(tuple(argv), 0, completed.output)
    return found[1]


def verify(room: Room, data: Path, tree: Path, root_hash: str, *, binds: Sequence[Bind]) -> None:
    """Read every block of `data` and compare it with its hash tree, and that with the root hash.

    Raises:
        TrustError: a block is not what the root hash promises.
    """
    try:
        room.run(["veritysetup", "verify", str(data), str(tree), root_hash], binds=binds)
    except CommandError as error:
        raise TrustError(
            f"{data.name} is not what the root hash {root_hash[:16]}… promises",
            code="root-damaged",
            hint="run `obelisk verify --repair`, then build or fetch the image again",
        ) from error
