"""Pairs of images for the comparison of transports, made by apt and mkfs.erofs and kept between runs.

The old side of the security update is Debian 12's last point release, the new one the same package names with what bookworm-updates and
bookworm-security have on top: another kernel, and what else was mended since. Kernel modules lie uncompressed, as in our images, which
also leave documentation and translations out; desktops' drivers are left out, so that the pair is no larger than it has to be.
"""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from apparatus.measure import CACHE
from obelisk.build.debian import archives
from obelisk.release.client import hashtree
from obelisk.release.client.hashtree import HashTree
from obelisk.release.edges import Image
from obelisk.system.bubblewrap import Room, writable
from obelisk.system.command import run
from obelisk.system.namespace import remove_tree

PLACE = CACHE / "pairs"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DEBIAN, _SECURITY = "debian", "debian-security"
_TOOLS = "erofs-utils,cryptsetup-bin,casync,ostree,xdelta3,zstd"
_PACKAGES = (
    "linux-image-amd64,systemd,systemd-sysv,systemd-resolved,udev,dbus,openssh-server,openssh-client,python3,nginx-light,ca-certificates,"
    "curl,openssl,git,perl,gnupg,iproute2,nftables,vim,sudo,rsync,tmux,strace,bind9-dnsutils,postgresql-client,libkrb5-3,wget,less,man-db,"
    "locales,e2fsprogs,btrfs-progs,cryptsetup-bin,kmod,procps,iputils-ping,tcpdump,gdb,php-cli,samba-libs"
)
_SOURCES = {
    "tools": (("trixie", _DEBIAN),),
    "old": (("bookworm", _DEBIAN),),
    "new": (("bookworm", _DEBIAN), ("bookworm-updates", _DEBIAN), ("bookworm-security", _SECURITY)),
    "trixie": (("trixie", _DEBIAN),),
}
_UNUSED = ("doc", "man", "info", "vim", "i18n", "lintian")
_DRIVERS = ("drivers/gpu", "drivers/media", "drivers/staging", "drivers/iio", "drivers/infiniband", "drivers/net/wireless", "sound")
_EMPTY = 'rm -rf "$1"/boot/* "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/*; find "$1/usr/lib" -name "*.ko.xz" -exec xz -d {} +'
_EPOCHS = {"old": 1_750_000_000, "new": 1_760_000_000, "small": 1_760_000_000, "same": 1_760_000_000, "trixie": 1_765_000_000}
_SALT = hashlib.sha256(b"obelisk bench").hexdigest()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images, and what is between them."""

    name: str
    old: str
    new: str


PAIRS = (
    Pair("rebuild", "new", "same"),
    Pair("small", "new", "small"),
    Pair("security", "old", "new"),
    Pair("distribution", "new", "trixie"),
)


def room() -> Room:
    """The tree with the peers in it, made when there is none."""
    return Room(tree("tools"))


def tree(name: str) -> Path:
    """A root tree by its name, made when there is none."""
    place = PLACE / name
    if not (place / "done").exists():
        remove_tree(place)
        place.mkdir(parents=True)
        if name in _SOURCES:
            _bootstrap(name, place / "tree")
        else:
            subprocess.run(["cp", "-a", tree("new"), place / "tree"], check=True)
            _change(name, place / "tree")
        (place / "done").touch()
    return place / "tree"


def image(name: str) -> tuple[Path, str]:
    """An EROFS image of a tree, with its hash tree beside it, and its root hash."""
    root, tree_file, said = PLACE / f"{name}.erofs", PLACE / f"{name}.erofs.verity", PLACE / f"{name}.erofs.roothash"
    if not said.exists():
        epoch, directory = _EPOCHS[name], tree(name)
        binds = [writable(PLACE, "/pairs")]
        lock = "new" if name == "same" else name
        identity = f"00000000-0000-0000-0000-{hashlib.sha256(lock.encode()).hexdigest()[:12]}"
        words = ["mkfs.erofs", "--quiet", f"-T{epoch}", f"-U{identity}", "-Enoinline_data"]
        inside = Path("/pairs") / directory.relative_to(PLACE)
        room().run([*words, f"/pairs/{root.name}", str(inside)], binds=binds, env={"SOURCE_DATE_EPOCH": str(epoch)})
        tree_file.unlink(missing_ok=True)
        made = room().run(
            ["veritysetup", "format", f"--salt={_SALT}", f"--uuid={identity}", f"/pairs/{root.name}", f"/pairs/{tree_file.name}"],
            binds=binds,
        )
        said.write_text(next(line.split()[-1] for line in made.stdout.splitlines() if line.startswith("Root hash")))
    return root, said.read_text().strip()


def opened(name: str) -> Image:
    """An image as edges take it; the pairs have no kernel images, which no peer would carry either."""
    root, root_hash = image(name)
    none = PLACE / "none"
    none.touch()
    return Image(root, hash_tree(name, root_hash), none)


def hash_tree(name: str, root_hash: str) -> HashTree:
    """The hash tree of an image."""
    return hashtree.parse((PLACE / f"{name}.erofs.verity").read_bytes(), root_hash)


def _bootstrap(name: str, target: Path) -> None:
    sources = _SOURCES[name]
    include = _TOOLS if name == "tools" else _PACKAGES
    variant = "apt" if name == "tools" else "important"
    words = ["mmdebstrap", "--mode=root", "--format=directory", f"--variant={variant}", f"--include={include}"]
    words += ['--aptopt=APT::Install-Recommends "false"', f"--customize-hook={_EMPTY}", sources[0][0], str(target)]
    addresses = {archive.origin: archive.uri for archive in archives(sources[0][0])}
    words += [f"deb [signed-by={_KEYRING}] {addresses[origin]} {suite} main" for suite, origin in sources]
    run(words)
    if name == "tools":
        return
    for node in [path for path in target.glob("dev/*") if path.is_char_device()]:
        node.unlink()  # ostree takes none, and images of ours have none
    for path in [target / "usr/share" / unused for unused in _UNUSED] + [*(target / "usr/share/locale").glob("*/")]:
        shutil.rmtree(path, ignore_errors=True)
    for modules in (target / "usr/lib/modules").iterdir():
        for driver in _DRIVERS:
            shutil.rmtree(modules / "kernel" / driver, ignore_errors=True)


def _change(name: str, target: Path) -> None:
    if name == "same":  # the same lock, and so the same clock, under another version
        release = target / "usr/lib/os-release"
        release.write_text(release.read_text() + "IMAGE_VERSION=2\n")
        return
    (target / "etc/sysctl.d/50-forward.conf").write_text("net.ipv4.ip_forward = 1\n")
    scratch = PLACE / "package"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    subprocess.run(["apt-get", "download", "-q", "tree"], check=True, cwd=scratch, stdout=subprocess.DEVNULL)
    subprocess.run(["dpkg-deb", "-x", *scratch.glob("tree_*.deb"), target], check=True)
    shutil.rmtree(scratch)
