"""Whether a service that was just started is healthy: it answers where it says that it does, and it stays up."""

import time
from collections.abc import Callable

from obelisk.errors import StateError, TransportError
from obelisk.model.application import Service
from obelisk.system.http import Client, Limits, Proxies
from obelisk.system.systemctl import Unit

_POLL_S = 0.2
_ANSWER_S = 3.0  # then it is asked anew: a connection may wait in a socket behind which a service has just fallen
_MOST_BYTES = 1 << 20


def wait_until_healthy(service: Service, look: Callable[[], Unit], answers: Callable[[str], bool] | None = None) -> None:
    """Come back when it is. `look` tells how its unit is, `answers` whether an address does (default: it is asked by HTTP).

    Raises:
        StateError: it has failed, was started again, or did not answer in its time.
    """
    asks = answers or _answers
    began = time.monotonic()
    answered = not service.health
    while True:
        unit = look()
        if unit.active not in {"active", "activating"} or unit.restarts:
            raise StateError(f"it did not stay up ({unit.why})", code="app-down")
        if unit.active == "active" and not answered:
            answered = asks(service.health)
        elapsed = time.monotonic() - began
        if answered and unit.active == "active" and elapsed >= service.steady_s:
            return
        if elapsed > max(service.health_s, service.steady_s):
            raise StateError(f"{service.health or 'it'} gave no good answer in {service.health_s} s", code="app-silent")
        time.sleep(_POLL_S)


def _answers(address: str) -> bool:
    with Client(Limits(connect_s=_ANSWER_S, idle_s=_ANSWER_S), proxies=_Direct()) as client:
        try:
            with client.get(address, most_bytes=_MOST_BYTES) as answer:
                answer.read()
        except TransportError:
            return False
    return True


class _Direct(Proxies):
    """To this machine nothing goes through a proxy, whatever the environment says."""

    def of(self, scheme: str, host: str) -> str:  # noqa: ARG002 - the same for all
        return ""
