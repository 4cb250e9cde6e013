"""Which nodes lead to USB devices, by the numbers of their vendors and products.

A device has another node each time that it is plugged in. Source: kernel documentation, ABI/testing/sysfs-bus-usb, and
admin-guide/devices.txt (block 189).
"""

from pathlib import Path

_KNOWN = Path("/sys/bus/usb/devices")
_NODES = Path("/dev/bus/usb")


def nodes(vendor: str, product: str) -> tuple[str, ...]:
    """The nodes of all that are plugged in, with these numbers in four lower-case hexadecimal digits each."""
    known = (_node(device) for device in sorted(_KNOWN.glob("*")) if _numbers(device) == (vendor, product))
    return tuple(node for node in known if node and Path(node).exists())


def numbers(node: str) -> tuple[str, str] | None:
    """The numbers of the device at a node, if it is one of a USB device that is plugged in."""
    device = next((device for device in sorted(_KNOWN.glob("*")) if node and _node(device) == node), None)
    return None if device is None else _numbers(device)


def _numbers(device: Path) -> tuple[str, str]:
    return _read(device, "idVendor"), _read(device, "idProduct")


def _node(device: Path) -> str:
    """Where the node is; empty for interfaces of devices, which stand between them."""
    bus, number = _read(device, "busnum"), _read(device, "devnum")
    return f"{_NODES}/{bus:0>3}/{number:0>3}" if bus and number else ""


def _read(device: Path, name: str) -> str:
    try:
        return (device / name).read_text().strip()
    except OSError:
        return ""
