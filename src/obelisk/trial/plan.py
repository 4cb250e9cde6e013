"""Which scenarios an image has to pass: decided before anything boots, from the spec alone.

A report and a proof carry this plan. A scenario that was planned and never reported is a failure like any other.
"""

from collections.abc import Sequence

from obelisk.model.proof import FIXED, FIXED_FOR_APPLICATION
from obelisk.model.spec import Spec, TestCase


def planned(spec: Spec) -> tuple[str, ...]:
    """The names of all scenarios of an image of `spec`: the fixed ones, its health checks and its tests."""
    return (*FIXED, *(health(check.name) for check in spec.health), *(case(each.name) for each in spec.tests))


def planned_for_application(cases: Sequence[TestCase]) -> tuple[str, ...]:
    """The names of all scenarios of an application."""
    return (*FIXED_FOR_APPLICATION, *(case(each.name) for each in cases))


def health(name: str) -> str:
    """The scenario of a health check."""
    return f"health {name}"


def case(name: str) -> str:
    """The scenario of a declared test."""
    return f"test {name}"
