"""What is tried in a booted machine, which is thrown away: its programs come from $SITE, which ends with a slash.

    machine.py groups LIMIT PROCESSES    many processes together, in groups of each kind, with and without a limit; prints a dict
    machine.py install                   install the application; prints what became of that
    machine.py unit FILE                 start the unit, whose image is the application's; prints what it says
    machine.py probes RUNS               the probes, as outside.py

The application's image is in /var/tmp/image.
"""

import ast
import os
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROBES, SOURCE, TRIES = Path("/run/probes"), Path("/run/source"), Path("/run/tries")
GROUPS = Path("/sys/fs/cgroup")
IMAGE, GRANTED = Path("/var/tmp/image"), Path("/var/tmp/granted")
# Each child takes 16 MiB. Prints the group, how many ended well, and the most that the group took.
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
# Two children that calculate; prints the processors' time of a second.
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


def unpack(name: str, to: Path) -> None:
    with (
        urllib.request.urlopen(os.environ["SITE"] + name) as source,  # noqa: S310 - of the test's own
        tarfile.open(fileobj=source, mode="r|") as archive,
    ):
        archive.extractall(to, filter="data")


def said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def groups(limit: int, processes: int) -> dict[str, Any]:
    """How limits of all processes together hold, by each way to have them."""
    unpack("source.tar", SOURCE)
    sys.path.insert(0, str(SOURCE))
    from obelisk.system import cgroups  # noqa: PLC0415 - it has just come
    from obelisk.system.cgroups import Bounds, Here, Way  # noqa: PLC0415
    from obelisk.system.confine import Owner  # noqa: PLC0415
    from obelisk.system.program import Execute, assemble  # noqa: PLC0415

    hog, calculate = Path("/run/hog.py"), Path("/run/time.py")
    hog.write_text(HOG.format(processes=processes))
    calculate.write_text(TIME)
    TRIES.mkdir()
    TRIES.chmod(0o1777)

    def started(program: bytes) -> str:
        path = TRIES / f"start-{os.geteuid()}"
        path.write_bytes(program)
        path.chmod(0o755)
        done = subprocess.run([path], capture_output=True, text=True, check=False)
        return done.stdout or f"{done.returncode}: {done.stderr}"

    def tried(here: Here, owner: Owner) -> Any:  # noqa: ANN401 - what went wrong, where something did
        """The group of the hogs, how many ended well, the most that they took, and the processors' time under a limit of a half."""
        name = "my-app"
        cgroups.prepare(here.way, name, Bounds(100, limit), owner)

        def in_group(program: Path) -> bytes:
            words = ("/usr/bin/python3", str(program))
            if here.way is Way.DIRECT:
                return assemble(cgroups.enter(name), Execute(words[0], words))
            return assemble([], cgroups.scope(here, name, owner, words))

        told = started(in_group(hog))
        try:
            group, well, peak = ast.literal_eval(told)
        except (SyntaxError, ValueError):
            return told
        cgroups.prepare(here.way, name, Bounds(100, None, 50), owner)
        return group, well, peak, float(started(in_group(calculate)))

    def found_by(owner: Owner) -> Any:  # noqa: ANN401
        here = cgroups.here(owner)
        return str(here.way), here.fault, tried(here, owner) if here.way is not Way.NONE else None

    subprocess.run(["systemctl", "start", "user@1000.service"], check=False, capture_output=True)
    found: dict[str, Any] = {"free": started(assemble([], Execute("/usr/bin/python3", ("python3", str(hog)))))}
    for kind, owner in (("root", Owner(0, 0)), ("user", Owner(1000, 1000))):
        found[kind] = told_by(owner.uid, lambda owner=owner: found_by(owner))  # type: ignore[misc]
    here = cgroups.here(Owner(0, 0), run_directory=Path("/nonexistent"))
    found["alone"] = (str(here.way), here.fault, tried(here, Owner(0, 0)))
    cgroups.remove(Way.DIRECT, "my-app", Owner(0, 0))
    found["left"] = (GROUPS / "obelisk/my-app").exists()
    return found


def told_by(uid: int, function: Callable[[], object]) -> Any:  # noqa: ANN401
    """What the function returns to that user."""
    end, other = os.pipe()
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        try:
            told = repr(function())
        except Exception as error:
            told = repr(f"{type(error).__name__}: {error}")
        os.write(other, told.encode())
        os._exit(0)
    os.close(other)
    with os.fdopen(end) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return ast.literal_eval(told)


def unit(file: str) -> str:
    """What a unit says that is granted a directory."""
    GRANTED.mkdir()
    (GRANTED / "file").write_text("seen")
    text = Path(file).read_text().replace("BindReadOnlyPaths=/mnt/read:", f"BindReadOnlyPaths={GRANTED}:")
    name = Path(file).name
    Path("/run/systemd/system", name).write_text(text)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    begun = subprocess.run(["systemctl", "start", "--wait", name], capture_output=True, text=True, check=False)
    subprocess.run(["journalctl", "--sync"], check=True)
    told = said("journalctl", "-b", "-u", name, "-o", "cat")
    return next((line for line in told.splitlines() if line.startswith("{")), begun.stderr + told)


def main(words: Sequence[str]) -> int:
    match words:
        case ["groups", limit, processes]:
            sys.stdout.write(f"{groups(int(limit), int(processes))!r}\n")
        case ["install"]:
            sys.stdout.write(f"{said('obelisk', 'app', 'install', str(IMAGE), '--json').splitlines()[-1]}\n")
        case ["unit", file]:
            sys.stdout.write(f"{unit(file)}\n")
        case ["probes", runs]:
            done = subprocess.run([sys.executable, PROBES / "outside.py", runs, "machine"], capture_output=True, text=True, check=False)
            sys.stdout.write(done.stdout or f"{done.stderr}\n")
        case _:
            return 2
    return 0


if __name__ == "__main__":
    PROBES.mkdir(exist_ok=True)
    if not (PROBES / "probe.py").exists():
        unpack("probes.tar", PROBES)
        unpack("image.tar", IMAGE)
    raise SystemExit(main(sys.argv[1:]))
