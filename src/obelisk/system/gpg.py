"""gpg(1) of the tools tree: OpenPGP keys and detached signatures, for readers that know no other kind.

A key is one armoured file without a passphrase. gpg's own home lives and ends with each call, in the room's memory.
"""

import tempfile
from pathlib import Path

from obelisk.errors import CommandError
from obelisk.system.bubblewrap import Bind, Room, read_only, writable
from obelisk.system.files import write_durably

# The agent ends with the room, whose processes all do.
_HOME = """
set -eu
umask 077
export GNUPGHOME=/tmp/gnupg
mkdir "$GNUPGHOME"
own() { gpg --batch --quiet --no-tty --pinentry-mode loopback --passphrase "" "$@"; }
"""
_MAKE = f"""{_HOME}
own --quick-generate-key "$1" ed25519 sign never
own --armor --export-secret-keys >/out/made
"""
_SIGN = f"""{_HOME}
own --import /key
own --digest-algo SHA512 --output /out/made --detach-sign - </out/data
"""
_VERIFY = f"""{_HOME}
own --import /key
own --trust-model always --verify /out/signature /out/data
"""
_EXPORT = f"""{_HOME}
own --import /key
own --export-options export-minimal --export >/out/made
"""


def make_key(room: Room, key: Path, *, owner: str) -> None:
    """Make an Ed25519 key for signatures, which does not expire, in the new file `key` (mode 0600)."""
    write_durably(key, _made(room, _MAKE, words=(owner,)), mode=0o600)


def sign(room: Room, key: Path, data: bytes) -> bytes:
    """A detached binary signature of `data`.

    Raises:
        CommandError: the file holds no secret key.
    """
    return _made(room, _SIGN, binds=(read_only(key, "/key"),), data=data)


def is_signature(room: Room, key: Path, data: bytes, signature: bytes) -> bool:
    """Whether it is a signature of `data` by that key."""
    with tempfile.TemporaryDirectory(prefix="obelisk-gpg-") as scratch:
        Path(scratch, "data").write_bytes(data)
        Path(scratch, "signature").write_bytes(signature)
        try:
            room.run(["sh", "-c", _VERIFY], binds=[writable(Path(scratch), "/out"), read_only(key, "/key")], timeout_s=120)
        except CommandError:
            return False
        return True


def public_keyring(room: Room, key: Path) -> bytes:
    """The public half, as gpg's --keyring reads it.

    Raises:
        CommandError: the file holds no secret key.
    """
    return _made(room, _EXPORT, binds=(read_only(key, "/key"),))


def _made(room: Room, script: str, *, words: tuple[str, ...] = (), binds: tuple[Bind, ...] = (), data: bytes = b"") -> bytes:
    with tempfile.TemporaryDirectory(prefix="obelisk-gpg-") as scratch:
        Path(scratch, "data").write_bytes(data)
        room.run(["sh", "-c", script, "gpg", *words], binds=[writable(Path(scratch), "/out"), *binds], timeout_s=120)
        return Path(scratch, "made").read_bytes()
