"""The root trees of a build: tools, base, and the base configured by the spec.

Layout of the outputs: tools/tree, base/tree + base/result.json, configured/upper + configured/result.json (an overlay on the base).
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from obelisk import spec as specs
from obelisk.build import debian, health, slots
from obelisk.build.graph import Step
from obelisk.build.packages import SnapshotOf, fetch, lay_out, nowhere
from obelisk.build.programs import CODE, GUEST, Overlay, run_program
from obelisk.errors import InputError
from obelisk.events import Sink, Task
from obelisk.model.canonical import Json
from obelisk.model.lock import Account, Lock, PackageSet
from obelisk.model.spec import Spec
from obelisk.store import Store
from obelisk.system.bubblewrap import Bind, Room, read_only, writable
from obelisk.system.mmdebstrap import Bootstrap, bootstrap_here

BASE_REVISION = 1
CONFIGURED_REVISION = 1


def tools_step(packages: PackageSet, store: Store, sink: Sink, *, snapshot: SnapshotOf = nowhere) -> Step:
    """The tools tree: everything that later steps run, so that they do the same on every machine."""

    def produce(work: Path, _needs: Mapping[str, Path], running: Task) -> None:
        fetch(packages.packages, debian.archives(packages.suite), store, sink, snapshot=snapshot)
        repository = work / "repository"
        lay_out(packages, store, repository)
        names = tuple(package.name for package in packages.packages)
        request = Bootstrap(repository, work / "tree", names, packages.epoch, documentation=False)
        bootstrap_here(request, on_line=running.output)
        # The place where the packages were seen while they were installed stays behind as empty directories.
        seen = work / "tree" / repository.relative_to("/")
        with suppress(OSError):  # a directory that has a use of its own is not empty
            while seen != work / "tree":
                seen.rmdir()
                seen = seen.parent
        for file in repository.iterdir():
            file.unlink()
        repository.rmdir()

    return Step("tools", "Tools tree", {"packages": packages.sha256}, (), produce)


def base_step(
    spec: Spec, packages: PackageSet, accounts: tuple[Sequence[Account], Sequence[Account]], tools: Step, store: Store, sink: Sink
) -> Step:
    """The packages installed, and nothing of where or when that happened; `accounts` are users and groups with settled ids."""
    users, groups = accounts
    options: Json = {
        "packages": packages.sha256,
        "documentation": spec.documentation,
        "code": hashlib.sha256((CODE / "scrub.py").read_bytes()).hexdigest(),
        "users": {account.name: f"{account.id}:{account.entry}" for account in users},
        "groups": {account.name: account.id for account in groups},
    }

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        fetch(packages.packages, debian.image_archives(spec), store, sink, snapshot=partial(debian.snapshot_uri, spec))
        room = Room(needs["tools"] / "tree")
        repository = work / "repository"
        lay_out(packages, store, repository)
        hook = work / "accounts.sh"
        hook.write_text(_account_hook(users, groups))
        hook.chmod(0o755)
        names = tuple(package.name for package in packages.packages)
        request = Bootstrap(
            Path("/step/repository"), Path("/step/tree"), names, packages.epoch, spec.documentation, Path("/step/accounts.sh")
        )
        room.run(request.argv(), binds=[writable(work, "/step")], env=request.environment(), on_line=running.output, durable=False)
        result = run_program(
            room, "scrub", {"tree": "/step/tree", "epoch": packages.epoch}, binds=[writable(work, "/step")], running=running
        )
        (work / "result.json").write_text(json.dumps(result, sort_keys=True))
        hook.unlink()
        for file in repository.iterdir():
            file.unlink()
        repository.rmdir()

    return Step("base", "Base tree", options, (tools,), produce, revision=BASE_REVISION)


def configured_step(spec: Spec, lock: Lock, base: Step, tools: Step) -> Step:
    """What the spec lays over the base, as an overlay's upper directory."""
    root_bytes = slots.root_bytes(spec)
    inputs = specs.digest_inputs(spec)
    request: dict[str, Json] = {
        "name": spec.name,
        "version": spec.version,
        "hostname": spec.hostname,
        "locale": spec.locale,
        "timezone": spec.timezone,
        "canary": lock.request,
        "default_target": debian.DEFAULT_TARGET[spec.role],
        "services": {
            "enable": [*debian.enabled_units(spec), *spec.services.enable],
            "disable": list(spec.services.disable),
            "mask": list(spec.services.mask),
        },
        "groups": [{"name": group.name, "gid": group.gid} for group in spec.groups],
        "users": [
            {
                "name": user.name,
                "uid": user.uid,
                "gid": user.gid,
                "groups": list(user.groups),
                "home": user.home,
                "shell": user.shell,
                "comment": user.comment,
                "password": user.password,
                "ssh_keys": list(user.ssh_keys),
            }
            for user in spec.users
        ],
        "allow": {
            "setuid": list(spec.allow.setuid),
            "devices": list(spec.allow.devices),
            "replace": list(spec.allow.replace),
        },
        "health": health.configuration(spec.health),
        "repart": slots.host_definitions(root_bytes),
    }

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        room = Room(needs["tools"] / "tree")
        upper, scratch = work / "upper", work / "scratch"
        upper.mkdir()
        upper.chmod(0o755)
        scratch.mkdir()
        files, sources = _files(spec)
        binds = [read_only(needs["base"] / "tree", "/base"), writable(work, "/step"), *sources]
        scripts: list[Json] = []
        for index, script in enumerate(spec.scripts):
            binds.append(read_only(script.source, f"/scripts/{index}"))
            scripts.append({"name": script.name, "source": f"/scripts/{index}"})
        full = {**request, "tree": "/tree", "guest": "/obelisk/guest/root", "code": "/obelisk/inside", "files": files, "scripts": scripts}
        layers = Overlay([Path("/base")], Path("/step/upper"), Path("/step/scratch"))
        env = {"SOURCE_DATE_EPOCH": str(lock.system.epoch)}
        result = run_program(room, "configure", full, binds=binds, running=running, env=env, overlay=layers)
        if specs.digest_inputs(spec) != inputs:
            raise InputError(
                f"{spec.directory}: a file of the spec changed while it was read", code="spec-moved", hint="build again when it is settled"
            )
        (work / "result.json").write_text(json.dumps(result, sort_keys=True))
        # The kernel's own scratch directory belongs to root and has no mode bits: it goes the way it came.
        room.run(["rm", "-rf", "/step/scratch"], binds=[writable(work, "/step")])

    options: Json = {"request": request, "inputs": inputs, "epoch": lock.system.epoch, "code": digest_of_code()}
    return Step("configured", "Configured tree", options, (base, tools), produce, revision=CONFIGURED_REVISION)


def digest_of_code() -> str:
    """Digest of our own files that go into images: another version of Obelisk makes another image."""
    hasher = hashlib.sha256()
    for top in (CODE, GUEST):
        for path in sorted(top.rglob("*")):
            if path.suffix == ".pyc" or path.name == "__pycache__" or (path.is_dir() and not path.is_symlink()):
                continue
            content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
            executable = not path.is_symlink() and bool(path.stat().st_mode & 0o100)
            hasher.update(f"{path.relative_to(top)}\0{executable}\0{len(content)}\0".encode() + content)
    return hasher.hexdigest()


def _files(spec: Spec) -> tuple[list[Json], list[Bind]]:
    """What the spec lays over the base, parents first, and the bindings through which the room sees the sources."""
    files: list[Json] = []
    binds: list[Bind] = []
    if spec.tree is not None:
        binds.append(read_only(spec.tree, "/spec-tree"))
        files += [
            {
                "path": entry.path,
                "kind": entry.kind.name.lower(),
                "implicit": True,
                "mode": entry.mode,
                "target": entry.target,
                "device": list(entry.device) if entry.device else None,
                "source": f"/spec-tree/{entry.source.relative_to(spec.tree)}",
                "content": None,
                "owner": "root",
                "group": "root",
            }
            for entry in specs.tree_entries(spec)
        ]
    for index, file in enumerate(spec.files):
        if file.source is not None:
            binds.append(read_only(file.source, f"/spec-files/{index}"))
        files.append(
            {
                "path": file.path,
                "kind": "file",
                "implicit": False,
                "mode": file.mode,
                "source": f"/spec-files/{index}" if file.source is not None else None,
                "content": file.content,
                "owner": file.owner,
                "group": file.group,
            }
        )
    return files, binds


def _account_hook(users: Sequence[Account], groups: Sequence[Account]) -> str:
    """A script that gives accounts their ids before the packages' own scripts ask for them."""
    lines = ["#!/bin/sh", "set -eu"]
    entries = [("group", group.name, f"{group.name}:x:{group.id}:") for group in groups]
    entries += [("passwd", user.name, f"{user.name}:x:{user.id}:{user.entry}") for user in users]
    for table, name, entry in entries:
        # A comment in passwd(5) may hold anything that a shell would take for its own.
        lines.append(f"grep -q '^{name}:' \"$1/etc/{table}\" || printf '%s\\n' {shlex.quote(entry)} >>\"$1/etc/{table}\"")
    return "\n".join(lines) + "\n"
