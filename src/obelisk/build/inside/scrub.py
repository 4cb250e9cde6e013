"""Turns a freshly installed root tree into one that any number of machines can share: nothing in it says where or when it was made.

Input: {"tree": path, "kernel": where the kernel is to be put, or null for a tree that is complete, "documentation": whether to keep it,
"machine": whether it has a kernel at all}.
Output: {"kernel": version, empty without one, "users": {name: "uid:gid:comment:home:shell"}, "groups": {name: gid}}.
"""

import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Made again by whoever needs them, or different on each machine by right.
REMOVED = (
    "boot/*",
    "initrd.img*",
    "vmlinuz*",
    "etc/*-",
    "etc/.pwd.lock",
    "etc/.updated",
    "etc/hostname",
    "etc/machine-id",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "root/.*",
    "run/*",
    "tmp/*",
    "tmp/.*",
    "var/lib/apt/extended_states",
    "var/lib/apt/lists/*",
    "var/lib/apt/periodic",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/catalog",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
    "var/lib/ucf/*.[0-9]",
    "var/tmp/*",
    "var/.updated",
    "step",  # where the packages were seen while they were installed
)


def main() -> None:
    request = json.load(sys.stdin)
    tree = Path(request["tree"])
    kernel = settle_kernel(tree, request["kernel"] and Path(request["kernel"])) if request["machine"] else ""
    for pattern in REMOVED:
        for path in tree.glob(pattern):
            remove(path)
    if not request["documentation"]:
        for path in documentation(tree / "usr/share"):
            remove(path)
    if request["kernel"] is None:
        close(tree / "var", tree / "usr/lib/sysimage/dpkg")
    (tree / "etc/machine-id").touch(mode=0o444)
    snakeoil = tree / "etc/ssl/private/ssl-cert-snakeoil.key"
    if snakeoil.exists():
        hand_over_snakeoil(tree)
    sort_accounts(tree / "etc")
    json.dump({"kernel": kernel, "users": users(tree / "etc/passwd"), "groups": groups(tree / "etc/group")}, sys.stdout, sort_keys=True)


def close(var: Path, database: Path) -> None:
    """No package comes any more: caches can go, and the package database moves to where it describes the image and not the machine."""
    for place in ("log", "cache"):
        for path in (var / place).rglob("*"):
            if path.is_symlink() or not path.is_dir():
                path.unlink()
    shutil.copytree(var / "lib/dpkg", database, symlinks=True)
    shutil.rmtree(var / "lib/dpkg")
    # For build scripts; on a machine, tmpfiles.d(5) makes the link.
    (var / "lib/dpkg").symlink_to("../../usr/lib/sysimage/dpkg")


def documentation(share: Path) -> Iterator[Path]:
    """What dpkg was told to leave out, where it came in before dpkg; licences and names of locales are no documentation."""
    for name in ("man", "info", "gtk-doc", "lintian", "locale"):
        yield from (path for path in (share / name).glob("*") if path.name != "locale.alias")
    yield from (path for path in (share / "doc").glob("*/*") if path.name != "copyright")


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def hand_over_snakeoil(tree: Path) -> None:
    """The package ssl-cert made a key for this build; each machine gets its own in state instead."""
    for link, target in (("private/ssl-cert-snakeoil.key", "snakeoil.key"), ("certs/ssl-cert-snakeoil.pem", "snakeoil.pem")):
        path = tree / "etc/ssl" / link
        path.unlink(missing_ok=True)
        path.symlink_to(f"/var/lib/obelisk/tls/{target}")
    for path in (tree / "etc/ssl/certs").iterdir():
        if path.is_symlink() and str(path.readlink()) == "ssl-cert-snakeoil.pem":
            path.unlink()


def sort_accounts(etc: Path) -> None:
    """One order of accounts, by id, however the packages' scripts came to add them; no dates of password changes."""
    order: dict[str, int] = {}
    for name, column in (("passwd", 2), ("group", 2)):
        lines = [line.split(":") for line in (etc / name).read_text().splitlines() if line]
        lines.sort(key=lambda fields: (int(fields[column]), fields[0]))
        if name == "group":
            for fields in lines:
                fields[3] = ",".join(sorted(filter(None, fields[3].split(","))))
        order = {fields[0]: index for index, fields in enumerate(lines)}
        (etc / name).write_text("".join(":".join(fields) + "\n" for fields in lines))
        shadow = etc / {"passwd": "shadow", "group": "gshadow"}[name]
        if shadow.exists():
            entries = [line.split(":") for line in shadow.read_text().splitlines() if line]
            entries.sort(key=lambda fields: order.get(fields[0], len(order)))
            for fields in entries:
                if name == "passwd":
                    fields[2] = "1"
                else:
                    fields[3] = ",".join(sorted(filter(None, fields[3].split(","))))
            shadow.write_text("".join(":".join(fields) + "\n" for fields in entries))


def users(path: Path) -> dict[str, str]:
    return {fields[0]: ":".join(fields[2:]) for fields in (line.split(":") for line in path.read_text().splitlines())}


def groups(path: Path) -> dict[str, int]:
    return {fields[0]: int(fields[2]) for fields in (line.split(":") for line in path.read_text().splitlines())}


def settle_kernel(tree: Path, kernel: Path | None) -> str:
    """Move the kernel out of the tree: it is in the UKI. Modules lie uncompressed: they load faster and change less between versions."""
    versions = sorted(path.name for path in (tree / "usr/lib/modules").glob("*") if (path / "kernel").is_dir())
    if len(versions) != 1:
        refuse("kernel-count", f"the packages bring {len(versions)} kernels ({', '.join(versions) or 'none'}), one is wanted")
    version = versions[0]
    modules = tree / "usr/lib/modules" / version
    if kernel is not None:
        beside = modules / "vmlinuz"
        shutil.copyfile(beside if beside.exists() else tree / "boot" / f"vmlinuz-{version}", kernel)
        beside.unlink(missing_ok=True)
    compressed = list((modules / "kernel").rglob("*.ko.xz"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(unpack_module, compressed))
    if compressed:
        subprocess.run(["depmod", "--basedir", str(tree / "usr"), version], check=True)
    return version


def refuse(code: str, message: str) -> None:
    print(f"refused: {code}: {message}", file=sys.stderr)
    sys.exit(3)


def unpack_module(path: Path) -> None:
    data = lzma.decompress(path.read_bytes())
    plain = path.with_suffix("")
    plain.write_bytes(data)
    shutil.copystat(path, plain)
    path.unlink()


if __name__ == "__main__":
    main()
