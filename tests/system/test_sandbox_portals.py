"""An application that may ask by a portal has the files that a person chooses, by Debian's portals in a session of a person's."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ordinary import UID, ordinary_user
from sandboxes import Bare, application, places
from tool import ROOT, Tool

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
    "image": (policy([Ask(Portal.FILE_CHOOSER)]), {"reach the session bus", *GRANTED}),
    "both": (policy([Ask(Portal.FILE_CHOOSER), Talk("org.example.Mail")]), {"reach the session bus", *GRANTED}),
}


def by_name(applications: Tool, place: Path) -> list[str]:
    """Words by which the person starts an image that asks for the portal, with a checkout and a store of their own below `place`."""
    text = 'packages = ["python3"]\ntree = "tree"\n[app]\ncommand = ["/usr/bin/python3", "-I", "/usr/local/lib/probe.py"]\n'
    files = {"tree/usr/local/lib/probe.py": (PROBES / "probe.py").read_text()}
    app = application(applications, "chooser", f'{text}[grants]\nportals = ["file-chooser"]\n', files)
    person = ordinary_user(app, place)
    subprocess.run(["cp", "--archive", "--reflink=auto", app.store, place / "home/store"], check=True)
    subprocess.run(["chown", "--recursive", f"{UID}:{UID}", place / "home/store"], check=True)
    own = (f"OBELISK_STORE={person.store}", f"OBELISK_KEYS={person.home}/keys", f"OBELISK_RUN={person.home}/run")
    # By name, for the copied store knows the spec's directory of before.
    return [*person.prefix, "env", *own, str(person.checkout / "obelisk"), "app", "run", "chooser@1", "--"]


@pytest.fixture(scope="module")
def session(applications: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the probes find in each policy, in an image and without confinement, and what becomes of the session."""
    code = (PROBES / "probe.py").read_text()
    only = sorted({"reach the session bus", "reach another socket of the session", *GRANTED, *CLOSED})
    with places() as place:
        person = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
        runs = [{"name": "image", "only": only, "argv": by_name(applications, tmp_path_factory.mktemp("person"))}]
        for name in (name for name in OPENS if name != "image"):
            bare = Bare(place / name.replace(" ", "-"), Owner(UID, UID))
            argv = bare.start(Application(("/usr/bin/python3", "-I", "-c", code)), OPENS[name][0], session=SESSION)
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
    assert set(session["noted"]) == {f".flatpak/obelisk.{name}/bwrapinfo.json" for name in ("bare", "chooser")}
    assert all(noted["child-pid"] > 1 for noted in session["noted"].values())
