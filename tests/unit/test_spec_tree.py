"""What a spec's tree may hold, and how it comes out the same from any checkout."""

import os
import socket
import stat
from pathlib import Path

import pytest
from spec_samples import load_text, problems

from obelisk.errors import InputError
from obelisk.model.spec import Spec
from obelisk.spec import EntryKind, load, tree_entries

TREE = 'name = "a"\ntree = "laid"\n'
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and other people's files need root")


def lay(directory: Path, **files: str) -> Path:
    """A tree of files by their path, `__` standing for a slash."""
    for name, content in files.items():
        path = directory / "laid" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o644)
    (directory / "laid").mkdir(exist_ok=True)
    for path in ((directory / "laid"), *(directory / "laid").rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    return directory / "laid"


def told(directory: Path, more: str = "") -> str:
    """The one problem that the tree has."""
    (problem,) = problems(directory, TREE + more)
    assert problem.path == ("tree",)
    return f"{problem.code}: {problem.message} ({problem.hint})"


def listing(spec: Spec) -> list[str]:
    return [f"{entry.kind} {entry.mode:o} {entry.path}{' -> ' * bool(entry.target)}{entry.target}" for entry in tree_entries(spec)]


def test_entries_are_in_order_with_modes_that_any_checkout_has(tmp_path: Path) -> None:
    tree = lay(tmp_path, etc__b="", etc__a__x="", srv__run="#!/bin/sh\n", etc__ab="")
    (tree / "srv/run").chmod(0o775)
    (tree / "etc/b").chmod(0o664)
    (tree / "etc/a").chmod(0o2775)
    (tree / "etc/link").symlink_to("../nowhere")
    assert listing(load_text(tmp_path, TREE)) == [
        "directory 755 /etc",
        "directory 755 /etc/a",
        "file 644 /etc/a/x",
        "file 644 /etc/ab",
        "file 644 /etc/b",
        "symlink 777 /etc/link -> ../nowhere",
        "directory 755 /srv",
        "file 755 /srv/run",
    ]


def test_a_spec_without_a_tree_has_no_entries(tmp_path: Path) -> None:
    assert tree_entries(load_text(tmp_path, 'name = "a"')) == ()


def test_what_belongs_to_git_and_editors_stays_out(tmp_path: Path) -> None:
    tree = lay(tmp_path, etc__keep="", empty__gitkeep="", etc__x="")
    (tree / "empty/gitkeep").rename(tree / "empty/.gitkeep")
    (tree / ".git").mkdir()
    (tree / ".git/config").write_text("")
    for name in (".keep.swp", "keep~", "#keep#", ".DS_Store", ".gitkeep"):
        (tree / "etc" / name).write_text("")
    (tree / "etc/.#keep").symlink_to("user@host.1")
    (tree / "etc/.gitignore").write_text("")
    (tree / "etc/.gitignore").chmod(0o644)
    assert listing(load_text(tmp_path, TREE)) == [
        "directory 755 /empty",
        "directory 755 /etc",
        "file 644 /etc/.gitignore",
        "file 644 /etc/keep",
        "file 644 /etc/x",
    ]


def test_both_spellings_of_a_merged_directory_are_one_place(tmp_path: Path) -> None:
    lay(tmp_path, bin__a="", usr__bin__b="", lib__systemd__system__x="")
    assert [entry.path for entry in tree_entries(load_text(tmp_path, TREE)) if entry.kind is EntryKind.FILE] == [
        "/usr/bin/a",
        "/usr/bin/b",
        "/usr/lib/systemd/system/x",
    ]
    lay(tmp_path, usr__bin__a="")
    assert told(tmp_path).startswith("spec-conflict: laid/usr/bin/a: is in the tree twice")


def test_a_link_where_the_distribution_has_its_own_is_refused(tmp_path: Path) -> None:
    (lay(tmp_path) / "lib64").symlink_to("usr/lib64")
    assert told(tmp_path).startswith("spec-conflict: laid/lib64: stands where the distribution has its own link")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o700])
def test_a_file_that_not_everyone_may_read_is_refused_rather_than_opened_up(tmp_path: Path, mode: int) -> None:
    (lay(tmp_path, etc__secret="") / "etc/secret").chmod(mode)
    assert "spec-file: laid/etc/secret: is not readable by everyone" in told(tmp_path)
    assert "`files` with `source` and `mode`" in told(tmp_path)


def test_a_directory_that_not_everyone_may_enter_is_refused(tmp_path: Path) -> None:
    (lay(tmp_path, etc__private__x="") / "etc/private").chmod(0o700)
    assert "spec-file: laid/etc/private: is not readable by everyone" in told(tmp_path)


def test_many_files_of_one_fault_are_one_problem(tmp_path: Path) -> None:
    tree = lay(tmp_path, **{f"etc__x{number}": "" for number in range(7)})
    for path in (tree / "etc").iterdir():
        path.chmod(0o600)
    assert "laid/etc/x0, laid/etc/x1, laid/etc/x2 and 4 more: is not readable" in told(tmp_path)


@pytest.mark.parametrize(("bit", "mode"), [(stat.S_ISUID, "4755"), (stat.S_ISGID, "2755")])
def test_setuid_and_setgid_files_need_permission_under_either_spelling(tmp_path: Path, bit: int, mode: str) -> None:
    (lay(tmp_path, bin__su="") / "bin/su").chmod(0o755 | bit)
    assert "spec-forbidden: laid/bin/su: is setuid or setgid" in told(tmp_path)
    assert "allow.setuid" in told(tmp_path)
    for path in ("/bin/su", "/usr/bin/su"):
        assert f"file {mode} /usr/bin/su" in listing(load_text(tmp_path, TREE + f'allow.setuid = ["{path}"]'))


@as_root
@pytest.mark.parametrize(("kind", "name"), [(stat.S_IFCHR, "character device"), (stat.S_IFBLK, "block device")])
def test_device_nodes_need_permission(tmp_path: Path, kind: int, name: str) -> None:
    node = lay(tmp_path, srv__x="") / "srv/node"
    os.mknod(node, kind | 0o666, os.makedev(1, 3))
    node.chmod(0o666)
    assert "spec-forbidden: laid/srv/node: is a device node" in told(tmp_path)
    assert "allow.devices" in told(tmp_path)
    entry = {entry.path: entry for entry in tree_entries(load_text(tmp_path, TREE + 'allow.devices = ["/srv/node"]'))}["/srv/node"]
    assert (entry.kind.value, entry.mode, entry.device) == (name, 0o666, (1, 3))


def test_sockets_and_pipes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = lay(tmp_path)
    os.mkfifo(tree / "pipe")
    monkeypatch.chdir(tree)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "spec-forbidden: laid/pipe, laid/socket: is a socket or pipe" in told(tmp_path)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("proc__x", "filled by the kernel"),
        ("run__x", "in memory"),
        ("tmp__x", "in memory"),
        ("var__www__x", "the machine's state"),
        ("home__me__x", "the machine's state"),
        ("root__x", "the machine's state"),
        ("boot__x", "boot partition"),
        ("etc__hostname", "`hostname`"),
        ("etc__passwd", "the accounts"),
        ("etc__ssh__ssh_host_rsa_key", "first boot makes host keys"),
    ],
)
def test_places_that_an_image_does_not_own_are_refused_with_the_reason(tmp_path: Path, place: str, reason: str) -> None:
    lay(tmp_path, **{place: ""})
    message = told(tmp_path)
    assert message.startswith("spec-forbidden: laid/")
    assert reason in message


def test_names_that_are_not_utf8_or_not_printable_are_refused(tmp_path: Path) -> None:
    tree = lay(tmp_path)
    (tree / os.fsdecode(b"a\xff")).write_text("")
    (tree / "b\nc").write_text("")
    (tree / "link").symlink_to(os.fsdecode(b"\xfe"))
    message = told(tmp_path)
    assert "has a name that is not UTF-8" in message
    assert "a\\udcff, laid/b\\nc" in message
    assert message.isprintable()


@as_root
def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    """As somebody else, since nothing is unreadable to root."""
    tree = lay(tmp_path, etc__x="", etc__y="")
    (tree / "etc/y").chmod(0o004)  # readable by others, not by its owner
    os.chown(tree / "etc/y", 12345, 12345)
    load_text(tmp_path, TREE)
    for above in (tmp_path, *tmp_path.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(12345)
            os.setuid(12345)
            load(tmp_path)
        except InputError as error:
            status = 0 if "laid/etc/y: cannot be read" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_tree_that_changed_after_loading_is_checked_again(tmp_path: Path) -> None:
    tree = lay(tmp_path, etc__x="")
    spec = load_text(tmp_path, TREE)
    (tree / "etc/x").chmod(0o4755)
    with pytest.raises(InputError, match="setuid"):
        tree_entries(spec)
