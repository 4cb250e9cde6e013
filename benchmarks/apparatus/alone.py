"""QEMU alone: the machine of a migration's tests, moved between two hosts by nothing but the monitors of two QEMUs.

It has what libvirt gives to the machine of `obelisk.instance.domain`: the same devices and settings, TLS both ways, a mirror of the state
that is complete before memory moves, and a switch-over that waits until the mirror has let go. Nothing decides, nothing is checked, nothing
is put right: it is what a migration costs at least.
"""

import asyncio
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster import Host
from qemu.qmp import QMPClient, QMPError

from obelisk.instance.remote import Boot
from obelisk.model.instance import MACHINE_TYPE, PROCESSOR, STATE_SERIAL

_MEMORY_PORT, _DISK_PORT = 49160, 49161
_UNLIMITED = 1 << 40
_STEP_S = 120.0
_STATE = "/var/lib/libvirt/obelisk/alone.state"
_MAC = "52:54:00:77:00:50"


class Alone:
    """The machine on one of two hosts, until `close`. `pause_s` is how long it may stand still."""

    def __init__(self, hosts: Sequence[Host], boot: Boot, *, memory_bytes: int, state_bytes: int, pause_s: float) -> None:
        self._here, self._other = hosts
        self._words, self._memory_bytes, self._state_bytes, self._pause_s = boot.command_line, memory_bytes, state_bytes, pause_s
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        for host in hosts:
            for name, file in zip(("alone.kernel", "alone.initrd", "alone.root"), boot.files, strict=True):
                (host.place / name).hardlink_to(file)
            host.run("ip", "tuntap", "add", "alone", "mode", "tap")
            host.run("ip", "link", "set", "alone", "master", "br0", "up")
        self._start(self._here)
        asyncio.run(self._with(self._here, _go_on))

    def migrate(self) -> float:
        """Move it to the other host; for how many seconds it stood still, from its last instruction here to its first one there."""
        self._start(self._other, "-incoming", "defer")
        pause_s = asyncio.run(self._migrate())
        self._end(self._here)
        self._here, self._other = self._other, self._here
        return pause_s

    def close(self) -> None:
        """End it."""
        for host in (self._here, self._other):
            self._end(host)
            host.run("rm", "-f", _STATE)
            host.run("ip", "link", "delete", "alone")

    def _start(self, host: Host, *more: str) -> None:
        (host.place / "alone.monitor").unlink(missing_ok=True)
        host.run("qemu-img", "create", "-q", "-f", "qcow2", _STATE, str(self._state_bytes))
        state = f"driver=qcow2,node-name=state,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename={_STATE},cache.direct=on"
        words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-S"]
        words += ["-machine", f"{MACHINE_TYPE},accel=tcg,hpet=off", "-cpu", PROCESSOR, "-m", f"{self._memory_bytes}B", "-smp", "1"]
        words += ["-kernel", "/host/alone.kernel", "-initrd", "/host/alone.initrd", "-append", self._words]
        words += ["-blockdev", "driver=raw,node-name=root,read-only=on,file.driver=file,file.filename=/host/alone.root"]
        words += [
            "-device",
            "virtio-blk-pci,drive=root",
            "-blockdev",
            state,
            "-device",
            f"virtio-blk-pci,drive=state,serial={STATE_SERIAL}",
        ]
        words += ["-netdev", "tap,id=lan,ifname=alone,script=no,downscript=no", "-device", f"virtio-net-pci,netdev=lan,mac={_MAC}"]
        words += ["-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random", "-serial", "null"]
        for end in ("client", "server"):
            words += ["-object", f"tls-creds-x509,id={end},dir=/etc/pki/qemu,endpoint={end},verify-peer=yes"]
        words += ["-qmp", "unix:/host/alone.monitor,server=on,wait=off", *more]
        self._programs[host.name] = subprocess.Popen(host.inside(*words), stdin=subprocess.DEVNULL)

    def _end(self, host: Host) -> None:
        program = self._programs.pop(host.name, None)
        if program is None:
            return

        async def ask(monitor: "_Monitor") -> None:
            await monitor.ask("quit")

        with suppress(QMPError, OSError, EOFError, TimeoutError):
            asyncio.run(self._with(host, ask))
        program.wait(_STEP_S)

    async def _with(self, host: Host, act: "Callable[[_Monitor], Coroutine[Any, Any, None]]") -> None:
        monitor = await _Monitor.of(host)
        try:
            await act(monitor)
        finally:
            await monitor.close()

    async def _migrate(self) -> float:
        here, there = await _Monitor.of(self._here), await _Monitor.of(self._other)
        try:
            await self._prepare(here, there)
            address = {"host": self._other.peer, "port": str(_DISK_PORT), "type": "inet"}
            copy = {"driver": "nbd", "node-name": "copy", "server": address, "export": "state", "tls-creds": "client"}
            await here.ask("blockdev-add", copy)
            mirror = {"job-id": "mirror", "device": "state", "target": "copy", "sync": "full", "auto-dismiss": True}
            await here.ask("blockdev-mirror", mirror)
            await here.event("BLOCK_JOB_READY")
            await here.ask("migrate", {"uri": f"tcp:{self._other.peer}:{_MEMORY_PORT}"})
            await here.until("pre-switchover")
            await here.ask("block-job-cancel", {"device": "mirror"})
            await here.event("BLOCK_JOB_COMPLETED")
            await here.ask("blockdev-del", {"node-name": "copy"})
            await here.ask("migrate-continue", {"state": "pre-switchover"})
            await here.until("completed")
            await there.ask("nbd-server-stop")
            await there.ask("cont")
            return await there.event("RESUME") - await here.event("STOP")
        finally:
            await here.close()
            await there.close()

    async def _prepare(self, here: "_Monitor", there: "_Monitor") -> None:
        await there.ask("nbd-server-start", {"addr": _inet("0.0.0.0", _DISK_PORT), "tls-creds": "server"})  # noqa: S104 - a network of its own
        await there.ask("block-export-add", {"type": "nbd", "id": "state", "node-name": "state", "name": "state", "writable": True})
        for monitor, end in ((here, "client"), (there, "server")):
            await monitor.ask("migrate-set-capabilities", {"capabilities": [{"capability": "pause-before-switchover", "state": True}]})
            limits = {"max-bandwidth": _UNLIMITED, "downtime-limit": round(self._pause_s * 1000), "tls-creds": end}
            await monitor.ask("migrate-set-parameters", limits)
        await there.ask("migrate-incoming", {"uri": f"tcp:{self._other.peer}:{_MEMORY_PORT}"})


def _inet(address: str, port: int) -> dict[str, object]:
    return {"type": "inet", "data": {"host": address, "port": str(port)}}


async def _go_on(monitor: "_Monitor") -> None:
    await monitor.ask("cont")


class _Monitor:
    """A conversation with the monitor of QEMU on a host, with the time of each event."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._seen: dict[str, float] = {}

    @classmethod
    async def of(cls, host: Host) -> "_Monitor":
        deadline = time.monotonic() + _STEP_S
        while True:
            client = QMPClient(host.name)
            try:
                await client.connect(str(host.place / "alone.monitor"))
            except (QMPError, OSError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                return cls(client)

    async def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401 - each has its own answer
        async with asyncio.timeout(_STEP_S):
            return await self._client.execute(command, dict(arguments or {}))

    async def event(self, name: str) -> float:
        """When that has happened, in seconds since 1970, by the clock that both hosts have."""
        async with asyncio.timeout(_STEP_S):
            while name not in self._seen:
                event = await self._client.events.get()
                stamp: Any = event["timestamp"]
                self._seen[str(event["event"])] = stamp["seconds"] + stamp["microseconds"] / 1e6
        return self._seen[name]

    async def until(self, status: str) -> None:
        """Wait until the migration from here is so far."""
        deadline = time.monotonic() + _STEP_S
        while (told := await self.ask("query-migrate"))["status"] != status:
            if told["status"] in {"failed", "cancelled"} or time.monotonic() > deadline:
                raise RuntimeError(f"QEMU alone did not come to {status}: {told}")
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        with suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()
