"""What is known of failures: a directory each on the state volume, where neither a rollback nor the journal's own limits take it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obelisk.system.files import sync_directory
from obelisk.system.filesystem import sync_filesystem

FAILURES = "failures"
MOST_BYTES = 2 << 20
"""Of each file, what comes last."""
_KEPT = 5


@contextmanager
def keeping(keep: Path, name: str) -> Iterator[Path]:
    """A directory for the evidence of one failure; the oldest ones go. Durable when the block ends."""
    place = keep / FAILURES / name
    place.mkdir(parents=True, exist_ok=True)
    yield place
    for path in sorted((keep / FAILURES).iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(path)
    sync_directory(keep / FAILURES)
    sync_filesystem(keep)
