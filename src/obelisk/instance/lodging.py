"""The instances of services, by an engine: what `obelisk.instance.service` asks, in the words of `obelisk.instance.engine`.

An engine leads a port of this machine into an instance: at `obelisk.instance.traffic.HOME`, where nobody comes but by the service.
"""

from contextlib import suppress

from obelisk.errors import InputError
from obelisk.instance.engine import Engine
from obelisk.instance.proving import Seen
from obelisk.instance.traffic import HOME
from obelisk.model.instance import Kind, Phase, Port, Snapshot, Wanted, Wish
from obelisk.model.service import Terms

_END_S = 90.0
_UNKNOWN = {"instance-unknown", "snapshot-unknown"}


class Lodging:
    """See `obelisk.instance.service.Instances`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, name: str, image: str, terms: Terms, *, state: tuple[str, str] | None) -> None:
        """Have the instance, and have it run."""
        if not self._exists(name):
            port = Port(0, terms.guest_port, HOME)
            wish = Wish(name, image, terms.memory_bytes, terms.cpus, terms.state_bytes, (port,), (("system.hostname", name),))
            self._engine.create(wish, state=None if state is None else self._snapshot(*state))
        self._engine.start(name)

    def look(self, name: str, /) -> Seen:
        """How it is."""
        if not self._exists(name):
            return Seen(running=False)
        found = self._engine.status(name)
        return Seen(found.phase is Phase.RUNNING, found.address, found.healthy)

    def save(self, name: str, snapshot: str) -> None:
        """Keep its state under that name, in the place of what has it."""
        self.forget(name, snapshot)
        self._engine.snapshot(name, Wanted(Kind.STATE, snapshot, "before another iteration took its place"))

    def forget(self, name: str, snapshot: str) -> None:
        """Keep it no longer."""
        if self._exists(name) and any(each.name == snapshot for each in self._engine.snapshots(name)):
            self._engine.delete(name, snapshot)

    def restore(self, name: str, snapshot: str) -> None:
        """Set its state back."""
        self._engine.restore(name, snapshot)

    def retire(self, name: str) -> None:
        """Have it go down by itself, if it does, and remove it."""
        with suppress(InputError):
            self._engine.stop(name, timeout_s=_END_S)
        if self._exists(name):
            self._engine.retire(name)

    def _exists(self, name: str) -> bool:
        try:
            self._engine.instance(name)
        except InputError as error:
            if error.code not in _UNKNOWN:
                raise
            return False
        return True

    def _snapshot(self, name: str, snapshot: str) -> Snapshot:
        return next(each for each in self._engine.snapshots(name) if each.name == snapshot)
