"""A machine on which applications can be installed, in a directory, with a systemd that is played."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import manifest_of, sha256

from obelisk.errors import StateError
from obelisk.events import Event
from obelisk.model.application import Application, Service
from obelisk.model.policy import Listen, Policy, policy
from obelisk.sandbox import data, entries, installed, units
from obelisk.sandbox.installed import Installation, Made, Places, State
from obelisk.sandbox.units import Seat
from obelisk.store import StoredImage
from obelisk.system.systemctl import Unit

SERVED = Application(("/usr/bin/shop",), data=("/var/lib/shop",), service=Service(sockets=True, steady_s=1))
ALONE = Application(("/usr/bin/shop",), data=("/var/lib/shop",), service=Service(steady_s=1))
COMMAND = Application(("/usr/bin/shop",))
PORT = policy([Listen(8080)])


class CutError(BaseException):
    """The power goes, or the process is killed."""


class World:
    """A machine with its systemd, in a directory. Each version writes its name over the data when it starts."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.running = ""
        self.enabled: set[str] = set()
        self.listening = False
        self.unhealthy: set[str] = set()
        self.rehearsed: list[str] = []
        self.unfit: set[str] = set()  # to run beside another
        self.said: list[str] = []
        self.cleared: list[StoredImage] = []
        self.shown: entries.Description | None = None
        self.apps: dict[str, tuple[Application, Policy]] = {}
        run = top / "run"
        self.seat = Seat(
            "shop", run / "shop/start", run / "shop.moving", top / "data/shop", Path("/root"), by_root=True, obelisk=("obelisk",)
        )

    # systemd's part

    def require(self) -> None:
        return

    def reload(self) -> None:
        self.said.append("reload")

    def enable(self, *names: str) -> None:
        self.enabled |= set(names)

    def disable(self, *names: str) -> None:
        self.enabled -= set(names)

    def start(self, *names: str) -> None:
        for name in names:
            assert (self.units / name).exists()
            self.said.append(f"start {name}")
            if name.endswith(".socket"):
                self.listening = True
            else:
                self.running = self.linked()
                self.content.write_text(self.running)

    def stop(self, *names: str) -> None:
        for name in names:
            self.said.append(f"stop {name}")
            if name.endswith(".socket"):
                self.listening = False
            else:
                self.running = ""

    def forget(self, *names: str) -> None:
        self.said += [f"forget {name}" for name in names]

    def restart_later(self, *names: str) -> None:
        self.said += [f"later {name}" for name in names]

    def look(self, _unit: str) -> Unit:
        return Unit("active" if self.running else "inactive", 0, "success")

    # The part of rehearsals

    @property
    def next(self) -> Seat:
        return replace(self.seat, name="shop:next")

    def rehearse(self, image: StoredImage) -> bool:
        assert self.running
        if image.id in self.unfit:
            return False
        self.rehearsed.append(image.id)
        if image.id in self.unhealthy:
            raise StateError("it did not stay up", code="app-down")
        return True

    def clear(self) -> None:
        self.said.append("clear")

    # What there is

    @property
    def units(self) -> Path:
        return self.top / "units"

    @property
    def content(self) -> Path:
        return self.top / "data/shop/content"

    def linked(self) -> str:
        return self.seat.start.parent.readlink().name

    def image(self, version: str, app: Application = SERVED, granted: Policy = PORT) -> StoredImage:
        """A version in somebody's store."""
        root = version.encode() * 5000
        manifest = manifest_of(root, version=version)
        directory = self.top / "store" / version
        if not directory.exists():
            directory.mkdir(parents=True)
            for part, content in zip(manifest.parts, (root, b"uki"), strict=True):
                assert part.sha256 == sha256(content)
                (directory / part.file).write_bytes(content)
            (directory / "manifest.json").write_bytes(manifest.to_bytes())
        self.apps[manifest.id] = (app, granted)
        return StoredImage(manifest.id, manifest, directory, 0)

    def made(self, image: StoredImage, *, in_use: bool = False) -> Made:
        assert in_use or not self.running, "data is settled while something uses it"
        app, granted = self.apps[image.id]
        texts = units.texts(self.seat, image.manifest.label, app, granted)
        return Made(self.top / "plans" / image.id, texts, units.program(self.seat, granted), app.service, self.shown)

    def healthy(self, _made: Made) -> None:
        if self.running in self.unhealthy:
            raise StateError("it did not stay up", code="app-down")

    def installation(self) -> Installation:
        places = Places(self.top / "installed/shop", self.units, self.top / "bin", self.top / "entries")
        return Installation(
            self.seat,
            places,
            self,
            make=self.made,
            clear=self.cleared.append,
            healthy=self.healthy,
            rehearsals=self,
            sink=_nothing,
        )

    def install(self, image: StoredImage, *, rehearsed: bool = True) -> installed.Changed:
        installation = self.installation()
        with installation.changing() as state:
            return installation.install(image, state, rehearsed=rehearsed)

    def rollback(self, *, with_data: bool) -> installed.Changed:
        installation = self.installation()
        with installation.changing() as state:
            return installation.rollback(state, with_data=with_data)

    def settled(self) -> State:
        """What the next command of any kind finds."""
        with self.installation().changing() as state:
            return state


def _nothing(_event: Event) -> None:
    return


def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies without a process for each, and no waiting for disks: what is done when is asked here, not how."""

    def copy(words: list[object], **_named: object) -> None:
        shutil.copytree(str(words[-2]), str(words[-1]))

    def remove(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    monkeypatch.setattr("os.fsync", lambda _descriptor: None)
    monkeypatch.setattr("obelisk.sandbox.data.btrfs.create", lambda path: path.mkdir())
    monkeypatch.setattr(data, "run", copy)
    for module in (installed, data):
        monkeypatch.setattr(module, "sync_filesystem", lambda _path: None)
        monkeypatch.setattr(module, "remove_tree", remove)
