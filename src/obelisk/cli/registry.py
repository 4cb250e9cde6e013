"""Commands that talk to OCI registries: push and pull."""

from argparse import Namespace
from pathlib import Path

from obelisk.cli.places import find_image, key_directory, open_store
from obelisk.cli.terminal import answer, reporting, size
from obelisk.errors import InputError, TrustError
from obelisk.model.image import Manifest
from obelisk.model.reference import Reference
from obelisk.release import registries
from obelisk.release.oci import PREDICATE
from obelisk.release.proofs import verify_proof
from obelisk.system import logins
from obelisk.system.registry import Registry


def push(arguments: Namespace) -> int:
    """Send an image and what is said about it to a registry."""
    store = open_store(arguments)
    image = find_image(store, arguments.image)
    place = Reference.parse(arguments.place, tag=image.manifest.version)
    with reporting(json_wanted=arguments.json) as sink, _registry(place, arguments) as registry:
        pushed = registries.push(image, store.proofs(image.id), place, registry, store, sink)
    said = [{"type": one.artifact_type, "predicate": one.annotations.get(PREDICATE), "digest": one.digest} for one in pushed.statements]
    lines = [f"{place} is {image.manifest.label}, {pushed.digest}", f"sent {size(pushed.sent_bytes)}"]
    lines += [f"  {one['predicate'] or one['type']}  {one['digest']}" for one in said]
    if not store.proofs(image.id):
        lines.append("there is no proof of this image: `obelisk test` makes one")
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        place=str(place),
        digest=pushed.digest,
        id=image.id,
        sent=pushed.sent_bytes,
        statements=said,
    )
    return 0


def pull(arguments: Namespace) -> int:
    """Fetch an image and its proofs into the store."""
    place = Reference.parse(arguments.place)
    required = {name: _public_key(Path(name)) for name in arguments.tester or ()}
    own = key_directory() / "attestation.pub"
    testers = required or ({"this user's key": _public_key(own)} if own.exists() else {})
    store = open_store(arguments)

    def judge(manifest: Manifest, proofs: tuple[bytes, ...]) -> None:
        if required and not any(_signers(proof, manifest, required) for proof in proofs):
            raise TrustError(
                f"{place} ({manifest.label}) has {len(proofs)} proofs, and none by the testers that are asked for",
                code="proof-missing",
                hint="have one of them test the image and push it again, or name another --tester",
            )

    with reporting(json_wanted=arguments.json) as sink, _registry(place, arguments) as registry:
        pulled = registries.pull(place, registry, store, sink, judge=judge)
    signers = [_signers(proof, pulled.manifest, testers) for proof in pulled.proofs]
    lines = [f"{pulled.manifest.label} is in the store: {pulled.image_id}", f"fetched {size(pulled.fetched_bytes)}"]
    lines += [
        f"proof: {'holds, signed with ' + ', '.join(names) if names else 'signed with a key that is not known here'}" for names in signers
    ]
    if not signers:
        lines.append("there is no proof of this image")
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        place=str(place),
        digest=pulled.digest,
        id=pulled.image_id,
        fetched=pulled.fetched_bytes,
        proofs=[{"signers": list(names)} for names in signers],
        provenance=pulled.provenance is not None,
    )
    return 0


def _registry(place: Reference, arguments: Namespace) -> Registry:
    login = logins.find(place.host, file=Path(arguments.credentials) if arguments.credentials else None)
    return Registry(place.host, place.name, login=login, plain=True if arguments.plain_http else None)


def _public_key(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", code="tester-key", hint="name a file with a public key") from error
    if b"-----BEGIN PUBLIC KEY-----" not in data:
        raise InputError(f"{file} holds no public key", code="tester-key", hint="name the tester's attestation.pub")
    return data


def _signers(proof: bytes, manifest: Manifest, testers: dict[str, bytes]) -> tuple[str, ...]:
    """The testers with whose keys the proof holds."""
    found = []
    for name, key in testers.items():
        try:
            verify_proof(proof, key, manifest.id, application=manifest.is_application)
        except TrustError:
            continue
        found.append(name)
    return tuple(found)
