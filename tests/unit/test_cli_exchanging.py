"""`obelisk app export` and `app import`: a file there, the tables of a spec back, and in words what went missing."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import manifest_of, sha256

from obelisk.cli.main import main
from obelisk.model.application import Application
from obelisk.model.image import Part, PartKind
from obelisk.model.policy import Connect, Read, policy
from obelisk.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the image of an application in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    application = Application(("/usr/bin/calc",), policy=policy([Read("~/Documents"), Connect("192.0.2.0/24", 443)])).to_bytes()
    files = {
        PartKind.ROOT: ("root.erofs", b"root"),
        PartKind.VERITY: ("root.verity", b"tree"),
        PartKind.APPLICATION: ("application.json", application),
    }
    parts = tuple(Part(kind, name, len(content), sha256(content)) for kind, (name, content) in files.items())
    manifest = replace(manifest_of(b"root", name="calc"), role="app", parts=parts)
    place = tmp_path / "store"
    opened = Store.open(place)
    with opened.workspace() as work:
        for name, content in files.values():
            (work / name).write_bytes(content)
        opened.add_image(manifest, {kind: work / name for kind, (name, _content) in files.items()})
    return place


@pytest.mark.parametrize("form", ["oci", "flatpak"])
def test_what_is_exported_is_imported_again(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    file = tmp_path / "exported"
    assert main(["app", "export", "calc", "--store", str(store), "--format", form, "--output", str(file)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{file}\n"
    assert "not in it: opens connections to 192.0.2.0/24, port 443" in told.err
    assert main(["app", "import", str(file)]) == 0
    told = capsys.readouterr()
    raw = tomllib.loads(told.out)
    assert raw["app"] == {"command": ["/usr/bin/calc"]}
    assert raw["grants"] == {"read": ["~/Documents"]}
    assert raw["limits"] == {"memory": "2G", "processes": 256, "open_files": 4096, "scratch": "64M"}
    assert ("· left out:" in told.err, "# Left out:" in told.out) == (form == "flatpak", form == "flatpak")


def test_an_operator_narrows_what_is_exported(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config/obelisk/apps/calc.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[allow.grants]\n")
    assert main(["app", "export", "calc", "--store", str(store), "--format", "systemd"]) == 0
    assert "BindReadOnlyPaths" not in capsys.readouterr().out
    file.unlink()
    assert main(["app", "export", "calc", "--store", str(store), "--format", "systemd", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "Documents:/home/app/Documents:rbind" in told["content"]
    assert f"RootImage={store}/images/" in told["content"]


def test_programs_are_told_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metadata"
    file.write_text("[Application]\ncommand=/usr/bin/x\n[Context]\nsockets=pulseaudio;\n")
    assert main(["app", "import", str(file), "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert told.err == ""
    assert result["application"]["command"] == ["/usr/bin/x"]
    assert "the socket pulseaudio" in result["left_out"]
    assert result["wider"] == []


def test_what_cannot_be_read_or_written_is_an_error(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "import", str(tmp_path / "missing")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "odd").write_text("{}")
    assert main(["app", "import", str(tmp_path / "odd")]) == 2
    assert "--format" in capsys.readouterr().err
    words = ["app", "export", "calc", "--store", str(store), "--format", "oci", "--output", str(tmp_path / "no/such/place")]
    assert main(words) == 5
    assert "cannot be written" in capsys.readouterr().err
