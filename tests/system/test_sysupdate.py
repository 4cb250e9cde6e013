"""A stock systemd-sysupdate follows a channel: from a web server, checked by its own means, onto a disk as hosts have it."""

import os
import shutil
import struct
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from uuid import UUID

import pytest
from archive import serving
from tool import Tool

from obelisk.build import slots
from obelisk.build.image import disk_of
from obelisk.cli import sysupdate as cli
from obelisk.errors import CommandError
from obelisk.events import silent
from obelisk.model.image import Manifest, PartKind
from obelisk.model.partitions import partition_uuids
from obelisk.model.release import Channel, Listing
from obelisk.model.state import Encryption
from obelisk.release import sysupdate
from obelisk.release.sysupdate import Signer
from obelisk.store import Store, StoredImage
from obelisk.system.bubblewrap import Room, read_only, writable

EXPIRES = date(2100, 1, 1)
READ_ONLY = 1 << 60


@dataclass(frozen=True)
class Files:
    """An image of the store."""

    stored: StoredImage

    @property
    def manifest(self) -> Manifest:
        return self.stored.manifest

    @property
    def root(self) -> Path:
        return self.stored.part_path(PartKind.ROOT)

    @property
    def tree(self) -> Path:
        return self.stored.part_path(PartKind.VERITY)

    @property
    def uki(self) -> Path:
        return self.stored.part_path(PartKind.UKI)


@dataclass
class Shop:
    """Two images, the repository that offers them, and the tools tree that has systemd-sysupdate."""

    store: Store
    room: Room
    repository: Path
    signer: Signer
    images: tuple[StoredImage, StoredImage]

    def publish(self, *, withdrawn: str = "", releases: int = 2, to: str = "stable") -> Path:
        """Offer the first so many images; a reason withdraws the last."""
        listings = [Listing(image.manifest.version, image.id, "2026-11-28T00:00:00Z", "me") for image in self.images[:releases]]
        if withdrawn:
            last = listings.pop()
            listings.append(Listing(last.version, last.image, last.at, last.by, withdrawn=withdrawn))
        channel = Channel("web", to, tuple(listings), listings[-1].version)

        def find(image: str) -> Files:
            return Files(self.store.image(image))

        return sysupdate.sync(self.repository, channel, find, signer=self.signer, expires=EXPIRES, sink=silent)


@pytest.fixture(scope="module")
def shop(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    home = tmp_path_factory.mktemp("sysupdate")
    tool = workshop.copied_to(home)
    first = tool.build()
    with tool.changed("obelisk.toml", 'version = "1"', 'version = "2"'):
        second = tool.build()
    store = Store.open(tool.store)
    (program,) = tool.store.glob("steps/*/output/tree/usr/lib/systemd/systemd-sysupdate")
    room = Room(program.parents[3])
    (home / "repository").mkdir()
    made = Shop(
        store, room, home / "repository", Signer.of(room, home / "keys/release/sysupdate.key"), (store.image(first), store.image(second))
    )
    made.publish(to="testing")  # from where every other change takes what is compressed already
    yield made
    store.close()
    subprocess.run(["rm", "-rf", home], check=True)


@dataclass
class Machine:
    """The disk of a host that runs the first image, and systemd-sysupdate as that host would start it."""

    shop: Shop
    place: Path

    @property
    def disk(self) -> Path:
        return self.place / "disk.raw"

    @property
    def esp(self) -> Path:
        return self.place / "esp"

    def sysupdate(self, url: str, *words: str) -> str:
        """Run it against the repository at `url`, with the transfers of `obelisk`, but for where the disk is."""
        definitions = self.place / "sysupdate.d"
        shutil.rmtree(definitions, ignore_errors=True)
        definitions.mkdir()
        for name, text in sysupdate.transfers("web", f"{url}/sysupdate/web/stable").items():
            (definitions / name).write_text(text.replace("Path=auto", "Path=/host/disk.raw"))
        binds = [
            writable(self.place, "/host"),
            read_only(self.place / "os-release", "/usr/lib/os-release"),
            read_only(self.place / "etc", "/etc/systemd"),
        ]
        command = ["/usr/lib/systemd/systemd-sysupdate", "--definitions=/host/sysupdate.d", *words]
        return self.shop.room.run(command, binds=binds, network=True, env={"SYSTEMD_ESP_PATH": "/host/esp"}, timeout_s=300).output

    def partitions(self) -> dict[str, tuple[UUID, int, int]]:
        """By label: id, attributes and where it begins. Source: UEFI specification 2.10, section 5.3."""
        found = {}
        with self.disk.open("rb") as disk:
            disk.seek(1024)
            for _number in range(128):
                _kind, own, first, _last, attributes, label = struct.unpack("<16s16sQQQ72s", disk.read(128))
                if first:
                    found[label.decode("utf-16-le").rstrip("\0")] = (UUID(bytes_le=own), attributes, first * 512)
        return found

    def holds(self, label: str, part: Path) -> bool:
        """Whether a partition begins with that file."""
        start = self.partitions()[label][2]
        words = ["cmp", f"--bytes={part.stat().st_size}", f"--ignore-initial={start}:0", str(self.disk), str(part)]
        return subprocess.run(words, check=False).returncode == 0


@pytest.fixture(scope="module")
def machine(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One for all: what is refused leaves it as it is, and the last test has it updated."""
    place = tmp_path_factory.mktemp("machine")
    made = Machine(shop, place)
    image = shop.images[0]
    layout = slots.layout_of(image.manifest)
    with shop.store.workspace() as work:
        subprocess.run(["cp", "--sparse=always", disk_of(image, shop.store, shop.room, work), made.disk], check=True)
    (place / "repart.d").mkdir()
    for name, text in slots.host_definitions(layout.root_bytes, 2, Encryption.NONE).items():
        (place / "repart.d" / name).write_text(text)
    size = slots.host_disk_bytes(layout, state=1 << 30)
    words = ["systemd-repart", "--offline=yes", "--dry-run=no", f"--size={size}", "--definitions=/host/repart.d", "/host/disk.raw"]
    shop.room.run(words, binds=[writable(place, "/host")])
    for directory in ("esp/EFI/Linux", "esp/EFI/obelisk", "etc"):
        (place / directory).mkdir(parents=True)
    shutil.copyfile(image.part_path(PartKind.UKI), made.esp / "EFI/Linux/web_1.efi")
    (made.esp / "EFI/obelisk/web_1.json").write_bytes(image.manifest.to_bytes())
    (place / "os-release").write_text("ID=debian\nIMAGE_ID=web\nIMAGE_VERSION=1\n")
    (place / "etc/import-pubring.gpg").write_bytes(shop.signer.keyring())
    yield made
    made.disk.unlink()


def test_a_host_is_given_transfers_and_the_keyring(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBELISK_KEYS", str(shop.signer.key.parents[1]))
    asked = Namespace(url="https://example.org/os/", transfers=str(tmp_path / "host"), slots=2, tries=3, json=False)
    assert len(cli._transfers(asked, Channel("web", "stable"), shop.store)) == 5
    written = {path.name: path.read_bytes() for path in (tmp_path / "host").iterdir()}
    assert written.pop("import-pubring.gpg") == shop.signer.keyring()
    wanted = sysupdate.transfers("web", "https://example.org/os/sysupdate/web/stable")
    assert written == {name: text.encode() for name, text in wanted.items()}


def test_a_new_key_signs_what_the_old_one_has_signed(shop: Shop, tmp_path: Path) -> None:
    made = shop.publish()
    before = (made / "SHA256SUMS.gpg").read_bytes()
    shop.publish()
    assert (made / "SHA256SUMS.gpg").read_bytes() == before
    other = replace(shop, signer=Signer.of(shop.room, tmp_path / "new.key"))
    other.publish()
    assert other.signer.has_signed((made / "SHA256SUMS").read_bytes(), made / "SHA256SUMS.gpg")
    shop.publish()
    assert not other.signer.has_signed((made / "SHA256SUMS").read_bytes(), made / "SHA256SUMS.gpg")


def test_what_is_withdrawn_is_not_offered(shop: Shop, machine: Machine) -> None:
    shop.publish(withdrawn="eats data")
    with serving(shop.repository) as url:
        assert "candidate" not in machine.sysupdate(url, "list")
        assert "No update needed" in machine.sysupdate(url, "update")
    assert "web_2" not in machine.partitions()


def test_a_channel_without_any_release_is_understood(shop: Shop, machine: Machine) -> None:
    shop.publish(withdrawn="eats data", releases=1)
    with serving(shop.repository) as url:
        assert "candidate" not in machine.sysupdate(url, "list")


@pytest.mark.parametrize("file", ["SHA256SUMS", "SHA256SUMS.gpg"])
def test_a_flipped_bit_of_listing_or_signature_is_refused(shop: Shop, machine: Machine, tmp_path: Path, file: str) -> None:
    published = shop.publish()
    copy = tmp_path / "copy"
    shutil.copytree(published, copy / "sysupdate/web/stable", copy_function=os.link)
    damaged = copy / "sysupdate/web/stable" / file
    data = bytearray(damaged.read_bytes())
    data[60] ^= 1
    damaged.unlink()
    damaged.write_bytes(data)
    with serving(copy) as url, pytest.raises(CommandError):
        machine.sysupdate(url, "update")
    assert "web_2" not in machine.partitions()


def test_another_key_is_refused(shop: Shop, machine: Machine, tmp_path: Path) -> None:
    copy = tmp_path / "copy/sysupdate/web/stable"
    shutil.copytree(shop.publish(), copy, copy_function=os.link)
    (copy / "SHA256SUMS.gpg").unlink()
    stranger = Signer.of(shop.room, tmp_path / "stranger.key")
    (copy / "SHA256SUMS.gpg").write_bytes(stranger.sign((copy / "SHA256SUMS").read_bytes()))
    with serving(tmp_path / "copy") as url, pytest.raises(CommandError, match="No public key"):
        machine.sysupdate(url, "update")
    assert "web_2" not in machine.partitions()


def test_a_swapped_file_leaves_the_running_release_the_only_one(shop: Shop, machine: Machine, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    directory = copy / "sysupdate/web/stable"
    shutil.copytree(shop.publish(), directory, copy_function=os.link)
    (directory / "web_2.efi").unlink()
    (directory / "web_2.efi").hardlink_to(directory / "web_1.efi")
    with serving(copy) as url, pytest.raises(CommandError):
        machine.sysupdate(url, "update")
    assert [path.name for path in (machine.esp / "EFI/Linux").glob("*.efi")] == ["web_1.efi"]
    assert "web_2" not in machine.partitions()


def test_it_installs_the_newest_release_where_the_next_boot_finds_it(shop: Shop, machine: Machine) -> None:
    shop.publish()
    with serving(shop.repository) as url:
        assert "candidate" in machine.sysupdate(url, "list")
        said = machine.sysupdate(url, "update")
    assert "Good signature" in said
    new = shop.images[1]
    root, verity = partition_uuids(new.manifest.root_hash)
    partitions = machine.partitions()
    assert (partitions["web_2"][0], partitions["web_2_verity"][0]) == (root, verity)
    assert partitions["web_2"][1] & partitions["web_2_verity"][1] & READ_ONLY
    assert machine.holds("web_2", new.part_path(PartKind.ROOT))
    assert machine.holds("web_2_verity", new.part_path(PartKind.VERITY))
    assert machine.holds("web_1", shop.images[0].part_path(PartKind.ROOT))
    entries = {path.name: path.read_bytes() for path in (machine.esp / "EFI/Linux").iterdir()}
    assert entries == {
        "web_1.efi": shop.images[0].part_path(PartKind.UKI).read_bytes(),
        "web_2+3-0.efi": new.part_path(PartKind.UKI).read_bytes(),
    }
    assert (machine.esp / "EFI/obelisk/web_2.json").read_bytes() == new.manifest.to_bytes()
