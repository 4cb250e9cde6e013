"""dpkg-deb(1): reads the control data of packages."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from obelisk.system.bubblewrap import jobs
from obelisk.system.command import run


@dataclass(frozen=True, slots=True)
class DebFile:
    """A package file with what is already known of it."""

    path: Path
    name_in_repository: str
    sha256: str
    size_bytes: int


def write_index(files: Sequence[DebFile], index: Path) -> None:
    """Write the `Packages` index of a flat repository that holds `files`."""

    def stanza(file: DebFile) -> str:
        control = run(["dpkg-deb", "--field", file.path], timeout_s=60).stdout.strip()
        return f"{control}\nFilename: ./{file.name_in_repository}\nSize: {file.size_bytes}\nSHA256: {file.sha256}\n"

    with ThreadPoolExecutor(max_workers=2 * jobs()) as pool:
        index.write_text("\n".join(pool.map(stanza, files)))
