"""A machine in the words of libvirt: the XML of its domain, made and read.

The machine type and the processor are pinned, so that a machine is the same on every host and after every upgrade of one. What the image
brings are read-only files, on each host under the same path and shared by all machines of it: kernel, initrd and the disk with the root.
What the machine writes is its state, a disk of its own. Pure: nothing here asks a host.

Source: libvirt, "Domain XML format"; systemd(1), credentials by SMBIOS type 11.
"""

import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from obelisk.model.instance import MACHINE_TYPE, PROCESSOR, STATE_SERIAL

DISK = "vdb"
"""The name by which libvirt is told which disk to mirror."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One machine. `root` is the disk that it does not write, `state` the one that it does; `network` is the name of libvirt's network.

    `acceleration` is `kvm` or `qemu`, which is emulation.
    """

    name: str
    uuid: str
    mac: str
    generation: str
    memory_bytes: int
    cpus: int
    kernel: PurePosixPath
    initrd: PurePosixPath
    command_line: str
    root: PurePosixPath | None
    state: PurePosixPath
    network: str
    acceleration: str = "kvm"
    credentials: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[PurePosixPath, ...]:
        """What a host must have before the machine can be there, apart from its state."""
        return (self.kernel, self.initrd, *((self.root,) if self.root else ()))


def to_xml(domain: Domain) -> str:
    """The domain's XML."""
    root = ET.Element("domain", type=domain.acceleration)
    for name, text in (("name", domain.name), ("uuid", domain.uuid), ("genid", domain.generation), ("vcpu", str(domain.cpus))):
        ET.SubElement(root, name).text = text
    ET.SubElement(root, "memory", unit="b").text = str(domain.memory_bytes)
    system = ET.SubElement(root, "os")
    ET.SubElement(system, "type", arch="x86_64", machine=MACHINE_TYPE).text = "hvm"
    ET.SubElement(system, "kernel").text = str(domain.kernel)
    ET.SubElement(system, "initrd").text = str(domain.initrd)
    ET.SubElement(system, "cmdline").text = domain.command_line
    if domain.credentials:
        ET.SubElement(system, "smbios", mode="sysinfo")
        strings = ET.SubElement(ET.SubElement(root, "sysinfo", type="smbios"), "oemStrings")
        for name, value in sorted(domain.credentials.items()):
            encoded = b64encode(value.encode()).decode()
            ET.SubElement(strings, "entry").text = f"io.systemd.credential.binary:{name}={encoded}"
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    processor = ET.SubElement(root, "cpu", mode="custom", match="exact", check="none")
    ET.SubElement(processor, "model", fallback="forbid").text = PROCESSOR
    clock = ET.SubElement(root, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    # A machine that ends by itself has ended; one that starts anew stays what it is.
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        ET.SubElement(root, event).text = action
    _devices(root, domain)
    return ET.tostring(root, encoding="unicode")


def _devices(root: ET.Element, domain: Domain) -> None:
    devices = ET.SubElement(root, "devices")
    if domain.root is not None:
        disk = _disk(devices, domain.root, "vda", type="raw", cache="writeback")
        ET.SubElement(disk, "readonly")
    # A mirror writes all of it: what is empty takes no room on the other side either.
    disk = _disk(devices, domain.state, DISK, type="qcow2", cache="none", discard="unmap", detect_zeroes="unmap")
    ET.SubElement(disk, "serial").text = STATE_SERIAL
    network = ET.SubElement(devices, "interface", type="network")
    ET.SubElement(network, "mac", address=domain.mac)
    ET.SubElement(network, "source", network=domain.network)
    ET.SubElement(network, "model", type="virtio")
    ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(devices, "console", type="pty")
    random = ET.SubElement(devices, "rng", model="virtio")
    ET.SubElement(random, "backend", model="random").text = "/dev/urandom"
    ET.SubElement(devices, "memballoon", model="none")


def _disk(devices: ET.Element, path: PurePosixPath, target: str, **driver: str) -> ET.Element:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", {"name": "qemu", **driver})
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev=target, bus="virtio")
    return disk


@dataclass(frozen=True, slots=True)
class Needs:
    """What a domain that exists needs of a host, and what it is."""

    name: str
    uuid: str
    machine_type: str
    processor: str
    acceleration: str
    memory_bytes: int
    files: tuple[PurePosixPath, ...]
    networks: tuple[str, ...]


def needs(xml: str) -> Needs:
    """What the domain of this XML, as libvirt gives it, needs."""
    root = ET.fromstring(xml)  # noqa: S314 - of a daemon whose certificate was verified
    shared = [_attribute(disk, "source", "file") for disk in root.findall("devices/disk") if disk.find("readonly") is not None]
    files = (root.findtext("os/kernel"), root.findtext("os/initrd"), *shared)
    return Needs(
        name=root.findtext("name") or "",
        uuid=root.findtext("uuid") or "",
        machine_type=_attribute(root, "os/type", "machine"),
        processor=root.findtext("cpu/model") or "",
        acceleration=root.get("type", ""),
        memory_bytes=int(root.findtext("memory") or 0) * _UNITS[_attribute(root, "memory", "unit") or "KiB"],
        files=tuple(PurePosixPath(file) for file in files if file),
        networks=tuple(_attribute(each, "source", "network") for each in root.findall("devices/interface[@type='network']")),
    )


_UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _attribute(element: ET.Element, path: str, name: str) -> str:
    found = element.find(path)
    return found.get(name, "") if found is not None else ""
