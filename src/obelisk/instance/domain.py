"""A machine in the words of libvirt: the XML of its domain, made and read.

The machine type and the processor are pinned, so that a machine is the same on every host and after every upgrade of one. What the image
brings are read-only files, on each host under the same path and shared by all machines of it. The machine's disk is a qcow2 file over the
image's, with what the machine has written: its state. Pure: nothing here asks a host.

Source: libvirt, "Domain XML format"; systemd(1), credentials by SMBIOS type 11.
"""

import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

MACHINE_TYPE = "pc-q35-10.0"
PROCESSOR = "Nehalem"
"""The oldest that has all of x86-64-v2: every server of the last fifteen years, of either maker, can be one."""
DISK = "vda"
"""The name by which libvirt is told which disk to mirror."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One machine. `state` is its disk, of which `base` has what it has not written; `network` is the name of libvirt's network.

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
    base: PurePosixPath | None
    state: PurePosixPath
    network: str
    acceleration: str = "kvm"
    credentials: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[PurePosixPath, ...]:
        """What a host must have before the machine can be there, apart from its state."""
        return (self.kernel, self.initrd, *((self.base,) if self.base else ()))


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
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # A mirror writes all of it: what is empty takes no room on the other side either.
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="none", discard="unmap", detect_zeroes="unmap")
    ET.SubElement(disk, "source", file=str(domain.state))
    if domain.base is not None:
        base = ET.SubElement(disk, "backingStore", type="file")
        ET.SubElement(base, "format", type="raw")
        ET.SubElement(base, "source", file=str(domain.base))
        ET.SubElement(base, "backingStore")
    ET.SubElement(disk, "target", dev=DISK, bus="virtio")
    network = ET.SubElement(devices, "interface", type="network")
    ET.SubElement(network, "mac", address=domain.mac)
    ET.SubElement(network, "source", network=domain.network)
    ET.SubElement(network, "model", type="virtio")
    ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(devices, "console", type="pty")
    random = ET.SubElement(devices, "rng", model="virtio")
    ET.SubElement(random, "backend", model="random").text = "/dev/urandom"
    ET.SubElement(devices, "memballoon", model="none")


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
    base: PurePosixPath | None
    networks: tuple[str, ...]


def needs(xml: str) -> Needs:
    """What the domain of this XML, as libvirt gives it, needs."""
    root = ET.fromstring(xml)  # noqa: S314 - of a daemon whose certificate was verified
    base = _attribute(root, "devices/disk/backingStore/source", "file")
    files = (root.findtext("os/kernel"), root.findtext("os/initrd"), base)
    return Needs(
        name=root.findtext("name") or "",
        uuid=root.findtext("uuid") or "",
        machine_type=_attribute(root, "os/type", "machine"),
        processor=root.findtext("cpu/model") or "",
        acceleration=root.get("type", ""),
        memory_bytes=int(root.findtext("memory") or 0) * _UNITS[_attribute(root, "memory", "unit") or "KiB"],
        files=tuple(PurePosixPath(file) for file in files if file),
        base=PurePosixPath(base) if base else None,
        networks=tuple(_attribute(each, "source", "network") for each in root.findall("devices/interface[@type='network']")),
    )


_UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _attribute(element: ET.Element, path: str, name: str) -> str:
    found = element.find(path)
    return found.get(name, "") if found is not None else ""
