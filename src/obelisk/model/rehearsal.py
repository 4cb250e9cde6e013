"""What a rehearsal needs, and what it comes to: decisions over numbers and over what a guest has said.

A rehearsal boots an image in a VM over a copy of a host's state. Its disk is like the one that a host gets when it is installed, but for
room that nobody uses: an empty ESP, one slot as large as the image, the state volume.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from obelisk.errors import ObeliskError, StateError

WORD = "obelisk.rehearsal"
"""On the kernel's command line, and so in ConditionKernelCommandLine= of units: this machine is a rehearsal's."""
PORT = "obelisk.health"
"""The virtio-serial port that takes the guest's report: /run/obelisk/health.json on one line, its journal, and `END`."""
END = b"\x04"

MIB = 1 << 20
_ESP_BYTES = 64 * MIB
_LEAST_VOLUME_BYTES = 512 * MIB
_GROWTH_BYTES = 256 * MIB
_MOST_GROWTH_BYTES = 1 << 30
_SPARE_BYTES = 256 * MIB
_LEAST_MEMORY_BYTES = 768 * MIB
_MOST_CPUS = 8
EMULATION_FACTOR = 4
"""How many times longer a boot may take where the processor is emulated."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a host has for a rehearsal: free room on its state volume, free memory, processors."""

    free_bytes: int
    memory_bytes: int
    cpus: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be rehearsed: the sizes of an image's parts, and what the state takes on the disk."""

    root_bytes: int
    tree_bytes: int
    kernel_bytes: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class Range:
    """Part of a disk."""

    start_bytes: int
    size_bytes: int

    @property
    def end_bytes(self) -> int:
        """Where it ends."""
        return self.start_bytes + self.size_bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """The machine of a rehearsal. A host leaves a disk as it is that has a state volume, and next to nothing free behind it."""

    esp: Range
    root: Range
    tree: Range
    state: Range
    memory_bytes: int
    cpus: int

    @property
    def disk_bytes(self) -> int:
        """The size of the disk, with room for the second copy of the partition table."""
        return self.state.end_bytes + MIB


def plan(means: Means, wanted: Wanted) -> Stage:
    """The machine that this host can give to the rehearsal.

    Raises:
        StateError: there is not enough room for it, or memory; nothing has been written yet.
    """
    image = wanted.root_bytes + wanted.tree_bytes + wanted.kernel_bytes
    # Another volume packs the same files differently, and compresses none.
    copy = wanted.state_bytes + wanted.state_bytes // 10 + 64 * MIB
    needed = image + copy + _GROWTH_BYTES + _SPARE_BYTES
    if means.free_bytes < needed:
        raise StateError(
            f"a rehearsal needs {_mib(needed)} MiB on the state volume ({_mib(image)} for the image, {_mib(copy)} for the copy of the "
            f"state, {_mib(_GROWTH_BYTES)} for what it writes, {_mib(_SPARE_BYTES)} to spare), and {means.free_bytes // MIB} are free",
            code="rehearsal-space",
            hint="make room: `obelisk host snapshot list`, `obelisk host drift`; or upgrade without --rehearse",
        )
    memory = means.memory_bytes // 2
    if memory < _LEAST_MEMORY_BYTES:
        raise StateError(
            f"a rehearsal takes half of the free memory, and no less than {_mib(_LEAST_MEMORY_BYTES)} MiB; "
            f"{means.memory_bytes // MIB} MiB are free",
            code="rehearsal-memory",
            hint="stop what can be spared, or upgrade without --rehearse",
        )
    # What the guest writes must never take the room of the machine that works: the volume ends before.
    growth = _GROWTH_BYTES + min(means.free_bytes - needed, wanted.state_bytes + _MOST_GROWTH_BYTES)
    esp = Range(MIB, _ESP_BYTES)
    root = Range(esp.end_bytes, _whole(wanted.root_bytes))
    tree = Range(root.end_bytes, _whole(wanted.tree_bytes))
    state = Range(tree.end_bytes, _whole(max(copy + growth, _LEAST_VOLUME_BYTES)))
    return Stage(esp, root, tree, state, memory // MIB * MIB, min(means.cpus, _MOST_CPUS))


def obstacle(settings: Mapping[str, str]) -> ObeliskError | None:
    """Why an image with these settings (of its /usr/lib/obelisk/host.conf) cannot be rehearsed; None when it can."""
    if (encryption := settings.get("state_encryption", "none")) != "none":
        return StateError(
            f"the image encrypts its state ({encryption}), and the machine of a rehearsal has nothing to hold the key",
            code="rehearsal-encrypted",
            hint="upgrade without --rehearse",
        )
    return None


@dataclass(frozen=True, slots=True)
class Healthy:
    """The image came up, and its checks passed and stayed passed."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """It did not: `reason`, as the journal has it."""

    reason: str


Verdict = Healthy | Unfit


@dataclass(frozen=True, slots=True)
class Report:
    """What came through the port: the checks that failed, whether it was all of the report, and the health report and journal as sent."""

    failing: tuple[str, ...]
    complete: bool
    health: bytes
    journal: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """The report; None as long as there is no outcome in it."""
        line, newline, rest = data.partition(b"\n")
        if not newline:
            return None
        try:
            failing = tuple(str(check["name"]) for check in json.loads(line) if not check["ok"])
        except (ValueError, KeyError, TypeError):
            failing = ("its health report, which cannot be read",)
        return cls(failing, rest.endswith(END), line + newline, rest.removesuffix(END))


_PANIC = re.compile(r"Kernel panic - not syncing[^\r\n]*")
_STOPPED = re.compile(r"obelisk: STOPPED: ([^\r\n]*?)\. This machine restarts")


def judge(report: Report | None, console: str, *, ended: bool, late_s: int | None) -> Verdict | None:
    """What the rehearsal has come to; None while that is open.

    `ended`: the machine has switched itself off, or would have started anew. `late_s`: the seconds that it had, once they are over.
    """
    if report is not None:
        if not report.failing:
            return Healthy()
        # The journal follows; it is wanted, and not waited for beyond the deadline.
        return Unfit(f"failed: {', '.join(report.failing)}") if report.complete or ended or late_s is not None else None
    if found := _STOPPED.search(console):
        return Unfit(f"stopped: {found[1]}")
    if found := _PANIC.search(console):
        return Unfit(found[0])
    if ended:
        return Unfit("it switched itself off or restarted before it was healthy")
    return Unfit(f"not healthy after {late_s} seconds") if late_s is not None else None


def _mib(size: int) -> int:
    return -(-size // MIB)


def _whole(size: int) -> int:
    return _mib(size) * MIB
