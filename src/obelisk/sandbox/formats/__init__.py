"""Policies in the formats of others, and back: OCI's runtime configuration, Flatpak's metadata, units of systemd.

Each format is a module of pure functions over values: `write` and, where there is a way back, `read`. What a format cannot say as narrowly
as the policy does is left out of what is written, and what a policy cannot say is left out of what is read; both are told in words.
Nothing is ever widened without being told.
"""

from pathlib import Path

from obelisk.sandbox.formats import flatpak, oci, systemd
from obelisk.sandbox.formats.foreign import Foreign, Subject, Written

WRITERS = {"systemd": systemd.write, "oci": oci.write, "flatpak": flatpak.write}
READERS = {"oci": oci.read, "flatpak": flatpak.read}

__all__ = ["READERS", "WRITERS", "Foreign", "Subject", "Written", "read", "write"]


def write(subject: Subject, form: str) -> Written:
    """The application in a format, one of `WRITERS`."""
    return WRITERS[form](subject)


def read(content: bytes, form: str | None, home: Path) -> Foreign:
    """The application in a file, in a form that a spec can have. `form` is one of `READERS`; None: JSON is OCI's, all else Flatpak's.

    Raises:
        InputError: it is no file of that format, or names no command.
    """
    guessed = "oci" if content.lstrip().startswith(b"{") else "flatpak"
    return READERS[form or guessed](content, home).settled()
