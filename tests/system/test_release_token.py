"""Release keys on a PKCS#11 token, which SoftHSM plays."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import repository_samples as samples

from obelisk.errors import InputError, StateError
from obelisk.release.keys import Keyring, Role
from obelisk.release.publishing import release
from obelisk.release.rotating import RootWish, rotate, rotate_root

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")

# In a process of its own: SoftHSM reads its configuration once.
_MAKE_KEY = """
import os, sys, pkcs11
from pkcs11.util.ec import encode_named_curve_parameters
token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label="obelisk")
with token.open(user_pin="1234", rw=True) as session:
    parameters = session.create_domain_parameters(
        pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    )
    for number in sys.argv[1:]:
        parameters.generate_keypair(store=True, id=bytes([int(number)]), label=f"key {number}")
"""


@pytest.fixture(scope="module", autouse=True)
def _token(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A token with the keys 1 to 4; one for all tests of this file, whose process keeps SoftHSM's first configuration."""
    place = tmp_path_factory.mktemp("token")
    (place / "tokens").mkdir()
    (place / "softhsm2.conf").write_text(f"directories.tokendir = {place}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(place / "softhsm2.conf")
    os.environ["PYKCS11LIB"] = str(MODULE)
    program = shutil.which("softhsm2-util")
    assert program is not None
    words = [program, "--init-token", "--free", "--label", "obelisk", "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-I", "-c", _MAKE_KEY, "1", "2", "3", "4"], check=True)


def _with_pin(keys: Keyring, pin: bytes) -> Keyring:
    return replace(keys, passphrase=lambda _path: pin)


def test_every_role_can_be_signed_for_by_a_token(tmp_path: Path) -> None:
    keys = _with_pin(Keyring(tmp_path / "release", (tmp_path / "stick",), lambda _path: b""), b"1234")
    for number, role in enumerate(Role, 1):
        key = keys.adopt(role, f"{number}?label=obelisk", tmp_path / "stick" if role is Role.ROOT else None)
        assert key.path.stat().st_mode & 0o777 == 0o600
    who = samples.publisher(tmp_path, keys)
    made = release(who, samples.wanted(tmp_path, "1"), samples.founding())
    host = samples.client(tmp_path)
    host.refresh()
    assert host.current("stable") == made


def test_a_repository_moves_from_files_to_a_token_and_back(tmp_path: Path) -> None:
    keys = _with_pin(samples.keyring(tmp_path), b"1234")
    who = samples.publisher(tmp_path, keys)
    release(who, samples.wanted(tmp_path, "1"), samples.founding())
    host = samples.client(tmp_path)
    token = keys.adopt(Role.TARGETS, "2")
    assert rotate(who, Role.TARGETS).key_ids == (token.public.keyid,)
    root = keys.adopt(Role.ROOT, "1", tmp_path / "stick")
    assert rotate_root(who, RootWish()).key_ids == (root.public.keyid,)
    release(who, samples.wanted(tmp_path, "2"), samples.founding())
    rotate(who, Role.TARGETS)
    release(who, samples.wanted(tmp_path, "3"), samples.founding())
    host.refresh()
    current = host.current("stable")
    assert current is not None
    assert current.version == "3"


def test_a_wrong_pin_or_key_is_named(tmp_path: Path) -> None:
    keys = samples.keyring(tmp_path)
    for wrong in ("9", "1?label=other", "two"):
        with pytest.raises(InputError) as refused:
            keys.adopt(Role.TARGETS, wrong)
        assert refused.value.code == "token"
    who = samples.publisher(tmp_path, _with_pin(keys, b"1234"))
    release(who, samples.wanted(tmp_path, "1"), samples.founding())
    keys.adopt(Role.TARGETS, "2")
    rotate(who, Role.TARGETS)
    with pytest.raises(StateError) as locked:
        release(replace(who, keyring=_with_pin(keys, b"0000")), samples.wanted(tmp_path, "2"), samples.founding())
    assert locked.value.code == "key-locked"
