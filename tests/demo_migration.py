"""The part of ./demo in which an instance moves to another host while a connection to it is open: demo_migration.py IMAGE, as root.

Two hosts, each a set of namespaces with a libvirt daemon of its own (`cluster`), and a client that asks one page after the other over one
connection of HTTP, which it opens once. Its status is 1 when that connection broke.
"""

import http.client
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import GUEST, Cluster, tree_of_hosts

from obelisk.system.namespace import remove_tree

ROOT = Path(__file__).parents[1]
_BOOT_S = 300
_ASK_EACH_S = 0.2  # nginx ends a connection after a thousand answers


def main() -> int:
    place = ROOT / ".cache/demo/hosts"
    remove_tree(place)
    place.mkdir(parents=True)
    os.environ |= {"OBELISK_HOSTS": str(place / "hosts.json"), "OBELISK_INSTANCES": str(place / "instances")}
    print("Two hosts, made of namespaces; the first time, Debian's libvirt and QEMU are fetched for them", flush=True)
    cluster = Cluster(place, tree_of_hosts(ROOT / ".cache/hosts"), room_bytes=2 << 30)
    try:
        with cluster.entered(), addresses(cluster, place):
            for name, host in zip(("north", "south"), cluster.hosts, strict=True):
                words = ["--peer", host.peer, "--bridge", "br0", "--certificates", str(place / "client")]
                obelisk("hosts", "add", name, host.address, *words)
            obelisk("create", "web", "--image", sys.argv[1], "--host", "north", "--memory", "512M", "--state", "1G")
            wait_for_page()
            page = Page()
            obelisk("migrate", "web", "--to", "south", "--plan")
            obelisk("migrate", "web", "--to", "south")
            obelisk("show", "web")
            told = page.close()
            obelisk("retire", "web")
    finally:
        cluster.close()
        remove_tree(place)
    print(told)
    return 1 if page.broken else 0


def obelisk(*words: str) -> None:
    """Show a command and what it says."""
    print(f"$ obelisk instance {shlex.join(words)}", flush=True)
    ended = subprocess.run([ROOT / "obelisk", "instance", *words], check=False, stdin=subprocess.DEVNULL)
    if ended.returncode:
        sys.exit(ended.returncode)


@contextmanager
def addresses(cluster: Cluster, place: Path) -> Iterator[None]:
    """Give who asks on the hosts' network the guest's address."""
    settings = [f"start {GUEST}", f"end {GUEST}", "interface lan", "option subnet 255.255.255.0"]
    settings += [f"lease_file {place}/leases", f"pidfile {place}/addresses.pid"]
    (place / "addresses").write_text("\n".join(settings) + "\n")
    (place / "leases").touch()
    words = [str(cluster.room.tree / "usr/bin/busybox"), "udhcpd", "-f", str(place / "addresses")]
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.kill()
        server.wait()


def wait_for_page() -> None:
    """Wait until the instance gives its page."""
    began = time.monotonic()
    while True:
        connection = http.client.HTTPConnection(GUEST, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == http.client.OK:
                print(f"it gives its page after {time.monotonic() - began:.0f} s", flush=True)
                return
        except (OSError, http.client.HTTPException):
            if time.monotonic() - began > _BOOT_S:
                raise
            time.sleep(0.5)
        finally:
            connection.close()


class Page:
    """A connection that is opened once, and over which the page is asked for again and again. `broken` says how it ended."""

    def __init__(self) -> None:
        self.broken = ""
        self._answered, self._longest_s = 0, 0.0
        self._end = threading.Event()
        self._connection = http.client.HTTPConnection(GUEST, timeout=60)
        self._connection.connect()
        self._connection.auto_open = False  # it is not to open another one by itself
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            while not self._end.wait(_ASK_EACH_S):
                began = time.monotonic()
                self._connection.request("GET", "/")
                answer = self._connection.getresponse()
                if answer.status != http.client.OK or not answer.read():
                    self.broken = f"answer {answer.status}"
                    return
                self._longest_s = max(self._longest_s, time.monotonic() - began)
                self._answered += 1
        except (OSError, http.client.HTTPException) as error:
            self.broken = str(error) or type(error).__name__

    def close(self) -> str:
        """End it; what came of it."""
        self._end.set()
        self._thread.join()
        self._connection.close()
        waited = f"{self._answered} pages came over the one connection, and the longest wait was {self._longest_s:.2f} s"
        return f"the connection broke after {self._answered} pages: {self.broken}" if self.broken else waited


if __name__ == "__main__":
    sys.exit(main())
