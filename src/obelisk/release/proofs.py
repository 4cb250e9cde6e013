"""Whose proof an envelope is: signatures of DSSE, for those who publish."""

import json
from collections.abc import Mapping
from typing import Any

from obelisk.errors import TrustError
from obelisk.model import proof
from obelisk.model.release import Testers


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

    try:
        signed = Envelope.from_dict(json.loads(envelope))
        signed.verify([SSlibKey.from_crypto(load_pem_public_key(public_key))], 1)
    except (Error, UnsupportedAlgorithm, ValueError, KeyError, TypeError) as error:
        raise proof.refusal() from error
    required = proof.FIXED_FOR_APPLICATION if application else proof.FIXED
    return proof.judge(signed.payload, signed.payload_type, image_id, required=required)


def counts(testers: Testers, envelope: bytes, image_id: str, *, application: bool = False) -> bool:
    """Whether an envelope is a proof of that image, a machine's or an `application`'s, by one of the testers."""
    for key in testers.keys:
        try:
            verify_proof(envelope, key.encode(), image_id, application=application)
        except TrustError:
            continue
        return True
    return False
