"""The dialect of Debian: which packages every image and the tools tree need, in which suites, from which archives."""

from pathlib import Path

from obelisk.errors import CommandError, InputError
from obelisk.model.spec import Role, Spec
from obelisk.model.state import Encryption
from obelisk.system.apt import Archive, machine_archives
from obelisk.system.mmdebstrap import default_archive

TOOLS_SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What the build itself runs; nothing here depends on the image's own distribution.
TOOLS_PACKAGES = (
    "apt",
    "btrfs-progs",
    "bubblewrap",
    "cpio",
    "cryptsetup-bin",
    "debian-archive-keyring",
    "dosfstools",
    "e2fsprogs",
    "erofs-utils",
    "faketime",
    "kmod",
    "libfdisk1",
    "mmdebstrap",
    "mtools",
    "openssl",
    "ovmf",
    "python3",
    "python3-virt-firmware",
    "qemu-system-x86",
    "qemu-utils",
    "skopeo",
    "swtpm",
    "swtpm-tools",
    "systemd",
    "systemd-boot-efi",
    "systemd-boot-tools",
    "systemd-container",
    "systemd-repart",
    "systemd-ukify",
    "umoci",
    "xz-utils",
    "zstd",
)

_EVERY_IMAGE = (
    "btrfs-progs",
    "ca-certificates",
    "dbus",
    "fdisk",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "libpython3-stdlib",
    "login",
    "netbase",
    "procps",
    "python3-minimal",
    "sbsigntool",
    "systemd",
    "systemd-sysv",
    "tzdata",
    "udev",
)

# What an application finds besides the essential packages: names of hosts and services, certificates, time zones.
_EVERY_APP = ("ca-certificates", "netbase", "tzdata")

# Debian 12 ships in `systemd` what later releases split off.
_BY_SUITE = {
    "bookworm": ("systemd-timesyncd", "systemd-resolved", "cryptsetup-bin"),
    "trixie": ("systemd-timesyncd", "systemd-resolved", "systemd-cryptsetup", "systemd-repart", "linux-sysctl-defaults"),
    "forky": ("systemd-timesyncd", "systemd-resolved", "systemd-cryptsetup", "systemd-repart", "linux-sysctl-defaults"),
}

# What systemd loads by name when it talks to a TPM.
_TPM2 = ("libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64", "libtss2-tcti-device0t64")

_BY_ROLE: dict[Role, tuple[str, ...]] = {Role.APP: (), Role.SERVER: (), Role.WORKSTATION: ("dbus-user-session", "polkitd")}

# What rehearsals of upgrades run.
_REHEARSAL = ("dosfstools", "qemu-system-x86")

# What starts applications, and gives them networks.
_APPLICATIONS = ("bubblewrap", "e2fsprogs", "nftables", "passt")

_SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    "bookworm": {"debian": ("bookworm", "bookworm-updates"), "debian-security": ("bookworm-security",)},
    "trixie": {"debian": ("trixie", "trixie-updates"), "debian-security": ("trixie-security",)},
    "forky": {"debian": ("forky",), "debian-security": ("forky-security",)},
}

DEFAULT_TARGET = {Role.APP: "", Role.SERVER: "multi-user.target", Role.WORKSTATION: "graphical.target"}

# Whoever brings one of these manages the network with it.
_NETWORK_PACKAGES = frozenset({"network-manager", "ifupdown", "ifupdown2", "connman", "netplan.io"})

DEFAULT_KERNEL = "linux-image-amd64"


def foundation_packages(spec: Spec) -> tuple[str, ...]:
    """The packages that every image of the spec's distribution, role and kernel has."""
    if spec.role is Role.APP:
        return _EVERY_APP
    return tuple(sorted({*_EVERY_IMAGE, *_BY_SUITE[spec.distribution.suite], *_BY_ROLE[spec.role], spec.boot.kernel or DEFAULT_KERNEL}))


def image_packages(spec: Spec) -> tuple[str, ...]:
    """The packages that the spec asks for, with those that its foundation brings along."""
    tpm = _TPM2 if spec.state.encryption is Encryption.TPM2 else ()
    rehearsal = _REHEARSAL if spec.upgrade.rehearse else ()
    applications = _APPLICATIONS if spec.host.applications else ()
    return tuple(sorted({*foundation_packages(spec), *tpm, *rehearsal, *applications, *spec.packages}))


def enabled_units(spec: Spec) -> tuple[str, ...]:
    """Units that Debian ships disabled and an image wants on."""
    return () if _NETWORK_PACKAGES & set(spec.packages) else ("systemd-networkd.service",)


def archives(suite: str, *, mirror: str | None = None, keyring: Path = KEYRING) -> tuple[Archive, ...]:
    """Where the suite's packages come from: the spec's mirror, else this machine's apt configuration, else mmdebstrap's default.

    `mirror` may hold `{origin}`, which stands for `debian` and `debian-security`; without it, it serves `debian` alone.

    Raises:
        InputError: there is no such suite.
    """
    if suite not in _SUITES:
        raise InputError(f"debian has no suite {suite!r} here", code="suite-unknown", hint=f"one of {', '.join(_SUITES)}")
    configured = machine_archives()
    found = []
    for origin, suites in _SUITES[suite].items():
        if mirror is not None and ("{origin}" in mirror or origin == "debian"):
            uri = mirror.replace("{origin}", origin)
        elif origin in configured:
            uri = configured[origin]
        else:
            try:
                uri = default_archive(TOOLS_SUITE).replace("/debian", f"/{origin}")
            except CommandError as error:
                raise InputError(
                    f"no archive is known for {origin}", code="mirror-unknown", hint="name one as `mirror` in the spec"
                ) from error
        found.append(Archive(origin, uri.rstrip("/"), suites, ("main",), (keyring,)))
    return tuple(found)


def image_archives(spec: Spec, *, keyring: Path = KEYRING) -> tuple[Archive, ...]:
    """The distribution's archives and those that the spec adds."""
    own = archives(spec.distribution.suite, mirror=spec.mirror, keyring=keyring)
    added = tuple(Archive(s.name, s.uri.rstrip("/"), s.suites, s.components, (s.key,)) for s in spec.sources)
    return own + added


def snapshot_uri(spec: Spec, origin: str) -> str | None:
    """Where packages of `origin`, one of Debian's archives or an added one, are still found when that has dropped them.

    `{origin}` in the spec's `snapshot` stands for the archive's name; without it, the address serves `debian` alone.
    """
    if spec.snapshot is None or ("{origin}" not in spec.snapshot and origin != "debian"):
        return None
    return spec.snapshot.replace("{origin}", origin).rstrip("/")
