"""What is inside a Unified Kernel Image. Source: UAPI.5 Unified Kernel Image; PE format, section table."""

import struct

from obelisk.errors import TrustError


def sections(data: bytes) -> dict[str, bytes]:
    """The sections by name (`linux`, `initrd`, `cmdline`, `osrel`, `uname`, …).

    Raises:
        TrustError: it is no PE file, or one that is cut short.
    """
    damaged = TrustError("this is no Unified Kernel Image, or a damaged one", code="uki-damaged", hint="take the image again")
    try:
        start = struct.unpack_from("<I", data, 0x3C)[0]
        count, optional = struct.unpack_from("<H", data, start + 6)[0], struct.unpack_from("<H", data, start + 20)[0]
        found, ends = {}, [0]
        for index in range(count):
            name, size, _address, raw_size, offset = struct.unpack_from("<8sIIII", data, start + 24 + optional + 40 * index)
            ends.append(offset + raw_size)
            found[name.rstrip(b"\0").decode().lstrip(".")] = data[offset : offset + min(size, raw_size)]
    except (struct.error, UnicodeDecodeError) as error:
        raise damaged from error
    if max(ends) > len(data):
        raise damaged
    return found


def root_hash(data: bytes) -> str:
    """The root hash that the sealed command line names; empty when it names none."""
    words = sections(data).get("cmdline", b"").rstrip(b"\0").decode(errors="replace").split()
    return next((word.removeprefix("roothash=") for word in words if word.startswith("roothash=")), "")
