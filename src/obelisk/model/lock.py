"""Every input of an image, pinned: the typed form of `obelisk.lock`.

A lock holds no host: packages are named by the archive (`origin`) and the path below that archive's address, so the same lock builds
from any mirror.
"""

from dataclasses import dataclass

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
class Lock:
    """The inputs of one image: its own packages, the tools that build it, and the ids of accounts that packages create.

    `request` is the digest of the part of the spec that the lock answers; a spec whose request differs wants a new lock.
    Package scripts hand out ids in the order of installation, so the same packages give the same ids; `pinned` names the accounts to
    which a later change of packages would have given others, and which are therefore made first.
    """

    request: str
    system: PackageSet
    tools: PackageSet
    users: tuple[Account, ...] = ()
    groups: tuple[Account, ...] = ()
    pinned: tuple[str, ...] = ()

    @property
    def pinned_users(self) -> tuple[Account, ...]:
        """The users that are made before any package asks for them."""
        return tuple(account for account in self.users if account.name in self.pinned)

    @property
    def pinned_groups(self) -> tuple[Account, ...]:
        """The groups that are made before any package asks for them."""
        return tuple(account for account in self.groups if account.name in self.pinned)

    @property
    def sha256(self) -> str:
        """Digest of everything in the lock that decides the bytes of an image."""
        return digest(
            {
                "system": self.system.sha256,
                "tools": self.tools.sha256,
                "users": {account.name: account.id for account in self.users},
                "groups": {account.name: account.id for account in self.groups},
            }
        )
