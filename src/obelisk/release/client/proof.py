"""Whether a release was proven by somebody whose proofs count: DSSE envelopes, their signatures checked by libcrypto.

Source: DSSE 1.0.2, protocol and envelope; what the statement inside must say is in `obelisk.model.proof`.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from obelisk.errors import TrustError
from obelisk.model import proof
from obelisk.model.release import Testers
from obelisk.system import libcrypto


def accept(envelopes: Iterable[bytes], testers: Testers, image_id: str) -> Mapping[str, Any]:
    """The predicate of the first proof that holds for an image.

    Raises:
        TrustError: none does; the message says why, of each.
    """
    reasons = []
    for envelope in envelopes:
        try:
            payload, kind = _verified(envelope, testers)
            return proof.judge(payload, kind, image_id, required=())
        except TrustError as error:
            reasons.append(error.message)
    raise TrustError(
        f"image {image_id[:12]} has no proof that counts: {'; '.join(dict.fromkeys(reasons)) or 'it came with none'}",
        code="proof-missing",
        hint="tell whoever runs the repository; nothing of the image was taken",
    )


def _verified(envelope: bytes, testers: Testers) -> tuple[bytes, str]:
    """The payload of an envelope and its type, when it is signed by one of the testers."""
    try:
        raw = json.loads(envelope)
        payload, kind = base64.b64decode(raw["payload"], validate=True), str(raw["payloadType"])
        signatures = [base64.b64decode(each["sig"], validate=True) for each in raw["signatures"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError(f"a proof is damaged: {error}", code="proof-damaged") from error
    signed = b"DSSEv1 %d %b %d %b" % (len(kind.encode()), kind.encode(), len(payload), payload)
    for key in testers.keys:
        if any(_holds(key, signature, signed) for signature in signatures):
            return payload, kind
    raise TrustError("a proof is signed by none of the repository's testers", code="proof-stranger")


def _holds(key: str, signature: bytes, signed: bytes) -> bool:
    try:
        return libcrypto.verify(key.encode(), libcrypto.Scheme.ED25519, signature, signed)
    except ValueError:  # a tester's key that is none vouches for nothing
        return False
