"""What `obelisk test` does: scenarios in virtual machines, a report, a signed proof."""

from obelisk.trial.hosting import Maker
from obelisk.trial.proof import proof
from obelisk.trial.report import Outcome, Report, as_json, as_junit, to_json
from obelisk.trial.running import run

__all__ = ["Maker", "Outcome", "Report", "as_json", "as_junit", "proof", "run", "to_json"]
