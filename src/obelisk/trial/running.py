"""Runs the scenarios of a trial in as few boots as they can share.

Boot A: the image's own disk under OVMF with Secure Boot, whose keys systemd-boot enrols; nothing is added, the console is watched.
Boot B: the same disk, with one byte of the root partition flipped; the image's own kernel, initrd and command line, loaded by QEMU
        together with an extra initrd that carries the agent.
Boot C: firmware as A left it, and a disk with the same UKI signed by a stranger: nothing may start.
Boots D to I: see `obelisk.trial.hosting`; those on a disk of their own run beside the others.
"""

import json
import re
import struct
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

from obelisk import spec as specs
from obelisk.build import keys, slots
from obelisk.build.disk import assemble_disk
from obelisk.build.image import disk_of
from obelisk.errors import CommandError, StateError, TrustError
from obelisk.events import Note, Sink, silent, task
from obelisk.machine import Machine
from obelisk.model import uki
from obelisk.model.image import PartKind
from obelisk.model.proof import FOREIGN, READ_ONLY, SEALED, STATE, TAMPERED, UNITS
from obelisk.model.spec import Role, Spec
from obelisk.model.state import Encryption
from obelisk.store import StoredImage
from obelisk.system import qemu, ukify
from obelisk.system.bubblewrap import Bind, Room, read_only, writable
from obelisk.system.files import find_bytes
from obelisk.trial import hosting, plan
from obelisk.trial.agent import Finding, probes
from obelisk.trial.hosting import Maker
from obelisk.trial.lab import BOOT_S, HEALTHY, Lab, since
from obelisk.trial.measurements import measurements
from obelisk.trial.report import Outcome, Report

_SHOWN = 3000  # characters of an output in a report
_CANARY = b"/usr/share/obelisk/canary"


def run(image: StoredImage, maker: Maker, artefacts: Path, sink: Sink) -> Report:
    """Try `image` and report; logs go to `artefacts`, a new directory.

    A scenario that fails is an outcome; an error is raised only where the trial itself could not be done.

    Raises:
        StateError: the image is not the one that `spec` describes now, or was signed by another key.
    """
    spec, store, room = maker.spec, maker.store, maker.room
    if specs.digest_inputs(spec) != image.manifest.spec_sha256:
        raise StateError(
            f"{spec.file}: the spec has changed since {image.manifest.label} ({image.id[:12]}) was built",
            code="spec-changed",
            hint=f"run `obelisk build {spec.directory}` first, and test what comes of it",
        )
    accel = qemu.acceleration()
    how = "hardware virtualisation" if accel == "kvm" else "software emulation (a boot takes a minute or so)"
    sink(Note(f"using {how}"))
    outcomes: list[Outcome] = []
    boot: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    installed = hosting.LOST
    with store.workspace() as work:
        with task(sink, "siblings", "Building images to upgrade from and to"):
            siblings = maker.siblings(image, work, silent)
            shelf = hosting.make_shelf(image, siblings, room, work)
        trial = _Trial(image, spec, room, work, artefacts, accel, disk_of(image, store, room, work), sink)
        with task(sink, "boot", "Booting the image as it is, with Secure Boot"):
            first = trial.boot_sealed()
        outcomes.append(first.outcome)
        with ThreadPoolExecutor(max_workers=1) as pool:
            hosts = hosting.HostTrial(trial.lab, image, siblings, trial.machine("", variables=trial.variables), trial.health_s())
            (work / "host").mkdir()
            # An image that does not do its job by itself is not given to hosts.
            upgrading = pool.submit(hosts.upgrade_and_back, work / "host", artefacts, shelf) if first.outcome.passed else None
            if first.machine:
                with task(sink, "inside", "Booting it again with a flipped byte, and trying things inside"):
                    more, boot, installed = trial.boot_with_agent(first, shelf)
                outcomes += more
                with task(sink, "foreign", "Offering it a kernel that a stranger signed"):
                    outcomes.append(trial.boot_foreign())
            if upgrading is not None:
                with task(sink, "sabotage", f"Giving a host {siblings.failing.manifest.label}, which does not work"):
                    outcome, failure = hosts.leave_the_failing(installed, artefacts)
                    outcomes.append(outcome)
                with task(sink, "upgrade", f"Upgrading a host from {siblings.before.manifest.label}, and going back"):
                    more, success = upgrading.result()
                    outcomes += more
                history = (*success, "", *failure)
    tools = (("qemu", room.run(["qemu-system-x86_64", "--version"]).stdout.splitlines()[0]),)
    return Report(image.id, image.manifest.label, accel, plan.planned(spec), tuple(outcomes), boot, tools, history)


class _First:
    """What the first boot left: who the machine is, and how long it took."""

    def __init__(self, outcome: Outcome, *, boot: str = "", machine: str = "") -> None:
        self.outcome = outcome
        self.boot = boot
        self.machine = machine


class _Trial:
    def __init__(  # noqa: PLR0913, PLR0917 - made in one place
        self, image: StoredImage, spec: Spec, room: Room, work: Path, artefacts: Path, accel: str, raw: Path, sink: Sink
    ) -> None:
        self.image, self.spec, self.room, self.work, self.artefacts = image, spec, room, work, artefacts
        self.binds: tuple[Bind, ...] = (writable(work), writable(artefacts), read_only(raw.parent, "/image"))
        self.lab = Lab(room, accel, sink, self.binds)
        self.disk = work / "disk.qcow2"
        self.variables = work / "variables.fd"
        self.layout = slots.layout_of(image.manifest)
        copyfile(room.tree / qemu.VARIABLES.lstrip("/"), self.variables)
        qemu.overlay(room, Path("/image") / raw.name, self.disk, slots.host_disk_bytes(self.layout), binds=self.binds)
        self.root_offset = _partition_offset(raw, image.manifest.root_hash[:32])

    def boot_sealed(self) -> _First:
        """Boot A."""
        log = self.work / "tpm.log"
        settings = replace(self.machine("console-1.log", variables=self.variables), tpm_log=log)
        began = time.monotonic()
        name = SEALED

        def watch(machine: Machine) -> tuple[re.Match[str], int, bool, bool]:
            found = machine.wait_for(HEALTHY.format(label=self.image.manifest.label), timeout_s=BOOT_S + self.health_s())
            took = since(began)
            if settings.graphics:
                machine.screenshot(self.artefacts / "screen.png")
            enrolled = "Custom Secure Boot keys successfully enrolled" in machine.text()
            return found, took, enrolled, machine.power_off(timeout_s=120)

        try:
            found, took, enrolled, off = self.lab.boot(settings, watch)
            if settings.tpm is not None:
                self.lab = replace(self.lab, measured=measurements(log.read_text()))
                log.unlink()
        except CommandError as error:
            return _First(Outcome(name, passed=False, duration_ms=since(began), detail=str(error)))
        if found[4] is not None:
            detail = f"unhealthy:{found[4]}; read {settings.console}"
            return _First(Outcome(name, passed=False, duration_ms=took, detail=detail), boot="", machine="unknown")
        detail = f"healthy {found[3]} s after the kernel started; keys {'enrolled by systemd-boot' if enrolled else 'NOT enrolled'}"
        detail += "" if off else "; it did not switch off when asked to"
        return _First(Outcome(name, passed=enrolled and off, duration_ms=took, detail=detail), boot=found[1], machine=found[2])

    def boot_with_agent(self, first: _First, shelf: Path) -> tuple[list[Outcome], tuple[str, ...], Finding]:
        """Boot B."""
        flipped = self._flip_canary()
        wanted = [*probes(self.spec), *([hosting.sabotage()] if first.outcome.passed else [])]
        began = time.monotonic()
        limit = BOOT_S + self.health_s() + sum(probe.timeout_s for probe in wanted)
        settings = replace(self.machine("console-2.log"), attached=(shelf,))
        found = self.lab.inside(settings, self.image.part_path(PartKind.UKI), wanted, timeout_s=limit)
        (self.artefacts / "journal.txt").write_text(found["journal"].output if "journal" in found else "")
        outcomes = self._judge(first, found, flipped)
        if "end" not in found:
            outcomes.append(Outcome("second boot ends", passed=False, duration_ms=since(began), detail=f"read {settings.console}"))
        times = tuple(found["time"].output.splitlines()) if "time" in found else ()
        return outcomes, times, found.get(hosting.SABOTAGE, hosting.LOST)

    def boot_foreign(self) -> Outcome:
        """Boot C."""
        name = FOREIGN
        place = self.work / "foreign"
        place.mkdir()
        stranger = keys.create(place / "keys", self.room, name="Stranger", test_key=True)
        sections = uki.sections(self.image.part_path(PartKind.UKI).read_bytes())
        for section in ("linux", "initrd", "cmdline", "osrel"):
            (place / section).write_bytes(sections[section].rstrip(b"\0") if section in {"cmdline", "osrel"} else sections[section])
        request = ukify.Build(
            kernel=Path("/foreign/linux"),
            initrds=(Path("/foreign/initrd"),),
            cmdline=Path("/foreign/cmdline"),
            os_release=Path("/foreign/osrel"),
            uname=self.image.manifest.kernel,
            out=Path("/foreign/uki.efi"),
            key=Path("/key/db.key"),
            certificate=Path("/key/db.crt"),
            epoch=self.image.manifest.epoch,
        )
        self.room.run(request.argv(), binds=[writable(place, "/foreign"), read_only(stranger.directory, "/key")])
        parts = {part.kind: self.image.directory / part.file for part in self.image.manifest.parts}
        esp_only: dict[PartKind, Path] = {kind: path for kind, path in parts.items() if kind not in {PartKind.ROOT, PartKind.VERITY}}
        raw = assemble_disk(self.room, place, {**esp_only, PartKind.UKI: place / "uki.efi"}, self.image.manifest)
        disk = place / "disk.qcow2"
        qemu.overlay(self.room, raw, disk, raw.stat().st_size, binds=self.binds)
        settings = qemu.Settings(disk, self.work, variables=self.variables, console=self.artefacts / "console-3.log")
        began = time.monotonic()
        pattern = r"(?i)access denied|security violation|Linux version|systemd\[1\]|obelisk:"
        try:
            seen = self.lab.boot(settings, lambda machine: machine.wait_for(pattern, timeout_s=120))
        except CommandError as error:
            return Outcome(name, passed=False, duration_ms=since(began), detail=str(error))
        refused = seen[0].lower() in {"access denied", "security violation"}
        return Outcome(name, passed=refused, duration_ms=since(began), detail=f"the firmware said: {seen[0]}")

    def machine(
        self, console: str, *, variables: Path | None = None, kernel: qemu.Kernel | None = None, ports: dict[str, Path] | None = None
    ) -> qemu.Settings:
        """The machine of the image's own disk; the same in each boot, but for what starts it and what listens."""
        graphics = self.spec.role is Role.WORKSTATION
        return qemu.Settings(
            self.disk,
            self.work,
            2048 if graphics else 1024,
            qemu.fair_cpus(self.lab.accel),
            variables=variables,
            kernel=kernel,
            console=self.artefacts / console,
            tpm=self.work / "tpm" if self.image.manifest.state_encryption is Encryption.TPM2 else None,
            ports=ports or {},
            graphics=graphics,
        )

    def _judge(self, first: _First, found: Mapping[str, Finding], flipped: int) -> list[Outcome]:
        lost = Finding(255, 0, "the guest did not report this")

        def outcome(name: str, probe: str, *, passed: bool, detail: str = "") -> Outcome:
            finding = found.get(probe, lost)
            return Outcome(name, passed=passed and probe in found, duration_ms=finding.duration_ms, detail=_end(detail or finding.output))

        read_only_root = found.get("read-only", lost)
        canary = found.get("canary", lost)
        machine = found.get("machine", lost)
        failed = found.get("failed", lost)
        boot = first.boot.replace("-", "")
        kept = machine.status == 0 and machine.output.splitlines()[:1] == [first.machine] and boot in machine.output
        outcomes = [
            *self._health(found.get("health", lost)),
            outcome(READ_ONLY, "read-only", passed=read_only_root.status == 0),
            outcome(
                TAMPERED,
                "canary",
                passed=canary.status not in {0, 124, 255} and "Input/output error" in canary.output,
                detail=f"byte {flipped} of the disk, in {_CANARY.decode()}: {canary.output.strip() or 'read without complaint'}",
            ),
            outcome(
                STATE,
                "machine",
                passed=kept,
                detail=f"machine {first.machine}; {machine.output.strip()}",
            ),
            outcome(UNITS, "failed", passed=failed.status == 0 and not failed.output.strip()),
        ]
        for test in self.spec.tests:
            finding = found.get(f"test/{test.name}", lost)
            held = finding.status == 0 and test.expect in finding.output
            why = "" if finding.status == 0 else f"status {finding.status}: "
            why += f"{test.expect!r} is not in: " if finding.status == 0 and not held else ""
            outcomes.append(outcome(plan.case(test.name), f"test/{test.name}", passed=held, detail=why + _end(finding.output)))
        return outcomes

    def _health(self, finding: Finding) -> list[Outcome]:
        try:
            checks = json.loads(finding.output)
            seen = {check["name"]: (bool(check["ok"]), int(check["uptime_ms"])) for check in checks}
        except (ValueError, KeyError, TypeError):
            seen = {}
        outcomes = []
        for check in self.spec.health:
            ok, uptime_ms = seen.get(check.name, (False, 0))
            outcomes.append(Outcome(plan.health(check.name), passed=ok, duration_ms=uptime_ms, detail="" if ok else finding.output))
        return outcomes

    def health_s(self) -> int:
        """The longest that a check may take."""
        return max((check.timeout_s for check in self.spec.health), default=0)

    def _flip_canary(self) -> int:
        """Overwrite a part of a file that no boot reads, below the verified device; returns where on the disk."""
        beginning = specs.request(self.spec).encode() * 64
        at = find_bytes(self.image.part_path(PartKind.ROOT), beginning)
        if at is None:
            raise TrustError("the image has no canary file", code="canary-missing", hint="build the image again")
        offset = self.root_offset + at // 512 * 512 + 8192
        qemu.overwrite(self.room, self.disk, offset, 512, binds=self.binds)
        return offset


def _partition_offset(raw: Path, uuid: str) -> int:
    """Where the partition with that id (32 hexadecimal digits) begins on a disk. Source: UEFI specification 2.10, section 5.3."""
    wanted = bytes.fromhex(uuid)
    little = wanted[3::-1] + wanted[5:3:-1] + wanted[7:5:-1] + wanted[8:]
    with raw.open("rb") as disk:
        disk.seek(512)
        header = disk.read(92)
        table, count, size = struct.unpack_from("<QII", header, 72)
        disk.seek(table * 512)
        for _ in range(count):
            entry = disk.read(size)
            if entry[16:32] == little:
                return int(struct.unpack_from("<Q", entry, 32)[0]) * 512
    raise TrustError("the disk has no root partition of this image", code="disk-partition", hint="build the image again")


def _end(text: str) -> str:
    """As much of an output as a report shows; what is judged is always the whole."""
    text = text.strip()
    return text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"
