"""Writes the health checks of a spec in the form that the image's own health service reads (see guest/root/usr/lib/obelisk/health)."""

from base64 import b64encode
from collections.abc import Sequence
from urllib.parse import urlsplit

from obelisk.model.spec import CommandCheck, HealthCheck, HttpCheck, TcpCheck, UnitCheck


def configuration(checks: Sequence[HealthCheck]) -> str:
    """One check a line, fields parted by tabs."""
    return "".join("\t".join((check.name, str(check.timeout_s), *_fields(check))) + "\n" for check in checks)


def _fields(check: HealthCheck) -> tuple[str, ...]:
    match check.check:
        case UnitCheck(unit):
            return ("unit", unit)
        case TcpCheck(host, port):
            return ("tcp", host, str(port))
        case HttpCheck(url, status, contains):
            parts = urlsplit(url)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            # An empty last field would be lost by the shell's `read`; the encoding of nothing is a newline's.
            return ("http", parts.hostname or "localhost", str(parts.port or 80), path, str(status), _encoded(contains))
        case CommandCheck(command):
            return ("command", _encoded(command))


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode() or "Cg=="
