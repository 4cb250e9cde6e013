"""What takes a machine with systemd, control groups and device-mapper: limits of all processes together, and exported units that start."""

import ast
import errno
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from format_samples import subject
from sandboxes import LOOKING, application
from tool import ROOT, Tool

from obelisk.model.application import Application
from obelisk.model.policy import Limits, Read, policy
from obelisk.sandbox.formats import write
from obelisk.sandbox.formats.foreign import Root
from obelisk.system import qemu

LIMIT = 96 << 20
# Each of these takes 16 MiB, all together more than three times the limit.
PROCESSES = 20
SCRATCH, DATA = "/var/cache/app", "/var/lib/app"
SPEC = f'packages = ["python3"]\n[app]\ncommand = ["/usr/bin/python3"]\nscratch = ["{SCRATCH}"]\ndata = ["{DATA}"]\n'
OWN = ("/tmp", "/home/app", "/dev/shm", SCRATCH, DATA)  # noqa: S108 - inside

_INSIDE = r'''
import os, subprocess, sys, tarfile, time, urllib.request
from pathlib import Path
with urllib.request.urlopen(sys.argv[1] + "source.tar") as source, tarfile.open(fileobj=source, mode="r|") as archive:
    archive.extractall("/run/source", filter="data")
sys.path.insert(0, "/run/source")
from obelisk.system import cgroups
from obelisk.system.cgroups import Bounds, Here, Way
from obelisk.system.confine import Owner
from obelisk.system.program import Execute, assemble

HOG = """
import os, sys, time
children = []
for _ in range({processes}):
    child = os.fork()
    if child == 0:
        held = bytearray(os.urandom(1 << 20) * 16)
        time.sleep(3)
        os._exit(0)
    children.append(child)
ended = [os.waitpid(child, 0)[1] for child in children]
group = open("/proc/self/cgroup").read().strip().removeprefix("0::")
top = "/sys/fs/cgroup" + (group.rpartition("/")[0] if group.endswith(".scope") else group)
peak = int(open(top + "/memory.peak").read()) if os.path.exists(top + "/memory.peak") else 0
print(repr((group, sum(status == 0 for status in ended), peak)))
"""
TIME = """
import os, time
children = []
began = time.monotonic()
for _ in range(2):
    if (child := os.fork()) == 0:
        while time.monotonic() - began < 4:
            pass
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
used = os.times()
print((used.children_user + used.children_system) / (time.monotonic() - began))
"""
Path("/run/tries").mkdir()
os.chmod("/run/tries", 0o1777)
Path("/run/hog.py").write_text(HOG.format(processes={processes}))
Path("/run/time.py").write_text(TIME)
TOP = Path("/sys/fs/cgroup")

def started(program):
    path = Path(f"/run/tries/start-{os.geteuid()}")
    path.write_bytes(program)
    path.chmod(0o755)
    done = subprocess.run([path], capture_output=True, text=True, check=False)
    return done.stdout or f"{done.returncode}: {done.stderr}"

def by(owner, function):
    """What the function returns to that user."""
    end, other = os.pipe()
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setresgid(owner.gid, owner.gid, owner.gid)
        os.setresuid(owner.uid, owner.uid, owner.uid)
        try:
            said = repr(function())
        except Exception as error:
            said = repr(f"{type(error).__name__}: {error}")
        os.write(other, said.encode())
        os._exit(0)
    os.close(other)
    said = os.fdopen(end).read()
    os.waitpid(child, 0)
    return eval(said)

def tried(here, owner):
    """How many of the hogs ended well, in which group, the most that it took, and the processors' time under a limit of a half."""
    name = "my-app"
    cgroups.prepare(here.way, name, Bounds(100, {limit}), owner)
    def in_group(words):
        if here.way is Way.DIRECT:
            return assemble(cgroups.enter(name), Execute(words[0], words))
        return assemble([], cgroups.scope(here, name, owner, words))
    said = started(in_group(("/usr/bin/python3", "/run/hog.py")))
    try:
        group, well, peak = eval(said)
    except Exception:
        return said
    cgroups.prepare(here.way, name, Bounds(100, None, 50), owner)
    return group, well, peak, float(started(in_group(("/usr/bin/python3", "/run/time.py"))))

subprocess.run(["systemctl", "start", "user@1000.service"], check=False, capture_output=True)
found = {}
found["free"] = started(assemble([], Execute("/usr/bin/python3", ("python3", "/run/hog.py"))))
for kind, owner in (("root", Owner(0, 0)), ("user", Owner(1000, 1000))):
    def all_of_it():
        here = cgroups.here(owner)
        return str(here.way), here.fault, tried(here, owner) if here.way is not Way.NONE else None
    found[kind] = by(owner, all_of_it)
here = cgroups.here(Owner(0, 0), run_directory=Path("/nonexistent"))
found["alone"] = (str(here.way), here.fault, tried(here, Owner(0, 0)))
cgroups.remove(Way.DIRECT, "my-app", Owner(0, 0))
found["left"] = (TOP / "obelisk/my-app").exists()
# The unit: its root is the application's image, checked by the kernel block by block.
for name in ("root.erofs", "root.verity"):
    with urllib.request.urlopen(sys.argv[1] + name) as source, open(f"/var/tmp/{name}", "wb") as target:
        while part := source.read(1 << 20):
            target.write(part)
Path("/var/tmp/granted").mkdir()
Path("/var/tmp/granted/file").write_text("seen")
unit = urllib.request.urlopen(sys.argv[1] + "looking.service").read().decode()
unit = unit.replace("BindReadOnlyPaths=/mnt/read:", "BindReadOnlyPaths=/var/tmp/granted:")
Path("/run/systemd/system/looking.service").write_text(unit)
subprocess.run(["systemctl", "daemon-reload"], check=True)
begun = subprocess.run(["systemctl", "start", "looking.service"], capture_output=True, text=True, check=False)
def said(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
for _ in range(60):
    if said("systemctl", "is-active", "looking.service") != "active":
        break
    time.sleep(1)
subprocess.run(["journalctl", "--sync"], check=True)
told = said("journalctl", "-b", "-u", "looking", "-o", "cat")
found["unit"] = next((line for line in told.splitlines() if line.startswith("{")), begun.stderr + told)
print(repr(found))
'''


@pytest.fixture(scope="module")
def found(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one machine says of itself."""
    home = tmp_path_factory.mktemp("groups")
    tool = workshop.copied_to(home)
    inner = application(tool, "app", SPEC)
    site = home / "site"
    site.mkdir()
    with tool.changed("obelisk.toml", "# [users.admin]", "[users.jo]\nuid = 1000\n# [users.admin]"):
        tool.build()
        subprocess.run(
            ["tar", "--exclude=__pycache__", "--exclude=guest", "-C", ROOT / "src", "-cf", site / "source.tar", "obelisk"], check=True
        )
        command = ("/usr/bin/python3", "-I", "-c", LOOKING, "a word", *OWN)
        app = Application(command, (("MODE", "x"),), "/srv", (SCRATCH,), (DATA,))
        held = policy([Read("/mnt/read")], Limits(processes=30, open_files=200, total_memory_bytes=LIMIT))
        root = Root(Path("/var/tmp/root.erofs"), Path("/var/tmp/root.verity"), inner.manifest()["root_hash"])  # noqa: S108
        unit = write(replace(subject(held, app), root=root), "systemd").text
        (site / "looking.service").write_text(unit)
        image = inner.store / "images" / json.loads(inner.run("show", str(inner.spec), "--json"))["id"]
        for name in ("root.erofs", "root.verity"):
            (site / name).hardlink_to(image / name)
        inside = _INSIDE.replace("{limit}", str(LIMIT)).replace("format(processes={processes})", f"format(processes={PROCESSES})")
        (site / "inside.py").write_text(inside)
        fetch = f"import urllib.request as u; exec(u.urlopen('{qemu.SITE}inside.py').read())"
        said = tool.run("run", str(tool.spec), "--site", str(site), "--command", f'python3 -c "{fetch}" {qemu.SITE}')
    subprocess.run(["rm", "-rf", home], check=True)
    result: dict[str, Any] = ast.literal_eval(said.splitlines()[-1])
    return result


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
        "runs": errno.EACCES,
        "read": "seen",
        "inet": errno.EAFNOSUPPORT,
        "calls": [errno.EPERM, errno.EPERM, errno.ENOTTY],
        "limits": [0, 30, 200],
        "processes": 1,
        "threads": True,
    }


def test_an_empty_group_goes(found: dict[str, Any]) -> None:
    assert found["left"] is False
