"""Who opens an encrypted state volume: how it is told, and what is taken for a recovery key."""

from pathlib import Path

import pytest

from obelisk.errors import CommandError, InputError, StateError
from obelisk.host import encryption
from obelisk.host.encryption import Keys, normal
from obelisk.host.here import Here
from obelisk.system import cryptenroll

KEY = "-".join(["cbdefghi", "jklnrtuv"] * 4)


class Volume:
    """Takes the place of systemd-cryptenroll: a volume with slots, of which a TPM opens some."""

    def __init__(self, *, opens: bool = True) -> None:
        self.opens = opens
        self.kinds_ = {"tpm2"}
        self.asked: list[str] = []

    def kinds(self, volume: Path) -> frozenset[str]:
        assert volume == Path("/dev/vda6")
        return frozenset(self.kinds_)

    def new_recovery_key(self, _volume: Path) -> str:
        if not self.opens:
            raise CommandError(("systemd-cryptenroll",), 1, f"{KEY}\nit did not work")
        self.kinds_.add("recovery")
        return KEY

    def bind_to_tpm(self, _volume: Path, recovery_key: str) -> None:
        if recovery_key != KEY:
            raise CommandError(("systemd-cryptenroll",), 1, "Failed to acquire volume key")
        self.asked.append(recovery_key)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    (tmp_path / "host").mkdir()
    (tmp_path / "opened").write_text("tpm2\n")
    monkeypatch.setattr(Here, "state_partition", lambda _self: Path("/dev/vda6"))
    return Here("shop", "1", "ab" * 32, Path("/dev/vda"), tmp_path / "host", "boot", tmp_path)


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Volume:
    made = Volume()
    for name in ("kinds", "new_recovery_key", "bind_to_tpm"):
        monkeypatch.setattr(cryptenroll, name, getattr(made, name))
    return made


@pytest.mark.parametrize("typed", [KEY, KEY.upper(), KEY.replace("-", ""), KEY.replace("-", " "), f"  {KEY}\n"])
def test_a_recovery_key_is_read_as_people_type_it(typed: str) -> None:
    assert normal(typed) == KEY


@pytest.mark.parametrize("typed", ["", "hello", KEY[:-1], f"{KEY}c", KEY.replace("c", "a"), KEY.replace("c", "é")])
def test_what_cannot_be_a_recovery_key_is_refused(typed: str) -> None:
    with pytest.raises(InputError, match="64 letters"):
        normal(typed)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Keys("tpm2", tpm=True, recovery=True), "encrypted by TPM 2"),
        (Keys("tpm2", tpm=True, recovery=False), "encrypted by TPM 2, no recovery key yet: obelisk host recovery-key"),
        (Keys("recovery-key", tpm=True, recovery=True), "encrypted by TPM 2, which did not open it at this boot: obelisk host enrol-tpm"),
        (Keys("recovery-key", tpm=False, recovery=True), "encrypted, and no TPM has a key: obelisk host enrol-tpm"),
        (Keys("enrolled", tpm=True, recovery=True), "encrypted by TPM 2"),
    ],
)
def test_status_says_what_opens_the_state_and_what_is_to_be_done(given: Keys, said: str) -> None:
    assert str(given) == said


def test_state_that_is_not_encrypted_has_no_keys(here: Here, volume: Volume) -> None:
    (here.run / "opened").unlink()
    assert encryption.keys(here) is None
    assert here.state_device() == Path("/dev/vda6")
    for change in (lambda: encryption.renew_recovery_key(here), lambda: encryption.enrol_tpm(here, KEY)):
        with pytest.raises(StateError, match="not encrypted"):
            change()
    assert volume.kinds_ == {"tpm2"}


def test_what_is_mounted_is_what_is_in_the_volume(here: Here) -> None:
    assert here.state_device() == Path("/dev/mapper/state")


def test_a_recovery_key_is_made(here: Here, volume: Volume) -> None:
    assert encryption.keys(here) == Keys("tpm2", tpm=True, recovery=False)
    assert encryption.renew_recovery_key(here) == KEY
    assert encryption.keys(here) == Keys("tpm2", tpm=True, recovery=True)
    assert volume.asked == []


def test_a_tpm_that_refuses_leads_to_the_command_that_helps_and_no_key_is_shown(here: Here, volume: Volume) -> None:
    volume.opens = False
    with pytest.raises(StateError) as refused:
        encryption.renew_recovery_key(here)
    assert "enrol-tpm" in refused.value.hint
    assert KEY not in f"{refused.value}{refused.value.message}"


def test_the_tpm_is_enrolled_by_the_recovery_key_alone_and_that_is_known_at_once(here: Here, volume: Volume) -> None:
    (here.run / "opened").write_text("recovery-key\n")
    with pytest.raises(InputError, match="Failed to acquire volume key"):
        encryption.enrol_tpm(here, KEY.replace("c", "b"))
    assert here.opened_by() == "recovery-key"
    encryption.enrol_tpm(here, KEY.upper())
    assert volume.asked == [KEY]
    assert here.opened_by() == "enrolled"
