"""The part of ./demo in which a service goes from one image to the next under load: demo_service.py FIRST SECOND.

As root, in a network namespace of its own (`unshare --net`): there every port is free, and nothing of it stays. Clients ask for the page
all the time, each time on a connection of its own. The status is 1 when one of them got no page, or none was of the second image.
"""

import http.client
import os
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obelisk.system.namespace import remove_tree

ROOT = Path(__file__).parents[1]
PORT = 8080
CLIENTS = 4
_REST_S = 0.05
_LATE_S = 10
_AFTER_S = 3
_OF_SECOND = b"A second version."


def main(first: str, second: str) -> int:
    place = ROOT / ".cache/demo/service"
    os.environ |= {"OBELISK_SERVICES": str(place / "services"), "OBELISK_INSTANCES": str(place / "instances")}
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    remove_tree(place)
    place.mkdir(parents=True)
    try:
        size = ["--memory", "512M", "--state", "1G"]
        service("create", "shop", "--port", f"{PORT}:80", "--image", first, "--check", "/", "--health", "5min", *size)
        with asked() as answers:
            service("deploy", "shop", second)
            time.sleep(_AFTER_S)
            service("rollback", "shop")
            time.sleep(_AFTER_S)
            service("status", "shop")
    finally:
        with suppress(subprocess.CalledProcessError):
            service("retire", "shop")
        remove_tree(place)
    lost = answers.total() - answers["first"] - answers["second"]
    print(f"{CLIENTS} clients asked meanwhile: version 1 answered {answers['first']} times, version 2 {answers['second']}, nobody {lost}")
    for what in answers.keys() - {"first", "second"}:
        print(f"  {what}")
    return 1 if lost or not answers["second"] else 0


def service(*words: str) -> None:
    """Show a command about services, and do it."""
    print(f"$ obelisk service {shlex.join(words)}", flush=True)
    subprocess.run([ROOT / "obelisk", "service", *words], check=True, stdin=subprocess.DEVNULL)


@contextmanager
def asked() -> Iterator[Counter[str]]:
    """Clients ask during the block; afterwards, what they got how often."""
    answers: Counter[str] = Counter()
    ending = threading.Event()

    def client() -> None:
        while not ending.wait(_REST_S):
            answers[answer()] += 1

    clients = [threading.Thread(target=client) for _client in range(CLIENTS)]
    for each in clients:
        each.start()
    try:
        yield answers
    finally:
        ending.set()
        for each in clients:
            each.join()


def answer() -> str:
    """Whose page it is, or what is wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=_LATE_S)
    try:
        connection.request("GET", "/", headers={"Connection": "close"})
        said = connection.getresponse()
        page = said.read()
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()
    if said.status != http.HTTPStatus.OK:
        return f"status {said.status}"
    return "second" if _OF_SECOND in page else "first"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
