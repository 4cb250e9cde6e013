"""A guest so small that it is up in seconds: the kernel of an image, with its drivers and busybox in the initrd, and no root file system.

It has a word in its memory and one in its state, the first bytes of the state disk. By HTTP on port 80:

    /cgi-bin/words                        both words, a line each
    /cgi-bin/set?MEMORY&STATE             set them
    /cgi-bin/who                          name, machine id, MAC, seconds since 1970, 32 random bytes as hexadecimal digits, a line each
    /cgi-bin/asks                         from now on, ask for the gateway just before the MAC changes, as a kernel does by chance

It takes another identity as images do (`obelisk.model.instance.IDENTITY_PORT`), switches itself off when its power button is pressed, and
says on its console that it is healthy.
"""

import io
import re
import shutil
import urllib.request
from pathlib import Path

from obelisk.build.inside.initrd import write_archive
from obelisk.instance.records import Bootable
from obelisk.model import uki
from obelisk.model.image import PartKind
from obelisk.model.instance import IDENTITY_PORT, STATE_SERIAL
from obelisk.store import StoredImage
from obelisk.system.bubblewrap import Room, read_only, writable

IMAGE = "1177" * 16
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "vmgenid", "evdev", "button")
_INIT = f"""\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
while read -r driver; do insmod "/drivers/$driver"; done </drivers/order
for disk in /sys/block/vd*; do
    [ "$(cat "$disk/serial")" != {STATE_SERIAL} ] || ln -s "/dev/${{disk##*/}}" /state
done
for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" != {IDENTITY_PORT} ] || port=${{name%/name}}
done
mkdir -p /www/cgi-bin /words
: >/words/memory
echo little >/words/name
cat /proc/sys/kernel/random/uuid | tr -d - >/words/id
cat >/www/cgi-bin/words <<'END'
#!/bin/sh
printf '\\r\\n%s\\n%s\\n' "$(cat /words/memory)" "$(dd if=/state bs=64 count=1 2>/dev/null | tr -d ' \\000\\n')"
END
cat >/www/cgi-bin/set <<'END'
#!/bin/sh
printf %s "${{QUERY_STRING%&*}}" >/words/memory
printf %-512s "${{QUERY_STRING#*&}}" | dd of=/state bs=512 count=1 conv=fsync,notrunc 2>/dev/null
printf '\\r\\nset\\n'
END
cat >/www/cgi-bin/who <<'END'
#!/bin/sh
printf '\\r\\n'
cat /words/name /words/id /sys/class/net/eth0/address
date +%s
head -c 32 /dev/urandom | hexdump -v -e '/1 "%02x"'
END
cat >/www/cgi-bin/asks <<'END'
#!/bin/sh
printf '\\r\\nit will\\n'
: >/words/asks
END
chmod +x /www/cgi-bin/*
# As images do: a network that has just heard of the old address has to hear of the new one.
echo 1 >/proc/sys/net/ipv4/conf/all/arp_notify
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
exec 3<>"/dev/${{port##*/}}"  # who answers, can be told
httpd -p 80 -h /www 3>&-
(
    for event in /dev/input/event*; do dd if="$event" of=/dev/null bs=24 count=1 2>/dev/null && sync && poweroff -f & done
    wait
) 3>&- &
echo "obelisk: little_1 healthy boot=$(cat /proc/sys/kernel/random/boot_id)"
while read -r name id mac now seed <&3; do
    date -s "@$now" >/dev/null
    echo "$name" >/words/name
    echo "$id" >/words/id
    echo "$seed" >/dev/urandom
    [ ! -e /words/asks ] || arping -q -f -c 1 -I eth0 10.0.2.2
    ip link set eth0 address "$mac"
    echo "obelisk: little_1 healthy renewed=$id"
    echo "renewed" >&3
done
sleep 2147483647
"""


def little_guest(room: Room, image: StoredImage, work: Path) -> Bootable:
    """The guest, made of a machine's image."""
    work.mkdir(parents=True, exist_ok=True)
    modules = f"/usr/lib/modules/{image.manifest.kernel}"
    binds = [read_only(image.part_path(PartKind.ROOT), "/root.erofs"), writable(work, "/out")]

    def take(name: str, target: str) -> bytes:
        room.run(["sh", "-euc", f'dump.erofs --cat --path="{modules}/{name}" /root.erofs >/out/{target}'], binds=binds)
        return (work / target).read_bytes()

    needs = dict(line.split(":") for line in take("modules.dep", "modules.dep").decode().splitlines())
    files = {_name(file): file for file in needs}
    order: list[str] = []

    def add(file: str) -> None:
        for need in reversed(needs[file].split()):
            add(need)
        if file not in order:
            order.append(file)

    for driver in _DRIVERS:
        if driver in files:  # else it is part of the kernel
            add(files[driver])
    contents: dict[str, bytes | str] = {f"drivers/{_name(file)}.ko": take(file, "module") for file in order}
    contents["drivers/order"] = "".join(f"{_name(file)}.ko\n" for file in order).encode()
    (work / "init").write_text(_INIT)
    (work / "init").chmod(0o755)
    busybox = shutil.which("busybox")
    assert busybox is not None
    archive = io.BytesIO()
    write_archive(archive, {"init": work / "init", "bin/busybox": Path(busybox)}, contents)
    linux = uki.sections(image.part_path(PartKind.UKI).read_bytes())["linux"]
    return Bootable(IMAGE, "little_1", linux, archive.getvalue(), "console=ttyS0 quiet panic=-1")


def _name(file: str) -> str:
    return re.sub(r"\.ko.*$", "", file.rsplit("/", 1)[-1]).replace("-", "_")


def ask(port: int, path: str, *, timeout_s: float = 5.0) -> list[str]:
    """The lines of its answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/cgi-bin/{path}", timeout=timeout_s) as answer:
        return str(answer.read().decode()).split("\n")
