"""The keys that sign what a build makes: Secure Boot (PK, KEK, db) and attestations.

A key directory holds PK, KEK and db as .key (PEM, mode 0600), .crt (PEM) and .auth (for enrolment by systemd-boot), and
attestation.key (Ed25519, PEM). A directory with a file `TEST-KEY` is made without being asked for and marks its images as such.

The db key is replaced in steps, since hosts start nothing that a key signed which their firmware does not know:

    db-<n>/                 the n-th db key, n from 2; it appears all at once
        db.key .crt .der    the key
        both.auth           enrols this certificate and the one before it on new machines
        db.auth             enrols this one alone
        update.auth         adds this certificate to the db of a firmware; signed by KEK
        signs               exists: this key signs. Until then the one before does, and images bring hosts `update.auth`
        revoke.auth         puts the certificate before this one into the dbx of a firmware; signed by KEK. Images bring it to hosts
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.model.canonical import digest
from obelisk.system.bubblewrap import Room, read_only, writable
from obelisk.system.files import write_durably, written_by_name
from obelisk.system.namespace import remove_tree

UPDATE_DB, UPDATE_DBX = "update-db.auth", "update-dbx.auth"
"""The files of an image by which the firmware of hosts learns of another certificate, and that one counts no more."""
_MARK = "TEST-KEY"
_SIGNS = "signs"
_REVOKED = "revoke.auth"

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
    sign yet. `enrolment_sha256` tells apart what images bring to the firmware of machines.
    """

    directory: Path
    certificate_sha256: str
    test_key: bool
    generation: str = ""
    coming: str = ""
    enrolment_sha256: str = ""

    @property
    def signing(self) -> Path:
        """The directory of the db.key and db.crt that sign."""
        return self.directory / self.generation

    @property
    def enrol_db(self) -> Path:
        """The file by which new machines come to trust images."""
        return self.directory / self.coming / "both.auth" if self.coming else self.signing / "db.auth"

    @property
    def update(self) -> Path | None:
        """The file that brings hosts the certificate that is coming."""
        return self.directory / self.coming / "update.auth" if self.coming else None

    @property
    def revoke(self) -> Path | None:
        """The file that has hosts refuse what the key before signed."""
        file = self.signing / _REVOKED
        return file if self.generation and file.exists() else None

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
    _require(directory, ("PK.key", "KEK.key", "db.key", "db.crt", "db.auth", "KEK.auth", "PK.auth", "attestation.key"))
    generation, coming = "", ""
    for each in _generations(directory):
        _require(each, ("db.key", "db.crt", "db.auth", "both.auth", "update.auth"))
        if (each / _SIGNS).exists():
            generation = each.name
        else:
            coming = each.name
    found = SigningKey(directory, _fingerprint(directory / generation), (directory / _MARK).exists(), generation, coming)
    files = (directory / "PK.auth", directory / "KEK.auth", found.enrol_db, found.update, found.revoke)
    return replace(found, enrolment_sha256=digest([hashlib.sha256(file.read_bytes()).hexdigest() if file else "" for file in files]))


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


def _generations(directory: Path) -> list[Path]:
    """The db keys after the first, in the order in which they came."""
    found = (path for path in directory.glob("db-*") if path.name.removeprefix("db-").isdecimal())
    return sorted(found, key=lambda path: int(path.name.removeprefix("db-")))


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
            (fresh / f"{variable}.auth").write_bytes(_signed_list(room, fresh, signer, variable, [fresh / f"{variable}.der"]))
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
    number = 1 + max((int(path.name.removeprefix("db-")) for path in _generations(directory)), default=1)
    target = directory / f"db-{number}"
    fresh = directory / f".db-{number}.{os.getpid()}.new"
    with written_by_name(target):
        fresh.mkdir(mode=0o700)
    try:
        label = f"{name} TEST" if found.test_key else name
        room.run(["sh", "-c", _MAKE, "keys", f"{label} {number}", "db"], binds=[writable(fresh, "/out")])
        before, new = found.signing / "db.der", fresh / "db.der"
        (fresh / "db.auth").write_bytes(_signed_list(room, directory, "KEK", "db", [new]))
        (fresh / "both.auth").write_bytes(_signed_list(room, directory, "KEK", "db", [before, new]))
        (fresh / "update.auth").write_bytes(_signed_list(room, directory, "KEK", "db", [new], append=True))
        fresh.rename(target)
    except BaseException:
        remove_tree(fresh)
        raise
    return _there(directory)


def finish(directory: Path) -> SigningKey:
    """Let the coming db key sign.

    Raises:
        StateError: none is coming.
    """
    found = _there(directory)
    if found.update is None:
        raise StateError("no key is coming", code="rotation-none", hint="begin with `obelisk keys rotate secure-boot`")
    write_durably(found.update.parent / _SIGNS, b"")
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
    signers = [directory, *_generations(directory)]
    before = signers[signers.index(found.signing) - 1]
    write_durably(found.signing / _REVOKED, _signed_list(room, directory, "KEK", "dbx", [before / "db.der"], append=True))
    return _there(directory)


def _there(directory: Path) -> SigningKey:
    found = load(directory)
    if found is None:
        raise StateError(f"there are no keys in {directory}", code="keys-missing", hint="make them: obelisk keys")
    return found


def _signed_list(room: Room, keys: Path, signer: str, variable: str, certificates: Sequence[Path], *, append: bool = False) -> bytes:
    """What makes the firmware's `variable` hold these certificates (DER), or also them; signed by SIGNER.key in the directory `keys`."""
    listed = [base64.b64encode(certificate.read_bytes()).decode() for certificate in certificates]
    wanted = json.dumps([variable, signer, listed, append])
    return base64.b64decode(room.run(["python3", "-I", "-c", _SIGN_LIST, wanted], binds=[read_only(keys, "/keys")]).stdout)


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
TIME = struct.pack("<HBBBBBBIhBB", 2024, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
name, signer, certificates, append = json.loads(sys.argv[1])
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
