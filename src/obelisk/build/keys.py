"""The keys that sign what a build makes: Secure Boot (PK, KEK, db) and attestations.

A key directory holds PK, KEK and db as .key (PEM, mode 0600), .crt (PEM) and .auth (for enrolment by systemd-boot), and
attestation.key (Ed25519, PEM). A directory with a file `TEST-KEY` is made without being asked for and marks its images as such. Builds
do without PK.key and KEK.key: only new keys need them.

The db key is replaced in steps, since hosts start nothing that a key signed which their firmware does not know:

    db-<n>/                 the n-th db key, n from 2; it appears all at once
        db.key .crt .der    the key
        both.auth           enrols this certificate and the one before it on new machines
        db.auth             enrols this one alone
        update.auth         adds this certificate to the db of a firmware; signed by KEK
        signs               exists: this key signs. Until then the one before does, and images bring hosts `update.auth`
        revoke.auth         puts the certificate before this one into the dbx of a firmware; signed by KEK. Images bring it to hosts

PK and KEK are replaced together, and at once, since no image is signed by them:

    platform-<n>/           the n-th pair, n from 2; it appears all at once
        PK.key, KEK.key …   the keys
        PK.auth, KEK.auth   for enrolment. KEK.auth has the KEK of a firmware be this one alone; images bring it to hosts
        update-pk.auth      has the PK of a firmware be this one; signed by the PK before it. Images bring it to hosts
        signed/             what the KEK before it has signed, signed by this one: db.db.auth, db-2.update.auth, …
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.model.canonical import digest
from obelisk.model.image import PartKind
from obelisk.system import efivars
from obelisk.system.bubblewrap import Room, read_only, writable
from obelisk.system.files import write_durably, written_by_name
from obelisk.system.namespace import remove_tree

_MARK = "TEST-KEY"
_SIGNS = "signs"
_UPDATE, _REVOKED = "update.auth", "revoke.auth"
_ADDED = (_UPDATE, _REVOKED)
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)

# The firmware's three levels, one self-signed certificate each; .auth files carry the signature that enrolment asks for.
_MAKE = """
set -eu
cd /out
umask 077
title=$1
shift
for name; do
    openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 7300 -subj "/CN=$title $name/" -keyout $name.key -out $name.crt 2>/dev/null
    openssl x509 -in $name.crt -outform DER -out $name.der
done
"""
_MAKE_ATTESTATION = """
set -eu
cd /out
umask 077
openssl genpkey -algorithm ed25519 -out attestation.key
openssl pkey -in attestation.key -pubout -out attestation.pub
"""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key directory that is known to be complete.

    `generation` is the name of the directory in it with the db key that signs, empty for the first; `coming` that of one which does not
    sign yet; `platform` that of PK and KEK, empty for the first. `enrolment_sha256` tells apart what images bring to the firmware of
    machines.
    """

    directory: Path
    certificate_sha256: str
    test_key: bool
    generation: str = ""
    coming: str = ""
    platform: str = ""
    enrolment_sha256: str = ""

    @property
    def signing(self) -> Path:
        """The directory of the db.key and db.crt that sign."""
        return self.directory / self.generation

    @property
    def enrol_db(self) -> Path:
        """The file by which new machines come to trust images."""
        return self.signed(self.coming, "both.auth") if self.coming else self.signed(self.generation, "db.auth")

    @property
    def owner(self) -> Path:
        """The directory of PK and KEK."""
        return self.directory / self.platform

    @property
    def update(self) -> Path | None:
        """The file that brings hosts the certificate that is coming."""
        return self.signed(self.coming, _UPDATE) if self.coming else None

    @property
    def revoke(self) -> Path | None:
        """The file that has hosts refuse what the key before signed."""
        file = self.signed(self.generation, _REVOKED)
        return file if self.generation and file.exists() else None

    @property
    def enrolment(self) -> Mapping[str, Path]:
        """The files of an image by which the firmware of a new machine learns of the keys, by their names in it."""
        return {"PK.auth": self.owner / "PK.auth", "KEK.auth": self.owner / "KEK.auth", "db.auth": self.enrol_db}

    @property
    def updates(self) -> Mapping[PartKind, Path]:
        """The files of an image by which the firmware of hosts learns of what has changed."""
        found = {PartKind.UPDATE_DB: self.update, PartKind.UPDATE_DBX: self.revoke}
        if self.platform:
            found |= {PartKind.UPDATE_PK: self.owner / "update-pk.auth", PartKind.UPDATE_KEK: self.owner / "KEK.auth"}
        return {kind: file for kind, file in found.items() if file is not None}

    def signed(self, generation: str, name: str) -> Path:
        """A file of a db key, signed by the KEK that counts."""
        again = self.owner / "signed" / f"{generation or 'db'}.{name}"
        return again if self.platform and again.exists() else self.directory / generation / name

    @property
    def coming_sha256(self) -> str:
        """That of the certificate that is coming; empty when none is."""
        return _fingerprint(self.directory / self.coming) if self.coming else ""


def load(directory: Path) -> SigningKey | None:
    """The keys in `directory`; None when there are none.

    Raises:
        TrustError: a private key can be read by others.
        StateError: the directory is incomplete.
    """
    if not directory.exists():
        return None
    _require(directory, ("db.key", "db.crt", "db.auth", "KEK.auth", "PK.auth", "attestation.key"))
    generation, coming, platform = "", "", ""
    for each in _generations(directory, "platform"):
        _require(each, ("PK.auth", "KEK.auth", "update-pk.auth"))
        platform = each.name
    for name in ("PK.key", "KEK.key"):
        if (directory / platform / name).exists():
            _require(directory / platform, (name,))
    for each in _generations(directory, "db"):
        _require(each, ("db.key", "db.crt", "db.auth", "both.auth", _UPDATE))
        if (each / _SIGNS).exists():
            generation = each.name
        else:
            coming = each.name
    found = SigningKey(directory, _fingerprint(directory / generation), (directory / _MARK).exists(), generation, coming, platform)
    files = {**found.enrolment, **{kind.value: file for kind, file in found.updates.items()}}
    return replace(found, enrolment_sha256=digest({name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}))


def _require(directory: Path, names: tuple[str, ...]) -> None:
    for name in names:
        file = directory / name
        if not file.exists():
            raise StateError(
                f"the key directory {directory} lacks {name}",
                code="keys-incomplete",
                hint="restore it, or move it away and run `obelisk keys`",
            )
        if name.endswith(".key") and file.stat().st_mode & 0o077:
            raise TrustError(f"{file} can be read by others", code="keys-readable", hint=f"chmod 600 {file}, and consider new keys")


def _generations(directory: Path, what: str) -> list[Path]:
    """The keys `db` or `platform` after the first, in the order in which they came."""
    found = (path for path in directory.glob(f"{what}-*") if path.name.removeprefix(f"{what}-").isdecimal())
    return sorted(found, key=_number)


def _number(generation: Path) -> int:
    return int(generation.name.rpartition("-")[2])


def _fingerprint(place: Path) -> str:
    return hashlib.sha256((place / "db.crt").read_bytes()).hexdigest()


def create(directory: Path, room: Room, *, name: str = "Obelisk", test_key: bool = False) -> SigningKey:
    """Make new keys in `directory`, which must not exist.

    Raises:
        StateError: there are keys already, or they cannot be written.
    """
    if directory.exists():
        raise StateError(
            f"{directory} exists already", code="keys-exist", hint="move it away if you really want new keys; hosts trust the old ones"
        )
    fresh = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    with written_by_name(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir(mode=0o700)
    try:
        label = f"{name} TEST" if test_key else name
        binds = [writable(fresh, "/out")]
        room.run(["sh", "-c", _MAKE, "keys", label, "PK", "KEK", "db"], binds=binds)
        room.run(["sh", "-c", _MAKE_ATTESTATION], binds=binds)
        for variable, signer in (("PK", "PK"), ("KEK", "PK"), ("db", "KEK")):
            (fresh / f"{variable}.auth").write_bytes(
                _Signer(room, fresh, signer).sign(variable, [(fresh / f"{variable}.der").read_bytes()])
            )
        if test_key:
            (fresh / _MARK).write_text("Made without being asked for. Images signed with it say so in their manifest.\n")
        fresh.rename(directory)
    except BaseException:
        remove_tree(fresh)
        raise
    made = load(directory)
    if made is None:
        raise StateError(f"{directory} vanished", code="keys-vanished")
    return made


def rotate(directory: Path, room: Room, *, name: str = "Obelisk") -> SigningKey:
    """Make the next db key. Images built from now on bring its certificate to hosts, and are signed by the key before it.

    Raises:
        StateError: there are no keys, or the last rotation is not finished.
    """
    found = _there(directory)
    if found.coming:
        raise StateError(
            f"the key {found.coming_sha256[:12]} is coming already",
            code="rotation-underway",
            hint="release an image built since then; when every host runs it: `obelisk keys rotate secure-boot --finish`",
        )
    _require_private(found, "KEK.key")
    with _next(directory, "db") as (number, fresh):
        label = f"{name} TEST" if found.test_key else name
        room.run(["sh", "-c", _MAKE, "keys", f"{label} {number}", "db"], binds=[writable(fresh, "/out")])
        before, new = (found.signing / "db.der").read_bytes(), (fresh / "db.der").read_bytes()
        (fresh / "db.auth").write_bytes(_Signer(room, found.owner, "KEK").sign("db", [new]))
        (fresh / "both.auth").write_bytes(_Signer(room, found.owner, "KEK").sign("db", [before, new]))
        (fresh / _UPDATE).write_bytes(_Signer(room, found.owner, "KEK").sign("db", [new], append=True))
    return _there(directory)


def rotate_platform(directory: Path, room: Room, *, name: str = "Obelisk") -> SigningKey:
    """Make the next PK and KEK. Images built from now on have hosts exchange theirs.

    A firmware takes a PK from the one before alone, so hosts have to run an image that was built since the last time.

    Raises:
        StateError: there are no keys, or PK.key is not there.
    """
    found = _there(directory)
    _require_private(found, "PK.key")
    with _next(directory, "platform") as (number, fresh):
        label = f"{name} TEST" if found.test_key else name
        room.run(["sh", "-c", _MAKE, "keys", f"{label} {number}", "PK", "KEK"], binds=[writable(fresh, "/out")])
        # What takes the place of a variable has to be younger than it.
        at = _EPOCH + timedelta(days=number)
        for file, keys, variable in (("PK", fresh, "PK"), ("KEK", fresh, "KEK"), ("update-pk", found.owner, "PK")):
            listed = [(fresh / f"{variable}.der").read_bytes()]
            (fresh / f"{file}.auth").write_bytes(_Signer(room, keys, "PK").sign(variable, listed, at=at))
        (fresh / "signed").mkdir()
        for generation in ("", *(each.name for each in _generations(directory, "db"))):
            for file in ("db.auth", "both.auth", _UPDATE, _REVOKED):
                before = found.signed(generation, file)
                if not before.exists():
                    continue
                listed = list(efivars.certificates_of(before.read_bytes()))
                variable = "dbx" if file == _REVOKED else "db"
                again = _Signer(room, fresh, "KEK").sign(variable, listed, append=file in _ADDED)
                (fresh / "signed" / f"{generation or 'db'}.{file}").write_bytes(again)
    return _there(directory)


@contextmanager
def _next(directory: Path, what: str) -> Iterator[tuple[int, Path]]:
    """The number of the next generation, and a directory for it that appears under its name when the block has ended well."""
    number = 1 + max(map(_number, _generations(directory, what)), default=1)
    fresh = directory / f".{what}-{number}.{os.getpid()}.new"
    with written_by_name(directory / f"{what}-{number}"):
        fresh.mkdir(mode=0o700)
    try:
        yield number, fresh
        fresh.rename(directory / f"{what}-{number}")
    except BaseException:
        remove_tree(fresh)
        raise


def _require_private(found: SigningKey, name: str) -> None:
    """A private key that only new keys need, and that may be elsewhere meanwhile."""
    file = found.owner / name
    if not file.exists():
        raise StateError(
            f"this wants {file}, which is not there", code="keys-offline", hint="bring it back for this command, and take it away again"
        )


def finish(directory: Path) -> SigningKey:
    """Let the coming db key sign.

    Raises:
        StateError: none is coming.
    """
    found = _there(directory)
    if found.update is None:
        raise StateError("no key is coming", code="rotation-none", hint="begin with `obelisk keys rotate secure-boot`")
    write_durably(directory / found.coming / _SIGNS, b"")
    return _there(directory)


def revoke(directory: Path, room: Room) -> SigningKey:
    """Have images bring hosts the word that the db key before the one that signs counts no more.

    Raises:
        StateError: there was none, or the last rotation is not finished.
    """
    found = _there(directory)
    if found.coming or not found.generation:
        raise StateError(
            "there is no db key before the one that signs", code="rotation-none", hint="`obelisk keys rotate secure-boot`, then --finish"
        )
    if found.revoke is not None:
        return found
    _require_private(found, "KEK.key")
    signers = [directory, *_generations(directory, "db")]
    before = signers[signers.index(found.signing) - 1]
    write_durably(found.signing / _REVOKED, _Signer(room, found.owner, "KEK").sign("dbx", [(before / "db.der").read_bytes()], append=True))
    return _there(directory)


def _there(directory: Path) -> SigningKey:
    found = load(directory)
    if found is None:
        raise StateError(f"there are no keys in {directory}", code="keys-missing", hint="make them: obelisk keys")
    return found


@dataclass(frozen=True, slots=True)
class _Signer:
    """One of the keys PK and KEK in a directory."""

    room: Room
    directory: Path
    name: str

    def sign(self, variable: str, certificates: Sequence[bytes], *, append: bool = False, at: datetime = _EPOCH) -> bytes:
        """What makes the firmware's `variable` hold these certificates (DER), or also them, as of that day."""
        listed = [base64.b64encode(certificate).decode() for certificate in certificates]
        wanted = json.dumps([variable, self.name, listed, append, [at.year, at.month, at.day]])
        words = ["python3", "-I", "-c", _SIGN_LIST, wanted]
        return base64.b64decode(self.room.run(words, binds=[read_only(self.directory, "/keys")]).stdout)


# EFI_VARIABLE_AUTHENTICATION_2: a time, a PKCS#7 signature over (name, vendor GUID, attributes, time, list), then the signature list.
# Source: UEFI specification 2.10, sections 8.2.2 and 32.4.1.
_SIGN_LIST = r"""
import base64, json, struct, subprocess, sys, uuid
OWNER = uuid.UUID("6f62656c-6973-4b00-8000-000000000002")
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
ATTRIBUTES = 0x27  # non-volatile, boot and runtime access, time-based authentication
APPEND = 0x40
name, signer, certificates, append, day = json.loads(sys.argv[1])
TIME = struct.pack("<HBBBBBBIhBB", *day, 0, 0, 0, 0, 0, 0, 0, 0)
vendor = GLOBAL if name in ("PK", "KEK") else IMAGE_SECURITY
listed = b""
for der in map(base64.b64decode, certificates):
    listed += X509.bytes_le + struct.pack("<III", 28 + 16 + len(der), 0, 16 + len(der)) + OWNER.bytes_le + der
attributes = ATTRIBUTES | (APPEND if append else 0)
signed = name.encode("utf-16-le") + vendor.bytes_le + struct.pack("<I", attributes) + TIME + listed
words = ["openssl", "smime", "-sign", "-binary", "-noattr", "-md", "sha256", "-outform", "DER"]
words += ["-signer", f"/keys/{signer}.crt", "-inkey", f"/keys/{signer}.key"]
content = subprocess.run(words, input=signed, check=True, capture_output=True).stdout
# The variable holds SignedData itself, without the ContentInfo around it: skip SEQUENCE, OID and the explicit tag.
def header(data, at):
    length = data[at + 1]
    return at + 2 + (length & 0x7F if length & 0x80 else 0)
at = header(content, 0)
at = at + 2 + content[at + 1]
at = header(content, at)
body = content[at:]
certificate = struct.pack("<IHH", 24 + len(body), 0x0200, 0x0EF1) + PKCS7.bytes_le + body
print(base64.b64encode(TIME + certificate + listed).decode())
"""
