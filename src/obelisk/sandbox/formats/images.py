"""An image as the formats write it down: with what it is granted, and where things of it are on this machine."""

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from obelisk.model.image import PartKind
from obelisk.model.policy import Policy
from obelisk.sandbox.formats.foreign import Node, Root, Subject
from obelisk.sandbox.ready import Directories, application_of, nodes_of, owner_of
from obelisk.store import StoredImage
from obelisk.system import confine


def subject_of(image: StoredImage, held: Policy, directories: Directories, home: Path) -> Subject:
    """The image's application under the policy `held`.

    Raises:
        InputError: it is a machine's.
    """
    manifest = image.manifest
    return Subject(
        manifest.name,
        replace(application_of(image), policy=held),
        Root(image.part_path(PartKind.ROOT), image.part_path(PartKind.VERITY), manifest.root_hash),
        directories.data / manifest.name,
        home,
        owner_of(manifest.name, confine.myself()),
        tuple(_nodes(held)),
        directories.credentials / manifest.name,
    )


def _nodes(held: Policy) -> Iterator[Node]:
    for name in nodes_of(held):
        for path in sorted([Path(name), *Path(name).rglob("*")]):
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode):
                yield Node(str(path), os.major(status.st_rdev), os.minor(status.st_rdev), status.st_gid)
