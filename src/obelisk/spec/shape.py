"""The published JSON Schema as typed values: the one description of the form of a spec.

`schema.json` decides which keys there are, their types, patterns and defaults; the reader, the reference in docs and editors all work
from it. Of JSON Schema (draft 2020-12) it uses only what `Shape` has a field for; any other keyword is a bug and is refused here. Three
annotations are Obelisk's own: `x-rule` completes "must be ...", `x-hint` names a remedy, `x-secret` keeps a value out of messages.
Patterns are anchored and mean the same to Python and to ECMAScript.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any


class Kind(StrEnum):
    """The type of a value, by JSON Schema's word for it."""

    TEXT = "string"
    WHOLE = "integer"
    FLAG = "boolean"
    LIST = "array"
    TABLE = "object"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one value must look like.

    A table has `properties` (keys that are known) or `entries` (any key that is like `names`, each with a value like `entries`);
    `choice` names the keys of which exactly one is given, `needs` the keys that others want beside them.
    """

    kind: Kind
    description: str
    examples: tuple[Any, ...]
    default: Any
    rule: str
    hint: str
    secret: bool
    enum: tuple[str, ...]
    pattern: re.Pattern[str] | None
    max_length: int | None
    minimum: int | None
    maximum: int | None
    items: "Shape | None"
    min_items: int
    unique: bool
    properties: Mapping[str, "Shape"]
    required: tuple[str, ...]
    choice: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]]
    names: "Shape | None"
    entries: "Shape | None"


_SAID = {"$schema", "$id", "$defs", "title"}


def schema() -> dict[str, Any]:
    """The published JSON Schema of `obelisk.toml` (draft 2020-12), as parsed JSON: a fresh copy each time."""
    text = files(__package__).joinpath("schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def spec_shape() -> Shape:
    """The shape of a whole spec."""
    whole = schema()
    return _shape({key: value for key, value in whole.items() if key not in _SAID}, whole["$defs"])


def _shape(node: Mapping[str, Any], defs: Mapping[str, Any]) -> Shape:
    """Read one schema; what stands beside a `$ref` completes what it refers to."""
    rest = dict(node)
    if ref := rest.pop("$ref", ""):
        rest = {**defs[ref.removeprefix("#/$defs/")], **rest}
    inner = rest.pop("additionalProperties", None)
    pattern = rest.pop("pattern", None)
    shape = Shape(
        kind=Kind(rest.pop("type")),
        description=rest.pop("description", ""),
        examples=tuple(rest.pop("examples", ())),
        default=rest.pop("default", None),
        rule=rest.pop("x-rule", ""),
        hint=rest.pop("x-hint", ""),
        secret=rest.pop("x-secret", False),
        enum=tuple(rest.pop("enum", ())),
        pattern=None if pattern is None else _pattern(pattern),
        max_length=rest.pop("maxLength", None),
        minimum=rest.pop("minimum", None),
        maximum=rest.pop("maximum", None),
        items=_optional(rest.pop("items", None), defs),
        min_items=rest.pop("minItems", 0),
        unique=rest.pop("uniqueItems", False),
        properties={key: _shape(value, defs) for key, value in rest.pop("properties", {}).items()},
        required=tuple(rest.pop("required", ())),
        choice=tuple(key for one in rest.pop("oneOf", ()) for key in one["required"]),
        needs={key: tuple(others) for key, others in rest.pop("dependentRequired", {}).items()},
        names=_optional({"type": "string", **names} if (names := rest.pop("propertyNames", None)) else None, defs),
        entries=_optional(inner or None, defs),
    )
    if rest:
        message = f"schema.json uses keywords that the reader does not know: {sorted(rest)}"
        raise ValueError(message)
    return shape


def _optional(node: Mapping[str, Any] | None, defs: Mapping[str, Any]) -> Shape | None:
    return None if node is None else _shape(node, defs)


def _pattern(text: str) -> re.Pattern[str]:
    """In Python `$` also matches before a last line break; in JSON Schema it does not."""
    if not (text.startswith("^") and text.endswith("$")):
        message = f"schema.json has a pattern that is not anchored: {text}"
        raise ValueError(message)
    return re.compile(text[:-1] + r"\Z")
