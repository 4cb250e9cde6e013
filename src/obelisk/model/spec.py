"""What the user asks for, parsed and checked: the typed form of `obelisk.toml`.

Paths of files that the spec refers to are absolute and known to exist; paths inside the image are absolute strings. Reading and
checking is the business of `obelisk.spec`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from obelisk.model.application import Application
from obelisk.model.reference import Reference
from obelisk.model.state import FIRST, Encryption


class Role(StrEnum):
    """What the image is for; decides the packages and defaults that come along. An app is no machine: it runs in a sandbox."""

    SERVER = "server"
    WORKSTATION = "workstation"
    APP = "app"


class Compression(StrEnum):
    """How the root file system is compressed. `none` keeps equal files equal blocks, which is what updates live from."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution and its release, written `debian:trixie`."""

    name: str
    suite: str

    def __str__(self) -> str:
        return f"{self.name}:{self.suite}"


class Lockdown(StrEnum):
    """What the kernel keeps from root: changing it (`integrity`), and also reading its memory (`confidentiality`)."""

    INTEGRITY = "integrity"
    CONFIDENTIALITY = "confidentiality"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class AptSource:
    """One more apt archive. `key` is an OpenPGP public key file, armoured or binary."""

    name: str
    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    key: Path


@dataclass(frozen=True, slots=True)
class User:
    """A user with a fixed id. `password` is a crypt(5) hash; None locks the password. `gid` None: a group of the same name and id."""

    name: str
    uid: int
    gid: int | None = None
    groups: tuple[str, ...] = ()
    home: str = ""
    shell: str = "/bin/bash"
    comment: str = ""
    password: str | None = None
    ssh_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A group with a fixed id."""

    name: str
    gid: int


@dataclass(frozen=True, slots=True)
class InlineFile:
    """One file of the image, given in the spec (`content`) or beside it (`source`). Exactly one of the two is set."""

    path: str
    content: str | None = None
    source: Path | None = None
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True, slots=True)
class Script:
    """A build script: an executable file beside the spec, run inside the image's tree as root, without network."""

    name: str
    source: Path


@dataclass(frozen=True, slots=True)
class UnitCheck:
    """Healthy when the systemd unit is active."""

    unit: str


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """Healthy when GET `url` (http, from inside the machine) answers `status` and, when given, `contains` is in the body."""

    url: str
    status: int = 200
    contains: str = ""


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """Healthy when a TCP connection to `host`:`port` opens, from inside the machine."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class CommandCheck:
    """Healthy when the shell command exits with status 0."""

    command: str


Check = UnitCheck | HttpCheck | TcpCheck | CommandCheck


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A named condition that a healthy machine fulfils; it is tried again until `timeout_s` after boot."""

    name: str
    check: Check
    timeout_s: int = 120


@dataclass(frozen=True, slots=True)
class TestCase:
    """A shell command run as root in a booted throw-away copy; passes on exit status 0 and, when given, `expect` in its output."""

    __test__ = False
    name: str
    command: str
    expect: str = ""
    timeout_s: int = 60


@dataclass(frozen=True, slots=True)
class Services:
    """systemd units to enable, disable or mask."""

    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Boot:
    """The kernel package (None: the role's), what is added to its command line."""

    kernel: str | None = None
    cmdline: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hardening:
    """What the kernel refuses. `state_mounts` are mount options of /var, /home and /root."""

    lockdown: Lockdown = Lockdown.INTEGRITY
    module_signatures: bool = True
    state_mounts: tuple[str, ...] = ("nodev", "nosuid")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be in the tree although it is refused by default: absolute paths inside the image."""

    setuid: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """How a host proves a new image that it runs (see `obelisk.host.settings`), and how many slots it has for images.

    `rehearse`: it can prove one before that, in a VM.
    """

    soak_s: int = 30
    deadline_s: int = 900
    tries: int = 3
    slots: int = 2
    rehearse: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """What a host does beside running its image. `applications`: it can have such, installed by `obelisk app`."""

    applications: bool = False


@dataclass(frozen=True, slots=True)
class Subscription:
    """The channel that hosts follow, and at which mirrors. `root` is a file with the repository's root metadata, with which trust begins.

    `bandwidth_bytes_s` None: no limit; `proxy` empty: as the environment says; `follow_s` 0: hosts take nothing by themselves.
    """

    channel: str
    repositories: tuple[str, ...]
    root: Path
    bandwidth_bytes_s: int | None = None
    proxy: str = ""
    follow_s: int = 0


class Policy(StrEnum):
    """What of the state outlives a boot: all of it, or the declared directories alone."""

    ALL = "all"
    DECLARED = "declared"


@dataclass(frozen=True, slots=True)
class Migration:
    """Programs that bring state from the version before `to` to it, and back; without `down` there is no way back."""

    to: int
    up: Path
    down: Path | None = None


@dataclass(frozen=True, slots=True)
class State:
    """How many snapshots of upgrades a host keeps, and absolute paths that the machine's job keeps in its state.

    The image works with state of `version`; `migrations` are those that lead to it, without a gap.
    """

    snapshots: int = 3
    policy: Policy = Policy.ALL
    declare: tuple[str, ...] = ()
    version: int = FIRST
    migrations: tuple[Migration, ...] = ()
    encryption: Encryption = Encryption.NONE

    @property
    def oldest(self) -> int:
        """The lowest version of state that the image can use."""
        return self.migrations[0].to - 1 if self.migrations else self.version


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that one `obelisk.toml` says.

    `tree` is a directory laid over the root, `hostname` None lets each machine have its own, `size_budget_bytes` bounds the root
    file system. `mirror` and `snapshot` are archive base addresses: they decide where bytes come from, never what they are.
    `application` is there exactly when the role is `APP`. Its root has no packages of a distribution where it comes from an OCI `image`, a
    file or directory beside the spec or a place in a registry, or where it is `bare`: then it is `tree` and nothing else.
    """

    file: Path
    name: str
    version: str
    distribution: Distribution
    role: Role
    packages: tuple[str, ...] = ()
    recommends: bool = False
    tree: Path | None = None
    files: tuple[InlineFile, ...] = ()
    users: tuple[User, ...] = ()
    groups: tuple[Group, ...] = ()
    services: Services = field(default_factory=Services)
    boot: Boot = field(default_factory=Boot)
    hostname: str | None = None
    locale: str = "C.UTF-8"
    timezone: str = "UTC"
    sources: tuple[AptSource, ...] = ()
    mirror: str | None = None
    snapshot: str | None = None
    scripts: tuple[Script, ...] = ()
    health: tuple[HealthCheck, ...] = ()
    tests: tuple[TestCase, ...] = ()
    size_budget_bytes: int | None = None
    compression: Compression = Compression.NONE
    upgrade: Upgrade = field(default_factory=Upgrade)
    host: Host = field(default_factory=Host)
    release: Subscription | None = None
    state: State = field(default_factory=State)
    hardening: Hardening = field(default_factory=Hardening)
    allow: Allowed = field(default_factory=Allowed)
    documentation: bool = False
    application: Application | None = None
    image: Path | Reference | None = None
    bare: bool = False

    @property
    def has_packages(self) -> bool:
        """Whether its root is made of a distribution's packages."""
        return self.image is None and not self.bare

    @property
    def directory(self) -> Path:
        """Where the spec lies; relative paths in it start here."""
        return self.file.parent

    @property
    def lock_file(self) -> Path:
        """Where the lock of this spec lies."""
        return self.file.with_suffix(".lock")
