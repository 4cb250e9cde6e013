"""What an image brings to firmware and boot loader: in an order that keeps the machine bootable, wherever it is cut."""

import hashlib
import shutil
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from host_samples import manifest

from obelisk.errors import StateError, TrustError
from obelisk.host import esp, firmware
from obelisk.model.image import Manifest, Part, PartKind
from obelisk.system import efivars, sbverify

X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
BROUGHT = {
    PartKind.UPDATE_PK: "pk",
    PartKind.UPDATE_KEK: "kek",
    PartKind.UPDATE_DB: "db",
    PartKind.LOADER: "loader",
    PartKind.UPDATE_DBX: "dbx",
}


def update(certificate: bytes) -> bytes:
    """A signed update with one certificate; its signature has 4 bytes."""
    head = bytes(16) + struct.pack("<I", 28) + bytes(24)
    return head + X509 + struct.pack("<III", 28 + 16 + len(certificate), 0, 16 + len(certificate)) + bytes(16) + certificate


@dataclass
class Firmware:
    """A firmware that starts `SIGNER:…` when it knows that signer. `refuses` every update; `enforcing`: Secure Boot is on."""

    db: list[bytes] = field(default_factory=lambda: [b"old"])
    dbx: list[bytes] = field(default_factory=list)
    pk: list[bytes] = field(default_factory=lambda: [b"first PK"])
    kek: list[bytes] = field(default_factory=lambda: [b"first KEK"])
    refuses: bool = False
    enforcing: bool = True
    forgets: bool = False

    def trusted(self) -> tuple[bytes, ...]:
        return tuple(each for each in self.db if each not in self.dbx)

    def certificates(self, variable: str) -> tuple[bytes, ...]:
        return tuple(vars(self)[variable.lower()])

    def update(self, variable: str, data: bytes, *, append: bool) -> None:
        if self.refuses:
            raise PermissionError(13, "Permission denied")
        if not self.forgets:
            there = vars(self)[variable.lower()]
            there[:] = [*(there if append else ()), *efivars.certificates_of(data)]

    def starts(self, program: Path) -> bool:
        return is_signed_by(program, self.trusted())


def is_signed_by(program: Path, certificates: tuple[bytes, ...] | list[bytes]) -> bool:
    return program.read_bytes().split(b":")[0] in certificates


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Firmware:
    found = Firmware()
    monkeypatch.setattr(efivars, "secure_boot", lambda: found.enforcing)
    monkeypatch.setattr(efivars, "trusted_certificates", found.trusted)
    monkeypatch.setattr(efivars, "certificates", found.certificates)
    monkeypatch.setattr(efivars, "update", found.update)
    monkeypatch.setattr(sbverify, "is_signed_by", is_signed_by)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An ESP with a loader and two images, all signed by the old key."""
    for name in ("EFI/BOOT", "EFI/systemd", "EFI/Linux"):
        (tmp_path / "esp" / name).mkdir(parents=True)
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", "EFI/Linux/shop_1.efi", "EFI/Linux/shop_2.efi"):
        (tmp_path / "esp" / name).write_bytes(b"old:program")
    return tmp_path / "esp"


@dataclass
class Image:
    """A source with what it brings."""

    directory: Path
    manifest: Manifest

    def path(self, kind: PartKind) -> Path:
        return self.directory / kind.value


def image(place: Path, **brings: bytes) -> Image:
    """Version 2 with these parts, named as the endings of their files are."""
    directory = place / "image"
    directory.mkdir(exist_ok=True)
    parts = []
    for kind, ending in BROUGHT.items():
        if ending in brings:
            (directory / kind.value).write_bytes(brings[ending])
            parts.append(Part(kind, kind.value, len(brings[ending]), hashlib.sha256(brings[ending]).hexdigest()))
    plain = manifest()
    return Image(directory, replace(plain, parts=(*plain.parts, *parts)))


def bring(place: Path, tmp_path: Path, **brings: bytes) -> None:
    made = image(tmp_path, **brings)
    firmware.lay(place, made.manifest, made)  # type: ignore[arg-type] # all that is asked of it


def test_a_key_that_comes_is_known_and_then_the_loader_changes(place: Path, tmp_path: Path, machine: Firmware) -> None:
    bring(place, tmp_path, db=update(b"new"), loader=b"new:loader")
    assert esp.brought(place, "shop_2") == ("db", "loader")
    assert len(firmware.apply(place, "shop_2")) == 2
    assert machine.db == [b"old", b"new"]
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        assert (place / name).read_bytes() == b"new:loader"
    assert esp.brought(place, "shop_2") == ()
    assert firmware.apply(place, "shop_2") == []
    assert not list(place.rglob("*.new"))


def test_a_loader_that_the_firmware_would_refuse_stays_away(place: Path, tmp_path: Path, machine: Firmware) -> None:
    bring(place, tmp_path, loader=b"new:loader")
    with pytest.raises(TrustError) as refused:
        firmware.apply(place, "shop_2")
    assert refused.value.code == "loader-unsigned"
    assert machine.starts(place / "EFI/BOOT/BOOTX64.EFI")
    assert esp.brought(place, "shop_2") == ("loader",)


def test_a_key_is_revoked_only_when_nothing_is_signed_by_it_any_more(place: Path, tmp_path: Path, machine: Firmware) -> None:
    machine.db.append(b"new")
    bring(place, tmp_path, loader=b"new:loader", dbx=update(b"old"))
    for still, name in (("shop_1, shop_2", "shop_2"), ("shop_1", "shop_1")):
        with pytest.raises(StateError, match=still) as waits:
            firmware.apply(place, "shop_2")
        assert waits.value.code == "key-needed"
        assert machine.dbx == []
        (place / f"EFI/Linux/{name}.efi").write_bytes(b"new:program")
    firmware.apply(place, "shop_2")
    assert machine.dbx == [b"old"]
    assert all(machine.starts(path) for path in place.rglob("*.[eE][fF][iI]"))


@pytest.mark.parametrize("forgets", [False, True], ids=["says no", "does nothing"])
def test_a_firmware_that_refuses_is_named_and_asked_again(place: Path, tmp_path: Path, machine: Firmware, *, forgets: bool) -> None:
    machine.refuses, machine.forgets = not forgets, forgets
    bring(place, tmp_path, db=update(b"new"), loader=b"new:loader")
    with pytest.raises(StateError) as refused:
        firmware.apply(place, "shop_2")
    assert refused.value.code == "firmware-refuses"
    assert (place / "EFI/BOOT/BOOTX64.EFI").read_bytes() == b"old:program"
    machine.refuses = machine.forgets = False
    assert len(firmware.apply(place, "shop_2")) == 2


def test_where_the_firmware_checks_nothing_it_is_left_alone(place: Path, tmp_path: Path, machine: Firmware) -> None:
    machine.enforcing = False
    bring(place, tmp_path, db=update(b"new"), loader=b"new:loader", dbx=update(b"old"))
    firmware.apply(place, "shop_2")
    assert (machine.db, machine.dbx) == ([b"old"], [])
    assert (place / "EFI/BOOT/BOOTX64.EFI").read_bytes() == b"new:loader"


def test_wherever_it_is_cut_the_machine_boots_and_the_next_boot_goes_on(
    place: Path, tmp_path: Path, machine: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.db.append(b"new")
    for path in (place / "EFI/Linux").iterdir():
        path.write_bytes(b"new:program")
    bring(place, tmp_path, pk=update(b"next PK"), kek=update(b"next KEK"), db=update(b"new"), loader=b"new:loader", dbx=update(b"old"))
    flush, copy, give = esp.flush, shutil.copyfile, machine.update
    done = False
    for cut in range(100):
        left = [cut]

        def counted(function: object, left: list[int] = left) -> object:
            def step(*words: object, **more: object) -> object:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                return function(*words, **more)  # type: ignore[operator]

            return step

        monkeypatch.setattr(esp, "flush", counted(flush))
        monkeypatch.setattr(shutil, "copyfile", counted(copy))
        monkeypatch.setattr(efivars, "update", counted(give))
        try:
            firmware.apply(place, "shop_2")
            done = True
        except KeyboardInterrupt:
            pass
        assert all(machine.starts(path) for path in place.rglob("*.[eE][fF][iI]")), cut
        if done:
            break
        bring_again(place, tmp_path, machine, copy)
    assert done
    assert cut > 3
    assert (machine.pk, machine.kek, machine.dbx) == ([b"next PK"], [b"next KEK"], [b"old"])


def bring_again(place: Path, tmp_path: Path, machine: Firmware, copy: object) -> None:
    """The machine as it was before the cut, so that each cut is one from the same beginning."""
    machine.dbx[:], machine.pk[:], machine.kek[:] = [], [b"first PK"], [b"first KEK"]
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        (place / name).write_bytes(b"old:program")
    for kind, ending in BROUGHT.items():
        copy(tmp_path / "image" / kind.value, place / "EFI/obelisk" / f"shop_2.{ending}")  # type: ignore[operator]


def test_who_may_sign_updates_takes_the_place_of_who_might(place: Path, tmp_path: Path, machine: Firmware) -> None:
    bring(place, tmp_path, pk=update(b"next PK"), kek=update(b"next KEK"))
    assert firmware.apply(place, "shop_2") == ["the firmware has another PK", "the firmware has another KEK"]
    assert (machine.pk, machine.kek) == ([b"next PK"], [b"next KEK"])


def test_what_is_there_already_is_not_brought(place: Path, tmp_path: Path, machine: Firmware) -> None:
    machine.dbx.append(b"gone")
    bring(place, tmp_path, pk=update(b"first PK"), kek=update(b"first KEK"), db=update(b"old"), loader=b"old:program", dbx=update(b"gone"))
    assert esp.brought(place, "shop_2") == ()
    assert machine.starts(place / "EFI/BOOT/BOOTX64.EFI")


def test_a_part_that_was_exchanged_is_refused(place: Path, tmp_path: Path) -> None:
    made = image(tmp_path, db=update(b"new"))
    (tmp_path / "image/update-db").write_bytes(update(b"bad"))
    with pytest.raises(TrustError):
        firmware.lay(place, made.manifest, made)  # type: ignore[arg-type] # all that is asked of it
    assert esp.brought(place, "shop_2") == ()


def test_an_image_that_goes_takes_along_what_it_brought(place: Path, tmp_path: Path) -> None:
    bring(place, tmp_path, db=update(b"new"))
    (place / "EFI/obelisk/shop_2.1.json").write_bytes(b"of version 2.1")
    esp.remove(place, "shop_2")
    assert [path.name for path in (place / "EFI/obelisk").iterdir()] == ["shop_2.1.json"]
