"""Other ways to bring an image to a host that has its predecessor: each makes what it publishes, and then a client takes it.

Bytes and requests are those that a client has to fetch; its processor time and memory are those of the peer's own programs.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from apparatus.pairs import Pair, image, tree

_BIG_WINDOW = 31
_COST = Path(__file__).with_name("cost.py")


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


def cost(words: Sequence[str | Path], *, output: Path | None = None) -> Cost:
    """Run a program to its end; what it says goes into a file, or nowhere.

    Raises:
        CalledProcessError: it failed; what it complained about was printed.
    """
    with tempfile.NamedTemporaryFile(prefix="obelisk-bench-") as figures, (output or Path(os.devnull)).open("wb") as said:
        argv = [sys.executable, "-IS", str(_COST), figures.name, *map(str, words)]
        done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.PIPE)
        if done.returncode:
            sys.stderr.buffer.write(done.stderr)
            done.check_returncode()
        return Cost(**json.load(figures))


def peer(program: str, *words: str | Path, output: Path | None = None) -> Cost:
    """Run a peer's program with the libraries that it came with, and without a wrapper that would be measured too."""
    top = tree("tools")
    library = top / "usr/lib/x86_64-linux-gnu"
    return cost([top / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", library, top / "usr/bin" / program, *words], output=output)


def casync(pair: Pair, work: Path, chunk: int = 65536) -> Result:
    """A seed and a store of chunks, each fetched by itself."""
    old, new = image(pair.old)[0], image(pair.new)[0]
    size = f"--chunk-size={chunk}"
    peer("casync", "make", size, f"--store={work}/old.castr", work / "old.caibx", old)
    made = peer("casync", "make", size, f"--store={work}/new.castr", work / "new.caibx", new)
    before, after = _sizes(work / "old.castr"), _sizes(work / "new.castr")
    missing = [length for name, length in after.items() if name not in before]
    client = peer("casync", "extract", f"--store={work}/new.castr", f"--seed={old}", work / "new.caibx", work / "out")
    total = sum(missing) + (work / "new.caibx").stat().st_size
    return Result(total, len(missing) + 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def casync_tuned(pair: Pair, work: Path) -> Result:
    """With chunks of a quarter of its default, which finds more that is equal."""
    return casync(pair, work, 16384)


def ostree_delta(pair: Pair, work: Path) -> Result:
    """A static delta in one file with all that is new, and bsdiff for all but the largest files."""
    old, new = _commits(pair, work)
    repo, client_repo, file = f"--repo={work}/repo", f"--repo={work}/client", work / "delta"
    words = (f"--from={old}", f"--to={new}", "--max-bsdiff-size=64", "--min-fallback-size=0", "--inline", f"--filename={file}")
    made = peer("ostree", repo, "static-delta", "generate", *words)
    peer("ostree", client_repo, "init", "--mode=bare-user")
    peer("ostree", client_repo, "pull-local", work / "repo", old)
    client = peer("ostree", client_repo, "static-delta", "apply-offline", file)
    return Result(file.stat().st_size, 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def ostree_pull(pair: Pair, work: Path) -> Result:
    """The objects that the client has not, one by one."""
    old, new = _commits(pair, work)
    before = _objects(work, old)
    after = _objects(work, new)
    sizes = _sizes(work / "repo/objects")
    missing = [sizes[name[2:]] for name in after - before if name[2:] in sizes]
    return Result(sum(missing), len(missing))


def zstd_patch(pair: Pair, work: Path) -> Result:
    """Zstd with the old image as its dictionary."""
    old, new = image(pair.old)[0], image(pair.new)[0]
    window, given = f"--long={_BIG_WINDOW}", f"--patch-from={old}"
    made = peer("zstd", "-q", "-f", "-T2", "-19", window, given, new, "-o", work / "patch")
    client = peer("zstd", "-q", "-f", "-d", window, given, work / "patch", "-o", work / "out")
    return Result((work / "patch").stat().st_size, 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def xdelta(pair: Pair, work: Path) -> Result:
    """xdelta3 at its best, with a window as large as the image."""
    old, new = image(pair.old)[0], image(pair.new)[0]
    made = peer("xdelta3", "-f", "-9", "-S", "lzma", "-B", str(1 << 30), "-e", "-s", old, new, work / "patch")
    client = peer("xdelta3", "-f", "-B", str(1 << 30), "-d", "-s", old, work / "patch", work / "out")
    return Result((work / "patch").stat().st_size, 1, client.cpu_s, client.peak_bytes, made.cpu_s, made.wall_s)


def whole(pair: Pair, work: Path) -> Result:
    """The whole image, as systemd-sysupdate fetches it, compressed once."""
    made = peer("zstd", "-q", "-f", "-T2", "-19", image(pair.new)[0], "-o", work / "whole")
    client = peer("zstd", "-q", "-f", "-d", work / "whole", "-o", work / "out")
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
    """One peer on one pair, in memory, so that nobody waits for the disk."""
    with tempfile.TemporaryDirectory(prefix="obelisk-bench-", dir="/dev/shm") as work:
        return PEERS[peer](pair, Path(work))


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def _commits(pair: Pair, work: Path) -> tuple[str, str]:
    repo = f"--repo={work}/repo"
    peer("ostree", repo, "init", "--mode=archive")
    peer("ostree", repo, "config", "set", "core.fsync", "false")
    found = []
    for name in (pair.old, pair.new):
        peer("ostree", repo, "commit", "-b", "image", f"--tree=dir={tree(name)}", "--canonical-permissions")
        found.append((work / "repo/refs/heads/image").read_text().strip())
    return found[0], found[1]


def _objects(work: Path, commit: str) -> set[str]:
    """The names of a commit's objects, as their files have them."""
    said = work / "said"
    peer("ostree", f"--repo={work}/repo", "ls", "--recursive", "--checksum", commit, output=said)
    names = {f"{commit}.commit"}
    for kind, digests in re.findall(r"^(.)\S+ .*? ((?:[0-9a-f]{64} ?)+)/", said.read_text(), re.MULTILINE):
        endings = (".dirtree", ".dirmeta") if kind == "d" else (".filez",)
        names.update(f"{digest}{ending}" for digest, ending in zip(digests.split(), endings, strict=True))
    return names
