"""Places in OCI registries, as people write them."""

import re
from dataclasses import dataclass
from typing import Self

from obelisk.errors import InputError

_HOST = r"(?:[a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_NAME = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>{_HOST})/(?P<name>{_NAME}(?:/{_NAME})*)(?::(?P<tag>\w[\w.-]{{0,127}})|@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)


def is_host(text: str) -> bool:
    """Whether the beginning of a place is meant for a registry, and not for a part of a name or a path."""
    return "." in text or ":" in text or text == "localhost"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is or goes: `host[:port]/name` and a tag or a digest."""

    host: str
    name: str
    at: str

    @classmethod
    def parse(cls, text: str, *, tag: str = "") -> Self:
        """Read from a command line; without a tag, `tag` is meant.

        Raises:
            InputError: it is none, or has neither a tag nor a digest.
        """
        found = _REFERENCE.fullmatch(text.removeprefix("docker://").removeprefix("oci://"))
        if found is None or not is_host(found["host"]):
            raise InputError(
                f"{text!r} is no place in a registry",
                code="registry-reference",
                hint="name the registry, the repository and the tag, in small letters: localhost:5000/shop:1",
            )
        at = found["digest"] or found["tag"] or tag
        if not at:
            raise InputError(f"{text!r} names no tag", code="registry-reference", hint=f"for example {text}:1")
        return cls(found["host"], found["name"], at)

    def __str__(self) -> str:
        return f"{self.host}/{self.name}{'@' if self.at.startswith('sha256:') else ':'}{self.at}"
