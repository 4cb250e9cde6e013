"""One running virtual machine: waits for what its console says, and is gone when its block ends, however that happens."""

import io
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from obelisk.build.inside.initrd import write_archive
from obelisk.errors import CommandError, InputError
from obelisk.system import qemu
from obelisk.system.bubblewrap import Bind, Room

_PRESS_AGAIN_S = 10
_PANIC = re.compile(r"Kernel panic - not syncing|obelisk: STOPPED")
LATE_TIMER = "machine-timer"
"""Code of the error of a kernel that waited in vain for the emulated timer, on a busy machine: that says nothing about the image."""

HOOK = "usr/lib/obelisk/hook"
"""A shell script of this name in an initrd is read before the verified root takes over."""


class Machine:
    """A machine that runs from entering to leaving the `with` block. Its console must be a file."""

    def __init__(self, room: Room, settings: qemu.Settings, *, binds: tuple[Bind, ...], accel: str | None = None) -> None:
        if settings.console is None:
            raise InputError("a machine that is waited for needs its console in a file", code="machine-console")
        self.settings = settings
        self.console: Path = settings.console
        self.accel = accel or qemu.acceleration()
        self._room = room
        self._binds = binds

    def __enter__(self) -> Self:
        self.console.write_bytes(b"")
        self.started = time.monotonic()
        self._process = qemu.start(self._room, self.settings, binds=self._binds, accel=self.accel)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def wait_for(self, pattern: str, *, timeout_s: float) -> re.Match[str]:
        """Wait until the console shows `pattern` and return the match.

        Raises:
            CommandError: the machine ended, stopped itself or panicked first, or the time is over; with the end of the console.
        """
        wanted = re.compile(pattern)
        deadline = self.started + timeout_s
        while True:
            text = self.text()
            if found := wanted.search(text):
                return found
            if self._process.poll() is not None:
                raise self._failed("the machine ended", text)
            self._refuse_panic(text)
            if time.monotonic() > deadline:
                raise self._failed(f"{timeout_s:.0f} s passed without: {pattern}", text)
            time.sleep(0.1)

    def wait_until_off(self, *, timeout_s: float) -> bool:
        """Wait until the machine has switched itself off; whether it did.

        Raises:
            CommandError: it stopped itself or panicked.
        """
        deadline = time.monotonic() + timeout_s
        while self._process.poll() is None:
            self._refuse_panic(self.text())
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def power_off(self, *, timeout_s: float) -> bool:
        """Press the power button and wait; whether the machine went down by itself.

        The button is pressed again now and then: before the guest has found it, nobody notices.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(CommandError):  # it may go down between the two looks at it
                qemu.command(self.settings.directory / "monitor", "system_powerdown")
            if self.wait_until_off(timeout_s=_PRESS_AGAIN_S):
                return True
        return self._process.poll() is not None

    def screenshot(self, target: Path) -> None:
        """Write the screen to a PNG file."""
        qemu.command(self.settings.directory / "monitor", "screendump", filename=str(target), format="png")

    def text(self) -> str:
        """All that the console has shown, without escape sequences."""
        return re.sub(r"\x1b(\[[0-9;?=]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\)|c|!p)", "", self.console.read_bytes().decode(errors="replace"))

    def _refuse_panic(self, text: str) -> None:
        if stopped := _PANIC.search(text) or qemu.LATE_TIMER.search(text):
            time.sleep(1)
            text = self.text()
            code = LATE_TIMER if qemu.LATE_TIMER.search(text) else "machine-failed"
            raise self._failed(f"the machine said: {stopped[0]}", text, code=code)

    def _failed(self, reason: str, text: str, *, code: str = "machine-failed") -> CommandError:
        log = self.settings.directory / "qemu.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        tail = "\n".join(line.strip() for line in text.splitlines() if line.strip())[-2000:]
        return CommandError(("machine",), self._process.poll() or 0, f"{tail}\n{said}{reason}", code=code, hint=f"read {self.console}")


def initrd_with(initrd: bytes, files: Mapping[str, bytes | str]) -> bytes:
    """An initrd with more files (bytes) and links (text) appended as a second archive, which the kernel unpacks over the first."""
    added = io.BytesIO()
    write_archive(added, {}, dict(files))
    return initrd + b"\0" * (-len(initrd) % 4) + added.getvalue()
