"""What our own units may do, as systemd-analyze counts it: no unit of an image does without a sandbox, and none gets wider unseen."""

import re
import subprocess
from pathlib import Path

import pytest

from obelisk.build.programs import GUEST

UNITS = GUEST / "root/usr/lib/systemd/system"
# 0 is shut off from everything, 10 is a program of root's as it is. Health checks are the spec's own commands,
# who fetches releases has the network, and who gives a copied machine its identity sets clock and names, and restarts what has them.
LIMIT = 2.0
WIDER = {"obelisk-health.service": 6.5, "obelisk-follow.service": 2.7, "obelisk-renew.service": 3.5}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    place = tree / "usr/lib/systemd"
    place.mkdir(parents=True)
    subprocess.run(["cp", "-a", UNITS, place / "system"], check=True)
    return tree


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("obelisk-*.service")))
def test_a_unit_is_no_wider_than_its_work_needs(tree: Path, unit: str) -> None:
    words = ["systemd-analyze", "security", "--offline=true", f"--root={tree}", "--no-pager", unit]
    finished = subprocess.run(words, capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8"})
    found = re.search(r"exposure level for \S+: ([0-9.]+)", finished.stdout)
    assert found is not None, finished.stdout + finished.stderr
    assert "Unknown" not in finished.stderr
    assert float(found[1]) <= WIDER.get(unit, LIMIT)
