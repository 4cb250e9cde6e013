"""Values as TOML writes them, for what no library of Python's own does."""

import json
from collections.abc import Iterable


def string(text: str) -> str:
    """A basic string, which JSON's are but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def strings(values: Iterable[str]) -> str:
    """A list of strings."""
    return f"[{', '.join(map(string, values))}]"
