"""OCI images for tests, written byte by byte: layers of few files, in a layout or an archive."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from obelisk.system import zstream

Entry = bytes | str | None
"""A program's bytes, the target of a link, or nothing: a directory where the path ends with a slash, else a mark that a file is gone."""


def layer(entries: Mapping[str, Entry], *, owner: int = 0) -> bytes:
    """A layer as a tar archive. `=name` makes a hard link to what is called so."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path, content in entries.items():
            entry = tarfile.TarInfo(path.rstrip("/"))
            entry.uid = entry.gid = owner
            entry.mtime = 1
            data = b""
            if path.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, bytes):
                data, entry.mode = content, 0o755
            elif content is None:
                entry.name = str(Path(path).with_name(f".wh.{Path(path).name}"))
            elif content.startswith("="):
                entry.type, entry.linkname = tarfile.LNKTYPE, content[1:]
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


def image(
    place: Path,
    layers: Sequence[bytes],
    settings: Mapping[str, Any],
    *,
    compression: str = "gzip",
    docker: bool = False,
    architecture: str = "amd64",
) -> str:
    """A layout of one image at `place`; the digest of its manifest."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def kept(data: bytes, media_type: str) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    oci, old = "application/vnd.oci.image", "application/vnd.docker"
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]}
    config = json.dumps({"os": "linux", "architecture": architecture, "config": settings, "rootfs": rootfs}).encode()
    kinds = (f"{oci}.config.v1+json", f"{oci}.layer.v1.tar" + (f"+{compression}" if compression else ""))
    if docker:
        kinds = (f"{old}.container.image.v1+json", f"{old}.image.rootfs.diff.tar.gzip")
    packed = [kept(_packed(each, compression), kinds[1]) for each in layers]
    form = f"{old}.distribution.manifest.v2+json" if docker else f"{oci}.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": form, "config": kept(config, kinds[0]), "layers": packed}
    entry = kept(json.dumps(manifest).encode(), form)
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(entry["digest"])


def _packed(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, mtime=0)
    if not compression:
        return data
    with TemporaryDirectory() as place:
        plain, packed = Path(place, "plain"), Path(place, "packed")
        plain.write_bytes(data)
        zstream.compress(plain, packed, level=3, workers=1, on_bytes=lambda _count: None)
        return packed.read_bytes()


def archive(layout: Path, file: Path) -> None:
    """A layout as an archive."""
    with tarfile.open(file, "w") as out:
        for path in sorted(layout.rglob("*")):
            out.add(path, str(path.relative_to(layout)), recursive=False)
