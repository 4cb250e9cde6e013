"""The scene that both sides build in: one tools tree, one set of package files, one spec, one pair of keys, no network.

Where things are:

    .cache/bench/store    packages and tools tree, kept from run to run
    .cache/bench/keys     the keys that sign both sides' images
    WORK/web              examples/web with its lock, whose tools are the peer's and ours together
    WORK/index            the archives' signed indexes, as the spec's `mirror`: so `obelisk lock` resolves without the network
    WORK/mirror           the very same package files as a local mirror for mkosi
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apparatus.measure import CACHE, ROOT, obelisk
from obelisk import spec as specs
from obelisk.build import debian
from obelisk.build.graph import execute
from obelisk.build.lockfile import read_lock, write_lock
from obelisk.build.packages import fetch, lay_out
from obelisk.build.trees import tools_step
from obelisk.events import Sink, task
from obelisk.model.lock import Lock, Package, PackageSet
from obelisk.model.spec import Spec
from obelisk.store import Store
from obelisk.system.apt import Archive, Resolver, download
from obelisk.system.bubblewrap import Room

SUITE = debian.TOOLS_SUITE
ADDED = "jq"  # with the two libraries that it needs

# What mkosi needs beside our own tools to make a Debian image.
_PEER_PACKAGES = ("mkosi",)
# What mkosi's images need beside ours: it takes boot loader and stub from the image itself.
PEER_IMAGE_PACKAGES = ("systemd-boot-efi",)
# What mkosi 25 puts into its default initrd on Debian. Source: mkosi/resources/mkosi-initrd in its package.
_INITRD_PACKAGES = (
    *("bash", "btrfs-progs", "dmsetup", "dosfstools", "e2fsprogs", "erofs-utils", "kmod", "less", "libcryptsetup12", "libfido2-1", "lvm2"),
    *("^libtss2-esys-[0-9.]+-0$", "^libtss2-mu[0-9.-]+$", "libtss2-rc0", "libtss2-tcti-device0", "p11-kit"),
    *("systemd", "systemd-cryptsetup", "systemd-repart", "udev", "util-linux", "base-files"),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A prepared place. `spec` is as examples/web, `packages` are the names of everything in its image."""

    work: Path
    store: Store
    room: Room
    spec: Spec
    lock: Lock

    @property
    def packages(self) -> tuple[str, ...]:
        """The names of all packages in the image."""
        return tuple(package.name for package in self.lock.system.packages)

    @property
    def tools_key(self) -> str:
        """The store's key of the tools tree."""
        return self.room.tree.parents[1].name


def prepare(work: Path, sink: Sink) -> Scene:
    """Resolve, download, make the tools tree and lock the spec. Only the resolving is repeated when all is there already."""
    store = Store.open(CACHE / "store")
    directory = work / "web"
    shutil.copytree(ROOT / "examples/web", directory, ignore=shutil.ignore_patterns("*.lock"))
    _insert(directory / "obelisk.toml", f'mirror = "file://{work}/index/{{origin}}"')
    spec = specs.load(directory)
    archives = debian.archives(SUITE)
    with task(sink, "resolve", "Resolving packages of both sides") as running:
        resolver = Resolver(work / "apt", archives)
        epoch = resolver.update(on_line=running.output)
        _publish(archives, work / "index")
        wanted = debian.image_packages(spec)
        tools, image = (
            PackageSet(SUITE, epoch, resolver.resolve(names, recommends=False))
            for names in ((*debian.TOOLS_PACKAGES, *_PEER_PACKAGES), wanted)
        )
        more = resolver.resolve((*wanted, *PEER_IMAGE_PACKAGES, ADDED), recommends=False)
        initrd = resolver.resolve(_INITRD_PACKAGES, recommends=False)
    everything = _distinct((*tools.packages, *image.packages, *more, *initrd))
    fetch(everything, lambda: archives, store, sink)
    _lay_out_mirror(PackageSet(SUITE, epoch, _distinct((*image.packages, *more, *initrd))), store, work / "mirror")
    tree = execute((tools_step(tools, store, sink),), store, sink)["tools"] / "tree"
    # A lock keeps what it finds: so both sides install the same packages, and build with the same programs.
    write_lock(spec.lock_file, Lock("0" * 64, PackageSet(SUITE, epoch, ()), image, tools))
    with task(sink, "lock", "Locking the spec"):
        obelisk("lock", str(directory), log=work / "lock.log")
    store.close()
    return Scene(work, store, Room(tree), specs.load(directory), read_lock(spec.lock_file))


def add_package(spec: Spec) -> Spec:
    """Write one package more into the spec."""
    text = spec.file.read_text()
    before = 'packages = ["nginx-light"'
    spec.file.write_text(text.replace(before, f'{before}, "{ADDED}"'))
    return specs.load(spec.directory)


def _publish(archives: Iterable[Archive], index: Path) -> None:
    """Copy what apt reads before it knows of any package, signatures included."""
    files = {}
    for archive in archives:
        for suite in archive.suites:
            for name in ("InRelease", "main/binary-amd64/Packages.xz"):
                target = index / archive.origin / "dists" / suite / name
                target.parent.mkdir(parents=True, exist_ok=True)
                files[f"{archive.uri}/dists/{suite}/{name}"] = target
    download(files)


def _lay_out_mirror(packages: PackageSet, store: Store, mirror: Path) -> None:
    lay_out(packages, store, mirror)
    index = mirror / "dists" / SUITE / "main/binary-amd64"
    index.mkdir(parents=True)
    (mirror / "Packages").rename(index / "Packages")


def _distinct(packages: Iterable[Package]) -> tuple[Package, ...]:
    return tuple({package.sha256: package for package in packages}.values())


def _insert(file: Path, line: str) -> None:
    """Put a line before the first table of a TOML file."""
    text = file.read_text()
    file.write_text(text.replace("\n[", f"\n{line}\n\n[", 1))
