"""Lock files: what is written is read back, damage is named, differences read well."""

from dataclasses import replace
from pathlib import Path

import pytest

from obelisk.build.lockfile import difference, read_lock, write_lock
from obelisk.errors import InputError
from obelisk.model.lock import Account, Lock, Package, PackageSet


def package(name: str, version: str = "1") -> Package:
    return Package(name, version, "amd64", f"{abs(hash((name, version))):064x}", 10, "debian/trixie", f"pool/{name}_{version}.deb")


LOCK = Lock(
    "0" * 64,
    PackageSet("trixie", 1_700_000_000, (package("bash"), package("nginx", "1:1.2+deb13u1"))),
    PackageSet("trixie", 1_700_000_001, (package("qemu"),)),
    users=(
        Account("nobody", 65534, '65534:a "quoted" \\ name:/nonexistent:/usr/sbin/nologin'),
        Account("sshd", 997, "65534::/run/sshd:/bin/false"),
    ),
    groups=(Account("adm", 4),),
    pinned=("sshd",),
)


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "obelisk.lock"
    write_lock(file, LOCK)
    found = read_lock(file)
    assert found.system == LOCK.system
    assert found.tools == LOCK.tools
    assert set(found.users) == set(LOCK.users)
    assert found.sha256 == LOCK.sha256
    assert [user.name for user in found.pinned_users] == ["sshd"]


def test_a_package_takes_one_line_so_that_a_diff_reads_well(tmp_path: Path) -> None:
    file = tmp_path / "obelisk.lock"
    write_lock(file, LOCK)
    assert sum('name = "nginx"' in line and "sha256" in line for line in file.read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", [10, 200, 500])
def test_a_damaged_lock_is_named(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "obelisk.lock"
    write_lock(file, LOCK)
    file.write_text(file.read_text()[:-cut])
    with pytest.raises(InputError, match="the lock is damaged"):
        read_lock(file)


def test_a_missing_lock_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_lock(tmp_path / "obelisk.lock")
    assert "obelisk lock" in caught.value.hint


def test_the_difference_names_what_came_went_and_changed() -> None:
    after = replace(LOCK, system=replace(LOCK.system, packages=(package("nginx", "2"), package("zsh"))))
    assert difference(LOCK, after) == ("- bash 1", "nginx 1:1.2+deb13u1 -> 2", "+ zsh 1")
    assert difference(LOCK, LOCK) == ()


def test_the_digest_covers_versions_and_accounts_but_no_paths() -> None:
    moved = replace(LOCK, system=replace(LOCK.system, packages=tuple(replace(p, path="elsewhere") for p in LOCK.system.packages)))
    assert moved.sha256 == LOCK.sha256
    assert replace(LOCK, groups=(Account("adm", 5),)).sha256 != LOCK.sha256
