"""Commands that make: new, lock, build, keys."""

import os
import sys
from argparse import Namespace
from pathlib import Path

from obelisk import spec as specs
from obelisk.build import image, locking, slots
from obelisk.build.graph import execute
from obelisk.build.keys import SigningKey, create, load
from obelisk.build.lockfile import read_lock
from obelisk.build.trees import tools_step
from obelisk.cli.places import key_directory, open_store
from obelisk.cli.terminal import answer, reporting, size
from obelisk.errors import InputError
from obelisk.events import Note, Sink
from obelisk.model.lock import Lock
from obelisk.store import Store
from obelisk.system.bubblewrap import Room
from obelisk.system.files import written_by_name


def new(arguments: Namespace) -> int:
    """Write a new spec with the files that it refers to."""
    directory = Path(arguments.directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty", code="new-exists", hint="name a directory that does not exist yet")
    written: list[str] = []
    for name, (text, mode) in specs.template(directory.absolute().name, arguments.role).items():
        file = directory / name
        with written_by_name(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(mode)
        written.append(str(file))
    lines = [f"wrote {file}" for file in written]
    lines.append(f"next: edit {directory}/obelisk.toml, then `obelisk lock {directory}` and `obelisk build {directory}`")
    answer("\n".join(lines), json_wanted=arguments.json, written=list(written))
    return 0


def lock(arguments: Namespace) -> int:
    """Pin every package and print what changed."""
    spec = specs.load(Path(arguments.spec))
    store = open_store(arguments)
    with reporting(json_wanted=arguments.json) as sink:
        found, changes = locking.lock(spec, store, sink, update=arguments.update)
    held = f"{len(found.system.packages)} packages ({size(sum(package.size_bytes for package in found.system.packages))})"
    if found.image is not None:
        held = f"{len(found.image.layers)} layers ({size(sum(layer.size_bytes for layer in found.image.layers))})"
    lines = list(changes) if len(changes) <= 40 or arguments.update is not None else []  # noqa: PLR2004 - a screenful
    lines.append(f"{spec.lock_file}: {held}, {len(changes)} changes")
    answer("\n".join(lines), json_wanted=arguments.json, lock=str(spec.lock_file), changes=list(changes))
    return 0


def build(arguments: Namespace) -> int:
    """Build the image and print its id."""
    spec = specs.load(Path(arguments.spec))
    store = open_store(arguments)
    with reporting(json_wanted=arguments.json) as sink:
        if not spec.lock_file.exists():
            sink(Note("there is no lock yet: locking first"))
            locking.lock(spec, store, sink)
        pinned = locking.require_lock(spec)
        key = signing_key(pinned, store, sink)
        built = image.build(spec, pinned, key, store, sink)
        if key.test_key:
            sink(Note("signed with a test key; make your own with `obelisk keys`"))
        for line in slots.outgrown(built.manifest, (found.manifest for found in store.images())):
            sink(Note(line))
        differences: tuple[str, ...] = ()
        if arguments.reproduce:
            from obelisk.build.reproduce import reproduce

            differences = reproduce(spec, pinned, key, store, built, sink, room=tools_room(pinned, store, sink))
    if not arguments.json:
        for line in differences:
            print(f"differs: {line}", file=sys.stderr)
        if arguments.reproduce and not differences:
            print("reproduced bit by bit", file=sys.stderr)
    compared = {"differences": list(differences)} if arguments.reproduce else {}
    answer(built.id, json_wanted=arguments.json, id=built.id, label=built.manifest.label, **compared)
    return 3 if differences else 0


def keys(arguments: Namespace) -> int:
    """Make the user's keys, or show what they are; with a word after it, look after release keys."""
    if arguments.action is not None:
        from obelisk.cli import keeping

        return keeping.keys(arguments)
    directory = key_directory()
    lines: list[str] = []
    found = load(directory)
    if found is not None and found.test_key:
        retired = directory.with_name("test-keys")
        directory.rename(retired)
        lines.append(f"the test keys are now in {retired}")
        found = None
    if found is None:
        store = open_store(arguments)
        with reporting(json_wanted=arguments.json) as sink:
            found = create(directory, tools_room(None, store, sink))
        if lines and (directory.with_name("test-keys") / "release").is_dir():  # these are no test keys
            (directory.with_name("test-keys") / "release").rename(directory / "release")
        lines.append(f"made new keys in {directory}; keep PK.key and KEK.key offline, and a copy of everything somewhere safe")
    lines.append(f"{directory}: Secure Boot certificate {found.certificate_sha256}")
    answer("\n".join(lines), json_wanted=arguments.json, directory=str(directory), certificate=found.certificate_sha256)
    return 0


def signing_key(pinned: Lock, store: Store, sink: Sink) -> SigningKey:
    """The user's keys; marked test keys are made where there are none."""
    return load(key_directory()) or create(key_directory(), tools_room(pinned, store, sink), test_key=True)


def lock_at_hand(store: Store) -> Lock | None:
    """The lock of any image's spec in the store that is still there and may be read."""
    files = (Path(ref.name).with_suffix(".lock") for ref in store.refs())
    return next((read_lock(file) for file in files if os.access(file, os.R_OK)), None)


def tools_room(pinned: Lock | None, store: Store, sink: Sink) -> Room:
    """The tools tree of a lock; without a lock, that of any image's spec in the store, or the newest."""
    pinned = pinned or lock_at_hand(store)
    step = tools_step(pinned.tools if pinned is not None else locking.newest_tools(store, sink), store, sink)
    found = store.find_step(step.key)
    if found is None:
        found = execute((step,), store, sink)["tools"]
    return Room(found / "tree")
