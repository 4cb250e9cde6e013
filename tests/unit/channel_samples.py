"""A host on files in the place of its disk, and a repository that it follows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from host_samples import record, slot
from trust_samples import MemoryMirror, Publisher

from obelisk.errors import ObeliskError, TrustError
from obelisk.events import Event as Told
from obelisk.events import Note, Sink
from obelisk.host import channel, journal
from obelisk.host.here import Here
from obelisk.host.ways import Way
from obelisk.model.host import Event, Slot
from obelisk.model.image import Manifest, PartKind
from obelisk.model.release import File, Release
from obelisk.release.client.hashtree import Run
from obelisk.release.client.remote import Mirrors


class Host(Here):
    """A host whose ESP is a directory, and whose slots are two names."""

    def slots(self) -> tuple[Slot, ...]:
        return slot("a", "shop_1", uuid=self.root_hash[:32]), slot("b", "shop_0")

    @contextmanager
    def esp(self) -> Iterator[Path]:
        yield self.run / "esp"


@dataclass
class FakeWay:
    """A way that fetches the kernel image, and writes two words. `damaged`: it finds that what it has is wrong."""

    mirrors: Mirrors
    release: Release
    manifest: Manifest
    title: str = "the blocks that differ"
    download_bytes: int = 3 << 20
    requests: int = 5
    damaged: bool = False

    @property
    def fetch_bytes(self) -> int:
        return self.manifest.part(PartKind.UKI).size_bytes

    @property
    def room_bytes(self) -> int:
        return self.fetch_bytes

    @property
    def write_bytes(self) -> int:
        return 4

    def fetch(self, incoming: Path, on_bytes: Callable[[int], None]) -> None:
        part = self.manifest.part(PartKind.UKI)
        self.mirrors.fetch(File(part.sha256, part.size_bytes), incoming / "uki", on_bytes)

    def write(self, incoming: Path, root: Path, tree: Path, *, on_bytes: Callable[[int], None]) -> tuple[int, list[Run]]:
        if self.damaged:
            message = "the edge is damaged"
            raise TrustError(message, code="edge-damaged")
        assert (incoming / "uki").exists()
        root.write_bytes(b"root")
        tree.write_bytes(b"tree")
        on_bytes(4)
        return 8, [range(1)]


@dataclass
class Scene:
    """A host, and the repository that it follows."""

    here: Here
    publisher: Publisher
    told: list[Told] = field(default_factory=list)
    ways: list[FakeWay] = field(default_factory=list)
    damaged: tuple[bool, ...] = (False,)

    def __post_init__(self) -> None:
        self.mirror = MemoryMirror(self.publisher.authority.files)

    def wish(self, *, retry: str = "", sources: Sequence[MemoryMirror] = ()) -> channel.Wish:
        mirrors = Mirrors(sources or [self.mirror], say=lambda message: self.told.append(Note(message)))
        return channel.Wish("stable", mirrors, self.publisher.authority.first_root, retry)

    def look(self, *, retry: str = "", sources: Sequence[MemoryMirror] = ()) -> channel.Offer:
        return channel.look(self.here, self.wish(retry=retry, sources=sources), self.told.append)

    def prepare(self, *, retry: str = "") -> channel.ChannelSource:
        source = channel.obtain(self.here, self.wish(retry=retry), self.told.append, ways=self.make_ways)
        assert isinstance(source, channel.ChannelSource)
        return source

    def make_ways(self, _here: Here, release: Release, manifest: Manifest, mirrors: Mirrors, _sink: Sink) -> Sequence[Way]:
        self.ways = [FakeWay(mirrors, release, manifest, damaged=damaged, requests=5 + index) for index, damaged in enumerate(self.damaged)]
        return self.ways

    def refused(self) -> ObeliskError:
        with pytest.raises(ObeliskError) as caught:
            self.prepare()
        return caught.value

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.told if isinstance(event, Note)]


def make_scene(place: Path) -> Scene:
    """A host that runs version 1, could go back to 0, and follows a channel that is at 1."""
    publisher = Publisher()
    publisher.release("1")
    esp = place / "run/esp"
    (esp / "EFI/Linux").mkdir(parents=True)
    (esp / "EFI/obelisk").mkdir(parents=True)
    for version in "01":
        (esp / f"EFI/Linux/shop_{version}.efi").touch()
    release = publisher.releases["1"]
    (esp / "EFI/obelisk/shop_1.json").write_bytes(publisher.authority.files[release.manifest.path])
    (place / "host").mkdir()
    here = Host("shop", "1", "cd" * 32, place / "disk", place / "host", "boot-1", place / "run")
    for version in "01":
        journal.append(here.keep, record(Event.BLESSED, f"shop_{version}"))
    return Scene(here, publisher)
