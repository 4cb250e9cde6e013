"""The monitor of a running QEMU (QMP): what instances are asked and told while they run.

A monitor talks with one client at a time; others wait. Source: QEMU, "QEMU Machine Protocol Specification" and its reference manual.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.qmp import QMPClient, QMPError

from obelisk.errors import CommandError, StateError

_CONNECT_S = 10.0
_ANSWER_S = 60.0
_POLL_S, _POLL_MOST_S = 0.01, 0.1
_SAVE_S = 600.0
_Answer = TypeVar("_Answer")
_NO_SPACE = "No space left on device"


@dataclass(frozen=True, slots=True)
class Saved:
    """How memory is written to a file, or read from one. `status` is QEMU's word; for `downtime_ms` the guest stood still."""

    status: str
    done_bytes: int = 0
    total_bytes: int = 0
    downtime_ms: int = 0
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether it goes on no more."""
        return self.status in {"completed", "failed", "cancelled", "none"}


class Monitor:
    """A conversation with the monitor at a Unix socket, for as long as the `with` block lasts.

    Raises:
        CommandError: `monitor-failed`, by each method: the machine refused, or is no longer there.
    """

    def __init__(self, socket: Path, *, timeout_s: float = _CONNECT_S) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._client = QMPClient("obelisk")

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        try:
            # The path of a socket has a hundred characters at most.
            directory = os.open(self._socket.parent, os.O_PATH | os.O_DIRECTORY)
            try:
                self._ask(self._client.connect(f"/proc/self/fd/{directory}/{self._socket.name}"), "connect", self._timeout_s)
            finally:
                os.close(directory)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401 - each command has its own answer
        """What the machine answers to a command."""
        return self._ask(self._client.execute(command, dict(arguments or {})), command, _ANSWER_S)

    def run_state(self) -> str:
        """What it does, such as `running`, `paused`, `postmigrate`, `inmigrate`, `io-error`."""
        return str(self.execute("query-status")["status"])

    def resume(self) -> None:
        """Have the processors run."""
        self.execute("cont")

    def press_power_button(self) -> None:
        """Ask the guest to switch itself off."""
        self.execute("system_powerdown")

    def set_capabilities(self, **wanted: bool) -> None:
        """How memory is written and read from now on."""
        pairs = [{"capability": name.replace("_", "-"), "state": state} for name, state in wanted.items()]
        self.execute("migrate-set-capabilities", {"capabilities": pairs})

    def save(self, file: str, on_progress: Callable[[int, int], None]) -> Saved:
        """Write memory and devices to a file while the guest runs; at the end it stands still, in the state `postmigrate`.

        Raises:
            StateError: `no-space`.
        """
        # As fast as the disk takes it, and without trying to be short at the end at any price.
        self.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40, "downtime-limit": 300})
        self.execute("migrate", {"uri": f"file:{file}"})
        return self._wait("save memory", on_progress)

    def load(self, file: str) -> Saved:
        """Read what `save` wrote, in a machine that was started to wait for it. It stands still afterwards."""
        # It is not asked to tell its network that it has moved, for that is a new one, and a copy is about to change its address: one that
        # tells the old one first is not reached by the new, and virtio_net of Linux 6.12 may wait for ever to do both at once.
        self.execute("migrate-set-parameters", {"announce-rounds": 0})
        self.execute("migrate-incoming", {"uri": f"file:{file}"})
        return self._wait("load memory", lambda _done, _total: None)

    def saved(self) -> Saved:
        """How far writing or reading of memory is."""
        raw: dict[str, Any] = self.execute("query-migrate")
        ram = raw.get("ram", {})
        return Saved(
            raw.get("status", "none"),
            int(ram.get("total", 0)) - int(ram.get("remaining", 0)),
            int(ram.get("total", 0)),
            int(raw.get("downtime", 0)),
            str(raw.get("error-desc", "")),
        )

    def cancel_saving(self) -> None:
        """Give up writing memory, when that is under way."""
        self.execute("migrate_cancel")
        deadline = time.monotonic() + _ANSWER_S
        while not self.saved().ended and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def put_layer_over(self, device: str, file: str, node: str) -> None:
        """Have a disk write to the empty qcow2 file from now on; what it wrote to until now is read only from this instant."""
        below = self.node_of(device)
        options = {"driver": "qcow2", "node-name": node, "discard": "unmap", "file": {"driver": "file", "filename": file}, "backing": None}
        self.execute("blockdev-add", options)
        try:
            self.execute("blockdev-snapshot", {"node": below, "overlay": node})
        except CommandError:
            with suppress(CommandError):
                self.execute("blockdev-del", {"node-name": node})
            raise

    def drop_unused_layers(self, device: str, prefix: str) -> None:
        """Close files that were to become a disk's layers, by the beginning of their nodes' names, and did not."""
        used = self.node_of(device)
        for each in self.execute("query-named-block-nodes"):
            if each["node-name"].startswith(prefix) and not each["ro"] and each["node-name"] != used:
                with suppress(CommandError):  # one that is used after all
                    self.execute("blockdev-del", {"node-name": each["node-name"]})

    def node_of(self, device: str) -> str:
        """The name of what a disk (by the id of its device) writes to."""
        for each in self.execute("query-block"):
            if str(each.get("qdev", "")).split("/")[0] == device or f"/{device}/" in str(each.get("qdev", "")):
                return str(each["inserted"]["node-name"])
        raise CommandError(("qemu-monitor", "query-block"), 1, f"there is no disk {device}", code="monitor-failed")

    def is_open(self, port: str) -> bool:
        """Whether a program of the guest has opened the virtio-serial port behind this character device."""
        return any(each["label"] == port and each["frontend-open"] for each in self.execute("query-chardev"))

    def forward(self, network: str, forward: str) -> None:
        """Have a port of this machine lead into the guest; in the words of QEMU, `tcp:ADDRESS:PORT-:PORT`.

        Raises:
            CommandError: `port-taken`.
        """
        said = str(self.execute("human-monitor-command", {"command-line": f"hostfwd_add {network} {forward}"})).strip()
        if said:
            raise CommandError(("qemu-monitor", "hostfwd_add"), 1, said, code="port-taken")

    def _wait(self, what: str, on_progress: Callable[[int, int], None]) -> Saved:
        began = time.monotonic()
        while not (now := self.saved()).ended:
            on_progress(now.done_bytes, now.total_bytes)
            if (gone := time.monotonic() - began) > _SAVE_S:
                self.cancel_saving()
                raise CommandError(("qemu-monitor", what), 1, f"not done after {_SAVE_S:.0f} s", code="monitor-failed")
            # Each look costs the machine, and this one, some of what is left for the work.
            time.sleep(min(max(_POLL_S, gone / 5), _POLL_MOST_S))
        if now.status != "completed":
            if _NO_SPACE in now.error:
                raise StateError(f"the disk is full: cannot {what}", code="no-space", hint="free some space, and try again")
            raise CommandError(("qemu-monitor", what), 1, now.error or now.status, code="monitor-failed")
        return now

    def _ask(self, question: Coroutine[Any, Any, _Answer], what: str, timeout_s: float) -> _Answer:
        async def ask() -> _Answer:
            async with asyncio.timeout(timeout_s):
                return await question

        try:
            return self._loop.run_until_complete(ask())
        except (QMPError, OSError, TimeoutError) as error:
            said = str(error) or f"no answer in {timeout_s:.0f} s"
            raise CommandError(("qemu-monitor", what), 1, said, code="monitor-failed") from error

    def _close(self) -> None:
        with suppress(QMPError, OSError, TimeoutError, EOFError, CommandError):
            self._ask(self._client.disconnect(), "disconnect", _CONNECT_S)
        self._loop.close()
