"""A signed statement that an image passed its tests: in-toto test-result, in a DSSE envelope."""

from obelisk import __version__
from obelisk.build.keys import SigningKey
from obelisk.build.provenance import sign_statement
from obelisk.errors import StateError
from obelisk.model.proof import PREDICATE
from obelisk.trial.report import Report, to_json


def proof(report: Report, key: SigningKey) -> bytes:
    """The proof of a report in which everything passed.

    Raises:
        StateError: something failed: there is nothing to prove.
    """
    if not report.passed:
        raise StateError("a trial that failed proves nothing", code="proof-failed-trial", hint="mend the image and test it again")
    names = [outcome.name for outcome in report.outcomes]
    return sign_statement(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": report.label, "digest": {"sha256": report.image_id}}],
            "predicateType": PREDICATE,
            "predicate": {
                "result": "PASSED",
                "configuration": [{"name": "obelisk", "annotations": {"version": __version__}}],
                "passedTests": names,
                "warnedTests": [],
                "failedTests": [],
                "obelisk": to_json(report),
            },
        },
        key,
    )
