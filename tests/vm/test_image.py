"""The whole way of a person with a new machine: lock, build, prove, change, reproduce, export, look after the store."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool import Tool

from obelisk.system.bubblewrap import Room, read_only

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    home = tmp_path_factory.mktemp("image")
    yield workshop.copied_to(home)
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def built(tool: Tool) -> str:
    return tool.build()


def test_building_again_does_nothing_and_names_the_same_image(tool: Tool, built: str) -> None:
    assert tool.redone() == {"image"}
    assert tool.build() == built


def test_lock_names_no_host_and_every_package_with_its_digest(tool: Tool) -> None:
    text = (tool.spec / "obelisk.lock").read_text()
    assert "://" not in text
    assert text.count("sha256 = ") == text.count("origin = ") > 300


def test_nothing_in_the_image_identifies_a_machine(tool: Tool, built: str) -> None:
    target = tool.home / "root.oci"
    tool.run("export", built, "--format", "oci", "--output", str(target))
    layer = max((target / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    names = subprocess.run(["tar", "--list", "--verbose", "--file", layer], check=True, capture_output=True, text=True).stdout
    assert "ssh_host_" not in names
    assert "systemd/random-seed" not in names
    assert "repository" not in names
    (machine_id,) = [line for line in names.splitlines() if line.endswith("./etc/machine-id")]
    assert machine_id.split()[2] == "0"
    shutil.rmtree(target)


def test_image_passes_its_trial_and_gets_a_proof(tool: Tool, built: str) -> None:
    tool.run("test", str(tool.spec), "--report", str(tool.home / "report.json"), "--junit", str(tool.home / "junit.xml"))
    report = json.loads((tool.home / "report.json").read_text())
    assert report["passed"]
    assert report["image"] == built
    assert {scenario["name"] for scenario in report["scenarios"]} == {
        "boots with Secure Boot and becomes healthy",
        "the root cannot be written",
        "a flipped byte is detected when it is read",
        "a second boot finds the state kept",
        "no unit failed",
        "Secure Boot refuses a UKI signed by another key",
        "a host with the image before it upgrades to it",
        "and goes back when it is told to",
        "a host leaves a sibling that does not work, by itself",
        "health page",
        "health ssh",
        "test configuration",
        "test keys-only",
        "test page-is-sealed",
    }
    assert 'failures="0"' in (tool.home / "junit.xml").read_text()
    (proof,) = (tool.store / "proofs" / built).iterdir()
    assert proof.name.endswith(".dsse.json")
    (console,) = (tool.store / "trials").glob("*/console-1.log")
    assert "FAILED" not in console.read_text(errors="replace")


def test_an_image_that_does_not_do_its_job_fails_its_trial_and_gets_no_proof(tool: Tool, built: str) -> None:
    with tool.changed("obelisk.toml", 'contains = "Hello from an image"', 'contains = "something else"\ntimeout = "5s"'):
        assert "spec has changed" in tool.run("test", str(tool.spec), status=5)
        unhealthy = tool.build()
        said = tool.run("test", str(tool.spec), status=8)
    assert "FAIL  boots with Secure Boot and becomes healthy" in said
    assert "FAIL  health page" in said
    assert "pass  health ssh" in said
    assert unhealthy != built
    assert not (tool.store / "proofs" / unhealthy).exists()


def test_a_changed_file_makes_another_image_and_redoes_only_what_follows(tool: Tool, built: str) -> None:
    with tool.changed("tree/srv/www/index.html", "</h1>", "</h1><p>changed</p>"):
        assert tool.redone() == {"configured", "root", "uki", "disk", "image"}
        changed = tool.manifest()
        assert changed["root_hash"] != json.loads(tool.run("show", built, "--json"))["manifest"]["root_hash"]
        assert "srv/www/index.html" in tool.run("diff", built, str(tool.spec), status=1)
    assert tool.build() == built


def test_the_same_lock_gives_the_same_bits_in_a_fresh_place(tool: Tool, built: str) -> None:
    assert tool.run("build", str(tool.spec), "--reproduce").split()[-1] == built


def test_the_tools_of_the_ecosystem_read_disk_and_kernel_image(tool: Tool, built: str) -> None:
    (ukify,) = (tool.store / "steps").glob("*/output/tree/usr/bin/ukify")
    disk = tool.home / "disk"
    disk.mkdir()
    tool.run("export", built, "--output", str(disk / "disk.raw"))
    room, binds = Room(ukify.parents[2]), [read_only(disk, "/disk"), read_only(tool.store / "images" / built, "/image")]
    room.run(["systemd-dissect", "--validate", "/disk/disk.raw"], binds=binds)
    inspected = room.run(["ukify", "inspect", "/image/uki.efi"], binds=binds).stdout
    assert f"roothash={tool.manifest()['root_hash']}" in inspected
    assert 'IMAGE_ID="web"' in inspected
    shutil.rmtree(disk)


@pytest.mark.parametrize("form", ["raw", "qcow2", "erofs"])
def test_exports_are_what_others_read(tool: Tool, built: str, form: str) -> None:
    target = tool.home / f"image.{form}"
    tool.run("export", built, "--format", form, "--output", str(target))
    with target.open("rb") as file:
        head = file.read(2048)
    magic = {"raw": head[512:520] == b"EFI PART", "qcow2": head[:4] == b"QFI\xfb", "erofs": head[1024:1028] == b"\xe2\xe1\xf5\xe0"}
    assert magic[form]
    target.unlink()


def test_a_script_that_reaches_for_the_network_fails_with_its_name(tool: Tool, built: str) -> None:
    file = tool.spec / "obelisk.toml"
    before = file.read_text()
    script = tool.spec / "reach.sh"
    script.write_text("#!/bin/bash\nexec 3<>/dev/tcp/192.0.2.1/80\n")
    script.chmod(0o755)
    file.write_text(before + '\n[[scripts]]\nrun = "reach.sh"\n')
    try:
        said = tool.run("build", str(tool.spec), status=2)
        assert "reach.sh" in said
        assert "network" in said
    finally:
        file.write_text(before)
        script.unlink()
    assert tool.build() == built


def test_the_store_is_sound_and_gc_keeps_what_is_used(tool: Tool, built: str) -> None:
    assert "sound" in tool.run("verify")
    tool.run("gc")
    assert tool.build() == built
