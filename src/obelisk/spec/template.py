"""What `obelisk new` writes: a short spec that builds and passes its own tests, and the files that it refers to."""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from obelisk.errors import InputError
from obelisk.model.spec import Role
from obelisk.spec.shape import spec_shape

_NAME = "@name@"
_SCHEMA = ".obelisk.schema.json"  # hidden beside the spec, so that editors find it without a network


def template(name: str, role: Role) -> Mapping[str, tuple[str, int]]:
    """The files of a new spec: path below its directory -> text and mode.

    Raises:
        InputError: `name` cannot be the name of a spec; choose another.
    """
    shape = spec_shape().properties["name"]
    if shape.pattern is None or not shape.pattern.search(name):
        raise InputError(f"'{name}' cannot be the name of a spec: it must be {shape.rule}", code="spec-value", hint="choose another name")
    package = files(__package__)
    written = {
        path: (text.replace(_NAME, name), 0o755 if text.startswith("#!") else 0o644)
        for path, text in _texts(package.joinpath("templates", str(role)), "")
    }
    return {**written, _SCHEMA: (package.joinpath("schema.json").read_text(encoding="utf-8"), 0o644)}


def _texts(directory: Traversable, above: str) -> Iterator[tuple[str, str]]:
    for found in sorted(directory.iterdir(), key=lambda found: found.name):
        path = above + found.name
        if found.is_dir():
            yield from _texts(found, f"{path}/")
        else:
            yield path, found.read_text(encoding="utf-8")
