"""Where the store and the keys of this user lie, and how a name on the command line becomes an image."""

import os
from argparse import Namespace
from pathlib import Path

from obelisk.errors import InputError
from obelisk.store import Store, StoredImage


def open_store(arguments: Namespace) -> Store:
    """The store that the command line, the environment or the default names."""
    named = arguments.store or os.environ.get("OBELISK_STORE")
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    return Store.open(Path(named).absolute() if named else base / "obelisk")


def key_directory() -> Path:
    """Where the user's keys are, or will be."""
    named = os.environ.get("OBELISK_KEYS")
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(named).absolute() if named else base / "obelisk/keys"


def instances_directory() -> Path:
    """Where this user's instances on this machine are, or will be."""
    named = os.environ.get("OBELISK_INSTANCES")
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/obelisk/instances")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "obelisk/instances"


def find_machine(store: Store, name: str) -> StoredImage:
    """The image of a machine that `name` means.

    Raises:
        InputError: there is none, or it is an application's.
    """
    image = find_image(store, name)
    if image.manifest.is_application:
        raise InputError(
            f"{image.manifest.label} is an application, which neither boots nor has a disk",
            code="image-application",
            hint=f"obelisk app run {name}",
        )
    return image


def find_image(store: Store, name: str) -> StoredImage:
    """The image that `name` means: the last one of the spec in that directory, or what the store knows by the name.

    Raises:
        InputError: there is none.
    """
    path = Path(name)
    file = path / "obelisk.toml" if path.is_dir() else path
    if file.is_file():
        wanted = str(file.resolve())
        for ref in store.refs():
            if ref.name == wanted:
                return store.image(ref.image_id)
        raise InputError(f"{name} has not been built yet", code="image-missing", hint=f"run `obelisk build {name}`")
    return store.image(name)
