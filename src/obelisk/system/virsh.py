"""virsh(1): the libvirt daemon of a host, here or elsewhere, over TLS with both ends verified.

A program and no binding: it takes no compiled library into this one's Python, it is killed like any other, and each answer is a new
connection that either works or says why not. What it says is asked for in forms that are made for programs (XML, `domstats`,
`--rawstats`), never read from tables for people but where a line is a name.
"""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from obelisk.errors import CommandError, MissingFeatureError, ObeliskError, StateError, TransportError, TrustError
from obelisk.system.command import MINIMAL_ENVIRONMENT, find_program, run

_ANSWER_S = 30.0
_DOMAIN_GONE = re.compile(r"[Dd]omain not found|failed to get domain|no domain with matching")
_THING_GONE = re.compile(r"[Nn]etwork not found|[Ss]torage pool not found|[Ss]torage volume not found|no storage vol with matching")
_UNTRUSTED = re.compile(
    r"[Cc]ertificate[^\n]*(?:issuer|not trusted|does not match|expired|activated|revoked|not validate|hostname)|"
    r"Failed to verify peer's certificate|authentication failed|[Cc]lient's Distinguished Name|TLS handshake failed|"
    r"Cannot read CA certificate"
)
_UNREACHED = re.compile(
    r"unable to connect to server|[Cc]annot recv data|[Cc]annot write data|End of file while|Connection (?:refused|reset)|No route to host|"
    r"[Cc]onnection timed out|Name or service not known|client socket is closed|keepalive|Disconnected from"
)


@dataclass(frozen=True, slots=True)
class State:
    """How a domain is: libvirt's own numbers. Source: libvirt, virDomainState and the reasons beside it."""

    state: int
    reason: int

    @property
    def runs(self) -> bool:
        """It has a processor."""
        return self.state in {1, 2}

    @property
    def is_off(self) -> bool:
        """It is only defined."""
        return self.state in {0, 5, 6}

    @property
    def torn(self) -> bool:
        """Its post-copy has failed. A source says so by its pause, and a target that still has what it works on says so while it runs."""
        return (self.state == 3 and self.reason == 13) or (self.state == 1 and self.reason == 11)  # noqa: PLR2004 - numbers of libvirt's


@dataclass(frozen=True, slots=True)
class Migration:
    """How a migration is started. `to` and `data` are where the source host finds the other: its daemon, and its QEMU.

    `disk` is the one that is mirrored. `recovery`: a post-copy that has failed goes on. `rate` is in bytes a
    second; None: as fast as it goes.
    """

    domain: str
    to: str
    data: str
    disk: str | None
    post_copy: bool = False
    slow_down: bool = False
    recovery: bool = False
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A migration has ended: well, or so."""

    error: ObeliskError | None


class Virsh:
    """The daemon at `uri`.

    Every method raises, besides what it says itself: TransportError when nobody answers; TrustError when a certificate is not what it has
    to be, here or there; CommandError when the daemon refuses; MissingFeatureError when there is no virsh here.
    """

    def __init__(self, host: str, uri: str) -> None:
        self.host = host
        self.uri = uri

    def run(self, *words: str | Path, timeout_s: float = _ANSWER_S) -> str:
        """What this command of virsh's says."""
        try:
            return run(self._words(*words), timeout_s=timeout_s).stdout
        except CommandError as error:
            raise self._meaning(error) from error

    def _words(self, *words: str | Path) -> list[str]:
        return [_program(), "--quiet", "--connect", self.uri, "--keepalive-interval", "2", "--keepalive-count", "5", *map(str, words)]

    def _meaning(self, error: CommandError, who: str = "") -> ObeliskError:
        said = " ".join(line.removeprefix("error: ").strip() for line in error.output.strip().splitlines() if line.startswith("error: "))
        return meaning(who or self.host, said or error.output, error)

    # What the host is

    def versions(self) -> dict[str, str]:
        """The versions of the daemon's `library` and of `QEMU`."""
        said = self.run("version", "--daemon")
        found = re.findall(r"^(?:Running hypervisor: (QEMU)|Running against (daemon)): (?:libvirt )?([\d.]+)$", said, re.MULTILINE)
        return {qemu or daemon: version for qemu, daemon, version in found}

    def capabilities(self) -> str:
        """What the host can do, as XML."""
        return self.run("capabilities")

    def domain_capabilities(self, acceleration: str, machine_type: str) -> str:
        """What a machine of that kind can have there, as XML."""
        return self.run("domcapabilities", "--virttype", acceleration, "--machine", machine_type)

    def free_memory(self) -> int:
        """Bytes of memory that a machine could have: what is free, and what the kernel would give back."""
        found = {name: int(size) for name, size in re.findall(r"^(\w+)\s*:\s*(\d+) KiB$", self.run("nodememstats"), re.MULTILINE)}
        return (found.get("free", 0) + found.get("cached", 0) + found.get("buffers", 0)) << 10

    # Domains

    def states(self) -> dict[str, State]:
        """Every domain there, by name."""
        found: dict[str, State] = {}
        for block in re.split(r"^Domain: ", self.run("domstats", "--state"), flags=re.MULTILINE)[1:]:
            numbers = dict(re.findall(r"^\s*state\.(state|reason)=(\d+)$", block, re.MULTILINE))
            found[block.splitlines()[0].strip().strip("'")] = State(int(numbers.get("state", 0)), int(numbers.get("reason", 0)))
        return found

    def uuids(self) -> dict[str, str]:
        """The uuid of every domain there, by name."""
        lines = (line.split(None, 1) for line in self.run("list", "--all", "--uuid", "--name").splitlines() if line.strip())
        return {name.strip(): uuid for uuid, name in lines}

    def xml(self, domain: str) -> str:
        """The XML of a domain, as it would be defined elsewhere.

        Raises:
            StateError: there is none (`domain-missing`).
        """
        return self.run("dumpxml", domain, "--security-info", "--migratable")

    def define(self, xml: str) -> None:
        """Have the domain of this XML there, off unless it runs."""
        with _file(xml) as path:
            self.run("define", path)

    def start(self, domain: str) -> None:
        """Switch it on."""
        self.run("start", domain, timeout_s=120)

    def shut_down(self, domain: str) -> None:
        """Press its power button."""
        self.run("shutdown", domain)

    def destroy(self, domain: str) -> None:
        """Switch it off at once."""
        self.run("destroy", domain, timeout_s=120)

    def resume(self, domain: str) -> None:
        """Give it its processors back."""
        self.run("resume", domain)

    def undefine(self, domain: str) -> None:
        """Forget it, with what libvirt keeps about it."""
        self.run("undefine", domain, "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")

    def statistics(self, domain: str, *kinds: str) -> dict[str, str]:
        """What `domstats` tells of these kinds, such as `balloon`."""
        return dict(re.findall(r"^\s*([\w.]+)=(.*)$", self.run("domstats", domain, *(f"--{kind}" for kind in kinds)), re.MULTILINE))

    def measure_dirty_rate(self, domain: str, seconds: int) -> None:
        """Begin to measure how fast the machine writes; `statistics` has it under `dirtyrate` afterwards."""
        self.run("domdirtyrate-calc", domain, "--seconds", str(seconds))

    def job(self, domain: str) -> dict[str, int]:
        """The numbers of the migration under way, by libvirt's own names (memory_total, …); empty when there is none."""
        said = self.run("domjobinfo", domain, "--rawstats")
        return {} if "Job type: 0" in said else {name: int(value) for name, value in re.findall(r"^(\w+): (-?\d+)$", said, re.MULTILINE)}

    def completed(self, domain: str) -> dict[str, int]:
        """The numbers of the last migration that brought the machine here."""
        said = self.run("domjobinfo", domain, "--completed", "--keep-completed", "--rawstats")
        return {name: int(value) for name, value in re.findall(r"^(\w+): (-?\d+)$", said, re.MULTILINE)}

    def abort(self, domain: str) -> None:
        """Have the migration under way end, with the machine here."""
        self.run("domjobabort", domain, timeout_s=120)

    def go_over(self, domain: str) -> None:
        """Have the migration under way go on by post-copy."""
        self.run("migrate-postcopy", domain)

    def allow_pause(self, domain: str, seconds: float) -> None:
        """For how long the machine may stand still at the end of the migration under way."""
        self.run("migrate-setmaxdowntime", domain, str(round(seconds * 1000)))

    @contextmanager
    def migrating(self, migration: Migration) -> Iterator[Callable[[], Ended | None]]:
        """A migration while it goes on. What is yielded says how it has ended; None as long as it has not.

        It belongs to the two daemons: that this process ends, ends nothing but the watching.
        """
        words = ["migrate", migration.domain, migration.to, "--migrateuri", migration.data, "--live", "--p2p", "--tls", "--abort-on-error"]
        words += ["--persistent", "--undefinesource"]
        if migration.disk is not None:
            words += ["--copy-storage-all", "--migrate-disks", migration.disk]
        words += ["--postcopy"] if migration.post_copy else []
        words += ["--postcopy-resume"] if migration.recovery else []
        words += ["--auto-converge"] if migration.slow_down else []
        words += ["--bandwidth", str(max(migration.rate >> 20, 1))] if migration.rate is not None else []
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                self._words(*words), env=MINIMAL_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0
            )
            try:
                yield lambda: self._outcome(process, said)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _outcome(self, process: subprocess.Popen[bytes], said: IO[str]) -> Ended | None:
        status = process.poll()
        if status is None:
            return None
        said.seek(0)
        error = CommandError(("virsh", "migrate"), status, said.read())
        # The daemon here says of the other one what it says of itself.
        return Ended(None if status == 0 else self._meaning(error, f"{self.host}, or the host that it sends to,"))

    # Storage

    def volumes(self, pool: str) -> frozenset[str]:
        """The names of what is in a pool."""
        self.run("pool-refresh", pool)
        return frozenset(line.split()[0] for line in self.run("vol-list", pool).splitlines() if line.strip())

    def volume_bytes(self, pool: str, volume: str) -> tuple[int, int]:
        """How large a volume is, and how much of that lies on the disk."""
        said = self.run("vol-info", "--pool", pool, "--vol", volume, "--bytes")
        numbers = dict(re.findall(r"^(Capacity|Allocation):\s+(\d+)", said, re.MULTILINE))
        return int(numbers["Capacity"]), int(numbers["Allocation"])

    def room(self, pool: str) -> int:
        """Bytes that are free in a pool."""
        self.run("pool-refresh", pool)
        found = re.search(r"^Available:\s+(\d+)", self.run("pool-info", pool, "--bytes"), re.MULTILINE)
        return int(found[1]) if found else 0

    def make_volume(self, pool: str, volume: str, size: int) -> None:
        """A new volume, empty, that takes room as it is written."""
        self.run("vol-create-as", pool, volume, f"{size}b", "--allocation", "0", "--format", "raw", timeout_s=300)

    def make_disk(self, pool: str, volume: str, size: int) -> None:
        """A new qcow2 volume that seems to have `size` and is empty."""
        self.run("vol-create-as", pool, volume, f"{size}b", "--allocation", "0", "--format", "qcow2")

    def delete_volume(self, pool: str, volume: str) -> None:
        """Take a volume away."""
        self.run("vol-delete", "--pool", pool, "--vol", volume)

    def upload(self, pool: str, volume: str, source: Path) -> None:
        """Fill a volume with a file of this machine."""
        self.run("vol-upload", "--pool", pool, "--vol", volume, "--file", source, "--sparse", timeout_s=24 * 3600)

    def download(self, pool: str, volume: str, target: Path) -> None:
        """Copy a volume into a file of this machine."""
        self.run("vol-download", "--pool", pool, "--vol", volume, "--file", target, "--sparse", timeout_s=24 * 3600)

    def pool_of(self, pool: str, directory: str) -> None:
        """Have a pool of that directory, now and after a restart. May be repeated."""
        if pool not in self.run("pool-list", "--all", "--name").split():
            self.run("pool-define-as", pool, "dir", "--target", directory)
        with suppress(CommandError):  # it is there
            self.run("pool-build", pool)
        with suppress(CommandError):  # it has been started
            self.run("pool-start", pool)
        self.run("pool-autostart", pool)

    def networks(self) -> frozenset[str]:
        """The networks that are up."""
        return frozenset(self.run("net-list", "--name").split())

    def network_of(self, network: str, bridge: str) -> None:
        """Have a network that is a bridge of the host's, now and after a restart. May be repeated."""
        with _file(f"<network><name>{network}</name><forward mode='bridge'/><bridge name='{bridge}'/></network>") as path:
            if network in self.run("net-list", "--all", "--name").split():
                with suppress(CommandError):  # it is not up
                    self.run("net-destroy", network)
                self.run("net-undefine", network)
            self.run("net-define", path)
        self.run("net-start", network)
        self.run("net-autostart", network)


def meaning(host: str, said: str, error: CommandError) -> ObeliskError:
    """What a message of libvirt's, in its own English, asks of whoever gets it."""
    if _UNTRUSTED.search(said):
        return TrustError(
            f"{host}: a certificate was refused: {said}",
            code="host-certificate",
            hint="each host and this machine need a certificate of the same authority, with the name and address by which they are reached",
        )
    if _DOMAIN_GONE.search(said):
        return StateError(f"{host} has no such machine: {said}", code="domain-missing", hint="obelisk instance list")
    if _THING_GONE.search(said):
        return StateError(f"{host}: {said}", code="host-unprepared", hint=f"obelisk instance hosts add {host} … prepares it")
    if _UNREACHED.search(said) or error.code == "command-timeout":
        return TransportError(
            f"{host} does not answer: {said}", code="host-unreachable", hint="see that it is up and that libvirtd listens there"
        )
    return CommandError((f"virsh for {host}",), error.status, said, code="host-refused", hint=error.hint)


@contextmanager
def _file(text: str) -> Iterator[Path]:
    """A file that only this user can read, for as long as virsh reads it: the text may have secrets in it."""
    with tempfile.NamedTemporaryFile("w", prefix="obelisk-virsh-", suffix=".xml") as file:
        file.write(text)
        file.flush()
        yield Path(file.name)


def _program() -> str:
    found = find_program("virsh")
    if found is None:
        raise MissingFeatureError("virsh is not installed", code="program-missing", hint="install the package libvirt-clients")
    return str(found)


def address(uri_host: str, *, certificates: Path | None) -> str:
    """The address of a host's daemon."""
    where = f"[{uri_host}]" if ":" in uri_host else uri_host
    return f"qemu+tls://{where}/system" + (f"?pkipath={certificates}" if certificates else "")
