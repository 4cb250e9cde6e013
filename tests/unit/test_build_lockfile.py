"""Lock files: what is written is read back, damage is named, differences read well."""

from dataclasses import replace
from pathlib import Path

import pytest

from obelisk.build.lockfile import difference, read_lock, write_lock
from obelisk.errors import InputError
from obelisk.model.lock import Account, Lock, Package, PackageSet, Pinned


def package(name: str, version: str = "1") -> Package:
    return Package(name, version, "amd64", f"{abs(hash((name, version))):064x}", 10, "debian/trixie", f"pool/{name}_{version}.deb")


LOCK = Lock(
    "0" * 64,
    PackageSet("trixie", 1_700_000_000, (package("bash"),)),
    PackageSet("trixie", 1_700_000_002, (package("nginx", "1:1.2+deb13u1"),)),
    PackageSet("trixie", 1_700_000_001, (package("qemu"),)),
    users=(
        Account("nobody", 65534, '65534:a "quoted" \\ name:/nonexistent:/usr/sbin/nologin'),
        Account("sshd", 997, "65534::/run/sshd:/bin/false"),
    ),
    groups=(Account("adm", 4),),
    pinned=Pinned(base=("sshd",)),
)


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "obelisk.lock"
    write_lock(file, LOCK)
    found = read_lock(file)
    assert found.system == LOCK.system
    assert found.tools == LOCK.tools
    assert set(found.users) == set(LOCK.users)
    assert found.sha256 == LOCK.sha256
    assert found.pinned == LOCK.pinned
    assert found.accounts(found.pinned.base) == (LOCK.users[1:], ())


def test_a_package_takes_one_line_so_that_a_diff_reads_well(tmp_path: Path) -> None:
    file = tmp_path / "obelisk.lock"
    write_lock(file, LOCK)
    assert sum('name = "nginx"' in line and "sha256" in line for line in file.read_text().splitlines()) == 1


def test_a_lock_that_ends_anywhere_before_its_end_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "obelisk.lock"
    write_lock(file, LOCK)
    whole = file.read_bytes().rstrip()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"obelisk\.lock: the lock is damaged: ") as caught:
            read_lock(file)
        assert "remove it and run `obelisk lock`" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format = 2", "format = true", "format is True"),
        ('request = "0', 'request = "x', "request 'x0"),
        ('base = ["sshd"]', "base = 3", "no list 'base'"),
        ('base = ["sshd"]', "base = [3]", "account 3"),
        ("[pinned]", "[pained]", "no table 'pinned'"),
        ('"sshd" = "997:', '"sshd" = "', "user sshd"),
        ('"sshd" = "997:', '"sshd" = "99999999999:', "user sshd"),
        ("/run/sshd", r"/run\nroot::0", "user sshd"),
        ('"sshd" =', '"x\' ; reboot" =', "reboot"),
        ('"adm" = 4', '"adm" = -4', "the id of adm is -4"),
        ('"adm" = 4', '"adm" = "4"', "the id of adm is '4'"),
        ("[tools]", "[spools]", "no table 'tools'"),
        ("epoch = 1700000000", 'epoch = "now"', "foundation: epoch is 'now'"),
        ('name = "bash", ', "", "a package in foundation has no name"),
        ('name = "bash"', 'name = "../bash"', "'../bash'"),
        ('name = "bash"', 'name = "nginx"', "nginx is there twice, the second time in base"),
        ('version = "1:1.2+deb13u1"', 'version = "1 --yes"', "nginx: version '1 --yes'"),
        ('architecture = "amd64"', 'architecture = ""', "bash: architecture ''"),
        ("size = 10", "size = -10", "bash: size is -10"),
        ("size = 10", 'size = "10"', "bash: size is '10'"),
        ('sha256 = "', 'sha256 = "../', "bash: sha256 '../"),
        ('origin = "debian/trixie"', 'origin = "trixie"', "bash: origin 'trixie'"),
        ('path = "pool/bash', 'path = "../pool/bash', "bash: path '../pool"),
        ('path = "pool/bash', 'path = "/pool/bash', "bash: path '/pool"),
        ('path = "pool/bash', "path = \"' /etc/passwd", "bash: path"),
    ],
)
def test_a_lock_that_somebody_edited_is_refused_by_what_is_wrong_with_it(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "obelisk.lock"
    write_lock(file, LOCK)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=r"obelisk\.lock: the lock is damaged") as caught:
        read_lock(file)
    assert words in caught.value.message
    assert caught.value.code == "lock-damaged"


def test_a_lock_of_another_format_is_named_as_such(tmp_path: Path) -> None:
    file = tmp_path / "obelisk.lock"
    file.write_text("format = 1\n")
    with pytest.raises(InputError, match="lock format 1 is not 2") as caught:
        read_lock(file)
    assert caught.value.code == "lock-format"


def test_a_missing_lock_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_lock(tmp_path / "obelisk.lock")
    assert "obelisk lock" in caught.value.hint


def test_the_difference_names_what_came_went_and_changed() -> None:
    after = replace(
        LOCK, foundation=replace(LOCK.base, packages=(package("zsh"),)), base=replace(LOCK.base, packages=(package("nginx", "2"),))
    )
    assert difference(LOCK, after) == ("- bash 1", "nginx 1:1.2+deb13u1 -> 2", "+ zsh 1")
    assert difference(LOCK, LOCK) == ()


def test_the_digest_covers_versions_and_accounts_but_no_paths() -> None:
    moved = replace(LOCK, base=replace(LOCK.base, packages=tuple(replace(p, path="elsewhere") for p in LOCK.base.packages)))
    assert moved.sha256 == LOCK.sha256
    assert replace(LOCK, groups=(Account("adm", 5),)).sha256 != LOCK.sha256
