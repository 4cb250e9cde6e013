"""Reports and proofs: only a whole pass is proven, and only for that image and by that key."""

import json
import subprocess
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from obelisk.build.keys import SigningKey
from obelisk.build.provenance import sign_statement
from obelisk.errors import StateError, TrustError
from obelisk.model.proof import FIXED
from obelisk.model.spec import Distribution, HealthCheck, Role, Spec, TestCase, UnitCheck
from obelisk.release.proofs import verify_proof
from obelisk.trial import Outcome, Report, as_junit, proof
from obelisk.trial.agent import Probe, findings
from obelisk.trial.agent import script as agent_script
from obelisk.trial.plan import planned

TRIED = (*FIXED, "health page", "test greets")
REPORT = Report(
    "ab" * 32,
    "web_1",
    "tcg",
    TRIED,
    tuple(Outcome(name, passed=True, duration_ms=1200, detail="fine") for name in TRIED),
    tools=(("qemu", "10"),),
)


def make_key(place: Path) -> tuple[SigningKey, bytes]:
    private = Ed25519PrivateKey.generate()
    place.mkdir()
    (place / "attestation.key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return SigningKey(place, "0" * 64, test_key=True), private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_proof_holds_for_its_image_and_key(tmp_path: Path) -> None:
    key, public = make_key(tmp_path / "key")
    predicate = verify_proof(proof(REPORT, key), public, REPORT.image_id)
    assert predicate["passedTests"] == list(TRIED)


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


@pytest.mark.parametrize("lost", TRIED)
def test_a_trial_that_left_out_anything_planned_is_never_proven(tmp_path: Path, lost: str) -> None:
    key, _ = make_key(tmp_path / "key")
    cut = replace(REPORT, outcomes=tuple(outcome for outcome in REPORT.outcomes if outcome.name != lost))
    assert cut.missing == (lost,)
    assert f'name="{lost}"' in as_junit(cut)
    with pytest.raises(StateError):
        proof(cut, key)


@pytest.mark.parametrize("lost", TRIED)
def test_a_signed_proof_that_lacks_a_scenario_is_refused(tmp_path: Path, lost: str) -> None:
    key, public = make_key(tmp_path / "key")
    statement = json.loads(b64decode(json.loads(proof(REPORT, key))["payload"]))
    statement["predicate"]["passedTests"].remove(lost)
    with pytest.raises(TrustError):
        verify_proof(sign_statement(statement, key), public, REPORT.image_id)


def test_a_plan_that_leaves_out_a_fixed_scenario_does_not_help(tmp_path: Path) -> None:
    key, public = make_key(tmp_path / "key")
    shortened = replace(REPORT, planned=FIXED[:1], outcomes=REPORT.outcomes[:1])
    assert shortened.passed
    with pytest.raises(TrustError):
        verify_proof(proof(shortened, key), public, REPORT.image_id)


def test_the_plan_has_the_fixed_scenarios_and_all_that_the_spec_declares() -> None:
    spec = Spec(
        Path("/s/obelisk.toml"),
        "web",
        "1",
        Distribution("debian", "trixie"),
        Role.SERVER,
        health=(HealthCheck("page", UnitCheck("nginx.service")),),
        tests=(TestCase("greets", "true"),),
    )
    assert planned(spec) == TRIED


def test_junit_counts_failures_and_bears_control_characters() -> None:
    failed = replace(REPORT, outcomes=(*REPORT.outcomes, Outcome("root", passed=False, duration_ms=5, detail="\x1b[31mno\x00")))
    suite = ET.fromstring(as_junit(failed))  # noqa: S314 - our own text
    assert (suite.get("tests"), suite.get("failures")) == (str(len(TRIED) + 1), "1")


def test_findings_take_whole_lines_only() -> None:
    found = findings("health 0 12 aGk=\ncut 0 5\nend 0 0 \nhalf 1 2 ")
    assert found["health"].output == "hi"
    assert "cut" not in found
    assert "end" in found


def test_the_agent_reports_long_output_whole(tmp_path: Path) -> None:
    """What a test expects may stand anywhere in its output."""
    script = agent_script(
        (Probe("long", "echo wanted; seq 1 20000"), Probe("slow", "sleep 9", timeout_s=1), Probe("bad", "echo no >&2; exit 3"))
    )
    port = tmp_path / "port"
    port.touch()
    run = script.replace("/dev/virtio-ports/obelisk.trial", str(port)).replace('>"$port"', '>>"$port"').replace("systemctl poweroff", "")
    subprocess.run(["bash", "-c", run.replace("/run/obelisk-trial", str(tmp_path))], check=True)
    found = findings(port.read_text())
    assert found["long"].output.startswith("wanted\n")
    assert found["long"].output.endswith("20000\n")
    assert found["slow"].status == 124
    assert (found["bad"].status, found["bad"].output) == (3, "no\n")
    assert "end" in found
