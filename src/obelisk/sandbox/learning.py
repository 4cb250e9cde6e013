"""Finds the fewest grants with which an application's tests pass.

The tests run under observation, first with nothing granted. As long as one fails, what was refused meanwhile is granted; when all pass,
each grant is taken away in turn, and comes back only if a test then fails. The result is no wider than the tests need; what they do not
try, it does not cover.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from obelisk.errors import InputError, StateError
from obelisk.events import Sink, task
from obelisk.model.exposure import sorted_powers
from obelisk.model.policy import Connect, Policy, Power, policy
from obelisk.model.spec import TestCase
from obelisk.sandbox.machine import this_machine
from obelisk.sandbox.observer import NETWORK, Observer
from obelisk.sandbox.ready import Directories, application_of, home_of_user, make_ready
from obelisk.sandbox.trial import forget_data, fresh_directories, tried
from obelisk.store import StoredImage
from obelisk.system.bubblewrap import Room
from obelisk.system.notices import Channel, run_observed

_MOST_ROUNDS = 12
# A network for documentation, in which nobody is: with this, there are sockets, and it shows what they are for.
_NOWHERE = Connect("192.0.2.255/32", 9)


@dataclass(frozen=True, slots=True)
class Learnt:
    """The policy, and for each of its grants what fails without it."""

    policy: Policy
    needed: tuple[tuple[Power, str], ...]


@dataclass(frozen=True, slots=True)
class _Round:
    """What came of all tests: the first that failed, if one did, what was refused, and whether sockets of the internet's were."""

    failed: str
    refused: frozenset[Power]
    sockets: bool


def learn(image: StoredImage, cases: Sequence[TestCase], room: Room, sink: Sink) -> Learnt:
    """The smallest policy. Limits stay as the image asks for them.

    Raises:
        InputError: there are no tests to learn from.
        StateError: a test fails for another reason than a refusal that a grant would lift.
    """
    if not cases:
        raise InputError(
            "there are no tests to learn from",
            code="learn-untested",
            hint="add [tests] to the spec: what it must be able to do; or tell it after -- what to try",
        )
    limits = application_of(image).policy.limits
    with fresh_directories(image) as directories, task(sink, "learn", "Learning from its tests") as running:
        held: frozenset[Power] = frozenset()
        lent: frozenset[Power] = frozenset()
        for _round in range(_MOST_ROUNDS):
            outcome = _try(image, policy(held | lent, limits), cases, directories, room)
            if not outcome.failed and not lent:
                break
            new = outcome.refused - held
            if not lent and outcome.sockets:
                lent = frozenset({_NOWHERE})
                continue
            lent = frozenset()
            if not outcome.failed and not new:
                continue
            running.output(f"{outcome.failed} fails; {len(new)} grants more")
            if not new:
                raise StateError(
                    f"the test {outcome.failed} fails, and nothing that was refused explains it",
                    code="learn-failed",
                    hint="see what it says: `obelisk test`; `obelisk app audit` shows what no grant allows",
                )
            held |= new
        else:
            raise StateError("the tests go on failing, each time for another reason", code="learn-failed", hint="see `obelisk app audit`")
        needed: list[tuple[Power, str]] = []
        for power in sorted_powers(policy(held, limits)):
            outcome = _try(image, policy(held - {power}, limits), cases, directories, room)
            if outcome.failed:
                needed.append((power, f"the test {outcome.failed} fails"))
            else:
                held -= {power}
    return Learnt(policy(held, limits), tuple(needed))


def _try(image: StoredImage, held: Policy, cases: Sequence[TestCase], directories: Directories, room: Room) -> _Round:
    observer = Observer(application_of(image), held, home_of_user())
    forget_data(image, directories)  # each round begins anew
    failed = ""
    for each in cases:
        channel = Channel.open()
        ready = make_ready(
            image,
            tried(held),
            this_machine(),
            directories=directories,
            home=home_of_user(),
            room=lambda: room,
            command=("/bin/sh", "-c"),
            listener=channel.theirs.fileno(),
        )
        with tempfile.TemporaryFile() as output:
            status = run_observed([ready.start, each.command], channel, observer, output=output, timeout_s=each.timeout_s)
            output.seek(0)
            said = output.read().decode(errors="replace")
        if status != 0 or each.expect not in said:
            failed = failed or each.name
    powers = frozenset(refusal.power for refusal in observer.refusals if refusal.power is not None)
    return _Round(failed, powers, sockets=any(refusal.what == NETWORK for refusal in observer.refusals))
