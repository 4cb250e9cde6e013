"""What a sandbox costs and holds: ./bench sandbox, as root.

Starts /bin/true in our sandbox, in bubblewrap with the same namespaces and mounts, and in firejail and podman where they are installed,
one after the other in each round. Then a program reads a file of its image and a copy of that on this machine, both in the page cache; and
nginx is asked for a page as often as it can answer, inside and outside of a sandbox, from a program that shares its network, so that pasta
has no part in it. Then it runs tests/probes in each sandbox. Last, a host of Obelisk's boots in a VM, and the probes run there: in the same
application, installed; in the unit that is exported for it; and in a hardened unit without an image (tests/probes/hardened.service).

Peers, by Debian's names: `apt-get install wrk firejail podman crun golang-github-containers-common`. firejail runs as root with its default
profile, podman as root with its defaults, but for the network, of which it gets none; bubblewrap as an ordinary user with the arguments
that Flatpak gives it for an application without permissions, but without Flatpak's own filter of system calls.
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import truediv
from pathlib import Path

from apparatus.measure import CACHE, ROOT, Goal, conclude, obelisk, print_table

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/unit")]

import booted  # noqa: E402 - found by the path above
from tool import Tool  # noqa: E402

from obelisk.model.application import Application  # noqa: E402
from obelisk.model.policy import policy  # noqa: E402

ROUNDS = 60
READ_ROUNDS, READ_MIB = 15, 256
SERVE_ROUNDS, SERVE_S = 40, 2  # with nine, chance made 0.95 to 1.04 of a second server outside
PROBES = ROOT / "tests/probes"
# As systems with udev have it, open to everybody; for as long as these mounts are there.
TUNNEL = "mknod -m 666 /run/tun-bench c 10 200; mount --bind /run/tun-bench /dev/net/tun; rm /run/tun-bench"
NGINX = CACHE / "bench-nginx"
SPACES = ("--mount", "--net", "--ipc", "--uts", "--cgroup", "--propagation", "private")
SOMEBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all")
HOST = """\
name = "bench-host"
role = "server"
packages = ["python3"]
[boot]
kernel = "linux-image-cloud-amd64"
[host]
applications = true
"""
SPEC = 'name = "{name}"\nrole = "app"\npackages = ["python3"]\ntree = "tree"\n[app]\ncommand = {command}\n'
APPS = {
    "bench-start": ["/bin/true"],
    "bench-probes": ["/usr/bin/python3", "-I", "/usr/local/lib/probe.py"],
    "bench-reads": ["/usr/bin/python3", "-I", "/usr/local/lib/reads.py"],
}
READS = """\
import sys, time
buffer = bytearray(1 << 20)
for turn in range(2):  # the first fills the page cache
    with open(sys.argv[1], "rb", buffering=0) as file:
        began = time.perf_counter()
        while file.readinto(buffer):
            pass
        took = time.perf_counter() - began
sys.stderr.write(f"{took}\\n")
"""


def main() -> int:
    if os.geteuid() != 0:
        sys.exit("this takes root rights")
    if sys.argv[1:] != ["inside"]:
        build()
        return subprocess.run(["unshare", *SPACES[:1], *SPACES[-2:], sys.executable, "-s", __file__, "inside"], check=False).returncode
    subprocess.run(["sh", "-euc", TUNNEL], check=True)
    root = ready(CACHE / "bench-probes").parents[1] / "root"
    figures: dict[str, object] = {}
    goals = [starts(ready(CACHE / "bench-start"), root, figures), reads(figures)]
    if shutil.which("wrk"):
        goals.append(serves(figures))
    else:
        print("nginx is left out: wrk is not installed\n")
    subprocess.run(["umount", "/dev/net/tun"], check=True)  # the probes bring one of their own
    probes(root, figures)
    machine(figures)
    return conclude("sandbox", figures, goals)


def build() -> None:
    shutil.rmtree(NGINX, ignore_errors=True)
    shutil.copytree(ROOT / "examples/apps/nginx", NGINX)
    for name, command in APPS.items():
        place = CACHE / name
        shutil.rmtree(place, ignore_errors=True)
        programs = place / "tree/usr/local/lib"
        programs.mkdir(parents=True)
        shutil.copyfile(PROBES / "probe.py", programs / "probe.py")
        (programs / "reads.py").write_text(READS)
        if name == "bench-reads":
            (programs / "data").write_bytes(os.urandom(READ_MIB << 20))
        (place / "obelisk.toml").write_text(SPEC.format(name=name, command=json.dumps(command)))
        obelisk("build", str(place), log=CACHE / f"{name}.log")
    obelisk("build", str(NGINX), log=CACHE / "nginx.log")
    place = CACHE / "bench-host"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "obelisk.toml").write_text(HOST)
    obelisk("build", str(place), log=CACHE / "bench-host.log")


def environment() -> dict[str, str]:
    return {**os.environ, "OBELISK_STORE": str(CACHE / "store"), "OBELISK_KEYS": str(CACHE / "keys"), "XDG_CONFIG_HOME": "/nowhere"}


def ready(spec: Path) -> Path:
    words = [str(ROOT / "obelisk"), "app", "ready", str(spec)]
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


def starts(start: Path, root: Path, figures: dict[str, object]) -> Goal:
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
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    base = medians["bubblewrap, the same namespaces"]
    print_table(
        ("start of /bin/true", "median", "of bubblewrap's"),
        [(name, f"{1000 * median:.1f} ms", f"{median / base:.2f}") for name, median in medians.items()],
    )
    print()
    figures["starts_s"] = medians
    return Goal("a start, of bubblewrap's and 3 ms", medians["ours"], 1.25 * base + 0.003, "s")


def reads(figures: dict[str, object]) -> Goal:
    """A file of the image from inside, and its copy from outside, by the same interpreter's loop."""
    start = ready(CACHE / "bench-reads")
    copy = CACHE / "bench-reads/copy"
    shutil.copyfile(CACHE / "bench-reads/tree/usr/local/lib/data", copy)
    inside = [str(start), "/usr/local/lib/data"]
    # The interpreter of the image, because another one's loop may be slower.
    root = start.parents[1] / "root"
    outside = [
        "unshare",
        "--mount",
        "sh",
        "-euc",
        'mount --bind "$1" "$2/srv" && exec chroot "$2" /usr/bin/python3 -I "$3" /srv/copy',
        "sh",
    ]
    outside += [str(copy.parent), str(root), "/usr/local/lib/reads.py"]
    took: dict[str, list[float]] = {"inside": [], "outside": []}
    for _ in range(READ_ROUNDS):
        for name, words in (("inside", inside), ("outside", outside)):
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
            took[name].append(float(done.stderr))
    speeds = {name: READ_MIB / statistics.median(seconds) for name, seconds in took.items()}
    print_table(("reading from the page cache", "MiB a second"), [(name, f"{speed:.0f}") for name, speed in speeds.items()])
    print()
    figures["reads_mib_s"] = speeds
    return Goal("time of reading a file outside, of inside's; more is slower inside", speeds["outside"] / speeds["inside"], 1 / 0.9)


def serves(figures: dict[str, object]) -> Goal:
    """Pages a second that nginx serves to a client in its own network, inside and outside of a sandbox.

    Each round asks all in turn, every other one backwards, and gives ratios; a second server outside tells what chance makes of them.
    """
    start = ready(NGINX)
    root = start.parents[1] / "root"
    bare = 'ip link set lo up; for each in run tmp var/lib/nginx; do mount -t tmpfs -o mode=1777 tmpfs "$1/$each"; done; shift; exec "$@"'
    outside = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-euc", bare, "sh", str(root)]
    outside += ["chroot", "--userspec=65534:65534", str(root), "/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/nginx/app.conf"]
    pages: dict[str, list[float]] = {"outside": [], "inside": [], "outside, another": []}
    spent: dict[str, list[float]] = {name: [] for name in pages}
    with served(outside) as plain, served([str(start)]) as inside, served(outside) as again:
        servers = dict(zip(pages, (plain, inside, again), strict=True))
        for number in range(SERVE_ROUNDS):
            for name, server in list(servers.items())[:: -1 if number % 2 else 1]:
                before = busy_s(server)
                words = ["nsenter", "--net", f"--target={server}", "wrk", "-t1", "-c16", f"-d{SERVE_S}s", "http://127.0.0.1:8080/"]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                said = done.stdout + done.stderr
                found, asked = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"(\d+) requests in", said)
                if not found or not asked or "Non-2xx" in said or "Socket errors" in said:
                    sys.exit(f"nginx {name} of a sandbox does not serve:\n{said}")
                pages[name].append(float(found[1]))
                spent[name].append((busy_s(server) - before) / int(asked[1]))
    rows = []
    for name, rates in pages.items():
        ratio, work = (statistics.median(map(truediv, each[name], each["outside"])) for each in (pages, spent))
        rows.append(
            (name, f"{statistics.median(rates):.0f}", f"{ratio:.2f}", f"{1e6 * statistics.median(spent[name]):.1f} us", f"{work:.2f}")
        )
    print_table(("nginx, asked by wrk", "pages a second", "of outside's", "its processors' time a page", "of outside's"), rows)
    print()
    figures["pages_s"], figures["page_work_s"] = pages, spent
    return Goal("pages a second outside, of inside's", statistics.median(map(truediv, pages["outside"], pages["inside"])), 1 / 0.97)


def busy_s(server: int) -> float:
    """What the processes that nginx's first one has started have spent of the processors. Source: proc(5), /proc/PID/schedstat."""
    workers = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return sum(int(Path(f"/proc/{worker}/schedstat").read_text().split()[0]) for worker in workers) / 1e9


@contextmanager
def served(words: Sequence[str]) -> Iterator[int]:
    """A server, for as long as the block lasts: the id of a process in its network."""
    server: int | None = None
    # Each in a session of its own, as a sandbox's programs are: the scheduler shares the processors out by sessions (autogroups), and a
    # server in that of its client would have another share of them than one that is not.
    nothing = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 20
            while (server := master(process.pid)) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"nginx does not start: {' '.join(words)}")
                time.sleep(0.05)
            time.sleep(0.5)  # its workers listen
            yield server
        finally:
            if server is not None:
                os.kill(server, signal.SIGKILL)  # the first of its processes, with which the others go
            process.kill()


def master(ancestor: int) -> int | None:
    """The process below `ancestor` that is nginx."""
    parents, names = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        pid = int(status.parent.name)
        names[pid], parents[pid] = name, int(rest.split()[1])
    for pid in sorted(pid for pid, name in names.items() if name == "nginx"):
        at = pid
        while at > 1 and at != ancestor:
            at = parents.get(at, 0)
        if at == ancestor:
            return pid
    return None


def probes(root: Path, figures: dict[str, object]) -> None:
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
    figures["probes"] = tabulate(json.loads(done.stdout))


def machine(figures: dict[str, object]) -> None:
    """The probes in what systemd runs, on a host that has booted: nothing but a VM has a systemd of its own everywhere."""
    app = Tool(CACHE, CACHE / "bench-probes")
    place = CACHE / "bench-site"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    site = booted.Site.of(place, app)
    exported = site.add_unit("exported", Application(tuple(APPS["bench-probes"])), policy())
    unit = ["python3", f"{booted.PROBES}/unit.py"]
    runs: list[Mapping[str, object]] = [
        {"name": "ours", "argv": ["/var/lib/obelisk/bin/bench-probes"]},
        {"name": "exported unit", "argv": [*unit, exported]},
        {"name": "hardened unit", "argv": [*unit, f"{booted.PROBES}/hardened.service"]},
        {"name": "nothing", "argv": ["unshare", "--mount", "python3", "-I", f"{booted.PROBES}/probe.py"]},
    ]
    print("\nOn a host of Obelisk's, in a VM:", flush=True)
    installed, found = site.try_in(Tool(CACHE, CACHE / "bench-host"), ("install",), ("probes", json.dumps(runs)))
    if "error" in json.loads(installed):
        sys.exit(f"the application cannot be installed there: {installed}")
    figures["probes_on_a_host"] = tabulate(json.loads(found))


def tabulate(found: Mapping[str, Mapping[str, Sequence[str]]]) -> Mapping[str, int]:
    """Print how many probes of each group get through, and return the sums."""
    broken = {name: results["error"] for name, results in found.items() if "error" in results}
    for name, error in broken.items():
        print(f"{name} could not run: {error}")
    working = {name: results for name, results in found.items() if name not in broken}
    total = Counter(group for group, _outcome, _detail in working["ours"].values())
    through = {name: Counter(g for g, outcome, _detail in results.values() if outcome == "allowed") for name, results in working.items()}
    sums = {name: sum(counted.values()) for name, counted in through.items()}
    rows = [(f"{group} (of {count})", *(str(through[name][group]) for name in working)) for group, count in total.items()]
    print_table(("probes that get through", *working), [*rows, (f"all (of {sum(total.values())})", *(str(n) for n in sums.values()))])
    return sums


if __name__ == "__main__":
    raise SystemExit(main())
