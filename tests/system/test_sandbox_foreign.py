"""What is written in the formats of others, as the programs read it that these formats belong to."""

import ast
import ctypes
import errno
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from format_samples import subject
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import policies
from sandboxes import LOOKING, PRIVATE
from test_system_filter import ALLOW, ERRNO, outcome

from obelisk.model.application import Application
from obelisk.model.policy import Call, Calls, Connect, Limits, Listen, Nest, Policy, Read, Write, WriteExecute, policy
from obelisk.sandbox.calls import filter_of
from obelisk.sandbox.formats import write
from obelisk.sandbox.formats.calls import as_oci
from obelisk.system.syscalls import NUMBERS

# A service without a network is at most this far open, as systemd-analyze counts it: 10 is a program of root's as it is.
LIMIT = 1.5
_MASKED_EQ = 7


class _Argument(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64))


def compiled(seccomp: Any) -> bytes:  # noqa: ANN401 - JSON
    """The program that libseccomp makes of a filter of OCI's, as runtimes have it made."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    filtered = ctypes.c_void_p(library.seccomp_init(ERRNO | seccomp["defaultErrnoRet"]))
    try:
        for rule in seccomp["syscalls"]:
            action = ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else ERRNO | rule["errnoRet"]
            tests = [_Argument(test["index"], _MASKED_EQ, test["value"], test["valueTwo"]) for test in rule.get("args", ())]
            for name in rule["names"]:
                added = library.seccomp_rule_add_array(filtered, action, NUMBERS[name], len(tests), (_Argument * len(tests))(*tests))
                assert added == 0, (name, tests, added)
        program = os.memfd_create("program")
        assert library.seccomp_export_bpf(filtered, program) == 0
        with os.fdopen(program, "rb") as file:
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(filtered)


@settings(max_examples=15)
@given(policies, st.data())
def test_libseccomp_makes_of_the_rules_a_filter_that_decides_as_ours(one: Policy, data: st.DataObject) -> None:
    held = filter_of(one)
    program = compiled(as_oci(held))
    small = st.sampled_from(
        (0, 1, 2, 3, 4, 6, 8, 10, 16, 22, 35, 0x5412, 0x541C, 0x5423, 0x5000940E, 0x10000000, 0o100000, 0xFFFFFFFF, 1 << 32 | 0x5412)
    )
    for name in (
        "ioctl",
        "socket",
        "socketpair",
        "clone",
        "mmap",
        "mprotect",
        "prctl",
        "personality",
        "shmat",
        "memfd_create",
        "read",
        "reboot",
    ):
        arguments = data.draw(st.lists(small | st.integers(0, (1 << 64) - 1), min_size=6, max_size=6))
        refused = held.refusal(NUMBERS[name], arguments)
        assert outcome(program, NUMBERS[name], arguments) == (ERRNO | refused if refused else ALLOW), (name, arguments)


@pytest.mark.parametrize(
    ("held", "limit"),
    [
        (Policy(), LIMIT),
        (policy([Read("~/Documents"), Write("/mnt/a b"), Listen(8080)]), LIMIT),
        (policy([Connect("10.0.0.0/8"), Nest(), WriteExecute(), Call(Calls.SCHEDULING)]), 3.0),
    ],
)
def test_a_unit_is_read_by_systemd_and_no_wider_than_it_has_to_be(tmp_path: Path, held: Policy, limit: float) -> None:
    unit = tmp_path / "app.service"
    unit.write_text(write(subject(held), "systemd").text)
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    told = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", told.stdout)
    assert found is not None, told.stdout + told.stderr
    assert float(found[1]) <= limit
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, env=environment
    )
    # Calls that are younger than this systemd are passed over, and its root is not on this machine.
    known = ("Failed to parse system call, ignoring", "is not executable")
    assert [line for line in verified.stderr.splitlines() if not any(each in line for each in known)] == []


def test_crun_starts_what_is_written_confined_to_what_is_granted(tmp_path: Path) -> None:
    for place in ("rootfs/usr", "read", "write", "data/var-lib-app"):
        (tmp_path / place).mkdir(parents=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (tmp_path / "rootfs" / link).symlink_to(f"usr/{link}")
    (tmp_path / "read/file").write_text("seen")
    for place in ("write", "data/var-lib-app"):
        os.chown(tmp_path / place, 61200, 61200)
    for place in ("rootfs", "read"):
        (tmp_path / place).chmod(0o777)
    own = ("/tmp", "/home/app", "/dev/shm", "/var/cache/app", "/var/lib/app", "/mnt/write")  # noqa: S108 - inside
    app = Application(
        ("/usr/bin/python3", "-I", "-c", LOOKING, "a word", *own), (("MODE", "x"),), "/srv", ("/var/cache/app",), ("/var/lib/app",)
    )
    one = subject(policy([Read("/mnt/read"), Write("/mnt/write")], Limits(processes=30, open_files=200)), app)
    config: Any = json.loads(write(replace(one, data=tmp_path / "data"), "oci").text)
    for mount in config["mounts"]:  # grants are of this machine's, where tests have no places of their own
        if mount["destination"].startswith("/mnt/"):
            mount["source"] = str(tmp_path / mount["source"].removeprefix("/mnt/"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    # crun knows one version of control groups at a time; what is mounted and unmounted here is so for this command alone.
    prepare = f"umount /sys/fs/cgroup/unified 2>/dev/null || :; mount --bind /usr {tmp_path}/rootfs/usr"
    start = f'{prepare}; exec crun --root {tmp_path}/state run --bundle {tmp_path} "obelisk-$$"'
    done = subprocess.run([*PRIVATE, "sh", "-euc", start], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == {
        "user": (61200, 61200),
        "rights": {"0" * 16},
        "new": ("1", "2"),
        "name": ("app", "/srv", "x", "a word"),
        "root": {errno.EROFS},
        "own": {0},
        "runs": {errno.EACCES},
        "read": "seen",
        "inet": errno.EAFNOSUPPORT,
        "calls": [errno.EPERM] * 4,
        "limits": [0, 30, 200],
        "processes": 1,
        "threads": True,
    }
