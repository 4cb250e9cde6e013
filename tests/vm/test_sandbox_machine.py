"""What takes a machine with systemd, control groups and device-mapper: limits of all processes together, and exported units that start."""

import ast
import errno
import json
import subprocess
from typing import Any

import pytest
from booted import PROBES, Site
from sandboxes import LOOKING, application
from tool import ROOT, Tool

from obelisk.model.application import Application
from obelisk.model.policy import Limits, Read, policy

LIMIT = 96 << 20
# Each of these takes 16 MiB (tests/probes/machine.py), all together more than three times the limit.
PROCESSES = 20
SCRATCH, DATA = "/var/cache/app", "/var/lib/app"
SPEC = f'packages = ["python3"]\ntree = "tree"\n[app]\ncommand = ["/usr/bin/python3"]\nscratch = ["{SCRATCH}"]\ndata = ["{DATA}"]\n'
OWN = ("/tmp", "/home/app", "/dev/shm", SCRATCH, DATA)  # noqa: S108 - inside

# What a unit leaves open that a sandbox of ours does not: docs/sandbox.md says why.
OPEN_IN_A_UNIT = {
    "fill /tmp",
    "fill /var/tmp",
    "find a shared memory segment of the host",
    "find a message queue of the host",
    "find a POSIX message queue of the host",
    "see the host's name",
    "write to its own code by /proc/self/mem",
}


@pytest.fixture(scope="module")
def found(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one machine says of itself."""
    home = tmp_path_factory.mktemp("groups")
    tool = workshop.copied_to(home)
    inner = application(tool, "app", SPEC, {"tree/usr/local/lib/probe.py": (ROOT / "tests/probes/probe.py").read_text()})
    (home / "site").mkdir()
    site = Site.of(home / "site", inner)
    command = ("/usr/bin/python3", "-I", "-c", LOOKING, "a word", *OWN)
    held = policy([Read("/mnt/read")], Limits(processes=30, open_files=200, total_memory_bytes=LIMIT))
    looking = site.add_unit("looking", Application(command, (("MODE", "x"),), "/srv", (SCRATCH,), (DATA,)), held)
    probing = site.add_unit("exported", Application(("/usr/bin/python3", "-I", "/usr/local/lib/probe.py")), policy())
    runs = [
        {"name": "exported", "argv": ["python3", f"{PROBES}/unit.py", probing]},
        {"name": "unconfined", "argv": ["unshare", "--mount", "python3", "-I", f"{PROBES}/probe.py"]},
    ]
    with tool.changed("obelisk.toml", "# [users.admin]", "[users.jo]\nuid = 1000\n# [users.admin]"):
        tool.build()
        said = site.try_in(tool, ("groups", str(LIMIT), str(PROCESSES)), ("unit", looking), ("probes", json.dumps(runs)))
    subprocess.run(["rm", "-rf", home], check=True)
    return {**ast.literal_eval(said[0]), "unit": said[1], "probes": json.loads(said[2])}


def test_without_a_group_they_take_what_they_want(found: dict[str, Any]) -> None:
    assert ast.literal_eval(found["free"])[1] == PROCESSES


@pytest.mark.parametrize(
    ("kind", "way", "group"),
    [
        ("root", "the system's manager", "/obelisk.slice/obelisk-my\\x2dapp.slice/"),
        ("user", "the user's manager", "/user.slice/user-1000.slice/user@1000.service/obelisk.slice/obelisk-my\\x2dapp.slice/"),
        ("alone", "root", "/obelisk/my-app"),
    ],
)
def test_many_processes_together_take_no_more_than_is_granted(found: dict[str, Any], kind: str, way: str, group: str) -> None:
    by, fault, (entered, well, peak, share) = found[kind]
    assert (by, fault) == (way, "")
    assert entered.startswith(group)
    assert 0 < well < PROCESSES
    assert 0 < peak <= LIMIT
    assert share < 0.75


def test_an_exported_unit_starts_and_is_confined(found: dict[str, Any]) -> None:
    assert found["unit"].startswith("{"), found["unit"]
    told = ast.literal_eval(found["unit"])
    user, group = told.pop("user")
    assert (user, group, 61184 <= user <= 65519) == (user, user, True)
    # Which of its two ways to refuse writable executable memory answers first depends on systemd's version.
    assert told["calls"].pop() in {errno.EPERM, errno.EACCES}
    assert told.pop("name")[1:] == ("/srv", "x", "a word")
    assert told == {
        "rights": {"0" * 16},
        "new": ("1", "2"),
        "root": {errno.EROFS},
        "own": {0},
        "runs": {errno.EACCES},
        "read": "seen",
        "inet": errno.EAFNOSUPPORT,
        "calls": [errno.EPERM, errno.EPERM, errno.ENOTTY],
        "limits": [0, 30, 200],
        "processes": 1,
        "threads": True,
    }


def test_an_empty_group_goes(found: dict[str, Any]) -> None:
    assert found["left"] is False


def allowed(results: dict[str, list[str]]) -> set[str]:
    """The probes that got through."""
    assert "error" not in results, results
    return {name for name, (_group, outcome, _detail) in results.items() if outcome == "allowed"}


def test_probes_get_no_further_in_an_exported_unit_than_it_says(found: dict[str, Any]) -> None:
    assert len(found["probes"]["exported"]) >= 200
    assert len(allowed(found["probes"]["unconfined"])) >= 130
    assert allowed(found["probes"]["exported"]) == OPEN_IN_A_UNIT
