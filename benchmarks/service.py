"""What a deploy costs those who use the service meanwhile: ./bench service, as root.

A machine, a client and the instances are network namespaces, instances small HTTP servers (tests/home.py), so what is measured is how
connections are led and what a deploy does on the machine, not how long a VM boots.

First, requests come at a fixed rate, each on a connection of its own: without a deploy; while nothing but the lead changes, ten times a
second; while instances are made and removed, one after the other, that no service has to do with; and while iterations are made, proven,
take over and are removed again; in turns. A request counts from the moment that it was due, so what waits behind another one counts too.
Then wrk asks as fast as it can through deploys and rollbacks.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from apparatus.measure import ROOT, Goal, conclude, median, print_table, workplace

sys.path[:0] = [str(ROOT / "tests")]

from homes import MACHINE, PORT, SHOP, Street, inside, street, within  # noqa: E402 - found by the path above

ROUNDS, ROUND_S, RATE = 5, 10, 150
REPLACEMENTS = 20
KEEP_S = 30
LIMIT_P99 = 1.2
_LATE_S = 10.0


def main() -> int:
    if os.geteuid() != 0:
        sys.exit("this takes root rights")
    if sys.argv[1:2] == ["load"]:
        asyncio.run(load(int(sys.argv[2]), int(sys.argv[3])))
        return 0
    with workplace("service") as top, street(top) as place:
        place.ok("create", terms=replace(SHOP, keep_s=KEEP_S))
        place.ok("deploy", "v0")
        ways: dict[str, Callable[[Street, threading.Event], int]] = {
            "nothing": rest,
            "leading": lead,
            "instances": come_and_go,
            "deploys": deploy,
        }
        times: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        failed = 0
        for _round in range(ROUNDS):
            for way, act in ways.items():
                found = measured(place, act)
                failed += int(found["failed"])
                times[way].append(found)
        answered, lost = full_load(place)
    figures = {way: {key: median([each[key] for each in found]) for key in ("p50", "p99", "acts")} for way, found in times.items()}
    rows = [(way, f"{each['acts']:.0f}", f"{each['p50']:.2f}", f"{each['p99']:.2f}") for way, each in figures.items()]
    print_table(("meanwhile", "times", "p50, ms", "p99, ms"), rows)
    print(f"\nat full load, through {REPLACEMENTS} deploys and rollbacks: {answered} requests answered, {lost} failed")
    goals = [
        Goal("failed requests", failed + lost, 0),
        Goal("p99 through changes of the lead, of that without", figures["leading"]["p99"] / figures["nothing"]["p99"], LIMIT_P99),
        Goal("p99 through deploys, of that without", figures["deploys"]["p99"] / figures["nothing"]["p99"], LIMIT_P99),
        Goal("the same, of that while instances come and go", figures["deploys"]["p99"] / figures["instances"]["p99"], LIMIT_P99),
    ]
    more = {"rate": RATE, "round_s": ROUND_S, "full_load": {"answered": answered, "failed": lost}, "milliseconds": figures}
    return conclude("service", more, goals)


def measured(place: Street, act: Callable[[Street, threading.Event], int]) -> dict[str, float]:
    """Latencies, in milliseconds, while something is done again and again; how often that was, and how many requests failed."""
    ending = threading.Event()
    acts: list[int] = []
    doing = threading.Thread(target=lambda: acts.append(act(place, ending)))
    words = [*within(place.client), sys.executable, "-s", __file__, "load", str(ROUND_S), str(RATE)]
    # Whoever asks stands for somebody elsewhere: in a session of its own, it does not share its part of the processors (autogroups) with
    # what deploys.
    asked = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    doing.start()
    said = asked.communicate()[0]
    ending.set()
    doing.join()
    place.ok("tend")
    found = json.loads(said)
    taken = sorted(found["ms"])
    return {
        "p50": taken[len(taken) // 2],
        "p99": taken[len(taken) * 99 // 100],
        "failed": found["failed"],
        "acts": acts[0],
    }


def rest(_place: Street, ending: threading.Event) -> int:
    ending.wait()
    return 0


def lead(place: Street, ending: threading.Event) -> int:
    """Change where new connections are led, from a place to itself: all that the kernel does for it is done."""
    script = f"{place.top}/lead.nft"
    elements = ", ".join(f"{index} : {address} . 80" for index, address in enumerate([current(place)] * 100))
    Path(script).write_text(f"flush map ip obelisk_service_shop homes\nadd element ip obelisk_service_shop homes {{ {elements} }}\n")
    count = 0
    while not ending.wait(0.1):
        inside(place.machine, "nft", "-f", script)
        count += 1
    return count


def come_and_go(place: Street, ending: threading.Event) -> int:
    """What any start and end of an instance costs its neighbours: processes and namespaces on the same processors."""
    return again(place, ending, "pass", "passing-")


def deploy(place: Street, ending: threading.Event) -> int:
    return again(place, ending, "deploy", "v")


def again(place: Street, ending: threading.Event, command: str, prefix: str) -> int:
    """Do it, each time with another name; how often that was."""
    count = 0
    while not ending.is_set():
        count += 1
        place.ok(command, f"{prefix}{count}")
        ending.wait(1.0)
    return count


def current(place: Street) -> str:
    applied = place.services().look("shop").applied
    return applied[0].address.partition(":")[0] if applied else ""


def full_load(place: Street) -> tuple[int, int]:
    """Requests answered, and failed, through deploys and rollbacks."""
    with wrk(place) as said:
        for number in range(1, REPLACEMENTS + 1):
            place.ok(*(["rollback"] if number % 4 == 0 else ["deploy", f"w{number}"]))
    answered = re.search(r"(\d+) requests in", said[0])
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said[0])
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said[0])
    lost = sum(map(int, errors.groups())) if errors else 0
    return int(answered[1]) if answered else 0, lost + (int(bad[1]) if bad else 0)


@contextmanager
def wrk(place: Street) -> Iterator[list[str]]:
    words = ["wrk", "--threads", "1", "--connections", "16", "--duration", "600s", "--timeout", "10s", "--header", "Connection: close"]
    process = subprocess.Popen([*within(place.client), *words, f"http://{MACHINE}:{PORT}/"], stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    try:
        yield said
    finally:
        process.send_signal(2)
        said.append(process.communicate()[0])


async def load(seconds: int, rate: int) -> None:
    """Ask so many times a second; print how long each answer took, and how many did not come."""
    taken: list[float] = []
    failed = 0

    async def ask(due: float) -> None:
        nonlocal failed
        try:
            async with asyncio.timeout(_LATE_S):
                reader, writer = await asyncio.open_connection(MACHINE, PORT)
                writer.write(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
            failed += not answer.startswith(b"HTTP/1.1 200 ")
        except OSError:
            failed += 1
        taken.append(1000 * (time.monotonic() - due))

    began = time.monotonic()
    asked = []
    for number in range(seconds * rate):
        due = began + number / rate
        await asyncio.sleep(max(due - time.monotonic(), 0))
        asked.append(asyncio.ensure_future(ask(due)))
    await asyncio.gather(*asked)
    print(json.dumps({"ms": taken, "failed": failed}))


if __name__ == "__main__":
    sys.exit(main())
