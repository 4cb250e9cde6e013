"""The keys that sign what a build makes: Secure Boot (PK, KEK, db) and attestations.

A key directory holds PK, KEK and db as .key (PEM, mode 0600), .crt (PEM) and .auth (for enrolment by systemd-boot), and
attestation.key (Ed25519, PEM). A directory with a file `TEST-KEY` is made without being asked for and marks its images as such.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.system.bubblewrap import Room, writable
from obelisk.system.files import written_by_name
from obelisk.system.namespace import remove_tree

_MARK = "TEST-KEY"

# The firmware's three levels, one self-signed certificate each; .auth files carry the signature that enrolment asks for.
_MAKE = """
set -eu
cd /out
umask 077
for name in PK KEK db; do
    openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 7300 -subj "/CN=$1 $name/" -keyout $name.key -out $name.crt 2>/dev/null
    openssl x509 -in $name.crt -outform DER -out $name.der
done
openssl genpkey -algorithm ed25519 -out attestation.key
openssl pkey -in attestation.key -pubout -out attestation.pub
"""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key directory that is known to be complete."""

    directory: Path
    certificate_sha256: str
    test_key: bool


def load(directory: Path) -> SigningKey | None:
    """The keys in `directory`; None when there are none.

    Raises:
        TrustError: a private key can be read by others.
        StateError: the directory is incomplete.
    """
    if not directory.exists():
        return None
    for name in ("PK.key", "KEK.key", "db.key", "db.crt", "db.auth", "KEK.auth", "PK.auth", "attestation.key"):
        file = directory / name
        if not file.exists():
            raise StateError(
                f"the key directory {directory} lacks {name}",
                code="keys-incomplete",
                hint="restore it, or move it away and run `obelisk keys`",
            )
        if name.endswith(".key") and file.stat().st_mode & 0o077:
            raise TrustError(f"{file} can be read by others", code="keys-readable", hint=f"chmod 600 {file}, and consider new keys")
    certificate = (directory / "db.crt").read_bytes()
    return SigningKey(directory, hashlib.sha256(certificate).hexdigest(), (directory / _MARK).exists())


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
        room.run(["sh", "-c", _MAKE, "keys", label], binds=[writable(fresh, "/out")])
        room.run(["python3", "-I", "-c", _MAKE_AUTH], binds=[writable(fresh, "/out")])
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


# EFI_VARIABLE_AUTHENTICATION_2: a time, a PKCS#7 signature over (name, vendor GUID, attributes, time, list), then the signature list.
# Source: UEFI specification 2.10, sections 8.2.2 and 32.4.1.
_MAKE_AUTH = r"""
import os, struct, subprocess, uuid
os.chdir("/out")
OWNER = uuid.UUID("6f62656c-6973-4b00-8000-000000000002")
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
ATTRIBUTES = 0x27  # non-volatile, boot and runtime access, time-based authentication
TIME = struct.pack("<HBBBBBBIhBB", 2024, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
for name, vendor, signer in (("PK", GLOBAL, "PK"), ("KEK", GLOBAL, "PK"), ("db", IMAGE_SECURITY, "KEK")):
    der = open(f"{name}.der", "rb").read()
    listed = X509.bytes_le + struct.pack("<III", 28 + 16 + len(der), 0, 16 + len(der)) + OWNER.bytes_le + der
    signed = name.encode("utf-16-le") + vendor.bytes_le + struct.pack("<I", ATTRIBUTES) + TIME + listed
    open("data", "wb").write(signed)
    subprocess.run(["openssl", "smime", "-sign", "-binary", "-noattr", "-md", "sha256", "-outform", "DER", "-in", "data",
                    "-signer", f"{signer}.crt", "-inkey", f"{signer}.key", "-out", "pkcs7"], check=True, capture_output=True)
    content = open("pkcs7", "rb").read()
    # The variable holds SignedData itself, without the ContentInfo around it: skip SEQUENCE, OID and the explicit tag.
    def header(data, at):
        length = data[at + 1]
        return at + 2 + (length & 0x7F if length & 0x80 else 0)
    at = header(content, 0)
    at = at + 2 + content[at + 1]
    at = header(content, at)
    body = content[at:]
    certificate = struct.pack("<IHH", 24 + len(body), 0x0200, 0x0EF1) + PKCS7.bytes_le + body
    open(f"{name}.auth", "wb").write(TIME + certificate + listed)
os.remove("data"); os.remove("pkcs7")
"""
