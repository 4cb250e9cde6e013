"""The part of a spec that only applications have."""

import json
from pathlib import Path

import pytest
from spec_samples import load_text, problems

from obelisk.model.application import Service, parse_application
from obelisk.model.policy import (
    X11,
    Ask,
    Call,
    Calls,
    Connect,
    Device,
    Layer,
    Limits,
    Listen,
    Own,
    Portal,
    Reach,
    Read,
    Talk,
    Use,
    Wayland,
    WriteExecute,
)
from obelisk.spec import digest_inputs
from obelisk.spec.positions import spell

APP = """\
name = "calc"
role = "app"
[app]
command = ["/usr/bin/bc", "-q"]
environment = ["B=2", "A=1=1"]
directory = "/srv"
scratch = ["/var/cache/calc"]
data = ["/var/lib/calc"]
credentials = ["db-password"]
"""


def test_an_application_is_read_with_its_policy(tmp_path: Path) -> None:
    grants = (
        '[grants]\nread = ["~/x"]\nlisten = [8080]\nconnect = ["10.0.0.0/8:*", "db.org:54"]\nsyscalls = ["debug"]\nwrite_execute = true\n'
    )
    spec = load_text(tmp_path, APP + grants + 'may_miss = ["landlock"]\n[limits]\nmemory = "1G"\nprocesses = 9\n')
    app = spec.application
    assert app is not None
    assert (app.command, app.directory) == (("/usr/bin/bc", "-q"), "/srv")
    assert app.environment == (("A", "1=1"), ("B", "2"))
    assert app.credentials == ("db-password",)
    assert (app.scratch, app.data) == (("/var/cache/calc",), ("/var/lib/calc",))
    assert app.policy.powers == {
        Read("~/x"),
        Listen(8080),
        Connect("10.0.0.0/8"),
        Reach("db.org", 54),
        Call(Calls.DEBUG),
        WriteExecute(),
    }
    assert app.policy.limits == Limits(memory_bytes=1 << 30, processes=9)
    assert app.policy.may_miss == {Layer.LANDLOCK}


def test_the_grants_of_desktop_programs_are_read(tmp_path: Path) -> None:
    grants = '[grants]\nwayland = true\nx11 = true\ndevices = ["gpu"]\ndbus_talk = ["org.example.*"]\ndbus_own = ["org.example.Editor"]\n'
    app = load_text(tmp_path, f'{APP}{grants}portals = ["file-chooser"]\n').application
    assert app is not None
    session = {Wayland(), X11(), Talk("org.example.*"), Own("org.example.Editor"), Ask(Portal.FILE_CHOOSER)}
    assert app.policy.powers == {*session, Use(Device.GPU)}


def test_a_service_says_how_it_is_reached_and_how_long_it_may_take(tmp_path: Path) -> None:
    said = 'service = true\nsockets = true\nhealth = "http://localhost:8080/up"\nsteady = "1min"\nstop_timeout = "9s"\n'
    app = load_text(tmp_path, f"{APP}{said}[grants]\nlisten = [8080]\n").application
    assert app is not None
    assert app.service == Service(sockets=True, health="http://localhost:8080/up", health_s=60, steady_s=60, stop_s=9)
    assert parse_application(app.to_bytes()) == app
    command = load_text(tmp_path / "command", APP).application
    assert command is not None
    assert command.service is None
    assert "service" not in json.loads(command.to_bytes())
    assert parse_application(command.to_bytes()) == command


def test_nothing_is_granted_unless_it_is_said(tmp_path: Path) -> None:
    app = load_text(tmp_path, APP).application
    assert app is not None
    assert app.policy.powers == frozenset()
    assert load_text(tmp_path, 'name = "shop"').application is None


def test_a_grant_makes_another_image_and_a_machine_none_of_it(tmp_path: Path) -> None:
    plain, granted = load_text(tmp_path / "a", APP), load_text(tmp_path / "b", APP + "[grants]\nlisten = [80]\n")
    assert digest_inputs(plain) != digest_inputs(granted)


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ('role = "app"', "role", "needs a command"),
        ('role = "app"\n[app]\ncommand = ["bc"]', "app.command[0]", "no absolute path"),
        (f'{APP}[hardening]\nlockdown = "none"', "hardening", "for machines"),
        (f'{APP}[services]\nenable = ["a.service"]', "services", "for machines"),
        (f'{APP}[health.x]\nunit = "a.service"', "health", "for machines"),
        (f"{APP}[users.x]\nuid = 1000", "users", "for machines"),
        (f"{APP}[state]\nsnapshots = 1", "state", "for machines"),
        (f'{APP}[boot]\ncmdline = ["a"]', "boot", "for machines"),
        ('[app]\ncommand = ["/usr/bin/bc"]', "app", "role `app` only"),
        ("[grants]\nlisten = [1]", "grants", "role `app` only"),
        ("[limits]\nprocesses = 1", "limits", "role `app` only"),
        (f'{APP}[limits]\ndata = "8M"', "limits.data", "no room"),
        (APP.replace('data = ["/var/lib/calc"]', "") + '[limits]\ndata = "1G"', "limits.data", "keeps no data"),
        (APP.replace("/var/cache/calc", "/usr/calc"), "app.scratch[0]", "cannot be written"),
        (APP.replace("/var/cache/calc", "/run/credentials/calc"), "app.scratch[0]", "cannot be written"),
        (APP.replace("db-password", "../shadow"), "app.credentials[0]", "a name of letters"),
        (APP.replace("/var/lib/calc", "/var/cache/calc"), "app.data[0]", "also listed in app.scratch"),
        (f'{APP}[grants]\nread = ["/etc/ssl"]', "grants.read[0]", "belongs to the image"),
        (f'{APP}[grants]\nconnect = ["10.0.0.1/8:80"]', "grants.connect[0]", "no destination"),
        (f'{APP}[grants]\nconnect = ["service:Shop"]', "grants.connect[0]", "such as"),
        (f'{APP}[grants]\nconnect = ["10.0.0.0/8:70000"]', "grants.connect[0]", "no port"),
        (f'{APP}[grants]\nconnect = ["example.org:*"]', "grants.connect[0]", "no destination"),
        (f'{APP}[grants]\nconnect = ["example org:80"]', "grants.connect[0]", "a network or host name and a port"),
        (f'{APP}[grants]\nwrite = ["/desk/../etc"]', "grants.write[0]", "absolute path"),
        (f"{APP}[grants]\nlisten = [0]", "grants.listen[0]", "from 1 to 65535"),
        (f'{APP}[grants]\ndbus_talk = ["org.*"]', "grants.dbus_talk[0]", "a name on a bus"),
        (f'{APP}[grants]\ndbus_talk = ["org.freedesktop.portal.Desktop"]', "grants.dbus_talk[0]", "cannot be granted"),
        (f"{APP}sockets = true", "app", "are about a service"),
        (f"{APP}service = true\nsockets = true", "app.sockets", "`listen` among its grants"),
        (
            f'{APP}service = true\nsockets = true\n[grants]\nlisten = [80]\nconnect = ["10.0.0.0/8:80"]',
            "app.sockets",
            "and no `connect`",
        ),
        (
            f'{APP}service = true\nhealth = "http://localhost:81/"\n[grants]\nlisten = [80]',
            "app.health",
            "a port at which it does not listen",
        ),
        (f'{APP}service = true\nhealth = "http://example.org:80/"\n[grants]\nlisten = [80]', "app.health", "http://localhost"),
        (f'{APP}[grants]\ndevices = ["disk"]', "grants.devices[0]", "one of audio"),
    ],
)
def test_what_cannot_be_is_named_at_its_place(tmp_path: Path, text: str, key: str, said: str) -> None:
    found = problems(tmp_path, text if text.startswith("name") else f'name = "calc"\n{text}')
    assert key in {spell(problem.path) for problem in found if said in problem.message}
