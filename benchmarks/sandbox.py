"""What a sandbox costs and holds: ./bench sandbox, as root.

Starts /bin/true in our sandbox, in bubblewrap with the same namespaces and mounts, and in firejail and podman where they are installed,
one after the other in each round; then runs tests/probes in each of them. Prints both tables.

Peers, by Debian's names: `apt-get install firejail podman crun golang-github-containers-common`. firejail runs as root with its default
profile, podman as root with its defaults, but for the network, of which it gets none; bubblewrap as an ordinary user with the arguments
that Flatpak gives it for an application without permissions, but without Flatpak's own filter of system calls.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from apparatus.measure import CACHE, ROOT, obelisk

ROUNDS = 60
PROBES = ROOT / "tests/probes"
SPACES = ("--mount", "--net", "--ipc", "--uts", "--cgroup", "--propagation", "private")
SOMEBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all")
SPEC = 'name = "{name}"\nrole = "app"\npackages = ["python3"]\ntree = "tree"\n[app]\ncommand = {command}\n'
APPS = {"bench-start": ["/bin/true"], "bench-probes": ["/usr/bin/python3", "-I", "/usr/local/lib/probe.py"]}


def main() -> int:
    if os.geteuid() != 0:
        sys.exit("this takes root rights")
    if sys.argv[1:] != ["inside"]:
        build()
        return subprocess.run(["unshare", *SPACES[:1], *SPACES[-2:], sys.executable, "-s", __file__, "inside"], check=False).returncode
    start, root = ready("bench-start"), ready("bench-probes").parents[1] / "root"
    starts(start, root)
    probes(root)
    return 0


def build() -> None:
    for name, command in APPS.items():
        place = CACHE / name
        shutil.rmtree(place, ignore_errors=True)
        (place / "tree/usr/local/lib").mkdir(parents=True)
        shutil.copyfile(PROBES / "probe.py", place / "tree/usr/local/lib/probe.py")
        (place / "obelisk.toml").write_text(SPEC.format(name=name, command=json.dumps(command)))
        obelisk("build", str(place), log=CACHE / f"{name}.log")


def environment() -> dict[str, str]:
    return {**os.environ, "OBELISK_STORE": str(CACHE / "store"), "OBELISK_KEYS": str(CACHE / "keys"), "XDG_CONFIG_HOME": "/nowhere"}


def ready(name: str) -> Path:
    words = [str(ROOT / "obelisk"), "app", "ready", str(CACHE / name)]
    return Path(subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout.strip())


def bubblewrap(root: Path) -> list[str]:
    """The same namespaces and mounts as ours."""
    words = [
        "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--disable-userns",
        "--new-session",
        "--die-with-parent",
    ]
    for top in ("usr", "etc", "opt", "srv", "var"):
        words += ["--ro-bind", str(root / top), f"/{top}"]
    for link in ("bin", "sbin", "lib", "lib64"):
        words += ["--symlink", f"usr/{link}", f"/{link}"]
    words += ["--proc", "/proc", "--dev", "/dev"]
    return words + [word for place in ("/tmp", "/run", "/var/tmp", "/home/app", "/dev/shm") for word in ("--tmpfs", place)]  # noqa: S108


def flatpak(root: Path) -> list[str]:
    """What Flatpak gives an application without permissions: its runtime, a home of its own, no network, no IPC."""
    words = [*SOMEBODY, "bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-user", "--die-with-parent", "--clearenv"]
    words += ["--setenv", "PATH", "/usr/bin", "--ro-bind", str(root / "usr"), "/usr", "--ro-bind", str(root / "etc"), "/etc"]
    for link in ("bin", "sbin", "lib", "lib64"):
        words += ["--symlink", f"usr/{link}", f"/{link}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", "/var", "--dir", "/var/tmp"]  # noqa: S108
    return [*words, "--ro-bind", "/sys/class", "/sys/class", "--ro-bind", "/sys/devices", "/sys/devices", "--dir", "/home/app", "--"]


def podman(root: Path) -> list[str]:
    """As root, on a throw-away overlay over the same root. crun takes no mixed control groups, so those of version 2 go first."""
    prepare = f"""
        umount /sys/fs/cgroup/unified 2>/dev/null || true
        mkdir -p /run/bench-podman; mountpoint -q /run/bench-podman || mount -t tmpfs tmpfs /run/bench-podman
        cd /run/bench-podman; mkdir -p upper work tree
        mountpoint -q tree || mount -t overlay overlay -o lowerdir={root},upperdir=upper,workdir=work tree
        exec podman --root /run/bench-podman/store --runroot /run/bench-podman/run run --rm --cgroups=disabled --network=none \
            --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 --rootfs /run/bench-podman/tree "$@" """
    return ["sh", "-euc", prepare, "sh"]


def starts(start: Path, root: Path) -> None:
    same = [*bubblewrap(root), "--", "/bin/true"]
    commands = {"ours": [str(start)], "bubblewrap, the same namespaces": same, "the same, as an ordinary user": [*SOMEBODY, *same]}
    if shutil.which("firejail"):
        commands["firejail, its default profile"] = ["firejail", "--quiet", "/bin/true"]
    if shutil.which("podman"):
        commands["podman run, a root that is there"] = [*podman(root), "/bin/true"]
    took: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(ROUNDS):
        for name, words in commands.items():
            if "podman" in name and number >= ROUNDS // 4:
                continue
            began = time.perf_counter()
            subprocess.run(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            took[name].append(time.perf_counter() - began)
    base = statistics.median(took["bubblewrap, the same namespaces"])
    print("| start of /bin/true | median | of bubblewrap's |\n|---|---|---|")
    for name, seconds in took.items():
        median = statistics.median(seconds)
        print(f"| {name} | {1000 * median:.1f} ms | {median / base:.2f} |")
    limit = 1.25 * base + 0.003
    ours = statistics.median(took["ours"])
    print(f"\ngoal: at most 1.25 of bubblewrap's and 3 ms: {1000 * limit:.1f} ms; {'met' if ours <= limit else 'missed'}\n")


def probes(root: Path) -> None:
    ours = [str(ROOT / "obelisk"), "app", "run", str(CACHE / "bench-probes"), "--"]
    inside = ["/usr/bin/python3", "-I", "/usr/local/lib/probe.py"]
    outside = ["/usr/bin/python3", "-I", str(PROBES / "probe.py")]
    runs: list[Mapping[str, object]] = [{"name": "ours", "argv": ours}, {"name": "Flatpak's bubblewrap", "argv": [*flatpak(root), *inside]}]
    if shutil.which("firejail"):
        runs.append({"name": "firejail", "argv": ["firejail", "--quiet", *outside], "env": {"HOME": "/mnt/granted"}})
    if shutil.which("podman"):
        runs.append({"name": "podman", "argv": [*podman(root), *inside]})
    runs.append({"name": "nothing", "argv": outside, "env": {"TMPDIR": "/mnt/granted", "HOME": "/mnt/granted"}})
    words = ["unshare", *SPACES, "python3", str(PROBES / "outside.py"), json.dumps(runs)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    print_table(json.loads(done.stdout))


def print_table(found: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    broken = {name: results["error"] for name, results in found.items() if "error" in results}
    for name, error in broken.items():
        print(f"{name} could not run: {error}")
    working = {name: results for name, results in found.items() if name not in broken}
    total = Counter(group for group, _outcome, _detail in working["ours"].values())
    print(f"| probes that get through | {' | '.join(working)} |\n|---|{'---|' * len(working)}")
    through = {name: Counter(g for g, outcome, _detail in results.values() if outcome == "allowed") for name, results in working.items()}
    for group, count in total.items():
        print(f"| {group} (of {count}) | {' | '.join(str(through[name][group]) for name in working)} |")
    print(f"| all (of {sum(total.values())}) | {' | '.join(str(sum(through[name].values())) for name in working)} |")


if __name__ == "__main__":
    raise SystemExit(main())
