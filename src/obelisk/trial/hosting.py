"""Whether hosts can take an image, leave it, and survive its failure.

Two hosts live beside the other boots of a trial. One runs the image before this one: it upgrades, is blessed, and is told to go back. The
other runs this image, and is given a sibling of it whose health check always fails.

    D  agent       the image before: `obelisk host upgrade`                B  agent     this image: `obelisk host upgrade` to the sibling
    E  firmware    this image is tried, healthy, blessed                   F  firmware  the sibling fails, restarts, this image is healthy
    G  agent       this image: `obelisk host rollback`                     H  agent     `obelisk host history`
    I  firmware    the image before is healthy again

The image before is the last one of the same name in the store that has an older version; where there is none, it is a sibling of this one.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from uuid import UUID

from obelisk.build import slots
from obelisk.build.image import disk_of, sibling
from obelisk.build.keys import SigningKey
from obelisk.errors import CommandError, StateError
from obelisk.events import Sink
from obelisk.model.image import Manifest, PartKind, parse_manifest
from obelisk.model.lock import Lock
from obelisk.model.proof import ROLLED_BACK, SABOTAGED, UPGRADED
from obelisk.model.spec import CommandCheck, HealthCheck, Spec
from obelisk.model.version import compare
from obelisk.store import Store, StoredImage
from obelisk.system import erofs, qemu
from obelisk.system.bubblewrap import Bind, Room, read_only, writable
from obelisk.trial.agent import Finding, Probe
from obelisk.trial.lab import BOOT_S, Lab, since
from obelisk.trial.report import Outcome

_SHELF = "/run/obelisk-shelf"
_MOUNT = f"mkdir -p {_SHELF} && mount -t erofs -o ro /dev/vdb {_SHELF}"
_UPGRADE_S = 900
_ASK_S = 180  # of a command that takes a second, on machines that are emulated beside others
LOST = Finding(255, 0, "the guest did not report this")
"""What stands for the finding of a probe that never came."""
SABOTAGE = "sabotage"


@dataclass(frozen=True, slots=True)
class Sibling:
    """An image beside the one that is tried: its manifest, its UKI, and its disk as it is shipped."""

    manifest: Manifest
    directory: Path
    disk: Path

    @property
    def uki(self) -> Path:
        """Its kernel image."""
        return self.directory / self.manifest.part(PartKind.UKI).file


@dataclass(frozen=True, slots=True)
class Siblings:
    """The image before, and one that fails."""

    before: Sibling
    failing: Sibling


@dataclass(frozen=True, slots=True)
class Maker:
    """What images are made with: the spec and lock of the one that is tried, the key that signed it, the store, the tools."""

    spec: Spec
    lock: Lock
    key: SigningKey
    store: Store
    room: Room

    def siblings(self, image: StoredImage, work: Path, sink: Sink) -> Siblings:
        """Find or build the images that the scenarios need, in `work`.

        Raises:
            StateError: the image was signed by another key than the one at hand.
        """
        if image.manifest.secure_boot_certificate != self.key.certificate_sha256:
            raise StateError(
                f"{image.manifest.label} was signed by another key than the one at hand",
                code="key-other",
                hint="a trial signs siblings of the image: use the keys that signed it, or build it anew with these",
            )
        check = HealthCheck(SABOTAGE, CommandCheck("false"), timeout_s=1)
        failing = replace(self.spec, version=f"{self.spec.version}-0", health=(*self.spec.health, check))
        return Siblings(self._before(image.manifest, work, sink), self._build(failing, work / "failing", sink))

    def _before(self, wanted: Manifest, work: Path, sink: Sink) -> Sibling:
        for found in self.store.images():
            manifest = found.manifest
            if (
                manifest.name == wanted.name
                and compare(manifest.version, wanted.version) < 0
                and manifest.secure_boot_certificate == wanted.secure_boot_certificate
                and manifest.root_slot_bytes >= wanted.part(PartKind.ROOT).size_bytes
                and manifest.state_encryption is wanted.state_encryption
                and "gpt" in manifest.cmdline.split()  # older ones have no `obelisk host`
            ):
                (work / "disk-before").mkdir()
                return Sibling(manifest, found.directory, disk_of(found, self.store, self.room, work / "disk-before"))
        return self._build(replace(self.spec, version=f"{self.spec.version}~0"), work / "before", sink)

    def _build(self, spec: Spec, target: Path, sink: Sink) -> Sibling:
        disk = sibling(spec, self.lock, self.key, self.store, sink, target)
        return Sibling(parse_manifest((target / "manifest.json").read_bytes()), target, disk)


def make_shelf(image: StoredImage, siblings: Siblings, room: Room, work: Path) -> Path:
    """A disk with the images to upgrade to: `this` and `failing`."""
    target = work / "shelf.erofs"
    request = erofs.Make(Path("/shelf"), Path("/out") / target.name, 0, UUID(int=0))
    binds = [read_only(image.directory, "/shelf/this"), read_only(siblings.failing.directory, "/shelf/failing"), writable(work, "/out")]
    room.run(request.argv(), binds=binds)
    return target


def sabotage() -> Probe:
    """What boot B tries last: install the failing sibling."""
    return Probe(SABOTAGE, f"{_MOUNT} && obelisk host upgrade {_SHELF}/failing", _UPGRADE_S)


class HostTrial:
    """The two hosts. `settings` is the machine that every boot of the trial uses; `health_s` what its checks may take."""

    def __init__(self, lab: Lab, image: StoredImage, siblings: Siblings, settings: qemu.Settings, health_s: int) -> None:
        self.lab = lab
        self.image = image
        self.siblings = siblings
        self.settings = settings
        self.limit_s = BOOT_S + health_s

    def upgrade_and_back(self, work: Path, artefacts: Path, shelf: Path) -> tuple[list[Outcome], tuple[str, ...]]:
        """Boots D, E, G and I, with a disk and firmware variables of their own in `work`; these know the keys already.

        Also the history that the host tells before it goes back.
        """
        began = time.monotonic()
        before, label = self.siblings.before, self.image.manifest.label
        disk = work / "host.qcow2"
        layout = slots.layout_of(before.manifest)
        binds: list[Bind] = [*self.lab.binds, writable(work), read_only(before.disk.parent)]
        lab = replace(self.lab, binds=tuple(binds))
        qemu.overlay(lab.room, before.disk, disk, slots.host_disk_bytes(layout), binds=binds)
        variables = work / "variables.fd"
        if self.settings.variables is not None:
            copyfile(self.settings.variables, variables)
        tpm = work / "tpm" if self.settings.tpm else None
        machine = replace(self.settings, disk=disk, directory=work, tpm=tpm, attached=(shelf,), console=artefacts / "console-upgrade.log")
        upgrade = Probe("upgrade", f"{_MOUNT} && obelisk host upgrade {_SHELF}/this", _UPGRADE_S)
        found = lab.inside(machine, before.uki, [upgrade], timeout_s=self.limit_s + _UPGRADE_S).get("upgrade", LOST)
        if found.status != 0:
            detail = f"from {before.manifest.label}: {found.output}"
            return [Outcome(UPGRADED, passed=False, duration_ms=since(began), detail=detail)], ()
        firmware = replace(machine, variables=variables, attached=(), console=artefacts / "console-upgraded.log")
        try:
            self._watch(lab, firmware, rf"obelisk: {label} is healthy and blessed")
        except CommandError as error:
            return [Outcome(UPGRADED, passed=False, duration_ms=since(began), detail=str(error))], ()
        how = f"{before.manifest.label} to {label}: {found.output.splitlines()[-1]}"
        outcomes = [Outcome(UPGRADED, passed=True, duration_ms=since(began), detail=how)]
        began = time.monotonic()
        asked = [Probe("history", "obelisk host history", _ASK_S), Probe("rollback", "obelisk host rollback --no-reboot", _UPGRADE_S)]
        inside = replace(machine, attached=(), console=artefacts / "console-rollback.log")
        said = lab.inside(inside, self.image.part_path(PartKind.UKI), asked, timeout_s=self.limit_s + _UPGRADE_S)
        told = said.get("rollback", LOST)
        detail, passed = told.output, told.status == 0
        if passed:
            try:
                self._watch(lab, replace(firmware, console=artefacts / "console-back.log"), rf"obelisk: {before.manifest.label} healthy")
            except CommandError as error:
                detail, passed = str(error), False
        outcomes.append(Outcome(ROLLED_BACK, passed=passed, duration_ms=since(began), detail=detail))
        return outcomes, tuple(said.get("history", LOST).output.splitlines())

    def leave_the_failing(self, installed: Finding, artefacts: Path) -> tuple[Outcome, tuple[str, ...]]:
        """Boots F and H, on the disk of boot B; and the history that the host tells, a line an iteration."""
        began = time.monotonic()
        if installed.status != 0:
            return Outcome(SABOTAGED, passed=False, duration_ms=installed.duration_ms, detail=installed.output), ()
        label, failing = self.image.manifest.label, self.siblings.failing.manifest.label
        settings = replace(self.settings, console=artefacts / "console-sabotage.log")
        pattern = rf"(?s)obelisk: {failing} UNHEALTHY.*obelisk: {label} is healthy[^\n]*{failing} fell back"
        try:
            self._watch(self.lab, settings, pattern)
        except CommandError as error:
            return Outcome(SABOTAGED, passed=False, duration_ms=since(began), detail=str(error)), ()
        asked = [Probe("history", "obelisk host history", _ASK_S), Probe("status", "obelisk host status --json", _ASK_S)]
        found = self.lab.inside(
            replace(self.settings, console=artefacts / "console-history.log"),
            self.image.part_path(PartKind.UKI),
            asked,
            timeout_s=self.limit_s,
        )
        history = found.get("history", LOST)
        passed, detail = _told_truly(found.get("status", LOST), history, failing)
        return Outcome(SABOTAGED, passed=passed, duration_ms=since(began), detail=detail), tuple(history.output.splitlines())

    def _watch(self, lab: Lab, settings: qemu.Settings, pattern: str) -> None:
        """Boot by firmware, see `pattern` on the console, and switch off."""
        lab.boot(settings, lambda machine: (machine.wait_for(pattern, timeout_s=2 * self.limit_s), machine.power_off(timeout_s=120)))


def _told_truly(status: Finding, history: Finding, failing: str) -> tuple[bool, str]:
    """Whether the host runs what it did before, and says what happened to the failing image."""
    try:
        running = json.loads(status.output.splitlines()[-1])["status"]
    except (ValueError, KeyError, IndexError):
        return False, f"no status: {status.output}"
    told = [line for line in history.output.splitlines() if failing in line]
    truly = bool(told) and SABOTAGE in told[0]
    return truly and running["health"] != "unhealthy", history.output
