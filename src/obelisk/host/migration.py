"""Brings the state of a host to the version that an image works with; what is to be done is decided in `obelisk.model.state`.

    live/version                       the version of the state, which so goes wherever the state goes; missing: the first
    snapshots/.migrated/tree           a copy in which migrations are run
    /usr/lib/obelisk/migrations/       of the image: <version>.up, <version>.down

The state itself is never migrated. Migrations run on a copy of it, one after the other, and an order is left to put that in its place (see
`obelisk.host.snapshots`): until then a cut or a failure has changed nothing, and afterwards the former state is a snapshot.
"""

import base64
import json
from pathlib import Path

from obelisk.errors import CommandError, StateError
from obelisk.host import journal, snapshots
from obelisk.host.here import Here
from obelisk.host.settings import Settings
from obelisk.host.upgrade import now
from obelisk.model.host import Event, known_good
from obelisk.model.state import Back, Fits, Irreversible, Migration, Stuck, at_boot, way_back, way_up
from obelisk.system import btrfs
from obelisk.system.command import run
from obelisk.system.files import write_durably

PROGRAMS = Path("/usr/lib/obelisk/migrations")
_SEES_STATE = Path("/usr/lib/obelisk/with-state")


def migrations(programs: Path = PROGRAMS) -> tuple[Migration, ...]:
    """Those that the running image has, in their order."""
    return tuple(Migration(to, (programs / f"{to}.down").exists()) for to in sorted(int(path.stem) for path in programs.glob("*.up")))


def migrate(here: Here, settings: Settings) -> None:
    """Prepare state of the running image's version, from what there is, and order it. Called before anything has the state open.

    Raises:
        StateError: there is no way to such state, or a migration failed. Nothing was changed; /run/obelisk/health.json says what it was.
    """
    with here.alone(), here.top() as top:
        held = snapshots.version(top / snapshots.LIVE)
        trees = {each.number: snapshots.tree(top, each) for each in snapshots.snapshots(top)}
        kept = [(number, snapshots.version(tree)) for number, tree in trees.items()]
        todo = at_boot(held, settings.state_version, migrations(), kept)
        if isinstance(todo, Fits):
            return
        if isinstance(todo, Stuck):
            _report(here, todo.reason)
            hint = "start the image that the state belongs to: by the boot menu, or from another disk"
            raise StateError(todo.reason, code="state-version", hint=hint)
        source = top / snapshots.LIVE if todo.source is None else trees[todo.source]
        try:
            _make(top, source, "up", todo.steps, settings)
        except StateError as error:
            _report(here, error.message, error.__cause__.output if isinstance(error.__cause__, CommandError) else "")
            raise
        records = journal.read(here.keep)
        left_by = next((r.image for r in reversed(records) if r.event is Event.BOOTED and r.image != here.label), here.label)
        replaced = snapshots.replaced_state(
            top,
            at=now(),
            image=left_by,
            reason=f"the state of version {held} that {here.label} replaced",
            # What an image wrote that was healthy here goes only when somebody says so.
            automatic=held < settings.state_version or left_by not in known_good(records),
        )
        snapshots.order_restore(top, here.keep, snapshots.MIGRATED, image=here.label, replaced=replaced)


def steps_back(top: Path, wanted: int) -> tuple[int, ...]:
    """The migrations whose ways back lead from the present state to version `wanted`; none where that image can use it as it is.

    Raises:
        StateError: one of them has no way back.
    """
    held = snapshots.version(top / snapshots.LIVE)
    match way_back(held, wanted, migrations()):
        case Irreversible(to):
            raise StateError(
                f"the state is of version {held}, that image works with {wanted}, and the migration to {to} has no way back",
                code="state-irreversible",
                hint="`obelisk host rollback --with-state` brings the state back as that image left it",
            )
        case Back(steps):
            return steps


def take_back(top: Path, steps: tuple[int, ...], settings: Settings) -> None:
    """Make a copy of the present state, and run these ways back on it.

    Raises:
        StateError: one failed. There is no copy, and nothing was changed.
    """
    _make(top, top / snapshots.LIVE, "down", steps, settings)


def require_usable(tree: Path, settings: Settings) -> None:
    """Refuse to restore state that the running image could not start with.

    Raises:
        StateError: it is of a later version, or there is no way from its version.
    """
    held = snapshots.version(tree)
    if way_up(held, settings.state_version, migrations()) is None:
        raise StateError(
            f"that state is of version {held}, and the running image, which works with {settings.state_version}, has no way from there",
            code="state-version",
            hint="go to an image that works with it first; `obelisk host rollback --with-state` brings back both",
        )


def _make(top: Path, source: Path, way: str, steps: tuple[int, ...], settings: Settings) -> None:
    """A copy of `source` with these migrations run on it; there whole, or not at all."""
    tree = snapshots.begin_migrated(top, source)
    try:
        for to in steps:
            try:
                run([_SEES_STATE, tree, PROGRAMS / f"{to}.{way}"], timeout_s=settings.deadline_s)
            except CommandError as error:
                what = f"the migration to {to}" if way == "up" else f"the way back of the migration to {to}"
                said = (error.output.strip().splitlines() or ["it said nothing"])[-1]
                raise StateError(
                    f"{what} failed: {said}", code="migration-failed", hint="the state is as it was; mend the script and build again"
                ) from error
            snapshots.set_version(tree, to if way == "up" else to - 1)
    except StateError:
        snapshots.discard_migrated(top)
        raise
    btrfs.sync(top)


def _report(here: Here, name: str, detail: str = "") -> None:
    """Say it as a check of this boot's health that failed: `condemn` goes by that, and keeps it."""
    told = base64.b64encode(detail.encode()).decode()
    check = {"name": name, "kind": "migration", "ok": False, "uptime_ms": 0, "detail_base64": told}
    write_durably(here.run / "health.json", json.dumps([check]).encode())
