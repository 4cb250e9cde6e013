"""A host that follows a channel, on one disk and in this order: each test goes on where the one before has left it.

Versions 1, 2, 4 and 5 are good, 3 fails its check. Up to 3, hosts ask by themselves; from 4 on somebody has to.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host import Host, Rack, Version, build_versions
from tool import Tool

from obelisk.build import keys
from obelisk.model.proof import FIXED
from obelisk.store import Store
from obelisk.system import qemu
from obelisk.trial import Outcome, Report, proof

_FOLLOWS = f'\n[release]\nrepositories = ["{qemu.SITE}"]\nroot = "root.json"\n'
_BY_ITSELF = f'{_FOLLOWS}follow = "20s"\n'
_MORE = "more\n" * 20000
_FAILS = '[health.bad]\ncommand = "false"\ntimeout = "5s"\n'


@pytest.fixture(scope="module")
def rack(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    home = tmp_path_factory.mktemp("channel")
    tool = workshop.copied_to(home)
    tool.build()  # for its keys
    tool.run("keys", "init")
    tool.run("repo", "init", str(home / "repo"))
    shutil.copyfile(home / "repo/metadata/1.root.json", tool.spec / "root.json")
    versions = [
        Version("1", network=True, spec=_BY_ITSELF),
        Version("2", network=True, spec=_BY_ITSELF),
        Version("3", network=True, spec=_BY_ITSELF + _FAILS),
        Version("4", network=True, spec=_FOLLOWS),
        Version("5", network=True, spec=_FOLLOWS, files={"usr/share/more": _MORE}),
    ]
    build_versions(tool, versions)
    place = home / "rack"
    place.mkdir()
    yield Rack(tool, place)
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.fixture(scope="module")
def repository(rack: Rack) -> Path:
    return rack.tool.home / "repo"


@pytest.fixture(scope="module")
def host(rack: Rack, repository: Path) -> Iterator[Host]:
    release(rack, "1")
    with rack.host(rack.disk(rack.image("host@1")), rack.variables(), site=repository) as machine:
        machine.wait_for_boot()
        machine.settled("host_1")
        yield machine


def release(rack: Rack, version: str, *words: str) -> dict[str, Any]:
    """Release that version in stable, as one that has passed its trial; what the command answers."""
    image = rack.image(f"host@{version}")
    key = keys.load(rack.tool.home / "keys")
    assert key is not None
    outcomes = tuple(Outcome(name, passed=True, duration_ms=1) for name in FIXED)
    with Store.open(rack.tool.store) as store:
        store.add_proof(image.id, proof(Report(image.id, image.manifest.label, "tcg", FIXED, outcomes), key))
    place = str(rack.tool.home / "repo")
    answer: dict[str, Any] = rack.tool.events("release", image.id, "--to", place, "--channel", "stable", "--allow-test-key", *words)[-1]
    return answer


def repo(rack: Rack, *words: str) -> str:
    """Run a command of the publisher's."""
    return rack.tool.run(*words, "--repo", str(rack.tool.home / "repo"))


def test_a_host_knows_what_it_follows(host: Host) -> None:
    assert "stable" in host.run("obelisk host status")
    # A machine may be healthy before it has an address.
    said = host.run("until obelisk host upgrade --check; do sleep 1; done")
    assert "1 is the newest in stable" in said


def test_a_release_comes_by_its_edge_and_by_itself(rack: Rack, host: Host) -> None:
    (edge,) = release(rack, "2")["edges"]
    host.settled("host_2")
    said = host.run("journalctl --no-pager -b -1 -u obelisk-follow")
    assert "host_2 is ready in slot b" in said
    assert f"{edge['size'] / (1 << 20):.1f} MiB of" in said  # what was fetched is the edge, and nothing else
    assert [each["image"] for each in host.json("history")["history"]] == ["host_1", "host_2"]
    assert host.json("status")["status"]["health"] == "healthy"
    assert host.json("verify")["findings"] == []


def test_a_release_that_fails_here_is_left_and_not_taken_again(rack: Rack, host: Host) -> None:
    release(rack, "3")
    host.machine.wait_for("host_3 UNHEALTHY", timeout_s=900)
    host.settled("host_2")
    assert "failed" in host.run("obelisk host upgrade", status=5)
    fallen = [each["image"] for each in host.json("history")["history"]]
    assert fallen == ["host_1", "host_2", "host_3", "host_2"]
    assert host.run("systemctl is-failed obelisk-follow.service", status=None) != "failed"


def test_a_withdrawn_release_is_nobodys_any_more(rack: Rack, host: Host) -> None:
    repo(rack, "withdraw", "3", "--why", "fails its check")
    assert "2 is the newest in stable" in host.run("obelisk host upgrade --check")


def test_hosts_of_a_withdrawn_release_go_back_when_they_are_told_to(rack: Rack, host: Host) -> None:
    release(rack, "4")
    host.settled("host_4")
    repo(rack, "withdraw", "4", "--why", "loses mail", "--hosts", "back")
    assert "loses mail" in host.run("obelisk host upgrade --check")
    host.begin("obelisk host upgrade --reboot")
    host.settled("host_2")
    assert host.json("history")["history"][-1]["why"] == "rollback from host_4"


def test_without_an_edge_blocks_come_one_by_one_and_damaged_ones_never_reach_a_slot(rack: Rack, host: Host, repository: Path) -> None:
    before = {path for path in (repository / "files").rglob("*") if path.is_file()}
    # 2 follows by itself: what it takes is not to be whole yet.
    host.run("systemctl stop obelisk-follow.timer")
    release(rack, "5", "--edges", "none")
    new = [path for path in (repository / "files").rglob("*") if path.is_file() and path not in before]
    pack = max((path for path in new if b"\x28\xb5\x2f\xfd" in path.read_bytes()[:4]), key=lambda path: path.stat().st_size)
    sound = pack.read_bytes()
    pack.write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
    answer = host.try_run("obelisk host upgrade --json")
    assert answer.status == 3, answer.output
    assert host.json("status")["status"]["fallback"] != "host_5"
    pack.write_bytes(sound)
    host.begin("obelisk host upgrade --reboot")
    host.settled("host_5")
    assert host.run("sha256sum </usr/share/more").split()[0] == hashlib.sha256(_MORE.encode()).hexdigest()


def test_what_is_retired_leaves_the_repository_and_hosts_go_on(rack: Rack, host: Host, repository: Path) -> None:
    size = sum(path.stat().st_size for path in (repository / "files").rglob("*") if path.is_file())
    repo(rack, "retire", "--keep", "1", "--now")
    assert sum(path.stat().st_size for path in (repository / "files").rglob("*") if path.is_file()) < size
    assert "sound" in rack.tool.run("repo", "verify", str(repository))
    listed = json.loads(rack.tool.run("repo", "list", str(repository), "--json").splitlines()[-1])["channels"]
    assert [each["version"] for each in listed[0]["releases"]] == ["5"]
    assert "5 is the newest in stable" in host.run("obelisk host upgrade --check")


def test_what_systemd_sysupdate_sees_changes_with_the_channel(rack: Rack, repository: Path, tmp_path: Path) -> None:
    words = ("--channel", "stable", "--url", "https://releases.example/os", "--transfers", str(tmp_path / "transfers"))
    rack.tool.run("repo", "sysupdate", str(repository), *words)
    listing = repository / "sysupdate/host/stable/SHA256SUMS"
    assert "host_5.efi" in listing.read_text()
    transfers = [path.read_text() for path in (tmp_path / "transfers").glob("*.transfer")]
    assert transfers
    assert all("https://releases.example/os/sysupdate/host/stable" in text for text in transfers)
    assert "sound" in rack.tool.run("repo", "verify", str(repository))
    repo(rack, "withdraw", "5", "--why", "the end")
    assert "host_5" not in listing.read_text()
