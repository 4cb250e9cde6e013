"""Desktop programs show their windows from inside their sandbox, and reach of the session what they were granted."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from desktop import PATIENCE_S, opened, session, shown, types, wayland, x11
from ordinary import UID, ordinary_user
from sandboxes import PRIVATE, example, places, told
from tool import Tool

DESK = Path("/mnt/desk")
FILES = """
mount -t tmpfs -o mode=755 tmpfs /mnt
for name in desk kept; do mkdir /mnt/$name; mount --bind "$1/$name" /mnt/$name; done
shift
exec "$@"
"""
DISPLAY = 78


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where what runs here lies, with a directory that the editor is given and one that it is not."""
    with places() as place:
        for name in ("desk", "kept"):
            (place / name).mkdir(mode=0o777)
            (place / name).chmod(0o777)
            (place / name / "letter").write_text("Dear reader\n")
            (place / name / "letter").chmod(0o666)
        yield place


@pytest.fixture(scope="module")
def editor(applications: Tool, place: Path) -> Tool:
    """The editor of the examples."""
    return replace(example(applications, "editor"), prefix=(*PRIVATE, "sh", "-euc", FILES, "sh", str(place)))


def beside(place: Path) -> set[str]:
    """The programs that run because of applications here."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            if any(str(place / "run").encode() in word for word in command):
                found.add(command[0].decode())
    return found


def test_an_editor_shows_its_window_in_a_wayland_session(editor: Tool, place: Path) -> None:
    told(place, "editor", "")
    with wayland(place) as desktop:
        assert desktop.look().white < 0.01
        with opened(editor, desktop, "/etc/os-release"):
            pass
        desktop.shows(lambda picture: picture.white < 0.01)
    shutil.rmtree(place / "session")


def test_on_a_desktop_of_x11_it_has_an_x_server_of_its_own_and_changes_the_file_that_it_was_given_and_no_other(
    editor: Tool, place: Path
) -> None:
    told(place, "editor", f'[allow.grants]\n[override.grants]\nx11 = true\nwrite = ["{DESK}"]\n')
    with x11(place, DISPLAY) as desktop:
        assert desktop.look().white < 0.01
        for name in ("desk", "kept"):
            with opened(editor, desktop, f"/mnt/{name}/letter"):
                assert "bwrap" in beside(place)
                time.sleep(1)  # a window is shown before it takes what is typed
                types(desktop, "key", "ctrl+Home", "type", "Yes. ")
                types(desktop, "key", "ctrl+s")
                deadline = time.monotonic() + (PATIENCE_S if name == "desk" else 3)
                while "Yes" not in (place / name / "letter").read_text() and time.monotonic() < deadline:
                    time.sleep(0.1)
            desktop.shows(lambda picture: picture.white < 0.01)
        deadline = time.monotonic() + 10
        while beside(place) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert beside(place) == set()
    assert (place / "desk/letter").read_text() == "Yes. Dear reader\n"
    assert (place / "kept/letter").read_text() == "Dear reader\n"


def test_without_a_session_or_with_anothers_it_says_so_before_it_starts(editor: Tool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(place, "editor", "")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert editor.refused("app", "ready", str(editor.spec), status=7)["code"] == "no-wayland"
    with wayland(place) as desktop:
        for name, value in desktop.variables.items():
            monkeypatch.setenv(name, value)
        (place / "session/wayland-0").chmod(0o700)
        assert editor.refused("app", "ready", str(editor.spec), status=5)["code"] == "session-closed"
        told(place, "editor", '[allow.grants]\n[override.grants]\nportals = ["file-chooser"]\n')
        assert "what a person chooses" in editor.refused("app", "ready", str(editor.spec), status=5)["message"]
    shutil.rmtree(place / "session")


def test_a_person_installs_a_program_finds_it_in_a_menu_and_starts_it_without_obelisk(
    applications: Tool, editor: Tool, place: Path, tmp_path: Path
) -> None:
    person = ordinary_user(replace(applications, spec=editor.spec), tmp_path)
    home = tmp_path / "home"
    subprocess.run(["cp", "--archive", "--reflink=auto", editor.store, home / "store"], check=True)
    subprocess.run(["chown", "--recursive", f"{UID}:{UID}", home / "store"], check=True)
    own = ("env", *(word for name in ("OBELISK_RUN", "OBELISK_DATA", "XDG_CONFIG_HOME", "XDG_DATA_HOME") for word in ("-u", name)))
    person = replace(person, prefix=(*person.prefix, *own))
    entry, program = home / ".local/share/applications/obelisk-app-editor.desktop", home / ".local/bin/editor"
    with wayland(place) as desktop:
        with session(desktop):
            person.run("app", "install", "editor@1")  # the copied store knows another directory
            assert subprocess.run(["desktop-file-validate", entry], capture_output=True, text=True, check=True).stdout == ""
            lines = entry.read_text().splitlines()
            assert 'Exec="/mnt/home/.local/bin/editor"' in lines
            assert {"Name=L3afpad", "Icon=/mnt/home/.local/state/obelisk/installed/editor/icon.png"} <= {*lines}
            started = subprocess.Popen(
                [*person.prefix, "/mnt/home/.local/bin/editor", "/etc/os-release"],
                text=True,
                start_new_session=True,
                stdout=subprocess.PIPE,
            )
        with shown(started, desktop):
            pass
        person.run("app", "remove", "editor")
    assert (entry.exists(), program.exists()) == (False, False)
    shutil.rmtree(place / "session")
