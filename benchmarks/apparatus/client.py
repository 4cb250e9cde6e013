"""A host of the comparison of transports, as a process of its own, so that its processor time and memory can be told.

usage: client.py edge|blocks OLD NEW FILE-OR-INDEX SIZE SLOT REPOSITORY
"""

import json
import sys
from pathlib import Path

from obelisk.model.release import File
from obelisk.release.client import blocks, edge, hashtree, planning
from obelisk.release.client.planning import Have, Wanted
from obelisk.release.client.remote import DirectoryMirror, Mirrors


def main() -> None:
    way, old, new, given, size, place, repository = sys.argv[1:]
    slot, tree = Path(place), Path(f"{place}.tree")
    root_hash, old_hash = (Path(f"{name}.roothash").read_text().strip() for name in (new, old))
    old_tree = hashtree.parse(Path(f"{old}.verity").read_bytes(), old_hash)
    root_bytes = Path(new).stat().st_size
    figures: dict[str, int] = {}
    if way == "edge":
        source = edge.Old(Path(old), old_tree, Path(old).with_name("none"))
        edge.apply(Path(given), source, edge.New(slot, tree, root_hash, root_bytes, None), on_bytes=_ignore)
    else:
        remote = Mirrors([DirectoryMirror(Path(repository))])
        haves = (Have(old_tree, Path(old)),)
        plan = planning.plan(remote, Wanted(root_hash, root_bytes, File(given, int(size))), slot, haves, on_bytes=_ignore)
        blocks.carry_out(remote, plan, slot, tree, haves, on_bytes=_ignore)
        figures = {"bytes": plan.fetch_bytes + plan.planning_bytes, "requests": plan.requests + 2}
    print(json.dumps(figures))


def _ignore(_count: int) -> None:
    """Progress that nobody wants to see."""


if __name__ == "__main__":
    main()
