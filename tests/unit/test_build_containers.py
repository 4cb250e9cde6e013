"""What an OCI image is, as its documents say; and an application that is completed by it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_registry import Registry
from spec_samples import load_text

from obelisk.build import containers
from obelisk.build.lockfile import read_lock, write_lock
from obelisk.errors import InputError, ObeliskError, TrustError
from obelisk.model.lock import Blob, ImportedImage, Lock, PackageSet
from obelisk.model.reference import Reference

ONE, TWO = "1" * 64, "2" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{ONE}", "size": 3}
SPEC = 'name = "shop"\nrole = "app"\n[app]\nimage = "localhost:1/shop:1"\n'


def manifest(*layers: Mapping[str, Any], config: Mapping[str, Any] = CONFIG) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()


def layer(kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{TWO}", "size": 7}


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ],
)
def test_layers_are_called_as_oci_calls_them(kind: str, ours: str) -> None:
    found = containers._image(manifest(layer(kind)), "x")
    assert found.layers == (Blob(TWO, 7, ours),)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        manifest(layer("application/vnd.oci.image.layer.v1.tar"), config={}),
        manifest({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:../../etc", "size": 1}),
        manifest({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{TWO}", "size": -1}),
        json.dumps({"config": CONFIG, "layers": None}).encode(),
        json.dumps({"config": CONFIG, "layers": [None]}).encode(),
    ],
)
def test_a_damaged_document_is_named(document: bytes) -> None:
    with pytest.raises(TrustError, match="x is damaged"):
        containers._image(document, "x")


def test_a_layer_that_is_no_file_system_is_refused() -> None:
    with pytest.raises(InputError, match=r"of the type application/vnd\.example"):
        containers._image(manifest(layer("application/vnd.example")), "x")


def test_an_index_leads_to_what_is_for_this_architecture_and_no_further() -> None:
    registry = Registry()
    with registry.served() as host:
        place = Reference(host, "shop", "1")

        def indexed(*entries: Mapping[str, Any]) -> None:
            registry.manifests["1"] = json.dumps({"manifests": entries}).encode()
            registry.types["1"] = "application/vnd.oci.image.index.v1+json"

        def entry(digest: str, architecture: str) -> dict[str, Any]:
            return {"digest": digest, "platform": {"os": "linux", "architecture": architecture}}

        document = manifest(layer("application/vnd.oci.image.layer.v1.tar"))
        digest = f"sha256:{containers._image(document, 'x').sha256}"
        registry.manifests[digest] = document
        indexed(entry(f"sha256:{ONE}", "arm64"), entry(digest, "amd64"))
        assert containers._of_registry(place).sha256 == digest.removeprefix("sha256:")
        indexed(entry(f"sha256:{ONE}", "arm64"))
        with pytest.raises(InputError, match="has nothing for linux on amd64"):
            containers._of_registry(place)
        indexed(entry(f"sha256:{ONE}", "amd64"))
        with pytest.raises(InputError, match=f"there is no .*@sha256:{ONE}"):
            containers._of_registry(place)
        for wrong in ({"manifests": None}, {"manifests": [None]}, {"manifests": [{}, 1]}):
            registry.manifests["1"] = json.dumps(wrong).encode()
            with pytest.raises(ObeliskError):
                containers._of_registry(place)


def test_the_spec_goes_before_the_image(tmp_path: Path) -> None:
    image = ImportedImage(ONE, Blob(TWO, 1), (), ("/start",), (("A", "1"), ("B", "2")), "/app")
    silent = containers.completed(load_text(tmp_path / "a", SPEC), image)
    assert (silent.command, silent.environment, silent.directory) == (("/start",), (("A", "1"), ("B", "2")), "/app")
    said = load_text(tmp_path / "b", f'{SPEC}command = ["/other"]\nenvironment = ["B=3"]\ndirectory = "/srv"\n')
    other = containers.completed(said, image)
    assert (other.command, other.environment, other.directory) == (("/other",), (("A", "1"), ("B", "3")), "/srv")


def test_a_lock_keeps_what_the_image_is(tmp_path: Path) -> None:
    packages = PackageSet("trixie", 1, ())
    tar = "application/vnd.oci.image.layer.v1.tar"
    odd = (("A", 'with "quotes", \\ and \t'), ("B", "=é\x7f"))
    image = ImportedImage(ONE, Blob(TWO, 1, f"{tar}+gzip"), (Blob(ONE, 2, tar), Blob(TWO, 3, tar)), ("/a b", "", "$c"), odd, "/app")
    lock = Lock(ONE, packages, packages, packages, image=image)
    write_lock(tmp_path / "lock", lock)
    assert read_lock(tmp_path / "lock") == lock
    text = (tmp_path / "lock").read_text()
    for old, new in ((ONE, "x"), ("size = 2", "size = -2"), ('directory = "/app"', 'directory = "app"'), ("A=", "1A=")):
        (tmp_path / "lock").write_text(text.replace(old, new))
        with pytest.raises(InputError):
            read_lock(tmp_path / "lock")


def test_the_hub_is_called_as_people_call_it() -> None:
    with containers._registry(Reference("docker.io", "nginx", "1")) as there:
        assert (there.host, there.repository) == ("registry-1.docker.io", "library/nginx")
    with containers._registry(Reference("docker.io", "team/shop", "1")) as there:
        assert there.repository == "team/shop"
