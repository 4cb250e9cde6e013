"""What is plugged in by USB, as the kernel tells of it."""

from pathlib import Path

import pytest

from obelisk.model.policy import Device, Usb, Use, policy
from obelisk.sandbox.ready import device_at, nodes_of
from obelisk.system import usb


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the nodes are, of a hub, two keyboards of one product, and a device that is known and has no node yet."""
    known, nodes = tmp_path / "sys", tmp_path / "bus"
    monkeypatch.setattr(usb, "_KNOWN", known)
    monkeypatch.setattr(usb, "_NODES", nodes)
    for name, vendor, product, number in (
        ("usb1", "1d6b", "0002", 1),
        ("1-4", "046d", "c31c", 12),
        ("1-5", "046d", "c31c", 3),
        ("1-6", "1", "2", 9),
    ):
        (known / name).mkdir(parents=True)
        for file, text in (("idVendor", vendor), ("idProduct", product), ("busnum", "1"), ("devnum", str(number))):
            (known / name / file).write_text(f"{text}\n")
    (known / "1-4:1.0").mkdir()  # an interface
    (nodes / "001").mkdir(parents=True)
    for number in (1, 3, 12):
        (nodes / f"001/{number:03}").touch()
    return nodes


def test_all_of_a_product_and_nothing_else_has_the_nodes_of_that_product(bus: Path) -> None:
    assert usb.nodes("046d", "c31c") == (f"{bus}/001/012", f"{bus}/001/003")
    assert usb.nodes("1d6b", "0002") == (f"{bus}/001/001",)
    assert usb.nodes("1", "2") == usb.nodes("046d", "0002") == usb.nodes("", "") == ()


def test_a_node_leads_back_to_its_product(bus: Path) -> None:
    assert usb.numbers(f"{bus}/001/003") == ("046d", "c31c")
    assert usb.numbers(f"{bus}/001/002") is usb.numbers("") is usb.numbers("/dev/null") is None
    assert device_at(f"{bus}/001/012") == Usb("046d", "c31c")
    assert (device_at("/dev/kvm"), device_at("/dev/null")) == (Use(Device.KVM), None)


def test_without_usb_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usb, "_KNOWN", tmp_path / "missing")
    assert usb.nodes("046d", "c31c") == ()
    assert usb.numbers("/dev/bus/usb/001/001") is None


def test_a_policy_has_the_nodes_of_its_products(bus: Path) -> None:
    assert nodes_of(policy([Usb("046d", "c31c"), Usb("ffff", "ffff")])) == (f"{bus}/001/003", f"{bus}/001/012")
    assert nodes_of(policy()) == ()
