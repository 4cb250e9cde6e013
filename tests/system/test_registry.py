"""Images through a real registry: pushed, found by others, pulled as the same image, and refused when they are not."""

import hashlib
import json
import os
import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registries import Registry, running
from tool import Tool

from obelisk.system.bubblewrap import Room

# bcrypt of "secret", made once: few programs make such a line.
HTPASSWD = "me:$2b$05$zQm/TW6ZFhX5B.FY1iFGLOgIFyl9ZUvVOvIEG5l6CWVlUQAudz97u\n"


@pytest.fixture(scope="module")
def tool(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    home = tmp_path_factory.mktemp("registry")
    copy = workshop.copied_to(home)
    copy.build()
    yield copy
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def registry(tool: Tool) -> Iterator[Registry]:
    with running(tool.home / "server") as server:
        yield server


@pytest.fixture(scope="module")
def pushed(tool: Tool, registry: Registry) -> dict[str, Any]:
    """What the first push of the image said. A proof goes with it: a true one takes a VM, so its signature counts for nothing here."""
    statement = {"subject": [{"digest": {"sha256": tool.build()}}], "predicateType": "https://in-toto.io/attestation/test-result/v0.1"}
    envelope = {
        "payload": b64encode(json.dumps(statement).encode()).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [],
    }
    data = json.dumps(envelope).encode()
    proofs = tool.store / "proofs" / tool.build()
    proofs.mkdir(exist_ok=True)
    (proofs / f"{hashlib.sha256(data).hexdigest()}.dsse.json").write_bytes(data)
    return tool.events("push", str(tool.spec), f"{registry.host}/os/web:1")[-1]


def empty(tool: Tool, place: Path) -> Tool:
    """The same with a store that has nothing."""
    return replace(tool, home=place, keys=tool.home / "keys")


def test_it_comes_back_as_the_same_image(tool: Tool, registry: Registry, pushed: dict[str, Any], tmp_path: Path) -> None:
    other = empty(tool, tmp_path)
    said = other.events("pull", f"{registry.host}/os/web:1")[-1]
    assert said["id"] == pushed["id"] == tool.build()
    assert said["digest"] == pushed["digest"]
    assert len(said["proofs"]) == 1
    assert said["provenance"]
    assert "the store is sound" in other.run("verify")
    one, two = (json.loads(each.run("show", said["id"], "--json"))["manifest"] for each in (tool, other))
    assert one == two
    assert json.loads(other.run("show", f"{registry.host}/os/web:1", "--json"))["id"] == said["id"]
    again = other.events("pull", f"{registry.host}/os/web@{pushed['digest']}")[-1]
    assert again["fetched"] == 0


def test_a_second_push_sends_nothing_and_a_second_tag_only_itself(tool: Tool, registry: Registry, pushed: dict[str, Any]) -> None:
    again = tool.events("push", str(tool.spec), f"{registry.host}/os/web:1")[-1]
    assert (again["sent"], again["digest"]) == (0, pushed["digest"])
    tagged = tool.events("push", str(tool.spec), f"{registry.host}/os/web:latest")[-1]
    assert tagged["digest"] == pushed["digest"]
    assert tagged["sent"] < 10_000


def test_others_find_what_is_said_about_it(registry: Registry, pushed: dict[str, Any]) -> None:
    index = registry.get(f"os/web/manifests/{pushed['digest'].replace(':', '-')}")
    assert [entry["artifactType"] for entry in index["manifests"]] == [
        "application/spdx+json",
        "application/vnd.cyclonedx+json",
        "application/vnd.dsse.envelope.v1+json",
        "application/vnd.dsse.envelope.v1+json",
    ]
    for entry in index["manifests"]:
        about = registry.get(f"os/web/manifests/{entry['digest']}")
        assert about["subject"]["digest"] == pushed["digest"]
        assert registry.get(f"os/web/blobs/{about['layers'][0]['digest']}")


def test_skopeo_looks_at_it_and_copies_it(tool: Tool, registry: Registry, pushed: dict[str, Any], tmp_path: Path) -> None:
    (program,) = tool.store.glob("steps/*/output/tree/usr/bin/skopeo")
    room = Room(program.parents[2])
    source = f"docker://{registry.host}/os/web:1"
    looked = json.loads(room.run(["skopeo", "inspect", "--raw", "--tls-verify=false", source], network=True).stdout)
    assert looked["artifactType"] == "application/vnd.obelisk.image.v1"
    config = room.run(["skopeo", "inspect", "--config", "--raw", "--tls-verify=false", source], network=True).stdout
    assert hashlib.sha256(config.encode()).hexdigest() == pushed["id"]
    copy = f"{registry.host}/mirror/web:1"
    words = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", source, f"docker://{copy}"]
    room.run(words, network=True)
    assert empty(tool, tmp_path).events("pull", copy)[-1]["id"] == pushed["id"]


@pytest.mark.parametrize("how", ["flipped", "cut"])
@pytest.mark.parametrize("what", ["root", "uki", "config"])
def test_a_blob_that_rotted_in_the_registry_is_refused_and_nothing_is_kept(
    tool: Tool, registry: Registry, pushed: dict[str, Any], tmp_path: Path, how: str, what: str
) -> None:
    manifest = registry.get(f"os/web/manifests/{pushed['digest']}")
    layers = {layer["mediaType"].split(".")[3]: layer["digest"] for layer in manifest["layers"]} | {"config": manifest["config"]["digest"]}
    blob = registry.blob(layers[what])
    good = blob.read_bytes()
    half = len(good) // 2
    try:
        blob.write_bytes(good[:half] if how == "cut" else good[:half] + bytes([good[half] ^ 1]) + good[half + 1 :])
        other = empty(tool, tmp_path)
        error = other.refused("pull", f"{registry.host}/os/web:1", status=3)
        assert error["code"] == "registry-damaged"
        assert layers[what] in error["message"]
    finally:
        blob.write_bytes(good)
    assert other.run("images") == ""
    assert list((other.store / "images").iterdir()) == list((other.store / "refs").iterdir()) == []
    assert other.events("pull", f"{registry.host}/os/web:1")[-1]["id"] == pushed["id"]


def test_only_a_proof_by_the_right_tester_counts_when_one_is_asked_for(
    tool: Tool, registry: Registry, pushed: dict[str, Any], tmp_path: Path
) -> None:
    assert pushed["statements"]
    other = empty(tool, tmp_path)
    place, key = f"{registry.host}/os/web:1", str(tool.home / "keys/attestation.pub")
    assert other.refused("pull", place, "--tester", key, status=3)["code"] == "proof-missing"
    assert other.refused("pull", place, "--tester", "/nowhere", status=2)["code"] == "tester-key"
    assert other.run("images") == ""


def test_what_is_not_there_is_named(tool: Tool, registry: Registry, pushed: dict[str, Any], tmp_path: Path) -> None:
    assert pushed["digest"]
    other = empty(tool, tmp_path)
    assert other.refused("pull", f"{registry.host}/os/web:2", status=2)["code"] == "registry-unknown"
    assert other.refused("pull", f"{registry.host}/os/none:1", status=2)["code"] == "registry-unknown"
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    error = other.refused("pull", f"{nobody}/os/web:1", status=4)
    assert error["code"] == "registry-unreachable"
    assert nobody in error["message"]


def test_a_registry_with_a_password_is_told_it_and_says_no_to_others(tool: Tool, tmp_path: Path) -> None:
    def login(name: str, password: str) -> str:
        file = tmp_path / f"{password}.json"
        file.write_text(json.dumps({"auths": {server.host: {"auth": b64encode(f"{name}:{password}".encode()).decode()}}}))
        return str(file)

    elsewhere = ("env", "-u", "REGISTRY_AUTH_FILE", "-u", "XDG_RUNTIME_DIR")
    with running(tmp_path / "server", htpasswd=HTPASSWD) as server:
        place = f"{server.host}/web:1"
        error = tool.refused("push", str(tool.spec), place, "--credentials", login("me", "wrong"), status=4)
        assert error["code"] == "registry-denied"
        assert "'me'" in error["hint"]
        nobody = replace(tool, prefix=(*elsewhere, f"DOCKER_CONFIG={tmp_path / 'none'}"))
        error = nobody.refused("push", str(tool.spec), place, status=4)
        assert "docker login" in error["hint"]
        said = tool.events("push", str(tool.spec), place, "--credentials", login("me", "secret"))[-1]
        os.rename(tmp_path / "secret.json", tmp_path / "config.json")  # noqa: PTH104
        found = replace(empty(tool, tmp_path), prefix=(*elsewhere, f"DOCKER_CONFIG={tmp_path}"))
        assert found.events("pull", place)[-1]["id"] == said["id"]
