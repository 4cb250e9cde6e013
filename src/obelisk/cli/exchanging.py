"""`obelisk app export` and `app import`: policies in the formats of others."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from obelisk.cli.places import find_image
from obelisk.cli.terminal import answer
from obelisk.errors import InputError
from obelisk.model.policy import Policy
from obelisk.sandbox.formats import read, write
from obelisk.sandbox.formats.images import subject_of
from obelisk.sandbox.ready import Directories, home_of_user
from obelisk.store import Store, StoredImage
from obelisk.system import confine
from obelisk.system.files import written_by_name


def export(store: Store, arguments: Namespace, policy_of: Callable[[StoredImage], Policy]) -> int:
    """Write what an application is granted here in a format of others."""
    image = find_image(store, arguments.image)
    directories = Directories.of(os.environ, root=confine.myself().uid == 0)
    written = write(subject_of(image, policy_of(image), directories, home_of_user()), arguments.format)
    if arguments.output is not None:
        file = Path(arguments.output).absolute()
        with written_by_name(file):
            file.write_text(written.text)
    _tell(written.notes, json_wanted=arguments.json)
    text = written.text.rstrip("\n") if arguments.output is None else arguments.output
    answer(
        text, json_wanted=arguments.json, format=arguments.format, output=arguments.output, content=written.text, notes=list(written.notes)
    )
    return 0


def bring_in(arguments: Namespace) -> int:
    """Print the tables of a spec for an application of others."""
    file = Path(arguments.file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {error.strerror}",
            code="import-unreadable",
            hint="name a config.json of OCI's or metadata of Flatpak's",
        ) from error
    foreign = read(content, arguments.format, home_of_user())
    _tell((*(f"left out: {line}" for line in foreign.left_out), *(f"wider: {line}" for line in foreign.wider)), json_wanted=arguments.json)
    text = foreign.as_toml(file.name)
    answer(
        text.rstrip("\n"),
        json_wanted=arguments.json,
        application=foreign.app.to_json(),
        content=text,
        left_out=list(foreign.left_out),
        wider=list(foreign.wider),
    )
    return 0


def _tell(notes: tuple[str, ...], *, json_wanted: bool) -> None:
    for note in notes if not json_wanted else ():
        print(f"· {note}", file=sys.stderr)
