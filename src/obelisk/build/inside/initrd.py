"""Makes a small initrd from a root tree: a script, the few programs that it runs, and the drivers of disks.

Input: {"tree": path, "kernel": version, "guest": paths of our own files, "out": path}. The output, a zstd-compressed newc archive, is a
function of the files that go in: sorted, owned by root, without times.
"""

import json
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NoReturn

PROGRAMS = (
    "usr/bin/cat",
    "usr/bin/mkdir",
    "usr/bin/mount",
    "usr/bin/sh",
    "usr/bin/sleep",
    "usr/bin/sync",
    "usr/lib/systemd/systemd-veritysetup",
    "usr/sbin/blkid",
    "usr/sbin/modprobe",
    "usr/sbin/switch_root",
)

# What a program loads by name at run time instead of linking to it.
LOADED_BY_NAME = ("libcryptsetup.so.12",)

# As systemd mounts them. Source: systemd, src/shared/mount-setup.c.
FSTAB = b"""\
proc /proc proc nosuid,nodev,noexec
sysfs /sys sysfs nosuid,nodev,noexec
devtmpfs /dev devtmpfs nosuid,mode=0755
tmpfs /run tmpfs nosuid,nodev,mode=0755,size=20%,nr_inodes=800k
"""

# Storage that a root disk may hang on, by module name; those built into the kernel are not found as files, which is fine.
MODULES = [
    "ahci",
    "ata_piix",
    "btrfs",
    "crc32c_generic",
    "crc32c-intel",
    "dm_mod",
    "dm_verity",
    "erofs",
    "hv_storvsc",
    "hv_vmbus",
    "mmc_block",
    "mptsas",
    "mptspi",
    "megaraid_sas",
    "mpt3sas",
    "nvme",
    "sd_mod",
    "sdhci_acpi",
    "sdhci_pci",
    "sha256_generic",
    "sha256-ssse3",
    "smartpqi",
    "uas",
    "usb_storage",
    "virtio_blk",
    "virtio_mmio",
    "virtio_pci",
    "virtio_scsi",
    "vmw_pvscsi",
    "xen-blkfront",
    "xhci_pci",
    "ehci_pci",
    "vmd",
]


def main() -> None:
    request = json.load(sys.stdin)
    tree, kernel = Path(request["tree"]), request["kernel"]
    files = collect(tree, kernel)
    guests = [Path(guest) for guest in request["guest"]]
    own = {str(path.relative_to(guest)): path for guest in guests for path in guest.rglob("*") if path.is_symlink() or path.is_file()}
    compressor = subprocess.Popen(["zstd", "-q", "-9", "-T0", "-o", request["out"]], stdin=subprocess.PIPE)
    if compressor.stdin is None:
        refuse("zstd", "no pipe to zstd")
    with compressor.stdin as stream:
        write_archive(stream, {**files, **own}, made(tree, kernel))
    if compressor.wait() != 0:
        refuse("zstd", f"zstd ended with status {compressor.returncode}")


def collect(tree: Path, kernel: str) -> dict[str, Path]:
    """Archive path -> file or link of the tree, with every library that a program needs and every target of a link."""
    files: dict[str, Path] = {}
    pending = [required(tree, name) for name in PROGRAMS]
    pending += [find_library(tree, name) for name in LOADED_BY_NAME]
    pending += list(modules(tree, kernel))
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        path = tree / name
        files[name] = path
        if path.is_symlink():
            link = str(path.readlink())
            target = link.lstrip("/") if link.startswith("/") else os.path.normpath(f"{Path(name).parent}/{link}")
            pending.append(canonical(target))
        elif path.is_file():
            interpreter, needed = linked(path)
            if interpreter:
                pending.append(canonical(interpreter.lstrip("/")))
            pending += [find_library(tree, library, beside=path.parent) for library in needed]
    return files


def exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def canonical(name: str) -> str:
    """`lib/x` and `bin/x` are `usr/lib/x` and `usr/bin/x`."""
    return f"usr/{name}" if name.split("/", 1)[0] in {"bin", "sbin", "lib", "lib64"} else name


def required(tree: Path, name: str) -> str:
    places = (name, name.replace("usr/bin/", "usr/sbin/"), name.replace("usr/sbin/", "usr/bin/"))
    found = next((place for place in places if exists(tree / place)), None)
    if found is None:
        refuse("initrd-file", f"the packages of the image lack /{name}, without which it cannot boot")
    return found


def find_library(tree: Path, name: str, *, beside: Path | None = None) -> str:
    places = [
        tree / "usr/lib/x86_64-linux-gnu",
        tree / "usr/lib/x86_64-linux-gnu/systemd",
        tree / "usr/lib/systemd",
        tree / "usr/lib64",
        tree / "usr/lib",
    ]
    for place in [beside, *places] if beside else places:
        if exists(place / name):
            return str((place / name).relative_to(tree))
    return ""


def linked(path: Path) -> tuple[str, list[str]]:
    """The interpreter and the needed libraries of an ELF64 file; nothing for other files. Source: elf(5)."""
    with path.open("rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            return "", []
        offset, entry_bytes, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(entry_bytes * count)
        segments = [struct.unpack_from("<IIQQQQQQ", table, i * entry_bytes) for i in range(count)]

        def read(position: int, size: int) -> bytes:
            file.seek(position)
            return file.read(size)

        interpreter = next((read(s[2], s[5]).rstrip(b"\0").decode() for s in segments if s[0] == 3), "")  # noqa: PLR2004 - PT_INTERP
        dynamic = next((read(s[2], s[5]) for s in segments if s[0] == 2), b"")  # noqa: PLR2004 - PT_DYNAMIC
        entries = [struct.unpack_from("<qQ", dynamic, i) for i in range(0, len(dynamic) - 15, 16)]
        strings = next((value for tag, value in entries if tag == 5), None)  # noqa: PLR2004 - DT_STRTAB
        if strings is None:
            return interpreter, []
        segment = next(s for s in segments if s[0] == 1 and s[3] <= strings < s[3] + s[6])
        base = segment[2] + strings - segment[3]
        names = [read(base + value, 256).split(b"\0", 1)[0].decode() for tag, value in entries if tag == 1]
        return interpreter, names


def modules(tree: Path, kernel: str) -> Iterator[str]:
    """The files of the wanted modules and of all that they depend on."""
    base = f"usr/lib/modules/{kernel}"
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (tree / base / "modules.dep").read_text().splitlines():
        file, _, needs = line.partition(":")
        depends[module_name(file)] = (file, needs.split())
    pending = [module_name(f"{name}.ko") for name in MODULES]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in depends:
            continue
        seen.add(name)
        module, wanted = depends[name]
        yield f"{base}/{module}"
        pending += [module_name(need) for need in wanted]
        hints = re.findall(rf"^softdep {re.escape(name)} pre: (.*)$", (tree / base / "modules.softdep").read_text(), re.MULTILINE)
        pending += [module_name(f"{need}.ko") for hint in hints for need in hint.split() if need != "post:"]
    for index in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (tree / base / index).exists():
            yield f"{base}/{index}"


def module_name(file: str) -> str:
    return file.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def made(tree: Path, kernel: str) -> dict[str, bytes | str]:
    """Files (bytes) and links (text) that exist in no tree."""
    links = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
    return {**links, "etc/fstab": FSTAB, **module_indexes(tree, kernel)}


def module_indexes(tree: Path, kernel: str) -> dict[str, bytes | str]:
    """modules.dep and its kin for the chosen modules only, made by depmod in a scratch tree of links."""
    import tempfile  # noqa: PLC0415 - used here alone

    base = f"usr/lib/modules/{kernel}"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in modules(tree, kernel):
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((tree / name).read_bytes())
        subprocess.run(["depmod", "--basedir", str(root / "usr"), kernel], check=True)
        return {
            f"{base}/{path.name}": path.read_bytes()
            for path in sorted((root / base).glob("modules.*"))
            if path.name not in {"modules.builtin", "modules.builtin.modinfo", "modules.order"}
        }


def write_archive(stream: IO[bytes], files: dict[str, Path], contents: dict[str, bytes | str]) -> None:
    """Write the entries in newc format. Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst."""
    names = {*files, *contents}
    directories = {"dev", "proc", "sys", "run", "sysroot", "usr/sbin", "usr/lib64"}
    for name in names:
        directories.update(parents(name))
    for number, name in enumerate(sorted(names | directories), start=1):
        if name in contents:
            content = contents[name]
            if isinstance(content, str):
                entry(stream, number, name, stat.S_IFLNK | 0o777, content.encode())
            else:
                entry(stream, number, name, stat.S_IFREG | 0o644, content)
        elif name in files:
            path = files[name]
            if path.is_symlink():
                entry(stream, number, name, stat.S_IFLNK | 0o777, os.fsencode(path.readlink()))
            elif path.is_dir():
                entry(stream, number, name, stat.S_IFDIR | 0o755, b"")
            else:
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                entry(stream, number, name, stat.S_IFREG | mode, path.read_bytes())
        else:
            entry(stream, number, name, stat.S_IFDIR | 0o755, b"")
    entry(stream, 0, "TRAILER!!!", 0, b"")


def parents(name: str) -> Iterable[str]:
    while "/" in name:
        name = name.rsplit("/", 1)[0]
        yield name


def entry(stream: IO[bytes], number: int, name: str, mode: int, data: bytes) -> None:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    stream.write(header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4))


def refuse(code: str, message: str) -> NoReturn:
    print(f"refused: {code}: {message}", file=sys.stderr)
    sys.exit(3)


if __name__ == "__main__":
    main()
