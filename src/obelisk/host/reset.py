"""`obelisk host reset`: the next boot starts with empty state, but for what is to be kept."""

from pathlib import Path

from obelisk.errors import InputError
from obelisk.host import snapshots
from obelisk.host.here import Here
from obelisk.host.upgrade import now
from obelisk.model.host import Event
from obelisk.system import btrfs
from obelisk.system.command import run

_PLACES = ("/var", "/home", "/root")


def reset(here: Here, keep: tuple[str, ...]) -> tuple[str, ...]:
    """Prepare fresh state with copies of the paths in `keep`; the next boot takes it, and deletes the present state and its snapshots.

    Raises:
        InputError: a path to keep does not exist, or is no state.
    """
    for path in keep:
        if not any(Path(path).is_relative_to(place) for place in _PLACES):
            raise InputError(f"{path} is no state", code="keep-outside", hint=f"state is below {', '.join(_PLACES)}")
        if not Path(path).exists():
            raise InputError(f"{path} does not exist", code="keep-missing", hint="nothing was changed")
    with here.alone(), here.top() as top:
        fresh, tree = snapshots.make_fresh(top, at=now(), image=here.label)
        for name, mode in (("var", 0o755), ("home", 0o755), ("root", 0o700)):
            (tree / name).mkdir(mode=mode)
        for path in keep:
            # With its parents, as they are.
            run(["cp", "--archive", "--reflink=auto", "--parents", path, tree], timeout_s=3600)
        btrfs.sync(top)
        for old in snapshots.snapshots(top):
            if old.number != fresh.number:
                snapshots.delete(top, old)
        snapshots.order_reset(here.keep, fresh)
    here.note(Event.RESTORED, here.label, detail="a reset was ordered")
    return keep
