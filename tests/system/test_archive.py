"""Locks and archives: what is pinned stays, whatever an archive does; what an archive does wrong is told, and nothing is lost."""

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from archive import Archive, serving
from tool import Tool

from obelisk.build import locking
from obelisk.build.packages import fetch, nowhere
from obelisk.errors import InputError, TransportError, TrustError
from obelisk.events import silent
from obelisk.model.lock import Package, PackageSet
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
        fetch([package], lambda: [at(uri)], store, silent)
    assert store.find_blob(package.sha256) is not None
    fetch([package], lambda: [at(uri)], store, silent)  # nobody serves it any more, and nobody need
    other = Store.open(store.root.with_name("other"))
    with archive.served() as elsewhere:
        assert elsewhere != uri
        fetch([package], lambda: [at(elsewhere)], other, silent)


def test_other_bytes_under_a_locked_name_stop_the_build_and_never_reach_the_store(archive: Archive, store: Store) -> None:
    package = package_of(archive.add("forged", "1"))
    file = archive.directory / package.path
    file.write_bytes(file.read_bytes() + b"more")
    with archive.served() as uri, pytest.raises(TrustError, match=r"forged 1: .*other bytes.*own/stable/pool/forged_1_amd64.deb"):
        fetch([package], lambda: [at(uri)], store, silent)
    assert store.find_blob(package.sha256) is None
    assert store.verify(sink=silent) == ()


def test_a_vanished_package_is_named_with_the_ways_to_go_on(archive: Archive, store: Store) -> None:
    kept, gone = package_of(archive.add("kept", "1")), package_of(archive.add("gone", "1.5"))
    (archive.directory / gone.path).unlink()
    with archive.served() as uri, pytest.raises(InputError, match=r"no longer has gone 1.5") as caught:
        fetch([kept, gone], lambda: [at(uri)], store, silent)
    assert "obelisk lock --update gone" in caught.value.hint
    assert "snapshot" in caught.value.hint
    assert store.find_blob(kept.sha256) is not None  # what has arrived stays


def test_a_vanished_package_comes_from_the_snapshot_archive(archive: Archive, store: Store, tmp_path: Path) -> None:
    package = package_of(archive.add("old", "1"))
    (tmp_path / "past/pool").mkdir(parents=True)
    (archive.directory / package.path).rename(tmp_path / "past" / package.path)
    with archive.served() as uri, serving(tmp_path / "past") as old:
        fetch([package], lambda: [at(uri)], store, silent, snapshot=lambda origin: old if origin == "own" else None)
    assert store.find_blob(package.sha256) is not None


def test_an_archive_that_does_not_answer_is_a_matter_of_trying_again(archive: Archive, store: Store) -> None:
    package = package_of(archive.add("late", "1"))
    with archive.served() as uri:
        pass
    with pytest.raises(TransportError, match="refused") as caught:
        fetch([package], lambda: [at(uri)], store, silent)
    assert "try again" in caught.value.hint


class _Breaking(BaseHTTPRequestHandler):
    """Sends the beginning of a file, and hangs up."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"!<arch>\n")

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def test_a_download_that_breaks_off_is_a_matter_of_trying_again(archive: Archive, store: Store) -> None:
    package = package_of(archive.add("broken-off", "1"))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Breaking) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with pytest.raises(TransportError, match="broken-off"):
                fetch([package], lambda: [at(f"http://127.0.0.1:{server.server_port}")], store, silent)
        finally:
            server.shutdown()
            thread.join()
    assert store.find_blob(package.sha256) is None
    with archive.served() as uri:
        fetch([package], lambda: [at(uri)], store, silent)


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """An archive in which some packages want what others do not."""
    made = Archive(tmp_path_factory.mktemp("choice"))
    made.add("left", "1", depends="base-of")
    made.add("right", "1", depends="base-of (= 1)")
    made.add("base-of", "1")
    made.add("base-of", "2")
    made.add("broken", "1", depends="nowhere")
    made.add("drink", "1", depends="coffee | tea")
    made.add("coffee", "1")
    made.add("tea", "1")
    made.publish()
    yield made
    made.close()


def resolve(directory: Path, uri: str, *names: str, key: Path, pinned: Mapping[str, str] | None = None) -> tuple[Package, ...]:
    resolver = apt.Resolver(directory, [apt.Archive("own", uri, ("stable",), ("main",), (key,))])
    resolver.update()
    resolver.pin(pinned or {})
    return resolver.resolve(names, recommends=False)


def test_packages_come_with_what_they_need_by_name_version_digest_and_place(choice: Archive, tmp_path: Path) -> None:
    with choice.served() as uri:
        newest = resolve(tmp_path, uri, "left", key=choice.key)
        pinned = resolve(tmp_path, uri, "left", "right", key=choice.key, pinned={"base-of": "1"})
    pool = choice.directory / "pool"
    assert newest == tuple(package_of(pool / f"{name}_amd64.deb") for name in ("base-of_2", "left_1"))
    assert pinned == tuple(package_of(pool / f"{name}_amd64.deb") for name in ("base-of_1", "left_1", "right_1"))


def test_what_some_packages_need_of_a_set_is_settled_within_the_set(choice: Archive, tmp_path: Path) -> None:
    with choice.served() as uri:
        resolver = apt.Resolver(tmp_path, [apt.Archive("own", uri, ("stable",), ("main",), (choice.key,))])
        resolver.update()
        found = resolver.resolve(["drink", "tea", "coffee-", "left", "base-of=1"], recommends=False)
        assert [package.name for package in found] == ["base-of", "drink", "left", "tea"]
        # Alone, it would take the coffee.
        assert [package.name for package in resolver.closure(["drink"], found)] == ["drink", "tea"]
        assert [(p.name, p.version) for p in resolver.closure(["left"], found)] == [("base-of", "1"), ("left", "1")]


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (["left", "rigth"], "package-unknown", "package 'rigth' does not exist in this distribution; did you mean right?"),
        (["xyzzy", "plugh"], "package-unknown", "package 'plugh' does not exist in this distribution\npackage 'xyzzy' does not exist"),
        (["left", "right"], "packages-unsolvable", "right : Depends: base-of (= 1) but 2 is to be installed"),
        (["broken"], "packages-unsolvable", "broken : Depends: nowhere but it is not installable"),
    ],
)
def test_what_cannot_be_installed_is_named_with_the_reason(
    choice: Archive, tmp_path: Path, names: list[str], code: str, words: str
) -> None:
    with choice.served() as uri, pytest.raises(InputError) as caught:
        resolve(tmp_path, uri, *names, key=choice.key)
    assert words in caught.value.message
    assert caught.value.code == code
    assert caught.value.hint


def test_an_archive_of_another_key_is_a_matter_of_trust_and_no_answer_one_of_trying_again(choice: Archive, tmp_path: Path) -> None:
    key = tmp_path / "key.asc"
    key.write_bytes(foreign_key(tmp_path))
    with choice.served() as uri:
        with pytest.raises(TrustError, match=uri) as refused:
            resolve(tmp_path / "refused", uri, "left", key=key)
        assert "`key` of the source" in refused.value.hint
        signed = choice.directory / "dists/stable/InRelease"
        genuine = signed.read_text()
        try:
            signed.write_text(genuine.replace("Codename: stable", "Codename: forged"))
            with pytest.raises(TrustError, match=uri):
                resolve(tmp_path / "forged", uri, "left", key=choice.key)
        finally:
            signed.write_text(genuine)
    with pytest.raises(TransportError, match=uri) as caught:
        resolve(tmp_path / "gone", uri, "left", key=choice.key)
    assert "`mirror` and `[sources]`" in caught.value.hint


@pytest.mark.timeout(60)
def test_one_archive_that_does_not_answer_is_named_beside_one_that_does(choice: Archive, tmp_path: Path) -> None:
    with choice.served() as gone:
        pass
    with choice.served() as uri:
        there, dead = (apt.Archive(name, at, ("stable",), ("main",), (choice.key,)) for name, at in (("own", uri), ("gone", gone)))
        with pytest.raises(TransportError, match=f"Failed to fetch {gone}/"):
            apt.Resolver(tmp_path, [there, dead]).update()


def test_what_is_locked_stays_until_it_is_named_and_what_is_new_joins_it(store: Store, tmp_path: Path) -> None:
    moving = Archive(tmp_path / "moving")
    try:
        for name in ("greeter", "bystander"):
            moving.add(name, "1")
        moving.publish()
        with moving.served() as uri:
            old = _resolve_in(store, moving, uri, ["greeter", "bystander"])
            assert old.packages == tuple(package_of(moving.directory / f"pool/{name}_1_amd64.deb") for name in ("bystander", "greeter"))
            fetch(old.packages, lambda: [at(uri)], store, silent)
            # The archive moves on, and drops what is locked.
            for name in ("greeter", "bystander"):
                (moving.directory / f"pool/{name}_1_amd64.deb").rename(tmp_path / f"{name}_1_amd64.deb")
                moving.add(name, "2")
            moving.add("newcomer", "1")
            moving.publish()

            def versions(*more: str, update: list[str] | None, into: Store = store) -> dict[str, str]:
                found = _resolve_in(into, moving, uri, ["greeter", "bystander", *more], old=old, update=update)
                return {package.name: package.version for package in found.packages}

            assert versions(update=None) == {"greeter": "1", "bystander": "1"}
            assert versions("newcomer", update=None) == {"greeter": "1", "bystander": "1", "newcomer": "1"}
            assert versions(update=["greeter"]) == {"greeter": "2", "bystander": "1"}
            assert versions(update=[]) == {"greeter": "2", "bystander": "2"}

            elsewhere = Store.open(tmp_path / "elsewhere")
            with pytest.raises(InputError, match=r"no longer has bystander 1$") as caught:
                versions("newcomer", update=["greeter"], into=elsewhere)
            assert "obelisk lock --update bystander" in caught.value.hint
            assert versions(update=["greeter", "bystander"], into=elsewhere) == {"greeter": "2", "bystander": "2"}
    finally:
        moving.close()


def _resolve_in(
    store: Store, archive: Archive, uri: str, names: list[str], *, old: PackageSet | None = None, update: list[str] | None = None
) -> PackageSet:
    signed = apt.Archive("own", uri, ("stable",), ("main",), (archive.key,))
    (found,) = locking._resolve(
        "resolve",
        "Resolving",
        (names,),
        [signed],
        suite="stable",
        old=None if old is None else (old,),
        update=update,
        recommends=False,
        store=store,
        sink=silent,
        snapshot=nowhere,
    )
    return found


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
        # What is added comes on top of what every image has, and nothing below it is made again.
        assert first.split("[foundation]")[1].split("[base]")[0] == before.split("[foundation]")[1].split("[base]")[0]

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
        error = tool.refused("lock", str(tool.spec), "--update", status=3)
        assert elsewhere in error["message"]
        assert "sign" in error["message"].lower()
        (tool.spec / "key.asc").write_bytes(archive.key.read_bytes())

    error = tool.refused("lock", str(tool.spec), "--update", status=4)
    assert uri in error["message"]
    assert "mirror" in error["hint"]
    assert lock_file.read_text() == second
    assert "sound" in tool.run("verify")
    assert_a_lost_package_is_never_replaced(tool, archive, uri, newer, tmp_path)


def assert_a_lost_package_is_never_replaced(tool: Tool, archive: Archive, address: str, image: str, tmp_path: Path) -> None:
    """Where the store has neither the package nor what was made from it: other bytes, none, and those of a snapshot archive."""
    package = package_of(archive.directory / "pool/greeter_2_amd64.deb")
    lose(tool, package)
    file = archive.directory / package.path
    genuine = file.read_bytes()
    past = tmp_path / "past/own/pool"
    past.mkdir(parents=True)
    (past / file.name).write_bytes(genuine)
    with archive.served() as uri, tool.changed("obelisk.toml", address, uri):
        file.write_bytes(genuine[:-1] + b"x")
        error = tool.refused("build", str(tool.spec), status=3)
        assert "greeter 2: the archive serves other bytes than the lock names (own/stable/pool/greeter_2_amd64.deb)" in error["message"]
        file.unlink()
        error = tool.refused("build", str(tool.spec), status=2)
        assert "no longer has greeter 2" in error["message"]
        assert "lock --update greeter" in error["hint"]
        assert "sound" in tool.run("verify")
        with serving(tmp_path / "past") as old, tool.changed("obelisk.toml", "", f'snapshot = "{old}/{{origin}}"\n'):
            assert tool.build() == image
    assert "sound" in tool.run("verify")


def lose(tool: Tool, package: Package) -> None:
    """Take a package out of the store, and all base trees with it."""
    (tool.store / "blobs" / package.sha256[:2] / package.sha256).unlink()
    for step in (tool.store / "steps").iterdir():
        if (step / "output/tree/usr/lib/modules").is_dir():
            shutil.rmtree(step)


def foreign_key(tmp_path: Path) -> bytes:
    """The public key of somebody else."""
    other = Archive(tmp_path / "other")
    try:
        return other.key.read_bytes()
    finally:
        other.close()
