"""TCP ports, of this machine and of others."""

import errno
import socket
from collections.abc import Iterable
from contextlib import ExitStack


def accepts(address: str, port: int, *, timeout_s: float) -> bool:
    """Whether somebody accepts a connection there."""
    try:
        with socket.create_connection((address, port), timeout_s):
            return True
    except OSError:
        return False


def is_taken(port: int) -> bool:
    """Whether a program of this machine listens at the port, at any of its IPv4 addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have just ended do not count
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


def free_for(wanted: Iterable[int], address: str) -> dict[int, int]:
    """A port for each of these that nobody listens at, at that address; nothing keeps others from it."""
    with ExitStack() as held:
        return {port: held.enter_context(socket.create_server((address, 0))).getsockname()[1] for port in wanted}
