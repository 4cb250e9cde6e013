"""What firmware has told a TPM about itself, so that a kernel which starts without that firmware can tell it the same.

A trial's agent comes in an initrd that nobody signed, so its boots go without UEFI. State that the TPM opens under one value of PCR 7 would
stay closed there. What extended PCR 7 in the sealed boot is repeated in these: each event is a command, and the same commands in the same
order give the same value. Only a machine whose TPM is a program, and whose owner is the one who tries, can be told so.
"""

import re
from collections.abc import Mapping

_PCR_EXTEND = 0x182
_SECURE_BOOT_PCR = 7
_HEADER = re.compile(r"^ (SWTPM_IO_Read|SWTPM_IO_Write|Ctrl Cmd|Ctrl Rsp): length \d+$", re.MULTILINE)
_INIT = b"\0\0\0\2"
_PLACE = "usr/lib/obelisk-trial/measured"

REPEAT = f'for each in /{_PLACE}/*; do cat "$each" >/dev/tpm0; done\n'
"""The part of a hook in the initrd that repeats them."""


def measurements(log: str) -> tuple[bytes, ...]:
    """The commands that extended PCR 7 since the TPM was last started, of a log of swtpm's (level 20).

    Source: swtpm, src/swtpm/logging.c; TCG, Trusted Platform Module Library, part 3, 22.2.
    """
    found: list[bytes] = []
    pieces = _HEADER.split(log)
    for kind, dump in zip(pieces[1::2], pieces[2::2], strict=True):
        data = bytes.fromhex("".join(re.findall(r"^ ((?:[0-9A-F]{2} )+)$", dump, re.MULTILINE)))
        if kind == "Ctrl Cmd" and data.startswith(_INIT):
            found = []
        elif kind == "SWTPM_IO_Read" and (int.from_bytes(data[6:10]), int.from_bytes(data[10:14])) == (_PCR_EXTEND, _SECURE_BOOT_PCR):
            found.append(data)
    return tuple(found)


def files(measured: tuple[bytes, ...]) -> Mapping[str, bytes]:
    """The files of an initrd from which `REPEAT` repeats them."""
    return {f"{_PLACE}/{number:03}": data for number, data in enumerate(measured)}
