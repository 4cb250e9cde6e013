"""Writes an image in a format that others read: raw or qcow2 disk, the EROFS root alone, or an OCI layout."""

from pathlib import Path

from obelisk.build.disk import assemble_disk
from obelisk.errors import InputError
from obelisk.events import Sink, task
from obelisk.model.image import PartKind
from obelisk.store import Store, StoredImage
from obelisk.system.bubblewrap import Room, read_only, writable
from obelisk.system.files import clone_or_copy, move, written_by_name

_OCI = """
import hashlib, json, os, subprocess, sys
top, name, epoch = "/out/oci", sys.argv[1], int(sys.argv[2])
subprocess.run(["fsck.erofs", "--extract=/out/rootfs", "/image"], check=True, stdout=subprocess.DEVNULL)
os.makedirs(f"{top}/blobs/sha256")
def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    open(f"{top}/blobs/sha256/{digest}", "wb").write(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}
layer = "/out/layer.tar"
subprocess.run(["tar", "--create", "--file", layer, "--directory", "/out/rootfs", "--sort=name", "--numeric-owner", "--xattrs",
                "--format=posix", "--pax-option=delete=atime,delete=ctime", "."], check=True)
with open(layer, "rb") as file:
    sha = hashlib.file_digest(file, "sha256").hexdigest()
size = os.path.getsize(layer)
os.rename(layer, f"{top}/blobs/sha256/{sha}")
stamp = subprocess.run(["date", "-u", "-d", f"@{epoch}", "+%Y-%m-%dT%H:%M:%SZ"], capture_output=True, text=True, check=True).stdout.strip()
config = blob(json.dumps({"architecture": "amd64", "os": "linux", "created": stamp, "config": {"Cmd": ["/sbin/init"]},
                          "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha}"]}}, sort_keys=True).encode())
manifest = blob(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{sha}", "size": size}]}, sort_keys=True).encode())
index = {"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest,
         "annotations": {"org.opencontainers.image.ref.name": name}}]}
open(f"{top}/index.json", "w").write(json.dumps(index))
open(f"{top}/oci-layout", "w").write('{"imageLayoutVersion":"1.0.0"}')
subprocess.run(["rm", "-rf", "/out/rootfs"], check=True)
"""


def export(image: StoredImage, store: Store, room: Room, form: str, target: Path, sink: Sink) -> None:
    """Write `image` to `target`, which must not exist: a file, or for `oci` a directory in OCI image layout.

    Raises:
        InputError: `target` exists, or its directory does not.
        StateError: it cannot be written.
    """
    if target.exists():
        raise InputError(f"{target} exists already", code="export-exists", hint="remove it or name another file")
    if not target.parent.is_dir():
        raise InputError(f"there is no directory {target.parent}", code="export-directory", hint="make it first")
    with task(sink, "export", f"Exporting {image.manifest.label} as {form}"), store.workspace() as work:
        match form:
            case "erofs":
                made = work / "root.erofs"
                clone_or_copy(image.part_path(PartKind.ROOT), made)
                made.chmod(0o644)
            case "oci":
                label, epoch = image.manifest.label, str(image.manifest.epoch)
                binds = [read_only(image.part_path(PartKind.ROOT), "/image"), writable(work, "/out")]
                room.run(["python3", "-I", "-c", _OCI, label, epoch], binds=binds)
                made = work / "oci"
            case _:
                disk_parts = {part.kind: image.directory / part.file for part in image.manifest.parts}
                made = assemble_disk(room, work, disk_parts, image.manifest)
                if form == "qcow2":
                    words = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "/out/disk.raw", "/out/disk.qcow2"]
                    room.run(words, binds=[writable(work, "/out")])
                    made = work / "disk.qcow2"
        with written_by_name(target):
            move(made, target)
