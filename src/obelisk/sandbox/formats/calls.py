"""Filters of system calls as OCI's runtime configuration has them, and which powers such a filter leaves room for. Pure.

A rule of OCI's names system calls, an action, and conditions on arguments that hold together; several rules for a call are alternatives.
libseccomp, which runtimes compile them with, takes one condition an argument and compares 64 bits, of which the kernel then uses 32: a rule
"is not TIOCSTI" would let that pass with anything in the upper half. So each set of arguments that a filter tells apart is written as
disjoint masks and values of the lower half, for what is refused as for what is allowed, and no rule says "not".

Source: config-linux.md of the OCI runtime specification, seccomp; seccomp_rule_add(3).
"""

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from obelisk.errors import InputError
from obelisk.model.canonical import Json
from obelisk.model.policy import Call, Calls, Nest, Policy, Power, WriteExecute, policy
from obelisk.sandbox.calls import filter_of
from obelisk.sandbox.formats.reading import items, text, texts
from obelisk.system.seccomp import Check, Filter
from obelisk.system.syscalls import NUMBERS

_WHOLE: Final = 0xFFFFFFFF
_NAMES = {number: name for name, number in NUMBERS.items()}
_ALLOWING = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})

Masked = tuple[int, int]
"""A mask and what is left of an argument under it."""
Where = Mapping[int, Masked]
"""Arguments with their conditions, which hold together."""


def as_oci(one: Filter) -> Json:
    """The filter. Calls that it does not name fail with ENOSYS, as with the filter itself."""
    plain = sorted(_NAMES[number] for number, checks in one.allowed.items() if not checks)
    rules: list[Json] = [{"names": plain, "action": "SCMP_ACT_ALLOW"}]
    by_error = sorted((error, _NAMES[number]) for number, error in one.errors.items() if error != errno.ENOSYS)
    for error, found in groupby(by_error, key=lambda each: each[0]):
        rules.append({"names": [name for _, name in found], "action": "SCMP_ACT_ERRNO", "errnoRet": error})
    conditional = sorted((_NAMES[number], checks) for number, checks in one.allowed.items() if checks)
    for checks, alike in groupby(sorted(conditional, key=lambda each: repr(each[1])), key=lambda each: each[1]):
        names = [name for name, _ in alike]
        # Of what fails as if nothing named it there is no rule: libseccomp takes none that does what is done without.
        for where, error in ((where, error) for where, error in decisions(checks) if error != errno.ENOSYS):
            fate: dict[str, Json] = {"action": "SCMP_ACT_ERRNO", "errnoRet": error} if error else {"action": "SCMP_ACT_ALLOW"}
            rules.append({"names": list(names), **fate, "args": [_argument(at, *where[at]) for at in sorted(where)]})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rules,
    }


def decisions(checks: Sequence[Check]) -> Iterator[tuple[Where, int]]:
    """Every set of arguments that the checks tell apart, and the error for it, 0 where it passes. They are disjoint and leave nothing."""
    passing: list[Where] = [{}]
    for check in checks:
        asked: list[Where] = [{}]
        unasked: list[Where] = []
        if check.among is not None:
            at, value = check.among
            asked, unasked = [{at: (_WHOLE, value)}], [{at: masked} for masked in _others(_WHOLE, (value,))]
        values = tuple(dict.fromkeys(value for value in check.values if not value & ~check.mask))
        one_of, none_of = [(check.mask, value) for value in values], list(_others(check.mask, values))
        held, broken = (none_of, one_of) if check.not_one else (one_of, none_of)
        failing = list(_both(_both(passing, asked), [{check.argument: masked} for masked in broken]))
        yield from ((where, check.error) for where in failing)
        passing = [*_both(_both(passing, asked), [{check.argument: masked} for masked in held]), *_both(passing, unasked)]
    yield from ((where, 0) for where in passing)


def _others(mask: int, values: Sequence[int], decided: int = 0, value: int = 0) -> Iterator[Masked]:
    """What is under `mask` besides `values`: split by one bit after the other as long as one of them is on the same side."""
    if not values:
        yield decided, value
        return
    open_bits = mask & ~decided
    if not open_bits:
        return
    bit = 1 << (open_bits.bit_length() - 1)
    for side in (0, bit):
        yield from _others(mask, [each for each in values if each & bit == side], decided | bit, value | side)


def _both(ones: Sequence[Where] | Iterator[Where], others: Sequence[Where]) -> list[Where]:
    return [met for one in ones for other in others if (met := _meet(one, other)) is not None]


def _meet(one: Where, other: Where) -> Where | None:
    """Both conditions, one an argument; None when no arguments hold to both."""
    met = dict(one)
    for at, (mask, value) in other.items():
        mine, held = met.get(at, (0, 0))
        if (held ^ value) & mine & mask:
            return None
        met[at] = (mine | mask, held | value)
    return met


def _argument(index: int, mask: int, value: int) -> Json:
    return {"index": index, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": value}


# Reading


@dataclass(frozen=True, slots=True)
class Room:
    """What a filter of OCI's leaves: names of calls that it allows whatever their arguments are, and those that it allows at all."""

    always: frozenset[str]
    ever: frozenset[str]

    def powers(self) -> Iterator[Power]:
        """The powers whose system calls are all among those that are allowed always."""
        candidates: tuple[Power, ...] = (*(Call(calls) for calls in Calls), WriteExecute(), Nest())
        yield from (power for power in candidates if _brought(power) <= self.always)

    def beyond(self, one: Policy) -> tuple[str, ...]:
        """Calls that are allowed always here, and never under a policy."""
        return tuple(sorted(self.always - _allowed(one)))

    def lacking(self, one: Policy) -> tuple[str, ...]:
        """Calls that a policy allows, and this does not."""
        return tuple(sorted(_allowed(one) - self.ever))


def room_of(seccomp: Mapping[str, object]) -> Room:
    """What a filter leaves, of the calls that x86-64 has.

    Raises:
        InputError: it is no filter.
    """
    default = text(seccomp, "defaultAction")
    if not default:
        raise InputError("seccomp has no defaultAction", code="import-format", hint="correct it, or take seccomp out")
    ruled: dict[tuple[bool, bool], set[str]] = {(allows, narrow): set() for allows in (True, False) for narrow in (True, False)}
    for rule in items(seccomp, "syscalls"):
        ruled[text(rule, "action") in _ALLOWING, bool(items(rule, "args"))] |= NUMBERS.keys() & texts(rule, "names")
    base = NUMBERS.keys() if default in _ALLOWING else ruled[True, False]
    refused = ruled[False, False]
    return Room(frozenset(base - refused - ruled[False, True]), frozenset((base | ruled[True, True]) - refused))


def _brought(power: Power) -> frozenset[str]:
    """Calls that a power allows whatever their arguments are, and no policy without it does."""
    plain, held = filter_of(Policy()), filter_of(policy([power]))
    return frozenset(_NAMES[at] for at, checks in held.allowed.items() if not checks and plain.allowed.get(at) != ())


def _allowed(one: Policy) -> frozenset[str]:
    return frozenset(_NAMES[at] for at in filter_of(one).allowed)
