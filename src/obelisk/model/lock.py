"""Every input of an image, pinned: the typed form of `obelisk.lock`.

A lock holds no host: packages are named by the archive (`origin`) and the path below that archive's address, so the same lock builds
from any mirror.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from obelisk.model.canonical import Json, digest


@dataclass(frozen=True, slots=True)
class Package:
    """One binary package. `origin` is `archive/suite`, e.g. `debian/trixie-security`; `path` is relative to that archive's address."""

    name: str
    version: str
    architecture: str
    sha256: str
    size_bytes: int
    origin: str
    path: str

    def to_json(self) -> Json:
        """The package as plain data."""
        return {
            "name": self.name,
            "version": self.version,
            "architecture": self.architecture,
            "sha256": self.sha256,
            "size": self.size_bytes,
            "origin": self.origin,
            "path": self.path,
        }


@dataclass(frozen=True, slots=True)
class Account:
    """A user or group as some package's installation made it. `entry` are a user's further fields: `gid:comment:home:shell`."""

    name: str
    id: int
    entry: str = ""


Accounts = tuple[tuple[Account, ...], tuple[Account, ...]]
"""Users, and groups."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Names of accounts that are made before any package of the set asks for them."""

    foundation: tuple[str, ...] = ()
    base: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackageSet:
    """The packages of one tree. `epoch` (seconds since 1970) is the newest of the archives' release dates."""

    suite: str
    epoch: int
    packages: tuple[Package, ...]

    @property
    def sha256(self) -> str:
        """Digest of what decides the bytes of the tree."""
        return digest(
            {
                "suite": self.suite,
                "epoch": self.epoch,
                "packages": [[p.name, p.version, p.architecture, p.sha256] for p in self.packages],
            }
        )


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of an OCI image. `media_type` says how it is compressed."""

    sha256: str
    size_bytes: int
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class ImportedImage:
    """An OCI image that an application's root is made of; `sha256` is the digest of its manifest. Layers from the lowest on.

    What follows is what it says of itself: how it starts, with which variables, and where.
    """

    sha256: str
    config: Blob
    layers: tuple[Blob, ...]
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    directory: str = ""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """What it takes to unpack it."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class Lock:
    """The inputs of one image: its own packages, the tools that build it, and the ids of accounts that packages create.

    `request` is the digest of the part of the spec that the lock answers; a spec whose request differs wants a new lock.
    An image's packages are in two sets: the `foundation`, which every image of the distribution and role has, with all that it depends
    on, and which is installed first; and the `base`, which is what the spec adds to it. Package scripts hand out ids in the order of
    installation, so the same packages give the same ids; `pinned` names, by set, the accounts to which a later change of packages would
    have given others, and which are therefore made first. Where the root is an `image`, both sets are empty.
    """

    request: str
    foundation: PackageSet
    base: PackageSet
    tools: PackageSet
    users: tuple[Account, ...] = ()
    groups: tuple[Account, ...] = ()
    pinned: Pinned = field(default_factory=Pinned)
    image: ImportedImage | None = None

    @property
    def system(self) -> PackageSet:
        """All packages of the image, by name; the epoch is that of the later resolution."""
        packages = sorted((*self.foundation.packages, *self.base.packages), key=lambda package: package.name)
        return PackageSet(self.base.suite, max(self.foundation.epoch, self.base.epoch), tuple(packages))

    def accounts(self, names: Collection[str]) -> Accounts:
        """Users and groups of these names, with the ids that are recorded."""
        return tuple(a for a in self.users if a.name in names), tuple(a for a in self.groups if a.name in names)

    @property
    def sha256(self) -> str:
        """Digest of everything in the lock that decides the bytes of an image."""
        image: dict[str, Json] = {}
        if self.image is not None:
            image = {"image": self.image.sha256, "blobs": [blob.sha256 for blob in self.image.blobs]}
        return digest(
            image
            | {
                "foundation": self.foundation.sha256,
                "base": self.base.sha256,
                "tools": self.tools.sha256,
                "users": {account.name: account.id for account in self.users},
                "groups": {account.name: account.id for account in self.groups},
            }
        )
