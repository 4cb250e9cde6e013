"""An application that may ask by a portal has the files that a person chooses, by Debian's portals in a session of a person's."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from ordinary import UID
from sandboxes import Bare, places
from tool import ROOT

from obelisk.model.application import Application
from obelisk.model.policy import Ask, Policy, Portal, Talk, policy
from obelisk.sandbox.desktop import Session
from obelisk.system.confine import Owner

PROBES = ROOT / "tests/probes"
RUNTIME = f"/run/user/{UID}"
SESSION = Session(bus=f"{RUNTIME}/bus", documents=f"{RUNTIME}/doc")
GRANTED = {"ask a portal for files", "read a file that was chosen", "change a file that was chosen"}
CLOSED = {
    "read what is beside a file that was chosen",
    "see what was chosen for others",
    "ask another portal",
    "reach the portal of documents",
    "see another name on the session bus",
}
# What each policy opens. Who may talk to a name may not talk to portals.
OPENS: dict[str, tuple[Policy, set[str]]] = {
    "nothing": (policy(), set()),
    "a name": (policy([Talk("org.example.Mail")]), {"reach the session bus"}),
    "portals": (policy([Ask(Portal.FILE_CHOOSER)]), {"reach the session bus", *GRANTED}),
    "both": (policy([Ask(Portal.FILE_CHOOSER), Talk("org.example.Mail")]), {"reach the session bus", *GRANTED}),
}


@pytest.fixture(scope="module")
def session() -> Iterator[dict[str, Any]]:
    """What the probes find in each policy and without confinement, and what becomes of the session."""
    code = (PROBES / "probe.py").read_text()
    only = sorted({"reach the session bus", "reach another socket of the session", *GRANTED, *CLOSED})
    with places() as place:
        person = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
        runs = []
        for name, (held, _opened) in OPENS.items():
            bare = Bare(place / name.replace(" ", "-"), Owner(UID, UID))
            argv = bare.start(Application(("/usr/bin/python3", "-I", "-c", code)), held, session=SESSION)
            runs.append({"name": name, "only": only, "argv": argv})
        runs.append({"name": "unconfined", "only": only, "argv": [*person, "/usr/bin/python3", "-I", "-c", code]})
        words = ["unshare", "--mount", "--propagation", "private", "python3", str(PROBES / "portal.py"), json.dumps(runs)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def allowed(results: dict[str, list[str]]) -> set[str]:
    """The probes that got through."""
    assert "error" not in results, results
    return {name for name, (_group, outcome, _detail) in results.items() if outcome == "allowed"}


def test_the_probes_get_through_where_nothing_confines_them(session: dict[str, Any]) -> None:
    assert allowed(session["found"]["unconfined"]) == {"reach the session bus", *GRANTED, *CLOSED}


@pytest.mark.parametrize("name", OPENS)
def test_a_portal_gives_what_was_chosen_and_nothing_beside_it_and_others_stay_closed(session: dict[str, Any], name: str) -> None:
    assert allowed(session["found"][name]) == OPENS[name][1], session["found"][name]


def test_what_is_changed_is_the_persons_own_file_and_not_the_one_beside_it(session: dict[str, Any]) -> None:
    times = sum(bool(GRANTED & opened) for _held, opened in OPENS.values()) + 1
    assert session["chosen"].splitlines()[1:] == ["changed"] * times
    assert session["beside"] == {"unconfined": False, **dict.fromkeys(OPENS, True)}


def test_who_asks_is_noted_where_later_portals_look(session: dict[str, Any]) -> None:
    ((file, noted),) = session["noted"].items()
    assert file == ".flatpak/obelisk.bare/bwrapinfo.json"
    assert noted["child-pid"] > 1
