"""The command that boots an image to look at: run."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from obelisk.build import slots
from obelisk.build.image import disk_of
from obelisk.cli.making import tools_room
from obelisk.cli.places import find_machine, open_store
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError, StateError
from obelisk.events import task
from obelisk.machine import HOOK, initrd_with
from obelisk.model import uki
from obelisk.model.image import PartKind
from obelisk.model.state import Encryption
from obelisk.store import StoredImage
from obelisk.system import qemu
from obelisk.system.bubblewrap import Bind, Room, read_only, writable
from obelisk.trial import BOOT_S, PORT, Finding, Lab, Probe, findings, injected

_INSIDE_S = 3600
_HOOK = """\
drop_in=/run/systemd/system/serial-getty@ttyS0.service.d
mkdir -p $drop_in
cat /usr/lib/obelisk-shell/conf >$drop_in/shell.conf
"""
_SHELL = """\
[Service]
ExecStart=
ExecStart=-/bin/bash --login
StandardInput=tty
StandardOutput=tty
StandardError=tty
WorkingDirectory=/root
Environment=HOME=/root USER=root LOGNAME=root
"""
_WITH_SHELL = {HOOK: _HOOK.encode(), "usr/lib/obelisk-shell/conf": _SHELL.encode()}


def run(arguments: Namespace) -> int:
    """Boot an image: in this terminal, or for one command."""
    store = open_store(arguments)
    image = find_machine(store, arguments.image)
    site = Path(arguments.site).absolute() if arguments.site else None
    if site is not None and not site.is_dir():
        raise InputError(f"{arguments.site} is no directory", code="site-missing", hint="name one, such as a repository of releases")
    with reporting(json_wanted=arguments.json) as sink:
        room = tools_room(None, store, sink)
    with store.workspace() as work:
        raw = disk_of(image, store, room, work)
        binds: list[Bind] = [writable(work), read_only(raw.parent, "/image")]
        disk = Path(arguments.disk).absolute() if arguments.disk else work / "disk.qcow2"
        if arguments.disk:
            binds.append(writable(disk.parent))
        if not disk.exists():
            size = slots.host_disk_bytes(slots.layout_of(image.manifest))
            qemu.overlay(room, Path("/image") / raw.name, disk, size, binds=binds)
        machine = qemu.Settings(
            disk,
            work,
            arguments.memory,
            # Beside the disk, for each is of no use without the others.
            tpm=disk.with_name(f"{disk.name}.tpm") if image.manifest.state_encryption is Encryption.TPM2 else None,
            forwards=tuple(qemu.forward(text) for text in arguments.port),
            credentials=dict(qemu.credential(text) for text in arguments.credential),
            site=site,
        )
        if arguments.inside is not None:
            with reporting(json_wanted=arguments.json) as sink:
                lab = Lab(room, qemu.acceleration(), sink, tuple(binds))
                found = _ask(arguments.inside, lab, machine, image)
            answer(found.output.rstrip("\n"), json_wanted=arguments.json, status=found.status, output=found.output)
            return found.status
        if arguments.firmware:
            machine = replace(machine, variables=_variables(disk, room, binds))
        else:
            machine = replace(machine, kernel=_kernel(image, work, _WITH_SHELL))
        return _show(image, machine, room, binds)


def _show(image: StoredImage, machine: qemu.Settings, room: Room, binds: Sequence[Bind]) -> int:
    """Start the machine with its console in this terminal, and wait for its end."""
    accel = qemu.acceleration()
    how = "as firmware starts it, with Secure Boot" if machine.variables else "a root shell opens by itself"
    print(f"booting {image.manifest.label} by {accel}; {how}; leave with Ctrl-A X", file=sys.stderr)
    if machine.site is not None:
        print(f"{machine.site} is at {qemu.SITE} of the machine", file=sys.stderr)
    for forward in machine.forwards:
        print(f"127.0.0.1:{forward.host} leads to port {forward.guest} of the machine", file=sys.stderr)
    return qemu.start(room, machine, binds=binds, accel=accel).wait()


def _ask(command: str, lab: Lab, machine: qemu.Settings, image: StoredImage) -> Finding:
    """Boot without a terminal, run a command once the machine is up, and switch off; what the command said.

    Raises:
        StateError: the machine ended without an answer.
    """
    said, console = machine.directory / "said", machine.directory / "console"
    kernel = _kernel(image, machine.directory, injected([Probe("inside", command, _INSIDE_S)]))
    asked = replace(machine, kernel=kernel, ports={PORT: said}, console=console)
    with task(lab.sink, "run", f"Running it in {image.manifest.label}") as running:
        lab.boot(asked, lambda started: started.wait_until_off(timeout_s=BOOT_S + _INSIDE_S))
        found = findings(said.read_text(errors="replace")).get("inside")
        if found is None:
            end = console.read_text(errors="replace")[-2000:]
            raise StateError(f"the machine switched itself off without an answer; the end of its console:\n{end}", code="run-silent")
        running.detail = f"status {found.status}"
    return found


def _variables(disk: Path, room: Room, binds: Sequence[Bind]) -> Path:
    """The variables of the machine's firmware, beside its disk; new ones know no keys, and take those of the image."""
    variables = disk.with_name(f"{disk.name}.vars")
    if not variables.exists():
        room.run(["cp", qemu.VARIABLES, variables], binds=binds)
    return variables


def _kernel(image: StoredImage, work: Path, files: Mapping[str, bytes | str]) -> qemu.Kernel:
    """The image's own kernel, initrd with these files more, and command line: for a boot without firmware."""
    sections = uki.sections(image.part_path(PartKind.UKI).read_bytes())
    (work / "linux").write_bytes(sections["linux"])
    (work / "initrd").write_bytes(initrd_with(sections["initrd"], files))
    return qemu.Kernel(work / "linux", work / "initrd", sections["cmdline"].rstrip(b"\0").decode())
