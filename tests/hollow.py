"""Machines without processors: QEMU has memory and a disk, all of its monitor, and nothing runs in it. They cost next to nothing.

What a guest would do is done from outside: its word in memory is written through /proc, its word in state through the monitor. It takes
every identity, and no port leads to it.
"""

import re
from pathlib import Path

import pytest
from machines import Machines

from obelisk.instance.records import Bootable
from obelisk.system import resident
from obelisk.system.bubblewrap import Room, read_only
from obelisk.system.monitor import Monitor
from obelisk.system.resident import Resident, Setup

IMAGE = "0110" * 16
_WORD = 8
_KEPT = ("-object", "-blockdev", "-qmp", "-sandbox", "-incoming", "-m")


def hollow_argv(setup: Setup) -> list[str]:
    """The machine's own words, but for what has to do with a guest."""
    words = _ARGV(setup)
    kept = [words[0], "-nodefaults", "-no-user-config", "-machine", "none,memory-backend=ram", "-display", "none"]
    for at, word in enumerate(words):
        kept += words[at : at + 2] if word in _KEPT else []
    return [*kept, "-S"] if "-S" in words else kept


_ARGV = resident.argv


def top_node(monitor: Monitor, _device: str) -> str:
    """What the disk writes to. A node that a killed command has left has none below it."""
    nodes = [each for each in monitor.execute("query-named-block-nodes") if each["drv"] == "qcow2" and not each["ro"]]
    found = max(nodes, key=lambda each: (each["backing_file_depth"], each["node-name"] == resident.LAYER))
    return str(found["node-name"])


def hollow(patch: pytest.MonkeyPatch) -> None:
    """Have machines be such, as long as the patch holds."""
    patch.setattr(resident, "argv", hollow_argv)
    patch.setattr(Monitor, "node_of", top_node)
    patch.setattr(Monitor, "is_open", lambda _monitor, port: port == resident.IDENTITY)
    patch.setattr(Monitor, "press_power_button", lambda monitor: monitor.execute("quit"))
    patch.setattr(Monitor, "forward", lambda *_: None)
    patch.setattr(Resident, "tell_identity", lambda *_, **__: "renewed")


class Hollow(Machines):
    """Such machines. Words have eight letters and digits at most."""

    kind = "hollow"
    image = IMAGE

    def __init__(self, root: Path, room: Room) -> None:
        super().__init__(root, room, Bootable(IMAGE, "hollow_1", b"linux", b"initrd", ""))

    def set_words(self, name: str, *, memory: str, state: str) -> None:
        with self._memory(name).open("r+b", buffering=0) as space:
            space.seek(self._at(name))
            space.write(memory.encode().ljust(_WORD, b"\0"))
        # A byte a sector: the monitor fills ranges with one byte.
        self._disk(name, *(f"write -q -P {byte} {512 * at} 512" for at, byte in enumerate(state.encode().ljust(_WORD, b"\0"))), "flush")

    def words(self, name: str) -> tuple[str, str]:
        with self._memory(name).open("rb", buffering=0) as space:
            space.seek(self._at(name))
            memory = space.read(_WORD)
        place = self.embedded.records.place(name)
        reads = [word for at in range(_WORD) for word in ("-c", f"read -v {512 * at} 16")]
        words = ["qemu-io", "-U", "-r", "-f", "qcow2", *reads, f"/layers/{place.read().layers[-1]}.qcow2"]
        shown = self.room.run(words, binds=[read_only(place.layers, "/layers")]).stdout
        state = bytes(int(first, 16) for first in re.findall(r"^[0-9a-f]{8}:  ([0-9a-f]{2}) ", shown, re.MULTILINE))
        assert len(state) == _WORD, shown
        return memory.rstrip(b"\0").decode(), state.rstrip(b"\0").decode()

    def _disk(self, name: str, *commands: str) -> None:
        with self.embedded.records.place(name).machine.monitor() as monitor:
            node = monitor.node_of("state")
            for command in commands:
                monitor.execute("human-monitor-command", {"command-line": f'qemu-io {node} "{command}"'})

    def _memory(self, name: str) -> Path:
        return Path(f"/proc/{self.engine.status(name).process}/mem")

    def _at(self, name: str) -> int:
        """Where its memory begins: the one mapping of that size."""
        size = self.engine.instance(name).wish.memory_bytes
        text = Path(f"/proc/{self.engine.status(name).process}/maps").read_text()
        spans = [(int(first, 16), int(end, 16)) for first, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw", text, re.MULTILINE)]
        (found,) = [first for first, end in spans if first <= end - size and (end - first) in {size, size + 4096}]
        return found
