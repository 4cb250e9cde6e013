"""The db key of Secure Boot and its successors, made by the tools tree's openssl, and read back by another reader."""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tool import Tool

from obelisk.build import keys
from obelisk.errors import StateError
from obelisk.system import efivars
from obelisk.system.bubblewrap import Room, read_only

OWN = 0x27
ADDED = 0x67
SECURITY_GUID = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")


@pytest.fixture(scope="module")
def room(workshop: Tool) -> Room:
    (ukify,) = (workshop.store / "steps").glob("*/output/tree/usr/bin/ukify")
    return Room(ukify.parents[2])


@pytest.fixture
def directory(room: Room, tmp_path: Path) -> Iterator[Path]:
    keys.create(tmp_path / "keys", room)
    yield tmp_path / "keys"
    subprocess.run(["rm", "-rf", tmp_path / "keys"], check=True)


def check(room: Room, directory: Path, file: Path, variable: str, attributes: int) -> tuple[bytes, ...]:
    """The certificates of a signed update, whose signature by KEK openssl has verified."""
    data = file.read_bytes()
    length, revision, kind = struct.unpack_from("<IHH", data, 16)
    assert (revision, kind) == (0x0200, 0x0EF1)
    signature, listed = data[16 + 24 : 16 + length], data[16 + length :]
    place = directory.parent / "check"
    place.mkdir(exist_ok=True)
    (place / "signed").write_bytes(variable.encode("utf-16-le") + SECURITY_GUID + struct.pack("<I", attributes) + data[:16] + listed)
    # openssl wants the ContentInfo around it that the firmware does without.
    inner = b"\xa0\x82" + struct.pack(">H", len(signature)) + signature
    body = bytes.fromhex("06092a864886f70d010702") + inner
    (place / "signature").write_bytes(b"\x30\x82" + struct.pack(">H", len(body)) + body)
    words = ["openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", "/check/signature", "-content", "/check/signed"]
    words += ["-CAfile", "/keys/KEK.crt", "-purpose", "any", "-out", "/dev/null"]
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


def test_a_rotation_that_is_cut_leaves_the_keys_as_they_were(room: Room, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys.load(directory)
    run = Room.run
    for cut in range(2):
        left = [cut]

        def breaks(*words: Any, left: list[int] = left, **more: Any) -> Any:  # noqa: ANN401 - passed on
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return run(*words, **more)

        with monkeypatch.context() as patched:
            patched.setattr(Room, "run", breaks)
            with pytest.raises(KeyboardInterrupt):
                keys.rotate(directory, room)
        assert keys.load(directory) == before
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    keys.rotate(directory, room)
    assert keys.finish(directory).generation == "db-2"
