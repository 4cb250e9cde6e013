"""Makes a small initrd from a root tree: systemd, udev, what the verified root and the state volume need, and nothing that is generic.

Input: {"tree": path, "kernel": version, "guest": path of our own files, "out": path}. The output, a zstd-compressed newc archive, is a
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
    "usr/lib/systemd/systemd",
    "usr/lib/systemd/systemd-executor?",
    "usr/lib/systemd/systemd-journald",
    "usr/lib/systemd/systemd-modules-load",
    "usr/lib/systemd/systemd-shutdown",
    "usr/lib/systemd/systemd-sysctl",
    "usr/lib/systemd/systemd-udevd?",
    "usr/lib/systemd/systemd-veritysetup",
    "usr/lib/systemd/systemd-sysroot-fstab-check?",
    "usr/lib/systemd/systemd-pcrextend?",
    "usr/lib/systemd/system-generators/systemd-fstab-generator",
    "usr/lib/systemd/system-generators/systemd-veritysetup-generator",
    "usr/bin/systemctl",
    "usr/bin/systemd-repart",
    "usr/bin/systemd-tmpfiles",
    "usr/bin/udevadm",
    "usr/bin/kmod",
    "usr/sbin/modprobe",
    "usr/sbin/dmsetup?",
    "usr/bin/mount",
    "usr/bin/umount",
    "usr/sbin/blkid",
    "usr/sbin/mkfs.btrfs",
    "usr/bin/btrfs",
    "usr/bin/sh",
    "usr/bin/dash",
    *(f"usr/bin/{name}" for name in ("basename", "cat", "chmod", "dirname", "grep", "mkdir", "mv", "readlink", "sleep", "sync", "tr")),
    "usr/lib/udev/ata_id?",
    "usr/lib/udev/scsi_id?",
)

# What systemd loads by name at run time instead of linking to it.
LOADED_BY_NAME = ("libcryptsetup.so.12", "libkmod.so.2", "libmount.so.1", "libblkid.so.1", "libfdisk.so.1", "libacl.so.1", "libip4tc.so.2")

UNITS = (
    "basic.target",
    "emergency.target",
    "final.target",
    "initrd.target",
    "initrd-fs.target",
    "initrd-root-device.target",
    "initrd-root-fs.target",
    "initrd-usr-fs.target",
    "initrd-switch-root.target",
    "initrd-cleanup.service",
    "initrd-parse-etc.service",
    "initrd-switch-root.service",
    "initrd-udevadm-cleanup-db.service",
    "local-fs.target",
    "local-fs-pre.target",
    "paths.target",
    "reboot.target",
    "poweroff.target",
    "halt.target",
    "kexec.target",
    "remote-fs.target",
    "remote-veritysetup.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "swap.target",
    "sysinit.target",
    "systemd-halt.service",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-modules-load.service",
    "systemd-poweroff.service",
    "systemd-reboot.service",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "time-set.target",
    "timers.target",
    "umount.target",
    "veritysetup.target",
    "veritysetup-pre.target",
)

WANTED = {
    "sysinit.target.wants": (
        "systemd-journald.service",
        "systemd-modules-load.service",
        "systemd-udevd.service",
        "systemd-udev-trigger.service",
        "veritysetup.target",
    ),
    "sockets.target.wants": (
        "systemd-journald.socket",
        "systemd-journald-dev-log.socket",
        "systemd-udevd-control.socket",
        "systemd-udevd-kernel.socket",
    ),
}

RULES = (
    "50-udev-default.rules",
    "55-dm.rules",
    "60-block.rules",
    "60-cdrom_id.rules",
    "60-persistent-storage.rules",
    "60-persistent-storage-dm.rules",
    "64-btrfs.rules",
    "80-drivers.rules",
    "95-dm-notify.rules",
    "99-systemd.rules",
)

# Storage that a root disk may hang on, by module name; those built into the kernel are not found as files, which is fine.
MODULES = [
    "ahci",
    "ata_piix",
    "autofs4",
    "btrfs",
    "crc32c_generic",
    "crc32c-intel",
    "dm_mod",
    "dm_verity",
    "efivarfs",
    "erofs",
    "hv_storvsc",
    "hv_vmbus",
    "mmc_block",
    "mptsas",
    "mptspi",
    "megaraid_sas",
    "mpt3sas",
    "nls_ascii",
    "nls_cp437",
    "nvme",
    "sd_mod",
    "sdhci_acpi",
    "sdhci_pci",
    "sha256_generic",
    "sha256-ssse3",
    "smartpqi",
    "tpm_crb",
    "tpm_tis",
    "uas",
    "usb_storage",
    "usbhid",
    "vfat",
    "virtio_blk",
    "virtio_console",
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
    guest = Path(request["guest"])
    own = {str(path.relative_to(guest)): path for path in sorted(guest.rglob("*")) if path.is_symlink() or path.is_file()}
    compressor = subprocess.Popen(["zstd", "-q", "-9", "-T0", "-o", request["out"]], stdin=subprocess.PIPE)
    if compressor.stdin is None:
        refuse("zstd", "no pipe to zstd")
    with compressor.stdin as stream:
        write_archive(stream, {**files, **own}, synthetic(tree, kernel))
    if compressor.wait() != 0:
        refuse("zstd", f"zstd ended with status {compressor.returncode}")


def collect(tree: Path, kernel: str) -> dict[str, Path]:
    """Archive path -> file or link of the tree, with every library that a program needs and every target of a link."""
    files: dict[str, Path] = {}
    pending = [required(tree, name) for name in PROGRAMS]
    pending += [find_library(tree, name) for name in LOADED_BY_NAME]
    systemd = "usr/lib/systemd/system"
    pending += [f"{systemd}/{unit}" for unit in UNITS if exists(tree / systemd / unit)]
    rules = "usr/lib/udev/rules.d"
    pending += [f"{rules}/{rule}" for rule in RULES if exists(tree / rules / rule)]
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
    optional = name.endswith("?")
    name = name.removesuffix("?")
    for candidate in (name, name.replace("usr/bin/", "usr/sbin/"), name.replace("usr/sbin/", "usr/bin/")):
        if exists(tree / candidate):
            return candidate
    if not optional:
        refuse("initrd-file", f"the packages of the image lack /{name}, without which it cannot boot")
    return ""


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


def synthetic(tree: Path, kernel: str) -> dict[str, bytes | str]:
    """Files (bytes) and links (text) that exist in no tree."""
    release = (tree / "usr/lib/os-release").read_bytes()
    made: dict[str, bytes | str] = {
        "init": "usr/lib/systemd/systemd",
        "bin": "usr/bin",
        "sbin": "usr/sbin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
        "etc/initrd-release": release,
        "usr/lib/initrd-release": release,
        "etc/os-release": "../usr/lib/os-release",
        "usr/lib/os-release": release,
        "etc/passwd": b"root:x:0:0:root:/root:/usr/bin/sh\n",
        "etc/group": b"".join(
            b"%s:x:%d:\n" % (name.encode(), number) for name, number in sorted(group_ids(tree).items(), key=lambda item: item[1])
        ),
        "etc/machine-id": b"",
        "usr/lib/systemd/system/default.target": "initrd.target",
    }
    for directory, units in WANTED.items():
        for unit in units:
            if exists(tree / "usr/lib/systemd/system" / unit):
                made[f"usr/lib/systemd/system/{directory}/{unit}"] = f"../{unit}"
    made.update(module_indexes(tree, kernel))
    return made


def group_ids(tree: Path) -> dict[str, int]:
    """Udev's rules give devices to these groups."""
    wanted = {"root", "tty", "disk", "kmem", "input", "video", "render", "audio", "cdrom", "tape", "dialout", "lp", "kvm", "sgx"}
    lines = (line.split(":") for line in (tree / "etc/group").read_text().splitlines())
    return {fields[0]: int(fields[2]) for fields in lines if fields[0] in wanted}


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


def write_archive(stream: IO[bytes], files: dict[str, Path], made: dict[str, bytes | str]) -> None:
    """Write the entries in newc format. Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst."""
    names = {*files, *made}
    directories = {"dev", "proc", "sys", "run", "tmp", "sysroot", "var", "root", "usr/sbin", "usr/lib64"}
    for name in names:
        directories.update(parents(name))
    for number, name in enumerate(sorted(names | directories), start=1):
        if name in made:
            content = made[name]
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
