"""The db key of Secure Boot and its successors, made by the tools tree's openssl, and read back by another reader."""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tool import Tool

from obelisk.build import keys
from obelisk.errors import StateError, TrustError
from obelisk.model.image import PartKind
from obelisk.system import efivars
from obelisk.system.bubblewrap import Room, read_only

OWN = 0x27
ADDED = 0x67
SECURITY_GUID = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
GLOBAL_GUID = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


_DERS = ("platform-2/PK.der", "platform-2/KEK.der", "db.der", "db-2/db.der", "db-3/db.der")


@pytest.fixture(scope="module")
def room(workshop: Tool) -> Room:
    (ukify,) = (workshop.store / "steps").glob("*/output/tree/usr/bin/ukify")
    return Room(ukify.parents[2])


@pytest.fixture
def directory(room: Room, tmp_path: Path) -> Iterator[Path]:
    keys.create(tmp_path / "keys", room)
    yield tmp_path / "keys"
    subprocess.run(["rm", "-rf", tmp_path / "keys"], check=True)


def check(room: Room, directory: Path, file: Path, variable: str, attributes: int, signer: str = "KEK") -> tuple[bytes, ...]:
    """The certificates of a signed update, whose signature by a key in that directory openssl has verified."""
    data = file.read_bytes()
    length, revision, kind = struct.unpack_from("<IHH", data, 16)
    assert (revision, kind) == (0x0200, 0x0EF1)
    signature, listed = data[16 + 24 : 16 + length], data[16 + length :]
    place = directory.parent / "check"
    place.mkdir(exist_ok=True)
    vendor = GLOBAL_GUID if variable in ("PK", "KEK") else SECURITY_GUID
    (place / "signed").write_bytes(variable.encode("utf-16-le") + vendor + struct.pack("<I", attributes) + data[:16] + listed)
    # openssl wants the ContentInfo around it that the firmware does without.
    inner = b"\xa0\x82" + struct.pack(">H", len(signature)) + signature
    body = bytes.fromhex("06092a864886f70d010702") + inner
    (place / "signature").write_bytes(b"\x30\x82" + struct.pack(">H", len(body)) + body)
    words = ["openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", "/check/signature", "-content", "/check/signed"]
    words += ["-CAfile", f"/keys/{signer}.crt", "-purpose", "any", "-out", "/dev/null"]
    room.run(words, binds=[read_only(place, "/check"), read_only(directory, "/keys")])
    return efivars.certificates_of(data)


def test_a_key_comes_signs_and_has_the_one_before_refused(room: Room, directory: Path) -> None:
    first = keys.load(directory)
    assert first is not None
    old = (directory / "db.der").read_bytes()
    assert check(room, directory, first.enrol_db, "db", OWN) == (old,)

    coming = keys.rotate(directory, room)
    new = (directory / "db-2/db.der").read_bytes()
    assert coming.certificate_sha256 == first.certificate_sha256
    assert coming.update is not None
    assert check(room, directory, coming.update, "db", ADDED) == (new,)
    assert check(room, directory, coming.enrol_db, "db", OWN) == (old, new)
    assert coming.enrolment_sha256 != first.enrolment_sha256
    with pytest.raises(StateError, match="is coming already"):
        keys.rotate(directory, room)
    with pytest.raises(StateError, match="no db key before"):
        keys.revoke(directory, room)

    signs = keys.finish(directory)
    assert (signs.certificate_sha256, signs.coming, signs.update) == (coming.coming_sha256, "", None)
    assert signs.signing == directory / "db-2"
    assert check(room, directory, signs.enrol_db, "db", OWN) == (new,)
    with pytest.raises(StateError, match="no key is coming"):
        keys.finish(directory)

    revoked = keys.revoke(directory, room)
    assert revoked.revoke is not None
    assert check(room, directory, revoked.revoke, "dbx", ADDED) == (old,)
    assert keys.revoke(directory, room) == revoked

    third = keys.rotate(directory, room)
    assert check(room, directory, third.enrol_db, "db", OWN) == (new, (directory / "db-3/db.der").read_bytes())
    keys.finish(directory)
    assert keys.revoke(directory, room).revoke == directory / "db-3/revoke.auth"
    assert check(room, directory, directory / "db-3/revoke.auth", "dbx", ADDED) == (new,)
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.rglob("*.key"))


def test_another_pk_and_kek_sign_all_that_the_ones_before_have_signed(room: Room, directory: Path) -> None:
    keys.rotate(directory, room)
    keys.finish(directory)
    keys.revoke(directory, room)
    before = keys.rotate(directory, room)
    after = keys.rotate_platform(directory, room)
    owner = directory / "platform-2"
    assert (after.certificate_sha256, after.coming_sha256) == (before.certificate_sha256, before.coming_sha256)
    assert after.enrolment_sha256 != before.enrolment_sha256

    pk, kek, old, new, coming = [(directory / name).read_bytes() for name in _DERS]
    updates = after.updates
    assert check(room, directory, updates[PartKind.UPDATE_PK], "PK", OWN, "PK") == (pk,)
    assert check(room, owner, after.enrolment["PK.auth"], "PK", OWN, "PK") == (pk,)
    assert updates[PartKind.UPDATE_KEK] == after.enrolment["KEK.auth"]
    assert check(room, owner, updates[PartKind.UPDATE_KEK], "KEK", OWN, "PK") == (kek,)
    # A variable is replaced only by what is younger than it.
    assert updates[PartKind.UPDATE_PK].read_bytes()[:16] > (directory / "PK.auth").read_bytes()[:16]
    assert check(room, owner, updates[PartKind.UPDATE_DB], "db", ADDED) == (coming,)
    assert check(room, owner, updates[PartKind.UPDATE_DBX], "dbx", ADDED) == (old,)
    assert check(room, owner, after.enrol_db, "db", OWN) == (new, coming)

    keys.finish(directory)
    keys.revoke(directory, room)
    fourth = keys.rotate(directory, room)
    assert check(room, owner, fourth.updates[PartKind.UPDATE_DB], "db", ADDED) == ((directory / "db-4/db.der").read_bytes(),)
    assert check(room, owner, fourth.updates[PartKind.UPDATE_DBX], "dbx", ADDED) == (new,)

    keys.rotate_platform(directory, room)
    third = directory / "platform-3"
    found = keys.load(directory)
    assert found is not None
    assert check(room, owner, found.updates[PartKind.UPDATE_PK], "PK", OWN, "PK") == ((third / "PK.der").read_bytes(),)
    assert check(room, third, found.updates[PartKind.UPDATE_DB], "db", ADDED) == ((directory / "db-4/db.der").read_bytes(),)
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.rglob("*.key"))


def test_what_only_new_keys_need_may_be_elsewhere(room: Room, directory: Path) -> None:
    before = keys.load(directory)
    for name in ("PK.key", "KEK.key"):
        (directory / name).rename(directory.parent / name)
    assert keys.load(directory) == before
    with pytest.raises(StateError, match=r"KEK\.key, which is not there"):
        keys.rotate(directory, room)
    with pytest.raises(StateError, match=r"/PK\.key, which is not there"):
        keys.rotate_platform(directory, room)
    (directory.parent / "PK.key").rename(directory / "PK.key")
    assert keys.rotate_platform(directory, room).platform == "platform-2"
    (directory / "platform-2/KEK.key").chmod(0o644)
    with pytest.raises(TrustError, match="can be read by others"):
        keys.load(directory)


def test_a_rotation_that_is_cut_leaves_the_keys_as_they_were(room: Room, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys.load(directory)
    run = Room.run
    for cut, rotate in [(0, keys.rotate), (1, keys.rotate), (0, keys.rotate_platform), (4, keys.rotate_platform)]:
        left = [cut]

        def breaks(*words: Any, left: list[int] = left, **more: Any) -> Any:  # noqa: ANN401 - passed on
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return run(*words, **more)

        with monkeypatch.context() as patched:
            patched.setattr(Room, "run", breaks)
            with pytest.raises(KeyboardInterrupt):
                rotate(directory, room)
        assert keys.load(directory) == before
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    keys.rotate(directory, room)
    assert keys.finish(directory).generation == "db-2"
