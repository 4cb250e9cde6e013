"""Where installed applications stand on this machine, for root and for an ordinary user, and how one of them is put together.

root                                ordinary user
/var/lib/obelisk/installed          ~/.local/state/obelisk/installed     what is kept, beside the data ($OBELISK_DATA)
/run/obelisk/apps/installed         $XDG_RUNTIME_DIR/obelisk/apps/…      links to plans ($OBELISK_RUN)
/etc/systemd/system                 ~/.config/systemd/user               unit files
/usr/local/bin                      ~/.local/bin                         programs that start commands
                                    ~/.local/share/applications          desktop entries of those with windows

What root installs is for root alone to start, in whose session no others are: it has no desktop entry.

On a host, whose root cannot be written, root has unit files in /var/lib/obelisk/units and programs in /var/lib/obelisk/bin: all of it is
state, which a rollback of the host takes back as a whole. At each boot, and when units are read anew, a generator of its image shows
systemd those units (`build/guest/applications`).
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from obelisk.events import Sink
from obelisk.model.application import Application, Service
from obelisk.model.policy import Listen, Policy
from obelisk.sandbox import desktop, entries
from obelisk.sandbox.health import wait_until_healthy
from obelisk.sandbox.installed import Installation, Made, Manager, Places
from obelisk.sandbox.machine import Machine
from obelisk.sandbox.network import LOOPBACK
from obelisk.sandbox.ready import Directories, application_of, clear, make_ready
from obelisk.sandbox.rehearsal import Stage, moved
from obelisk.sandbox.units import Seat, guard_of, program, texts
from obelisk.store import StoredImage
from obelisk.system.bubblewrap import Room
from obelisk.system.ports import free_for

_PASSED_ON = ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "OBELISK_RUN", "OBELISK_DATA", "OBELISK_STORE")
GENERATOR = Path("/usr/lib/systemd/system-generators/obelisk-applications")
"""A host that can have applications has it."""
_OBELISK = (sys.executable, "-I", "-c", "from obelisk.cli import main; raise SystemExit(main())")


@dataclass(frozen=True, slots=True)
class Ground:
    """The machine that applications are installed on, who installs, and their directories. `policy_of` is the operator's word.

    Units in `runtime_units` are gone after a restart.
    """

    machine: Machine
    directories: Directories
    home: Path
    units: Path
    runtime_units: Path
    programs: Path
    entries: Path
    kept: Path
    obelisk: tuple[str, ...]
    policy_of: Callable[[StoredImage], Policy]
    room: Callable[[], Room]
    generated: bool = False

    @classmethod
    def here(
        cls, machine: Machine, environment: Mapping[str, str], *, policy_of: Callable[[StoredImage], Policy], room: Callable[[], Room]
    ) -> "Ground":
        """This one."""
        home = Path(environment.get("HOME") or "/root")
        directories = Directories.of(environment, root=machine.is_root)
        configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        runtime = Path(environment.get("XDG_RUNTIME_DIR") or home)
        # Its own start knows nothing of the environment in which it was installed.
        passed = [f"{name}={environment[name]}" for name in _PASSED_ON if environment.get(name)]
        generated = machine.is_root and GENERATOR.exists()
        state = directories.data.parent
        units, programs = configuration / "systemd/user", home / ".local/bin"
        if machine.is_root:
            units = state / "units" if generated else Path("/etc/systemd/system")
            programs = state / "bin" if generated else Path("/usr/local/bin")
        return cls(
            machine,
            directories,
            home,
            units=units,
            runtime_units=Path("/run/systemd/system") if machine.is_root else runtime / "systemd/user",
            programs=programs,
            entries=Path(environment.get("XDG_DATA_HOME") or home / ".local/share") / "applications",
            kept=directories.installed,
            obelisk=("/usr/bin/obelisk",) if generated else ("/usr/bin/env", *passed, *_OBELISK),
            policy_of=policy_of,
            room=room,
            generated=generated,
        )

    def names(self) -> list[str]:
        """The names of what is installed."""
        return sorted(path.parent.name for path in self.kept.glob("*/state.json"))

    def installation(self, name: str, systemd: Manager, sink: Sink) -> Installation:
        """The application of that name, installed or not."""
        links = self.directories.run / "installed"
        data = self.directories.data / name
        seat = Seat(name, links / name / "start", links / f"{name}.moving", data, self.home, self.machine.is_root, self.obelisk)

        def healthy(made: Made, at: Seat = seat) -> None:
            wait_until_healthy(made.service or Service(), lambda: systemd.look(at.service))

        return Installation(
            seat,
            # What is a subvolume of its own is not in the snapshots that a host takes of its state.
            Places(self.kept / name, self.units, self.programs, self.entries, subvolumes=not self.generated),
            systemd,
            make=lambda image, in_use=False: self._made(seat, image, in_use=in_use),
            clear=lambda image: clear(image, self._ready_at()),
            healthy=healthy,
            rehearsals=Stage(seat, self.runtime_units, systemd, self._said, self._rehearsed, healthy),
            sink=sink,
        )

    def _ready_at(self) -> Directories:
        # What root mounts goes with a restart; what others have copied need not be copied again.
        run = self.directories.run if self.machine.is_root else self.kept / ".run"
        return replace(self.directories, run=run)

    def _said(self, image: StoredImage) -> tuple[Application, Policy]:
        return application_of(image), self.policy_of(image)

    def _rehearsed(self, image: StoredImage, seat: Seat, data: Path) -> Made | None:
        app, policy = self._said(image)
        ports = free_for((power.port for power in policy.of(Listen)), LOOPBACK)
        service = moved(app.service or Service(), ports)
        if service is None:
            return None
        ready = make_ready(
            image,
            policy,
            self.machine,
            directories=replace(self._ready_at(), data=data),
            home=self.home,
            room=self.room,
            guard=guard_of(app, policy),
            elsewhere=tuple(ports.items()),
        )
        return Made(ready.start.parent, texts(seat, image.manifest.label, app, policy, elsewhere=ports), "", service)

    def _made(self, seat: Seat, image: StoredImage, *, in_use: bool) -> Made:
        app, policy = self._said(image)
        ready = make_ready(
            image,
            policy,
            self.machine,
            directories=self._ready_at(),
            home=self.home,
            room=self.room,
            guard=guard_of(app, policy),
            in_use=in_use,
        )
        shows = app.service is None and not self.machine.is_root and desktop.shows_windows(policy)
        return Made(
            ready.start.parent,
            texts(seat, image.manifest.label, app, policy),
            program(seat, policy),
            app.service,
            entries.described(ready.root, app.command) if shows else None,
        )
