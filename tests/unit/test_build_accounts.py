"""The ids of accounts that packages make: what a lock has recorded is given again, and to nobody else."""

import subprocess
from pathlib import Path

from obelisk.build.trees import _account_hook
from obelisk.model.lock import Account


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
