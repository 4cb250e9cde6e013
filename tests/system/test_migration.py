"""Instances on hosts: each host a set of namespaces with a libvirt daemon of its own, the guest so small that it boots in seconds."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cluster import Cluster, tree_of_hosts
from migrations import NAME, Story, run

from obelisk.errors import StateError, TrustError
from obelisk.instance.hosts import prepare
from obelisk.instance.moving import Moved, move, plan
from obelisk.model.migration import Terms

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """An instance on the first of two hosts; this process is in the client's network."""
    place = tmp_path_factory.mktemp("hosts")
    cluster = Cluster(place, tree_of_hosts(ROOT / ".cache/hosts"))
    try:
        with cluster.entered():
            told = Story(cluster, place)
            told.begin()
            yield told
            told.end()
            assert told.tally.wrong == []
    finally:
        cluster.close()
        shutil.rmtree(place)


def obelisk(story: Story, *words: str, status: int = 0) -> dict[str, object]:
    """What a command answers, or the error that it ends with."""
    environment = {**os.environ, "OBELISK_HOSTS": str(story.place / "hosts.json"), "OBELISK_INSTANCES": str(story.place / "instances")}
    command = "host" if words[0] in {"drain", "undrain"} else "instance"
    argv = [sys.executable, "-I", "-m", "obelisk", command, *words, "--json", "--store", str(story.place / "store")]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    answer: dict[str, object] = json.loads((ended.stdout if status == 0 else ended.stderr).splitlines()[-1])
    return answer if status == 0 else answer["error"]  # type: ignore[return-value]


def test_what_cannot_be_or_has_no_end_is_refused_before_the_first_byte(story: Story) -> None:
    target = story.other
    there = story.remote.hosts.get(target.name)
    story.hurry(16384)
    hopeless = obelisk(story, "migrate", NAME, "--to", target.name, "--rate", "1", status=5)
    story.hurry()
    assert hopeless["code"] == "migration-hopeless"
    target.fill()
    try:
        with pytest.raises(StateError, match=f"{target.name} has room for") as full:
            move(story.remote, NAME, there, Terms())
    finally:
        target.unfill()
    assert full.value.code == "host-space"
    there.daemon().run("net-destroy", "obelisk")
    try:
        with pytest.raises(StateError, match="has no network 'obelisk'"):
            plan(story.remote, NAME, there, Terms())
    finally:
        prepare(there, "br0")
    assert obelisk(story, "migrate", NAME, "--to", story.here.name, status=2)["code"] == "migration-pointless"
    assert obelisk(story, "migrate", NAME, "--to", "nowhere", status=2)["code"] == "host-unknown"
    assert target.files() == []
    with story.remote.placements.owned(NAME):
        assert obelisk(story, "migrate", NAME, "--to", target.name, status=5)["code"] == "instance-busy"


def test_a_certificate_of_somebody_else_opens_nothing(story: Story) -> None:
    other = story.place / "other"
    shutil.copytree(story.place / "client", other)
    stranger = type(story.cluster.authority)(story.place / "stranger", story.cluster.room)
    stranger.write(other, "client", ())
    host = replace(story.remote.hosts.get(story.here.name), certificates=str(other))
    with pytest.raises(TrustError) as refused:
        host.daemon().states()
    assert refused.value.code == "host-certificate"


def test_a_plan_says_time_bytes_and_pause_and_changes_nothing(story: Story) -> None:
    planned = obelisk(story, "migrate", NAME, "--to", story.other.name, "--plan")
    assert 0 <= float(str(planned["pause_s"])) <= 0.3
    assert int(str(planned["moved_bytes"])) >= int(str(planned["memory_bytes"]))
    assert story.other.files() == []


@pytest.mark.timeout(900)
def test_to_and_fro_with_a_fault_in_every_third_migration(story: Story) -> None:
    said: list[str] = []
    run(story, 12, 3, said.append)
    tally = story.tally
    assert tally.wrong == [], "\n".join(said)
    assert tally.arrived >= 8
    assert tally.broken == 0


def test_connections_stay_open_where_nothing_but_a_vxlan_joins_the_hosts(story: Story) -> None:
    with story.cluster.by_vxlan():
        for _ in range(2):
            assert isinstance(story.migrate(), Moved)
    assert story.tally.wrong == []
    assert isinstance(story.migrate(), Moved)  # and by the switch again


def test_a_host_is_emptied_and_filled_again(story: Story) -> None:
    first, other = story.here, story.other
    planned = obelisk(story, "drain", first.name, "--plan")
    assert planned["moves"] == [{"name": NAME, "to": other.name}]
    obelisk(story, "drain", first.name)
    assert story.here is other
    assert obelisk(story, "migrate", NAME, "--to", first.name, status=5)["code"] == "host-draining"
    assert obelisk(story, "show", NAME)["home"] == first.name
    obelisk(story, "undrain", first.name)
    assert story.here is first
    listed = obelisk(story, "list")["on_hosts"]
    assert isinstance(listed, list)
    assert [(each["name"], each["host"], each["state"]) for each in listed] == [(NAME, first.name, "running")]
    assert obelisk(story, "hosts", "remove", first.name, status=5)["code"] == "host-used"


def test_a_machine_that_writes_faster_than_the_network_carries_goes_by_post_copy(story: Story) -> None:
    story.hurry(16384)
    outcome = story.migrate(terms=Terms(post_copy=True), rate=8 << 20)
    story.hurry()
    assert isinstance(outcome, Moved), outcome
    assert outcome.post_copy
    assert story.tally.wrong == []
