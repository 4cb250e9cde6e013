"""What happened on this host, on its state volume: one record a line, flushed before anything else goes on.

A line that was cut by a power failure is no record; the next one starts on a line of its own.
"""

import errno
import json
import os
from pathlib import Path

from obelisk.errors import StateError
from obelisk.model.canonical import canonical
from obelisk.model.host import Record
from obelisk.system.files import sync_directory

FILE = "journal.jsonl"


def read(keep: Path) -> tuple[Record, ...]:
    """All records, oldest first."""
    try:
        lines = (keep / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    found = (Record.from_json(_parsed(line)) for line in lines)
    return tuple(record for record in found if record is not None)


def append(keep: Path, record: Record) -> None:
    """Add a record. It is durable when this returns.

    Raises:
        StateError: the state volume is full.
    """
    path = keep / FILE
    new = not path.exists()
    # The line break in front ends a line that was cut.
    data = b"\n" + canonical(record.to_json()) + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StateError("the state volume is full", code="state-full", hint="remove snapshots: `obelisk host snapshot list`") from error
    if new:
        sync_directory(keep)


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line) if line.strip() else None
    except ValueError:
        return None
