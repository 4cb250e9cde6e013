"""systemd-cryptenroll(1): who has a key to an encrypted volume."""

from pathlib import Path

from obelisk.system.command import run

_TIMEOUT_S = 120


def kinds(volume: Path) -> frozenset[str]:
    """What kinds of keys open the volume: `tpm2`, `recovery`."""
    return frozenset(_slots(volume).values())


def new_recovery_key(volume: Path) -> str:
    """Make a recovery key in the place of any before, and return it. The TPM has to open the volume for that."""
    return _change(volume, "--unlock-tpm2-device=auto", "--recovery-key", "--wipe-slot=recovery").strip()


def bind_to_tpm(volume: Path, recovery_key: str) -> None:
    """Have this machine's TPM, as it is now, open the volume in the place of any before.

    Raises:
        CommandError: that key opens nothing, or there is no TPM. Nothing was changed.
    """
    words = ("--tpm2-device=auto", "--tpm2-pcrs=7", "--unlock-key-file=/dev/stdin", "--wipe-slot=tpm2")
    before = _slots(volume)
    _change(volume, *words, stdin=recovery_key)
    if before == _slots(volume):
        # It takes a key under the same PCRs for its own, also where another TPM has it. That the recovery key is right is known by now.
        _change(volume, "--wipe-slot=tpm2")
        _change(volume, *words, stdin=recovery_key)


def _slots(volume: Path) -> dict[str, str]:
    """The kind of each slot's key, by the number of the slot."""
    lines = run(["systemd-cryptenroll", volume], timeout_s=_TIMEOUT_S).stdout.splitlines()[1:]
    return {words[0]: words[1] for line in lines if len(words := line.split()) > 1}


def _change(volume: Path, *words: str, stdin: str = "") -> str:
    return run(["systemd-cryptenroll", *words, volume], timeout_s=_TIMEOUT_S, stdin=stdin.encode()).stdout
