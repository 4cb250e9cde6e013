"""The channel as it was last seen: for those who only want to know, and must not wait for a network. It is not verified again."""

import json
from datetime import datetime
from pathlib import Path

from obelisk.errors import TrustError
from obelisk.model.canonical import canonical
from obelisk.model.release import Channel
from obelisk.system.files import write_durably

_FILE = "channel.json"


def note(keep: Path, channel: Channel, now: datetime) -> None:
    """Keep a channel that was just found to be the repository's."""
    write_durably(keep / _FILE, canonical({"at": now.isoformat(timespec="seconds"), "channel": channel.to_bytes().decode()}))


def last(keep: Path) -> tuple[Channel, str] | None:
    """The channel that was noted last, and when (RFC 3339); None where there is none."""
    try:
        raw = json.loads((keep / _FILE).read_bytes())
        return Channel.parse(raw["channel"].encode()), str(raw["at"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TrustError):
        return None
