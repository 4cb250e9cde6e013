"""A release comes whole and right, whichever way, whoever lies."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import repository_samples
from host_samples import manifest, record, slot
from lying_server import Lie, LyingServer, serving
from release_samples import BLOCK, Sample, blocks, ignore, publish, sample
from trust_samples import file_of, kernel_of

from obelisk.errors import InputError, ObeliskError, TrustError
from obelisk.events import Event as Told
from obelisk.events import Note, silent
from obelisk.host import channel, delivery, journal
from obelisk.host.channel import ChannelSource
from obelisk.host.delivery import ByBlocks, ByEdge
from obelisk.host.here import Here
from obelisk.model.following import GoBack, Refuse, Stay
from obelisk.model.host import Event, Partition, Slot
from obelisk.model.image import Manifest, PartKind
from obelisk.model.publication import Act, Terms
from obelisk.model.release import EdgeFile, File, Hosts, Release
from obelisk.release import publishing
from obelisk.release.client.remote import Mirrors, WebMirror
from obelisk.release.delivery import Blocks
from obelisk.release.edges import make_edge
from obelisk.release.publisher import Publisher
from obelisk.release.publishing import Wanted
from obelisk.release.shelf import Shelf
from obelisk.store import StoredImage
from obelisk.system.http import Client, Limits

COUNT = 300
CHANGED = [5, 6, 200, 299]
QUICK = Limits(connect_s=0.4, idle_s=0.4, window_s=0.3, least_bytes_s=2000)


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_disks() -> Iterator[None]:
    """Whether it is durable is not what is asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _descriptor: None)
        yield


class Host(Here):
    """A host whose ESP is a directory, and whose slots are files."""

    def slots(self) -> tuple[Slot, ...]:
        old = slot("a", "shop_1", uuid=self.root_hash[:32])
        new = slot("b", "_empty")
        return _on(old, self.disk / "1"), _on(new, self.disk / "target")

    @contextmanager
    def esp(self) -> Iterator[Path]:
        yield self.run / "esp"


def _on(given: Slot, place: Path) -> Slot:
    def at(partition: Partition, name: str) -> Partition:
        return replace(partition, device=str(place / name))

    return replace(given, root=at(given.root, "root"), tree=at(given.tree, "tree"))


def image_of(version: str, made: Sample) -> tuple[Manifest, bytes]:
    """The manifest of an image, and its kernel image."""
    plain = manifest(version, root_hash=made.root_hash)
    kernel = kernel_of(plain)
    contents = {PartKind.ROOT: made.data, PartKind.VERITY: made.tree_file.read_bytes(), PartKind.UKI: kernel}
    parts = tuple(
        replace(part, size_bytes=len(contents[part.kind]), sha256=hashlib.sha256(contents[part.kind]).hexdigest()) for part in plain.parts
    )
    return replace(plain, parts=parts), kernel


@dataclass
class Scene:
    """A host with version 1, and version 2 in a repository."""

    here: Host
    new: Sample
    image: Manifest
    kernel: bytes
    release: Release
    repository: Path
    told: list[Told]

    @property
    def target(self) -> Path:
        return self.here.disk / "target"

    def source(self, *addresses: str, client: Client) -> ChannelSource:
        mirrors = Mirrors([WebMirror(address, client) for address in addresses], say=lambda message: self.told.append(Note(message)))
        found = delivery.ways(self.here, self.release, self.image, mirrors, self.told.append)
        incoming = self.here.incoming / self.image.id
        incoming.mkdir(parents=True, exist_ok=True)
        found[0].fetch(incoming, ignore)
        return ChannelSource(self.image, incoming, tuple(found), self.told.append)

    def write(self, source: ChannelSource) -> int:
        return source.write(self.target / "root", self.target / "tree", on_bytes=ignore)[0]

    def require_right(self, source: ChannelSource) -> None:
        assert (self.target / "root").read_bytes()[: len(self.new.data)] == self.new.data
        tree = self.new.tree_file.read_bytes()
        assert (self.target / "tree").read_bytes()[BLOCK : len(tree)] == tree[BLOCK:]
        assert source.path(PartKind.UKI).read_bytes() == self.kernel

    def require_nothing_wrong(self) -> None:
        """Each block of the slot is what it was, or what it is to be."""
        found = (self.target / "root").read_bytes()
        for at in range(0, len(self.new.data), BLOCK):
            assert found[at : at + BLOCK] in {bytes(BLOCK), self.new.data[at : at + BLOCK]}


def add(repository: Path, data: bytes) -> File:
    file = file_of(data)
    (repository / file.path).parent.mkdir(parents=True, exist_ok=True)
    (repository / file.path).write_bytes(data)
    return file


@dataclass(frozen=True)
class Made:
    """Two images, and a repository with the newer one, in a directory that tests copy."""

    place: Path
    old: Sample
    new: Sample
    images: tuple[tuple[Manifest, bytes], tuple[Manifest, bytes]]
    index: File
    edge: File


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("made")
    numbers = list(range(1, COUNT + 1))
    old = sample(place / "disk/1", blocks(*numbers))
    for at in CHANGED:
        numbers[at] = 10_000 + at
    new = sample(place / "2", blocks(*numbers))
    images = image_of("1", old), image_of("2", new)
    old.uki.write_bytes(images[0][1])
    new.uki.write_bytes(images[1][1])
    index, _known = publish(place / "repository", new)
    make_edge(old.image, new.image, place / "edge", on_bytes=ignore)
    edge = add(place / "repository", (place / "edge").read_bytes())
    add(place / "repository", images[1][1])
    (place / "disk/target").mkdir()
    (place / "disk/target/root").write_bytes(bytes((COUNT + 20) * BLOCK))
    (place / "disk/target/tree").write_bytes(bytes(20 * BLOCK))
    for name, data in (("EFI/Linux/shop_1.efi", images[0][1]), ("EFI/obelisk/shop_1.json", images[0][0].to_bytes())):
        (place / "run/esp" / name).parent.mkdir(parents=True)
        (place / "run/esp" / name).write_bytes(data)
    (place / "host").mkdir()
    journal.append(place / "host", record(Event.BLESSED, "shop_1"))
    return Made(place, old, new, images, index, edge)


@pytest.fixture
def scene(tmp_path: Path, made: Made) -> Scene:
    shutil.copytree(made.place, tmp_path, dirs_exist_ok=True)
    here = Host("shop", "1", made.old.root_hash, tmp_path / "disk", tmp_path / "host", "boot-1", tmp_path / "run")
    (old_image, _), (image, kernel) = made.images
    release = Release(
        image.id,
        "shop",
        "2",
        made.new.root_hash,
        len(made.new.data),
        "",
        file_of(image.to_bytes()),
        (),
        None,
        made.index,
        (EdgeFile("9" * 64, "0", File("9" * 64, 5)), EdgeFile(old_image.id, "1", made.edge)),
    )
    return Scene(here, made.new, image, kernel, release, tmp_path / "repository", [])


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(QUICK) as made:
        yield made


@pytest.fixture
def server(scene: Scene) -> Iterator[LyingServer]:
    with serving(LyingServer(directory=scene.repository)) as started:
        yield started


def test_an_edge_from_what_is_in_a_slot_is_taken(scene: Scene, server: LyingServer, client: Client) -> None:
    source = scene.source(server.address, client=client)
    assert [type(way) for way in source.ways] == [ByEdge, ByBlocks]
    scene.write(source)
    scene.require_right(source)
    assert len(server.requests) == 1
    assert server.sent_bytes == source.ways[0].download_bytes < 8 * BLOCK


def test_without_one_only_blocks_that_are_nowhere_here_come(scene: Scene, server: LyingServer, client: Client) -> None:
    scene.release = replace(scene.release, edges=scene.release.edges[:1])
    source = scene.source(server.address, client=client)
    (way,) = source.ways
    assert way.download_bytes < 2 * len(CHANGED) * 64 * BLOCK + len(scene.kernel)
    scene.write(source)
    scene.require_right(source)
    assert len(server.requests) < 12
    server.requests.clear()
    assert scene.write(source) == 0  # nothing is left to do


def test_a_host_with_no_image_that_is_of_use_gets_all_of_it(scene: Scene, server: LyingServer, client: Client) -> None:
    (scene.here.disk / "1/tree").write_bytes(bytes(20 * BLOCK))
    source = scene.source(server.address, client=client)
    assert [type(way) for way in source.ways] == [ByBlocks]
    scene.write(source)
    scene.require_right(source)


def test_an_edge_that_makes_nothing_gives_way_to_the_blocks(scene: Scene, server: LyingServer, client: Client) -> None:
    hostile = add(scene.repository, blocks(77))
    scene.release = replace(scene.release, edges=(replace(scene.release.edges[1], file=hostile),))
    source = scene.source(server.address, client=client)
    scene.write(source)
    scene.require_right(source)
    assert any(isinstance(event, Note) and "going on with the blocks" in event.message for event in scene.told)


def test_a_slot_that_is_damaged_since_gives_way_to_the_blocks(scene: Scene, server: LyingServer, client: Client) -> None:
    with (scene.here.disk / "1/root").open("r+b") as file:
        file.seek(20 * BLOCK)
        file.write(b"damaged")
    source = scene.source(server.address, client=client)
    scene.write(source)
    scene.require_right(source)


@pytest.mark.parametrize("lie", [Lie.FLIPPED, Lie.SWAPPED, Lie.TRUNCATED, Lie.SLOW, Lie.OTHER_RANGE, Lie.NO_RANGES, Lie.BUSY, Lie.GARBAGE])
def test_a_lying_mirror_is_left_for_another_and_nothing_wrong_is_written(
    scene: Scene, server: LyingServer, client: Client, lie: Lie
) -> None:
    scene.release = replace(scene.release, edges=())
    index = scene.release.index.path
    names = [f"files/{path.parent.name}/{path.name}" for path in (scene.repository / "files").glob("*/*")]
    packs = [name for name in names if name != index and not name.endswith(hashlib.sha256(scene.kernel).hexdigest())]
    server.lies = dict.fromkeys(packs, lie)
    alone = scene.source(server.address, client=client)
    if lie is Lie.NO_RANGES:
        scene.write(alone)
    else:
        with pytest.raises(ObeliskError) as caught:
            scene.write(alone)
        assert caught.value.hint
        scene.require_nothing_wrong()
    with serving(LyingServer(directory=scene.repository)) as good:
        both = scene.source(server.address, good.address, client=client)
        scene.write(both)
        scene.require_right(both)


@dataclass
class Workshop:
    """A publisher with the two images, whose repository is a directory."""

    place: Path
    stored: dict[str, StoredImage]
    publisher: Publisher

    def release(self, version: str) -> None:
        image = next(each for each in self.stored.values() if each.manifest.version == version)
        envelope = repository_samples.proof_of(image, self.place / "tester")
        publishing.release(
            self.publisher, Wanted(image, (envelope,), "stable", Terms("", allow_test_key=True)), repository_samples.founding()
        )


@pytest.fixture
def workshop(tmp_path: Path, made: Made) -> Workshop:
    place = tmp_path / "workshop"
    stored = {}
    for each, (image, kernel) in zip((made.old, made.new), made.images, strict=True):
        directory = place / image.version
        directory.mkdir(parents=True)
        for kind, data in ((PartKind.ROOT, each.data), (PartKind.VERITY, each.tree_file.read_bytes()), (PartKind.UKI, kernel)):
            (directory / image.part(kind).file).write_bytes(data)
        stored[image.id] = StoredImage(image.id, image, directory, 0)
    keys = repository_samples.keyring(place)
    work = place / "work"
    work.mkdir()
    act = Act("tess", datetime.now(UTC), "it is good")
    publisher = Publisher(Shelf(place / "repository"), keys, Blocks(), act, work, stored.get, silent)
    return Workshop(place, stored, publisher)


def test_what_a_publisher_releases_a_host_takes_and_leaves_again(scene: Scene, workshop: Workshop, client: Client) -> None:
    def wish() -> channel.Wish:
        return channel.Wish("stable", Mirrors([WebMirror(server.address, client)]), root)

    def ask() -> channel.ChannelSource | GoBack | Stay | Refuse:
        return channel.obtain(scene.here, wish(), scene.told.append, ways=delivery.ways)

    workshop.release("1")
    repository = workshop.place / "repository"
    root = (repository / "metadata/1.root.json").read_bytes()
    with serving(LyingServer(directory=repository)) as server:
        assert ask() == Stay("1 is the newest in stable")
        workshop.release("2")
        server.requests.clear()
        server.sent_bytes = 0
        source = ask()
        assert isinstance(source, channel.ChannelSource)
        assert [type(way) for way in source.ways] == [ByEdge, ByBlocks]
        scene.write(source)
        scene.require_right(source)
        assert len(server.requests) < 20
        assert server.sent_bytes < 10 * BLOCK + 20_000  # what differs, and some documents
        channel.discard(scene.here)
        assert not list(scene.here.incoming.iterdir())
        publishing.withdraw(workshop.publisher, "2", hosts=Hosts.BACK)
        assert ask() == Stay("1 is the newest in stable")
        publishing.withdraw(workshop.publisher, "1", hosts=Hosts.STAY)
        stays = ask()
        assert isinstance(stays, Stay)
        assert stays.withdrawn


def test_blocks_that_are_damaged_are_mended_out_of_the_repository(scene: Scene, workshop: Workshop, client: Client) -> None:
    workshop.release("1")
    repository = workshop.place / "repository"
    root = (repository / "metadata/1.root.json").read_bytes()
    place = scene.here.disk / "1"
    before, tree = (place / "root").read_bytes(), (place / "tree").read_bytes()
    for name in ("root", "tree"):
        with (place / name).open("r+b") as file:
            file.seek(2 * BLOCK)
            file.write(b"damaged")
    with serving(LyingServer(directory=repository)) as server:
        wish = channel.Wish("stable", Mirrors([WebMirror(server.address, client)]), root)
        for known in (True, False):
            if not known:  # the manifest is gone, too
                (scene.here.run / "esp/EFI/obelisk/shop_1.json").unlink()
            source = channel.restore(scene.here, wish, "shop_1", scene.told.append, way=delivery.mending)
            source.write(place / "root", place / "tree", on_bytes=ignore)
            assert (place / "root").read_bytes() == before
            assert (place / "tree").read_bytes()[BLOCK:] == tree[BLOCK:]
        assert server.sent_bytes < 200 * BLOCK
        with pytest.raises(InputError, match="shop_2 is in no slot"):
            delivery.mending(scene.here, scene.release, scene.image, wish.mirrors, scene.told.append)
        with pytest.raises(TrustError, match="shop_7 is not in stable"):
            channel.restore(scene.here, wish, "shop_7", scene.told.append, way=delivery.mending)
