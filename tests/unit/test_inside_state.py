"""The template of a machine's state: which lines of tmpfiles.d(5) a tree's /var becomes, and where its files go."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from obelisk.build.inside import configure, scrub, state
from obelisk.build.programs import GUEST

RULES = "usr/lib/tmpfiles.d/obelisk-var.conf"
OWNER = f"{os.getuid()} {os.getgid()}"


def put(root: Path, name: str, content: str = "", *, mode: int = 0o644) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def test_what_dpkg_was_told_to_leave_out_is_documentation_and_licences_are_not(tmp_path: Path) -> None:
    share = ("man/man1/ls.1.gz", "info/x", "locale/de/x.mo", "doc/x/README", "lintian/x", "locale/locale.alias", "doc/x/copyright", "x/man")
    for name in share:
        put(tmp_path, name)
    for path in scrub.documentation(tmp_path):
        scrub.remove(path)
    assert {name for name in share if (tmp_path / name).exists()} == {"locale/locale.alias", "doc/x/copyright", "x/man"}


def directory(root: Path, name: str, mode: int) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name).chmod(mode)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory(tmp_path, "var/lib", 0o755)
    return tmp_path


def rules(tree: Path) -> tuple[str, ...]:
    """The lines that make something, without the heading."""
    state.seed(tree)
    return tuple(line for line in (tree / RULES).read_text().splitlines() if not line.startswith("#"))


def line_for(lines: Iterable[str], path: str) -> str:
    found = [line for line in lines if line.split(maxsplit=2)[1] == path]
    assert len(found) == 1, found
    return found[0]


def test_a_directory_keeps_mode_and_owner_by_number(tree: Path) -> None:
    directory(tree, "var/lib/db", 0o2750)
    assert line_for(rules(tree), "/var/lib/db") == f"d /var/lib/db 2750 {OWNER}"


def test_a_file_moves_to_the_factory_and_is_copied_from_there(tree: Path) -> None:
    put(tree, "var/lib/db/seed", "content", mode=0o640)
    assert line_for(rules(tree), "/var/lib/db/seed").startswith(f"C /var/lib/db/seed 0640 {OWNER}")
    template = tree / "usr/share/factory/var/lib/db/seed"
    assert template.read_text() == "content"
    assert template.stat().st_mode & 0o7777 == 0o640


def test_a_link_is_made_as_a_link_wherever_it_points(tree: Path) -> None:
    (tree / "var/lib/away").symlink_to("/nowhere/at-all")
    (tree / "var/lib/near").symlink_to("../log")
    lines = rules(tree)
    assert line_for(lines, "/var/lib/away") == "L /var/lib/away - - - - /nowhere/at-all"
    assert line_for(lines, "/var/lib/near") == "L /var/lib/near - - - - ../log"


def test_a_link_to_a_directory_is_not_entered(tree: Path) -> None:
    put(tree, "srv/data/secret", "not state")
    (tree / "var/lib/data").symlink_to("../../srv/data")
    assert not [line for line in rules(tree) if "secret" in line]


def test_nothing_is_left_in_var(tree: Path) -> None:
    put(tree, "var/lib/deep/er/file")
    (tree / "var/run").symlink_to("/run")
    state.seed(tree)
    assert list((tree / "var").iterdir()) == []


def test_parents_come_before_what_is_in_them(tree: Path) -> None:
    put(tree, "var/lib/mine/b/c")
    paths = [line.split()[1] for line in rules(tree) if line.split()[1].startswith("/var/lib/mine")]
    assert paths == ["/var/lib/mine", "/var/lib/mine/b", "/var/lib/mine/b/c"]


def test_the_package_database_goes_with_the_image_and_state_has_a_link_to_it(tree: Path) -> None:
    put(tree, "var/lib/dpkg/status", "Package: x\n")
    put(tree, "var/lib/dpkg/info/x.list", "/x\n")
    put(tree, "var/cache/debconf/config.dat")
    put(tree, "var/log/apt/history.log")
    scrub.close(tree / "var", tree / "usr/lib/sysimage/dpkg")
    assert (tree / "usr/lib/sysimage/dpkg/status").read_text() == "Package: x\n"
    assert (tree / "var/lib/dpkg/info/x.list").read_text() == "/x\n"  # where build scripts look for it
    assert not any(path.is_file() for place in ("var/cache", "var/log") for path in (tree / place).rglob("*"))
    lines = rules(tree)
    assert not (tree / "var/lib/dpkg").is_symlink()
    assert (tree / "usr/lib/sysimage/dpkg/info/x.list").read_text() == "/x\n"
    assert line_for(lines, "/var/lib/dpkg") == "L+ /var/lib/dpkg - - - - /usr/lib/sysimage/dpkg"
    assert not [line for line in lines if "/var/lib/dpkg/" in line]


@pytest.mark.parametrize("name", ["var/lib/apt/lists/index", "var/cache/apt/pkgcache.bin", "var/cache/debconf/config.dat"])
def test_what_only_package_tools_read_does_not_become_state(tree: Path, name: str) -> None:
    put(tree, name, "x")
    assert not [line for line in rules(tree) if line.split()[1] == f"/{name}"]
    assert not (tree / "usr/share/factory" / name).exists()


def test_what_another_package_declares_is_not_declared_twice(tree: Path) -> None:
    put(
        tree,
        "usr/lib/tmpfiles.d/var.conf",
        "# d /var/lib/commented\nd /var/log 0755 - - -\nq /var/spool 0755\nL! /var/lock - - - - ../run/lock\n",
    )
    for name in ("var/log", "var/spool", "var/lib/commented"):
        directory(tree, name, 0o755)
    (tree / "var/lock").symlink_to("/run/lock")
    paths = [line.split()[1] for line in rules(tree)]
    assert "/var/lib/commented" in paths
    assert not {"/var/log", "/var/spool", "/var/lock"} & set(paths)


def test_no_path_has_two_lines(tree: Path) -> None:
    (tree / "var/lock").symlink_to("/run/lock")
    (tree / "var/run").symlink_to("/run")
    put(tree, "var/lib/apt/extended_states")
    paths = [line.split()[1] for line in rules(tree)]
    assert sorted(paths) == sorted(set(paths))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain-1.2_x@y", "/var/lib/plain-1.2_x@y"),
        ("50%", "/var/lib/50%%"),
        ("with space", '"/var/lib/with space"'),
        ("it's", '"/var/lib/it\'s"'),
        ('a"b', '"/var/lib/a\\x22b"'),
        ("back\\slash", '"/var/lib/back\\x5cslash"'),
        ("two\nlines", '"/var/lib/two\\x0alines"'),
    ],
)
def test_odd_names_are_written_so_that_tmpfiles_reads_them_back(tree: Path, name: str, written: str) -> None:
    directory(tree, f"var/lib/{name}", 0o755)
    # "%" needs no quotes, but quotes around it do no harm.
    assert [line for line in rules(tree) if line in {f"d {written} 0755 {OWNER}", f'd "{written}" 0755 {OWNER}'}]


def test_equal_trees_give_equal_rules_in_whatever_order_they_were_made(tmp_path: Path) -> None:
    names = ("var/lib/b/2", "var/lib/a/1", "var/spool/x", "var/lib/a/0")
    found = []
    for place, order in (("one", names), ("two", names[::-1])):
        for name in order:
            put(tmp_path / place, name, name)
        directory(tmp_path / place, "var", 0o755)
        found.append(rules(tmp_path / place))
    assert found[0] == found[1]


def test_where_only_some_is_kept_memory_and_those_take_the_place_of_all(tree: Path) -> None:
    (tree / "usr/lib/obelisk").mkdir(parents=True)
    table = tree / "usr/lib/obelisk/state.fstab"
    shutil.copyfile(GUEST / "root/usr/lib/obelisk/state.fstab", table)
    configure.keep_declared(tree, {"kept": ["/var/lib/shop"], "mounts": "tmpfs /var tmpfs\nkept /var/lib/shop none\n"})
    places = [line.split()[1] for line in table.read_text().splitlines() if not line.startswith("#")]
    assert places == ["/var", "/var/lib/shop", "/etc/machine-id"]
    assert (tree / "usr/lib/obelisk/state.kept").read_text() == "/var/lib/shop\n"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory_of_a_package_cannot_be_kept(tree: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    if kind == "file":
        put(tree, "var/lib/shop")
    else:
        (tree / "var/lib/shop").symlink_to("/srv")
    with pytest.raises(SystemExit):
        configure.keep_declared(tree, {"kept": ["/var/lib/shop"], "mounts": ""})
    assert "refused: declared-file: /var/lib/shop" in capsys.readouterr().err
