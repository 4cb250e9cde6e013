"""systemctl(1): the units of the machine's systemd, or of a user's.

Unit files are written by `obelisk.system.files`; what is here tells systemd of them.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import CommandError, MissingFeatureError
from obelisk.system.command import MINIMAL_ENVIRONMENT, run

_RUNS = Path("/run/systemd/system")
_STOP_S = 3 * 3600  # a service has at most so long to end, and then is killed


@dataclass(frozen=True, slots=True)
class Unit:
    """How a unit is: `active` is systemd's word (active, activating, failed, inactive, …), `restarts` how often systemd started it again.

    `why` is systemd's word for what came of its last run: success, exit-code, timeout, …
    """

    active: str
    restarts: int
    why: str


class Systemctl:
    """The manager of the machine or, with `user`, of the user who runs this."""

    def __init__(self, *, user: bool) -> None:
        self._words = ("systemctl", "--user") if user else ("systemctl",)
        names = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "HOME", "SYSTEMD_UNIT_PATH") if user else ()
        self._environment = {**MINIMAL_ENVIRONMENT, **{name: os.environ[name] for name in names if name in os.environ}}

    def require(self) -> None:
        """Find out whether there is a systemd to talk to.

        Raises:
            MissingFeatureError: there is none. Source: sd_booted(3).
        """
        if not _RUNS.is_dir():
            raise MissingFeatureError(
                "this machine does not run systemd, which services need", code="no-systemd", hint="start it there by `obelisk app run`"
            )

    def reload(self) -> None:
        """Have it read the unit files anew."""
        self._run("daemon-reload")

    def enable(self, *units: str) -> None:
        """Start units with the machine, or with the user's first session."""
        self._run("enable", *units)

    def disable(self, *units: str) -> None:
        """Start them no longer of themselves."""
        self._run("disable", *units)

    def start(self, *units: str) -> None:
        """Start units, also those that have failed too often.

        Raises:
            CommandError: one does not start.
        """
        self.forget(*units)
        self._run("start", *units)

    def stop(self, *units: str) -> None:
        """Stop units, and wait until nothing of them is left."""
        self._run("stop", *units)

    def forget(self, *units: str) -> None:
        """Have no note that units have failed: one that is gone would be listed as failed for ever."""
        with suppress(CommandError):  # units that systemd has not read yet have not failed
            self._run("reset-failed", *units)

    def restart_later(self, *units: str) -> None:
        """Have units started anew when this process has ended, which may be one of theirs."""
        self._run("restart", "--no-block", *units)

    def look(self, unit: str) -> Unit:
        """How a unit is, also one that does not exist, and where there is no systemd."""
        if not _RUNS.is_dir():
            return Unit("inactive", 0, "")
        said = self._run("show", "--property=ActiveState,NRestarts,Result", unit)
        found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        return Unit(found.get("ActiveState", "inactive"), int(found.get("NRestarts") or 0), found.get("Result", ""))

    def _run(self, *words: str) -> str:
        return run([*self._words, *words], env=self._environment, timeout_s=_STOP_S).stdout


class Generated(Systemctl):
    """The manager of a machine that has units from a generator: each that there is starts with the machine.

    Source: systemd.generator(7).
    """

    def __init__(self) -> None:
        super().__init__(user=False)

    def enable(self, *units: str) -> None:
        """See `Systemctl`: reading them anew has done it."""

    def disable(self, *units: str) -> None:
        """See `Systemctl`: it is done when they are gone."""
