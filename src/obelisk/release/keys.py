"""The keys that sign what a repository says.

    <keys>/release/<role>.key, <role>-<n>.key    private, Ed25519, PEM (PKCS#8, encrypted when there is a passphrase), mode 0600
                  /<role>.pub, <role>-<n>.pub    public, PEM
                  /root-<n>.pub                  the public halves of all root keys
                  /threshold                     how many of them have to sign together
                  /dropped                       ids of keys that were replaced somewhere
                  /known.json                    the repositories that these keys have signed: see known.py
    <keys>/release/<role>.pkcs11                 in the place of .key: which key of which token (`hsm:ID?label=TOKEN`); ECDSA on P-256
    <root>/root-<n>.key, .pub                    private root keys: a directory that is absent in daily work, or several

A repository's root metadata says which of them count, by key id; numbers only tell older from newer. Several repositories may share them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from obelisk.errors import InputError, StateError, TrustError
from obelisk.release import tokens
from obelisk.system.files import write_durably, written_by_name

if TYPE_CHECKING:
    from securesystemslib.signer import Signer, SSlibKey

_FILE = re.compile(r"(root|targets|snapshot|timestamp)(?:-([0-9]+))?\.(key|pkcs11|pub)")
_PRIVATE_HALVES = {"key", "pkcs11"}
_PRIVATE = 0o600

Passphrase = Callable[[Path], bytes]
"""Asks for the passphrase of a key file."""


class Role(StrEnum):
    """Who may say what: root, whose keys count; targets, what is released; snapshot and timestamp, what is the newest."""

    ROOT = "root"
    TARGETS = "targets"
    SNAPSHOT = "snapshot"
    TIMESTAMP = "timestamp"


ONLINE = (Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A private key on this machine, not opened yet."""

    role: Role
    number: int
    path: Path
    public: "SSlibKey"


@dataclass(frozen=True, slots=True)
class Keyring:
    """The release keys that this machine has at the moment: `directory`, and `roots` where root keys may lie apart."""

    directory: Path
    roots: tuple[Path, ...]
    passphrase: Passphrase

    def files(self, role: Role) -> tuple[KeyFile, ...]:
        """The key files of a role, oldest first.

        Raises:
            TrustError: a private key can be read by others.
            StateError: the public half is missing or damaged.
        """
        places = dict.fromkeys((*self.roots, self.directory) if role is Role.ROOT else (self.directory,))
        found = []
        for place in places:
            for path in sorted(place.glob(f"{role}*")) if place.is_dir() else ():
                name = _FILE.fullmatch(path.name)
                if name is not None and name[1] == role and name[3] in _PRIVATE_HALVES:
                    found.append(KeyFile(role, int(name[2] or 1), path, _public(path)))
        return tuple(sorted(found, key=lambda file: (file.number, str(file.path))))

    def publics(self, role: Role) -> tuple["SSlibKey", ...]:
        """The public keys that a new repository begins with: the newest of a role; of root all, also those that are elsewhere.

        Raises:
            StateError, InputError: one is damaged.
        """
        if role is not Role.ROOT:
            return tuple(file.public for file in self.files(role) if file.public.keyid not in self.dropped)[-1:]
        halves = sorted(self.directory.glob("root-*.pub"), key=lambda path: (len(path.name), path.name))
        found = [public_key(path.read_bytes(), str(path)) for path in halves]
        return tuple({key.keyid: key for key in found if key.keyid not in self.dropped}.values())

    @property
    def dropped(self) -> frozenset[str]:
        """The ids of keys that were replaced in some repository: they still sign for others, and never come in anew."""
        try:
            return frozenset((self.directory / "dropped").read_text().split())
        except FileNotFoundError:
            return frozenset()

    def drop(self, key_ids: Sequence[str]) -> None:
        """Note that these keys are replaced.

        Raises:
            StateError: it cannot be written.
        """
        path = self.directory / "dropped"
        with written_by_name(path):
            write_durably(path, "".join(f"{key}\n" for key in sorted({*self.dropped, *key_ids})).encode())

    @property
    def threshold(self) -> int:
        """How many root keys have to sign together.

        Raises:
            StateError: the file that says it is damaged.
        """
        path = self.directory / "threshold"
        try:
            return int(path.read_text())
        except FileNotFoundError:
            return 1
        except ValueError as error:
            raise StateError(
                f"{path} has no number", code="keys-incomplete", hint="write into it how many root keys have to sign"
            ) from error

    def present(self, role: Role, key_ids: Sequence[str]) -> int:
        """How many of the keys with these ids are here.

        Raises:
            TrustError, StateError: as `files`.
        """
        return len({file.public.keyid for file in self.files(role)} & set(key_ids))

    def signers(self, role: Role, key_ids: Sequence[str]) -> tuple["Signer", ...]:
        """Those of the keys with these ids that are here, opened.

        Raises:
            TrustError, StateError: as `files`, or the passphrase is wrong.
        """
        found = {file.public.keyid: file for file in reversed(self.files(role)) if file.public.keyid in key_ids}
        return tuple(_open(found[key_id], self.passphrase) for key_id in sorted(found))

    def new(self, role: Role, place: Path | None = None, *, passphrase: bytes = b"") -> KeyFile:
        """Make a key and keep it, in `place` (default: the directory of daily work).

        Raises:
            StateError: it cannot be written.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - slow to import
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            BestAvailableEncryption,
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )

        path = self._next(role, place, ".key")
        private = Ed25519PrivateKey.generate()
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        with written_by_name(path):
            # The public half first: a private key without it would not be found.
            self._publish(path, private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
            write_durably(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=_PRIVATE)
        return self._made(role, path)

    def adopt(self, role: Role, token: str, place: Path | None = None) -> KeyFile:
        """Use a key that a PKCS#11 token has: `ID` or `ID?label=TOKEN`. The token, whose module $PYKCS11LIB names, has to be there.

        Raises:
            InputError: the token or the key is not there.
            MissingFeatureError: the library for tokens is not installed.
        """
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415 - slow to import

        path = self._next(role, place, ".pkcs11")
        uri, public = tokens.public_half(token, lambda: self.passphrase(path))
        with written_by_name(path):
            self._publish(path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
            write_durably(path, f"{uri}\n".encode(), mode=_PRIVATE)
        return self._made(role, path)

    def _next(self, role: Role, place: Path | None, suffix: str) -> Path:
        named = (_FILE.fullmatch(path.name) for path in self.directory.glob(f"{role}*.pub"))
        known = [int(name[2] or 1) for name in named if name and name[1] == role] + [file.number for file in self.files(role)]
        number = max(known, default=0) + 1
        stem = role.value if number == 1 and role is not Role.ROOT else f"{role}-{number}"
        return (place or self.directory) / f"{stem}{suffix}"

    def _publish(self, path: Path, public: bytes) -> None:
        for directory in dict.fromkeys((path.parent, self.directory)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(directory / f"{path.stem}.pub", public)

    def _made(self, role: Role, path: Path) -> KeyFile:
        return next(file for file in self.files(role) if file.path == path)


@dataclass(frozen=True, slots=True)
class Wish:
    """The root keys to be made: so many, in turn over `places`, of which `threshold` have to sign together."""

    keys: int = 1
    threshold: int = 1
    places: tuple[Path, ...] = ()


def create(keyring: Keyring, wish: Wish, *, passphrase: bytes = b"") -> tuple[KeyFile, ...]:
    """Make what is missing of a set of release keys. May be repeated; keys that are there stay.

    Raises:
        InputError: so many signatures cannot come from so few keys.
        StateError: they cannot be written.
    """
    have = len(keyring.publics(Role.ROOT))
    if not 1 <= wish.threshold <= max(wish.keys, have):
        raise InputError(
            f"{wish.threshold} of {max(wish.keys, have)} root keys cannot sign together",
            code="keys-threshold",
            hint="see --root-keys and --threshold",
        )
    made = [keyring.new(role, passphrase=passphrase) for role in ONLINE if not keyring.publics(role)]
    places = wish.places or (keyring.directory,)
    made += [keyring.new(Role.ROOT, places[n % len(places)], passphrase=passphrase) for n in range(have, wish.keys)]
    if not have or wish.threshold != 1:
        write_durably(keyring.directory / "threshold", f"{wish.threshold}\n".encode())
    return tuple(made)


def public_key(pem: bytes, place: str) -> "SSlibKey":
    """A public key from PEM: Ed25519, or ECDSA on P-256, which tokens have.

    Raises:
        InputError: it is none; `place` is named.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    from securesystemslib.signer import SSlibKey  # noqa: PLC0415

    try:
        loaded = load_pem_public_key(pem)
    except (UnsupportedAlgorithm, ValueError) as error:
        raise InputError(f"{place} is no public key: {error}", code="key-damaged", hint="it has to be Ed25519, as PEM") from error
    if not isinstance(loaded, Ed25519PublicKey) and not (isinstance(loaded, EllipticCurvePublicKey) and loaded.curve.name == "secp256r1"):
        raise InputError(f"{place} is neither an Ed25519 key nor one of P-256", code="key-kind", hint="make it by `obelisk keys`")
    return SSlibKey.from_crypto(loaded)


def _public(path: Path) -> "SSlibKey":
    if path.stat().st_mode & 0o077:
        raise TrustError(
            f"{path} can be read by others", code="keys-readable", hint=f"chmod 600 {path}, and consider `obelisk keys rotate`"
        )
    half = path.with_suffix(".pub")
    try:
        return public_key(half.read_bytes(), str(half))
    except FileNotFoundError as error:
        hint = f"restore it, or: openssl pkey -in {path} -pubout -out {half}"
        raise StateError(f"{path} has no public half beside it", code="keys-incomplete", hint=hint) from error


def _open(file: KeyFile, passphrase: Passphrase) -> "Signer":
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415
    from securesystemslib.exceptions import Error  # noqa: PLC0415
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415

    if file.path.suffix == ".pkcs11":
        return tokens.signer(file.path.read_text().strip(), file.public, lambda: passphrase(file.path))
    pem = file.path.read_bytes()
    encrypted = b"ENCRYPTED" in pem
    try:
        private = load_pem_private_key(pem, passphrase(file.path) if encrypted else None)
        return CryptoSigner(private, file.public)
    except (Error, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise TrustError(
            f"{file.path} cannot be opened" + (": the passphrase is wrong, or it is damaged" if encrypted else f": {error}"),
            code="key-locked" if encrypted else "key-damaged",
            hint="give its passphrase" if encrypted else f"restore it from your copy, or `obelisk keys rotate {file.role}`",
        ) from error


def passphrase_from(environment: Mapping[str, str], ask: Passphrase) -> Passphrase:
    """The passphrase in $OBELISK_PASSPHRASE, or in the file that $OBELISK_PASSPHRASE_FILE names, or what `ask` answers, once."""
    known: list[bytes] = []

    def passphrase(path: Path) -> bytes:
        if "OBELISK_PASSPHRASE" in environment:
            return environment["OBELISK_PASSPHRASE"].encode()
        if named := environment.get("OBELISK_PASSPHRASE_FILE"):
            try:
                return Path(named).read_bytes().rstrip(b"\r\n")
            except OSError as error:
                raise InputError(
                    f"{named} cannot be read: {error.strerror}", code="passphrase-file", hint="see $OBELISK_PASSPHRASE_FILE"
                ) from error
        if not known:
            known.append(ask(path))
        return known[0]

    return passphrase
