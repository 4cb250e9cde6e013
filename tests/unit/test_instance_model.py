"""What people write about instances, and what is remembered of them."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from obelisk.errors import InputError, StateError
from obelisk.model.instance import (
    MIB,
    Consistency,
    File,
    Identity,
    Instance,
    Kind,
    Port,
    Snapshot,
    Wish,
    check_wish,
    chosen,
    copies_of,
    expired,
    instance_json,
    parse_port,
    parse_size,
    read_instance,
    read_snapshot,
    snapshot_bytes,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WEB = Instance(
    Wish("web", "a" * 64, 256 * MIB, 2, 1 << 30, (Port(8080, 80), Port(9000, 22, "10.0.0.1")), (("system.hostname", "web"),), 3),
    uuid="11111111-2222-3333-4444-555555555555",
    mac="52:54:00:11:22:33",
    generation="66666666-7777-8888-9999-000000000000",
    created=NOW,
    label="web_1",
    on=True,
    origin="other/abc",
)


def _snapshot(number: int, name: str = "") -> Snapshot:
    return Snapshot(f"{number:012x}", WEB, Kind.MEMORY, Consistency.WHOLE, NOW + timedelta(seconds=number), name)


def test_records_come_back_as_they_were_written() -> None:
    assert read_instance(json.loads(json.dumps(instance_json(WEB)))) == WEB
    kept = replace(_snapshot(1, "x"), files=(File("memory", 5, "b" * 64),), parent="p", description="why", paused_ms=7)
    assert read_snapshot(snapshot_bytes(kept)) == kept


def test_a_record_that_is_none_is_refused() -> None:
    with pytest.raises(StateError, match="damaged"):
        read_instance({"schema": "obelisk.instance/1"})
    with pytest.raises(StateError, match="schema"):
        read_instance({"schema": "obelisk.instance/2"})
    with pytest.raises(StateError, match="damaged"):
        read_snapshot(b"[")


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 * MIB), ("2G", 2 << 30), ("1048576", MIB), ("1MiB", MIB), ("1GB", 1 << 30), ("3K", 3072)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "1X", "512 M B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "port"), [("80", Port(0, 80)), ("8080:80", Port(8080, 80)), ("10.1.2.3:8080:80", Port(8080, 80, "10.1.2.3"))]
)
def test_ports(text: str, port: Port) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize("text", ["", "x", "80:x", "0", "8080:0", "70000:80", "1.2.3:8080:80", "1.2.3.256:1:1", "a:b:c:d", "1:2:3:4"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_port(text)


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (replace(WEB.wish, name=""), "instance-name"),
        (replace(WEB.wish, name="-web"), "instance-name"),
        (replace(WEB.wish, name="../web"), "instance-name"),
        (replace(WEB.wish, name="x" * 64), "instance-name"),
        (replace(WEB.wish, memory_bytes=MIB), "instance-memory"),
        (replace(WEB.wish, memory_bytes=128 * MIB + 1), "instance-memory"),
        (replace(WEB.wish, state_bytes=MIB), "instance-state"),
        (replace(WEB.wish, cpus=0), "instance-cpus"),
        (replace(WEB.wish, keep=0), "instance-keep"),
        (replace(WEB.wish, ports=(Port(1, 2), Port(1, 3))), "port-twice"),
        (replace(WEB.wish, credentials=(("a", "1"), ("a", "2"))), "credential-twice"),
    ],
)
def test_wishes_out_of_bounds_are_refused(wish: Wish, code: str) -> None:
    check_wish(WEB.wish)
    with pytest.raises(InputError) as caught:
        check_wish(wish)
    assert caught.value.code == code


def test_free_ports_may_be_asked_for_more_than_once() -> None:
    check_wish(replace(WEB.wish, ports=(Port(0, 80), Port(0, 81))))


def test_a_snapshot_is_named_by_name_id_or_the_beginning_of_one() -> None:
    have = [_snapshot(1), _snapshot(2, "before"), _snapshot(0xABC)]
    assert chosen("before", have) is have[1]
    assert chosen(have[2].id, have) is have[2]
    with pytest.raises(InputError, match="2 snapshots"):
        chosen("00000000000", have[:2])
    for name in ("", "after"):
        with pytest.raises(InputError, match="no snapshot"):
            chosen(name, have)


def test_retention_removes_the_oldest_without_a_name() -> None:
    have = [_snapshot(4), _snapshot(1), _snapshot(2, "named"), _snapshot(3)]
    assert expired(have, 2) == (have[1],)
    assert expired(have, 3) == ()
    assert expired(have, 1) == (have[1], have[3])


def test_copies_get_names_that_are_free() -> None:
    assert copies_of("web", 3, ["web", "web-2"]) == ("web-1", "web-3", "web-4")


def test_what_a_copy_is_told_is_one_line() -> None:
    line = Identity("web-1", WEB.uuid, WEB.mac, "0" * 64).to_line(NOW)
    assert line == b"web-1 11111111222233334444555555555555 52:54:00:11:22:33 1767323045 " + b"0" * 64 + b"\n"
