"""A small initrd for one kernel: systemd, udev and what a verified root and a state volume need, and nothing generic.

It opens the root file system with dm-verity, runs our `state-setup` and hands over to the real system; it can do nothing else, so it
has no shell to log in to, no network and no drivers but those a disk can hang on. `plan` reads a root tree and says what goes in;
`write_archive` writes that as a newc archive which depends on nothing but the files that go in: sorted, owned by root, without times.

Invariants: every program finds its libraries, every link its target, every module its dependencies; a tree that cannot give this is
refused here, not at boot. Nothing outside the tree is read, whatever absolute links it holds.

It does not run programs: the module indexes (depmod) and the compression are the caller's. Standard library only.
"""

import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from obelisk.errors import InputError

# A trailing "?" marks what some distributions lack and the boot can do without.
PROGRAMS = (
    "usr/lib/systemd/systemd",
    "usr/lib/systemd/systemd-executor?",  # since systemd 254
    "usr/lib/systemd/systemd-journald",
    "usr/lib/systemd/systemd-modules-load",
    "usr/lib/systemd/systemd-pcrextend?",  # since 255; measures the phases of the boot into PCR 11
    "usr/lib/systemd/systemd-pcrphase?",  # the same before 255
    "usr/lib/systemd/systemd-shutdown",
    "usr/lib/systemd/systemd-sysroot-fstab-check?",  # since 254; before, the unit calls systemctl
    "usr/lib/systemd/systemd-udevd",
    "usr/lib/systemd/systemd-veritysetup",
    "usr/lib/systemd/system-generators/systemd-fstab-generator",
    "usr/lib/systemd/system-generators/systemd-veritysetup-generator",
    "usr/lib/udev/ata_id?",
    "usr/lib/udev/scsi_id?",
    "usr/bin/btrfs",
    "usr/bin/kmod",
    "usr/bin/mount",
    "usr/bin/systemctl",
    "usr/bin/systemd-repart",
    "usr/bin/udevadm",
    "usr/bin/umount",
    "usr/sbin/blkid",
    "usr/sbin/dmsetup?",
    "usr/sbin/mkfs.btrfs",
    "usr/sbin/modprobe",
    # state-setup
    "usr/bin/sh",
    *(f"usr/bin/{name}" for name in ("cat", "chmod", "mkdir", "mv", "readlink", "rm", "sleep", "sync", "tr")),
)

# What systemd loads by name at run time instead of linking to it. libcrypto is what libcryptsetup hashes with, linked or not.
LIBRARIES = (
    "libcryptsetup.so.12",
    "libkmod.so.2",
    "libmount.so.1",
    "libblkid.so.1",
    "libfdisk.so.1?",
    "libacl.so.1?",
    "libcrypto.so.3?",
    "libseccomp.so.2?",
    "libselinux.so.1?",
    "libtss2-esys.so.0?",
    "libtss2-mu.so.0?",
    "libtss2-rc.so.0?",
    "libtss2-tcti-device.so.0?",
)

UNITS = (
    "basic.target",
    "emergency.target",
    "final.target",
    "initrd-cleanup.service",
    "initrd-fs.target",
    "initrd-parse-etc.service",
    "initrd-root-device.target",
    "initrd-root-fs.target",
    "initrd-switch-root.service",
    "initrd-switch-root.target",
    "initrd-udevadm-cleanup-db.service",
    "initrd-usr-fs.target",
    "initrd.target",
    "kmod-static-nodes.service?",
    "local-fs-pre.target",
    "local-fs.target",
    "modprobe@.service",
    "paths.target",
    "poweroff.target",
    "reboot.target",
    "remote-fs-pre.target",
    "remote-fs.target",
    "remote-veritysetup.target?",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "swap.target",
    "sysinit.target",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-modules-load.service",
    "systemd-pcrphase-initrd.service?",
    "systemd-poweroff.service",
    "systemd-reboot.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "timers.target",
    "umount.target",
    "veritysetup-pre.target",
    "veritysetup.target",
)

WANTS = {
    "initrd.target": ("systemd-pcrphase-initrd.service",),
    "sockets.target": (
        "systemd-journald-dev-log.socket",
        "systemd-journald.socket",
        "systemd-udevd-control.socket",
        "systemd-udevd-kernel.socket",
    ),
    "sysinit.target": (
        "systemd-journald.service",
        "systemd-modules-load.service",
        "systemd-udev-trigger.service",
        "systemd-udevd.service",
        "veritysetup.target",
    ),
}

RULES = (
    "50-udev-default.rules",
    "55-dm.rules?",
    "60-block.rules",
    "60-persistent-storage-dm.rules?",
    "60-persistent-storage.rules",
    "64-btrfs.rules?",
    "80-drivers.rules",
    "95-dm-notify.rules?",
    "99-systemd.rules",
)

# Without these no image boots, so they are in the kernel or beside it.
NEEDED_MODULES = ("dm_verity", "erofs", "btrfs")

# What a root disk may hang on, what a console may be, and what measures the boot. Kernels have a part of them, built in or as files.
WANTED_MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "virtio_console"),
    *("nvme", "ahci", "ata_piix", "sd_mod", "vmd", "megaraid_sas", "mpt3sas", "smartpqi"),
    *("usb_storage", "uas", "xhci_pci", "ehci_pci", "mmc_block", "sdhci_pci", "sdhci_acpi"),
    *("hv_vmbus", "hv_storvsc", "xen_blkfront", "vmw_pvscsi", "mptspi", "mptsas"),
    *("vfat", "nls_cp437", "nls_ascii", "nls_utf8", "efivarfs"),
    *("tpm_crb", "tpm_tis", "8250", "hvc_xen"),
    *("crc32c_intel", "sha256_ssse3"),
)

DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "sysroot", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "var")
TOP_LINKS = {"bin": "usr/bin", "init": "usr/lib/systemd/systemd", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}

_SYSTEM_UNITS = "usr/lib/systemd/system"
_RULES_DIRECTORY = "usr/lib/udev/rules.d"
_MODULES_DIRECTORY = "usr/lib/modules"
_LINKS_FOLLOWED_AT_MOST = 40  # as the kernel does
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5

Depmod = Callable[[Path, str], object]
Compress = Callable[[Path, Path], object]


class Kind(Enum):
    """What an entry of the archive is; the value is its file type in st_mode."""

    DIRECTORY = stat.S_IFDIR
    FILE = stat.S_IFREG
    LINK = stat.S_IFLNK


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: `content` is the file that its bytes come from, or the bytes themselves, or the target of a link, or for directories ""."""

    path: str
    kind: Kind
    mode: int
    content: Path | bytes | str


def plan(tree: Path, *, kernel: str, guest: Path) -> tuple[Entry, ...]:
    """Everything the initrd holds except the indexes of its modules, in the order of the archive.

    `tree` is an unpacked root with systemd, udev, btrfs-progs and the modules of `kernel`; `guest` is a directory of files of our own,
    laid out as in the initrd, which win over those of the tree. Reads only, needs no privileges beyond reading.

    Raises:
        InputError: the tree lacks something without which its image cannot boot; the message names it.
    """
    source = _Tree(tree)
    names = [
        *_present(source, PROGRAMS),
        *(name for wanted in LIBRARIES if (name := _library(source, wanted)) is not None),
        *_present(source, tuple(f"{_SYSTEM_UNITS}/{unit}" for unit in UNITS)),
        *_present(source, tuple(f"{_RULES_DIRECTORY}/{rule}" for rule in RULES)),
        *_modules(source, kernel),
    ]
    entries = {entry.path: entry for entry in _closure(source, names)}
    entries |= {entry.path: entry for entry in _made(source, entries)}
    entries |= {entry.path: entry for entry in _own(guest)}
    return _with_parents(entries)


def index_modules(entries: Iterable[Entry], *, kernel: str, scratch: Path, depmod: Depmod) -> tuple[Entry, ...]:
    """`entries` with the indexes through which kmod finds their modules; kmod reads only the binary ones, so depmod has to make them.

    `scratch` is an empty directory; `depmod(scratch, kernel)` indexes the modules below `scratch`/lib/modules.
    """
    found = {entry.path: entry for entry in entries}
    base = f"{_MODULES_DIRECTORY}/{kernel}"
    (scratch / base).mkdir(parents=True)
    (scratch / "lib").symlink_to("usr/lib")
    for entry in found.values():
        if entry.path.startswith(f"{base}/") and isinstance(entry.content, Path):
            target = scratch / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry.content, target)
    depmod(scratch, kernel)
    for path in (scratch / base).glob("modules.*"):
        name = f"{base}/{path.name}"
        found[name] = Entry(name, Kind.FILE, 0o644, path.read_bytes())
    return _with_parents(found)


def write_archive(entries: Iterable[Entry], stream: BinaryIO) -> None:
    """Write the entries as a newc archive. Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst."""
    for number, entry in enumerate(entries, start=1):
        data = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
        _record(stream, number, entry.path, entry.kind.value | entry.mode, os.fsencode(data) if isinstance(data, str) else data)
    _record(stream, 0, "TRAILER!!!", 0, b"")


def make_initrd(tree: Path, out: Path, *, kernel: str, guest: Path, scratch: Path, depmod: Depmod, compress: Compress) -> int:
    """Write the initrd of `tree` to `out` and return its size in bytes before compression. `scratch` is an empty directory.

    Raises:
        InputError: see `plan`.
    """
    entries = index_modules(plan(tree, kernel=kernel, guest=guest), kernel=kernel, scratch=scratch, depmod=depmod)
    archive = scratch / "initrd.cpio"
    with archive.open("wb") as stream:
        write_archive(entries, stream)
    compress(archive, out)
    return archive.stat().st_size


class _Tree:
    """A root tree with a merged /usr, whose links are followed inside of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, name: str) -> bool:
        """Whether there is something, be it a dangling link."""
        return os.path.lexists(self.root / name)

    @cached_property
    def library_directories(self) -> tuple[str, ...]:
        """Where this tree's dynamic linker looks, and where systemd's programs tell it to look besides."""
        architectures = sorted(path.name for path in (self.root / "usr/lib").glob("*-linux-gnu*"))
        own = [f"usr/lib/{name}{below}" for name in architectures for below in ("", "/systemd")]
        return (*own, "usr/lib64", "usr/lib", "usr/lib/systemd")

    def link_target(self, name: str) -> str:
        """The name in the tree that the link `name` points to."""
        link = os.readlink(self.root / name)
        return canonical(os.path.normpath(link.lstrip("/") if link.startswith("/") else os.path.join(os.path.dirname(name), link)))

    def file(self, name: str) -> Path:
        """The file that `name` leads to, through links."""
        for _ in range(_LINKS_FOLLOWED_AT_MOST):
            if not (self.root / name).is_symlink():
                return self.root / name
            name = self.link_target(name)
        raise _refusal(f"/{name} is a link that leads in a circle")


def canonical(name: str) -> str:
    """`lib/x` is `usr/lib/x`, and so on for the other directories that a merged /usr has links for."""
    return f"usr/{name}" if name.split("/", 1)[0] in TOP_LINKS else name


def _refusal(message: str) -> InputError:
    return InputError(message, code="initrd", hint="add the package that brings it to `packages`, or remove what changed it")


def _present(source: _Tree, wanted: Iterable[str]) -> Iterator[str]:
    """The names that the tree has. Programs may lie in the other of bin and sbin: distributions move them."""
    for name in wanted:
        plain = name.removesuffix("?")
        places = (plain, plain.replace("usr/bin/", "usr/sbin/"), plain.replace("usr/sbin/", "usr/bin/"))
        found = next((place for place in places if source.has(place)), None)
        if found is not None:
            yield found
        elif plain == name:
            raise _refusal(f"the packages of the image lack /{name}, without which it cannot boot")


def _closure(source: _Tree, names: Iterable[str]) -> Iterator[Entry]:
    """The entries for `names` and for all that they lead to: targets of links, interpreters, libraries."""
    pending, seen = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        path = source.root / name
        if path.is_symlink():
            yield Entry(name, Kind.LINK, 0o777, os.readlink(path))
            target = source.link_target(name)
            # A unit that is masked points to /dev/null.
            if not target.startswith("dev/"):
                pending.append(target)
        elif path.is_file():
            yield Entry(name, Kind.FILE, 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644, path)
            interpreter, libraries = linkage(path)
            pending += [canonical(interpreter.lstrip("/"))] if interpreter else []
            pending += [found for library in libraries if (found := _library(source, library)) is not None]
        else:
            raise _refusal(f"/{name} is missing in the image, though something in its initrd points there")


def _library(source: _Tree, wanted: str) -> str | None:
    plain = wanted.removesuffix("?")
    for directory in source.library_directories:
        if source.has(f"{directory}/{plain}"):
            return f"{directory}/{plain}"
    if plain == wanted:
        raise _refusal(f"the packages of the image lack the library {wanted}, without which it cannot boot")
    return None


def linkage(path: Path) -> tuple[str, tuple[str, ...]]:
    """The interpreter and the libraries that an ELF64 file names; nothing for other files. Source: elf(5)."""
    with path.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01":
            return "", ()

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        (table_offset,) = struct.unpack_from("<Q", header, 32)
        entry_size, count = struct.unpack_from("<HH", header, 54)
        table = read(table_offset, entry_size * count)
        # (type, flags, offset, virtual address, physical address, size in file, size in memory, alignment)
        segments = [struct.unpack_from("<IIQQQQQQ", table, index * entry_size) for index in range(count)]
        interpreter = next((_text(read(s[2], s[5])) for s in segments if s[0] == _PT_INTERP), "")
        dynamic = next((read(s[2], s[5]) for s in segments if s[0] == _PT_DYNAMIC), b"")
        tags = [struct.unpack_from("<qQ", dynamic, at) for at in range(0, len(dynamic) - 15, 16)]
        address = next((value for tag, value in tags if tag == _DT_STRTAB), 0)
        load = next((s for s in segments if s[0] == _PT_LOAD and s[3] <= address < s[3] + s[5]), None)
        if load is None:
            return interpreter, ()
        strings = load[2] + address - load[3]
        return interpreter, tuple(_text(read(strings + value, 256)) for tag, value in tags if tag == _DT_NEEDED)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode()


def _modules(source: _Tree, kernel: str) -> Iterator[str]:
    """The files of the wanted modules and of all that they depend on, and the kernel's own list of what is built in."""
    base = source.root / _MODULES_DIRECTORY / kernel
    if not (base / "modules.dep").is_file():
        raise _refusal(f"the packages of the image bring no modules of the kernel {kernel}")
    depends = _depends(base)
    aliases = _aliases(base)
    soft = _soft_dependencies(base)
    builtin = {module_name(line) for line in _lines(base / "modules.builtin")}
    lacking = [name for name in NEEDED_MODULES if name not in depends and name not in builtin]
    if lacking:
        raise _refusal(f"the kernel {kernel} lacks {', '.join(lacking)}, without which its image cannot boot")
    pending, seen = [module_name(name) for name in (*NEEDED_MODULES, *WANTED_MODULES)], set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in depends:
            file, needs = depends[name]
            yield f"{_MODULES_DIRECTORY}/{kernel}/{file}"
            pending += [*needs, *soft.get(name, ())]
        else:
            pending += aliases.get(name, ())
    for index in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (base / index).is_file():
            yield f"{_MODULES_DIRECTORY}/{kernel}/{index}"


def module_name(file: str) -> str:
    """`kernel/fs/a-b.ko.xz` is the module `a_b`."""
    return file.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _depends(base: Path) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """Module name -> (its file, the names of the modules that it needs), from modules.dep(5)."""
    split = (line.partition(":") for line in _lines(base / "modules.dep"))
    return {module_name(file): (file, tuple(module_name(need) for need in needs.split())) for file, _, needs in split}


def _aliases(base: Path) -> Mapping[str, tuple[str, ...]]:
    """Other names that modules go by (`crypto_crc32c`); patterns of devices are not among them."""
    found: dict[str, tuple[str, ...]] = {}
    for line in _lines(base / "modules.alias"):
        match line.split():
            case ["alias", alias, module] if not re.search(r"[*?\[:]", alias):
                name = module_name(alias)
                found[name] = (*found.get(name, ()), module_name(module))
    return found


def _soft_dependencies(base: Path) -> Mapping[str, tuple[str, ...]]:
    """Module name -> what modprobe loads before it although nothing links to it, by name or alias."""
    found: dict[str, tuple[str, ...]] = {}
    for line in _lines(base / "modules.softdep"):
        match = re.fullmatch(r"softdep (\S+) pre: (.*?)(?: post: .*)?", line)
        if match:
            name = module_name(match[1])
            found[name] = (*found.get(name, ()), *(module_name(need) for need in match[2].split()))
    return found


def _made(source: _Tree, entries: Mapping[str, Entry]) -> Iterator[Entry]:
    """What exists in no tree: the links at the top, the names of groups, and which units start."""
    for name, target in TOP_LINKS.items():
        yield Entry(name, Kind.LINK, 0o777, target)
    release = source.file("usr/lib/os-release").read_bytes()
    # Its presence tells systemd that this is an initrd.
    yield Entry("etc/initrd-release", Kind.FILE, 0o644, release)
    yield Entry("etc/os-release", Kind.LINK, 0o777, "initrd-release")
    yield Entry("etc/passwd", Kind.FILE, 0o644, b"root:x:0:0:root:/root:/usr/sbin/nologin\n")
    yield Entry("etc/group", Kind.FILE, 0o644, _groups(source, entries))
    yield Entry(f"{_SYSTEM_UNITS}/default.target", Kind.LINK, 0o777, "initrd.target")
    for target, units in WANTS.items():
        for unit in units:
            if f"{_SYSTEM_UNITS}/{unit}" in entries:
                yield Entry(f"{_SYSTEM_UNITS}/{target}.wants/{unit}", Kind.LINK, 0o777, f"../{unit}")


def _groups(source: _Tree, entries: Mapping[str, Entry]) -> bytes:
    """The groups that udev's rules give devices to, with the ids they have in the image."""
    rules = [entry.content for path, entry in entries.items() if path.startswith(_RULES_DIRECTORY) and isinstance(entry.content, Path)]
    wanted = {"root", *(name for rule in rules for name in re.findall(r'\bGROUP="([^"$]+)"', rule.read_text()))}
    lines = (line.split(":") for line in _lines(source.file("etc/group")))
    found = sorted((int(fields[2]), fields[0]) for fields in lines if fields[0] in wanted)
    return "".join(f"{name}:x:{number}:\n" for number, name in found).encode()


def _own(guest: Path) -> Iterator[Entry]:
    """Our own files. What begins with #! is a program, whatever mode bits a checkout or a package of ours has left it."""
    for path in guest.rglob("*"):
        name = str(path.relative_to(guest))
        if path.is_symlink():
            yield Entry(name, Kind.LINK, 0o777, os.readlink(path))
        elif path.is_file():
            yield Entry(name, Kind.FILE, 0o755 if path.read_bytes().startswith(b"#!") else 0o644, path)


def _with_parents(entries: Mapping[str, Entry]) -> tuple[Entry, ...]:
    """All entries in the order of the archive: by name, which puts each directory before what it holds."""
    directories = set(DIRECTORIES)
    for name in (*entries, *DIRECTORIES):
        directories.update(str(parent) for parent in Path(name).parents if str(parent) != ".")
    all_entries = {**{name: Entry(name, Kind.DIRECTORY, 0o755, "") for name in directories}, **entries}
    return tuple(all_entries[name] for name in sorted(all_entries))


def _record(stream: BinaryIO, number: int, name: str, mode: int, data: bytes) -> None:
    """One record: a header of hexadecimal fields, the name, the data, the latter two padded to four bytes."""
    encoded = os.fsencode(name) + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), device itself (2), length of the name, checksum (none in this format)
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    stream.write(header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4))
