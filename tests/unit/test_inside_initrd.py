"""The initrd's builder, on a small tree with programs that are just enough ELF to name their libraries."""

import io
import stat
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from obelisk.build.inside import initrd

KERNEL = "6.1-test"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LINKER = "lib64/ld-linux-x86-64.so.2"
MODULES = f"usr/lib/modules/{KERNEL}"


def elf(*, needs: Sequence[str] = (), interpreter: str = "") -> bytes:
    """An ELF64 file of one loaded segment, mapped away from its file offset as linkers like to do."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    offsets = [strings.index(name.encode() + b"\0") for name in needs]
    header_bytes, table_bytes, address = 64, 3 * 56, 0x400000
    interp = interpreter.encode() + b"\0"
    body = header_bytes + table_bytes
    dynamic_at, strings_at = body + len(interp), body + len(interp) + 16 * (len(needs) + 2)
    dynamic = b"".join(struct.pack("<qQ", 1, offset) for offset in offsets) + struct.pack("<qQqQ", 5, address + strings_at, 0, 0)
    total = strings_at + len(strings)
    segments = [(1, 0, address, total), (2, dynamic_at, address + dynamic_at, len(dynamic)), (3, body, address + body, len(interp))]
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 4, at, where, where, size, size, 1) for kind, at, where, size in segments)
    if not interpreter:
        table = table[:112] + struct.pack("<IIQQQQQQ", 0, 0, 0, 0, 0, 0, 0, 0)
    header = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    return header + table + interp + dynamic + strings


def put(root: Path, name: str, content: bytes = b"", *, mode: int = 0o644) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def fill(root: Path, *, backwards: bool = False) -> None:
    """A tree with everything that is required; `backwards` makes the same files in the opposite order."""
    program = elf(needs=["libc.so.6"], interpreter=f"/{LINKER}")
    files = dict.fromkeys(initrd.PROGRAMS, program)
    files |= {f"{LIBRARIES}/{name}": elf(needs=["libc.so.6"]) for name in initrd.LOADED_BY_NAME}
    files["usr/lib/systemd/systemd-veritysetup"] = elf(needs=["libsystemd-shared-1.so"], interpreter=f"/{LINKER}")
    files[f"{LIBRARIES}/systemd/libsystemd-shared-1.so"] = elf(needs=["libdeep.so.1"])
    files |= {f"{LIBRARIES}/{name}": elf() for name in ("libc.so.6", "libdeep.so.1.0", "ld-linux-x86-64.so.2")}
    names = (
        "fs/btrfs/btrfs.ko.xz",
        "crypto/xor.ko.xz",
        "lib/libcrc32c.ko.xz",
        "md/dm-verity.ko",
        "md/dm-mod.ko",
        "net/wifi.ko",
        "c/sha-x.ko",
    )
    files |= {f"{MODULES}/kernel/{name}": name.encode() for name in names}
    files[f"{MODULES}/modules.dep"] = (
        b"kernel/fs/btrfs/btrfs.ko.xz: kernel/crypto/xor.ko.xz\nkernel/crypto/xor.ko.xz:\nkernel/lib/libcrc32c.ko.xz:\n"
        b"kernel/md/dm-verity.ko: kernel/md/dm-mod.ko\nkernel/md/dm-mod.ko:\nkernel/net/wifi.ko:\nkernel/c/sha-x.ko:\n"
    )
    files[f"{MODULES}/modules.softdep"] = b"softdep btrfs pre: libcrc32c sha-x\n"
    files[f"{MODULES}/modules.builtin"] = b"kernel/fs/erofs/erofs.ko\n"
    for name in sorted(files, reverse=backwards):
        put(root, name, files[name], mode=0o755 if files[name][:4] == b"\x7fELF" else 0o640)
    (root / "usr/lib64").mkdir()
    (root / "usr" / LINKER).symlink_to(f"/{LIBRARIES}/ld-linux-x86-64.so.2")
    (root / LIBRARIES / "libdeep.so.1").symlink_to("libdeep.so.1.0")
    (root / "lib").symlink_to("usr/lib")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    fill(root)
    return root


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a newc archive, as a reader sees it."""

    name: str
    inode: int
    mode: int
    owner: tuple[int, int]
    mtime: int
    data: bytes


def records(archive: bytes) -> Iterator[Record]:
    """Read an archive by the format's description alone."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, links, mtime, size, *_, name_bytes, checksum = numbers
        assert (links, checksum) == (1, 0)
        start = at + 110
        name = archive[start : start + name_bytes - 1].decode()
        data_at = (start + name_bytes + 3) // 4 * 4
        if name == "TRAILER!!!":
            return
        yield Record(name, inode, mode, (uid, gid), mtime, archive[data_at : data_at + size])
        at = (data_at + size + 3) // 4 * 4


def archive_of(tree: Path) -> bytes:
    stream = io.BytesIO()
    initrd.write_archive(stream, initrd.collect(tree, KERNEL), {"sbin": "usr/sbin", "etc/made": b"made"})
    return stream.getvalue()


def test_a_program_brings_its_linker_and_libraries_and_those_bring_theirs(tree: Path) -> None:
    files = initrd.collect(tree, KERNEL)
    assert f"usr/{LINKER}" in files
    for wanted in ("ld-linux-x86-64.so.2", "libc.so.6", "systemd/libsystemd-shared-1.so", "libdeep.so.1", "libdeep.so.1.0"):
        assert f"{LIBRARIES}/{wanted}" in files


def test_absolute_links_stay_inside_the_tree(tree: Path) -> None:
    put(tree, "usr/bin/real-modprobe", elf())
    (tree / "usr/sbin/modprobe").unlink()
    (tree / "usr/sbin/modprobe").symlink_to("/bin/real-modprobe")
    assert initrd.collect(tree, KERNEL)["usr/bin/real-modprobe"] == tree / "usr/bin/real-modprobe"


def test_elf_files_name_interpreter_and_libraries_and_others_nothing(tmp_path: Path) -> None:
    put(tmp_path, "program", elf(needs=["liba.so.1", "libb.so.2"], interpreter="/lib64/ld.so"))
    put(tmp_path, "library", elf(needs=["libb.so.2"]))
    put(tmp_path, "script", b"#!/bin/sh\n")
    assert initrd.linked(tmp_path / "program") == ("/lib64/ld.so", ["liba.so.1", "libb.so.2"])
    assert initrd.linked(tmp_path / "library") == ("", ["libb.so.2"])
    assert initrd.linked(tmp_path / "script") == ("", [])


@pytest.mark.parametrize("missing", ["usr/sbin/switch_root", "usr/lib/systemd/systemd-veritysetup"])
def test_a_tree_without_a_needed_program_is_refused_by_its_name(tree: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / missing).unlink()
    with pytest.raises(SystemExit) as ended:
        initrd.collect(tree, KERNEL)
    assert ended.value.code == 3
    assert capsys.readouterr().err.startswith(f"refused: initrd-file: the packages of the image lack /{missing}")


def test_programs_may_lie_in_the_other_of_bin_and_sbin(tree: Path) -> None:
    (tree / "usr/sbin/blkid").rename(tree / "usr/bin/blkid")
    files = initrd.collect(tree, KERNEL)
    assert "usr/bin/blkid" in files
    assert "usr/sbin/blkid" not in files


def test_modules_come_with_what_they_link_to_and_what_is_loaded_before_them(tree: Path) -> None:
    found = {Path(name).name for name in initrd.modules(tree, KERNEL)}
    assert {"btrfs.ko.xz", "xor.ko.xz", "libcrc32c.ko.xz", "sha-x.ko", "dm-verity.ko", "dm-mod.ko", "modules.builtin"} <= found


def test_modules_that_nothing_asks_for_stay_out(tree: Path) -> None:
    assert "wifi.ko" not in {Path(name).name for name in initrd.modules(tree, KERNEL)}


@pytest.mark.parametrize(
    ("file", "name"), [("kernel/md/dm-verity.ko", "dm_verity"), ("btrfs.ko.xz", "btrfs"), ("a/xen-blkfront.ko.zst", "xen_blkfront")]
)
def test_module_names_are_those_that_the_kernel_uses(file: str, name: str) -> None:
    assert initrd.module_name(file) == name


def test_the_indexes_cover_the_chosen_modules_and_no_others(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def depmod(argv: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert argv[:2] == ["depmod", "--basedir"]
        base = Path(argv[2]) / "lib/modules" / argv[3]
        seen = sorted(str(path.relative_to(base)) for path in base.rglob("*.ko*"))
        (base / "modules.dep").write_text("".join(f"{name}:\n" for name in seen))
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(subprocess, "run", depmod)
    index = initrd.module_indexes(tree, KERNEL)[f"{MODULES}/modules.dep"]
    assert isinstance(index, bytes)
    listed = {line.removesuffix(":") for line in index.decode().splitlines()}
    assert listed == {name.removeprefix(f"{MODULES}/") for name in initrd.modules(tree, KERNEL) if "/kernel/" in name}


def test_an_archive_is_owned_by_root_without_times_in_the_order_of_its_names(tree: Path) -> None:
    found = list(records(archive_of(tree)))
    assert {record.owner for record in found} == {(0, 0)}
    assert {record.mtime for record in found} == {0}
    assert [record.inode for record in found] == list(range(1, len(found) + 1))
    names = [record.name for record in found]
    assert names == sorted(set(names))
    directories = {record.name for record in found if stat.S_ISDIR(record.mode)}
    assert {str(Path(name).parent) for name in names} <= directories | {"."}


def test_an_archive_holds_contents_links_and_modes_as_they_are(tree: Path) -> None:
    found = {record.name: record for record in records(archive_of(tree))}
    assert found[f"{LIBRARIES}/libdeep.so.1"].data == b"libdeep.so.1.0"
    assert stat.S_ISLNK(found[f"{LIBRARIES}/libdeep.so.1"].mode)
    assert found["usr/bin/mount"].mode == stat.S_IFREG | 0o755
    assert found[f"{MODULES}/kernel/fs/btrfs/btrfs.ko.xz"].data == b"fs/btrfs/btrfs.ko.xz"
    assert (found["sbin"].mode, found["sbin"].data) == (stat.S_IFLNK | 0o777, b"usr/sbin")
    assert found["etc/made"].data == b"made"


def test_equal_trees_give_equal_bytes_whenever_and_in_whatever_order_they_were_made(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "tree"
    fill(other, backwards=True)
    assert archive_of(tree) == archive_of(other)


def test_another_byte_in_a_file_gives_another_archive(tree: Path) -> None:
    before = archive_of(tree)
    put(tree, f"{MODULES}/kernel/fs/btrfs/btrfs.ko.xz", b"other", mode=0o640)
    assert archive_of(tree) != before


@pytest.mark.parametrize("size", range(5))
def test_contents_of_any_length_are_read_back(size: int) -> None:
    stream = io.BytesIO()
    initrd.write_archive(stream, {}, {"a" * (size + 1): b"x" * size, "z": b"end"})
    found = {record.name: record.data for record in records(stream.getvalue())}
    assert found["a" * (size + 1)] == b"x" * size
    assert found["z"] == b"end"
