"""The root trees of a build: tools; and the image's own in three layers, which are foundation, base and what the spec configures.

Layout of the outputs: tools/tree; foundation/tree, foundation/vmlinuz (a machine's), foundation/result.json; base/upper,
base/result.json, an overlay on the foundation; configured/upper, configured/result.json, an overlay on both;
configured/application.json, an application's.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from obelisk import spec as specs
from obelisk.build import containers, debian, health, hostpart, slots
from obelisk.build.graph import Step
from obelisk.build.packages import fetch, lay_out, nowhere
from obelisk.build.programs import CODE, GUEST, Overlay, overlay_command, run_program
from obelisk.errors import InputError
from obelisk.events import Sink, Task
from obelisk.model.canonical import Json
from obelisk.model.lock import Account, Accounts, Lock, PackageSet
from obelisk.model.spec import Spec
from obelisk.model.state import Encryption
from obelisk.store import Store
from obelisk.system.bubblewrap import Bind, Room, read_only, writable
from obelisk.system.mmdebstrap import Bootstrap, bootstrap_here
from obelisk.system.namespace import is_root

BASE_REVISION = 2
CONFIGURED_REVISION = 2


def tools_step(packages: PackageSet, store: Store, sink: Sink, spec: Spec | None = None) -> Step:
    """The tools tree: everything that later steps run, so that they do the same on every machine.

    `spec` may name a mirror and an archive of old packages.
    """
    archives = partial(debian.archives, packages.suite, mirror=spec.mirror if spec else None)
    snapshot = partial(debian.snapshot_uri, spec) if spec else nowhere

    def produce(work: Path, _needs: Mapping[str, Path], running: Task) -> None:
        fetch(packages.packages, archives, store, sink, snapshot=snapshot)
        repository = work / "repository"
        lay_out(packages, store, repository)
        names = tuple(package.name for package in packages.packages)
        request = Bootstrap(repository, names, None, work / "tree", packages.epoch, documentation=False)
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


def foundation_step(spec: Spec, lock: Lock, tools: Step, store: Store, sink: Sink) -> Step:
    """What every image of the distribution and role has: made once for all specs and all changes that leave these packages as they are."""
    if not spec.has_packages:
        return containers.foundation(spec, lock, tools, store, sink)
    users, groups = lock.accounts(lock.pinned.foundation)

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        _fetch_all(spec, lock, store, sink)
        room = Room(needs["tools"] / "tree")
        with _prepared(work, lock.foundation, (users, groups), store) as seen:
            request = Bootstrap(*seen, Path("/step/tree"), lock.foundation.epoch, spec.documentation)
            room.run(request.argv(), binds=[writable(work, "/step")], env=request.environment(), on_line=running.output, durable=False)
        scrub = _scrub(spec, "/step/tree", "/step/vmlinuz")
        _keep(work, run_program(room, "scrub", scrub, binds=[writable(work, "/step")], running=running))

    options = _installed(spec, lock.foundation, users, groups)
    return Step("foundation", "Foundation", options, (tools,), produce)


def base_step(spec: Spec, lock: Lock, foundation: Step, tools: Step, store: Store, sink: Sink) -> Step:
    """The spec's own packages, as an overlay's upper directory on the foundation; and nothing of where or when that happened."""
    if not spec.has_packages:
        return containers.base(foundation, tools)
    users, groups = lock.accounts(lock.pinned.base)

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        _fetch_all(spec, lock, store, sink)
        room = Room(needs["tools"] / "tree")
        binds = [*layer_binds(needs), writable(work, "/step")]
        with _upper(room, work, LAYERS[2:]) as layers:
            if lock.base.packages:
                with _prepared(work, lock.base, (users, groups), store) as seen:
                    request = Bootstrap(*seen, Path(layers.inside), lock.system.epoch, spec.documentation, extended=True)
                    room.run(
                        overlay_command(layers, request.argv(), user_namespace=not is_root()),
                        binds=binds,
                        env=request.environment(),
                        on_line=running.output,
                        durable=False,
                    )
            scrub = _scrub(spec, layers.inside, None)
            _keep(work, run_program(room, "scrub", scrub, binds=binds, running=running, overlay=layers))

    options = _installed(spec, lock.base, users, groups) | {"epoch": lock.system.epoch}
    return Step("base", "Base tree", options, (foundation, tools), produce, revision=BASE_REVISION)


def _scrub(spec: Spec, tree: str, kernel: str | None) -> Json:
    return {"tree": tree, "kernel": kernel, "documentation": spec.documentation, "machine": spec.application is None}


def _installed(spec: Spec, packages: PackageSet, users: Sequence[Account], groups: Sequence[Account]) -> dict[str, Json]:
    """What decides the outcome of an installation."""
    return {
        "packages": packages.sha256,
        "documentation": spec.documentation,
        "code": hashlib.sha256((CODE / "scrub.py").read_bytes()).hexdigest(),
        "users": {account.name: f"{account.id}:{account.entry}" for account in users},
        "groups": {account.name: account.id for account in groups},
    }


def _fetch_all(spec: Spec, lock: Lock, store: Store, sink: Sink) -> None:
    fetch(lock.system.packages, partial(debian.image_archives, spec), store, sink, snapshot=partial(debian.snapshot_uri, spec))


@contextmanager
def _prepared(work: Path, packages: PackageSet, accounts: Accounts, store: Store) -> Iterator[tuple[Path, tuple[str, ...], Path]]:
    """Where a room sees the repository, the names of its packages, and the script that makes the accounts, while all that is there."""
    repository = work / "repository"
    lay_out(packages, store, repository)
    hook = work / "accounts.sh"
    hook.write_text(_account_hook(*accounts))
    hook.chmod(0o755)
    yield Path("/step/repository"), tuple(package.name for package in packages.packages), Path("/step/accounts.sh")
    hook.unlink()
    for file in repository.iterdir():
        file.unlink()
    repository.rmdir()


@contextmanager
def _upper(room: Room, work: Path, lower: Sequence[Path]) -> Iterator[Overlay]:
    """A writable layer in `work`/upper, on what the room sees at `lower`."""
    (work / "upper").mkdir()
    (work / "upper").chmod(0o755)
    (work / "scratch").mkdir()
    yield Overlay(lower, Path("/step/upper"), Path("/step/scratch"))
    # The kernel's own scratch directory belongs to root and has no mode bits: it goes the way it came.
    room.run(["rm", "-rf", "/step/scratch"], binds=[writable(work, "/step")])


def _keep(work: Path, result: Mapping[str, Json]) -> None:
    (work / "result.json").write_text(json.dumps(result, sort_keys=True))


LAYERS = (Path("/configured/upper"), Path("/base/upper"), Path("/foundation/tree"))
"""The layers of a finished root, the uppermost first, as a room sees them with `layer_binds`."""


def layer_binds(needs: Mapping[str, Path]) -> list[Bind]:
    """Shows a room the steps that `LAYERS` speaks of."""
    return [read_only(needs[name], f"/{name}") for name in ("foundation", "base", "configured") if name in needs]


def _migrations(spec: Spec) -> dict[str, Path]:
    """The programs that change the form of the state, by their names in the image."""
    ways = ((f"{each.to}.{way}", source) for each in spec.state.migrations for way, source in (("up", each.up), ("down", each.down)))
    return {name: source for name, source in ways if source is not None}


def configured_step(spec: Spec, lock: Lock, foundation: Step, base: Step, tools: Step) -> Step:
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
        "repart": slots.host_definitions(root_bytes, spec.upgrade.slots, spec.state.encryption),
        "host": hostpart.settings(spec),
        "release": dict(hostpart.release(spec)),
        "timer": hostpart.timer(spec),
        "module_signatures": spec.hardening.module_signatures,
        "declared": list(spec.state.declare),
        "kept": list(hostpart.kept(spec.state)),
        "mounts": hostpart.mounts(spec.state, spec.hardening.state_mounts),
        "python": "python3" in {package.name for package in lock.system.packages},
    }
    application = None if spec.application is None else containers.completed(spec, lock.image)
    if application is not None:
        request["application"] = application.to_json()
        if not spec.has_packages:
            request["foreign"] = True

    def produce(work: Path, needs: Mapping[str, Path], running: Task) -> None:
        room = Room(needs["tools"] / "tree")
        files, sources = _files(spec)
        binds = [*layer_binds(needs), writable(work, "/step"), *sources]
        scripts: list[Json] = []
        for index, script in enumerate(spec.scripts):
            binds.append(read_only(script.source, f"/scripts/{index}"))
            scripts.append({"name": script.name, "source": f"/scripts/{index}"})
        migrations = _migrations(spec)
        binds += (read_only(source, f"/migrations/{name}") for name, source in migrations.items())
        guest = ["/obelisk/guest/root", "/obelisk/guest/both"]
        if spec.state.encryption is not Encryption.NONE:
            guest.append("/obelisk/guest/encrypted")
        binds.append(read_only(hostpart.PACKAGE, "/package"))
        if spec.host.applications:
            guest.append("/obelisk/guest/applications")
        modules: dict[str, Json] = {f"obelisk/{path}": f"/package/{path}" for path in hostpart.modules(applications=spec.host.applications)}
        for index, (name, file) in enumerate(hostpart.libraries().items()):
            binds.append(read_only(file, f"/libraries/{index}"))
            modules[name] = f"/libraries/{index}"
        full = {
            **request,
            "modules": modules,
            "tree": "/tree",
            "guest": guest,
            "code": "/obelisk/inside",
            "files": files,
            "scripts": scripts,
            "migrations": list(migrations),
        }
        env = {"SOURCE_DATE_EPOCH": str(lock.system.epoch)}
        with _upper(room, work, LAYERS[1:]) as layers:
            result = run_program(room, "configure", full, binds=binds, running=running, env=env, overlay=layers)
        if specs.digest_inputs(spec) != inputs:
            raise InputError(
                f"{spec.directory}: a file of the spec changed while it was read", code="spec-moved", hint="build again when it is settled"
            )
        if application is not None:
            (work / "application.json").write_bytes(application.to_bytes())
        _keep(work, result)

    options: Json = {"request": request, "inputs": inputs, "epoch": lock.system.epoch, "code": digest_of_code()}
    return Step("configured", "Configured tree", options, (foundation, base, tools), produce, revision=CONFIGURED_REVISION)


def digest_of_code() -> str:
    """Digest of our own files that go into images: another version of Obelisk makes another image."""
    hasher = hashlib.sha256(hostpart.digest().encode())
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
