"""`obelisk host upgrade --rehearse`: the new image in a VM over a copy of this machine's state, before anything here changes.

    host/rehearsal/            on the state volume, in no snapshot, and nobody's but root's
        disk                   sparse, as `obelisk.model.rehearsal` plans it
        linux, initrd          of the image's UKI; QEMU starts them itself, with the sealed command line and one word more
        console, said          what the guest shows, and what it reports
    snapshots/.rehearsed/tree  the state of one moment, while it is copied
    /run/obelisk/rehearsal     where a volume of that disk is mounted meanwhile

All of it goes when the rehearsal ends, and what a kill has left goes with the next command that changes this host, or the next boot. The
guest has no way out: its network ends at QEMU, which has none either.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from obelisk.errors import CommandError, MissingFeatureError, StateError
from obelisk.events import Note, Sink, Task, task
from obelisk.host import evidence, settings, snapshots
from obelisk.host.here import STATE_LABEL, Here
from obelisk.host.source import Source
from obelisk.model import uki
from obelisk.model.host import Event
from obelisk.model.image import PartKind
from obelisk.model.partitions import partition_uuids, tree_label
from obelisk.model.rehearsal import (
    EMULATION_FACTOR,
    MIB,
    PORT,
    WORD,
    Healthy,
    Means,
    Range,
    Report,
    Stage,
    Unfit,
    Verdict,
    Wanted,
    judge,
    obstacle,
    plan,
)
from obelisk.system import btrfs, loops, qemu, sfdisk, vfat
from obelisk.system.filesystem import free_memory_bytes, space, tree_bytes
from obelisk.system.mounts import mounted, unmount_all
from obelisk.system.sfdisk import TableEntry

_POLL_S = 0.2
_TRIES = 3  # of a boot whose emulated timer came too late
_MOST_SAID_BYTES = 64 * MIB
"""Of console and report together: these are files of this host, and the guest must not fill its disk with them."""
_SAID = frozenset({"console", "said"})
_TELLS = "usr/lib/obelisk/tell"


def require_programs() -> None:
    """Refuse on a host that has no virtual machines.

    Raises:
        MissingFeatureError: it has none.
    """
    if not (qemu.is_installed() and vfat.is_installed()):
        raise MissingFeatureError(
            "this host has no QEMU to rehearse with",
            code="rehearsal-qemu",
            hint="say `rehearse = true` under [upgrade] in the spec, and a host that runs the image can; or upgrade without --rehearse",
        )


def rehearse(here: Here, source: Source, sink: Sink) -> str:
    """Boot the image over a copy of the present state, and return how that went, a remark for people.

    Raises:
        StateError: it did not become healthy, which is noted; or there is no room or memory for a rehearsal, or the image cannot have one.
        CommandError: the rehearsal itself failed, which says nothing about the image.
    """
    label, began = source.manifest.label, time.monotonic()
    try:
        stage, state_bytes = _plan(here, source)
        accel = _acceleration(sink)
        here.rehearsal.mkdir(mode=0o700)
        values = _install(here, source, stage, sink)
        if (reason := obstacle(values)) is not None:
            raise reason
        _copy_state(here, stage, state_bytes, sink)
        deadline_s = int(values["deadline"]) * (1 if accel == "kvm" else EMULATION_FACTOR)
        verdict, took_s = _boot(here, source, _machine(here, source, stage), accel, deadline_s=deadline_s, sink=sink)
        if isinstance(verdict, Unfit):
            place = _keep_evidence(here, label)
            here.note(Event.UNFIT, label, image_id=source.manifest.id, duration_ms=_since(began), detail=verdict.reason)
            raise StateError(
                f"{label} failed its rehearsal: {verdict.reason}",
                code="rehearsal-failed",
                hint=f"nothing was changed; {place} has its console. Where only the rehearsal is to blame, which has no network, "
                f"upgrade without it: --retry {source.manifest.version}",
            )
    finally:
        sweep(here)
    here.note(Event.REHEARSED, label, image_id=source.manifest.id, duration_ms=_since(began))
    return f"healthy there after {took_s:.0f} s"


def sweep(here: Here) -> None:
    """Remove what a rehearsal has made, however it ended. May be repeated, and cut."""
    if not here.rehearsal.exists():
        return
    qemu.end_strays(here.rehearsal)
    for place in (_mount_point(here), here.run / "top"):
        unmount_all(place)
    if _disk(here).exists():
        loops.detach_all(_disk(here))
    with here.top() as top:
        snapshots.discard_rehearsed(top)
    shutil.rmtree(here.rehearsal)


def _acceleration(sink: Sink) -> str:
    qemu.load_virtualisation()
    accel = qemu.acceleration()
    if accel != "kvm":
        sink(Note("this machine's processor does not run guests itself (no usable KVM), so it is emulated: this takes long"))
    return accel


def _plan(here: Here, source: Source) -> tuple[Stage, int]:
    """The machine, and how many bytes of state are to be copied."""
    state_bytes = tree_bytes(here.state)
    means = Means(space(here.keep).free_bytes, free_memory_bytes(), os.cpu_count() or 1)
    root, tree, kernel = (source.manifest.part(kind).size_bytes for kind in (PartKind.ROOT, PartKind.VERITY, PartKind.UKI))
    return plan(means, Wanted(root, tree, kernel, state_bytes)), state_bytes


def _install(here: Here, source: Source, stage: Stage, sink: Sink) -> Mapping[str, str]:
    """Make the disk, with the image on it; return the image's settings, as they stand in its root."""
    disk, label = _disk(here), source.manifest.label
    with disk.open("xb") as file:
        file.truncate(stage.disk_bytes)
    data, tree = partition_uuids(source.manifest.root_hash)
    parts = (
        (stage.esp, sfdisk.ESP, uuid4(), "esp"),
        (stage.root, sfdisk.ROOT, data, label),
        (stage.tree, sfdisk.ROOT_VERITY, tree, tree_label(label)),
        (stage.state, sfdisk.LINUX, uuid4(), STATE_LABEL),
    )
    entries = [
        TableEntry(number, disk, where.start_bytes, where.size_bytes, kind, str(uuid), name)
        for number, (where, kind, uuid, name) in enumerate(parts, start=1)
    ]
    sfdisk.write_table(disk, entries)
    with _device(here, stage.esp) as device:
        vfat.make(device, "esp")
    total = source.write_bytes
    with (
        task(sink, "rehearse/image", f"Installing {label} on the disk of its rehearsal", total=total, unit="B") as running,
        _device(here, stage.root) as root,
        _device(here, stage.tree) as hashes,
    ):
        source.write(root, hashes, on_bytes=running.counting(total))
        with mounted(root, _mount_point(here), "erofs", "ro") as place:
            if not (place / _TELLS).exists():
                raise StateError(
                    f"{label} does not know of rehearsals, and could not say how it is",
                    code="rehearsal-unknown",
                    hint="build it with this version of obelisk or a later one, or upgrade without --rehearse",
                )
            return settings.values(place / settings.FILE.relative_to("/"))


def _copy_state(here: Here, stage: Stage, state_bytes: int, sink: Sink) -> None:
    """Make the state volume, with the state as it is now."""
    with here.top() as top, _device(here, stage.state) as device:
        snapshot = snapshots.begin_rehearsed(top)
        btrfs.make_volume(device, STATE_LABEL)
        with (
            task(sink, "rehearse/state", "Copying the state", total=state_bytes, unit="B") as running,
            mounted(device, _mount_point(here), "btrfs", "noatime", "subvolid=5") as volume,
        ):
            btrfs.copy(snapshot, volume, on_bytes=running.counting(state_bytes))
            btrfs.snapshot(volume / snapshot.name, volume / snapshots.LIVE, read_only=False)
            btrfs.delete(volume / snapshot.name)
            btrfs.create(volume / "host")
        snapshots.discard_rehearsed(top)


def _machine(here: Here, source: Source, stage: Stage) -> qemu.Settings:
    sections = uki.sections(source.path(PartKind.UKI).read_bytes())
    place = here.rehearsal
    for name in ("linux", "initrd"):
        (place / name).write_bytes(sections[name])
    command_line = sections["cmdline"].rstrip(b"\0").decode()
    return qemu.Settings(
        _disk(here),
        place,
        memory_mib=stage.memory_bytes // MIB,
        cpus=stage.cpus,
        kernel=qemu.Kernel(place / "linux", place / "initrd", f"{command_line} {WORD}"),
        console=place / "console",
        ports={PORT: place / "said"},
        raw=True,
        restarts=False,
    )


def _boot(here: Here, source: Source, machine: qemu.Settings, accel: str, *, deadline_s: int, sink: Sink) -> tuple[Verdict, float]:
    """What the boot came to, and after how many seconds."""
    title = f"Waiting until {source.manifest.label} is healthy there, at most {deadline_s} s"
    with task(sink, "rehearse/boot", title, total=deadline_s, unit="s") as running:
        tries = _TRIES
        while True:
            began = time.monotonic()
            with qemu.confined(machine, accel) as ended:
                verdict = _watch(here, ended, running, deadline_s=deadline_s)
            tries -= 1
            if isinstance(verdict, Healthy) or not tries or not qemu.LATE_TIMER.search(_console(here)):
                break
            sink(Note("this busy machine's emulated timer came too late for the kernel: booting again"))
        running.detail = verdict.reason if isinstance(verdict, Unfit) else "healthy"
    return verdict, time.monotonic() - began


def _watch(here: Here, ended: Callable[[], int | None], running: Task, *, deadline_s: int) -> Verdict:
    began = time.monotonic()
    while True:
        # In this order: what a machine said before it ended is there when it has ended.
        status, passed = ended(), time.monotonic() - began
        late_s = deadline_s if passed > deadline_s else None
        verdict = judge(_report(here), _console(here), ended=status is not None, late_s=late_s)
        if verdict is not None and not status:
            return verdict
        if sum(path.stat().st_size for path in here.rehearsal.iterdir() if path.name in _SAID) > _MOST_SAID_BYTES:
            return Unfit(f"it said more than {_MOST_SAID_BYTES // MIB} MiB on its console")
        if status:
            said = (here.rehearsal / "qemu.log").read_text(errors="replace")
            raise CommandError((qemu.PROGRAM,), status, said, hint="this says nothing about the image; upgrade without --rehearse")
        running.progress(round(passed))
        time.sleep(_POLL_S)


def _report(here: Here) -> Report | None:
    said = here.rehearsal / "said"
    return Report.parse(said.read_bytes()) if said.exists() else None


def _console(here: Here) -> str:
    console = here.rehearsal / "console"
    if not console.exists():
        return ""
    with console.open("rb") as file:
        file.seek(max(console.stat().st_size - evidence.MOST_BYTES, 0))
        return file.read().decode(errors="replace")


def _keep_evidence(here: Here, label: str) -> Path:
    report = _report(here)
    found = {"console.txt": _console(here).encode(), "qemu.log": (here.rehearsal / "qemu.log").read_bytes()}
    if report is not None:
        found |= {"health.json": report.health, "journal.txt": report.journal}
    with evidence.keeping(here.keep, f"{label}-rehearsal-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}") as place:
        for name, data in found.items():
            if data:
                (place / name).write_bytes(data[-evidence.MOST_BYTES :])
    return place


def _disk(here: Here) -> Path:
    return here.rehearsal / "disk"


def _mount_point(here: Here) -> Path:
    return here.run / "rehearsal"


@contextmanager
def _device(here: Here, where: Range) -> Iterator[Path]:
    with loops.attached(_disk(here), where.start_bytes, where.size_bytes) as device:
        yield device


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
