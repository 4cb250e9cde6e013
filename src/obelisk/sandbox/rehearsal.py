"""The next version of a service runs beside the installed one, which goes on serving, until it is healthy; then it ends.

It is what it will be, but for its ports, which are others of this machine's loopback, and for its data, which is a snapshot. So a version
that does not work is told from one that does before anything is stopped for it. Units of a rehearsal are gone after a restart of the
machine; what else one leaves that was killed is taken away by the next.

    units           NAME:next.service and .socket, among those that systemd forgets with a restart
    RUN/installed/<name>:next       a link to its plan
    DATA/.next/<name>               the snapshot
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from obelisk.model.application import Application, Service
from obelisk.model.policy import NO_LIMIT, Own, Policy, Usb, Use, Write
from obelisk.sandbox.data import Data
from obelisk.sandbox.installed import Made, Manager
from obelisk.sandbox.network import LOOPBACK
from obelisk.sandbox.units import Seat
from obelisk.store import StoredImage
from obelisk.system.files import write_durably
from obelisk.system.namespace import remove_tree

_NEXT = ":next"  # what no application's name has
_DATA = ".next"
# What two at a time would be in each other's way with.
_SHARED = (Write, Use, Usb, Own)
_HERE = frozenset({"localhost", LOOPBACK})

Maker = Callable[[StoredImage, Seat, Path], Made | None]
"""Makes a version ready for a seat, over the data below a directory; None where its health is asked elsewhere than there."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where rehearsals of one application are held: `seat` is its own, `units` are where systemd looks until a restart of the machine.

    `says` has what an image is and what it is granted here; `healthy` waits until a version is, at another seat, or raises StateError.
    """

    seat: Seat
    units: Path
    systemd: Manager
    says: Callable[[StoredImage], tuple[Application, Policy]]
    make: Maker
    healthy: Callable[[Made, Seat], None]

    def rehearse(self, image: StoredImage) -> bool:
        """Run a version beside the installed one until it is healthy; False where it cannot run beside it.

        Raises:
            StateError: it does not become healthy.
        """
        app, policy = self.says(image)
        if not may_rehearse(app, policy):
            return False
        self.clear()
        seat = self.next
        try:
            if app.data and not Data(self.seat.data).show(seat.data):
                return False
            made = self.make(image, seat, seat.data.parent)
            if made is None:
                return False
            seat.start.parent.parent.mkdir(parents=True, exist_ok=True)
            seat.start.parent.symlink_to(made.plan)
            self.units.mkdir(parents=True, exist_ok=True)
            for name, text in made.units.items():
                write_durably(self.units / name, text.encode())
            self.systemd.reload()
            self.systemd.start(*sorted(made.units, reverse=True))  # the socket before its service
            self.healthy(made, seat)
        finally:
            self.clear()
        return True

    def clear(self) -> None:
        """End a rehearsal, and have nothing left of it."""
        seat = self.next
        units = [name for name in (seat.socket, seat.service) if (self.units / name).exists()]
        if units:
            self.systemd.stop(*units)
            self.systemd.forget(*units)
            for name in units:
                (self.units / name).unlink()
            self.systemd.reload()
        link = seat.start.parent
        if link.is_symlink():
            remove_tree(link.readlink())
            link.unlink()
        Data.hide(seat.data)

    @property
    def next(self) -> Seat:
        """The seat of what is rehearsed."""
        start = self.seat.start
        return replace(
            self.seat,
            name=f"{self.seat.name}{_NEXT}",
            start=start.parent.with_name(f"{start.parent.name}{_NEXT}") / start.name,
            data=self.seat.data.parent / _DATA / self.seat.data.name,
        )


def may_rehearse(app: Application, policy: Policy) -> bool:
    """Whether two versions of it can run at a time without a trace of one in what the other has."""
    return app.service is not None and not policy.of(_SHARED) and policy.limits.data_bytes == NO_LIMIT


def moved(service: Service, ports: Mapping[int, int]) -> Service | None:
    """The service when its ports are others of the loopback; None where its health is asked elsewhere."""
    if not service.health:
        return service
    address = urlsplit(service.health)
    port = ports.get(address.port or 80)
    if address.hostname not in _HERE or port is None:
        return None
    return replace(service, health=address._replace(netloc=f"{address.hostname}:{port}").geturl())
