"""What decides each step of a build, and what a manifest looks like, written out: a change of either shows in a diff and is meant.

After a change that is meant: `GOLDEN=write ./test tests/unit/test_build_golden.py`, and look at what git says.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

from obelisk import spec as specs
from obelisk.build.image import plan
from obelisk.build.keys import SigningKey
from obelisk.build.trees import digest_of_code
from obelisk.events import silent
from obelisk.model.canonical import Json, canonical
from obelisk.model.image import ImagePackage, Manifest, Part, PartKind, parse_manifest
from obelisk.model.lock import Account, Lock, Package, PackageSet
from obelisk.model.state import Encryption
from obelisk.store import Store

GOLDEN = Path(__file__).parent / "golden"
SPEC = """\
name = "shop"
version = "7"
packages = ["nginx-light"]
size_budget = "1G"

[boot]
cmdline = ["audit=1"]

[services]
enable = ["nginx.service"]

[health.page]
http = "http://localhost/"
contains = "shop"
"""


def same(name: str, value: Json) -> None:
    """Compare with the golden file."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    file = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


def package(name: str) -> Package:
    return Package(name, "1-2", "amd64", (name[0] * 64).translate(str.maketrans("ns", "ab")), 100, "debian/trixie", f"pool/{name}.deb")


def test_the_plan_of_a_build(tmp_path: Path) -> None:
    (tmp_path / "obelisk.toml").write_text(SPEC)
    spec = specs.load(tmp_path)
    base = PackageSet("trixie", 1_700_000_000, (package("nginx-light"),))
    tools = PackageSet("trixie", 1_700_000_000, (package("systemd"),))
    foundation = PackageSet("trixie", 1_600_000_000, (package("systemd"),))
    lock = Lock(specs.request(spec), foundation, base, tools, users=(Account("root", 0, "0:root:/root:/bin/bash"),))
    key = SigningKey(tmp_path, certificate_sha256="c" * 64, test_key=True)
    steps = plan(spec, lock, key, Store.open(tmp_path / "store"), silent)
    written: Json = {
        step.name: {"title": step.title, "revision": step.revision, "needs": [n.name for n in step.needs], "options": step.options}
        for step in steps.values()
    }
    text = json.dumps(written).replace(digest_of_code(), "CODE")
    found = json.loads(text)
    for name in ("foundation", "base"):
        found[name]["options"]["code"] = "CODE"
    same("plan.json", found)


def test_a_manifest_and_its_id() -> None:
    manifest = Manifest(
        name="shop",
        version="7",
        distribution="debian:trixie",
        architecture="amd64",
        role="server",
        epoch=1_700_000_000,
        kernel="6.12.1-amd64",
        cmdline="root=/dev/mapper/root ro roothash=" + "0" * 64,
        root_hash="0" * 64,
        root_slot_bytes=1 << 30,
        verity_slot_bytes=9 << 20,
        slot_count=2,
        secure_boot_certificate="c" * 64,
        test_key=False,
        spec_sha256="1" * 64,
        lock_sha256="2" * 64,
        tools_sha256="3" * 64,
        setuid=("/usr/bin/su",),
        parts=(Part(PartKind.ROOT, "root.erofs", 4096, "4" * 64), Part(PartKind.UKI, "uki.efi", 512, "5" * 64)),
        packages=(ImagePackage("nginx-light", "1-2", "amd64", "a" * 64),),
    )
    same("manifest.json", {"id": manifest.id, "manifest": manifest.to_json()})
    assert manifest.to_bytes() == canonical(manifest.to_json())
    assert parse_manifest(manifest.to_bytes(), image_id=manifest.id) == manifest
    # A manifest from before state had versions is one of the first version, under the id that it has.
    later = replace(manifest, state_version=3, state_oldest=2)
    assert parse_manifest(later.to_bytes(), image_id=later.id) == later
    assert "state" not in json.loads(manifest.to_bytes())
    encrypted = replace(manifest, state_encryption=Encryption.TPM2)
    assert parse_manifest(encrypted.to_bytes(), image_id=encrypted.id) == encrypted
