"""The disk's arithmetic: ids from the root hash, hash trees that fit, definitions that agree with each other."""

from dataclasses import replace
from uuid import UUID

import pytest
from host_samples import manifest

from obelisk.build import slots
from obelisk.build.slots import MIB, Layout, host_definitions, host_disk_bytes, shipped_definitions, verity_bytes
from obelisk.model.partitions import partition_uuids
from obelisk.model.state import Encryption

HASH = "".join(f"{number:02x}" for number in range(32))
LAYOUT = Layout("web_1", HASH, 1 << 30, 1_700_000_000)


def test_partition_ids_are_the_first_and_last_half_of_the_root_hash() -> None:
    assert partition_uuids(HASH) == (UUID("00010203-0405-0607-0809-0a0b0c0d0e0f"), UUID("10111213-1415-1617-1819-1a1b1c1d1e1f"))


@pytest.mark.parametrize(
    ("root_mib", "hash_blocks"),
    # One 4 KiB hash block covers 128 blocks; a superblock; each level up to a single block.
    [(1, 1 + 2 + 1), (64, 1 + 128 + 1), (1024, 1 + 2048 + 16 + 1), (2048, 1 + 4096 + 32 + 1)],
)
def test_the_hash_tree_fits_its_partition_and_wastes_less_than_a_mebibyte(root_mib: int, hash_blocks: int) -> None:
    size = verity_bytes(root_mib * MIB)
    assert hash_blocks * 4096 <= size < hash_blocks * 4096 + MIB
    assert size % MIB == 0


@pytest.mark.parametrize("count", [2, 3, 6])
def test_what_is_shipped_is_the_beginning_of_what_the_host_has(count: int) -> None:
    shipped = shipped_definitions(LAYOUT)
    host = host_definitions(LAYOUT.root_bytes, count, Encryption.NONE)
    for name, text in shipped.items():
        sizes = [line for line in text.splitlines() if line.startswith(("Type=", "Size"))]
        assert [line for line in host[name].splitlines() if line.startswith(("Type=", "Size"))] == sizes
    assert list(host)[: len(shipped)] == list(shipped)
    assert sum("Label=_empty" in text for text in host.values()) == 2 * count
    assert list(host) == sorted(host)
    assert "Label=state" in host["90-state.conf"]


def test_an_encrypted_state_volume_is_the_only_difference() -> None:
    plain, encrypted = (host_definitions(LAYOUT.root_bytes, 2, each) for each in (Encryption.NONE, Encryption.TPM2))
    assert encrypted.pop("90-state.conf") == plain.pop("90-state.conf") + "Format=btrfs\nEncrypt=tpm2\n"
    assert encrypted == plain


@pytest.mark.parametrize("count", [2, 5])
def test_a_host_disk_has_room_for_all_slots_and_state(count: int) -> None:
    layout = replace(LAYOUT, slots=count)
    assert host_disk_bytes(layout, state=4 << 30) >= (2 << 30) + count * ((1 << 30) + verity_bytes(1 << 30)) + (4 << 30)


def test_an_image_that_fills_its_slot_is_told_releases_ahead() -> None:
    assert slots.outgrown(manifest(root_mib=400), ()) == ()
    (said,) = slots.outgrown(manifest(root_mib=500), ())
    assert "98% of its slot (512 MiB)" in said


def test_an_image_too_large_for_the_slots_of_older_hosts_names_them() -> None:
    older = [replace(manifest("1"), root_slot_bytes=300 * MIB), replace(manifest("0", name="other"), root_slot_bytes=300 * MIB)]
    (said,) = slots.outgrown(manifest("2", root_mib=400), older)
    assert "shop_1" in said
    assert "other" not in said
