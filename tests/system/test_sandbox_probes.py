"""Ways out of a sandbox: all are closed by default, and each grant opens what it says and nothing more."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import application, places
from tool import ROOT, Tool

PROBES = ROOT / "tests/probes"
PROBE = (PROBES / "probe.py").read_text()
NETWORK = {"have a socket of the internet's", "see a network interface of the host"}
# What each grant opens. Where mounts come from, no mount namespace hides.
OPENS = {
    'read = ["/mnt/granted"]': {"read a file of the host", "list a directory of the host", "see where on the host its mounts come from"},
    'write = ["/mnt/granted"]': {
        "read a file of the host",
        "list a directory of the host",
        "write to a directory of the host",
        "change a file of the host",
        "see where on the host its mounts come from",
    },
    'devices = ["kvm"]': {"open /dev/kvm"},
    "listen = [7401]": {"listen at a port of the host", *NETWORK},
    'connect = ["10.98.0.1/32:7301"]': {"connect to a network", *NETWORK},
    'connect = ["db.example.org:7301"]': NETWORK,  # nobody answers there for the name
    'connect = ["10.98.0.0/16:*"]': {"connect to a network", "connect to another port there", *NETWORK},
    'syscalls = ["debug"]': {
        "trace its own child",
        "read another process's memory",
        "take an open file of another process",
        "compare processes",
    },
    'syscalls = ["io-uring"]': {"reach io_uring_setup"},
    'syscalls = ["keyring"]': {"reach add_key", "reach keyctl"},
    'syscalls = ["memory-lock"]': {"lock memory"},
    'syscalls = ["scheduling"]': {"change which processors it runs on"},
    "write_execute = true": {
        "run a program from /tmp",
        "run a program from its home",
        "run a program from /dev/shm",
        "run a program from /tmp by the loader",
        "load a library from /tmp",
        "run a program from memory",
        "have writable executable memory",
        "make written memory executable",
        "attach shared memory that is executable",
    },
    "namespaces = true": {
        *(f"make a {name} namespace" for name in ("time", "mount", "cgroup", "uts", "ipc", "user", "pid", "network")),
        "make a user namespace by clone",
        "write to its own code by /proc/self/mem",  # who may write a uid_map may write all of /proc/self
    },
    "terminal = true": set(),
    'devices = ["gpu"]': {"open /dev/dri/renderD128", "see /sys", "see a graphics processor in /sys"},
    'dbus_talk = ["org.example.Granted"]': {"reach the session bus", "talk to a name on the session bus"},
    'dbus_own = ["org.example.Own"]': {"reach the session bus", "have a name on the session bus"},
    "wayland = true": {"reach the Wayland compositor"},
    "x11 = true": {"reach an X server of its own"},
    'dbus_talk = ["org.example.Granted"]\nconnect = ["10.98.0.1/32:7301"]\nx11 = true': {
        "reach the session bus",
        "talk to a name on the session bus",
        "reach an X server of its own",
        "connect to a network",
        *NETWORK,
    },
}


@pytest.fixture(scope="module")
def found(applications: Tool) -> Iterator[dict[str, dict[str, list[str]]]]:
    """What every probe found: with the default policy, with each grant alone, and without any confinement."""
    with places() as place:
        text = 'packages = ["python3"]\ntree = "tree"\n[app]\ncommand = ["/usr/bin/python3", "-I", "/usr/local/lib/probe.py"]\n'
        app = application(applications, "probes", text, {"tree/usr/local/lib/probe.py": PROBE})
        argv = [str(app.checkout / "obelisk"), "app", "run", str(app.spec), "--"]
        runs: list[dict[str, object]] = [{"name": "default", "argv": argv, "env": {"XDG_CONFIG_HOME": str(place / "none")}}]
        for number, grant in enumerate(OPENS):
            file = place / str(number) / "obelisk/apps/probes.toml"
            file.parent.mkdir(parents=True)
            file.write_text(f"[override.grants]\n{grant}\n")
            # In a session of Wayland's, the X server would be a window of a compositor that only passes for one.
            other = {"WAYLAND_DISPLAY": ""} if "x11" in grant else {}
            runs.append({"name": grant, "argv": argv, "env": {"XDG_CONFIG_HOME": str(place / str(number)), **other}})
        outside = ["python3", "-I", str(PROBES / "probe.py")]
        runs.append({"name": "unconfined", "argv": outside, "env": {"TMPDIR": "/mnt/granted", "HOME": "/mnt/granted"}})
        alone = ["unshare", "--mount", "--net", "--ipc", "--uts", "--propagation", "private"]
        words = [*alone, "python3", str(PROBES / "outside.py"), json.dumps(runs)]
        done = subprocess.run(words, env=app.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def allowed(results: dict[str, list[str]]) -> set[str]:
    """The probes that got through."""
    assert "error" not in results, results
    return {name for name, (_group, outcome, _detail) in results.items() if outcome == "allowed"}


@pytest.mark.timeout(900)
def test_every_way_out_is_closed_by_default(found: dict[str, dict[str, list[str]]]) -> None:
    assert len(found["default"]) >= 200
    assert allowed(found["default"]) == set()


def test_the_probes_get_through_where_nothing_confines_them(found: dict[str, dict[str, list[str]]]) -> None:
    """Else their failing inside would mean nothing; what this machine does not have at all is not counted."""
    assert len(allowed(found["unconfined"])) >= 130


@pytest.mark.parametrize("grant", OPENS)
def test_a_grant_opens_what_it_says_and_nothing_more(found: dict[str, dict[str, list[str]]], grant: str) -> None:
    assert allowed(found[grant]) == OPENS[grant]


def test_every_grant_is_probed() -> None:
    schema = json.loads(Path(ROOT / "src/obelisk/spec/schema.json").read_text())["properties"]["grants"]["properties"]
    named = {grant.partition(" ")[0] for grant in OPENS}
    assert named == set(schema) - {"may_miss", "portals"}  # these in a session of a person's: test_sandbox_portals.py
    groups = {group for group in schema["syscalls"]["items"]["enum"] if f'syscalls = ["{group}"]' not in OPENS}
    assert groups == set()
