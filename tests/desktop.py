"""Desktop sessions that no screen belongs to, for as long as a test needs one; what they show can be looked at."""

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ordinary import UID
from tool import Tool

PATIENCE_S = 60
_OWN_TMP = 'mount -t tmpfs -o mode=1777 tmpfs /tmp; exec "$@"'
_WHITE = 0xF0


@dataclass(frozen=True)
class Picture:
    """What a screen shows: three bytes a pixel, row by row."""

    pixels: bytes

    @property
    def white(self) -> float:
        """The share of pixels that are nearly white, as the paper of a text is; the screens here are black."""
        return sum(value >= _WHITE for value in self.pixels) / len(self.pixels)


@dataclass(frozen=True)
class Desktop:
    """A session: the variables that its programs get, and a look at what it shows."""

    variables: dict[str, str]
    look: Callable[[], Picture]

    def shows(self, wanted: Callable[[Picture], bool]) -> Picture:
        """The picture that is as wanted, once there is one."""
        deadline = time.monotonic() + PATIENCE_S
        while not wanted(picture := self.look()):
            assert time.monotonic() < deadline, f"white is {picture.white:.3f} of what is shown"
            time.sleep(0.3)
        return picture


@contextmanager
def _running(words: list[str], socket: Path, variables: dict[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(
        words, env={**os.environ, **(variables or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not socket.exists():
            assert process.poll() is None, f"{words} ended"
            assert time.monotonic() < deadline, f"{words} makes no {socket}"
            time.sleep(0.05)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def types(desktop: Desktop, *words: str) -> None:
    """Have somebody type at the place of a window on a desktop of X11, as the words of xdotool(1)."""
    subprocess.run(["xdotool", "mousemove", "200", "200", "click", "1", *words], env={**os.environ, **desktop.variables}, check=True)


@contextmanager
def wayland(place: Path) -> Iterator[Desktop]:
    """A compositor whose one screen is memory, which lets everybody in. It does not run as root."""
    runtime = place / "session"
    runtime.mkdir()
    os.chown(runtime, UID, UID)
    variables = {"XDG_RUNTIME_DIR": str(runtime), "WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ""}
    drawn = {
        "WLR_BACKENDS": "headless",
        "WLR_RENDERER": "pixman",
        "WLR_LIBINPUT_NO_DEVICES": "1",
        "LIBSEAT_BACKEND": "noop",
        "HOME": "/",
    }
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _OWN_TMP, "sh"]
    words += ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "cage", "--", "sleep", "infinity"]

    def look() -> Picture:
        taken = subprocess.run(["grim", "-t", "ppm", "-"], env={**os.environ, **variables}, capture_output=True, check=True).stdout
        return Picture(taken.split(b"\n", 3)[3])

    with _running(words, runtime / "wayland-0", {**drawn, "XDG_RUNTIME_DIR": str(runtime)}):
        (runtime / "wayland-0").chmod(0o777)
        yield Desktop(variables, look)


@contextmanager
def x11(place: Path, number: int) -> Iterator[Desktop]:
    """An X server whose one screen is memory, which lets everybody in."""
    frame = place / "frame"
    frame.mkdir()

    def look() -> Picture:
        """The picture in a file of xwd: a header, colours of 12 bytes each, then 4 bytes a pixel, of which the last counts for nothing."""
        content = (frame / "Xvfb_screen0").read_bytes()
        header = struct.unpack_from(">25I", content)
        pixels = memoryview(content)[header[0] + 12 * header[19] :]
        colours = bytearray(len(pixels) // 4 * 3)
        for colour in range(3):
            colours[colour::3] = pixels[colour::4][: len(pixels) // 4]
        return Picture(bytes(colours))

    words = ["Xvfb", f":{number}", "-screen", "0", "1280x800x24", "-fbdir", str(frame), "-nolisten", "tcp", "-noreset", "-ac"]
    socket = Path(f"/tmp/.X11-unix/X{number}")  # noqa: S108 - where X servers are
    desktop = Desktop({"DISPLAY": f":{number}", "WAYLAND_DISPLAY": "", "XDG_RUNTIME_DIR": ""}, look)
    with _running(words, socket):
        # Its socket comes before its screen; whoever asks meanwhile waits.
        asking = {**os.environ, **desktop.variables}
        subprocess.run(["xdotool", "getdisplaygeometry"], env=asking, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, check=True)
        yield desktop


@contextmanager
def session(desktop: Desktop) -> Iterator[None]:
    """The variables of a desktop, for what is started meanwhile."""
    before = dict(os.environ)
    os.environ |= desktop.variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def opened(app: Tool, desktop: Desktop, file: str) -> Iterator[None]:
    """A program with a file, on a desktop that shows its window."""
    with session(desktop):
        process = app.start("app", "run", str(app.spec), "--", file)
    with shown(process, desktop):
        yield


@contextmanager
def shown(process: subprocess.Popen[str], desktop: Desktop) -> Iterator[None]:
    """A program of which a desktop shows the window; afterwards it is ended."""
    try:
        desktop.shows(lambda picture: picture.white > 0.1)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        process.kill()
        process.wait()
