"""What a TPM was told, read from the log of the program that plays it."""

from obelisk.machine import HOOK
from obelisk.trial.agent import injected
from obelisk.trial.measurements import measurements


def extend(pcr: int, digest: int) -> bytes:
    """TPM2_PCR_Extend with an empty password, and one digest of SHA-256."""
    body = pcr.to_bytes(4) + bytes.fromhex("00000009 40000009 00 0000 00 0000".replace(" ", "")) + b"\0\0\0\1\0\x0b" + bytes([digest]) * 32
    return b"\x80\x02" + (len(body) + 10).to_bytes(4) + b"\0\0\x01\x82" + body


def dump(kind: str, data: bytes) -> str:
    """As swtpm writes it: sixteen bytes a line."""
    lines = "".join(" " + "".join(f"{byte:02X} " for byte in data[at : at + 16]) + "\n" for at in range(0, len(data), 16))
    return f" {kind}: length {len(data)}\n{lines}"


def test_what_extended_the_pcr_of_secure_boot_since_the_last_start_is_found() -> None:
    log = dump("Ctrl Cmd", b"\0\0\0\2\0\0\0\0") + dump("SWTPM_IO_Read", extend(7, 1))
    log += dump("Ctrl Cmd", b"\0\0\0\2\0\0\0\0") + dump("Ctrl Rsp", bytes(4))
    for data in (b"\x80\1\0\0\0\x0c\0\0\x01\x44\0\0", extend(7, 2), extend(4, 3), extend(7, 4)):
        log += dump("SWTPM_IO_Read", data) + dump("SWTPM_IO_Write", extend(7, 9))
    assert measurements(log) == (extend(7, 2), extend(7, 4))
    assert measurements("") == ()


def test_the_agent_repeats_them_in_their_order_before_the_state_is_opened() -> None:
    added = injected((), (b"one", b"two"))
    assert [added[name] for name in sorted(added) if "measured" in name] == [b"one", b"two"]
    assert b"/dev/tpm0" in bytes(added[HOOK])  # type: ignore[arg-type]
    assert b"/dev/tpm0" not in bytes(injected(())[HOOK])  # type: ignore[arg-type]
