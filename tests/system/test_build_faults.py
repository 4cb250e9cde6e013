"""Whole builds that are killed, starved of space, run twice at once, or given something that must not become an image."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tool import ROOT, Tool

MIB = 1 << 20
PAGE = "tree/srv/www/index.html"


@pytest.fixture(scope="module")
def tool(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    home = tmp_path_factory.mktemp("faults")
    yield workshop.copied_to(home)
    subprocess.run(["rm", "-rf", home], check=True)


def kill_after(tool: Tool, seconds: float, *words: str) -> bool:
    """Start a command and kill it and all that it started; whether it was still at work."""
    process = tool.start(*words)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def running_below(tool: Tool) -> list[str]:
    """Command lines of processes that have to do with the tool's store."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if str(tool.store).encode() in words and entry.parent.name != str(os.getpid()):
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def assert_nothing_is_left(tool: Tool) -> None:
    """No process, no mount, no work directory, no damage."""
    deadline = time.monotonic() + 5
    while (running := running_below(tool)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running
    assert str(tool.store) not in Path("/proc/self/mounts").read_text()
    assert "sound" in tool.run("verify")
    assert list((tool.store / "work").iterdir()) == []


def test_a_build_killed_at_any_instant_goes_on_to_the_same_image(workshop: Tool, tmp_path: Path) -> None:
    killed, undisturbed = tool_copy(workshop, tmp_path, "killed"), tool_copy(workshop, tmp_path, "undisturbed")
    with killed.changed(PAGE, "Hello", "Hello, and how long is this?"):
        began = time.monotonic()
        killed.build()
        whole = time.monotonic() - began
    images, hits = [], 0
    for attempt in range(12):
        with killed.changed(PAGE, "Hello", f"Hello for the {attempt}th time"):
            hits += kill_after(killed, whole * (attempt + 1) / 14, "build", str(killed.spec))
            images.append(killed.build())
    assert hits >= 8
    with undisturbed.changed(PAGE, "Hello", "Hello for the 11th time"):
        assert undisturbed.build() == images[-1]
    assert_nothing_is_left(killed)


def test_a_layer_killed_at_work_and_a_lock_killed_at_work_leave_what_was(workshop: Tool, tmp_path: Path) -> None:
    tool = tool_copy(workshop, tmp_path, "killed")
    lock = tool.spec / "obelisk.lock"
    before = lock.read_bytes()
    (foundation,) = foundations(tool)
    shutil.rmtree(foundation)
    with tool.changed("obelisk.toml", 'packages = ["', 'packages = ["hello", "'):
        for seconds in (1, 3, 6, 9):
            assert kill_after(tool, seconds, "lock", str(tool.spec))
            assert lock.read_bytes() == before
        process = tool.start("lock", str(tool.spec))
        while not foundations(tool):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1.5)  # the base is at work now
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert lock.read_bytes() == before
        assert "+ hello " in tool.run("lock", str(tool.spec))
        tool.build()
    assert_nothing_is_left(tool)


def foundations(tool: Tool) -> list[Path]:
    """The steps that hold a foundation."""
    return [kernel.parent.parent for kernel in (tool.store / "steps").glob("*/output/vmlinuz")]


def test_tools_killed_at_work_take_all_that_they_started_with_them(workshop: Tool, tmp_path: Path) -> None:
    tool = tool_copy(workshop, tmp_path, "killed")
    shutil.rmtree(tool.store / "steps")
    (tool.store / "steps").mkdir(mode=0o700)
    for seconds in (3, 8, 15):
        assert kill_after(tool, seconds, "build", str(tool.spec))
        assert_nothing_is_left(tool)


def tool_copy(workshop: Tool, place: Path, name: str) -> Tool:
    """A copy of the workshop in a directory of its own."""
    (place / name).mkdir()
    return workshop.copied_to(place / name)


def test_two_builds_at_once_do_each_step_once_and_agree(tool: Tool) -> None:
    with tool.changed(PAGE, "Hello from an image", "Hello from an image, twice"):
        both = [tool.start("build", str(tool.spec), "--json") for _ in range(2)]
        said = [tool.finish(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len({json.loads(out.splitlines()[-1])["id"] for out, _ in said}) == 1
    events = [json.loads(line) for out, _ in said for line in out.splitlines() if line.startswith("{")]
    alone = [e["task"] for e in events if e["event"] == "finished" and not e["cached"] and "another process" not in e["detail"]]
    assert sorted(task for task in alone if task != "image") == ["configured", "disk", "root", "uki"]


@contextmanager
def small_disk(place: Path) -> Iterator[tuple[str, ...]]:
    """The words that run a command where a tmpfs is mounted at `place`; it is gone with the process that holds it, whatever happens."""
    place.mkdir()
    script = 'mount -t tmpfs -o size=4g tmpfs "$1" && echo ready && read -r end'
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"ready\n"
        yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--wd=/", "--")
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()


def test_a_disk_that_is_full_in_any_step_is_named_and_nothing_is_lost(tool: Tool, tmp_path: Path) -> None:
    failed = set()
    with small_disk(tmp_path / "disk") as words, tool.changed(PAGE, "Hello from an image", "Hello from an image on a small disk"):
        small = tool.copied_to(tmp_path / "disk", words)
        for free_mib in (0, 1, 2, 4, 30, 400):
            resize(words, tmp_path / "disk", free_mib)
            failed |= starved(small)
        resize(words, tmp_path / "disk", 2048)
        image = small.build()
        assert "sound" in small.run("verify")
        assert image == tool.build()
    assert {"root", "disk"} <= failed


def test_a_disk_that_is_full_before_there_is_a_base_is_named_and_nothing_is_lost(workshop: Tool, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk) as words:
        small = workshop.copied_to(disk, words)
        (tools,) = (path for path in (workshop.store / "steps").iterdir() if (path / "output/tree/usr/bin/mmdebstrap").exists())
        (kernel,) = re.findall(r'name = "linux-image-6[^}]*sha256 = "(..)(\w+)"', (workshop.spec / "obelisk.lock").read_text())
        lost = [*("images", "refs", "steps"), f"blobs/{kernel[0]}/{''.join(kernel)}"]
        subprocess.run([*words, "rm", "-rf", *(small.store / name for name in lost)], check=True)
        subprocess.run([*words, "mkdir", small.store / "images", small.store / "refs"], check=True)
        subprocess.run([*words, "mkdir", "--mode=700", small.store / "steps"], check=True)
        resize(words, disk, 20)
        assert "tools" in starved(small)
        resize(words, disk, 2048)
        subprocess.run([*words, "cp", "-a", tools, small.store / "steps"], check=True)
        for free_mib, step in ((4, "fetch"), (100, "foundation")):
            resize(words, disk, free_mib)
            assert step in starved(small)
        resize(words, disk, 2048)
        assert small.build() == tool_copy(workshop, tmp_path, "whole").build()
        assert "sound" in small.run("verify")
        assert not subprocess.run([*words, "ls", small.store / "work"], check=True, capture_output=True).stdout


def starved(tool: Tool) -> set[str]:
    """Build without enough room; the steps that failed, after a look at what was said."""
    process = tool.start("build", str(tool.spec), "--json")
    out, err = tool.finish(process)
    if process.returncode == 0:
        return set()
    error = json.loads(err.splitlines()[-1])["error"]
    assert (process.returncode, error["code"]) == (5, "disk-full"), err
    assert f"the store {tool.store} is on the file system {tool.home}" in error["message"]
    assert "obelisk gc" in error["hint"]
    return {json.loads(line)["task"] for line in out.splitlines() if '"failed"' in line}


def resize(words: tuple[str, ...], disk: Path, free_mib: int) -> None:
    """Leave so much room on the disk."""
    used = subprocess.run([*words, "df", "--block-size=1", "--output=used", disk], check=True, capture_output=True, text=True).stdout
    size = int(used.split()[-1]) + free_mib * MIB
    subprocess.run([*words, "mount", "-o", f"remount,size={size}", disk], check=True)


def secret(spec: Path) -> None:
    (spec / "tree/etc/ssl/private").mkdir(parents=True)
    (spec / "tree/etc/ssl/private/own.key").write_text("-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n")


def secret_elsewhere(spec: Path) -> None:
    (spec / "tree/srv/own.key").write_text("-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n")


def unsigned_module(spec: Path) -> None:
    (spec / "module.sh").write_text("#!/bin/sh\ncd /usr/lib/modules/*/kernel && head -c -28 drivers/net/dummy.ko >own.ko\n")
    (spec / "module.sh").chmod(0o755)
    add(spec, '[[scripts]]\nrun = "module.sh"')


def collision(spec: Path) -> None:
    (spec / "tree/usr/sbin").mkdir(parents=True)
    (spec / "tree/usr/sbin/nginx").write_text("#!/bin/sh\n")


def setuid(spec: Path) -> None:
    (spec / "tree/usr/bin").mkdir(parents=True)
    shutil.copyfile("/bin/true", spec / "tree/usr/bin/become")
    (spec / "tree/usr/bin/become").chmod(0o4755)


def device(spec: Path) -> None:
    os.mknod(spec / "tree/srv/null", 0o020666, os.makedev(1, 3))


def hardware(spec: Path) -> None:
    (spec / "tree/etc/udev/hwdb.d").mkdir(parents=True)
    (spec / "tree/etc/udev/hwdb.d/99-x.hwdb").write_text(" X=1\n")


def failing_script(spec: Path) -> None:
    (spec / "fail.sh").write_text("#!/bin/sh\necho about to fail\nexit 7\n")
    (spec / "fail.sh").chmod(0o755)
    add(spec, '[[scripts]]\nrun = "fail.sh"')


def setuid_by_script(spec: Path) -> None:
    (spec / "become.sh").write_text("#!/bin/sh\ncp /bin/true /usr/bin/become\nchmod 4755 /usr/bin/become\n")
    (spec / "become.sh").chmod(0o755)
    add(spec, '[[scripts]]\nrun = "become.sh"')


def damaged_lock(spec: Path) -> None:
    lock = spec / "obelisk.lock"
    lock.write_text(lock.read_text()[:20_000])


def add(spec: Path, text: str) -> None:
    file = spec / "obelisk.toml"
    file.write_text(f"{file.read_text()}\n{text}\n")


def put_first(text: str) -> Callable[[Path], None]:
    def edit(spec: Path) -> None:
        file = spec / "obelisk.toml"
        key = text.split(" =", maxsplit=1)[0]
        kept = [line for line in file.read_text().splitlines() if not line.startswith(f"{key} =")]
        file.write_text("\n".join([text, *kept]) + "\n")

    return edit


def appended(text: str) -> Callable[[Path], None]:
    return lambda spec: add(spec, text)


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (secret, "secret", "/etc/ssl/private/own.key holds a private key"),
        (secret_elsewhere, "secret", "/srv/own.key holds a private key"),
        (unsigned_module, "module-unsigned", "kernel/own.ko is not signed"),
        (collision, "collision", "/usr/sbin/nginx belongs to the package nginx"),
        (setuid, "", "become"),
        (device, "", "/srv/null"),
        (setuid_by_script, "setuid", "/usr/bin/become"),
        (hardware, "hwdb", "/etc/udev/hwdb.d/99-x.hwdb:1: Match expected"),
        (failing_script, "script-failed", "fail.sh failed with status 7"),
        (damaged_lock, "lock-damaged", "obelisk.lock"),
        (put_first('size_budget = "64M"'), "size-budget", "budget is 64 MiB"),
        (put_first('timezone = "Europe/Atlantis"'), "spec-value", "Europe/Atlantis"),
        (put_first('packages = ["nginx-light"]'), "lock-stale", "asks for other packages"),
        (put_first('distribution = "debian:sid"'), "spec-value", "distribution"),
        (put_first('tree = "nowhere"'), "spec-file", "nowhere"),
        (put_first('pakages = ["x"]'), "spec-key", "obelisk.toml:1:pakages: there is no such key"),
        (appended('[services]\nenable = ["nosuch.service"]'), "service", "nosuch.service"),
        (appended('[files."/etc/x"]\ncontent = "x"\nowner = "nobodyknows"'), "owner-unknown", "nobodyknows"),
        (appended("[users.me]\nuid = 33"), "", "33"),
    ],
)
def test_what_must_not_become_an_image_is_refused_with_place_and_reason(
    tool: Tool, tmp_path: Path, spoil: Callable[[Path], None], code: str, words: str
) -> None:
    spec = tmp_path / "web"
    subprocess.run(["cp", "-a", tool.spec, spec], check=True)
    steps = sorted((tool.store / "steps").iterdir())
    spoil(spec)
    error = tool.refused("build", str(spec), status=2)
    assert words in error["message"]
    assert error["code"] == code or not code
    new = {step for step in (tool.store / "steps").iterdir() if step not in steps}
    # What was right on the way stays (a tree that is too large was a good tree); what was wrong does not.
    assert len(new) == (1 if spoil.__name__ == "edit" and code == "size-budget" else 0)


def test_a_digest_that_somebody_edited_in_the_lock_is_no_package_of_the_archive(tool: Tool, tmp_path: Path) -> None:
    spec = tmp_path / "web"
    subprocess.run(["cp", "-a", tool.spec, spec], check=True)
    lock = spec / "obelisk.lock"
    text, count = re.subn(r'(name = "netbase".* sha256 = ")\w{8}', r"\g<1>00000000", lock.read_text(), count=1)
    assert count == 1
    lock.write_text(text)
    error = tool.refused("build", str(spec), status=3)
    assert error["message"].startswith("netbase ")
    assert "other bytes than the lock names" in error["message"]
    assert "sound" in tool.run("verify")


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["new", "/proc/no/shop"], {}),
        (["export", "SPEC", "--format", "erofs", "--output", "/proc/root.erofs"], {}),
        (["build", "SPEC"], {"OBELISK_KEYS": "/proc/no/keys"}),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_place_that_may_not_be_written_is_named(tool: Tool, words: list[str], environment: dict[str, str]) -> None:
    named = next(word for word in (*environment.values(), words[-1], words[1]) if word.startswith("/proc"))
    tool.build()
    argv = [str(ROOT / "obelisk"), *(str(tool.spec) if word == "SPEC" else word for word in words), "--json"]
    done = subprocess.run(argv, env=tool.environment | environment, capture_output=True, text=True, check=False)
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (done.returncode, error["code"]) == (5, "unwritable")
    assert error["message"].startswith(named)
    assert "who may write to /proc" in error["hint"]


def test_a_store_that_may_not_be_written_is_named(tool: Tool) -> None:
    target = Path("/sys/obelisk-store")
    error = json.loads(tool.run("build", str(tool.spec), "--json", "--store", str(target), status=5).splitlines()[-1])["error"]
    assert str(target) in error["message"]
