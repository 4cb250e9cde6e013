"""`obelisk host upgrade`: what a person or a program is told about a channel, and what is done."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from channel_samples import Scene, make_scene

from obelisk.cli import hosting
from obelisk.cli.main import _parser
from obelisk.errors import InputError, StateError
from obelisk.host import channel, delivery, inspection, rollback, subscription, upgrade
from obelisk.host.channel import ChannelSource
from obelisk.host.inspection import Finding
from obelisk.host.subscription import Subscription
from obelisk.model.host import Entry
from obelisk.model.release import Hosts


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_disks() -> Iterator[None]:
    """Whether it is durable is not what is asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A scene whose repository is a directory, and whose host has no disk to be written."""
    scene = make_scene(tmp_path)
    repository = tmp_path / "repository"

    def require(mirrors: Sequence[str] = ()) -> Subscription:
        for name, data in scene.publisher.authority.files.items():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_bytes(data)
        return Subscription("stable", tuple(mirrors) or (str(repository),), scene.publisher.authority.first_root)

    def install(_here: object, source: ChannelSource, _sink: object, wish: upgrade.Wish) -> upgrade.Outcome:
        assert source.incoming.exists()
        return upgrade.Outcome(Entry("shop", source.manifest.version, wish.tries), "b", 100 << 20, 5 << 20)

    monkeypatch.setattr(subscription, "require", require)
    monkeypatch.setattr(delivery, "ways", scene.make_ways)
    monkeypatch.setattr(upgrade, "upgrade", install)
    monkeypatch.setattr("obelisk.cli.hosting.sealed.read", lambda: SimpleNamespace(tries=3))
    monkeypatch.setattr(rollback, "rollback", lambda *_given, **_named: SimpleNamespace(entry=Entry("shop", "0")))
    return scene


def run(asked: Scene, *words: str) -> int:
    return hosting._upgrade(asked.here, _parser().parse_args(["host", "upgrade", *words]))


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    last: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


@pytest.mark.parametrize("words", [("stable",), ()], ids=["named", "the one that the image follows"])
def test_a_channel_s_release_is_installed(asked: Scene, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    image = asked.publisher.release("2")
    assert run(asked, *words, "--json") == 0
    said = result(capsys)
    assert (said["image"], said["id"], said["changed"]) == ("shop_2", image.id, True)
    assert list(asked.here.incoming.iterdir()) == []


def test_check_says_what_there_is_and_does_nothing(asked: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(asked, "--check") == 0
    assert "would stay: 1 is the newest in stable" in capsys.readouterr().out
    asked.publisher.release("2")
    assert run(asked, "stable", "--check", "--json") == 0
    said = result(capsys)
    assert (said["newest"], said["decision"], said["version"]) == ("2", "take", "2")
    asked.publisher.withdraw("2")
    asked.publisher.withdraw("1", hosts=Hosts.BACK)
    assert run(asked, "stable", "--check", "--json") == 0
    said = result(capsys)
    assert (said["newest"], said["decision"], said["version"]) == (None, "back", "0")
    assert not asked.here.incoming.exists()


def test_what_cannot_be_taken_is_an_error_and_to_check_it_is_none(asked: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    asked.publisher.release("3", minimum="2")
    with pytest.raises(StateError, match="3 can be taken from 2 on") as caught:
        run(asked)
    assert caught.value.code == "minimum-version"
    assert run(asked, "--check", "--json") == 0
    assert result(capsys)["decision"] == "refuse"


def test_a_withdrawn_release_is_left(asked: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    asked.publisher.withdraw("1")
    assert run(asked) == 0
    assert "1 was withdrawn: it eats data; it stays until there is a newer one" in capsys.readouterr().out
    asked.publisher.withdraw("1", hosts=Hosts.BACK)
    assert run(asked) == 0
    assert "1 was withdrawn: it eats data; going back to shop_0: the next boot starts it" in capsys.readouterr().out


def test_retry_names_what_the_channel_has(asked: Scene) -> None:
    asked.publisher.release("2")
    with pytest.raises(InputError, match="--retry names 1, stable has 2"):
        run(asked, "stable", "--retry", "1")
    assert run(asked, "stable", "--retry", "2") == 0


def test_other_mirrors_may_be_named(asked: Scene, tmp_path: Path) -> None:
    asked.publisher.release("2")
    with pytest.raises(InputError, match="neither an address nor a directory"):
        run(asked, "--from", str(tmp_path / "none"))
    subscription.require([])  # writes the repository
    assert run(asked, "--from", str(tmp_path / "repository"), "--from", "http://127.0.0.1:1/", "--check") == 0


def test_what_has_a_slash_or_is_there_is_a_directory(asked: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as caught:
        run(asked, str(tmp_path / "none"))
    assert caught.value.code == "source-missing"
    (tmp_path / "stable").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as there:
        run(asked, "stable")
    assert there.value.code == "source-missing"
    with pytest.raises(InputError, match="are for channels"):
        run(asked, "stable", "--check")


def test_what_is_damaged_is_mended_from_a_channel(
    asked: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("shop_1", "3 of 9 blocks are damaged", 3), Finding("", "a stranger"), Finding("shop_1", "its manifest is missing")]
    looks = iter([tuple(found), (), ()])
    mended: list[str] = []

    def restore(_here: object, wish: channel.Wish, label: str, _sink: object, *, way: object) -> str:
        assert (wish.channel, way) == ("stable", delivery.mending)
        return label

    def repair(_here: object, source: str, _sink: object) -> int:
        mended.append(source)
        return 3 * 4096

    monkeypatch.setattr(inspection, "verify", lambda _here, _sink: next(looks))
    monkeypatch.setattr(inspection, "repair", repair)
    monkeypatch.setattr(channel, "restore", restore)
    words = ["host", "verify", "--repair", "stable", "--json"]
    assert hosting._verify(asked.here, _parser().parse_args(words)) == 0
    assert result(capsys)["written"] == 3 * 4096
    assert mended == ["shop_1"]
    assert hosting._verify(asked.here, _parser().parse_args(words)) == 0  # nothing is damaged: nobody is asked
    assert mended == ["shop_1"]
