"""What the operators of this machine make of what an application asks for.

/etc/obelisk/apps/<name>.toml          the machine's
~/.config/obelisk/apps/<name>.toml     the user's ($XDG_CONFIG_HOME), which is read after it
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from obelisk.errors import InputError
from obelisk.model.application import effective
from obelisk.model.policy import Policy
from obelisk.sandbox.ready import application_of
from obelisk.store import StoredImage


def policy_of(image: StoredImage) -> Policy:
    """What the image is granted on this machine: what it asks for, as the operators' files narrow and widen it.

    Raises:
        InputError: such a file says something that does not exist.
    """
    held = application_of(image).policy
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for place in (Path("/etc"), home):
        file = place / "obelisk/apps" / f"{image.manifest.name}.toml"
        if file.is_file():
            held = _told(file, held)
    return held


def _told(file: Path, asked: Policy) -> Policy:
    try:
        told: dict[str, Any] = tomllib.loads(file.read_text())
        return effective(asked, told)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"this is no TOML: {error}", place=str(file), code="policy-syntax", hint="correct it, or remove it") from error
    except InputError as error:
        raise InputError(error.message, place=str(file), code=error.code, hint=error.hint) from error
