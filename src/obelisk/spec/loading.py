"""Opens `obelisk.toml`: from a path to a checked `Spec`, or one error that says everything that is wrong with it."""

import re
import tomllib
from pathlib import Path

from obelisk.errors import InputError
from obelisk.model.spec import Spec
from obelisk.spec.meaning import spec_of
from obelisk.spec.positions import Positions, index
from obelisk.spec.problems import Findings, SpecError
from obelisk.spec.reader import read
from obelisk.spec.shape import spec_shape
from obelisk.spec.tree import TreeEntry, scan_tree

FILE_NAME = "obelisk.toml"
_LARGEST_BYTES = 4 << 20
_AT = re.compile(r"(?P<what>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.DOTALL)


def load(path: Path) -> Spec:
    """The spec at `path`, a file or a directory with an `obelisk.toml`, with everything that it refers to looked at.

    Raises:
        InputError: the file is missing, no TOML, or says something wrong: each line of the message is `file:line:key: problem`,
            with the path as it was given. Fix what it names.
    """
    name = path / FILE_NAME if path.is_dir() else path
    text = _text(name)
    findings = Findings()
    try:
        document = tomllib.loads(text)
        positions = index(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(error, text, name) from error
    except RecursionError as error:
        raise InputError("lists or tables are nested too deeply", code="spec-syntax", hint="no key wants that", place=str(name)) from error
    spec = spec_of(read(document, spec_shape(), findings), name.absolute(), findings)
    if findings.problems:
        raise SpecError(str(name), findings.problems, positions)
    return spec


def tree_entries(spec: Spec) -> tuple[TreeEntry, ...]:
    """What `spec.tree` lays over the root: each directory before what is in it, paths in their one spelling; nothing without a tree.

    Raises:
        InputError: the tree holds something that is refused, as `load` would have said.
    """
    if spec.tree is None:
        return ()
    findings = Findings()
    entries = scan_tree(spec.tree, spec.allow, path=("tree",), findings=findings)
    if findings.problems:
        raise SpecError(str(spec.file), findings.problems, Positions({}))
    return entries


def _text(name: Path) -> str:
    try:
        if not name.is_file():
            what, hint = ("is no file", "") if name.exists() else ("does not exist", "make one: `obelisk new NAME`")
            raise InputError(what, code="spec-not-found", hint=hint, place=str(name))
        with name.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", code="spec-file", hint="check its permissions", place=str(name)) from error
    if len(data) > _LARGEST_BYTES:
        message = f"is larger than {_LARGEST_BYTES >> 20} MiB"
        raise InputError(message, code="spec-syntax", hint="put large content into files and refer to them with `source`", place=str(name))
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8", code="spec-syntax", hint="save it as UTF-8", place=f"{name}:{line}") from error


def _syntax_error(error: tomllib.TOMLDecodeError, text: str, name: Path) -> InputError:
    match = _AT.fullmatch(str(error))
    what = match["what"] if match else str(error)
    lines = text.split("\n")
    line, column = (int(match["line"]), int(match["column"])) if match and match["line"] else (len(lines), len(lines[-1]) + 1)
    shown = lines[line - 1].expandtabs(1)
    pointer = f"\n  {shown}\n  {' ' * (column - 1)}^" if shown else ""
    message = f"this is no TOML: {what[:1].lower()}{what[1:]}{pointer}"
    return InputError(message, code="spec-syntax", hint="correct the marked place", place=f"{name}:{line}:{column}")
