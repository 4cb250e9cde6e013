"""What is read from the firmware's variables."""

import struct
from pathlib import Path

import pytest

from obelisk.system import efivars

LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
SHA256 = bytes.fromhex("2616c4c14c509240aca941f936934328")


def write(place: Path, name: str, value: bytes) -> None:
    """A variable as efivarfs shows it: four bytes of attributes come first."""
    (place / name).write_bytes(b"\x06\0\0\0" + value)


def signatures(kind: bytes, *entries: bytes) -> bytes:
    """An EFI_SIGNATURE_LIST with entries of one size."""
    each = 16 + len(entries[0])
    return kind + struct.pack("<III", 28 + each * len(entries), 0, each) + b"".join(b"\x11" * 16 + entry for entry in entries)


def test_the_counted_entry_is_the_path_that_the_loader_named(tmp_path: Path) -> None:
    assert efivars.counted_entry(tmp_path) is None
    write(tmp_path, f"LoaderBootCountPath-{LOADER}", "\\EFI\\Linux\\shop_2+2-1.efi\0".encode("utf-16-le"))
    assert efivars.counted_entry(tmp_path) == "/EFI/Linux/shop_2+2-1.efi"


@pytest.mark.parametrize(("value", "on"), [(b"\1", True), (b"\0", False), (b"", False)])
def test_secure_boot_is_on_only_when_the_firmware_says_so(tmp_path: Path, value: bytes, *, on: bool) -> None:
    assert not efivars.secure_boot(tmp_path)
    write(tmp_path, f"SecureBoot-{GLOBAL}", value)
    assert efivars.secure_boot(tmp_path) is on


def test_certificates_come_from_every_list_and_hashes_from_none(tmp_path: Path) -> None:
    lists = signatures(X509, b"first") + signatures(SHA256, b"h" * 32, b"i" * 32) + signatures(X509, b"second", b"third!")
    write(tmp_path, f"db-{SECURITY}", lists)
    assert efivars.trusted_certificates(tmp_path) == (b"first", b"second", b"third!")


def test_an_update_comes_to_what_is_there_or_takes_its_place(tmp_path: Path) -> None:
    efivars.update("dbx", b"an update", append=True, place=tmp_path)
    efivars.update("PK", b"another", append=False, place=tmp_path)
    # Non-volatile, boot and runtime access, time-based authentication; and appending.
    assert (tmp_path / f"dbx-{SECURITY}").read_bytes() == b"\x67\0\0\0an update"
    assert (tmp_path / f"PK-{GLOBAL}").read_bytes() == b"\x27\0\0\0another"


def test_what_is_revoked_is_not_trusted(tmp_path: Path) -> None:
    write(tmp_path, f"db-{SECURITY}", signatures(X509, b"first") + signatures(X509, b"second"))
    write(tmp_path, f"dbx-{SECURITY}", signatures(X509, b"first"))
    assert efivars.trusted_certificates(tmp_path) == (b"second",)
    assert efivars.certificates("db", tmp_path) == (b"first", b"second")


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_damaged_database_has_no_more_than_its_whole_lists(tmp_path: Path, cut: int) -> None:
    whole = signatures(X509, b"first") + signatures(X509, b"second")
    write(tmp_path, f"db-{SECURITY}", whole[:cut])
    assert efivars.trusted_certificates(tmp_path) == ((b"first",) if cut >= len(signatures(X509, b"first")) else ())
