"""`start` puts ordered state in its place: cut before any of its commands, and gone on with by the same image or by another.

The function runs as it is in the script, with directories for subvolumes.
"""

import subprocess
from pathlib import Path

import pytest

START = Path(__file__).parents[2] / "src/obelisk/build/guest/root/usr/lib/obelisk/start"
STUBS = """
TOP=$1 KEEP=$1/host running=$2 state_version=$3 left=$4
step() { left=$((left - 1)); [ "$left" -ge 0 ] || exit 9; }
open_top() { :; }
umount() { :; }
sync() { step; }
mv() { step; command mv -T "$@"; }
rm() { step; command rm "$@"; }
record() { step; echo "$2" >>"$TOP/records"; }
btrfs() {
    step
    case $3 in
    snapshot) cp -a "$4" "$5" ;;
    delete) command rm -r "$4" ;;
    esac
}
"""
ENOUGH = 99


def volume(top: Path, order: str, snapshot: str) -> None:
    """State of the first version, an order, and what it is to bring, of the second."""
    for place, version in (("live", "1"), (f"snapshots/{snapshot}/tree", "2")):
        (top / place).mkdir(parents=True)
        (top / place / "version").write_text(version)
    (top / "snapshots/0007-replaced").mkdir()
    (top / "host").mkdir()
    (top / "host/restore").write_text(f"{order}\n")


def boot(top: Path, image: str, *, cut: int = ENOUGH) -> int:
    """Do what `start` does about an order; its status: 9 when it was cut."""
    text = START.read_text()
    function = text[text.index("restore_state() {") : text.index("\n}\n", text.index("restore_state() {")) + 3]
    script = f'set -eu\n{STUBS}\n{function}\n[ ! -e "$KEEP/restore" ] || restore_state\n'
    return subprocess.run(["sh", "-c", script, "start", top, image, image[-1], str(cut)], check=False).returncode


def version(top: Path, place: str) -> str:
    return (top / place / "version").read_text()


@pytest.mark.parametrize("other", [False, True], ids=["the same image", "another image"])
def test_a_migrated_copy_that_is_cut_on_its_way_is_the_state_in_the_end_or_never(tmp_path: Path, *, other: bool) -> None:
    cuts = 0
    while True:
        top = tmp_path / str(cuts)
        volume(top, "shop_2 .migrated 0007-replaced", ".migrated")
        if boot(top, "shop_2", cut=cuts) == 0:
            break
        cuts += 1
        assert boot(top, "shop_1" if other else "shop_2") == 0
        assert not (top / "host/restore").exists()
        states = [version(top, place) for place in ("live", "snapshots/0007-replaced/tree") if (top / place).exists()]
        assert states in ([["2", "1"], ["1"]] if other else [["2", "1"]])
        assert other or not (top / "snapshots/.migrated").exists()
    assert cuts > 5
    assert (top / "records").read_text() == "state of version 2\n"


@pytest.mark.parametrize(("replaced", "old"), [("0007-replaced", True), ("-", False)], ids=["a snapshot", "a reset"])
def test_other_orders_are_carried_out_wherever_they_are_cut(tmp_path: Path, replaced: str, *, old: bool) -> None:
    cuts = 0
    while True:
        top = tmp_path / str(cuts)
        volume(top, f"- 0005-before {replaced}", "0005-before")
        if boot(top, "shop_2", cut=cuts) == 0:
            break
        cuts += 1
        assert boot(top, "shop_2") == 0
        assert version(top, "live") == "2"
        assert (top / "snapshots/0007-replaced/tree").exists() is old
        assert (top / "snapshots/0005-before").exists() is old
        assert not (top / "live.old").exists()
    assert cuts > 5
