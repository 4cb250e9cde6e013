"""Desktop entries: they say what the image says of its program, start what is installed, and reach for nothing outside of the image."""

import shlex
import subprocess
from pathlib import Path

import pytest
from installed_samples import COMMAND, World, in_memory

from obelisk.model.policy import Own, Policy, Wayland, policy
from obelisk.sandbox import entries, keyfile, units
from obelisk.sandbox.desktop import NAMED, VARIABLES, named
from obelisk.sandbox.entries import Description, described

PNG = b"\x89PNG\r\n\x1a\nand so on"
ENTRY = """
[Desktop Entry]
Type=Application
Name=Pad
Name[de]=Block
Exec=env-less %F
Exec=pad --new %F
Icon=pad
MimeType=text/plain;
DBusActivatable=true
Actions=x;

[Desktop Action x]
Exec=rm -r /
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of an image with a program that has an entry and an icon, and another that has neither."""
    root = tmp_path / "root"
    for file, content in {
        "usr/share/applications/other.desktop": b"[Desktop Entry]\nExec=/usr/bin/other",
        "usr/share/applications/broken.desktop": b"\xff",
        "usr/share/applications/pad.desktop": ENTRY.encode(),
        "usr/share/icons/hicolor/48x48/apps/pad.png": PNG,
        "usr/share/icons/hicolor/64x64/apps/pad.png": b"<svg/>",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    return root


def test_of_the_images_entry_only_words_for_people_and_the_icon_are_taken(root: Path) -> None:
    found = described(root, ("/usr/bin/pad", "-x"))
    assert found == Description((("Name", "Pad"), ("Name[de]", "Block")), PNG)
    assert described(root, ("/usr/bin/other",)) == Description()
    assert described(root, ("/usr/bin/third",)) == Description()
    assert described(root / "nowhere", ("/usr/bin/pad",)) == Description()


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../outside.png", "/usr/bin", "pad.png"])
def test_no_link_of_an_image_leads_to_what_is_outside(root: Path, target: str) -> None:
    outside = root.parent / "outside.png"
    outside.write_bytes(PNG)
    for size in ("48x48", "64x64"):
        icon = root / f"usr/share/icons/hicolor/{size}/apps/pad.png"
        icon.unlink()
        icon.symlink_to(target.format(outside=outside))
    assert described(root, ("/usr/bin/pad",)).icon == b""


@pytest.mark.parametrize("icon", ["../../../../../../outside", "/etc/passwd", "", ".", "a/b"])
def test_an_icon_is_a_name_in_the_places_of_icons(root: Path, icon: str) -> None:
    (root.parent / "outside.png").write_bytes(PNG)
    (root / "usr/share/applications/pad.desktop").write_text(f"[Desktop Entry]\nExec=pad\nIcon={icon}")
    assert described(root, ("/usr/bin/pad",)).icon == b""


def test_an_entry_starts_the_program_and_says_nothing_that_is_no_word() -> None:
    words = (("Name", 'a\\n"b"'), ("Comment", "x"))
    keys = keyfile.parse(entries.text("pad", Path('/h/a b$`"%\\'), Description(words), Path("/i con")).encode())["Desktop Entry"]
    assert (keys["Name"], keys["Comment"], keys["Icon"], keys["Type"]) == ('a\\n"b"', "x", "/i con", "Application")
    # Two rules of quoting, one inside of the other: that of strings, then that of arguments, which is a part of sh's.
    assert shlex.split(keyfile.read_value(keys["Exec"]).replace("%%", "%").replace("\\$", "$").replace("\\`", "`")) == ['/h/a b$`"%\\']
    assert "Icon" not in keyfile.parse(entries.text("pad", Path("/pad"), Description(), None).encode())["Desktop Entry"]


def test_installing_makes_an_entry_and_what_comes_after_takes_it_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory(monkeypatch)
    world = World(tmp_path)
    entry, icon = tmp_path / "entries/obelisk-app-shop.desktop", tmp_path / "installed/shop/icon.png"
    world.shown = Description((("Name", "Shop"),), PNG)
    windows, plain = world.image("1", COMMAND, policy([Wayland()])), world.image("2", COMMAND, Policy())
    world.install(windows)
    assert f'\nExec="{tmp_path}/bin/shop"\n' in entry.read_text()
    assert f"\nIcon={icon}\n" in entry.read_text()
    assert icon.read_bytes() == PNG
    world.shown = None
    world.install(plain)
    assert (entry.exists(), icon.exists()) == (False, False)
    world.shown = Description()
    world.rollback(with_data=False)
    assert (entry.exists(), icon.exists()) == (True, False)
    with world.installation().changing():
        world.installation().remove(with_data=True)
    assert not entry.exists()
    assert not (tmp_path / "bin/shop").exists()


@pytest.mark.parametrize(("granted", "prepared"), [(policy([Own("org.example.Pad")]), True), (Policy(), False)])
def test_a_program_of_a_session_is_prepared_anew_in_another(tmp_path: Path, granted: Policy, *, prepared: bool) -> None:
    """Only where the plan holds anything of the session."""
    world = World(tmp_path)
    mark = tmp_path / "prepared"
    seat = units.Seat("shop", world.seat.start, world.seat.moving, world.seat.data, Path("/"), by_root=False, obelisk=("touch", str(mark)))
    program = tmp_path / "program"
    program.write_text(units.program(seat, granted))
    seat.start.parent.mkdir(parents=True)
    seat.start.write_text("#!/bin/sh\n")
    seat.start.chmod(0o755)
    here = {"XDG_RUNTIME_DIR": "/run/user/1", "DISPLAY": ":0", "PATH": "/usr/bin:/bin"}
    seat.start.with_name(NAMED).write_text(named(here))
    for session, wanted in ((here, False), ({**here, "DISPLAY": ":1"}, prepared)):
        subprocess.run(["sh", "-eu", program], env=session, cwd=tmp_path, check=True)
        assert mark.exists() is wanted
    assert named(here).split(" ") == [here.get(name, "") for name in VARIABLES]
