"""What the running machine offers for confinement, looked at once a launch, as a value that plans are compiled from."""

import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import MissingFeatureError
from obelisk.model.policy import Layer
from obelisk.system import cgroups, confine, landlock, systemd_veritysetup, volumes
from obelisk.system.command import find_program, run

# Of /proc, what tells about the machine although no process of the sandbox has to do with it, and anybody may read.
MASKED = ("cmdline", "config.gz", "interrupts", "kallsyms", "keys", "locks", "modules", "partitions", "diskstats", "iomem")
_DISABLES_NAMESPACES = (0, 8)  # the first version of bubblewrap that can keep a sandbox from making user namespaces


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and who launches on it. `landlock` is the kernel's ABI, 0 for none.

    `pasta` and `nft` are programs, empty where there is none; `network` says why no network can be given, and is empty when one can.
    `first_port` is the lowest at which others than root may listen. `groups` says by whom control groups are made. `python`
    is the interpreter for the resolver of granted names, empty where none is for everybody. `bus_proxy`, `xwayland` and `xephyr` are
    programs too. `verity`: root can have the blocks of an image compared with their hash tree whenever they are read. `volumes` says
    why data can have no bound, and is empty when it can.
    """

    owner: confine.Owner
    bubblewrap: str
    pasta: str
    nft: str
    landlock: int
    network: str
    first_port: int
    no_nesting: bool
    no_write_execute: bool
    open_files: int
    masked_files: tuple[str, ...]
    groups: cgroups.Here = cgroups.NOWHERE
    python: str = ""
    verity: bool = False
    bus_proxy: str = ""
    xwayland: str = ""
    xephyr: str = ""
    volumes: str = ""

    @property
    def is_root(self) -> bool:
        """Whether root launches, who then gives the application another user's rights."""
        return self.owner.uid == 0

    @property
    def missing(self) -> frozenset[Layer]:
        """The layers that this machine does not have."""
        has = {Layer.LANDLOCK: self.landlock > 0, Layer.NESTING: self.no_nesting, Layer.WRITE_EXECUTE: self.no_write_execute}
        return frozenset(layer for layer, present in has.items() if not present)


def this_machine() -> Machine:
    """The running one.

    Raises:
        MissingFeatureError: it has no bubblewrap.
    """
    program = find_program("bwrap")
    if program is None:
        raise MissingFeatureError("bwrap is not installed", code="no-bubblewrap", hint="install the package bubblewrap")
    version = tuple(map(int, re.findall(r"\d+", run([program, "--version"]).stdout)[:2]))
    pasta, nft, bus_proxy, xwayland, xephyr = (
        str(find_program(name) or "") for name in ("pasta", "nft", "xdg-dbus-proxy", "Xwayland", "Xephyr")
    )
    proc = Path("/proc")
    return Machine(
        owner=confine.myself(),
        bubblewrap=str(program),
        pasta=pasta,
        nft=nft,
        network=_network_fault(pasta, nft),
        first_port=int((proc / "sys/net/ipv4/ip_unprivileged_port_start").read_text()),
        landlock=landlock.abi(),
        no_nesting=version >= _DISABLES_NAMESPACES,
        no_write_execute=confine.can_refuse_write_execute(),
        open_files=confine.most_open_files(),
        masked_files=tuple(name for name in MASKED if (proc / name).is_file() and (proc / name).stat().st_mode & stat.S_IROTH),
        groups=cgroups.here(confine.myself()),
        python=_interpreter(),
        verity=systemd_veritysetup.is_here(),
        bus_proxy=bus_proxy,
        xwayland=xwayland,
        xephyr=xephyr,
        volumes=volumes.fault(is_root=confine.myself().uid == 0),
    )


def _interpreter() -> str:
    """A Python that every user can run, which one in a home directory is not; empty where there is none."""
    for program in (Path(sys.executable), find_program("python3")):
        found = program.resolve() if program is not None else None
        if found is not None and all(place.stat().st_mode & stat.S_IXOTH for place in (found, *found.parents)):
            return str(found)
    return ""


def _network_fault(pasta: str, nft: str) -> str:
    """Why an application cannot be given a network here; nothing when it can."""
    missing = [package for package, program in (("passt", pasta), ("nftables", nft)) if not program]
    if missing:
        return f"install {' and '.join(missing)}"
    tunnel = Path("/dev/net/tun")
    everybody = stat.S_IROTH | stat.S_IWOTH
    if not tunnel.exists():
        return "load the kernel module tun"
    return "" if tunnel.stat().st_mode & everybody == everybody else f"as root: chmod 0666 {tunnel}, which opens nothing by itself"
