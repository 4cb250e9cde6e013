"""From configured tree to the parts of an image: EROFS root, its hash tree, initrd, Unified Kernel Image, and the disk.

Layout of the outputs: root/root.erofs, root/root.verity, root/result.json {"root_hash", "erofs_bytes"}; initrd/initrd.zst; uki/uki.efi,
uki/cmdline; loader/systemd-bootx64.efi, loader/*.auth; disk/disk.raw.
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
from obelisk.model.image import PartKind
from obelisk.model.lock import Lock
from obelisk.model.spec import Compression, Role, Spec
from obelisk.system import erofs, namespace, repart, sbsign, ukify, verity
from obelisk.system.bubblewrap import Room, read_only, writable
from obelisk.system.files import hash_file, sync_file

_NAMESPACE = UUID("6f62656c-6973-4b00-8000-000000000001")
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
            Path("/tree"), Path("/step/root.erofs"), lock.system.epoch, uuid5(_NAMESPACE, lock.sha256), _COMPRESSION[spec.compression]
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
            root_hash = verity.seal(room, *tree, salt=salt, uuid=uuid5(_NAMESPACE, salt), binds=[writable(work, "/step")])
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
    words = ("root=/dev/mapper/root", "rootfstype=erofs", "ro", f"roothash={root_hash}", *consoles, "quiet", "loglevel=4")
    return " ".join((*words, "systemd.show_status=auto", "systemd.firstboot=off", *spec.boot.cmdline))


def loader_step(lock: Lock, key: SigningKey, tools: Step) -> Step:
    """The boot loader, signed for Secure Boot, and the files by which it enrols the keys."""

    def produce(work: Path, needs: Mapping[str, Path], _running: Task) -> None:
        loader = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
        for name in ("PK", "KEK", "db"):
            shutil.copyfile(key.directory / f"{name}.auth", work / f"{name}.auth")
        binds = [read_only(key.directory, "/key"), writable(work, "/step")]
        sbsign.sign(Room(needs["tools"] / "tree"), loader, Path("/step/systemd-bootx64.efi"), epoch=lock.system.epoch, binds=binds)

    return Step("loader", "Boot loader", {"certificate": key.certificate_sha256, "epoch": lock.system.epoch}, (tools,), produce)


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
            read_only(key.directory, "/key"),
            writable(work, "/step"),
        ]
        room.run(request.argv(), binds=binds, on_line=running.output)

    options: Json = {"cmdline": command_line(spec, "ROOTHASH"), "certificate": key.certificate_sha256, "epoch": lock.system.epoch}
    needs = tuple(steps[name] for name in ("foundation", "configured", "root", "initrd", "tools"))
    return Step("uki", "Unified kernel image", options, needs, produce)


def disk_step(spec: Spec, lock: Lock, key: SigningKey, steps: Mapping[str, Step]) -> Step:
    """The disk as it is shipped: ESP and slot A, made without a loop device."""

    def produce(work: Path, needs: Mapping[str, Path], _running: Task) -> None:
        root_hash = json.loads((needs["root"] / "result.json").read_text())["root_hash"]
        layout = slots.Layout(f"{spec.name}_{spec.version}", root_hash, slots.root_bytes(spec), lock.system.epoch)
        files = {PartKind.ROOT: needs["root"] / "root.erofs", PartKind.VERITY: needs["root"] / "root.verity"}
        files |= {kind: needs["uki" if kind is PartKind.UKI else "loader"] / name for kind, name in _ESP_PARTS.items()}
        assemble_disk(Room(needs["tools"] / "tree"), work, files, layout)

    options: Json = {"name": spec.name, "version": spec.version, "budget": slots.root_bytes(spec), "keys": key.certificate_sha256}
    return Step("disk", "Disk", options, tuple(steps[name] for name in ("root", "uki", "loader", "tools")), produce)


_ESP_PARTS = {
    PartKind.UKI: "uki.efi",
    PartKind.LOADER: "systemd-bootx64.efi",
    PartKind.ENROL_PK: "PK.auth",
    PartKind.ENROL_KEK: "KEK.auth",
    PartKind.ENROL_DB: "db.auth",
}


def assemble_disk(room: Room, work: Path, files: Mapping[PartKind, Path], layout: slots.Layout) -> Path:
    """Make `work`/disk.raw from an image's parts and return its path. Equal parts give equal bytes.

    Without a root part, the disk has an ESP alone.
    """
    esp = work / "esp"
    lay_out_esp(esp, files, layout.label)
    definitions = work / "repart.d"
    definitions.mkdir()
    binds = [writable(work, "/step"), read_only(esp, "/esp")]
    for name, text in slots.shipped_definitions(layout).items():
        if PartKind.ROOT in files or "esp" in name:
            (definitions / name).write_text(text)
    for kind, inside in ((PartKind.ROOT, "/root.erofs"), (PartKind.VERITY, "/root.verity")):
        if kind in files:
            binds.append(read_only(files[kind], inside))
    seed = uuid5(_NAMESPACE, layout.root_hash)
    repart.make_disk(room, Path("/step/disk.raw"), Path("/step/repart.d"), seed=seed, epoch=layout.epoch, binds=binds)
    shutil.rmtree(esp)
    shutil.rmtree(definitions)
    return work / "disk.raw"


def lay_out_esp(esp: Path, files: Mapping[PartKind, Path], label: str) -> None:
    """The files of the EFI system partition, in a directory."""
    for name in ("EFI/BOOT", "EFI/systemd", "EFI/Linux", "loader/keys/auto"):
        (esp / name).mkdir(parents=True)
    shutil.copyfile(files[PartKind.LOADER], esp / "EFI/BOOT/BOOTX64.EFI")
    shutil.copyfile(files[PartKind.LOADER], esp / "EFI/systemd/systemd-bootx64.efi")
    shutil.copyfile(files[PartKind.UKI], esp / f"EFI/Linux/{label}.efi")
    # Keys enrol by themselves only where the firmware is in setup mode, which somebody with access to it has to choose.
    (esp / "loader/loader.conf").write_text("timeout 0\nsecure-boot-enroll force\neditor no\n")
    for kind in (PartKind.ENROL_PK, PartKind.ENROL_KEK, PartKind.ENROL_DB):
        shutil.copyfile(files[kind], esp / "loader/keys/auto" / _ESP_PARTS[kind])
