"""Other ways to bring an image to a host that has its predecessor: each makes what it publishes, and then a client takes it.

Bytes and requests are those that a client has to fetch; its processor time and memory are those of the peer's own programs.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from apparatus.pairs import PLACE, Pair, image, room, tree
from obelisk.system.bubblewrap import writable

_BIG_WINDOW = 31


@dataclass(frozen=True, slots=True)
class Result:
    """What one way costs on one pair. `publisher_s` is processor time, `wall_s` how long the publisher waits."""

    size_bytes: int
    requests: int
    client_s: float = 0
    peak_bytes: int = 0
    publisher_s: float = 0
    wall_s: float = 0

    def to_json(self) -> dict[str, float]:
        """For the figures."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a program took: processor time with its children, largest resident set of any of them, wall time."""

    cpu_s: float
    peak_bytes: int
    wall_s: float


def cost(words: Sequence[str | Path]) -> Cost:
    """Run a program to its end.

    Raises:
        CalledProcessError: it failed.
    """
    began = time.monotonic()
    process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _pid, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, time.monotonic() - began)


def in_room(*words: str) -> Cost:
    """Run a peer's program, which sees the pairs at /pairs."""
    return cost(room().argv(words, binds=[writable(PLACE, "/pairs")]))


def casync(pair: Pair, work: Path, chunk: int = 65536) -> Result:
    """A seed and a store of chunks, each fetched by itself."""
    old, new = image(pair.old)[0], image(pair.new)[0]
    place = f"/pairs/{work.name}"
    size = f"--chunk-size={chunk}"
    in_room("casync", "make", size, f"--store={place}/old.castr", f"{place}/old.caibx", f"/pairs/{old.name}")
    made = in_room("casync", "make", size, f"--store={place}/new.castr", f"{place}/new.caibx", f"/pairs/{new.name}")
    before, after = _sizes(work / "old.castr"), _sizes(work / "new.castr")
    missing = [length for name, length in after.items() if name not in before]
    client = in_room("casync", "extract", f"--store={place}/new.castr", f"--seed=/pairs/{old.name}", f"{place}/new.caibx", f"{place}/out")
    total = sum(missing) + (work / "new.caibx").stat().st_size
    return Result(total, len(missing) + 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def casync_tuned(pair: Pair, work: Path) -> Result:
    """With chunks of a quarter of its default, which finds more that is equal."""
    return casync(pair, work, 16384)


def ostree_delta(pair: Pair, work: Path) -> Result:
    """A static delta in one file, with bsdiff for all but the largest files."""
    old, new = _commits(pair, work)
    place, file = f"/pairs/{work.name}", "delta"
    made = in_room(
        *("ostree", f"--repo={place}/repo", "static-delta", "generate", f"--from={old}", f"--to={new}", "--max-bsdiff-size=64"),
        *("--inline", f"--filename={place}/{file}"),
    )
    in_room("ostree", f"--repo={place}/client", "init", "--mode=bare-user")
    in_room("ostree", f"--repo={place}/client", "pull-local", f"{place}/repo", old)
    client = in_room("ostree", f"--repo={place}/client", "static-delta", "apply-offline", f"{place}/{file}")
    return Result((work / file).stat().st_size, 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def ostree_pull(pair: Pair, work: Path) -> Result:
    """The objects that the client has not, one by one."""
    old, new = _commits(pair, work)
    before = _objects(work, old)
    after = _objects(work, new)
    sizes = _sizes(work / "repo/objects")
    missing = [sizes[name[2:]] for name in after - before if name[2:] in sizes]
    return Result(sum(missing), len(missing))


def zstd_patch(pair: Pair, work: Path) -> Result:
    """zstd with the old image as its dictionary."""
    old, new = image(pair.old)[0], image(pair.new)[0]
    place, window = f"/pairs/{work.name}", f"--long={_BIG_WINDOW}"
    made = in_room("zstd", "-q", "-f", "-T2", "-19", window, f"--patch-from=/pairs/{old.name}", f"/pairs/{new.name}", "-o", f"{place}/patch")
    client = in_room("zstd", "-q", "-f", "-d", window, f"--patch-from=/pairs/{old.name}", f"{place}/patch", "-o", f"{place}/out")
    return Result((work / "patch").stat().st_size, 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def xdelta(pair: Pair, work: Path) -> Result:
    """xdelta3 at its best, with a window as large as the image."""
    old, new = image(pair.old)[0], image(pair.new)[0]
    place = f"/pairs/{work.name}"
    words = ("xdelta3", "-f", "-9", "-S", "lzma", "-B", str(1 << 30))
    made = in_room(*words, "-e", "-s", f"/pairs/{old.name}", f"/pairs/{new.name}", f"{place}/patch")
    client = in_room("xdelta3", "-f", "-B", str(1 << 30), "-d", "-s", f"/pairs/{old.name}", f"{place}/patch", f"{place}/out")
    return Result((work / "patch").stat().st_size, 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def whole(pair: Pair, work: Path) -> Result:
    """The whole image, as systemd-sysupdate fetches it, compressed once."""
    new = image(pair.new)[0]
    place = f"/pairs/{work.name}"
    made = in_room("zstd", "-q", "-f", "-T2", "-19", f"/pairs/{new.name}", "-o", f"{place}/whole")
    client = in_room("zstd", "-q", "-f", "-d", f"{place}/whole", "-o", f"{place}/out")
    return Result((work / "whole").stat().st_size, 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


# RAUC's adaptive updates are left out: its client wants a bundle mounted by a kernel with device-mapper and nbd, which this bench has not.
PEERS: dict[str, Callable[[Pair, Path], Result]] = {
    "casync": casync,
    "casync, tuned": casync_tuned,
    "ostree static delta": ostree_delta,
    "ostree pull": ostree_pull,
    "xdelta3": xdelta,
    "zstd --patch-from": zstd_patch,
    "whole, zstd -19": whole,
}


def measure(peer: str, pair: Pair) -> Result:
    """One peer on one pair, in a directory that is removed afterwards."""
    work = PLACE / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        return PEERS[peer](pair, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def _commits(pair: Pair, work: Path) -> tuple[str, str]:
    place = f"/pairs/{work.name}/repo"
    in_room("ostree", f"--repo={place}", "init", "--mode=archive")
    found = []
    for name in (pair.old, pair.new):
        directory = Path("/pairs") / tree(name).relative_to(PLACE)
        in_room("ostree", f"--repo={place}", "commit", "-b", "image", f"--tree=dir={directory}", "--canonical-permissions")
        found.append((work / "repo/refs/heads/image").read_text().strip())
    return found[0], found[1]


def _objects(work: Path, commit: str) -> set[str]:
    """The names of a commit's objects, as their files have them."""
    words = ["ostree", f"--repo=/pairs/{work.name}/repo", "ls", "--recursive", "--checksum", commit]
    said = room().run(words, binds=[writable(PLACE, "/pairs")]).stdout
    names = {f"{commit}.commit"}
    for kind, digests in re.findall(r"^(.).*? ((?:[0-9a-f]{64} ?)+)/", said, re.MULTILINE):
        endings = (".dirtree", ".dirmeta") if kind == "d" else (".filez",)
        names.update(f"{digest}{ending}" for digest, ending in zip(digests.split(), endings, strict=True))
    return names
