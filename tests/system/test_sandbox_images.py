"""Applications whose root is an OCI image, or a directory, and no distribution's packages."""

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from containers import archive, image, layer
from registries import Registry, running
from sandboxes import PRIVATE, places
from tool import Tool

from obelisk.system import registry as client

BUSYBOX = Path("/bin/busybox").read_bytes()
START = b'#!/bin/sh\necho "started by $(id -un) in $(pwd) as $WHO with $*"\n[ $# = 0 ] || exec "$@"\n'
FIRST = layer(
    {
        "bin/": None,
        "bin/busybox": BUSYBOX,
        "bin/sh": "busybox",
        **{f"bin/{name}": "=bin/busybox" for name in ("cat", "id", "ls", "touch", "stat", "grep")},
        "app/": None,
        "app/old": b"old",
        "app/kept": b"kept\n",
        "app/all/": None,
        "app/all/one": b"1",
        "start.sh": START,
        "etc/": None,
        "etc/passwd": b"root:x:0:0::/:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n",
        "home/": None,
        "home/node/": None,
        "home/node/file": b"from the image\n",
    }
)
SECOND = layer({"app/old": None, "app/new": b"new\n", "app/all/.wh..wh..opq": b"", "app/all/two": b"2"}, owner=70)
SETTINGS: dict[str, Any] = {"Entrypoint": ["/start.sh"], "Env": ["WHO=somebody", "PATH=/bin"], "WorkingDir": "/app", "User": "node"}


@pytest.fixture(scope="module")
def tool(applications: Tool) -> Iterator[Tool]:
    """A store with tools; what it makes ready goes with each command."""
    with places():
        yield replace(applications, prefix=PRIVATE)


def spec(tool: Tool, name: str, text: str) -> Tool:
    """An application with this in its spec, not locked yet."""
    place = tool.home / name
    place.mkdir(exist_ok=True)
    (place / "obelisk.toml").write_text(f'name = "{name}"\nrole = "app"\n{text}')
    return replace(tool, spec=place)


def forget(tool: Tool) -> None:
    """Let no step be there that was made of an image."""
    for step in (tool.store / "steps").iterdir():
        if not (step / "output/tree/usr/bin/skopeo").exists():
            step.unlink() if step.is_symlink() else subprocess.run(["rm", "-rf", step], check=True)


def said(tool: Tool, *words: str, status: int = 0) -> str:
    return tool.run("app", "run", str(tool.spec), "--", *words, status=status)


def test_a_layout_becomes_an_application_that_starts_as_the_image_says(tool: Tool) -> None:
    app = spec(tool, "oci-layout", '[app]\nimage = "shop"\n[tests.it]\ncommand = "cat /app/new"\nexpect = "new"\n')
    image(app.spec / "shop", [FIRST, SECOND], SETTINGS)
    app.run("lock", str(app.spec))
    first = app.build()
    assert said(app) == "started by app in /app as somebody with \n"
    # Layers: what an upper one takes away is gone, also where it takes away all that is below.
    assert said(app, "ls", "/app", "/app/all").splitlines()[1:] == ["/app:", "all", "kept", "new", "", "/app/all:", "two"]
    # Directories and files at its top are there, its own /bin, and what it has at home; its users are one.
    assert said(app, "cat", "/home/node/file").splitlines()[1:] == ["from the image"]
    assert said(app, "stat", "-c", "%u %U", "/bin/busybox", "/app/new").splitlines()[1:] == ["65534 UNKNOWN"] * 2
    for place in ("/app/x", "/bin/x", "/x", "/home/x"):
        assert "Read-only file system" in said(app, "touch", place, status=1)
    assert "proof: " in app.run("test", str(app.spec))
    app.run("build", "--reproduce", str(app.spec))
    assert app.build() == first
    bill = json.loads((tool.store / "images" / first / "sbom.cdx.json").read_text())
    assert [each["name"] for each in bill["components"]] == ["shop"]


def test_what_the_spec_says_goes_before_what_the_image_says(tool: Tool) -> None:
    text = '[app]\nimage = "shop"\ncommand = ["/bin/sh", "-c"]\nenvironment = ["WHO=me"]\ndirectory = "/srv"\ndata = ["/srv/data"]\n'
    app = spec(tool, "oci-said", f"{text}[files]\n\"/app/more\" = {{ content = 'laid over' }}\n")
    image(app.spec / "shop", [FIRST], SETTINGS, compression="")
    app.run("lock", str(app.spec))
    app.build()
    assert said(app, "pwd; echo $WHO; cat /app/more; echo x >/srv/data/x && cat /srv/data/x") == "/srv\nme\nlaid overx\n"


def test_archives_are_read_and_the_lock_holds_what_they_were(tool: Tool) -> None:
    app = spec(tool, "oci-archive", '[app]\nimage = "shop.tar"\n')
    image(app.spec / "layout", [FIRST, SECOND], SETTINGS, compression="zstd")
    archive(app.spec / "layout", app.spec / "shop.tar")
    shutil.rmtree(app.spec / "layout")
    app.run("lock", str(app.spec))
    first = app.build()
    assert "started by app" in said(app)
    image(app.spec / "layout", [FIRST], SETTINGS)
    (app.spec / "shop.tar").unlink()
    archive(app.spec / "layout", app.spec / "shop.tar")
    assert app.build() == first
    app.run("lock", str(app.spec), "--update")
    assert app.build() != first


def test_an_archive_of_docker_save_is_read(tool: Tool) -> None:
    app = spec(tool, "oci-saved", '[app]\nimage = "shop.tar"\n')
    place = app.spec / "saved"
    (place / "one").mkdir(parents=True)
    (place / "one/layer.tar").write_bytes(FIRST)
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(FIRST).hexdigest()}"]}
    (place / "config.json").write_text(json.dumps({"os": "linux", "architecture": "amd64", "config": SETTINGS, "rootfs": rootfs}))
    (place / "manifest.json").write_text(json.dumps([{"Config": "config.json", "RepoTags": ["shop:1"], "Layers": ["one/layer.tar"]}]))
    with tarfile.open(app.spec / "shop.tar", "w") as out:
        for name in ("config.json", "one/layer.tar", "manifest.json"):
            out.add(place / name, name)
    app.run("lock", str(app.spec))
    app.build()
    assert "started by app" in said(app)


@pytest.fixture(scope="module")
def registry(tool: Tool) -> Iterator[Registry]:
    """A registry on this machine."""
    with running(tool.home / "server") as server:
        yield server


def send(registry: Registry, layout: Path, tag: str, *, others: bool = False) -> None:
    """A layout's image under a tag; with `others` as one of an index that has it for several architectures."""
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    with client.Registry(registry.host, "team/shop") as there:
        for blob in (layout / "blobs/sha256").iterdir():
            if f"sha256:{blob.name}" != entry["digest"]:
                there.upload(f"sha256:{blob.name}", blob, on_bytes=lambda _count: None)
        document = (layout / "blobs" / entry["digest"].replace(":", "/")).read_bytes()
        there.put_manifest(entry["digest"] if others else tag, document, entry["mediaType"])
        if others:
            ours = {**entry, "platform": {"os": "linux", "architecture": "amd64"}}
            foreign = {**entry, "platform": {"os": "linux", "architecture": "arm64"}}
            kind = "application/vnd.docker.distribution.manifest.list.v2+json"
            index = {"schemaVersion": 2, "mediaType": kind, "manifests": [foreign, ours]}
            there.put_manifest(tag, json.dumps(index).encode(), kind)


def test_a_tag_of_a_registry_is_pinned_and_had_again_by_its_digests(tool: Tool, registry: Registry) -> None:
    app = spec(tool, "oci-tagged", f'[app]\nimage = "{registry.host}/team/shop:1"\n')
    image(tool.home / "one", [FIRST, SECOND], SETTINGS, docker=True)
    send(registry, tool.home / "one", "1", others=True)
    app.run("lock", str(app.spec))
    first = app.build()
    assert "started by app" in said(app)
    image(tool.home / "two", [FIRST], SETTINGS)
    send(registry, tool.home / "two", "1")
    assert app.build() == first
    # Another machine, which has nothing of it but the lock.
    for blob in (tool.home / "one/blobs/sha256").iterdir():
        (tool.store / "blobs" / blob.name[:2] / blob.name).unlink(missing_ok=True)
    forget(tool)
    assert app.build() == first
    assert "image" in app.run("lock", str(app.spec), "--update")
    assert app.build() != first


def test_a_directory_is_a_root_of_its_own(tool: Tool) -> None:
    app = spec(tool, "rootfs", '[app]\nroot = "rootfs"\ncommand = ["/bin/busybox"]\n')
    (app.spec / "rootfs/bin").mkdir(parents=True)
    (app.spec / "rootfs/bin/busybox").write_bytes(BUSYBOX)
    (app.spec / "rootfs/bin/busybox").chmod(0o755)
    app.run("lock", str(app.spec))
    app.build()
    assert said(app, "ls", "/usr/bin", "/bin") == "/bin:\nbusybox\n\n/usr/bin:\nbusybox\n"
    assert said(app, "id", "-un") == "app\n"
    assert (app.spec / "obelisk.lock").read_text().count("packages = [\n]") == 2


@pytest.mark.parametrize(
    ("text", "lays", "code"),
    [
        ('packages = ["busybox"]\n[app]\nimage = "shop"\n', "image", "spec-conflict"),
        ('[app]\nimage = "shop"\nroot = "shop"\n', "image", "spec-conflict"),
        ('[app]\nimage = "shop.tar"\n', "image", "spec-file"),
        ('[app]\nimage = "localhost:1/Shop"\n', "image", "spec-value"),
        ('[app]\nroot = "shop"\n', "image", "spec-missing"),
        ('[app]\nimage = "shop"\n', "arm64", "image-architecture"),
        ('[app]\nimage = "shop"\n', "silent", "image-command"),
        ('[app]\nimage = "text"\n', "text", "image-format"),
        ('[app]\nimage = "shop"\n', "damaged", "image-format"),
        ('[app]\nimage = "REGISTRY/team/shop:none"\n', "image", "image-missing"),
        ('[app]\nimage = "localhost:1/shop:1"\n', "image", "registry-unreachable"),
    ],
)
def test_what_cannot_be_a_root_is_named(tool: Tool, registry: Registry, text: str, lays: str, code: str) -> None:
    name = f"oci-bad-{hashlib.sha256(f'{text}{lays}'.encode()).hexdigest()[:8]}"
    app = spec(tool, name, text.replace("REGISTRY", registry.host))
    if lays == "text":
        (app.spec / "text").write_text("no archive")
    else:
        image(
            app.spec / "shop",
            [FIRST],
            {} if lays == "silent" else SETTINGS,
            architecture="arm64" if lays == "arm64" else "amd64",
        )
    if lays == "damaged":
        largest = max((app.spec / "shop/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-100])
    process = app.start("lock", str(app.spec), "--json")
    said = "".join(app.finish(process))
    assert process.returncode != 0
    error = json.loads(said.splitlines()[-1])["error"]
    assert error["code"] == code, said
    assert error["message"]
    assert not (app.spec / "obelisk.lock").exists()
