"""The keys of an encrypted state volume: the TPM's, and the recovery key.

The volume is made, and opened at each boot, by `start` (guest/encrypted). The TPM gives its key out as long as PCR 7 has the value that it
had when it was enrolled. Each change is one of the LUKS header, of which there are two copies: cut anywhere, one of them is whole.
"""

from dataclasses import dataclass

from obelisk.errors import CommandError, InputError, StateError
from obelisk.host.here import Here
from obelisk.model.canonical import Json
from obelisk.system import cryptenroll

_LETTERS = "cbdefghijklnrtuv"  # those that lie in one place on every keyboard. Source: systemd, src/shared/recovery-key.h
_LENGTH = 64
_GROUP = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """What opens the volume, and what did at this boot; see `Here.opened_by`."""

    opened_by: str
    tpm: bool
    recovery: bool

    def __str__(self) -> str:
        """For people, with what is to be done."""
        said = ["encrypted by TPM 2" if self.tpm else "encrypted, and no TPM has a key: obelisk host enrol-tpm"]
        if self.tpm and self.opened_by == "recovery-key":
            said.append("which did not open it at this boot: obelisk host enrol-tpm")
        if not self.recovery:
            said.append("no recovery key yet: obelisk host recovery-key")
        return ", ".join(said)

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"opened_by": self.opened_by, "tpm2": self.tpm, "recovery_key": self.recovery}


def keys(here: Here) -> Keys | None:
    """The keys of the state volume; None where it is not encrypted."""
    if not (opened_by := here.opened_by()):
        return None
    kinds = cryptenroll.kinds(here.state_partition())
    return Keys(opened_by, "tpm2" in kinds, "recovery" in kinds)


def renew_recovery_key(here: Here) -> str:
    """Make a recovery key in the place of any before, and return it; nobody can see it again.

    Raises:
        StateError: the state is not encrypted, or the TPM does not open it.
    """
    _require_encrypted(here)
    with here.alone():
        try:
            return cryptenroll.new_recovery_key(here.state_partition())
        except CommandError as error:
            # Without its output, which may have the key in it.
            raise StateError(
                "no recovery key was made: the TPM does not open the state volume",
                code="tpm-refuses",
                hint="with a former recovery key, `obelisk host enrol-tpm` has it open the volume again",
            ) from error


def enrol_tpm(here: Here, recovery_key: str) -> None:
    """Have this machine's TPM, as it is now, open the volume from the next boot on. Any key that a TPM had before goes.

    Raises:
        InputError: that is not the recovery key.
        StateError: the state is not encrypted.
    """
    _require_encrypted(here)
    key = normal(recovery_key)
    with here.alone():
        try:
            cryptenroll.bind_to_tpm(here.state_partition(), key)
        except CommandError as error:
            said = (error.output.strip().splitlines() or [""])[-1]
            raise InputError(
                f"the TPM was not enrolled: {said}",
                code="recovery-key-refused",
                hint="is it the recovery key that was made last? Does this machine have a TPM 2 that is switched on?",
            ) from error
    (here.run / "opened").write_text("enrolled\n")


def normal(recovery_key: str) -> str:
    """A recovery key as it was made, of what somebody typed: with or without hyphens, in any case.

    Raises:
        InputError: it cannot be one.
    """
    letters = "".join(character for character in recovery_key.lower() if character.isalnum())
    if len(letters) != _LENGTH or not set(letters) <= set(_LETTERS):
        raise InputError(
            f"that is no recovery key: one has {_LENGTH} letters, all of them among {_LETTERS}",
            code="recovery-key-form",
            hint="type it as `obelisk host recovery-key` has shown it",
        )
    return "-".join(letters[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


def _require_encrypted(here: Here) -> None:
    if not here.opened_by():
        raise StateError(
            "the state of this host is not encrypted",
            code="state-plain",
            hint='a host gets encrypted state when it is installed, from a spec with `encryption = "tpm2"` under [state]',
        )
