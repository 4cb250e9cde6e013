"""A signed statement that an image passed its tests: in-toto test-result, in a DSSE envelope."""

import json
from collections.abc import Mapping
from typing import Any

from obelisk import __version__
from obelisk.build.keys import SigningKey
from obelisk.build.provenance import PAYLOAD_TYPE, sign_statement
from obelisk.errors import StateError, TrustError
from obelisk.trial.plan import FIXED, FIXED_FOR_APPLICATION
from obelisk.trial.report import Report, to_json

PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def proof(report: Report, key: SigningKey) -> bytes:
    """The proof of a report in which everything passed.

    Raises:
        StateError: something failed: there is nothing to prove.
    """
    if not report.passed:
        raise StateError("a trial that failed proves nothing", code="proof-failed-trial", hint="mend the image and test it again")
    names = [outcome.name for outcome in report.outcomes]
    return sign_statement(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": report.label, "digest": {"sha256": report.image_id}}],
            "predicateType": PREDICATE,
            "predicate": {
                "result": "PASSED",
                "configuration": [{"name": "obelisk", "annotations": {"version": __version__}}],
                "passedTests": names,
                "warnedTests": [],
                "failedTests": [],
                "obelisk": to_json(report),
            },
        },
        key,
    )


def verify_proof(envelope: bytes, public_key: bytes, image_id: str, *, application: bool = False) -> Mapping[str, Any]:
    """The predicate of a proof, once its signature, its subject and its result are known to be right.

    `public_key` is the tester's Ed25519 key as PEM. The image is a machine's, or an `application`'s.

    Raises:
        TrustError: the proof does not hold for that image.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    from securesystemslib.dsse import Envelope  # noqa: PLC0415
    from securesystemslib.exceptions import Error  # noqa: PLC0415
    from securesystemslib.signer import SSlibKey  # noqa: PLC0415

    refused = TrustError("the proof does not hold", code="proof-invalid", hint="test the image again: `obelisk test`")
    try:
        signed = Envelope.from_dict(json.loads(envelope))
        key = SSlibKey.from_crypto(load_pem_public_key(public_key))
        signed.verify([key], 1)
        statement = json.loads(signed.payload)
        subjects = {subject["digest"]["sha256"] for subject in statement["subject"]}
        sound = (
            signed.payload_type == PAYLOAD_TYPE
            and statement["predicateType"] == PREDICATE
            and statement["predicate"]["result"] == "PASSED"
            and subjects == {image_id}
            # Whoever signed a trial that was cut short has signed nothing that counts.
            and {*(FIXED_FOR_APPLICATION if application else FIXED), *statement["predicate"]["obelisk"]["planned"]}
            <= set(statement["predicate"]["passedTests"])
        )
    except (Error, UnsupportedAlgorithm, ValueError, KeyError, TypeError) as error:
        raise refused from error
    if not sound:
        raise refused
    predicate: Mapping[str, Any] = statement["predicate"]
    return predicate
