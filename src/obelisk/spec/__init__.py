"""The spec room: `obelisk.toml` in, a checked `Spec` out, or one error that names every line to fix.

Its form is published as a JSON Schema, which the reader, the reference in docs and editors share. This room looks at the spec and at
the files that it refers to; it knows nothing of packages, and writes nothing.
"""

from obelisk.spec.digests import digest_inputs, request
from obelisk.spec.loading import FILE_NAME, load, tree_entries
from obelisk.spec.problems import Problem, SpecError
from obelisk.spec.shape import schema
from obelisk.spec.template import template
from obelisk.spec.tree import EntryKind, TreeEntry

__all__ = [
    "FILE_NAME",
    "EntryKind",
    "Problem",
    "SpecError",
    "TreeEntry",
    "digest_inputs",
    "load",
    "request",
    "schema",
    "template",
    "tree_entries",
]
