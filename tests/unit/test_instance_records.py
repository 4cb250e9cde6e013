"""What is kept of instances: made whole or not at all, shared without harm, owned by one command, named when it is damaged."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from obelisk.errors import InputError, StateError, TrustError
from obelisk.instance import moments
from obelisk.instance.records import Bootable, Place, Record, Records
from obelisk.model.instance import Consistency, Instance, Kind, Port, Snapshot, Wish
from obelisk.system.files import hash_sparse
from obelisk.system.resident import Memory, Resident, Setup, argv, free_port, refuse_taken

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WEB = Instance(
    Wish("web", "a" * 64, 256 << 20, 2, 1 << 30, (Port(8080, 80),), (("key", "a,b"),)),
    "11111111-2222-3333-4444-555555555555",
    "52:54:00:11:22:33",
    "66666666-7777-8888-9999-000000000000",
    NOW,
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "instances")


def _make(records: Records, name: str, *, layers: tuple[str, ...] = ("one",), image: Bootable | None = None) -> Place:
    with records.coming(name) as place:
        for layer in layers:
            (place.layers / f"{layer}.qcow2").write_text(layer)
        if image is not None:
            records.take_image(image, place)
        place.write(Record(replace(WEB, wish=replace(WEB.wish, name=name)), "quiet", layers))
    return records.place(name)


def test_an_instance_appears_whole_or_not_at_all(records: Records) -> None:
    def fail() -> None:
        with records.coming("web") as place:
            place.write(Record(WEB, "", ()))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert records.names() == []
    assert [path.name for path in records.root.iterdir()] == [".locks"]
    made = _make(records, "web")
    assert (records.names(), made.read()) == (["web"], Record(WEB, "quiet", ("one",)))
    assert made.directory.stat().st_mode & 0o777 == 0o700
    assert (made.directory / "record.json").stat().st_mode & 0o777 == 0o600


def test_a_name_is_given_once(records: Records) -> None:
    _make(records, "web")
    (records.root / "placements").mkdir()  # of instances on hosts
    for name in ("web", "placements"):
        with pytest.raises(InputError) as caught, records.coming(name):
            pass
        assert caught.value.code == "name-taken"
    with pytest.raises(InputError) as caught, records.owned("other"):
        pass
    assert caught.value.code == "instance-unknown"
    assert "web" in caught.value.hint


def test_one_command_owns_an_instance(records: Records) -> None:
    _make(records, "web")
    with records.owned("web"):
        with pytest.raises(StateError) as caught, records.owned("web"):
            pass
        assert caught.value.code == "instance-busy"
    with records.owned("web"):
        pass


def test_what_killed_commands_left_is_swept_and_what_others_make_is_not(records: Records) -> None:
    _make(records, "web")
    (records.root / ".new-left/layers").mkdir(parents=True)
    with records.coming("coming") as coming:
        coming.write(Record(WEB, "", ()))
        with records.owned("web"):
            assert not (records.root / ".new-left").exists()
            assert coming.directory.exists()
    assert records.names() == ["coming", "web"]


def test_a_damaged_record_says_where(records: Records) -> None:
    place = _make(records, "web")
    (place.directory / "record.json").write_text("{")
    with pytest.raises(StateError) as caught:
        place.read()
    assert caught.value.code == "instance-damaged"
    assert "record.json" in caught.value.message


def test_files_of_an_image_are_shared_and_go_with_the_last_instance(records: Records, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"disk")
    opened = []

    @contextmanager
    def disk() -> Iterator[Path]:
        opened.append(1)
        yield tmp_path / "disk"

    image = Bootable("f" * 64, "web_1", b"linux", b"initrd", "quiet", disk)
    places = [_make(records, name, image=image) for name in ("a", "b")]
    assert len(opened) == 1
    for name in ("linux", "initrd", "disk.raw"):
        assert len({(place.directory / "image" / name).stat().st_ino for place in places}) == 1
    kept = records.root / ".images" / image.id
    with records.owned("a") as place:
        records.remove(place)
    assert (records.names(), kept.exists()) == (["b"], True)
    with records.owned("b") as place:
        records.remove(place)
    assert (records.names(), kept.exists(), (tmp_path / "disk").read_bytes()) == ([], False, b"disk")


def _kept(place: Place, layers: tuple[str, ...], memory: bytes = b"") -> Snapshot:
    with moments.drafted(place) as draft:
        if memory:
            (draft / "memory").write_bytes(memory)
        kind = Kind.MEMORY if memory else Kind.STATE
        made = Snapshot(draft.name.removeprefix("."), WEB, kind, Consistency.WHOLE, NOW)
        return moments.publish(place, draft, made, layers)


def test_a_snapshot_needs_no_other_and_touches_none(records: Records) -> None:
    place = _make(records, "web", layers=("one", "two", "three"))
    first, second = _kept(place, ("one",), b"m" * 5000), _kept(place, ("one", "two"))
    assert (moments.layers_of(first), moments.layers_of(second)) == (("one",), ("one", "two"))
    assert {each.id for each in place.kept()} == {first.id, second.id}
    moments.remove(place, first.id)
    assert [each.id for each in place.kept()] == [second.id]
    assert moments.examine(place, second) == ()
    assert (place.layers / "one.qcow2").read_text() == "one"


def test_each_damage_is_found_and_named(records: Records) -> None:
    place = _make(records, "web", layers=("one", "two"))
    kept = _kept(place, ("one",), b"m" * 5000)
    directory = place.snapshots / kept.id
    moments.refuse_damaged(place, kept)
    (directory / "memory").chmod(0o600)
    (directory / "memory").write_bytes(b"n" * 5000)
    assert [(each.file, each.what) for each in moments.examine(place, kept)] == [("memory", "has other content than it had")]
    with pytest.raises(TrustError) as caught:
        moments.refuse_damaged(place, kept)
    assert caught.value.code == "snapshot-damaged"
    assert str(directory / "memory") in caught.value.message
    (directory / "memory").write_bytes(b"m" * 4999)
    (directory / "one.qcow2").unlink()
    assert [each.what for each in moments.examine(place, kept)] == ["has 4999 bytes, not 5000", "is missing"]
    (directory / "snapshot.json").write_text("{")
    assert (place.kept(), place.damaged()) == ((), (kept.id,))


def test_a_draft_that_fails_is_gone_and_one_that_was_killed_is_removed(records: Records) -> None:
    place = _make(records, "web", layers=("one",))
    with pytest.raises(RuntimeError), moments.drafted(place):
        raise RuntimeError
    (place.snapshots / ".left").mkdir()
    (place.layers / "left.qcow2").touch()
    place.remove_drafts()
    assert list(place.snapshots.iterdir()) == []
    assert [path.name for path in place.layers.iterdir()] == ["one.qcow2"]


def test_a_digest_does_not_depend_on_holes(tmp_path: Path) -> None:
    content = bytes(3 << 20) + b"x" * 100 + bytes(1 << 20)
    (tmp_path / "full").write_bytes(content)
    with (tmp_path / "holes").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"x" * 100)
        file.truncate(len(content))
    told = hash_sparse(tmp_path / "full")
    assert hash_sparse(tmp_path / "holes") == told
    (tmp_path / "longer").write_bytes(content + b"\0")
    (tmp_path / "moved").write_bytes(bytes(2 << 20) + b"x" * 100 + bytes(2 << 20))
    assert len({told, hash_sparse(tmp_path / "longer"), hash_sparse(tmp_path / "moved")}) == 3


# Machines


def test_a_machine_runs_as_long_as_a_process_holds_its_lock(tmp_path: Path) -> None:
    machine = Resident(tmp_path)
    assert (machine.is_running(), machine.processes()) == (False, [])
    process = subprocess.Popen(["flock", tmp_path / "running", "sleep", "60"])
    try:
        while not machine.is_running():
            pass
        assert process.pid in machine.processes()
        machine.end()
    finally:
        process.kill()
        process.wait()
    assert (machine.is_running(), machine.processes()) == (False, [])
    machine.end()


def test_the_console_says_how_a_machine_is(tmp_path: Path) -> None:
    machine = Resident(tmp_path)
    assert machine.healthy() is None
    for said, healthy in (("booting", None), ("\nobelisk: web_1 healthy boot=1", True), ("\r\nobelisk: web_1 UNHEALTHY page", False)):
        with (tmp_path / "console.log").open("a") as console:
            console.write(said)
        assert machine.healthy() is healthy


def test_a_machine_is_pinned_and_takes_what_it_is_given() -> None:
    setup = Setup(WEB, "image/linux", "image/initrd", "roothash=1", "image/disk.raw", "layers/one.qcow2")
    words = " ".join(argv(setup))
    for wanted in (
        "-machine pc-q35-10.0,",
        "-cpu Nehalem ",
        f"-uuid {WEB.uuid} ",
        f"vmgenid,guid={WEB.generation}",
        f"mac={WEB.mac}",
        "hostfwd=tcp:127.0.0.1:8080-:80",
        '"node-name": "root", "read-only": true',
        "serial=obelisk-state",
        "io.systemd.credential.binary:key=YSxi",
    ):
        assert wanted in words
    assert "-incoming" not in words


def test_no_port_leads_to_a_machine_that_is_not_itself_yet() -> None:
    setup = Setup(
        WEB, "image/linux", "image/initrd", "", None, "layers/one.qcow2", load=Path("/x"), memory=Memory(Path("/y/ram"), shared=False)
    )
    words = " ".join(argv(setup))
    assert "hostfwd" not in words
    assert words.endswith("-S -incoming defer")
    assert "mem-path=/ram/ram,share=off,readonly=on,rom=off" in words
    assert "drive=root" not in words


def test_ports_that_are_taken_are_refused_before_anything_starts() -> None:
    number = free_port("127.0.0.1")
    refuse_taken(Port(number, 80))
    assert free_port("127.0.0.1", avoid=[number]) != number
    with pytest.raises(StateError) as caught:
        refuse_taken(Port(1, 80, "192.0.2.1"))
    assert caught.value.code == "address-missing"


def test_links_across_directories_keep_one_file(records: Records) -> None:
    one = _make(records, "one", layers=("a", "b"))
    two = _make(records, "two", layers=())
    two.link_layers(one.layers, ("a", "b"))
    two.link_layers(one.layers, ("a",))
    assert (two.layers / "a.qcow2").stat().st_nlink == 2
