"""Secrets in a sandbox: for the application alone to read, in memory, and new at each start."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ordinary import UID
from sandboxes import PRIVATE, ROOT_USER, Bare, places

from obelisk.model.application import Application
from obelisk.model.policy import Policy, Terminal, policy
from obelisk.sandbox.plan import CREDENTIAL_BYTES
from obelisk.system.confine import Owner

APP = Application(("/usr/bin/sh", "-c"), credentials=("password", "token"))


@dataclass(frozen=True)
class Case(Bare):
    """A shell with secrets."""

    @property
    def secrets(self) -> tuple[tuple[str, Path], ...]:
        """Their names and files."""
        return tuple((name, self.place / "secrets" / name) for name in APP.credentials)

    def say(self, command: str, *, held: Policy | None = None) -> subprocess.CompletedProcess[str]:
        """What a command says in the sandbox."""
        words = [*PRIVATE, *self.start(APP, held or Policy(), credentials=self.secrets), command]
        return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(params=[ROOT_USER, Owner(UID, UID)], ids=["root", "ordinary user"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with places() as place:
        found = Case(place, request.param)
        (place / "secrets").mkdir(mode=0o700)
        os.chown(place / "secrets", found.owner.uid, found.owner.gid)
        for name, file in found.secrets:
            file.write_text(f"the {name}")
            file.chmod(0o600)
            os.chown(file, found.owner.uid, found.owner.gid)
        yield found


def test_only_the_application_reads_them_and_nothing_changes_them(case: Case) -> None:
    told = case.say('cd "$CREDENTIALS_DIRECTORY"; pwd; ls -ln | cut -c 1-10; cat password token; stat -f -c %T .; stat -c "%a %u" .')
    assert told.stdout == "/run/credentials\ntotal 8\n-r--------\n-r--------\nthe passwordthe tokentmpfs\n500 1000\n", told.stderr
    changed = case.say("cd /run/credentials; chmod 600 token; echo x >token; echo x >other; rm -f password; mv ../credentials ../x; ls .")
    assert changed.stdout == "password\ntoken\n"
    assert case.say("cat /run/credentials/token").stdout == "the token"


def test_they_are_in_no_environment_and_no_file_of_the_plan(case: Case) -> None:
    assert "the token" not in case.say("cat /proc/*/environ /proc/*/cmdline").stdout
    assert case.say("echo there").stdout == "there\n"
    for file in (case.place / "plan").iterdir():
        assert not file.is_file() or b"the token" not in file.read_bytes()
    assert not any((case.place / "plan/stage").iterdir())


def test_each_start_reads_them_anew_and_none_without_them(case: Case) -> None:
    (case.place / "secrets/token").write_text("another")
    assert case.say("cat /run/credentials/token").stdout == "another"
    (case.place / "secrets/token").unlink()
    told = case.say("echo started")
    assert (told.returncode, told.stdout) == (126, "")
    assert "cannot open the credential token" in told.stderr


def test_one_that_has_grown_too_large_is_not_cut(case: Case) -> None:
    for _name, file in case.secrets:
        file.write_bytes(b"x" * CREDENTIAL_BYTES)
    assert case.say("cat /run/credentials/* | wc -c").stdout == f"{2 * CREDENTIAL_BYTES}\n"
    case.secrets[1][1].write_bytes(b"x" * (CREDENTIAL_BYTES + 1))
    told = case.say("echo started")
    assert (told.returncode, told.stdout) == (126, "")
    assert "cannot copy the credential token" in told.stderr


def test_with_a_terminal_they_are_there_too(case: Case) -> None:
    assert case.say("cat /run/credentials/token", held=policy([Terminal()])).stdout == "the token"
