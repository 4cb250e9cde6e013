"""What a migration costs: ./bench migration, as root. An instance moves between two hosts, each a set of namespaces on this machine.

The guest writes memory and disk at known rates, its image has 400 MB. It moves as Obelisk moves it; then the same machine by two QEMUs
without libvirt (benchmarks/apparatus/alone.py); then by `virsh migrate --copy-storage-all`, for which the image's disk is the machine's
own. Bytes are those that the source's network card has sent: TLS, protocols and what was sent twice are among them. They are compared
with the pages of the guest that are not empty and the state that is allocated when it begins, and what the guest writes by its own rates
until the end. It stands still from its last instruction on one side to its first on the other.

With --migrations, that many to and fro instead, with a fault in every third; two running machines or none, something left behind, a wrong
byte in memory or on the disk, a connection that broke: each is a failure.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from apparatus.measure import ROOT, Goal, conclude, median, print_table, workplace

sys.path[:0] = [str(ROOT / "tests")]

from cluster import Cluster, Host, Watch, tree_of_hosts  # noqa: E402
from migrations import DISK_RATE, MEMORY_BYTES, MEMORY_RATE, NAME, QEMU, STATE_BYTES, Story, run  # noqa: E402

from apparatus.alone import Alone  # noqa: E402 - found by the path above
from obelisk.instance.hosts import POOL  # noqa: E402
from obelisk.instance.moving import QEMU_PAUSE_S, Moved  # noqa: E402
from obelisk.instance.remote import state_volume  # noqa: E402
from obelisk.system.files import hash_file  # noqa: E402

IMAGE_BYTES = 400_000_000
MIB = 1 << 20
_PAGE = 4096
_LISTEN_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="./bench migration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="take medians of N migrations (default: 9)")
    parser.add_argument("--migrations", type=int, default=0, metavar="N", help="only move N times, with faults, and judge")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides when faults strike (default: 1)")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this takes root rights")
    if arguments.migrations:
        return by_chance(arguments.migrations, arguments.seed)
    return against_others(arguments.rounds)


@contextmanager
def two_hosts(image_bytes: int) -> Iterator[Story]:
    with workplace("migration") as place:
        cluster = Cluster(place, tree_of_hosts(ROOT / ".cache/hosts"), room_bytes=1 << 30)
        try:
            with cluster.entered():
                story = Story(cluster, place, root_bytes=image_bytes)
                story.begin()
                yield story
        finally:
            cluster.close()


def by_chance(count: int, seed: int) -> int:
    with two_hosts(64 * MIB) as story:
        run(story, count, seed, lambda line: print(line, flush=True))
        story.end()
    tally = story.tally
    print(f"\n{count} migrations: {tally.arrived} arrived; failed by a fault: {tally.failed or 'none'}")
    print(f"{tally.answered} answers over {tally.connections} connections, {tally.broken} of which broke without the machine's death")
    for what, values in (("seconds", tally.seconds), ("stood still, s", tally.pauses_s), ("longest wait of a client, s", tally.gaps_s)):
        if values:
            print(f"{what:<28} median {statistics.median(values):.2f}, most {max(values):.2f}")
    for wrong in tally.wrong:
        print(f"WRONG: {wrong}")
    return 1 if tally.wrong else 0


def against_others(rounds: int) -> int:
    seen: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in ("obelisk", "QEMU alone", "virsh")}
    with two_hosts(IMAGE_BYTES) as story:
        for _round in range(rounds):
            ours(story, seen["obelisk"])
        story.end()
        alone(story, rounds, seen["QEMU alone"])
        ordinary(story, seen["virsh"])
    figures = {way: {what: median(values) for what, values in found.items()} for way, found in seen.items()}
    rows = []
    for way, each in figures.items():
        times = [f"{each[what]:.3f}" if what in each else "" for what in ("still_s", "wait_s")]
        rows.append((way, f"{each['bytes'] / MIB:.1f}", f"{each['seconds']:.1f}", *times))
    print_table(("medians", "MiB moved", "seconds", "stood still, s", "a client waited, s"), rows)
    for wrong in story.tally.wrong:
        print(f"WRONG: {wrong}")
    goals = [
        Goal("bytes moved, of memory written and state changed", figures["obelisk"]["ratio"], 1.1),
        Goal("bytes moved, of virsh migrate --copy-storage-all", figures["obelisk"]["bytes"] / figures["virsh"]["bytes"], 0.3),
        Goal("standstill, of QEMU alone", figures["obelisk"]["still_s"] / figures["QEMU alone"]["still_s"], 1.1),
        Goal("a client's wait, of QEMU alone", figures["obelisk"]["wait_s"] / figures["QEMU alone"]["wait_s"], 1.1),
        Goal("what must not be", len(story.tally.wrong), 0),
    ]
    return conclude("migration", {"rounds": rounds, "medians": figures, "all": seen}, goals)


def ours(story: Story, seen: dict[str, list[float]]) -> None:
    """Move it as Obelisk does."""
    source, target = story.here, story.other
    there = story.remote.hosts.get(target.name).daemon()
    written = memory_written(story) + state_changed(story)
    before = sent(source)
    with standstill(story, source, target) as still_s:
        outcome = story.migrate()
    if not isinstance(outcome, Moved):
        raise SystemExit(f"it did not move: {outcome}")
    moved = sent(source) - before
    lasted = there.completed(NAME)["time_elapsed"] / 1000
    written += int((MEMORY_RATE + DISK_RATE) * 1024 * lasted)
    seen["bytes"].append(moved)
    seen["written"].append(written)
    seen["ratio"].append(moved / written)
    seen["seconds"].append(outcome.seconds)
    seen["still_s"] += still_s
    seen["libvirt_says_s"] += [outcome.pause_s] if outcome.pause_s is not None else []
    seen["wait_s"].append(story.tally.gaps_s[-1])


def alone(story: Story, rounds: int, seen: dict[str, list[float]]) -> None:
    """Move the same machine with the monitors of QEMU."""
    hosts = list(story.cluster.hosts)
    machine = Alone(hosts, story.boot, memory_bytes=MEMORY_BYTES, state_bytes=STATE_BYTES, pause_s=QEMU_PAUSE_S)
    try:
        story.until_it_serves()
        with Watch() as watch:
            for number in range(rounds):
                source = hosts[number % 2]
                before, began, watch.longest_s = sent(source), time.monotonic(), 0.0
                seen["still_s"].append(machine.migrate())
                seen["seconds"].append(time.monotonic() - began)
                seen["bytes"].append(sent(source) - before)
                # The same look as at ours gives it the same time to settle.
                story.until_it_serves()
                answered = watch.answered
                while watch.answered == answered and not watch.wrong:
                    time.sleep(0.1)
                seen["wait_s"].append(watch.longest_s)
            if watch.wrong:
                raise SystemExit(f"QEMU alone: {watch.wrong}")
    finally:
        machine.close()


def ordinary(story: Story, seen: dict[str, list[float]]) -> None:
    """Move, once there and once back, a machine that has the image on a disk of its own, as virsh does with storage that is not shared."""
    story.create()
    source, target = story.here, story.other
    xml = ET.fromstring(story.remote.hosts.get(source.name).daemon().xml(NAME))  # noqa: S314 - of our own
    for disk in xml.findall("devices/disk"):
        for mark in disk.findall("readonly"):
            disk.remove(mark)
    daemon = story.remote.hosts.get(source.name).daemon()
    daemon.destroy(NAME)
    daemon.undefine(NAME)
    daemon.define(ET.tostring(xml, encoding="unicode"))
    daemon.start(NAME)
    story.until_it_serves()
    digests = {path: hash_file(path) for path in story.boot.files}
    image = digests.pop(story.boot.files[-1])
    story.remote.deliver(story.remote.hosts.get(target.name), {digest: path for path, digest in digests.items()})
    for host, other in ((source, target), (target, source)):
        for name in {image, state_volume(story.remote.placements.get(NAME).uuid)} & {*other.files()}:
            story.remote.hosts.get(other.name).daemon().delete_volume(POOL, name)
        there = story.remote.hosts.get(other.name)
        words = ["migrate", NAME, there.daemon_for_peers, "--migrateuri", there.data_for_peers, "--live", "--p2p", "--tls"]
        before = sent(host)
        with standstill(story, host, other) as still_s:
            began = time.monotonic()
            story.remote.hosts.get(host.name).daemon().run(*words, "--persistent", "--undefinesource", "--copy-storage-all", timeout_s=600)
            seen["seconds"].append(time.monotonic() - began)
        seen["bytes"].append(sent(host) - before)
        seen["still_s"] += still_s
        story.until_it_serves()


@contextmanager
def standstill(story: Story, source: Host, target: Host) -> Iterator[list[float]]:
    """For how long a machine stood still that moved in the block, by the times that the two QEMUs give to their events."""
    words = ["qemu-monitor-event", "--loop", "--event"]
    asked = []
    for host, event in ((source, "STOP"), (target, "RESUME")):
        uri = story.remote.hosts.get(host.name).daemon().uri
        asked.append(subprocess.Popen(["virsh", "--connect", uri, *words, event], stdout=subprocess.PIPE, text=True))
    time.sleep(_LISTEN_S)
    found: list[float] = []
    try:
        yield found
    finally:
        for process in asked:
            process.send_signal(signal.SIGINT)
        said = [process.communicate()[0] for process in asked]
    stopped, resumed = (re.findall(r"^event \w+ at ([\d.]+) for domain", text, re.MULTILINE) for text in said)
    found.append(float(resumed[-1]) - float(stopped[-1]))


def sent(host: Host) -> int:
    """Bytes that the host's card has sent to its peers."""
    return int(host.run("cat", "/sys/class/net/peer/statistics/tx_bytes"))


def memory_written(story: Story) -> int:
    """Bytes of the guest's memory in pages that are not empty."""
    said = story.remote.hosts.get(story.here.name).daemon().run("qemu-monitor-command", NAME, "--hmp", "info ramblock")
    address = next(
        int(word, 16) for line in said.splitlines() if "pc.ram" in line for word in reversed(line.split()) if len(word) > len("0x") + 8
    )
    (process,) = story.here.processes(QEMU)
    empty, count = bytes(_PAGE), 0
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - not a file to be opened as a whole
        memory.seek(address)
        for _piece in range(MEMORY_BYTES // MIB):
            piece = memory.read(MIB)
            count += sum(piece[at : at + _PAGE] != empty for at in range(0, MIB, _PAGE))
    return count * _PAGE


def state_changed(story: Story) -> int:
    """Bytes of the state's disk that are allocated."""
    daemon = story.remote.hosts.get(story.here.name).daemon()
    return daemon.volume_bytes(POOL, state_volume(story.remote.placements.get(NAME).uuid))[1]


if __name__ == "__main__":
    sys.exit(main())
