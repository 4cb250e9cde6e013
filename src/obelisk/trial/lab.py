"""Starts the machines of a trial."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from obelisk.errors import CommandError
from obelisk.events import Note, Sink
from obelisk.machine import LATE_TIMER, Machine, initrd_with
from obelisk.model import uki
from obelisk.system import qemu
from obelisk.system.bubblewrap import Bind, Room
from obelisk.trial.agent import PORT, Finding, Probe, findings, injected

BOOT_S = 420
"""How long a machine may take to say that it is healthy, besides what its checks may take."""
HEALTHY = r"obelisk: {label} (?:healthy boot=(\S+) machine=(\S+) uptime=(\S+)|UNHEALTHY(.*))"
"""What a machine says of itself on its consoles."""

_TRIES = 3  # of a boot whose emulated timer came too late
_Seen = TypeVar("_Seen")


@dataclass(frozen=True, slots=True)
class Lab:
    """Where machines run: the tools, the acceleration, and the directories that they see.

    `measured` is what the firmware of a sealed boot has told its TPM, and every boot with the agent repeats.
    """

    room: Room
    accel: str
    sink: Sink
    binds: tuple[Bind, ...]
    measured: tuple[bytes, ...] = ()

    def boot(self, settings: qemu.Settings, watch: Callable[[Machine], _Seen]) -> _Seen:
        """What `watch` sees of a machine with these settings; one that panicked for want of a timer is started again."""
        for left in reversed(range(_TRIES)):
            with Machine(self.room, settings, binds=self.binds, accel=self.accel) as machine:
                try:
                    return watch(machine)
                except CommandError as error:
                    if error.code != LATE_TIMER or not left:
                        raise
            self.sink(Note("this busy machine's emulated timer came too late for the kernel: booting again"))
        raise AssertionError

    def inside(self, settings: qemu.Settings, kernel_image: Path, wanted: Sequence[Probe], *, timeout_s: float) -> dict[str, Finding]:
        """Boot a machine with the UKI's own kernel, initrd and command line, and an agent that tries `wanted` and switches it off.

        What a boot that failed has reported is returned all the same.
        """
        work = settings.directory
        sections = uki.sections(kernel_image.read_bytes())
        (work / "linux").write_bytes(sections["linux"])
        (work / "initrd").write_bytes(initrd_with(sections["initrd"], injected(wanted, self.measured)))
        said = work / "agent.out"
        said.unlink(missing_ok=True)
        command_line = sections["cmdline"].rstrip(b"\0").decode()
        kernel = qemu.Kernel(work / "linux", work / "initrd", command_line, measured=settings.tpm is None)
        with suppress(CommandError):
            self.boot(
                replace(settings, kernel=kernel, variables=None, ports={PORT: said}),
                lambda machine: machine.wait_until_off(timeout_s=timeout_s),
            )
        return findings(said.read_text(errors="replace") if said.exists() else "")


def since(began: float) -> int:
    """Milliseconds since that reading of the monotonic clock."""
    return round((time.monotonic() - began) * 1000)
