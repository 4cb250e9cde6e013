"""Moves an instance between two hosts of this machine, to and fro, with a fault in every third migration, and counts what must not be.

Two running machines or none, something left behind, a wrong byte in memory or on the disk, a connection that broke: each is a failure. The
migrations without a fault also tell how long it takes, how long QEMU says that the machine stood still, and the longest time for which a
client waited for an answer meanwhile.
"""

import argparse
import statistics
import sys
from pathlib import Path

from apparatus.measure import workplace

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from cluster import Cluster, tree_of_hosts  # noqa: E402 - found by the path above
from migrations import Story, run  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="./bench migration", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50, metavar="N", help="how many migrations (default: 50)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides when faults strike (default: 1)")
    arguments = parser.parse_args()
    with workplace("migration") as place:
        cluster = Cluster(place, tree_of_hosts(Path(__file__).parents[1] / ".cache/hosts"))
        try:
            with cluster.entered():
                story = Story(cluster, place)
                story.begin()
                run(story, arguments.count, arguments.seed, lambda line: print(line, flush=True))
                story.end()
        finally:
            cluster.close()
    tally = story.tally
    print(f"\n{arguments.count} migrations: {tally.arrived} arrived; the others failed by a fault: {tally.failed or 'none'}")
    print(f"{tally.answered} answers over {tally.connections} connections, {tally.broken} of which broke without the machine's death")
    for what, values in (("seconds", tally.seconds), ("QEMU's downtime, s", tally.pauses_s), ("longest wait of a client, s", tally.gaps_s)):
        if values:
            print(f"{what:<28} median {statistics.median(values):.2f}, most {max(values):.2f}")
    for wrong in tally.wrong:
        print(f"WRONG: {wrong}")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
