"""Reports and proofs: only a whole pass is proven, and only for that image and by that key."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from obelisk.build.keys import SigningKey
from obelisk.errors import StateError, TrustError
from obelisk.trial import Outcome, Report, as_junit, proof, verify_proof
from obelisk.trial.agent import findings

REPORT = Report("ab" * 32, "web_1", "tcg", (Outcome("boots", passed=True, duration_ms=1200, detail="fine"),), tools=(("qemu", "10"),))


def make_key(place: Path) -> tuple[SigningKey, bytes]:
    private = Ed25519PrivateKey.generate()
    place.mkdir()
    (place / "attestation.key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return SigningKey(place, "0" * 64, test_key=True), private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_proof_holds_for_its_image_and_key(tmp_path: Path) -> None:
    key, public = make_key(tmp_path / "key")
    predicate = verify_proof(proof(REPORT, key), public, REPORT.image_id)
    assert predicate["passedTests"] == ["boots"]


def test_a_proof_is_refused_for_another_image_key_or_content(tmp_path: Path) -> None:
    key, public = make_key(tmp_path / "key")
    _, stranger = make_key(tmp_path / "stranger")
    envelope = proof(REPORT, key)
    with pytest.raises(TrustError):
        verify_proof(envelope, public, "cd" * 32)
    with pytest.raises(TrustError):
        verify_proof(envelope, stranger, REPORT.image_id)
    changed = json.loads(envelope)
    changed["payload"] = changed["payload"][:-8] + "AAAAAAA="
    for damaged in (json.dumps(changed).encode(), envelope[:-20], b"{}", b"[]"):
        with pytest.raises(TrustError):
            verify_proof(damaged, public, REPORT.image_id)


def test_a_failed_or_empty_trial_is_never_proven(tmp_path: Path) -> None:
    key, _ = make_key(tmp_path / "key")
    for outcomes in ((), (*REPORT.outcomes, Outcome("root", passed=False, duration_ms=1))):
        with pytest.raises(StateError):
            proof(replace(REPORT, outcomes=outcomes), key)


def test_junit_counts_failures_and_bears_control_characters() -> None:
    failed = replace(REPORT, outcomes=(*REPORT.outcomes, Outcome("root", passed=False, duration_ms=5, detail="\x1b[31mno\x00")))
    suite = ET.fromstring(as_junit(failed))  # noqa: S314 - our own text
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")


def test_findings_take_whole_lines_only() -> None:
    found = findings("health 0 12 aGk=\ncut 0 5\nend 0 0 \nhalf 1 2 ")
    assert found["health"].output == "hi"
    assert "cut" not in found
    assert "end" in found
