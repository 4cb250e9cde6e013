"""Says how an image came to be: an in-toto statement with SLSA provenance, signed as DSSE."""

import json

from obelisk import __version__
from obelisk.build.keys import SigningKey
from obelisk.model.canonical import Json, canonical
from obelisk.model.image import Manifest
from obelisk.model.lock import Lock
from obelisk.model.proof import PAYLOAD_TYPE
from obelisk.model.spec import Spec


def provenance(manifest: Manifest, spec: Spec, lock: Lock, key: SigningKey) -> bytes:
    """The signed envelope about `manifest`, as JSON."""
    packages: list[Json] = [
        {"name": f"{p.origin}/{p.path}", "digest": {"sha256": p.sha256}} for p in (*lock.system.packages, *lock.tools.packages)
    ]
    if lock.image is not None:
        packages.append({"name": "image", "digest": {"sha256": lock.image.sha256}})
    statement: Json = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": manifest.label, "digest": {"sha256": manifest.id}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:obelisk:build:1",
                "externalParameters": {"spec": spec.name, "distribution": str(spec.distribution)},
                "internalParameters": {"lock": lock.sha256, "tools": lock.tools.sha256},
                "resolvedDependencies": packages,
            },
            "runDetails": {"builder": {"id": "urn:obelisk", "version": {"obelisk": __version__}}},
        },
    }
    return sign_statement(statement, key)


def sign_statement(statement: Json, key: SigningKey) -> bytes:
    """A DSSE envelope around an in-toto statement, signed with the attestation key."""
    # Slow to import, and only signing wants it.
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415
    from securesystemslib.dsse import Envelope  # noqa: PLC0415
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415

    signer = CryptoSigner(load_pem_private_key((key.directory / "attestation.key").read_bytes(), password=None))
    envelope = Envelope(canonical(statement), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1, sort_keys=True).encode()
