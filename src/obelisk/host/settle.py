"""What a boot comes to: the image that runs is blessed, or condemned; one that was tried and did not make it is named, with the reason.

`settle` runs when the machine is healthy, and has stayed so for the soak time; `condemn` when it is not. A boot that comes to neither is
restarted by the guard that `start` leaves behind, or by the kernel when it panics; the loader counts its tries.

An entry is blessed only by the image that it starts: where firmware refuses a UKI, the loader may start the next one without a reset, and
the variable that names the counted entry still names the refused one.
"""

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

from obelisk.errors import CommandError, ObeliskError
from obelisk.host import esp, evidence, journal, snapshots
from obelisk.host.here import Here
from obelisk.host.settings import Settings
from obelisk.model.host import Entry, Event, Pending, Progress, Record, Trying, progress
from obelisk.system import efivars
from obelisk.system.command import run
from obelisk.system.files import write_durably

SETTLED = "settled"


def settle(here: Here, settings: Settings) -> str:
    """The machine is healthy: bless its image, and tell what became of one that was tried before. Returns a line for people."""
    said = f"{here.label} is healthy"
    with here.alone():
        state = progress(journal.read(here.keep))
        here.note(Event.HEALTHY, here.label, duration_ms=_uptime_ms())
        with here.esp() as place:
            entry = esp.find(place, here.label)
            if entry is not None and _is_counted(here, entry):
                esp.change(place, entry, Entry(here.name, here.version))
                here.note(Event.BLESSED, here.label, image_id=_image_id(state), duration_ms=_uptime_ms())
                said = f"{here.label} is healthy and blessed"
        said += note_fallen(here)
        said += apply_brought(here)
        with here.top() as top:
            snapshots.prune(top, settings.snapshots)
            if not (here.keep / snapshots.RESTORE).exists():
                snapshots.discard_migrated(top)
        # What stays is in nobody's way, and no reason to call a healthy image anything else.
        with suppress(ObeliskError, OSError):
            end_rehearsal(here)
    (here.run / SETTLED).touch()
    return said


def condemn(here: Here) -> bool:
    """The machine is not healthy: whether it should restart, into its fallback. One that is nobody's trial stays up as it is."""
    with here.alone():
        failing = ", ".join(_failing(here.run)) or "its health checks"
        here.note(Event.UNHEALTHY, here.label, duration_ms=_uptime_ms(), detail=f"failed: {failing}")
        with here.esp() as place:
            entry = esp.find(place, here.label)
            on_trial = entry is not None and _is_counted(here, entry)
            if entry is not None and on_trial and entry.left:
                esp.change(place, entry, Entry(entry.name, entry.version, 0, entry.done))
        if on_trial:
            keep_evidence(here, here.label, here.boot)
        else:
            note_fallen(here)
    (here.run / SETTLED).touch()
    return on_trial


def note_fallen(here: Here) -> str:
    """Note that an image was tried and does not run, if that is so, and give it no more boots. Returns what to say of it.

    Whoever changes this host next asks for this first, so that no failure is forgotten.
    """
    records = journal.read(here.keep)
    state = progress(records)
    if not isinstance(state, (Pending, Trying)) or not has_fallen(state, running=here.label, boot=here.boot):
        return ""
    with here.esp() as place:
        failed = esp.find(place, state.image)
        if failed is not None and failed.left:
            esp.change(place, failed, Entry(failed.name, failed.version, 0, failed.done))
    reason = reason_of(state, records)
    for boot in state.boots if isinstance(state, Trying) else ():
        keep_evidence(here, state.image, boot)
    here.note(Event.FELL_BACK, state.image, image_id=state.image_id, detail=reason)
    return f"; {state.image} fell back: {reason}"


def apply_brought(here: Here) -> str:
    """Give firmware and loader what the running image has brought for them, once it is blessed. Returns what to say of it.

    What cannot be done is tried again at the next boot, and makes no healthy image anything else. Other keys in the firmware keep a TPM
    from opening the state, so where that is encrypted somebody has to be there.
    """
    with here.esp() as place:
        entry, brought = esp.find(place, here.label), set(esp.brought(place, here.label))
        if entry is None or entry.counted or not brought:
            return ""
        if here.opened_by() and brought - {"loader"}:
            return "; another key for the firmware waits for somebody who has the recovery key: obelisk host firmware"
        from obelisk.host import firmware  # noqa: PLC0415 - what hardly any boot needs

        try:
            return "".join(f"; {done}" for done in firmware.apply(place, here.label))
        except ObeliskError as error:
            return f"; {error.message}"
        except OSError as error:
            return f"; the ESP cannot be written: {error.strerror}"


def end_rehearsal(here: Here) -> None:
    """Remove what a rehearsal has left that was killed. Whoever changes this host next asks for this first."""
    if here.rehearsal.exists():
        from obelisk.host import rehearsal  # noqa: PLC0415 - what hardly any boot needs

        rehearsal.sweep(here)


def has_fallen(state: Progress, *, running: str, boot: str) -> bool:
    """Whether an image that was to be tried is not the one that runs, although the machine was started anew."""
    match state:
        case Pending(image=image, boot=installed):
            return image != running and installed != boot
        case Trying(image=image):
            return image != running
        case _:
            return False


def reason_of(state: Pending | Trying, records: tuple[Record, ...]) -> str:
    """Why an image that was tried does not run."""
    boots = state.boots if isinstance(state, Trying) else ()
    told = [record for record in records if record.event is Event.UNHEALTHY and record.image == state.image and record.boot in boots]
    if told:
        return told[-1].detail
    if boots:
        return f"started {len(boots)} time{'s' if len(boots) > 1 else ''} and never became healthy: it hung, panicked or was cut off"
    return "never came as far as its state volume: the firmware refused it, or it hung or panicked before"


def keep_evidence(here: Here, image: str, boot: str) -> None:
    """Keep a boot's journal and its health report where neither a rollback nor the journal's own limits take them."""
    with evidence.keeping(here.keep, f"{image}-{boot[:8]}") as place:
        try:
            said = run(["journalctl", f"--boot={boot.replace('-', '')}", "--no-pager", "--output=short-precise"], timeout_s=120).stdout
        except CommandError as error:
            said = error.output
        write_durably(place / "journal.txt", said.encode()[-evidence.MOST_BYTES :])
        if boot == here.boot and (here.run / "health.json").exists():
            write_durably(place / "health.json", (here.run / "health.json").read_bytes())
        for crash in Path("/var/lib/systemd/pstore").glob("**/dmesg*"):
            shutil.copyfile(crash, place / crash.name)


def _is_counted(here: Here, entry: Entry) -> bool:
    """The loader counts this boot, and it counts it for the image that runs."""
    named = efivars.counted_entry()
    counted = Entry.parse(PurePosixPath(named).name) if named else None
    return entry.counted and counted is not None and counted.label == here.label


def _image_id(state: Progress) -> str:
    return state.image_id if isinstance(state, (Pending, Trying)) else ""


def _failing(run_directory: Path) -> list[str]:
    try:
        checks = json.loads((run_directory / "health.json").read_bytes())
        return [str(check["name"]) for check in checks if not check["ok"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _uptime_ms() -> int:
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
