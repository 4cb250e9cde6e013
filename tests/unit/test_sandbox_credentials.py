"""Secrets of applications: whose file is taken, and which are refused; and the copy that a start makes."""

import os
import subprocess
from pathlib import Path

import pytest

from obelisk.errors import StateError
from obelisk.sandbox.ready import Directories, _checked
from obelisk.system import confine, program
from obelisk.system.confine import Owner


def directories(tmp_path: Path, **more: str) -> Directories:
    return Directories.of({"HOME": str(tmp_path), **more}, root=False)


def secret(file: Path, content: str = "secret", mode: int = 0o600) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)
    return file


def test_a_secret_is_the_users_the_machines_or_the_services(tmp_path: Path) -> None:
    mine = directories(tmp_path)
    assert mine.credential("calc", "key") == tmp_path / ".config/obelisk/credentials/calc/key"
    assert Directories.of({}, root=True).credential("calc", "key") == Path("/etc/obelisk/credentials/calc/key")
    given = secret(tmp_path / "given/key", mode=0o444)
    service = directories(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "given"))
    assert service.credential("calc", "key") == given
    assert service.credential("calc", "other") == tmp_path / ".config/obelisk/credentials/calc/other"
    assert _checked(given, "key", service) == given


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o610])
def test_a_secret_that_others_may_use_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    file = secret(tmp_path / "key", mode=mode)
    with pytest.raises(StateError) as caught:
        _checked(file, "key", directories(tmp_path))
    assert (caught.value.code, str(file) in caught.value.hint) == ("credential-open", True)
    file.chmod(0o600)
    assert _checked(file, "key", directories(tmp_path)) == file


def test_a_secret_that_is_missing_or_too_large_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="credential key") as caught:
        _checked(tmp_path / "key", "key", directories(tmp_path))
    assert caught.value.code == "credential-missing"
    with pytest.raises(StateError, match="larger") as caught:
        _checked(secret(tmp_path / "key", "x" * (1 + (1 << 20))), "key", directories(tmp_path))
    assert caught.value.code == "credential-size"


def copier(source: Path, place: Path, owner: Owner) -> subprocess.CompletedProcess[str]:
    start = source.parent / "start"
    start.write_bytes(
        program.assemble(confine.copied(str(source), str(place), owner, "the credential key"), program.Execute("/bin/true", ("true",)))
    )
    start.chmod(0o755)
    return subprocess.run([start], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("size", [0, 1, 4097, 1 << 20])
def test_a_start_copies_all_of_it_for_its_user_alone(tmp_path: Path, size: int) -> None:
    source = secret(tmp_path / "key", "x" * size)
    assert copier(source, tmp_path / "copy", confine.myself()).returncode == 0
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o400
    assert (tmp_path / "copy").stat().st_uid == os.geteuid()


def test_a_start_without_its_secret_ends_and_names_it(tmp_path: Path) -> None:
    done = copier(tmp_path / "key", tmp_path / "copy", confine.myself())
    assert (done.returncode, done.stderr) == (program.FAILED, "obelisk: cannot open the credential key\n")
    assert not (tmp_path / "copy").exists()
