"""What systemd-sysupdate is offered: planned from the channel, and never half there."""

from collections.abc import Callable
from configparser import ConfigParser
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from pathlib import Path

import pytest
from store_samples import manifest_of

from obelisk.errors import StateError, TrustError
from obelisk.events import Event, Finished, Task, silent
from obelisk.model.image import Manifest, Part, PartKind
from obelisk.model.release import Channel, Listing
from obelisk.release import sysupdate
from obelisk.release.sysupdate import Names, Signer
from obelisk.system import gpg, xz
from obelisk.system.bubblewrap import Room

EXPIRES = date(2027, 1, 31)
NOBODY = Signer(Room(Path("/nowhere")), Path("/nowhere/key"))


@dataclass
class Image:
    """An image whose parts are files of a directory."""

    manifest: Manifest
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def tree(self) -> Path:
        return self.directory / "verity"

    @property
    def uki(self) -> Path:
        return self.directory / "uki"


class Shelf:
    """Images by id, which count how often they are asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.images: dict[str, Image] = {}
        self.asked: list[str] = []

    def add(self, version: str) -> Listing:
        parts = {PartKind.ROOT: f"root {version}", PartKind.VERITY: f"tree {version}", PartKind.UKI: f"uki {version}"}
        directory = self.place / version
        directory.mkdir(parents=True)
        made = []
        for kind, text in parts.items():
            (directory / kind.value).write_text(text)
            made.append(Part(kind, kind.value, len(text), sha256(text.encode()).hexdigest()))
        manifest = replace(manifest_of(f"root {version}".encode(), version=version), parts=tuple(made))
        self.images[manifest.id] = Image(manifest, directory)
        return Listing(version, manifest.id, "2026-11-28T00:00:00Z", "me")

    def find(self, image: str) -> Image:
        self.asked.append(image)
        return self.images[image]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compression and signatures that say what they were made from; the real ones are the system tier's."""

    def compress(_room: Room, source: Path, target: Path, _running: Task) -> None:
        target.write_bytes(b"xz of " + source.read_bytes())

    def sign(_room: Room, _key: Path, data: bytes) -> bytes:
        return b"signature of " + data

    def is_signature(_room: Room, _key: Path, data: bytes, signature: bytes) -> bool:
        return signature == b"signature of " + data

    monkeypatch.setattr(xz, "compress", compress)
    monkeypatch.setattr(gpg, "is_signature", is_signature)
    monkeypatch.setattr(gpg, "sign", sign)


def channel_of(*listings: Listing, channel: str = "stable") -> Channel:
    return Channel("shop", channel, listings, listings[-1].version if listings else "")


def sync(repository: Path, channel: Channel, shelf: Shelf, *, expires: date = EXPIRES) -> Path:
    return sysupdate.sync(repository, channel, shelf.find, signer=NOBODY, expires=expires, sink=silent)


def versions(directory: Path) -> set[str]:
    return {path.name.removeprefix("shop_").removesuffix(".efi") for path in directory.glob("*.efi")}


def test_a_directory_holds_what_its_listing_names_and_nothing_else(repository: Path, shelf: Shelf) -> None:
    listing = shelf.add("7")
    manifest = shelf.images[listing.image].manifest
    made = sync(repository, channel_of(listing), shelf)
    digests = sysupdate.parse_listing((made / "SHA256SUMS").read_bytes())
    names = Names.of(manifest)
    assert digests.keys() == {*names.all(), "BEST-BEFORE-2027-01-31"}
    assert {path.name for path in made.iterdir()} == {*digests, "SHA256SUMS", "SHA256SUMS.gpg"}
    assert digests[names.manifest] == listing.image
    assert digests[names.root] == sha256(b"xz of root 7").hexdigest()
    assert (made / "SHA256SUMS.gpg").read_bytes() == b"signature of " + (made / "SHA256SUMS").read_bytes()
    assert list(sysupdate.check(repository)) == []
    assert [path.name for path in made.parent.iterdir()] == ["stable"]


def test_names_carry_version_and_partition_id(shelf: Shelf) -> None:
    manifest = replace(shelf.images[shelf.add("2026.1").image].manifest, root_hash="0123456789abcdef" * 4)
    assert Names.of(manifest) == Names(
        "shop_2026.1_01234567-89ab-cdef-0123-456789abcdef.root.raw.xz",
        "shop_2026.1_01234567-89ab-cdef-0123-456789abcdef.verity.raw",
        "shop_2026.1.efi",
        "shop_2026.1.json",
    )


def test_what_is_withdrawn_or_old_is_not_offered(shelf: Shelf) -> None:
    listings = [shelf.add(str(number)) for number in range(1, 6)]
    listings[3] = replace(listings[3], withdrawn="eats data")
    assert [listing.version for listing in sysupdate.offered(channel_of(*listings))] == ["2", "3", "5"]


def test_a_withdrawal_takes_the_files_away(repository: Path, shelf: Shelf) -> None:
    one, two = shelf.add("1"), shelf.add("2")
    assert versions(sync(repository, channel_of(one, two), shelf)) == {"1", "2"}
    made = sync(repository, channel_of(one, replace(two, withdrawn="eats data")), shelf)
    assert versions(made) == {"1"}
    assert list(sysupdate.check(repository)) == []
    made = sync(repository, channel_of(*(replace(listing, withdrawn="all wrong") for listing in (one, two))), shelf)
    assert (made / "SHA256SUMS").read_bytes().endswith(b"BEST-BEFORE-2027-01-31\n")


def test_what_a_channel_has_is_not_made_again_for_it_or_another(repository: Path, shelf: Shelf) -> None:
    one, two = shelf.add("1"), shelf.add("2")
    first = sync(repository, channel_of(one, channel="testing"), shelf)
    second = sync(repository, channel_of(one), shelf)
    third = sync(repository, channel_of(one, two), shelf)
    assert shelf.asked == [one.image, two.image]
    root = Names.of(shelf.images[one.image].manifest).root
    assert (first / root).samefile(second.parent / "testing" / root)
    assert (first / root).samefile(third / root)


def test_the_same_again_changes_nothing_but_a_later_day_does(repository: Path, shelf: Shelf) -> None:
    listing = shelf.add("1")
    made = sync(repository, channel_of(listing), shelf)
    before = made.stat().st_ino
    events: list[Event] = []
    sysupdate.sync(repository, channel_of(listing), shelf.find, signer=NOBODY, expires=EXPIRES, sink=events.append)
    assert made.stat().st_ino == before
    assert [event.detail for event in events if isinstance(event, Finished)] == ["nothing to change"]
    sync(repository, channel_of(listing), shelf, expires=date(2027, 3, 1))
    assert made.stat().st_ino != before
    assert [path.name for path in made.glob("BEST*")] == ["BEST-BEFORE-2027-03-01"]


def test_what_another_key_has_signed_is_signed_again(repository: Path, shelf: Shelf) -> None:
    listing = shelf.add("1")
    made = sync(repository, channel_of(listing), shelf)
    (made / "SHA256SUMS.gpg").write_bytes(b"the old key's")
    sync(repository, channel_of(listing), shelf)
    assert (made / "SHA256SUMS.gpg").read_bytes() == b"signature of " + (made / "SHA256SUMS").read_bytes()


def test_files_of_the_repository_are_shared(repository: Path, shelf: Shelf) -> None:
    listing = shelf.add("1")
    image = shelf.images[listing.image]
    part = image.manifest.part(PartKind.UKI)
    own = repository / "files" / part.sha256[:2] / part.sha256
    own.parent.mkdir(parents=True)
    own.write_text("uki 1")
    made = sync(repository, channel_of(listing), shelf)
    assert (made / "shop_1.efi").samefile(own)
    # The store's own files are not: a link to them would be changed with them.
    assert not (made / Names.of(image.manifest).verity).samefile(image.tree)


@pytest.mark.parametrize("kind", [PartKind.ROOT, PartKind.VERITY, PartKind.UKI])
def test_a_damaged_part_is_refused_and_what_was_there_stays(repository: Path, shelf: Shelf, kind: PartKind) -> None:
    one, two = shelf.add("1"), shelf.add("2")
    made = sync(repository, channel_of(one), shelf)
    (shelf.images[two.image].directory / kind.value).write_text("other")
    with pytest.raises(TrustError) as caught:
        sync(repository, channel_of(one, two), shelf)
    assert caught.value.code == "part-damaged"
    assert versions(made) == {"1"}
    (shelf.images[two.image].directory / kind.value).unlink()
    with pytest.raises(TrustError):
        sync(repository, channel_of(one, two), shelf)


def test_another_image_than_the_channel_names_is_refused(repository: Path, shelf: Shelf) -> None:
    one, two = shelf.add("1"), shelf.add("2")
    shelf.images[one.image] = shelf.images[two.image]
    with pytest.raises(TrustError) as caught:
        sync(repository, channel_of(one), shelf)
    assert caught.value.code == "manifest-digest"


class CutError(Exception):
    """The process ends here."""


def cut_before(step: int, of: Callable[..., object]) -> Callable[..., object]:
    left = [step]

    def cutting(*arguments: object, **named: object) -> object:
        if left[0] == 0:
            raise CutError
        left[0] -= 1
        return of(*arguments, **named)

    return cutting


@pytest.mark.parametrize("name", ["sync_file", "sync_directory", "exchange", "hash_file", "clone_or_copy"])
@pytest.mark.parametrize("step", range(8))
def test_a_cut_leaves_the_old_directory_or_the_new_and_the_next_run_mends(
    repository: Path, shelf: Shelf, name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = shelf.add("1"), shelf.add("2")
    made = sync(repository, channel_of(one), shelf)
    with monkeypatch.context() as patched:
        patched.setattr(sysupdate, name, cut_before(step, getattr(sysupdate, name)))
        with suppress(CutError):
            sync(repository, channel_of(one, two), shelf)
    text = (made / "SHA256SUMS").read_bytes()
    assert (made / "SHA256SUMS.gpg").read_bytes() == b"signature of " + text
    assert versions(made) in ({"1"}, {"1", "2"})
    for file, digest in sysupdate.parse_listing(text).items():
        assert sha256((made / file).read_bytes()).hexdigest() == digest
    sync(repository, channel_of(one, two), shelf)
    assert versions(made) == {"1", "2"}
    assert list(sysupdate.check(repository)) == []


def test_a_file_system_that_cannot_exchange_is_named(repository: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = shelf.add("1"), shelf.add("2")
    made = sync(repository, channel_of(one), shelf)
    monkeypatch.setattr(sysupdate, "exchange", lambda _one, _other: False)
    with pytest.raises(StateError) as caught:
        sync(repository, channel_of(one, two), shelf)
    assert caught.value.code == "sysupdate-exchange"
    assert versions(made) == {"1"}


def test_a_channel_that_goes_takes_its_directory_with_it(repository: Path, shelf: Shelf) -> None:
    listing = shelf.add("1")
    sync(repository, channel_of(listing), shelf)
    other = sync(repository, channel_of(listing, channel="testing"), shelf)
    sysupdate.remove(repository, "shop", "stable")
    sysupdate.remove(repository, "shop", "stable")
    assert [path.name for path in other.parent.iterdir()] == ["testing"]
    assert sysupdate.kept(repository) == (("shop", "testing"),)
    assert list(sysupdate.check(repository)) == []


def test_damage_is_found_file_by_file(repository: Path, shelf: Shelf) -> None:
    made = sync(repository, channel_of(shelf.add("1")), shelf)
    (made / "shop_1.efi").write_text("flipped")
    (made / "shop_1.json").unlink()
    (made / "SHA256SUMS.gpg").unlink()
    (made / "stray").touch()
    (made.parent / ".stable.new").mkdir()
    assert {path.name: problem for path, problem in sysupdate.check(repository)} == {
        "shop_1.efi": "is not what SHA256SUMS says",
        "shop_1.json": "missing",
        "SHA256SUMS.gpg": "missing",
        "stray": "is not in SHA256SUMS",
        ".stable.new": "left behind by an interrupted change; the next one removes it",
    }
    (made / "SHA256SUMS").write_text("nonsense\n")
    assert (made / "SHA256SUMS", "SHA256SUMS is damaged in line 1") in list(sysupdate.check(repository))


@pytest.mark.parametrize("text", ["x", "0" * 64, f"{'0' * 64} *", f"{'0' * 64} *a/b", f"{'0' * 63} *a", f"{'g' * 64} *a"])
def test_what_is_no_listing_is_refused(text: str) -> None:
    with pytest.raises(TrustError):
        sysupdate.parse_listing(text.encode())


def test_transfers_set_up_tree_root_manifest_and_last_the_kernel() -> None:
    files = sysupdate.transfers("shop", "https://example.org/os/sysupdate/shop/stable", slots=3, tries=5)
    assert list(files) == ["10-verity.transfer", "20-root.transfer", "30-manifest.transfer", "40-uki.transfer"]
    read = {}
    for name, text in files.items():
        parser = ConfigParser(interpolation=None)
        parser.read_string(text)
        assert parser["Source"]["Path"] == "https://example.org/os/sysupdate/shop/stable"
        assert parser["Target"]["InstancesMax"] == "3"
        assert "Verify" not in parser["Transfer"]  # the default is to verify
        read[name.removesuffix(".transfer")] = (parser["Source"]["MatchPattern"], parser["Target"])
    assert read["20-root"][0] == "shop_@v_@u.root.raw.xz"
    assert read["20-root"][1]["MatchPattern"] == "shop_@v"
    assert read["10-verity"][1]["MatchPattern"] == "shop_@v_verity"
    assert read["40-uki"][1]["MatchPattern"].split()[0] == "shop_@v+@l-@d.efi"
    assert (read["40-uki"][1]["TriesLeft"], read["40-uki"][1]["TriesDone"]) == ("5", "0")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o644)
    with pytest.raises(TrustError) as caught:
        Signer.of(Room(tmp_path), key)
    assert caught.value.code == "keys-readable"
