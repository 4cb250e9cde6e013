"""Hosts, what is placed on them, and the words of libvirt."""

import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from obelisk.errors import CommandError, InputError, ObeliskError, StateError, TransportError, TrustError
from obelisk.instance.domain import DISK, Domain, needs, to_xml
from obelisk.instance.hosts import Host, Hosts, best, offered, offers, require_version, whole
from obelisk.instance.moving import said, sample_of
from obelisk.instance.placement import Placement, Placements
from obelisk.instance.remote import mac_of, presence_of, refuse, refuse_draining
from obelisk.model.instance import MACHINE_TYPE, PROCESSOR, STATE_SERIAL
from obelisk.model.migration import Presence
from obelisk.system.virsh import State, address, meaning

DIRECTORY = PurePosixPath("/var/lib/libvirt/obelisk")
DOMAIN = Domain(
    name="web",
    uuid="f93a7a86-0f66-4f4b-a780-7c21ea1bd102",
    mac="52:54:00:1b:d1:02",
    generation="00000000-0000-4000-8000-000000000001",
    memory_bytes=512 << 20,
    cpus=2,
    kernel=DIRECTORY / "kernel",
    initrd=DIRECTORY / "initrd",
    command_line="roothash=00 quiet",
    root=DIRECTORY / "disk",
    state=DIRECTORY / "web.state",
    network="obelisk",
    acceleration="kvm",
    credentials={"system.hostname": "web, <1>"},
)


def test_a_machine_is_pinned_and_its_image_is_read_only() -> None:
    root = ET.fromstring(to_xml(DOMAIN))  # noqa: S314 - made here
    machine = root.find("os/type")
    assert machine is not None
    assert machine.get("machine") == MACHINE_TYPE
    assert root.findtext("cpu/model") == PROCESSOR
    assert root.findtext("genid") == DOMAIN.generation
    image, state = root.findall("devices/disk")
    assert image.find(f"source[@file='{DOMAIN.root}']") is not None
    assert image.find("readonly") is not None
    assert state.find(f"source[@file='{DOMAIN.state}']") is not None
    assert state.find("readonly") is None
    assert state.find(f"target[@dev='{DISK}']") is not None
    assert state.findtext("serial") == STATE_SERIAL


def test_credentials_go_in_as_systemd_takes_them_whatever_they_hold() -> None:
    root = ET.fromstring(to_xml(DOMAIN))  # noqa: S314 - made here
    entry = root.findtext("sysinfo/oemStrings/entry") or ""
    name, _, value = entry.partition("=")
    assert name == "io.systemd.credential.binary:system.hostname"
    assert b64decode(value).decode() == "web, <1>"
    assert root.find("os/smbios") is not None
    assert ET.fromstring(to_xml(replace(DOMAIN, credentials={}))).find("sysinfo") is None  # noqa: S314 - made here


def test_what_a_machine_needs_is_read_from_what_it_is() -> None:
    found = needs(to_xml(DOMAIN))
    assert found.uuid == DOMAIN.uuid
    assert found.memory_bytes == DOMAIN.memory_bytes
    assert found.files == DOMAIN.files
    assert found.networks == ("obelisk",)
    assert (found.machine_type, found.processor, found.acceleration) == (MACHINE_TYPE, PROCESSOR, "kvm")
    assert needs(to_xml(replace(DOMAIN, root=None))).files == (DOMAIN.kernel, DOMAIN.initrd)


@pytest.mark.parametrize(("unit", "factor"), [("b", 1), ("KiB", 1 << 10), ("MiB", 1 << 20)])
def test_memory_is_read_in_any_unit(unit: str, factor: int) -> None:
    xml = to_xml(replace(DOMAIN, memory_bytes=4096)).replace('<memory unit="b">', f'<memory unit="{unit}">')
    assert needs(xml).memory_bytes == 4096 * factor


CAPABILITIES = """<capabilities><guest><arch name='i686'><domain type='xen'/></arch></guest>
<guest><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"""
DOMAIN_CAPABILITIES = """<domainCapabilities><machine>pc-q35-10.0</machine><cpu><mode name='host-model'><model>EPYC</model></mode>
<mode name='custom'><model usable='yes'>Nehalem</model><model usable='no'>Icelake</model><model usable='unknown'>qemu64</model></mode>
</cpu></domainCapabilities>"""


def test_what_a_host_offers_is_read_from_its_capabilities() -> None:
    assert offered(CAPABILITIES) == ("qemu", "kvm")
    assert best(offered(CAPABILITIES)) == "kvm"
    assert best(("qemu",)) == "qemu"
    assert offers(DOMAIN_CAPABILITIES) == (frozenset({"pc-q35-10.0"}), frozenset({"Nehalem", "qemu64"}))


def test_only_what_is_marked_as_whole_counts_as_a_file_of_an_image() -> None:
    one, two = "1" * 64, "2" * 64
    assert whole([one, f"{one}.whole", two, "f93a.state", f"{'3' * 64}.whole"]) == {one}


def test_an_old_libvirt_is_refused() -> None:
    host = Host("north", "10.0.0.1", "10.0.0.1")
    require_version(host, {"daemon": "11.3.0"})
    with pytest.raises(StateError, match=r"has libvirt 10.10.0, and 11") as refused:
        require_version(host, {"daemon": "10.10.0"})
    assert refused.value.code == "host-libvirt"


def test_hosts_are_kept_by_name(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path / "obelisk/hosts.json")
    assert hosts.all() == ()
    north, south = Host("north", "10.0.0.1", "10.1.0.1", "/pki"), Host("south", "10.0.0.2", "10.1.0.2")
    hosts.put(south)
    hosts.put(north)
    assert hosts.all() == (north, south)
    assert hosts.mark("south", draining=True).draining
    with pytest.raises(StateError, match="south is being emptied") as refused:
        refuse_draining(hosts.get("south"))
    assert refused.value.hint == "choose another, or: obelisk host undrain south"
    hosts.remove("north")
    with pytest.raises(InputError, match="no host 'north'") as unknown:
        hosts.get("north")
    assert "known: south" in unknown.value.hint


@pytest.mark.parametrize("name", ["", "../x", "North", ".hidden", "a b"])
def test_a_host_has_a_name_that_is_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name for a host"):
        Hosts(tmp_path / "hosts.json").put(Host(name, "10.0.0.1", "10.0.0.1"))


@pytest.mark.parametrize("content", ["", "[]", '{"hosts": {"a": {}}}', '{"hosts": {"a": {"address": "b", "peer": "c", "more": 1}}}'])
def test_a_damaged_list_of_hosts_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "hosts.json").write_text(content)
    with pytest.raises(InputError, match=r"hosts\.json: not a list of hosts"):
        Hosts(tmp_path / "hosts.json").all()


def test_addresses_of_daemons() -> None:
    assert address("10.0.0.1", certificates=None) == "qemu+tls://10.0.0.1/system"
    assert address("fd00::1", certificates=Path("/pki")) == "qemu+tls://[fd00::1]/system?pkipath=/pki"
    host = Host("north", "north.example", "fd00::2", "/pki")
    assert host.daemon_for_peers == "qemu+tls://[fd00::2]/system"
    assert host.data_for_peers == "tcp://[fd00::2]"


PLACEMENT = Placement("web", "f93a7a86-0f66-4f4b-a780-7c21ea1bd102", "image", "north")


def test_placements_are_kept_and_one_command_owns_one(tmp_path: Path) -> None:
    placements = Placements(tmp_path / "placements")
    placements.put(PLACEMENT)
    placements.put(replace(PLACEMENT, name="mail", to="south"))
    assert placements.all() == (replace(PLACEMENT, name="mail", to="south"), PLACEMENT)
    with placements.owned("web"):
        with placements.owned("mail"):
            pass
        with pytest.raises(StateError, match="another command is at work on web") as busy, placements.owned("web"):
            pass
    assert busy.value.code == "instance-busy"
    with placements.owned("web"):
        pass
    placements.remove("web")
    with pytest.raises(InputError, match="no instance 'web'"):
        placements.get("web")


def test_a_damaged_placement_is_named_and_a_strange_name_reaches_no_file(tmp_path: Path) -> None:
    placements = Placements(tmp_path)
    (tmp_path / "web.json").write_text("{}")
    with pytest.raises(InputError, match=r"web\.json: not the record"):
        placements.find("web")
    for name in ("", "../web", ".rates"):
        with pytest.raises(InputError, match="is no name for an instance"):
            placements.find(name)


def test_what_a_network_carried_is_remembered(tmp_path: Path) -> None:
    placements = Placements(tmp_path)
    assert placements.rate("north", "south") is None
    placements.note_rate("north", "south", 5)
    placements.note_rate("south", "north", 7)
    assert (placements.rate("north", "south"), placements.rate("south", "north")) == (5, 7)
    (tmp_path / ".rates.json").write_text("damaged")
    assert placements.rate("north", "south") is None


def test_the_hardware_address_follows_from_the_instance() -> None:
    assert mac_of(PLACEMENT.uuid) == "52:54:00:1b:d1:02"


@pytest.mark.parametrize(
    ("state", "presence"),
    [
        (State(1, 1), Presence.RUNNING),
        (State(1, 10), Presence.RUNNING),  # on the target of a post-copy that goes on
        (State(1, 11), Presence.TORN),
        (State(3, 2), Presence.WAITING),
        (State(3, 12), Presence.WAITING),
        (State(3, 13), Presence.TORN),
        (State(5, 1), Presence.OFF),
        (State(6, 1), Presence.OFF),
    ],
)
def test_what_a_state_of_libvirt_says_of_a_machine(state: State, presence: Presence) -> None:
    assert presence_of(state) is presence


@pytest.mark.parametrize(
    ("message", "kind", "code"),
    [
        ("unable to connect to server at '10.0.0.1:16514': Connection refused", TransportError, "host-unreachable"),
        ("Cannot recv data: Connection reset by peer", TransportError, "host-unreachable"),
        ("internal error: client socket is closed", TransportError, "host-unreachable"),
        ("Certificate /pki/cert.pem owner does not match the hostname 10.0.0.1", TrustError, "host-certificate"),
        ("The server certificate /pki/servercert.pem is not trusted", TrustError, "host-certificate"),
        ("The certificate hasn't got a known issuer.", TrustError, "host-certificate"),
        ("authentication failed: Failed to verify peer's certificate", TrustError, "host-certificate"),
        ("failed to get domain 'web'", StateError, "domain-missing"),
        ("Storage pool not found: no storage pool with matching name 'obelisk'", StateError, "host-unprepared"),
        ("internal error: qemu unexpectedly closed the monitor", CommandError, "host-refused"),
    ],
)
def test_messages_of_libvirt_mean_what_is_to_be_done(message: str, kind: type[ObeliskError], code: str) -> None:
    error = meaning("north", message, CommandError(("virsh",), 1, message))
    assert type(error) is kind
    assert error.code == code
    assert "north" in error.message


def test_all_that_keeps_a_machine_from_a_host_is_said_at_once() -> None:
    refuse(())
    found = (StateError("north has no room", code="host-space", hint="make room"), StateError("north has no network", code="host-network"))
    with pytest.raises(StateError, match="north has no room; north has no network") as refused:
        refuse(found)
    assert refused.value.code == "host-space"
    with pytest.raises(StateError, match=r"^north has no network$"):
        refuse(found[1:])


def test_a_sample_is_said_with_pages_rates_and_the_time_left() -> None:
    numbers = {"memory_processed": 10 << 20, "memory_remaining": 20 << 20, "memory_bps": 10 << 20, "memory_normal": 2560}
    sample = sample_of({**numbers, "memory_iteration": 2, "memory_dirty_rate": 512, "memory_page_size": 4096}, 1.0)
    assert said(sample) == "pass 2, 2560 pages, 10 MiB/s, 2 MiB/s written, 2 s left"
    assert said(sample_of({"disk_processed": 1 << 20, "disk_total": 4 << 20}, 1.0)) == "mirroring the state, 1 of 4 MiB"
