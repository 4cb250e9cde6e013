"""Whether the instances of an iteration are healthy: what their image declares, and what the service does, have to answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from obelisk.errors import StateError, TransportError
from obelisk.model.rollout import Healthy
from obelisk.model.service import Terms
from obelisk.system import ports
from obelisk.system.http import Client, Limits, Proxies

_POLL_S = 0.2
_ANSWER_S = 3.0
_TRIES = 3
_MOST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Seen:
    """How an instance is. `address`: `address:port`, or empty; `healthy`: what its image's own checks say, None until then."""

    running: bool
    address: str = ""
    healthy: bool | None = None


class Look(Protocol):
    """How an instance is at the moment."""

    def __call__(self, instance: str, /) -> Seen:
        """The instance of that name; not running when there is none."""


Answers = Callable[[str, Terms], bool]
"""Whether an instance at an address does what the service is to do."""


def wait_until_healthy(instances: Sequence[str], terms: Terms, look: Look, answers: Answers, *, poll_s: float = _POLL_S) -> Healthy:
    """Come back when all are, with where they are reached.

    Raises:
        StateError: one has ended, says itself that it is not healthy, or gave no good answer in its time.
    """
    deadline = time.monotonic() + terms.health_s
    while True:
        found = {instance: look(instance) for instance in instances}
        for instance, seen in found.items():
            if not seen.running:
                raise StateError(f"{instance} did not stay up", code="instance-down")
            if seen.healthy is False:
                raise StateError(f"the checks of its image find {instance} not healthy", code="instance-unhealthy")
        silent = [name for name, seen in found.items() if not (seen.healthy and seen.address and answers(seen.address, terms))]
        if not silent:
            return Healthy(tuple(seen.address for seen in found.values()))
        if time.monotonic() > deadline:
            what = "gave no good answer " + _asked(terms) if found[silent[0]].healthy else "said nothing of its checks"
            raise StateError(f"{silent[0]} {what} in {terms.health_s} s", code="instance-silent")
        time.sleep(poll_s)


def fault(instances: Sequence[str], terms: Terms, look: Look, answers: Answers) -> str:
    """What is wrong with instances that were healthy; empty for nothing. An answer that is late once is no fault."""
    for instance in instances:
        seen = look(instance)
        if not seen.running:
            return f"{instance} is not running"
        if seen.healthy is False:
            return f"the checks of its image find {instance} not healthy"
        if not any(answers(seen.address, terms) for _try in range(_TRIES)):
            return f"{instance} gave no good answer {_asked(terms)}"
    return ""


def answers(address: str, terms: Terms) -> bool:
    """Whether the port accepts connections or, where the service declares a path, gives it by HTTP."""
    host, _, port = address.rpartition(":")
    if not terms.check:
        return ports.accepts(host, int(port), timeout_s=_ANSWER_S)
    with Client(Limits(connect_s=_ANSWER_S, idle_s=_ANSWER_S, redirects=0), proxies=_Direct()) as client:
        try:
            with client.get(f"http://{address}{terms.check}", most_bytes=_MOST_BYTES) as answer:
                answer.read()
        except TransportError as error:
            return error.code == "http-redirect"
    return True


def _asked(terms: Terms) -> str:
    return f"to GET {terms.check}" if terms.check else f"at port {terms.guest_port}"


class _Direct(Proxies):
    """To instances nothing goes through a proxy, whatever the environment says."""

    def of(self, scheme: str, host: str) -> str:  # noqa: ARG002 - the same for all
        return ""
