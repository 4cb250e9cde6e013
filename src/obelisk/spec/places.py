"""Where a spec may put files inside the image, and one spelling for each place.

Three kinds of places are closed: those that the kernel or memory fills at run time, those on the state volume (an image never changes
state, so files there would be seen by no machine or only by new ones), and single files that Obelisk writes from other keys.
"""

import re
from dataclasses import dataclass

# Debian 12 and later: these are links into /usr, so both spellings mean one file.
_MERGED = ("/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a place is closed, and what to do instead."""

    reason: str
    hint: str


_RUNTIME = Refusal("is filled by the kernel while the machine runs", "leave it out")
_MEMORY = Refusal("is in memory and empty at each boot", "let a unit or tmpfiles.d make it at boot")
_STATE = Refusal(
    "is the machine's state, which no image changes",
    "put it below /usr, /etc or /srv; what must be below /var can be made at boot by a unit or tmpfiles.d",
)
_HOME = Refusal("is the machine's state, which no image changes", "SSH keys go to users.NAME.ssh_keys, defaults for new users to /etc/skel")
_BOOT = Refusal("is where the boot partition is mounted", "the kernel comes from `boot.kernel`")

_AREAS = {
    "/proc": _RUNTIME,
    "/sys": _RUNTIME,
    "/dev": _RUNTIME,
    "/run": _MEMORY,
    "/tmp": _MEMORY,  # noqa: S108 - a path inside the image
    "/var": _STATE,
    "/home": _HOME,
    "/root": _HOME,
    "/boot": _BOOT,
    "/efi": _BOOT,
}

_ACCOUNTS = Refusal("is written from the accounts of the spec and its packages", "declare `users` and `groups`")
_OS_RELEASE = Refusal("is written from `name` and `version`", "leave it out")
_LOCALE = Refusal("is written from `locale`", "set `locale`")
_TIMEZONE = Refusal("is written from `timezone`", "set `timezone`")
_WRITTEN = {
    "/etc/hostname": Refusal("is written from `hostname`", "set `hostname`, or leave both out so that each machine has its own"),
    "/etc/machine-id": Refusal("differs from machine to machine", "leave it out: the first boot makes it"),
    "/etc/locale.conf": _LOCALE,
    "/etc/default/locale": _LOCALE,
    "/etc/localtime": _TIMEZONE,
    "/etc/timezone": _TIMEZONE,
    "/etc/passwd": _ACCOUNTS,
    "/etc/shadow": _ACCOUNTS,
    "/etc/group": _ACCOUNTS,
    "/etc/gshadow": _ACCOUNTS,
    "/etc/os-release": _OS_RELEASE,
    "/usr/lib/os-release": _OS_RELEASE,
}
# What of /var belongs to the image or to memory: there are links in these places.
_LINKS = ("/var/run", "/var/lock", "/var/lib/dpkg")
_LINK = Refusal("is a link out of the state", "leave it out")
_ALL = Refusal("is all of it", 'leave it out and say `policy = "all"`')
_NO_STATE = Refusal("is part of the image, not of the state", "state lies below /var, /home and /root")
_HOST_KEY = re.compile(r"/etc/ssh/ssh_host_[^/]*_key(\.pub)?")
_IDENTITY = Refusal("differs from machine to machine", "leave it out: the first boot makes host keys")


def image_path(path: str) -> str:
    """The one spelling of an absolute path inside the image: /bin/x is /usr/bin/x."""
    top = "/" + path.split("/", 2)[1]
    return "/usr" + path if top in _MERGED else path


def refusal(path: str) -> Refusal | None:
    """Why nothing may be put at `path` (in its one spelling), or None when it is open."""
    if _HOST_KEY.fullmatch(path):
        return _IDENTITY
    return _AREAS.get("/" + path.split("/", 2)[1]) or _WRITTEN.get(path)


def undeclarable(path: str) -> Refusal | None:
    """Why `path` cannot be declared as state that a machine keeps, or None when it can."""
    if path == "/var":
        return _ALL
    if path not in {"/home", "/root"} and not path.startswith(("/var/", "/home/", "/root/")):
        return _NO_STATE
    return _LINK if any(path == link or path.startswith(f"{link}/") for link in _LINKS) else None


def parents(path: str) -> tuple[str, ...]:
    """The directories above `path`, nearest first, without the root."""
    parts = path.split("/")
    return tuple("/".join(parts[:length]) for length in range(len(parts) - 1, 1, -1))
