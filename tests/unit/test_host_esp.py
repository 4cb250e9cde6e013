"""What is done to the ESP, on a directory in its place."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from host_samples import manifest

from obelisk.errors import StateError, TrustError
from obelisk.host import esp
from obelisk.model.host import Entry
from obelisk.model.image import Manifest, Part, PartKind

UKI = b"kernel" * 1000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("EFI/Linux", "EFI/BOOT", "EFI/systemd"):
        (tmp_path / "esp" / name).mkdir(parents=True)
    (tmp_path / "esp/EFI/BOOT/BOOTX64.EFI").touch()
    (tmp_path / "esp/EFI/systemd/systemd-bootx64.efi").touch()
    return tmp_path / "esp"


def image(version: str) -> Manifest:
    """A manifest whose UKI is `UKI`."""
    part = Part(PartKind.UKI, "uki.efi", len(UKI), hashlib.sha256(UKI).hexdigest())
    return replace(manifest(version), parts=(*manifest(version).parts[:2], part))


def install(place: Path, entry: Entry) -> None:
    """Install an image under that entry."""
    uki = place.parent / "uki.efi"
    uki.write_bytes(UKI)
    given = image(entry.version)
    esp.install(place, entry, uki, given, given.part(PartKind.UKI).sha256)


def test_an_image_is_installed_found_and_removed(place: Path) -> None:
    install(place, Entry("shop", "1"))
    install(place, Entry("shop", "2", 3))
    assert esp.entries(place) == (Entry("shop", "1"), Entry("shop", "2", 3))
    assert esp.manifest_of(place, "shop_2") == image("2")
    assert esp.path_of(place, Entry("shop", "2", 3)).read_bytes() == UKI
    esp.remove(place, "shop_2")
    esp.remove(place, "shop_2")
    assert esp.entries(place) == (Entry("shop", "1"),)
    assert esp.manifest_of(place, "shop_2") is None


def test_an_image_has_one_entry_whatever_its_counter_was(place: Path) -> None:
    install(place, Entry("shop", "2", 0, 3))
    install(place, Entry("shop", "2", 3))
    assert esp.entries(place) == (Entry("shop", "2", 3),)


def test_what_reads_back_wrong_never_gets_its_name(place: Path) -> None:
    uki = place.parent / "uki.efi"
    uki.write_bytes(UKI[:-1])
    with pytest.raises(TrustError):
        esp.install(place, Entry("shop", "2", 3), uki, image("2"), image("2").part(PartKind.UKI).sha256)
    assert esp.entries(place) == ()


def test_a_blessing_changes_the_name_alone(place: Path) -> None:
    install(place, Entry("shop", "2", 2, 1))
    esp.change(place, Entry("shop", "2", 2, 1), Entry("shop", "2"))
    assert [path.name for path in (place / esp.ENTRIES).iterdir()] == ["shop_2.efi"]


def test_what_a_cut_left_is_swept_and_no_more(place: Path) -> None:
    install(place, Entry("shop", "1"))
    (place / esp.ENTRIES / "shop_2.new").write_bytes(b"half")
    (place / esp.MANIFESTS / ".shop_2.json.abc.tmp").write_bytes(b"half")
    esp.sweep(place)
    assert sorted(path.name for path in place.rglob("*") if path.is_file() and "shop" in path.name) == ["shop_1.efi", "shop_1.json"]


def test_strangers_on_the_esp_are_named(place: Path) -> None:
    install(place, Entry("shop", "1"))
    assert esp.strangers(place) == ()
    (place / esp.ENTRIES / "rescue.efi").touch()
    (place / "loader/entries").mkdir(parents=True)
    (place / "loader/entries/other.conf").touch()
    assert [str(path) for path in esp.strangers(place)] == ["EFI/Linux/rescue.efi", "loader/entries/other.conf"]


def test_a_damaged_manifest_is_none(place: Path) -> None:
    install(place, Entry("shop", "1"))
    (place / esp.MANIFESTS / "shop_1.json").write_bytes(b"{}")
    assert esp.manifest_of(place, "shop_1") is None


def test_a_full_esp_is_found_before_it_is_written(place: Path) -> None:
    with pytest.raises(StateError) as caught:
        esp.require_room(place, 1 << 60)
    assert caught.value.code == "esp-full"
