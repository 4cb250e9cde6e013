"""Migrations run on copies: what a host orders, and what a failure leaves. Directories stand for subvolumes."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from obelisk.errors import CommandError, StateError
from obelisk.host import journal, migration, snapshots
from obelisk.host.here import Here
from obelisk.host.settings import Settings
from obelisk.model.host import Event, Record
from obelisk.system import btrfs
from obelisk.system.command import Completed


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """A host whose state is of the first version; image 2 runs, after image 1. Its migrations lead to 2, and without return to 3."""
    this = Here("shop", "2", "", Path("/dev/null"), tmp_path / "top/host", "boot", tmp_path)
    for place in (this.keep, tmp_path / "top/live", tmp_path / "top/snapshots", tmp_path / "programs"):
        place.mkdir(parents=True)
    (tmp_path / "top/live/data").write_text("data")
    for name in ("2.up", "2.down", "3.up"):
        (tmp_path / "programs" / name).touch()
    for image in ("shop_1", "shop_2"):
        journal.append(this.keep, Record(Event.BOOTED, "", image, image))

    @contextmanager
    def top(_: Here) -> Iterator[Path]:
        yield tmp_path / "top"

    def run(words: list[Path], **_: object) -> Completed:
        data = words[1] / "data"
        data.write_text(f"{data.read_text()} {words[2].name}")
        if (tmp_path / "breaks").exists():
            raise CommandError(("with-state",), 1, "reading\nno such table\n")
        return Completed("", "")

    monkeypatch.setattr(Here, "top", top)
    monkeypatch.setattr(migration, "run", run)
    monkeypatch.setattr(migration, "migrations", lambda: MIGRATIONS(tmp_path / "programs"))
    monkeypatch.setattr(btrfs, "snapshot", lambda source, target, **_: shutil.copytree(source, target))
    monkeypatch.setattr(btrfs, "is_subvolume", Path.is_dir)
    monkeypatch.setattr(btrfs, "delete", shutil.rmtree)
    monkeypatch.setattr(btrfs, "sync", lambda _path: None)
    return this


MIGRATIONS = migration.migrations


def put_snapshot(here: Here, directory: str, version: int) -> None:
    place = here.run / "top/snapshots" / directory
    (place / "tree").mkdir(parents=True)
    (place / "tree/data").write_text("kept")
    (place / "about.json").write_text(json.dumps({"at": "", "image": "shop_1", "reason": "", "automatic": True}))
    snapshots.set_version(place / "tree", version)


def ordered(here: Here) -> tuple[str, str, int, bool]:
    """The order, what the copy holds and of which version it is, and whether the replaced state goes by itself."""
    order = (here.keep / "restore").read_text().strip()
    copy = here.run / "top/snapshots/.migrated/tree"
    about = json.loads((here.run / "top/snapshots" / order.split()[2] / "about.json").read_bytes())
    assert about["image"] == "shop_1"
    return order, (copy / "data").read_text(), snapshots.version(copy), about["automatic"]


def test_older_state_is_migrated_step_by_step_on_a_copy(here: Here) -> None:
    migration.migrate(here, Settings(state_version=3))
    assert ordered(here) == ("shop_2 .migrated 0001-replaced-shop-1", "data 2.up 3.up", 3, True)
    assert (here.run / "top/live/data").read_text() == "data"


@pytest.mark.parametrize("healthy", [False, True])
def test_newer_state_gives_way_to_a_snapshot_and_is_kept_for_good_where_its_image_was_healthy(here: Here, *, healthy: bool) -> None:
    snapshots.set_version(here.run / "top/live", 4)
    put_snapshot(here, "0003-before", 1)
    put_snapshot(here, "0004-later", 4)
    if healthy:
        journal.append(here.keep, Record(Event.HEALTHY, "", "shop_1", "shop_1"))
    migration.migrate(here, Settings(state_version=2))
    assert ordered(here) == ("shop_2 .migrated 0005-replaced-shop-1", "kept 2.up", 2, not healthy)


def test_a_failure_changes_nothing_and_is_told_as_a_failed_check(here: Here) -> None:
    (here.run / "breaks").touch()
    with pytest.raises(StateError, match="the migration to 2 failed: no such table"):
        migration.migrate(here, Settings(state_version=2))
    (check,) = json.loads((here.run / "health.json").read_bytes())
    assert (check["name"], check["ok"]) == ("the migration to 2 failed: no such table", False)
    assert sorted(path.name for path in (here.run / "top").rglob("*")) == ["data", "host", "journal.jsonl", "live", "lock", "snapshots"]


def test_state_without_a_way_is_refused_and_told(here: Here) -> None:
    snapshots.set_version(here.run / "top/live", 4)
    with pytest.raises(StateError) as caught:
        migration.migrate(here, Settings(state_version=2))
    assert caught.value.code == "state-version"
    assert "version 4" in json.loads((here.run / "health.json").read_bytes())[0]["name"]
    assert not (here.keep / "restore").exists()


def test_a_return_runs_the_ways_back_on_a_copy_or_is_refused(here: Here) -> None:
    top = here.run / "top"
    assert migration.steps_back(top, 1) == ()
    snapshots.set_version(top / "live", 2)
    assert migration.steps_back(top, 1) == (2,)
    migration.take_back(top, (2,), Settings(state_version=2))
    copy = top / "snapshots/.migrated/tree"
    assert ((copy / "data").read_text(), snapshots.version(copy), snapshots.version(top / "live")) == ("data 2.down", 1, 2)
    snapshots.set_version(top / "live", 3)
    with pytest.raises(StateError, match="the migration to 3 has no way back") as caught:
        migration.steps_back(top, 2)
    assert (caught.value.code, "--with-state" in caught.value.hint) == ("state-irreversible", True)


def test_only_state_that_the_image_can_start_with_may_be_restored(here: Here) -> None:
    tree = here.run / "top/live"
    for version, usable in ((1, True), (2, True), (3, False)):
        snapshots.set_version(tree, version)
        if usable:
            migration.require_usable(tree, Settings(state_version=2))
        else:
            with pytest.raises(StateError, match="version 3"):
                migration.require_usable(tree, Settings(state_version=2))
