"""Locks and archives: what is pinned stays, whatever an archive does; what an archive does wrong is told, and nothing is lost."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive import Archive
from tool import Tool

from obelisk.build.packages import fetch
from obelisk.errors import InputError, TransportError, TrustError
from obelisk.events import silent
from obelisk.model.lock import Package
from obelisk.store import Store
from obelisk.system import apt


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    made = Archive(tmp_path_factory.mktemp("archive"))
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def package_of(deb: Path) -> Package:
    name, version, _ = deb.stem.split("_")
    data = deb.read_bytes()
    return Package(name, version, "amd64", hashlib.sha256(data).hexdigest(), len(data), "own/stable", f"pool/{deb.name}")


def at(uri: str) -> apt.Archive:
    return apt.Archive("own", uri, ("stable",), ("main",), ())


def test_a_package_that_is_served_is_fetched_once_and_from_any_address(archive: Archive, store: Store) -> None:
    package = package_of(archive.add("plain", "1"))
    with archive.served() as uri:
        fetch([package], [at(uri)], store, silent)
    assert store.find_blob(package.sha256) is not None
    fetch([package], [at(uri)], store, silent)  # nobody serves it any more, and nobody need
    other = Store.open(store.root.with_name("other"))
    with archive.served() as elsewhere:
        assert elsewhere != uri
        fetch([package], [at(elsewhere)], other, silent)


def test_other_bytes_under_a_locked_name_stop_the_build_and_never_reach_the_store(archive: Archive, store: Store) -> None:
    package = package_of(archive.add("forged", "1"))
    file = archive.directory / package.path
    file.write_bytes(file.read_bytes() + b"more")
    with archive.served() as uri, pytest.raises(TrustError, match=r"forged 1: .*other bytes.*own/stable/pool/forged_1_amd64.deb"):
        fetch([package], [at(uri)], store, silent)
    assert store.find_blob(package.sha256) is None
    assert store.verify(sink=silent) == ()


def test_a_vanished_package_is_named_with_the_ways_to_go_on(archive: Archive, store: Store) -> None:
    kept, gone = package_of(archive.add("kept", "1")), package_of(archive.add("gone", "1.5"))
    (archive.directory / gone.path).unlink()
    with archive.served() as uri, pytest.raises(InputError, match=r"no longer has gone 1.5") as caught:
        fetch([kept, gone], [at(uri)], store, silent)
    assert "obelisk lock --update gone" in caught.value.hint
    assert "snapshot" in caught.value.hint
    assert store.find_blob(kept.sha256) is not None  # what has arrived stays


def test_a_vanished_package_comes_from_the_snapshot_archive(archive: Archive, store: Store, tmp_path: Path) -> None:
    package = package_of(archive.add("old", "1"))
    (tmp_path / "past/pool").mkdir(parents=True)
    (archive.directory / package.path).rename(tmp_path / "past" / package.path)
    past = object.__new__(Archive)
    past.directory = tmp_path / "past"
    with archive.served() as uri, past.served() as old:
        fetch([package], [at(uri)], store, silent, snapshot=lambda origin: old if origin == "own" else None)
    assert store.find_blob(package.sha256) is not None


def test_an_archive_that_does_not_answer_is_a_matter_of_trying_again(archive: Archive, store: Store) -> None:
    package = package_of(archive.add("late", "1"))
    with archive.served() as uri:
        pass
    with pytest.raises(TransportError, match="refused") as caught:
        fetch([package], [at(uri)], store, silent)
    assert "try again" in caught.value.hint


USER = "adduser --system --group --no-create-home --quiet"


@pytest.mark.timeout(1200)  # it installs three bases
def test_a_lock_holds_what_it_names_until_it_is_told_otherwise(archive: Archive, workshop: Tool, tmp_path: Path) -> None:
    tool = workshop.copied_to(tmp_path)
    file = tool.spec / "obelisk.toml"
    archive.add("greeter", "1", depends="adduser", postinst=f"{USER} _greeter")
    archive.publish()
    (tool.spec / "key.asc").write_bytes(archive.key.read_bytes())

    def lock(*words: str) -> str:
        return tool.run("lock", str(tool.spec), *words)

    def account() -> str:
        (found,) = re.findall(r'^"_greeter" = .*$', lock_file.read_text().split("[groups]")[0], re.MULTILINE)
        return str(found)

    lock_file = tool.spec / "obelisk.lock"
    with archive.served() as uri:
        file.write_text(
            file.read_text().replace('packages = ["', 'packages = ["greeter", "')
            + f'\n[sources.own]\nuri = "{uri}"\nsuites = ["stable"]\ncomponents = ["main"]\nkey = "key.asc"\n'
        )
        before = lock_file.read_text()
        assert "+ greeter 1" in lock()
        first, numbered = lock_file.read_text(), account()
        assert "127.0.0.1" not in first
        assert 'origin = "own/stable", path = "pool/greeter_1_amd64.deb"' in first
        assert {line for line in before.splitlines() if "sha256" in line} < set(first.splitlines())

        # The archive moves on, and drops what is locked: the store has it.
        (archive.directory / "pool/greeter_1_amd64.deb").unlink()
        archive.add("aardvark", "1", depends="adduser", postinst=f"{USER} _aardvark")
        archive.add("greeter", "2", depends="adduser, aardvark", postinst=f"{USER} _greeter")
        archive.publish()
        assert "0 changes" in lock()
        assert lock_file.read_text() == first
        image = tool.build()

        # The new one needs a package that is configured before it and takes the first free id.
        assert "greeter 1 -> 2\n" in lock("--update", "greeter")
        second = lock_file.read_text()
        assert account() == numbered
        assert {line for line in first.splitlines() if "sha256" in line and "greeter" not in line} < set(second.splitlines())
        error = tool.refused("lock", str(tool.spec), "--update", "nosuch", status=2)
        assert "nosuch is not in the lock" in error["message"]
        newer = tool.build()
        assert newer != image

    # The address is not part of a lock: the same archive elsewhere gives the same image.
    with archive.served() as elsewhere, tool.changed("obelisk.toml", uri, elsewhere):
        assert tool.build() == newer
        with tool.changed("obelisk.toml", '"greeter"', '"greeeter"'):
            error = tool.refused("lock", str(tool.spec), status=2)
            assert "'greeeter' does not exist" in error["message"]
            assert "did you mean greeter" in error["message"]
        (tool.spec / "key.asc").write_bytes(foreign_key(tmp_path))
        error = tool.refused("lock", str(tool.spec), "--update", status=4)
        assert elsewhere in error["message"]
        assert "sign" in error["message"].lower()
        (tool.spec / "key.asc").write_bytes(archive.key.read_bytes())

    error = tool.refused("lock", str(tool.spec), "--update", status=4)
    assert uri in error["message"]
    assert "mirror" in error["hint"]
    assert lock_file.read_text() == second
    assert "sound" in tool.run("verify")


def foreign_key(tmp_path: Path) -> bytes:
    """The public key of somebody else."""
    other = Archive(tmp_path / "other")
    try:
        return other.key.read_bytes()
    finally:
        other.close()
