"""mkosi 25, configured to make what we make. Each choice that could help or hurt it is explained where it is made."""

import shutil
import time
from enum import Enum
from pathlib import Path

from apparatus.scene import PEER_IMAGE_PACKAGES, SUITE, Scene
from obelisk.build import health
from obelisk.build.programs import GUEST
from obelisk.build.seal import command_line
from obelisk.errors import StateError
from obelisk.events import Task
from obelisk.system.bubblewrap import read_only, writable

_INSIDE = Path("/bench")


class Kind(Enum):
    """Which image mkosi makes of the same packages."""

    SEALED = "mkosi, sealed"
    """As ours: EROFS and dm-verity, mkosi's own initrd."""
    DEFAULT = "mkosi"
    """mkosi's default: a writable ext4 root, mkosi's own initrd."""
    GENERIC = "mkosi, initramfs-tools"
    """The default with the initrd that Debian itself would make, for any hardware."""


# Comments begin in the first column; mkosi reads them as such.
_CONFIGURATION = """\
[Distribution]
Distribution=debian
Release={suite}
# The same files that Obelisk installs from, in a directory: no network, no download, and no large index to read.
LocalMirror=file:///bench/mirror

[Output]
Format=disk
Output=image
ImageId={name}
ImageVersion={version}
OutputDirectory=/bench/{directory}/output
# Obelisk writes no manifest of mkosi's kind; mkosi is spared it.
ManifestFormat=
# Obelisk keeps root, hash tree and UKI as files of their own, because hosts download those: so does mkosi.
SplitArtifacts={artifacts}
Seed={seed}

[Content]
# Every package of Obelisk's image by name, so that both have the same; mkosi needs the boot loader in the image besides.
Packages={packages}
WithRecommends=no
# As `documentation = false` does: mkosi leaves manuals out as it installs, translations it removes afterwards.
WithDocs=no
RemoveFiles=/usr/share/locale/*/LC_MESSAGES
# Obelisk clamps times for reproducibility; without this mkosi's image would differ at each build.
SourceDateEpoch={epoch}
Bootable=yes
Bootloader=systemd-boot
KernelCommandLine={command_line}
{content}

[Validation]
# UKI and boot loader signed, keys for enrolment on the ESP, as Obelisk does.
SecureBoot=yes
SecureBootKey=/keys/db.key
SecureBootCertificate=/keys/db.crt

[Build]
# The tools are those of the tree that both run in.
ToolsTree=
BuildSources=
# Images of the same packages share what mkosi keeps of them.
CacheDirectory=/bench/cache
PackageCacheDirectory=/bench/{directory}/packages
# On the disk where Obelisk's store is; /tmp is memory here.
WorkspaceDirectory=/bench/{directory}/workspace
# Not used by Obelisk either: the disk is assembled without loop devices.
RepartOffline=yes
"""

_PARTITIONS = {
    # Read-only file systems are made as small as they come, and only so can their size be known before.
    "00-esp": "Type=esp\nFormat=vfat\nCopyFiles=/boot:/\nCopyFiles=/efi:/\nSizeMinBytes=512M\nSizeMaxBytes=512M",
    "10-root": "Type=root\nFormat=erofs\nCopyFiles=/\nVerity=data\nVerityMatchKey=root\nMinimize=best",
    "20-verity": "Type=root-verity\nVerity=hash\nVerityMatchKey=root\nMinimize=best",
}

_GENERIC_SCRIPT = """\
#!/bin/sh
set -eu
unset INITRD
update-initramfs -c -k "$(ls /usr/lib/modules)"
mkdir -p "$ARTIFACTDIR/io.mkosi.initrd"
mv /boot/initrd.img-* "$ARTIFACTDIR/io.mkosi.initrd/"
"""


class Mkosi:
    """One image's configuration and output, in WORK/mkosi-KIND."""

    def __init__(self, scene: Scene, keys: Path, kind: Kind) -> None:
        self._scene = scene
        self._keys = keys
        self._name = f"mkosi-{kind.name.lower()}"
        self.directory = scene.work / self._name
        for name in ("output", "packages", "workspace", "mkosi.extra"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "mkosi.conf").write_text(self._configuration(kind))
        if kind is Kind.SEALED:
            (self.directory / "mkosi.repart").mkdir()
            for name, text in _PARTITIONS.items():
                (self.directory / f"mkosi.repart/{name}.conf").write_text(f"[Partition]\n{text}\n")
        if kind is Kind.GENERIC:
            script = self.directory / "mkosi.postinst.chroot"
            script.write_text(_GENERIC_SCRIPT)
            script.chmod(0o755)
        self._lay_extra_tree()
        self.cache.mkdir(exist_ok=True)

    @property
    def cache(self) -> Path:
        """What mkosi keeps for incremental builds."""
        return self._scene.work / "mkosi-cache"

    @property
    def disk(self) -> Path:
        """The disk of the last build."""
        return self.directory / "output/image.raw"

    def build(self, *words: str, running: Task, cache: Path | None = None) -> float:
        """Run `mkosi WORDS build` to its end, with another cache when one is named, and return the wall time in seconds."""
        command = ["mkosi", f"--directory={_INSIDE / self._name}", *words, "build"]
        binds = [
            writable(self.directory, _INSIDE / self._name),
            writable(cache or self.cache, _INSIDE / "cache"),
            read_only(self._scene.work / "mirror", _INSIDE / "mirror"),
            read_only(self._keys, "/keys"),
        ]
        began = time.monotonic()
        self._scene.room.run(command, binds=binds, on_line=running.output)
        return time.monotonic() - began

    def shipped(self) -> dict[str, Path]:
        """The files of root, hash tree and UKI."""
        wanted = {"root": "image.root-x86-64.raw", "verity": "image.root-x86-64-verity.raw", "uki": "image.efi"}
        return {part: self.directory / "output" / file for part, file in wanted.items()}

    def _configuration(self, kind: Kind) -> str:
        scene = self._scene
        words = [word for word in command_line(scene.spec, "").split() if not word.startswith(("root=", "rootfstype=", "roothash=", "ro"))]
        content = ""
        if kind is Kind.GENERIC:
            words += ["root=PARTUUID", "rw"]
            content = "KernelModulesInitrd=no"  # the initrd has its modules already
        return _CONFIGURATION.format(
            suite=SUITE,
            name=scene.spec.name,
            version=scene.spec.version,
            directory=self._name,
            artifacts="uki,partitions" if kind is Kind.SEALED else "uki",
            seed="6f62656c-6973-4b00-8000-000000000003",
            packages=",".join((*scene.packages, *PEER_IMAGE_PACKAGES)),
            epoch=scene.lock.system.epoch,
            command_line=" ".join(words),
            content=content,
        )

    def _lay_extra_tree(self) -> None:
        """What the spec lays over its packages, the same network settings, and the very program that says `healthy`."""
        extra = self.directory / "mkosi.extra"
        if self._scene.spec.tree is None:
            raise StateError("the spec of the benchmark has no tree", code="bench-tree")
        shutil.copytree(self._scene.spec.tree, extra, dirs_exist_ok=True)
        guest = GUEST / "root/usr/lib"
        unit = "systemd/system/obelisk-health.service"
        for name in ("obelisk/health", unit, "systemd/network/89-obelisk-dhcp.network"):
            target = extra / "usr/lib" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(guest / name, target)
        wants = extra / "usr/lib/systemd/system/multi-user.target.wants"
        wants.mkdir()
        (wants / "obelisk-health.service").symlink_to("../obelisk-health.service")
        (extra / "usr/lib/obelisk/health.conf").write_text(health.configuration(self._scene.spec.health))
