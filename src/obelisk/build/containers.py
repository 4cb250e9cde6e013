"""Roots of applications that are made of OCI images: from a layout or an archive beside the spec, or out of a registry.

The lock names the layers by their digests, so that another machine makes the same root of them, wherever it has them from. What becomes
of them is umoci's work (`umoci raw unpack`), which also compares each layer with what the image says of its content; archives are read by
skopeo.

Source: OCI Image Format Specification 1.1; skopeo(1), umoci-raw-unpack(1).
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from obelisk.build.graph import Step
from obelisk.errors import CommandError, InputError, TrustError
from obelisk.events import Sink, Task, task
from obelisk.model.application import Application
from obelisk.model.lock import Blob, ImportedImage, Lock
from obelisk.model.reference import Reference
from obelisk.model.spec import Spec
from obelisk.store import Store
from obelisk.system import logins, zstream
from obelisk.system.bubblewrap import Room, read_only, writable
from obelisk.system.files import hash_file
from obelisk.system.registry import INDEX, MANIFEST, Registry

_ARCHITECTURE, _SYSTEM = "amd64", "linux"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
# As Docker spells compressed layers, and as OCI does.
_LAYERS = {
    f"{base}{suffix}": f"{_LAYER}{suffix.replace('.', '+')}"
    for base in (_LAYER, _DOCKER_LAYER)
    for suffix in ("", "+gzip", ".gzip", "+zstd")
}
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_HUB, _HUB_AT, _HUB_LOGIN = "docker.io", "registry-1.docker.io", "index.docker.io"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = "image"
_RESULT = json.dumps({"kernel": "", "users": {}, "groups": {}})  # nobody was installed
_MOST_BYTES = 64 << 30  # a layer that is more than this is there to fill the disk


def resolve(spec: Spec, old: ImportedImage | None, room: Room, store: Store, sink: Sink, *, update: bool) -> ImportedImage:
    """What the spec's image is: as the former lock says, unless that is to be updated or there is none. Its blobs are in the store then.

    Raises:
        InputError: there is no such image, it is none for this architecture, or says nothing that could be started.
        TransportError: its registry cannot be reached.
    """
    if old is not None and not update:
        found = old
        fetch(spec, found, room, store, sink)
    else:
        with task(sink, "image", f"Resolving {origin(spec)}") as running:
            found = _of(spec, room, store)
            running.detail = found.sha256[:12]
        fetch(spec, found, room, store, sink)
        found = _with_settings(found, store)
    if not completed(spec, found).command:
        raise InputError(
            f"{origin(spec)} does not say what is to be started", code="image-command", hint='[app], command = ["/usr/bin/program"]'
        )
    return found


def fetch(spec: Spec, image: ImportedImage, room: Room, store: Store, sink: Sink) -> None:
    """Have all blobs of a locked image in the store.

    Raises:
        InputError: what is beside the spec is another image by now.
        TrustError: a registry has other bytes than it says.
        TransportError: it cannot be reached.
    """
    missing = [blob for blob in dict.fromkeys(image.blobs) if store.find_blob(blob.sha256) is None]
    if not missing:
        return
    if not isinstance(spec.image, Reference):
        if _of(spec, room, store).sha256 != image.sha256:
            raise InputError(f"{origin(spec)} is another image than the lock names", code="image-moved", hint="obelisk lock --update")
        return
    total = sum(blob.size_bytes for blob in missing)
    with (
        task(sink, "fetch-image", f"Fetching {origin(spec)}", total=total, unit="bytes") as running,
        store.workspace() as scratch,
        _registry(spec.image) as registry,
    ):
        count = running.counting(total)
        for blob in missing:
            registry.download(f"sha256:{blob.sha256}", blob.size_bytes, scratch / blob.sha256, on_bytes=count)
            store.add_blob(scratch / blob.sha256, sha256=blob.sha256, move=True)


def foundation(spec: Spec, lock: Lock, tools: Step, store: Store, sink: Sink) -> Step:
    """The root as the image has it, in the place of a distribution's packages; or an empty one."""
    image = lock.image

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        room = Room(needs["tools"] / "tree")
        if image is None:
            (work / "tree").mkdir(mode=0o755)
        else:
            fetch(spec, image, room, store, sink)
            _lay_out(image, store, work / "layout")
            try:
                command = ["umoci", "raw", "unpack", "--image", f"/step/layout:{_TAG}", "/step/tree"]
                room.run(command, binds=[writable(work, "/step")], on_line=running.output, durable=False)
            except CommandError as error:
                raise TrustError(
                    f"{origin(spec)} cannot be unpacked: {error.output.strip()[-500:]}", code="image-damaged", hint="see what made it"
                ) from error
            room.run(["rm", "-rf", "/step/layout"], binds=[writable(work, "/step")])
        (work / "result.json").write_text(_RESULT)

    options = {"image": None if image is None else [image.sha256, *(blob.sha256 for blob in image.blobs)]}
    return Step("foundation", "Root of the image" if image else "Empty root", options, (tools,), produce)


def base(foundation: Step, tools: Step) -> Step:
    """Nothing that is installed on it."""

    def produce(work: Path, _needs: Mapping[str, Path], _running: Task) -> None:
        (work / "upper").mkdir(mode=0o755)
        (work / "result.json").write_text(_RESULT)

    return Step("base", "Base tree", {}, (foundation, tools), produce)


def completed(spec: Spec, image: ImportedImage | None) -> Application:
    """The application as the spec says, and as its image does where the spec is silent."""
    if spec.application is None:
        raise AssertionError(spec.name)
    if image is None:
        return spec.application
    said = spec.application
    environment = tuple(sorted({**dict(image.environment), **dict(said.environment)}.items()))
    directory = image.directory or said.directory if said.directory == "/" else said.directory
    return replace(said, command=said.command or image.command, environment=environment, directory=directory)


def origin(spec: Spec) -> str:
    """What people call the OCI image that the root is made of."""
    return spec.image.name if isinstance(spec.image, Path) else str(spec.image)


# What an image is


def _of(spec: Spec, room: Room, store: Store) -> ImportedImage:
    match spec.image:
        case Reference():
            return _of_registry(spec.image)
        case Path():
            return _of_file(spec.image, room, store)
        case None:
            raise AssertionError(spec.name)


def _of_file(source: Path, room: Room, store: Store) -> ImportedImage:
    with store.workspace() as work:
        command = ["skopeo", "--insecure-policy", "--override-os", _SYSTEM, "--override-arch", _ARCHITECTURE, "copy", "--quiet"]
        # Layers stay as they are: what compresses them another day makes other bytes of them.
        command += ["--dest-oci-accept-uncompressed-layers", f"{_transport(source)}:/image", f"oci:/step/layout:{_TAG}"]
        try:
            room.run(command, binds=[read_only(source.resolve(), "/image"), writable(work, "/step")], durable=False)
        except CommandError as error:
            raise InputError(
                f"{source} is no image for {_SYSTEM} on {_ARCHITECTURE}: {error.output.strip()[-500:]}",
                code="image-format",
                hint="make one by `podman save --format oci-archive`, `docker save` or `skopeo copy`, of a single image",
            ) from error
        layout = work / "layout"
        manifest = _read(layout, json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"])
        found = _image(manifest, str(source))
        # What converts archives of Docker's says of all layers that they are compressed.
        layers = tuple(replace(layer, media_type=_kind(layout / "blobs/sha256" / layer.sha256)) for layer in found.layers)
        found = replace(found, layers=layers)
        for blob in found.blobs:
            store.add_blob(layout / "blobs/sha256" / blob.sha256, sha256=blob.sha256)
        return found


def _kind(layer: Path) -> str:
    with layer.open("rb") as file:
        start = file.read(4)
    return next((f"{_LAYER}+{name}" for name, magic in _MAGIC.items() if start.startswith(magic)), _LAYER)


def _transport(source: Path) -> str:
    """How skopeo calls what is there."""
    if source.is_dir():
        return "oci"
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in {"oci-layout", "manifest.json"}:
                    return "oci-archive" if name == "oci-layout" else "docker-archive"
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"{source} is no archive: {error}", code="image-format", hint="make one by `podman save` or `docker save`"
        ) from error
    raise InputError(f"{source} is an archive, and of no image", code="image-format", hint="make one by `podman save` or `docker save`")


def _read(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def _of_registry(place: Reference) -> ImportedImage:
    with _registry(place) as registry:
        at = place.at
        for _index_and_image in range(2):
            document = registry.manifest(at)
            if document is None:
                raise InputError(
                    f"there is no {place.host}/{place.name}@{at}" if at != place.at else f"there is no {place}", code="image-missing"
                )
            raw = _parsed(document, str(place))
            if "manifests" not in raw:
                return _image(document, str(place))
            at = _for_this_architecture(raw, str(place))
    raise _wrong(str(place), "an index leads to another index")


def _for_this_architecture(raw: Mapping[str, Any], place: str) -> str:
    try:
        for each in raw["manifests"]:
            platform = each.get("platform") or {}
            if (platform.get("os"), platform.get("architecture")) == (_SYSTEM, _ARCHITECTURE) and _DIGEST.fullmatch(each["digest"]):
                return str(each["digest"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _wrong(place, repr(error)) from error
    raise InputError(f"{place} has nothing for {_SYSTEM} on {_ARCHITECTURE}", code="image-architecture", hint="name another tag")


def _image(document: bytes, place: str) -> ImportedImage:
    raw = _parsed(document, place)
    try:
        layers = tuple(_blob(each, _LAYERS.get(each["mediaType"], "")) for each in raw["layers"])
        config = _blob(raw["config"], _CONFIG)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(place, repr(error)) from error
    if strange := [each["mediaType"] for each in raw["layers"] if each["mediaType"] not in _LAYERS]:
        raise InputError(
            f"{place} has a layer of the type {strange[0]}, which is no file system",
            code="image-format",
            hint="name an image of a container",
        )
    return ImportedImage(hashlib.sha256(document).hexdigest(), config, layers)


def _blob(raw: Mapping[str, Any], media_type: str) -> Blob:
    if not _DIGEST.fullmatch(raw["digest"]) or type(raw["size"]) is not int or raw["size"] < 0:
        raise ValueError(raw)
    return Blob(raw["digest"].removeprefix("sha256:"), raw["size"], media_type)


def _with_settings(image: ImportedImage, store: Store) -> ImportedImage:
    """With what the image's configuration says of how it starts."""
    place = f"the image {image.sha256[:12]}"
    raw = _parsed(store.blob(image.config.sha256).read_bytes(), place)
    if (raw.get("os"), raw.get("architecture")) != (_SYSTEM, _ARCHITECTURE):
        raise InputError(
            f"{place} is for {raw.get('os')} on {raw.get('architecture')}, not for {_SYSTEM} on {_ARCHITECTURE}",
            code="image-architecture",
            hint="name another one",
        )
    settings = raw.get("config") or {}
    try:
        command = tuple(str(word) for key in ("Entrypoint", "Cmd") for word in settings.get(key) or ())
        pairs = (str(each).partition("=") for each in settings.get("Env") or ())
        environment = tuple(sorted((name, value) for name, assigned, value in pairs if assigned and _VARIABLE.fullmatch(name)))
        directory = str(settings.get("WorkingDir") or "")
    except (TypeError, AttributeError) as error:
        raise _wrong(place, repr(error)) from error
    return replace(image, command=command, environment=environment, directory=directory if directory.startswith("/") else "")


def _parsed(document: bytes, place: str) -> dict[str, Any]:
    try:
        raw = json.loads(document)
    except ValueError as error:
        raise _wrong(place, str(error)) from error
    if not isinstance(raw, dict):
        raise _wrong(place, "it is no object")
    return raw


def _wrong(place: str, why: str) -> TrustError:
    return TrustError(f"{place} is damaged: {why}", code="image-damaged", hint="see what made it")


def _registry(place: Reference) -> Registry:
    if place.host != _HUB:
        return Registry(place.host, place.name, login=logins.find(place.host))
    # People and their logins call it otherwise than it is reached, and leave out the name of its own part.
    name = place.name if "/" in place.name else f"library/{place.name}"
    return Registry(_HUB_AT, name, login=logins.find(_HUB) or logins.find(_HUB_LOGIN))


def _unpacked(layer: Blob, store: Store, blobs: Path) -> Blob:
    """A layer without its compression, which umoci does not know."""
    plain = blobs / "plain"
    zstream.decompress(store.blob(layer.sha256), plain, limit=_MOST_BYTES)
    sha256, size = hash_file(plain), plain.stat().st_size
    plain.rename(blobs / sha256)
    return Blob(sha256, size, _LAYER)


def _lay_out(image: ImportedImage, store: Store, layout: Path) -> None:
    """A layout of one image, as umoci reads it, whatever those were that its layers came from."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    for blob in dict.fromkeys((image.config, *image.layers)):
        if not blob.media_type.endswith("+zstd"):
            store.link_blob(blob.sha256, blobs / blob.sha256)
    layers = [_unpacked(layer, store, blobs) if layer.media_type.endswith("+zstd") else layer for layer in image.layers]

    def told(blob: Blob) -> dict[str, str | int]:
        return {"mediaType": blob.media_type, "digest": f"sha256:{blob.sha256}", "size": blob.size_bytes}

    document = json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": told(image.config), "layers": [told(layer) for layer in layers]}
    ).encode()
    (blobs / "draft").write_bytes(document)
    sha256 = hash_file(blobs / "draft")
    (blobs / "draft").rename(blobs / sha256)
    entry = {**told(Blob(sha256, len(document), MANIFEST)), "annotations": {"org.opencontainers.image.ref.name": _TAG}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
