"""What a trial found, as values, and as JSON and JUnit XML for others."""

import json
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from obelisk.model.canonical import Json


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scenario: what it was, whether it held, how long it took, and how one knows."""

    name: str
    passed: bool
    duration_ms: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All scenarios of one image.

    `planned` names those that it has to pass (see `obelisk.trial.plan`); `boot` says where its time went, as systemd-analyze
    tells it; `history` is what a host said in the end of the images that it ran.
    """

    image_id: str
    label: str
    acceleration: str
    planned: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    boot: tuple[str, ...] = ()
    tools: tuple[tuple[str, str], ...] = ()
    history: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every planned scenario was tried and held, and nothing else failed."""
        return not self.missing and all(outcome.passed for outcome in self.outcomes)

    @property
    def missing(self) -> tuple[str, ...]:
        """What was planned and never tried."""
        tried = {outcome.name for outcome in self.outcomes}
        return tuple(name for name in self.planned if name not in tried)


def to_json(report: Report) -> Json:
    """The report as plain data."""
    return {
        "image": report.image_id,
        "label": report.label,
        "passed": report.passed,
        "acceleration": report.acceleration,
        "scenarios": [{"name": o.name, "passed": o.passed, "duration_ms": o.duration_ms, "detail": o.detail} for o in report.outcomes],
        "planned": list(report.planned),
        "missing": list(report.missing),
        "boot": list(report.boot),
        "tools": dict(report.tools),
        "history": list(report.history),
    }


def as_json(report: Report) -> str:
    """The report as JSON text."""
    return json.dumps(to_json(report), indent=1) + "\n"


def as_junit(report: Report) -> str:
    """The report as JUnit XML."""
    untried = tuple(
        Outcome(name, passed=False, duration_ms=0, detail="not tried, because an earlier scenario failed") for name in report.missing
    )
    outcomes = report.outcomes + untried
    failures = sum(not outcome.passed for outcome in outcomes)
    suite = ET.Element("testsuite", name=report.label, tests=str(len(outcomes)), failures=str(failures))
    for outcome in outcomes:
        case = ET.SubElement(suite, "testcase", classname=report.label, name=outcome.name, time=f"{outcome.duration_ms / 1000:.3f}")
        if not outcome.passed:
            ET.SubElement(
                case, "failure", message=_printable(outcome.detail.splitlines()[-1] if outcome.detail else "failed")
            ).text = _printable(outcome.detail)
        elif outcome.detail:
            ET.SubElement(case, "system-out").text = _printable(outcome.detail)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """XML 1.0 has no place for control characters."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}" for character in text)
