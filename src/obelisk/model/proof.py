"""When a proof holds: what its statement must say. Who signed it is for others to find out.

A proof is an in-toto test-result in a DSSE envelope.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from obelisk.errors import TrustError
from obelisk.model.application import CONFINED, SOUND

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"

SEALED = "boots with Secure Boot and becomes healthy"
READ_ONLY = "the root cannot be written"
TAMPERED = "a flipped byte is detected when it is read"
STATE = "a second boot finds the state kept"
UNITS = "no unit failed"
FOREIGN = "Secure Boot refuses a UKI signed by another key"

UPGRADED = "a host with the image before it upgrades to it"
ROLLED_BACK = "and goes back when it is told to"
SABOTAGED = "a host leaves a sibling that does not work, by itself"

FIXED = (SEALED, READ_ONLY, TAMPERED, STATE, UNITS, FOREIGN, UPGRADED, ROLLED_BACK, SABOTAGED)
"""The scenarios that every image of a machine has to pass."""
FIXED_FOR_APPLICATION = (SOUND, CONFINED)
"""Those of every application's."""


def refusal() -> TrustError:
    """The error that says that a proof does not hold."""
    return TrustError("the proof does not hold", code="proof-invalid", hint="test the image again: `obelisk test`")


def judge(payload: bytes, payload_type: str, image_id: str, *, required: Collection[str] = FIXED) -> Mapping[str, Any]:
    """The predicate of a statement, whose signature is known to be right, once it says that this image passed everything planned.

    And everything `required`: none by a host, which may be older than who tested, and know other scenarios.

    Raises:
        TrustError: it does not.
    """
    try:
        statement = json.loads(payload)
        predicate: Mapping[str, Any] = statement["predicate"]
        sound = (
            payload_type == PAYLOAD_TYPE
            and statement["predicateType"] == PREDICATE
            and predicate["result"] == "PASSED"
            and {subject["digest"]["sha256"] for subject in statement["subject"]} == {image_id}
            # Whoever signed a trial that was cut short has signed nothing that counts.
            and bool(predicate["obelisk"]["planned"])
            and {*required, *predicate["obelisk"]["planned"]} <= set(predicate["passedTests"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise refusal() from error
    if not sound:
        raise refusal()
    return predicate
