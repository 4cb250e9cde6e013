"""A change of the key that signs images: no host jumps over the release that brings its firmware the new one."""

import hashlib
import ssl
import struct
from datetime import timedelta
from pathlib import Path

import pytest
import repository_samples as samples

from obelisk.errors import StateError
from obelisk.model.publication import Terms
from obelisk.model.release import Release
from obelisk.release.publishing import Wanted, release
from obelisk.release.retiring import retire

X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
NEW = b"the DER of a certificate"
UPDATE = bytes(16) + struct.pack("<I", 24) + bytes(20) + X509 + struct.pack("<III", 28 + 16 + len(NEW), 0, 16 + len(NEW)) + bytes(16) + NEW
NEW_SHA256 = hashlib.sha256(ssl.DER_cert_to_PEM_cert(NEW).encode()).hexdigest()


class Desk:
    """A publisher of images that different keys have signed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.who = samples.publisher(place, samples.keyring(place))

    def release(
        self, version: str, *, channel: str = "stable", minimum: str = "", certificate: str = "c" * 64, brings: bytes = b""
    ) -> Release:
        made = samples.image(self.place, version, certificate=certificate, brings=brings)
        proof = samples.proof_of(made, self.place / "tester")
        return release(self.who, Wanted(made, (proof,), channel, Terms(minimum)), samples.founding())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_the_first_release_that_brings_the_key_is_the_minimum_of_those_that_it_signs(desk: Desk) -> None:
    assert desk.release("1").minimum == ""
    assert desk.release("2", brings=UPDATE).minimum == ""
    assert desk.release("3", brings=UPDATE).minimum == ""
    assert desk.release("4", certificate=NEW_SHA256).minimum == "2"
    assert desk.release("5", certificate=NEW_SHA256).minimum == "2"
    assert desk.release("6", certificate=NEW_SHA256, minimum="4").minimum == "4"


def test_what_is_released_already_keeps_its_minimum_when_the_ones_before_it_are_gone(desk: Desk) -> None:
    for version in ("1", "2", "3"):
        desk.release(version, brings=UPDATE)
    assert desk.release("4", certificate=NEW_SHA256).minimum == "1"
    retire(samples.at(desk.who, samples.NOW + samples.DAY), keep=2, before=samples.NOW + samples.DAY, grace=timedelta(0))
    assert desk.release("4", channel="testing", certificate=NEW_SHA256).minimum == "1"


def test_hosts_of_a_release_that_brings_nothing_would_be_lost(desk: Desk) -> None:
    """The one in between does not count: a host of the newest would not take it any more."""
    desk.release("1", brings=UPDATE)
    desk.release("2")
    with pytest.raises(StateError) as refused:
        desk.release("3", certificate=NEW_SHA256)
    assert refused.value.code == "release-key-unknown"
    assert "rotate secure-boot" in refused.value.hint


@pytest.mark.parametrize("brings", [b"", b"short", UPDATE.replace(NEW, b"x" * len(NEW))], ids=["nothing", "no update", "another key"])
def test_what_brings_another_key_or_none_is_no_way(desk: Desk, brings: bytes) -> None:
    desk.release("1", brings=brings)
    with pytest.raises(StateError) as refused:
        desk.release("2", certificate=NEW_SHA256)
    assert refused.value.code == "release-key-unknown"
    # Whoever has enrolled it by hand says so.
    assert desk.release("2", certificate=NEW_SHA256, minimum="1").minimum == "1"
