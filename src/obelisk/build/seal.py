"""From configured tree to the parts of an image: EROFS root, its hash tree, initrd, Unified Kernel Image, and boot loader.

Layout of the outputs: root/root.erofs, root/root.verity, root/result.json {"root_hash", "erofs_bytes"}; initrd/initrd.zst; uki/uki.efi,
uki/cmdline; loader/systemd-bootx64.efi, loader/*.auth.
"""

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid5

from obelisk.build import slots
from obelisk.build.graph import Step
from obelisk.build.keys import SigningKey
from obelisk.build.programs import Overlay, overlay_command, run_program
from obelisk.build.trees import LAYERS, digest_of_code, layer_binds
from obelisk.errors import InputError
from obelisk.events import Task
from obelisk.model.canonical import Json, digest
from obelisk.model.lock import Lock
from obelisk.model.spec import Compression, Lockdown, Role, Spec
from obelisk.system import erofs, namespace, sbsign, ukify, verity
from obelisk.system.bubblewrap import Room, read_only, writable
from obelisk.system.files import hash_file, sync_file

NAMESPACE = UUID("6f62656c-6973-4b00-8000-000000000001")
# The time that the loader's signature names: the same in all images, so that hosts fetch and replace a loader only where it is another.
_LOADER_EPOCH = 1_704_067_200
_COMPRESSION = {Compression.NONE: "", Compression.LZ4: "lz4hc,12", Compression.ZSTD: "zstd,level=12"}


def root_step(spec: Spec, lock: Lock, steps: Mapping[str, Step]) -> Step:
    """The root file system and its hash tree. The salt belongs to the product, so that equal blocks hash equally in all its versions."""
    salt = digest(["verity salt", spec.name])
    budget = slots.root_bytes(spec)

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        room = Room(needs["tools"] / "tree")
        binds = [*layer_binds(needs), writable(work, "/step")]
        layers = Overlay(LAYERS, None, None)
        request = erofs.Make(
            Path("/tree"), Path("/step/root.erofs"), lock.system.epoch, uuid5(NAMESPACE, lock.sha256), _COMPRESSION[spec.compression]
        )
        room.run(
            overlay_command(layers, request.argv(), user_namespace=not namespace.is_root()),
            binds=binds,
            env=request.environment(),
            on_line=running.output,
        )
        size = (work / "root.erofs").stat().st_size
        if size > budget:
            raise InputError(
                f"the root file system has {size >> 20} MiB, the budget is {budget >> 20} MiB",
                code="size-budget",
                hint="raise `size_budget` in the spec (it sizes the slots of new hosts), or leave packages out",
            )
        tree = Path("/step/root.erofs"), Path("/step/root.verity")
        with ThreadPoolExecutor() as pool:
            # Half a gigabyte is hashed once, here, and not at each build that finds it finished.
            sha256 = pool.submit(hash_file, work / "root.erofs")
            written = pool.submit(sync_file, work / "root.erofs")  # the image's sealing waits for it
            root_hash = verity.seal(room, *tree, salt=salt, uuid=uuid5(NAMESPACE, salt), binds=[writable(work, "/step")])
            (work / "root.erofs.sha256").write_text(sha256.result())
            written.result()
        (work / "root.verity.sha256").write_text(hash_file(work / "root.verity"))
        (work / "result.json").write_text(json.dumps({"root_hash": root_hash, "erofs_bytes": size}))

    options: Json = {"compression": spec.compression.value, "salt": salt, "lock": lock.sha256, "budget": budget}
    needs = tuple(steps[name] for name in ("foundation", "base", "configured", "tools"))
    return Step("root", "Root file system", options, needs, produce)


def initrd_step(foundation: Step, tools: Step) -> Step:
    """The initrd: a function of the foundation alone, so no other package and no change of configuration makes another."""

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        room = Room(needs["tools"] / "tree")
        kernel = json.loads((needs["foundation"] / "result.json").read_text())["kernel"]
        guest = ["/obelisk/guest/initrd", "/obelisk/guest/both"]
        request = {"tree": "/foundation", "kernel": kernel, "guest": guest, "out": "/step/initrd.zst"}
        binds = [read_only(needs["foundation"] / "tree", "/foundation"), writable(work, "/step")]
        run_program(room, "initrd", request, binds=binds, running=running)

    return Step("initrd", "Initrd", {"code": digest_of_code()}, (foundation, tools), produce)


def command_line(spec: Spec, root_hash: str) -> str:
    """The kernel command line that the UKI seals."""
    consoles = ("console=ttyS0", "console=tty0") if spec.role is Role.WORKSTATION else ("console=tty0", "console=ttyS0")
    lockdown = () if spec.hardening.lockdown is Lockdown.NONE else (f"lockdown={spec.hardening.lockdown}",)
    signatures = ("module.sig_enforce=1",) if spec.hardening.module_signatures else ()
    # gpt: a partition table whose first copy was cut while it was written is read from the second. panic: a host falls back by itself.
    words = (
        "root=/dev/mapper/root",
        "rootfstype=erofs",
        "ro",
        f"roothash={root_hash}",
        "gpt",
        "panic=10",
        *lockdown,
        *signatures,
        *consoles,
        "quiet",
        "loglevel=4",
    )
    return " ".join((*words, "systemd.show_status=auto", "systemd.firstboot=off", *spec.boot.cmdline))


def loader_step(key: SigningKey, tools: Step) -> Step:
    """The boot loader, signed for Secure Boot, and the files by which it enrols the keys."""

    def produce(work: Path, needs: Mapping[str, Path], _running: Task) -> None:
        loader = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
        for name, file in {**key.enrolment, **{f"{kind.value}.auth": file for kind, file in key.updates.items()}}.items():
            shutil.copyfile(file, work / name)
        binds = [read_only(key.signing, "/key"), writable(work, "/step")]
        sbsign.sign(Room(needs["tools"] / "tree"), loader, Path("/step/systemd-bootx64.efi"), epoch=_LOADER_EPOCH, binds=binds)

    decides: Json = {"certificate": key.certificate_sha256, "enrolment": key.enrolment_sha256}
    return Step("loader", "Boot loader", decides, (tools,), produce)


def uki_step(spec: Spec, lock: Lock, key: SigningKey, steps: Mapping[str, Step]) -> Step:
    """The Unified Kernel Image, signed for Secure Boot."""

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        room = Room(needs["tools"] / "tree")
        kernel = json.loads((needs["foundation"] / "result.json").read_text())["kernel"]
        root_hash = json.loads((needs["root"] / "result.json").read_text())["root_hash"]
        release = json.loads((needs["configured"] / "result.json").read_text())["os_release"]
        cmdline = command_line(spec, root_hash)
        (work / "cmdline").write_text(cmdline)
        (work / "os-release").write_text(release)
        request = ukify.Build(
            kernel=Path("/foundation/vmlinuz"),
            initrds=(Path("/initrd/initrd.zst"),),
            cmdline=Path("/step/cmdline"),
            os_release=Path("/step/os-release"),
            uname=kernel,
            out=Path("/step/uki.efi"),
            key=Path("/key/db.key"),
            certificate=Path("/key/db.crt"),
            epoch=lock.system.epoch,
        )
        binds = [
            read_only(needs["foundation"], "/foundation"),
            read_only(needs["initrd"], "/initrd"),
            read_only(key.signing, "/key"),
            writable(work, "/step"),
        ]
        room.run(request.argv(), binds=binds, on_line=running.output)
        (work / "uki.efi.sha256").write_text(hash_file(work / "uki.efi"))

    options: Json = {"cmdline": command_line(spec, "ROOTHASH"), "certificate": key.certificate_sha256, "epoch": lock.system.epoch}
    needs = tuple(steps[name] for name in ("foundation", "configured", "root", "initrd", "tools"))
    return Step("uki", "Unified kernel image", options, needs, produce)
