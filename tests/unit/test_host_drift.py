"""What of a state volume nothing declares."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from obelisk.host import drift
from obelisk.system.command import Completed


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image without rules for temporary files, and without users that have homes."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/sh\n")
    (root / "usr/lib/obelisk").mkdir(parents=True)
    monkeypatch.setattr(drift, "run", lambda words, **_: Completed("0" if words[0] == "stat" else "d /var/lib\nd /var/lib/rule\n", ""))
    return root


def strays(root: Path, files: Iterable[str]) -> set[str]:
    state = root.parent / "state"
    for file in files:
        (state / file).parent.mkdir(parents=True, exist_ok=True)
        (state / file).touch()
    return {stray.path for stray in drift.drift(root, state)}


FILES = (
    *("var/lib/shop/data", "var/lib/rule/x", "var/lib/stray/x", "var/lib/obelisk/machine-id", "var/log/old.log", "var/cache/x/y"),
    *("home/ada/x", "home/bob/x", "root/x"),
)


def test_what_neither_image_nor_spec_declares_is_shown_by_its_topmost_directory(root: Path) -> None:
    (root / "usr/lib/obelisk/state.declared").write_text("/var/lib/shop\n")
    assert strays(root, FILES) == {"/var/lib/stray", "/var/log/old.log", "/home/bob", "/root/x"}


def test_the_spec_may_declare_what_is_everybodys(root: Path) -> None:
    (root / "usr/lib/obelisk/state.declared").write_text("/var/log\n/home\n/root\n")
    assert strays(root, FILES) == {"/var/lib/stray", "/var/lib/shop"}


def test_where_only_the_listed_is_kept_all_else_on_the_volume_is_shown(root: Path) -> None:
    (root / "usr/lib/obelisk/state.kept").write_text("/var/lib/obelisk\n/var/lib/shop\n/root\n")
    assert strays(root, FILES) == {"/var/lib/stray", "/var/lib/rule", "/var/log/old.log", "/var/cache", "/home/ada", "/home/bob"}
