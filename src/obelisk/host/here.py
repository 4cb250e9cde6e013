"""This host: which image runs, on which disk, and where its records are.

/run/obelisk/disk   the kernel's name of the disk, written by `start`
/run/obelisk/opened where the state volume is encrypted: by what it was opened, `tpm2` or `recovery-key`, written by `start`;
                    `enrolled` once the TPM has a key again
/run/obelisk/own    of an instance: the kernel's name of the disk with its state, written by `start`
/run/obelisk/host   the subvolume `host` of the state volume: the journal, evidence of failures; it is outside of what a rollback
takes back
/run/obelisk/state  the subvolume `live`
/run/obelisk/esp    the ESP, mounted only while something looks at it
/run/obelisk/top    the whole state volume, likewise
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from obelisk.errors import StateError
from obelisk.host import journal
from obelisk.model.host import Event, Partition, Phase, Record, Slot
from obelisk.system import sfdisk
from obelisk.system.files import locked
from obelisk.system.filesystem import boot_id, lock_holders
from obelisk.system.mounts import mounted
from obelisk.system.sfdisk import TableEntry

_RUN = Path("/run/obelisk")
_WAIT_S = 60.0
STATE_LABEL = "state"
"""Of the partition with the state volume."""
_MAPPED_STATE = Path("/dev/mapper/state")


@dataclass(frozen=True, slots=True)
class Here:
    """The running host. `boot` is the kernel's id of this boot."""

    name: str
    version: str
    root_hash: str
    disk: Path
    keep: Path
    boot: str
    run: Path = _RUN

    @property
    def label(self) -> str:
        """`name_version` of the running image."""
        return f"{self.name}_{self.version}"

    @property
    def state(self) -> Path:
        """The state that programs use: var/, home/ and root/."""
        return self.run / "state"

    @property
    def rehearsal(self) -> Path:
        """Where a rehearsal has its disk, while there is one; see `obelisk.host.rehearsal`."""
        return self.keep / "rehearsal"

    @property
    def trust(self) -> Path:
        """What this host has learned of the repository that it follows; see `obelisk.release.client.trust`."""
        return self.keep / "trust"

    @property
    def incoming(self) -> Path:
        """Where files of a release are until it is installed; see `obelisk.host.channel`."""
        return self.keep / "incoming"

    def slots(self) -> tuple[Slot, ...]:
        """The slots, in the order of the partition table."""
        table = sfdisk.read_table(self.disk)
        roots = [entry for entry in table if entry.type == sfdisk.ROOT]
        trees = [entry for entry in table if entry.type == sfdisk.ROOT_VERITY]
        pairs = zip(roots, trees, strict=False)
        return tuple(Slot(chr(ord("a") + index), _partition(root), _partition(tree)) for index, (root, tree) in enumerate(pairs))

    def booted_slot(self, slots: tuple[Slot, ...]) -> Slot:
        """The slot that this system runs from.

        Raises:
            StateError: none is.
        """
        for slot in slots:
            if slot.root.uuid.replace("-", "") == self.root_hash[:32]:
                return slot
        raise StateError(
            "the running image is in no slot of this disk", code="slot-unknown", hint="was the system started from another disk?"
        )

    @contextmanager
    def alone(self, *, wait_s: float = _WAIT_S) -> Iterator[None]:
        """No other command changes this host while the block lasts. What the machine itself does after a boot is waited for.

        Raises:
            StateError: another one is still at work after `wait_s`.
        """
        deadline = time.monotonic() + wait_s
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(locked(self.keep / "lock", wait=False))
                    break
                except StateError as error:
                    if time.monotonic() > deadline:
                        holders = ", ".join(lock_holders(self.keep / "lock")) or "another process"
                        raise StateError(
                            f"this host is being changed by {holders}", code="host-busy", hint="wait until that is finished, then try again"
                        ) from error
                time.sleep(0.2)
            yield

    @contextmanager
    def esp(self) -> Iterator[Path]:
        """The ESP, mounted; durable when the block ends."""
        entry = self._partition(sfdisk.ESP, "EFI system partition")
        with mounted(entry.device, self.run / "esp", "vfat", "umask=0077") as place:
            yield place

    @contextmanager
    def top(self) -> Iterator[Path]:
        """The top of the state volume, mounted, with all its subvolumes."""
        with mounted(self.state_device(), self.run / "top", "btrfs", "noatime", "subvolid=5") as place:
            yield place

    def opened_by(self) -> str:
        """By what the state volume was opened at this boot: `tpm2`, `recovery-key` or, where the TPM got a key since, `enrolled`.

        Empty where it is not encrypted.
        """
        try:
            return (self.run / "opened").read_text().strip()
        except FileNotFoundError:
            return ""

    def state_device(self) -> Path:
        """What is mounted of the state volume: its partition, or what is in it where that is encrypted."""
        return _MAPPED_STATE if self.opened_by() else self.state_partition()

    def state_partition(self) -> Path:
        """The partition of the state volume, or the disk that an instance has for it."""
        if own := self.own_state():
            return own
        found = [entry for entry in sfdisk.read_table(self.disk) if entry.label == STATE_LABEL]
        if not found:
            raise StateError(f"{self.disk} has no state volume", code="state-missing", hint="was the system started from another disk?")
        return found[0].device

    def own_state(self) -> Path | None:
        """The disk with the state, where this machine is an instance and has it on one of its own; else None."""
        try:
            return Path("/dev") / (self.run / "own").read_text().strip()
        except FileNotFoundError:
            return None

    def note(
        self, event: Event, image: str, *, image_id: str = "", phase: Phase | None = None, duration_ms: int | None = None, detail: str = ""
    ) -> None:
        """Add a record to the journal."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        journal.append(self.keep, Record(event, now, self.boot, image, image_id, phase, duration_ms, detail))

    def _partition(self, kind: str, name: str) -> TableEntry:
        for entry in sfdisk.read_table(self.disk):
            if entry.type == kind:
                return entry
        raise StateError(f"{self.disk} has no {name}", code="disk-partition", hint="this is not a disk that Obelisk made")


def here(run: Path = _RUN) -> Here:
    """The host that this process runs on.

    Raises:
        StateError: this machine's operating system is no image of ours.
    """
    try:
        disk = Path("/dev") / (run / "disk").read_text().strip()
        release = dict(line.split("=", 1) for line in Path("/usr/lib/os-release").read_text().splitlines() if "=" in line)
        words = Path("/proc/cmdline").read_text().split()
        root_hash = next(word.removeprefix("roothash=") for word in words if word.startswith("roothash="))
        name, version = (release[key].strip('"') for key in ("IMAGE_ID", "IMAGE_VERSION"))
    except (OSError, KeyError, StopIteration) as error:
        raise StateError(
            "this machine's operating system is not an Obelisk image",
            code="no-host",
            hint="run this on a host; `obelisk run IMAGE` starts one to try",
        ) from error
    return Here(name, version, root_hash, disk, run / "host", boot_id(), run)


def _partition(entry: TableEntry) -> Partition:
    return Partition(entry.number, str(entry.device), entry.size_bytes, entry.label, entry.uuid)
