"""Snapshots as directories: written as drafts, described by digests, compared with them. See `records` for where they lie."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.instance.records import Place
from obelisk.model.instance import Damage, File, Snapshot, snapshot_bytes
from obelisk.system.files import hash_sparse, sync_directory, sync_file, write_durably
from obelisk.system.namespace import remove_tree

MEMORY = "memory"


@contextmanager
def drafted(place: Place) -> Iterator[Path]:
    """A directory for a snapshot that is made; gone when the block fails."""
    draft = place.snapshots / f".{secrets.token_hex(6)}"
    draft.mkdir(mode=0o700)
    try:
        yield draft
    except BaseException:
        remove_tree(draft)
        raise


@contextmanager
def scratch(place: Place) -> Iterator[Path]:
    """A directory that is gone when the block ends."""
    with drafted(place) as draft:
        yield draft
        remove_tree(draft)


def publish(place: Place, draft: Path, snapshot: Snapshot, layers: tuple[str, ...]) -> Snapshot:
    """Have a draft be a snapshot of these layers: links, digests, description, then one rename.

    What earlier snapshots have told of a layer is not computed again.
    """
    told = {file.name: file for each in place.kept() for file in each.files if file.name != MEMORY}
    names = [f"{layer}.qcow2" for layer in layers]
    for name in names:
        os.link(place.layers / name, draft / name)
    files = []
    for name in [*([MEMORY] if (draft / MEMORY).exists() else []), *names]:
        if name not in told:
            sync_file(draft / name)
            (draft / name).chmod(0o400)
        files.append(told.get(name) or File(name, (draft / name).stat().st_size, hash_sparse(draft / name)))
    whole = replace(snapshot, files=tuple(files))
    write_durably(draft / "snapshot.json", snapshot_bytes(whole), mode=0o600)
    sync_directory(draft)
    draft.rename(place.snapshots / snapshot.id)
    sync_directory(place.snapshots)
    return whole


def layers_of(snapshot: Snapshot) -> tuple[str, ...]:
    """The layers of a snapshot, from the lowest on."""
    return tuple(file.name.removesuffix(".qcow2") for file in snapshot.files if file.name != MEMORY)


def examine(place: Place, snapshot: Snapshot, *, on_bytes: Callable[[int], None] | None = None) -> tuple[Damage, ...]:
    """What of a snapshot's files is not as it was."""
    found = []
    for file in snapshot.files:
        path = place.snapshots / snapshot.id / file.name
        if not path.exists():
            found.append(Damage(snapshot.id, file.name, "is missing"))
        elif path.stat().st_size != file.size_bytes:
            found.append(Damage(snapshot.id, file.name, f"has {path.stat().st_size} bytes, not {file.size_bytes}"))
        elif hash_sparse(path, on_bytes=on_bytes) != file.sha256:
            found.append(Damage(snapshot.id, file.name, "has other content than it had"))
    return tuple(found)


def refuse_damaged(place: Place, snapshot: Snapshot) -> None:
    """Read a snapshot before it is used.

    Raises:
        TrustError: it is damaged.
    """
    if found := examine(place, snapshot):
        raise TrustError(
            f"{snapshot.name or snapshot.id} of {snapshot.instance.name} is damaged: {place.snapshots / snapshot.id / found[0].file} "
            f"{found[0].what}",
            code="snapshot-damaged",
            hint=f"use another one; obelisk instance delete {snapshot.instance.name} {snapshot.id}",
        )


def remove(place: Place, identifier: str) -> None:
    """Remove a snapshot: its name first."""
    gone = place.snapshots / f".{identifier}"
    (place.snapshots / identifier).rename(gone)
    sync_directory(place.snapshots)
    remove_tree(gone)
