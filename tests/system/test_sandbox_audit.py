"""What an application is refused is told with its remedy, and the remedy is one: with the grant, it works."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sandboxes import PRIVATE, application, places, told
from tool import Tool

SETUP = "mount -t tmpfs tmpfs /mnt; mkdir -m 777 /mnt/desk; echo words >/mnt/desk/file; chmod 666 /mnt/desk/file; exec"
TESTS = """
packages = ["strace"]
[app]
command = ["/bin/sh", "-c"]
[limits]
processes = 40
[tests.reads]
command = "cat /mnt/desk/file"
expect = "words"
[tests.traces]
command = "strace -o /tmp/trace -e trace=getpid true && cat /tmp/trace"
[tests.looks-around]
command = "cat /mnt/desk/other /etc/passwd; unshare -U true; true"
"""


@pytest.fixture(scope="module")
def worker(applications: Tool) -> Iterator[Tool]:
    """An application whose tests need two grants, on a machine with something to read."""
    with places() as place:
        told(place, "none", "")
        app = application(applications, "worker", TESTS)
        yield replace(app, prefix=(*PRIVATE, "sh", "-euc", f'{SETUP} "$@"', "sh"))


def audit(worker: Tool, command: str, *, status: int) -> dict[str, dict[str, object]]:
    """What was refused, by what it was."""
    said = worker.run("app", "audit", "--json", str(worker.spec), "--", command, status=status)
    result = json.loads(next(line for line in said.splitlines() if '"event": "result"' in line))
    assert result["status"] == status
    return {each["what"]: each for each in result["refused"]}


def test_each_refusal_names_its_layer_how_often_and_the_grant_for_it(worker: Tool) -> None:
    commands = (
        "cat /mnt/desk/file",
        "cat /mnt/desk/file",
        "echo x >>/mnt/desk/file",
        "touch /usr/x",
        "cp /bin/true /tmp/t; /tmp/t",
        "strace true",
        "unshare -U true",
        "perl -e 'socket(S, 2, 1, 0)'",
        "perl -e 'syscall(169)'",
        "exit 3",
    )
    found = audit(worker, "; ".join(f"({command}) 2>/dev/null" for command in commands[:-1]) + "; exit 3", status=3)
    expected = {
        "/mnt/desk/file, which it does not see": ("files", 'read = ["/mnt/desk/file"]'),
        "changing /usr/x": ("files", None),
        "running /tmp/t, which it can write": ("files", "write_execute = true"),
        "the system call ptrace": ("seccomp", 'syscalls = ["debug"]'),
        "the system call unshare": ("seccomp", "namespaces = true"),
        "a socket of the internet's": ("seccomp", None),
        "the system call reboot": ("seccomp", None),
    }
    assert {what: (each["layer"], each["grant"]) for what, each in found.items()} == expected
    assert found["/mnt/desk/file, which it does not see"]["count"] == 3


def test_each_refusal_tells_when_it_was_first_and_last(worker: Tool) -> None:
    began = datetime.now(UTC)
    commands = ("cat /mnt/desk/file", "sleep 0.5", "strace true", "cat /mnt/desk/file")
    found = audit(worker, "; ".join(f"({command}) 2>/dev/null" for command in commands) + "; exit 1", status=1)
    times = {what: [datetime.fromisoformat(str(each[when])) for when in ("first", "last")] for what, each in found.items()}
    read, traced = times["/mnt/desk/file, which it does not see"], times["the system call ptrace"]
    assert began - timedelta(milliseconds=1) < read[0] < traced[0] <= traced[1] < read[1] < datetime.now(UTC)
    assert read[1] - read[0] > timedelta(seconds=0.5)
    text = worker.run("app", "audit", str(worker.spec), "--", "strace true 2>/dev/null; exit 1", status=1)
    assert re.search(r"it ended with status 1 after \d+\.\d\d s; refused were\n +\d+  seccomp  after \d+\.\d\d .*ptrace: allowed by", text)


def test_a_program_that_is_refused_nothing_is_told_so_and_runs_as_ever(worker: Tool) -> None:
    assert audit(worker, "echo fine >/tmp/x; cat /tmp/x /etc/passwd /proc/self/status | wc -c", status=0) == {}


def test_what_a_grant_allows_is_no_longer_refused(worker: Tool) -> None:
    with places() as place:
        told(place, "worker", '[override.grants]\nread = ["/mnt/desk"]\nsyscalls = ["debug"]\n')
        found = audit(worker, "cat /mnt/desk/file; strace true 2>/dev/null; (echo x >/mnt/desk/file) 2>/dev/null; exit 4", status=4)
        assert {what: each["grant"] for what, each in found.items()} == {"changing /mnt/desk/file": 'write = ["/mnt/desk"]'}


def test_learning_finds_the_fewest_grants_and_shows_that_each_is_needed(worker: Tool) -> None:
    text = worker.run("app", "learn", str(worker.spec))
    assert text.splitlines()[:3] == ["[grants]", 'read = ["/mnt/desk/file"]', 'syscalls = ["debug"]']
    assert "# without" in text
    result = json.loads(worker.run("app", "learn", str(worker.spec), "--json").splitlines()[-1])
    assert result["policy"]["grants"] == {"read": ["/mnt/desk/file"], "syscalls": ["debug"]}
    assert result["policy"]["limits"]["processes"] == 40
    assert [each["without"] for each in result["needed"]] == ["the test reads fails", "the test traces fails"]


def test_learning_tries_what_it_is_told_after_the_tests_of_the_spec_or_alone(applications: Tool, worker: Tool) -> None:
    words = ("--", "echo x >>/mnt/desk/file")
    result = json.loads(worker.run("app", "learn", "--json", str(worker.spec), *words).splitlines()[-1])
    assert result["policy"]["grants"] == {"write": ["/mnt/desk/file"], "syscalls": ["debug"]}
    assert {each["without"] for each in result["needed"]} == {f"the test -- '{words[1]}' fails", "the test traces fails"}
    bare = replace(application(applications, "bare", '[app]\ncommand = ["/bin/sh", "-c"]\n'), prefix=worker.prefix)
    text = bare.run("app", "learn", str(bare.spec), *words)
    assert text.splitlines()[:2] == ["[grants]", 'write = ["/mnt/desk/file"]']
    assert f"the test -- '{words[1]}' fails" in text
    assert bare.refused("app", "learn", "--json", str(bare.spec), "--", "exit 1", status=5)["code"] == "learn-failed"


def test_what_cannot_be_learnt_is_an_error(applications: Tool, worker: Tool) -> None:
    untested = application(applications, "untested", '[app]\ncommand = ["/bin/true"]\n')
    assert untested.refused("app", "learn", str(untested.spec), status=2)["code"] == "learn-untested"
    hopeless = application(applications, "hopeless", '[app]\ncommand = ["/bin/true"]\n[tests.no]\ncommand = "false"\n')
    assert hopeless.refused("app", "learn", str(hopeless.spec), status=5)["code"] == "learn-failed"
    assert worker.spec != untested.spec
