"""Variables of the firmware, as efivarfs shows them."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PLACE = Path("/sys/firmware/efi/efivars")
_LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_LIST_HEADER_BYTES = 28
_TIME_BYTES = 16
_REPLACE = 0x27  # non-volatile, boot and runtime access, time-based authentication
_APPEND = 0x40  # what is there stays
_VENDORS = {"PK": _GLOBAL, "KEK": _GLOBAL, "db": _SECURITY, "dbx": _SECURITY}
_FS_IOC_SETFLAGS = 0x40086602
_OWNER_BYTES = 16
_X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")


def counted_entry(place: Path = PLACE) -> str | None:
    """The path on the ESP of the entry whose boots are being counted, as the loader named it for this boot; None when none is.

    Source: Boot Loader Interface, LoaderBootCountPath.
    """
    data = _read(place / f"LoaderBootCountPath-{_LOADER}")
    return data.decode("utf-16-le").rstrip("\0").replace("\\", "/") if data else None


def secure_boot(place: Path = PLACE) -> bool:
    """Whether the firmware checks what it starts. Source: UEFI specification 2.10, section 3.3."""
    return _read(place / f"SecureBoot-{_GLOBAL}") == b"\1"


def trusted_certificates(place: Path = PLACE) -> tuple[bytes, ...]:
    """The X.509 certificates (DER) of the firmware's db that its dbx does not revoke. Source: UEFI specification 2.10, section 32.4.1."""
    revoked = set(certificates("dbx", place))
    return tuple(found for found in certificates("db", place) if found not in revoked)


def certificates(variable: str, place: Path = PLACE) -> tuple[bytes, ...]:
    """The X.509 certificates (DER) of the firmware's `PK`, `KEK`, `db` or `dbx`."""
    return tuple(_certificates(_read(place / f"{variable}-{_VENDORS[variable]}")))


def certificates_of(update: bytes) -> tuple[bytes, ...]:
    """The X.509 certificates (DER) that a signed update brings; none when it is no such update.

    Source: UEFI specification 2.10, section 8.2.2: EFI_TIME, WIN_CERTIFICATE with its length, signature lists.
    """
    if len(update) < _TIME_BYTES + 4:
        return ()
    return tuple(_certificates(update[_TIME_BYTES + struct.unpack_from("<I", update, _TIME_BYTES)[0] :]))


def update(variable: str, signed: bytes, *, append: bool, place: Path = PLACE) -> None:
    """Give the firmware a signed update of `PK`, `KEK`, `db` or `dbx`, which comes to what is there, or takes its place.

    Raises:
        OSError: the firmware refuses it.
    """
    file = place / f"{variable}-{_VENDORS[variable]}"
    descriptor = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # So that nobody removes them by mistake, the kernel has such files immutable.
        with suppress(OSError):
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", 0))
    finally:
        os.close(descriptor)
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, struct.pack("<I", _REPLACE | (_APPEND if append else 0)) + signed)
    finally:
        os.close(descriptor)


def _certificates(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + _LIST_HEADER_BYTES <= len(data):
        kind = data[at : at + 16]
        total, header, each = struct.unpack_from("<III", data, at + 16)
        if total < _LIST_HEADER_BYTES or at + total > len(data):
            return
        if kind == _X509 and each > _OWNER_BYTES:
            for start in range(at + _LIST_HEADER_BYTES + header, at + total - each + 1, each):
                yield data[start + _OWNER_BYTES : start + each]
        at += total


def _read(path: Path) -> bytes:
    """The value of a variable, without the attributes before it; empty when there is none."""
    try:
        return path.read_bytes()[4:]
    except OSError:
        return b""
