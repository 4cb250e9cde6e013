"""What `obelisk test` does: scenarios in virtual machines, a report, a signed proof."""

from obelisk.trial.agent import PORT, Finding, Probe, findings, injected
from obelisk.trial.hosting import Maker
from obelisk.trial.lab import BOOT_S, Lab
from obelisk.trial.proof import proof, verify_proof
from obelisk.trial.report import Outcome, Report, as_json, as_junit, to_json
from obelisk.trial.running import run

__all__ = [
    "BOOT_S",
    "PORT",
    "Finding",
    "Lab",
    "Maker",
    "Outcome",
    "Probe",
    "Report",
    "as_json",
    "as_junit",
    "findings",
    "injected",
    "proof",
    "run",
    "to_json",
    "verify_proof",
]
