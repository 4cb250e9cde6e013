"""The commands of a publisher, as a person types them, over a store with tiny images."""

import http.client
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import repository_samples as samples

from obelisk.cli.main import main
from obelisk.store import Store


class Desk:
    """A publisher's machine: store, keys, stick and repository."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.place = place
        self.capsys = capsys
        for name, value in {"STORE": "store", "KEYS": "keys", "REPO": "repo"}.items():
            monkeypatch.setenv(f"OBELISK_{name}", str(place / value))
        monkeypatch.setenv("OBELISK_BY", "tess")
        monkeypatch.setattr("os.fsync", lambda _descriptor: None)
        for module in ("publisher", "releasing"):
            monkeypatch.setattr(f"obelisk.cli.{module}.delivery", samples.Tiny)
        (place / "stick").mkdir()
        (place / "keys").mkdir()
        (place / "keys" / "attestation.pub").write_text(samples.tester(1))
        self.stick = ("--root", str(place / "stick"))

    def built(self, version: str, *, proven: bool = True, name: str = "shop") -> str:
        """An image in the store, by the name that the store knows it by."""
        image = samples.image(self.place, version, name=name)
        with Store.open(self.place / "store") as store:
            parts = {part.file: image.directory / part.file for part in image.manifest.parts}
            store.add_image(image.manifest, parts, {})
            if proven:
                store.add_proof(image.id, samples.proof_of(image, self.place / "tester"))
        return image.id

    def run(self, *words: str, status: int = 0) -> str:
        """What a command says; on standard error, if it is refused."""
        self.capsys.readouterr()
        assert main(words) == status
        said = self.capsys.readouterr()
        return said.out if status in {0, 1, 3} and said.out else said.err

    def warned(self, *words: str) -> str:
        """What a command says on standard error."""
        self.capsys.readouterr()
        main(words)
        return self.capsys.readouterr().err

    def asked(self, *words: str) -> dict[str, object]:
        """What a command answers a program."""
        answer: dict[str, object] = json.loads(self.run(*words, "--json").splitlines()[-1])
        return answer


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)


def test_from_keys_to_a_retired_release(desk: Desk) -> None:
    said = desk.run("keys", "init", *desk.stick, "--root-keys", "3", "--threshold", "2")
    assert said.count("made ") == 6
    for version in ("1", "2", "3"):
        desk.run("release", desk.built(version), "--to", str(desk.place / "repo"), "--channel", "testing", *desk.stick)
    assert "2 is in stable" in desk.run("promote", "2", "--from", "testing", "--to", "stable", "--why", "it held")
    said = desk.run("withdraw", "3", "--why", "loses mail", "--hosts", "back")
    assert "withdrawn from testing, which now has 2" in said
    listed = desk.run("repo", "list")
    assert "withdrawn: loses mail" in listed
    assert "tess from testing  current; it held" in listed
    assert "sound" in desk.run("repo", "verify")
    assert "shop 2" in desk.run("repo", "stats")
    planned = desk.asked("retire", "--keep", "1", "--dry-run")
    done = desk.asked("retire", "--keep", "1", "--now")
    assert planned["gone"] == done["gone"]
    assert set(done["gone"]) == {"shop 1", "shop 3"}  # type: ignore[call-overload] # a list of strings
    assert isinstance(planned["size"], int)
    assert isinstance(done["size"], int)
    assert 0 < planned["size"] <= done["size"]
    assert desk.asked("repo", "verify")["findings"] == []
    host = samples.client(desk.place)
    host.refresh()
    assert [each.version for each in host.channel("stable").listings] == ["2"]


def test_signing_anew_and_new_keys(desk: Desk) -> None:
    desk.run("keys", "init", *desk.stick)
    desk.run("release", desk.built("1"), "--channel", "stable", *desk.stick, "--expire", "timestamp=5d")
    desk.run("repo", "refresh")
    desk.run("repo", "refresh", "--all", "--expire", "targets=30d")
    for role in ("targets", "snapshot", "timestamp", "root"):
        said = desk.run("keys", "rotate", role, *desk.stick)
        assert "counts no more here" in said
    (desk.place / "other.pub").write_text(samples.tester(2))
    two = desk.asked("keys", "rotate", "tester", "--add", str(desk.place / "other.pub"))["keys"]
    assert isinstance(two, list)
    assert len(two) == 2
    said = desk.run("keys", "rotate", "tester", "--add", str(desk.place / "other.pub"), "--drop", two[0], status=5)
    assert "nothing proves shop 1 in stable" in said
    shown = desk.run("keys", "show", str(desk.place / "repo"))
    assert shown.count("(here)") == 3
    host = samples.client(desk.place)
    host.refresh()
    assert host.channel("stable").current is not None


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["release", "IMAGE", "--channel", "stable"], 5, "keys-missing"),
        (["release", "UNPROVEN", "--channel", "stable", "--root", "STICK"], 3, "release-unproven"),
        (["release", "IMAGE", "--channel", "Stable", "--root", "STICK"], 2, "channel-name"),
        (["release", "IMAGE", "--channel", "stable", "--root", "NOWHERE"], 2, "keys-root"),
        (["release", "IMAGE", "--channel", "stable", "--root", "STICK", "--expire", "root"], 2, "time"),
        (["release", "IMAGE", "--channel", "stable", "--root", "STICK", "--expire", "tester=3d"], 2, "expire"),
        (["promote", "1", "--from", "testing", "--to", "stable"], 5, "repository-missing"),
        (["withdraw", "1", "--why", "it is bad"], 5, "repository-missing"),
        (["retire", "--keep", "1", "--older-than", "soon"], 2, "time"),
        (["repo", "verify"], 2, "repository-missing"),
        (["repo", "stats"], 2, "repository-missing"),
        (["keys", "rotate", "targets"], 5, "repository-missing"),
        (["keys", "trust", "NOWHERE"], 2, "repository-missing"),
        (["keys", "init", "--threshold", "2"], 2, "keys-threshold"),
        (["diff", "NOWHERE@1", "NOWHERE@2"], 2, "image-unknown"),
    ],
)
def test_what_is_refused_says_why(desk: Desk, words: list[str], status: int, code: str) -> None:
    if words[0] == "release":
        desk.run("keys", "init", *desk.stick)
    names = {
        "IMAGE": desk.built("1"),
        "UNPROVEN": desk.built("2", proven=False),
        "STICK": str(desk.place / "stick"),
        "NOWHERE": str(desk.place / "nowhere"),
    }
    said = desk.run(*(names.get(word, word) for word in words), "--json", status=status)
    error = json.loads(said.splitlines()[-1])["error"]
    assert error["code"] == code
    assert error["hint"]


def test_every_command_that_opens_a_repository_warns_before_it_expires(desk: Desk) -> None:
    desk.run("keys", "init", *desk.stick)
    desk.run("release", desk.built("1"), "--channel", "stable", *desk.stick, "--expire", "timestamp=1s", "--expire", "targets=100d")
    time.sleep(1.1)
    for words in ("repo list", "repo verify", "repo stats", "keys show REPO", "diff REPO@1 REPO@stable", "retire --keep 1", "repo refresh"):
        said = desk.warned(*words.replace("REPO", str(desk.place / "repo")).split())
        assert "timestamp expired" in said, words
        assert "targets expire" not in said


def test_damage_is_found_and_named(desk: Desk) -> None:
    desk.run("keys", "init", *desk.stick)
    desk.run("release", desk.built("1"), "--channel", "stable", *desk.stick)
    files = sorted(path for path in (desk.place / "repo/files").rglob("*") if path.is_file())
    for number, path in enumerate(files):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert path.name in desk.run("repo", "verify", status=3) or "damaged" in desk.run("repo", "verify", status=3), number
        path.unlink()
        assert "missing" in desk.run("repo", "verify", status=3)
        path.write_bytes(data)
    (desk.place / "repo/files/ab").mkdir(exist_ok=True)
    (desk.place / "repo/files/ab" / ("ab" * 32)).write_bytes(b"left behind")
    (desk.place / "repo/files/ab/.x.tmp").write_bytes(b"half")
    assert desk.run("repo", "verify").count("superfluous") == 2
    for path in sorted((desk.place / "repo/targets").rglob("*.json")):
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        assert "damaged" in desk.run("repo", "verify", status=3)
        path.write_bytes(data)


def test_the_keys_of_another_machine_sign_once_they_are_told_to(desk: Desk) -> None:
    desk.run("keys", "init", *desk.stick)
    desk.run("release", desk.built("1"), "--channel", "stable", *desk.stick)
    (desk.place / "keys/release/known.json").rename(desk.place / "known.json")
    assert "keys trust" in desk.run("repo", "refresh", status=3)
    desk.run("keys", "trust", str(desk.place / "repo"))
    desk.run("repo", "refresh")


def test_a_repository_can_be_tried_out_over_http(desk: Desk) -> None:
    desk.run("keys", "init", *desk.stick)
    desk.run("release", desk.built("1"), "--channel", "stable", *desk.stick)
    words = [sys.executable, "-m", "obelisk", "repo", "serve", str(desk.place / "repo"), "--port", "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serving:
        try:
            assert serving.stdout is not None
            url = json.loads(serving.stdout.readline())["url"]
            connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
            for name, cached in (("timestamp.json", "no-cache"), ("1.root.json", "public, max-age=31536000, immutable")):
                connection.request("GET", f"/metadata/{name}")
                answer = connection.getresponse()
                assert answer.read() == (desk.place / "repo/metadata" / name).read_bytes()
                assert answer.headers["Cache-Control"] == cached
            connection.close()
        finally:
            serving.send_signal(signal.SIGINT)
            assert serving.wait(10) == 0


def test_a_tester_key_of_the_wrong_kind_is_refused(desk: Desk) -> None:
    (desk.place / "keys" / "attestation.pub").write_text("no key")
    desk.run("keys", "init", *desk.stick)
    assert "no public key" in desk.run("release", desk.built("1"), "--channel", "stable", *desk.stick, status=2)


def test_two_releases_are_told_apart_out_of_the_repository(desk: Desk) -> None:
    desk.run("keys", "init", *desk.stick)
    for version in ("1", "2"):
        desk.run("release", desk.built(version), "--channel", "stable", *desk.stick)
    repo = desk.place / "repo"
    said = desk.run("diff", f"{repo}@1", f"{repo}@stable", status=1)
    assert "version: 1 -> 2" in said
    assert "the images are the same" in desk.run("diff", f"{repo}@2", f"{repo}@stable")
    assert "0 releases of 7" in desk.run("diff", f"{repo}@7", f"{repo}@stable", status=2)


def test_a_repository_begins_before_the_first_image_that_follows_it(desk: Desk) -> None:
    place = str(desk.place / "repo")
    assert "obelisk keys init" in desk.run("repo", "init", place, status=5)
    desk.run("keys", "init", *desk.stick)
    root = desk.asked("repo", "init", place, *desk.stick)["root"]
    assert "nothing is released" in desk.run("repo", "list", place)
    before = Path(str(root)).read_bytes()
    assert "is a repository already" in desk.run("repo", "init", place, *desk.stick, status=2)
    desk.run("release", desk.built("1"), "--channel", "stable")
    assert Path(str(root)).read_bytes() == before
    assert "the repository is sound" in desk.run("repo", "verify", place)
