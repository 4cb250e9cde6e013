"""Small images, and other things to put into a store, for its tests."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from obelisk.model.image import ImagePackage, Manifest, Part, PartKind
from obelisk.store import Store

DAY_S = 86400


def key(text: str) -> str:
    """The key of a step called `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(data: bytes) -> str:
    """The name of a blob with that content."""
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes) -> Path:
    """A file with that content."""
    path.write_bytes(data)
    return path


def writing(name: str, data: bytes) -> Callable[[Path], None]:
    """What produces a step whose output is one file."""

    def produce(output: Path) -> None:
        write(output / name, data)

    return produce


def using(store: Store, step: str) -> Callable[[Path], None]:
    """What produces a step from another one."""

    def produce(output: Path) -> None:
        assert store.find_step(key(step)) is not None
        write(output / "made from", step.encode())

    return produce


def manifest_of(root: bytes, uki: bytes = b"uki", *, name: str = "shop", version: str = "1") -> Manifest:
    """The manifest of an image with two parts."""
    return Manifest(
        name=name,
        version=version,
        distribution="debian:trixie",
        architecture="amd64",
        role="server",
        epoch=1_700_000_000,
        kernel="6.12.1-amd64",
        cmdline="root=x",
        root_hash=sha256(b"hash tree" + root),
        root_slot_bytes=1 << 30,
        verity_slot_bytes=1 << 24,
        slot_count=2,
        secure_boot_certificate=sha256(b"certificate"),
        test_key=True,
        spec_sha256=sha256(b"spec"),
        lock_sha256=sha256(b"lock"),
        tools_sha256=sha256(b"tools"),
        setuid=(),
        parts=(
            Part(PartKind.ROOT, "shop.root", len(root), sha256(root)),
            Part(PartKind.UKI, "shop.efi", len(uki), sha256(uki)),
        ),
        packages=(ImagePackage("bash", "5.2", "amd64", sha256(b"bash")),),
    )


def add_image(store: Store, root: bytes, uki: bytes = b"uki", *, name: str = "shop", version: str = "1") -> str:
    """Put an image with these parts into the store, and return its id."""
    manifest = manifest_of(root, uki, name=name, version=version)
    with store.workspace() as scratch:
        parts: dict[str, Path] = {
            PartKind.ROOT: write(scratch / "root", root),
            PartKind.UKI: write(scratch / "uki", uki),
        }
        store.add_image(manifest, parts, {"build.json": b"{}"})
    return manifest.id


def make_old(store: Store, *, days: float = 100) -> None:
    """Let everything in the store look as if it had last been used that long ago."""
    then = time.time() - days * DAY_S
    for directory in (store.root / "blobs", store.root / "steps"):
        for path in (directory, *directory.rglob("*")):
            os.utime(path, (then, then), follow_symlinks=False)


def names_below(directory: Path) -> set[str]:
    """The names of what is in a directory."""
    return {path.name for path in directory.iterdir()}
