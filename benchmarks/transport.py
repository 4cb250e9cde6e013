"""What it costs to bring a new image to a host that has its predecessor: ours by a precomputed edge and block by block, and each peer.

The same pairs of images for all: see apparatus/pairs.py. Our host is a process of its own, whose slot holds the old image; edge and packs
lie in a directory. A peer is measured once and remembered (--again forgets); ours is measured each time.
"""

import argparse
import filecmp
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from apparatus import pairs, peers
from apparatus.measure import CACHE, Goal, conclude, print_table
from apparatus.pairs import PAIRS, Pair
from apparatus.peers import PEERS, Result, cost
from obelisk.cli.terminal import reporting
from obelisk.events import Sink, task
from obelisk.model.release import File
from obelisk.release import packing
from obelisk.release.edges import make_edge

_REMEMBERED = pairs.PLACE / "peers.json"
_CLIENT = Path(__file__).parent / "apparatus/client.py"
REPOSITORY = pairs.PLACE / "repository"
_MIB = 1 << 20
EDGE, BLOCKS = "obelisk, edge", "obelisk, any to any"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./bench transport", description=__doc__.splitlines()[0])
    parser.add_argument("--pair", action="append", choices=[pair.name for pair in PAIRS], help="only this pair (default: all)")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="only this peer (default: all)")
    parser.add_argument("--again", action="store_true", help="measure peers again that were measured before")
    arguments = parser.parse_args()
    wanted = [pair for pair in PAIRS if not arguments.pair or pair.name in arguments.pair]
    if arguments.again:
        _REMEMBERED.unlink(missing_ok=True)
    results: dict[str, dict[str, Result]] = {}
    with reporting(json_wanted=False) as sink:
        for pair in wanted:
            results[pair.name] = _ours(pair, sink)
            for peer in arguments.peer or PEERS:
                results[pair.name][peer] = _peer(peer, pair, sink)
    for name, found in results.items():
        _print(name, found)
    figures = {name: {way: result.to_json() for way, result in found.items()} for name, found in results.items()}
    return conclude("transport", {"pairs": figures, "left_out": "RAUC adaptive: needs device-mapper and nbd"}, tuple(_goals(results)))


def _ours(pair: Pair, sink: Sink) -> dict[str, Result]:
    """By edge, and block by block."""
    work = pairs.PLACE / "ours"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    old, new = pairs.opened(pair.old), pairs.opened(pair.new)
    try:
        with task(sink, "edge", f"{pair.name}: {EDGE}"), _timed() as making:
            make_edge(old, new, work / "edge", on_bytes=lambda _count: None)
        size = (work / "edge").stat().st_size
        taken = _take(pair, "edge", work, work / "edge", size)
        edge = replace(taken, size_bytes=size, requests=1, publisher_s=making[0], wall_s=making[1])
        with task(sink, "store", f"{pair.name}: what the repository has before"):
            known = (_earlier(pair.old),)
        with task(sink, "blocks", f"{pair.name}: {BLOCKS}"):
            with _timed() as storing:
                file = _store(pair.new, known)
            taken = _take(pair, "blocks", work, file.sha256, file.size_bytes)
        blocks = replace(taken, publisher_s=storing[0], wall_s=storing[1])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {EDGE: edge, BLOCKS: blocks}


def _earlier(name: str) -> packing.Known:
    """A release that was made before, and is kept between runs."""
    made = REPOSITORY / f"{name}.json"
    if not made.exists():
        made.parent.mkdir(exist_ok=True)
        made.write_text(json.dumps(_store(name, ()).to_json()))
    file = File.from_json(json.loads(made.read_text()))
    root, root_hash = pairs.image(name)
    return packing.read_index(REPOSITORY / file.path, root_hash, root.stat().st_size)


def _store(name: str, known: tuple[packing.Known, ...]) -> File:
    """Put a release into the repository; the file of its index."""
    root, root_hash = pairs.image(name)
    stored = packing.store_blocks(root, pairs.hash_tree(name, root_hash), known, REPOSITORY, on_bytes=lambda _count: None)
    for each in stored:
        if each is not None:
            target = REPOSITORY / each.file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            each.path.rename(target)
    return stored[0].file


def _take(pair: Pair, way: str, work: Path, given: Path | str, size: int) -> Result:
    """A host takes the new image into a slot that holds the old one, and has all of it afterwards."""
    old, new = pairs.image(pair.old)[0], pairs.image(pair.new)[0]
    slot = work / "slot"
    shutil.copyfile(old, slot)
    (work / "slot.tree").write_bytes(b"")
    said = work / "said"
    os.sync()
    used = cost([sys.executable, "-s", _CLIENT, way, old, new, given, str(size), slot, REPOSITORY], output=said)
    os.truncate(slot, new.stat().st_size)
    if not filecmp.cmp(slot, new, shallow=False) or not filecmp.cmp(work / "slot.tree", f"{new}.verity", shallow=False):
        message = f"{pair.name}: the slot does not hold the new image"
        raise AssertionError(message)
    figures = json.loads(said.read_text())
    return Result(figures.get("bytes", 0), figures.get("requests", 0), used.cpu_s, used.peak_bytes)


def _peer(peer: str, pair: Pair, sink: Sink) -> Result:
    remembered = json.loads(_REMEMBERED.read_text()) if _REMEMBERED.exists() else {}
    key = f"{pair.name}/{peer}"
    if key not in remembered:
        with task(sink, "peer", f"{pair.name}: {peer}"):
            remembered[key] = peers.measure(peer, pair).to_json()
        _REMEMBERED.write_text(json.dumps(remembered))
    return Result(**remembered[key])


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Processor and wall time of the enclosed block, there at its end."""
    found: list[float] = []
    began = time.process_time(), time.monotonic()
    yield found
    found += [time.process_time() - began[0], time.monotonic() - began[1]]


def _print(name: str, results: dict[str, Result]) -> None:
    print(f"\n{name}\n")
    ours = results[EDGE].size_bytes
    rows = [
        [
            way,
            f"{result.size_bytes:,}",
            f"{ours / result.size_bytes:.3f}",
            str(result.requests),
            f"{result.client_s:.1f} s" if result.client_s else "",
            f"{result.peak_bytes / _MIB:.0f} MiB" if result.peak_bytes else "",
            f"{result.publisher_s:.0f} s" if result.publisher_s else "",
        ]
        for way, result in results.items()
    ]
    print_table(("way", "bytes", "edge's ratio", "requests", "client, CPU", "client, peak", "publisher, CPU"), rows)


def _goals(results: dict[str, dict[str, Result]]) -> Iterator[Goal]:
    for name, found in results.items():
        edge, blocks = found[EDGE], found[BLOCKS]
        yield Goal(f"{name}: largest memory of the client", max(edge.peak_bytes, blocks.peak_bytes) / _MIB, 100, "MiB")
        yield Goal(f"{name}: requests for an edge", edge.requests, 20)
        rivals = [result.size_bytes for way, result in found.items() if way in PEERS]
        if rivals:
            yield Goal(f"{name}: edge, of the best peer", edge.size_bytes / min(rivals), 0.95 if name == "security" else 1.1)
        if "casync" in found:
            casync = found["casync"]
            best = min(result.size_bytes for way, result in found.items() if way.startswith("casync"))
            if name in _OF_CASYNC:
                yield Goal(f"{name}: edge, of casync", edge.size_bytes / best, _OF_CASYNC[name])
            yield Goal(f"{name}: any to any, of casync", blocks.size_bytes / best, 0.9)
            yield Goal(f"{name}: processor time of the client by an edge, of casync's", edge.client_s / casync.client_s, 1)
            yield Goal(f"{name}: processor time of the client any to any, of casync's", blocks.client_s / casync.client_s, 1)
        once = found.get("whole, zstd -19")
        if once:
            made = edge.publisher_s + blocks.publisher_s
            yield Goal(f"{name}: publisher's processor time, of compressing the image once", made / once.publisher_s, 2)


_OF_CASYNC = {"small": 0.1, "security": 0.3}


if __name__ == "__main__":
    CACHE.mkdir(parents=True, exist_ok=True)
    sys.exit(main())
