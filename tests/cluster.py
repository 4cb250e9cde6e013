"""Several hosts on this machine, each with a libvirt daemon of its own; and a guest so small that moving it takes seconds.

A host is a room in which the tree of Debian's libvirt and QEMU is the root: network, mounts, processes and host name of its own, and its
own /etc, /var and /run. Its daemon is started again whenever it ends. All of a host goes when its room does.

    client      10.77.0.9    the bridge that joins everything: the place from which tests look
    host N      10.77.0.N    a bridge with the guests, whose one port to the outside leads to the client's
                10.78.0.N    a network of the hosts alone, by which guests move, and which can be cut
    guest       10.77.0.50   HTTP on port 80 (/cgi-bin/check: what it found of its memory and disk; /cgi-bin/rate?KIB), an echo on port 7

The guest is busybox on Debian's cloud kernel. Words of its command line: `memory=MIB` is filled and read again for ever, `memory_rate`
(at most 16384, in steps of 256; /cgi-bin/rate changes it) and `disk_rate` (KiB a second) are written.
"""

import ctypes
import io
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from obelisk.build.graph import execute
from obelisk.build.inside.initrd import write_archive
from obelisk.build.locking import newest
from obelisk.build.trees import tools_step
from obelisk.events import silent
from obelisk.store import Store
from obelisk.system.bubblewrap import Room, writable

PACKAGES = (
    "busybox-static",
    "iproute2",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-network",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-driver-storage",
    "linux-image-cloud-amd64",
    "openssl",
    "procps",
    "qemu-system-x86",
    "qemu-utils",
)
CLIENT = "10.77.0.9"
GUEST = "10.77.0.50"
_PEER_CLIENT = "10.78.0.9"
_VXLAN_BYTES = 50  # what it adds to each frame
_CLONE_NEWNET = 0x40000000
_UP_S = 30

# The tree's own /etc is read-only, and lacks what is this host's.
_HOST = """\
mkdir -p /sys /var/log/libvirt/qemu /var/lib/libvirt/qemu /var/lib/libvirt/obelisk /var/cache/libvirt /run/libvirt /run/lock
mount -t sysfs sysfs /sys
mount -t tmpfs -o size="$2" instances /var/lib/libvirt/obelisk
cp -a /etc /tmp/etc
cp -a /host/etc/. /tmp/etc
mount --bind /tmp/etc /etc
hostname "$1"
ip link set lo up
touch /host/ready
while :; do
    libvirtd --listen >>/host/libvirtd.log 2>&1 || :
    sleep 0.2
done
"""
_LIBVIRTD = """\
listen_tls = 1
listen_tcp = 0
auth_tls = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "{uuid}"
keepalive_interval = 2
keepalive_count = 3
"""
_QEMU = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
clear_emulator_capabilities = 0
migrate_tls_force = 1
default_tls_x509_verify = 1
keepalive_interval = 2
keepalive_count = 3
"""


def tree_of_hosts(place: Path) -> Path:
    """The tree of the hosts, below `place`, made when it is not there yet."""
    store = Store.open(place)
    tree = execute((tools_step(newest(PACKAGES, store, silent), store, silent),), store, silent)["tools"] / "tree"
    store.close()
    return tree


class Host:
    """One host, as long as its room runs."""

    def __init__(self, number: int, cluster: "Cluster") -> None:
        self.number = number
        self.name = f"host{number}"
        self.address = f"10.77.0.{number}"
        self.peer = f"10.78.0.{number}"
        self.place = cluster.place / self.name
        (self.place / "var").mkdir(parents=True)
        (self.place / "etc/libvirt").mkdir(parents=True)
        (self.place / "etc/libvirt/libvirtd.conf").write_text(_LIBVIRTD.format(uuid=f"00000000-0000-4000-8000-{number:012}"))
        (self.place / "etc/libvirt/qemu.conf").write_text(_QEMU)
        cluster.authority.write(self.place / "etc/pki", self.name, (self.address, self.peer))
        binds = [writable(self.place, "/host"), writable(self.place / "var", "/var")]
        command = ["sh", "-eu", "-c", _HOST, "host", self.name, str(cluster.room_bytes)]
        words = cluster.room.argv(command, binds=binds, devices=["/dev/net/tun", "/dev/userfaultfd"])
        self._room = subprocess.Popen(words, stdin=subprocess.DEVNULL, process_group=0)
        _until((self.place / "ready").exists, f"{self.name} did not start")
        (self.init,) = _children(self._room.pid)

    def processes(self, program: str) -> list[int]:
        """The processes of this host that run `program`."""
        mine = Path(f"/proc/{self.init}/ns/pid").stat().st_ino
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "ns/pid").stat().st_ino == mine and (path / "comm").read_text().strip() == program[:15]:
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def kill(self, program: str) -> int:
        """Kill these processes at once; how many there were."""
        found = self.processes(program)
        for process in found:
            os.kill(process, signal.SIGKILL)
        return len(found)

    def fill(self) -> None:
        """Leave no room where instances are."""
        self.run("sh", "-c", "cat /dev/zero >/var/lib/libvirt/obelisk/.full 2>/dev/null || :")

    def unfill(self) -> None:
        """Undo `fill`."""
        self.run("rm", "-f", "/var/lib/libvirt/obelisk/.full")

    def files(self) -> list[str]:
        """The names of what is where instances are."""
        return self.run("ls", "-A", "/var/lib/libvirt/obelisk").split()

    def run(self, *words: str) -> str:
        """What a command says on this host."""
        return subprocess.run(self.inside(*words), check=True, capture_output=True, text=True).stdout

    def inside(self, *words: str) -> list[str]:
        """The argument list of a command on this host."""
        return ["nsenter", "--target", str(self.init), "--mount", "--net", "--pid", "--uts", "--ipc", "--root", "--", *words]

    def close(self) -> None:
        """End everything of it."""
        self._room.kill()
        self._room.wait()


class Cluster:
    """Hosts that reach each other, and the bridge between them. Each has `room_bytes` for instances, in memory."""

    def __init__(self, place: Path, tree: Path, hosts: int = 2, *, room_bytes: int = 600 << 20) -> None:
        self.place = place
        self.room = Room(tree)
        self.room_bytes = room_bytes
        self.authority = Authority(place / "authority", self.room)
        self.hosts: list[Host] = []
        self._switch = subprocess.Popen(
            ["unshare", "--net", "--", "setpriv", "--pdeathsig", "KILL", "--", "sleep", "infinity"], stdin=subprocess.DEVNULL
        )
        own = Path("/proc/self/ns/net").readlink()
        self.network = Path(f"/proc/{self._switch.pid}/ns/net")
        _until(lambda: self.network.readlink() != own, "the client's network did not come up")
        self._ip("link", "set", "lo", "up")
        for bridge in ("lan", "peers"):
            self._ip("link", "add", bridge, "type", "bridge")
            self._ip("link", "set", bridge, "up")
        self._ip("address", "add", f"{CLIENT}/24", "dev", "lan")
        for number in range(1, hosts + 1):
            host = Host(number, self)
            self.hosts.append(host)
            self._join(host)
        self.authority.write(place / "client", "client", ())

    def _join(self, host: Host) -> None:
        for port, bridge in (("lan", "lan"), ("peer", "peers")):
            self._ip("link", "add", f"{port}{host.number}", "type", "veth", "peer", "name", port, "netns", str(host.init))
            self._ip("link", "set", f"{port}{host.number}", "master", bridge, "up")
        for words in (
            "link add br0 type bridge",
            "link set br0 up",
            "link set lan master br0",
            "link set lan up",
            f"address add {host.address}/24 dev br0",
            "link set peer up",
            f"address add {host.peer}/24 dev peer",
        ):
            host.run("ip", *words.split())

    def cut(self, host: Host, *, cut: bool = True) -> None:
        """Cut the host from its peers, or join it again."""
        self._ip("link", "set", f"peer{host.number}", "down" if cut else "up")

    @contextmanager
    def by_vxlan(self) -> Iterator[None]:
        """Have no switch for guests, but a VXLAN of all hosts and the client over the hosts' own network, as docs/migration.md tells."""
        add = "link add vx0 type vxlan id 7 dstport 4789 local {} group 239.0.0.7 dev {}"
        frame = str(1500 + _VXLAN_BYTES)
        self._ip("address", "add", f"{_PEER_CLIENT}/24", "dev", "peers")
        try:
            for host in self.hosts:
                self._ip("link", "set", f"peer{host.number}", "mtu", frame)
                host.run("ip", "link", "set", "peer", "mtu", frame)
                host.run("ip", *add.format(host.peer, "peer").split())
                host.run("ip", "link", "set", "vx0", "master", "br0", "up")
                self._ip("link", "set", f"lan{host.number}", "down")
            self._ip(*add.format(_PEER_CLIENT, "peers").split())
            self._ip("link", "set", "vx0", "master", "lan", "up")
            yield
        finally:
            self._ip("address", "delete", f"{_PEER_CLIENT}/24", "dev", "peers")
            self._ip("link", "delete", "vx0")
            for host in self.hosts:
                host.run("ip", "link", "delete", "vx0")
                self._ip("link", "set", f"lan{host.number}", "up")

    def slow_down(self, host: Host, rate: str) -> None:
        """Have what the host sends to its peers go at `rate`, such as 40mbit."""
        host.run("tc", "qdisc", "replace", "dev", "peer", "root", "tbf", "rate", rate, "burst", "256k", "latency", "200ms")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the client's network: this thread, and the threads and processes that it starts."""
        with Path("/proc/thread-self/ns/net").open() as own, self.network.open() as other:
            _set_namespace(other.fileno())
            try:
                yield
            finally:
                _set_namespace(own.fileno())

    def _ip(self, *words: str) -> None:
        subprocess.run(["nsenter", f"--net={self.network}", "ip", *words], check=True)

    def close(self) -> None:
        """End everything."""
        for host in self.hosts:
            host.close()
        self._switch.kill()
        self._switch.wait()


class Authority:
    """Makes certificates in the way that docs/migration.md tells operators to make them."""

    def __init__(self, place: Path, room: Room) -> None:
        self.place = place
        self._room = room
        place.mkdir(parents=True)
        self._openssl("req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=authority -keyout /pki/ca-key.pem -out /pki/ca-cert.pem")

    def write(self, place: Path, name: str, addresses: Sequence[str]) -> None:
        """Certificates for that name and these addresses, where libvirt (`CA`, `libvirt`) and QEMU (`qemu`) look for them below `place`."""
        names = ",".join((f"DNS:{name}", *(f"IP:{address}" for address in addresses)))
        (self.place / "extensions").write_text(
            f"basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
            f"extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={names}\n"
        )
        self._openssl(f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout /pki/key.pem -out /pki/request.pem")
        self._openssl(
            "x509 -req -in /pki/request.pem -CA /pki/ca-cert.pem -CAkey /pki/ca-key.pem -CAcreateserial -days 30 "
            "-extfile /pki/extensions -out /pki/cert.pem"
        )
        for target, source in {
            "CA/cacert.pem": "ca-cert.pem",
            "libvirt/servercert.pem": "cert.pem",
            "libvirt/private/serverkey.pem": "key.pem",
            "libvirt/clientcert.pem": "cert.pem",
            "libvirt/private/clientkey.pem": "key.pem",
            "qemu/ca-cert.pem": "ca-cert.pem",
            "qemu/server-cert.pem": "cert.pem",
            "qemu/server-key.pem": "key.pem",
            "qemu/client-cert.pem": "cert.pem",
            "qemu/client-key.pem": "key.pem",
            # One directory with all of it, as `pkipath` names it.
            "cacert.pem": "ca-cert.pem",
            "clientcert.pem": "cert.pem",
            "clientkey.pem": "key.pem",
        }.items():
            (place / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.place / source, place / target)

    def _openssl(self, words: str) -> None:
        self._room.run(["openssl", *words.split()], binds=[writable(self.place, "/pki")])


_GUEST = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /tmp /run
mount -t tmpfs -o size=90% tmp /tmp
for module in failover net_failover virtio_net virtio_blk; do insmod /modules/$module.ko; done
memory=16 memory_rate=0 disk_rate=0 address=10.77.0.50
for word in $(cat /proc/cmdline); do case $word in memory=*|memory_rate=*|disk_rate=*|address=*) eval "$word" ;; esac; done
ip link set lo up
ip address add $address/24 dev eth0
ip link set eth0 up
echo "$address" >/www/index.html
dd if=/dev/urandom of=/tmp/kept bs=1M count=$memory 2>/dev/null
sha256sum </tmp/kept >/run/sum
echo 0 >/run/looks
(while :; do
    if sha256sum </tmp/kept | cmp -s - /run/sum; then read -r n </run/looks; echo $((n + 1)) >/run/looks; else echo memory >>/run/wrong; fi
    sleep 3
done) &
disk=
for name in /sys/block/vd*; do [ "$(cat $name/ro)" = 1 ] || disk=/dev/${name##*/}; done
# Four times a second the next part of 16 MiB, as much as the rate says.
echo "$memory_rate" >/run/rate
(dd if=/dev/urandom of=/tmp/piece bs=1M count=17 2>/dev/null
at=0 shift=0
while :; do
    read -r rate </run/rate
    count=$((rate / 256))
    # What is written differs from what was there: only that is seen to be written.
    [ $((at + count)) -le 256 ] || at=0 shift=$((16 - shift))
    dd if=/tmp/piece of=/tmp/dirty bs=64k skip=$((at + shift)) seek=$at count=$count conv=notrunc 2>/dev/null
    at=$((at + count))
    usleep 250000
done) &
if [ -n "$disk" ]; then
    # Each second, one piece more, whose content is its number, read again from the disk; after the last comes the first.
    (piece=0
    [ "$(dd if=$disk bs=4k count=1 2>/dev/null | head -c 7)" != OBELISK ] || echo found >/run/found
    while [ "$disk_rate" -gt 0 ]; do
        at=$((1 + piece % 64))
        yes "OBELISK $piece" | dd of=$disk bs=1k seek=$((at * disk_rate)) count=$disk_rate iflag=fullblock conv=notrunc,fsync 2>/dev/null
        yes "OBELISK $piece" | head -c $((disk_rate * 1024)) >/run/expected
        echo 1 >/proc/sys/vm/drop_caches
        dd if=$disk bs=1k skip=$((at * disk_rate)) count=$disk_rate 2>/dev/null | cmp -s - /run/expected || echo "disk $piece" >>/run/wrong
        yes "OBELISK $piece" | dd of=$disk bs=4k count=1 iflag=fullblock conv=notrunc,fsync 2>/dev/null
        echo $piece >/run/piece
        piece=$((piece + 1))
        sleep 1
    done) &
fi
httpd -p 80 -h /www
nc -ll -p 7 -e cat &
echo "guest: ready" >/dev/console
while :; do sleep 60; done
"""
_CHECK = """\
#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "looks $(cat /run/looks) pieces $(cat /run/piece 2>/dev/null) found $(cat /run/found 2>/dev/null) wrong $(cat /run/wrong 2>/dev/null)"
cat /proc/uptime
"""
_RATE = """\
#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "$QUERY_STRING" >/run/rate
cat /run/rate
"""


@dataclass(frozen=True, slots=True)
class Guest:
    """The files of the guest."""

    kernel: Path
    initrd: Path


def guest(tree: Path, place: Path) -> Guest:
    """The guest, made of what `tree` has."""
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    modules = {}
    for name in ("failover", "net_failover", "virtio_net", "virtio_blk"):
        (packed,) = (tree / "usr/lib/modules" / version).rglob(f"{name}.ko.xz")
        modules[f"modules/{name}.ko"] = subprocess.run(["xz", "-dc", packed], check=True, capture_output=True).stdout
    archive = io.BytesIO()
    programs = {"init": _GUEST, "www/cgi-bin/check": _CHECK, "www/cgi-bin/rate": _RATE}
    for name, text in programs.items():
        (place / Path(name).name).write_text(text)
        (place / Path(name).name).chmod(0o755)
    files = {name: place / Path(name).name for name in programs}
    write_archive(archive, files | {"bin/busybox": tree / "usr/bin/busybox"}, {"bin/sh": "busybox", **modules})
    initrd = place / "guest.initrd"
    initrd.write_bytes(archive.getvalue())
    return Guest(kernel, initrd)


class Watch:
    """A connection to the guest that is held open: each number that is sent has to come back, in order. From the client's network."""

    def __init__(self, address: str = GUEST) -> None:
        self.address = address
        self.answered = 0
        self.longest_s = 0.0
        self.wrong: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _go(self) -> None:
        try:
            with socket.create_connection((self.address, 7), timeout=60) as stream, stream.makefile("rb") as answers:
                while not self._end.is_set():
                    line = f"{self.answered}\n".encode()
                    began = time.monotonic()
                    stream.sendall(line)
                    if answers.readline() != line:
                        self.wrong.append(f"number {self.answered} did not come back")
                        return
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
                    self.answered += 1
                    time.sleep(0.02)
        except OSError as error:
            self.wrong.append(f"the connection broke after {self.answered} answers: {error}")


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _until(is_true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _UP_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.05)
