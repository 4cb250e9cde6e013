"""The ids of accounts that packages make: what a lock has recorded is given again, and to nobody else."""

import subprocess
from pathlib import Path

import pytest

from obelisk.build import locking
from obelisk.build.trees import _account_hook
from obelisk.events import silent
from obelisk.model.lock import Account, Accounts, Lock, PackageSet
from obelisk.model.spec import Spec
from obelisk.store import Store


def test_pinned_accounts_are_added_as_they_are_recorded_and_once(tmp_path: Path) -> None:
    etc = tmp_path / "tree/etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (etc / "group").write_text("root:x:0:\nadm:x:4:\n")
    comment = 'it\'s "$HOME", `id` \\n & more'
    users = (
        Account("root", 7, "7:x:/:/"),
        Account("_d", 101, f"103:{comment}:/nonexistent:/usr/sbin/nologin"),
        Account("d", 102, "102::/:/"),
    )
    hook = tmp_path / "hook"
    hook.write_text(_account_hook(users, (Account("adm", 9), Account("_d", 103))))
    for _ in range(2):
        subprocess.run(["sh", hook, etc.parent], check=True)
    assert (etc / "passwd").read_text().splitlines() == [
        "root:x:0:0:root:/root:/bin/bash",
        f"_d:x:101:103:{comment}:/nonexistent:/usr/sbin/nologin",
        "d:x:102:102::/:/",
    ]
    assert (etc / "group").read_text() == "root:x:0:\nadm:x:4:\n_d:x:103:\n"


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize(
    ("before", "installed", "after", "pinned"),
    [
        ({}, "ab", {"a": 100, "b": 101}, ""),
        ({"a": 100}, "ab", {"a": 100, "b": 101}, ""),
        ({"b": 100}, "ab", {"a": 101, "b": 100}, "b"),
        ({"b": 100, "c": 101}, "abc", {"a": 102, "b": 100, "c": 101}, "bc"),
        # The package that made c is gone; files of c may lie in somebody's state, and must not become those of a.
        ({"c": 100}, "a", {"a": 101, "c": 100}, "c"),
        ({"b": 100, "c": 101}, "ab", {"a": 102, "b": 100, "c": 101}, "bc"),
    ],
)
def test_an_id_stays_with_its_account_whoever_comes_and_goes(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, int], installed: str, after: dict[str, int], pinned: str, split: int
) -> None:
    def install(_spec: Spec, lock: Lock, _store: Store, _sink: object) -> dict[str, Accounts]:
        """What packages do that ask for the first free id from 100, one after the other."""
        ids: dict[str, int] = {}
        found: dict[str, Accounts] = {}
        for layer, names in (("foundation", installed[:split]), ("base", installed[split:])):
            pinned, _ = lock.accounts(getattr(lock.pinned, layer))
            for account in pinned:
                ids.setdefault(account.name, account.id)
            for name in names:
                ids.setdefault(name, next(number for number in range(100, 200) if number not in ids.values()))
            found[layer] = tuple(Account(name, number) for name, number in ids.items()), ()
        return found

    monkeypatch.setattr(locking, "_accounts", install)
    nothing = PackageSet("trixie", 0, ())
    known = Lock("0" * 64, nothing, nothing, nothing, users=tuple(Account(name, number) for name, number in before.items()))
    # The spec and the store are for `install` alone.
    settled = locking._settle_accounts(object.__new__(Spec), known, object.__new__(Store), silent)
    assert {user.name: user.id for user in settled.users} == after
    assert {*settled.pinned.foundation, *settled.pinned.base} == {*pinned}
