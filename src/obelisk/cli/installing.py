"""`obelisk app install|rollback|remove|list|prepare`: applications that this machine has."""

import os
from argparse import Namespace
from dataclasses import replace

from obelisk.cli.making import tools_room
from obelisk.cli.places import find_image, open_store
from obelisk.cli.sandboxing import grown, policy_of
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError, StateError
from obelisk.events import Sink
from obelisk.model import exposure
from obelisk.sandbox.installed import Changed, Installation
from obelisk.sandbox.machine import this_machine
from obelisk.sandbox.place import Ground
from obelisk.sandbox.ready import application_of, home_of_user
from obelisk.store import StoredImage
from obelisk.system.systemctl import Systemctl

_WORDS = {"active": "running", "activating": "starting", "inactive": "stopped", "deactivating": "stopping"}


def app(arguments: Namespace) -> int:
    """Run one of the commands about installed applications."""
    with reporting(json_wanted=arguments.json) as sink:
        return _ACTIONS[arguments.action](arguments, sink)


def _install(arguments: Namespace, sink: Sink) -> int:
    image = find_image(open_store(arguments), arguments.image)
    app, held = application_of(image), policy_of(image)
    ground = _ground(arguments, sink)
    name = image.manifest.name
    installation = ground.installation(name, _systemd(ground), sink)
    with installation.changing() as state:
        if state.current:
            there = installation.image(state.current)
            more = grown((application_of(there), policy_of(there)), (app, held))
            if more and not arguments.approve:
                raise StateError(
                    f"{image.manifest.label} may do more than the {name} that is installed:\n" + "\n".join(f"  {line}" for line in more),
                    code="app-growth",
                    hint="say --approve when it is to, or narrow it in the operator's file (docs/sandbox.md)",
                )
        changed = installation.install(image, state)
    what = "a command" if app.service is None else "a service"
    _tell(arguments, installation, changed, f"{image.manifest.label} is installed as {what}")
    return 0


def _rollback(arguments: Namespace, sink: Sink) -> int:
    installation = _known(arguments, sink)
    with installation.changing() as state:
        changed = installation.rollback(state, with_data=arguments.with_data)
    label = installation.image(changed.current).manifest.label
    _tell(arguments, installation, changed, f"{label} is installed again")
    return 0


def _remove(arguments: Namespace, sink: Sink) -> int:
    installation = _known(arguments, sink)
    with installation.changing():
        installation.remove(with_data=arguments.data)
    kept = "" if arguments.data else f"; data is kept in {installation.seat.data}"
    answer(f"{arguments.name} is removed{kept}", json_wanted=arguments.json, removed=arguments.name, data_kept=not arguments.data)
    return 0


def _list(arguments: Namespace, sink: Sink) -> int:
    ground = _ground(arguments, sink)
    systemd = _systemd(ground)
    found = [_described(ground.installation(name, systemd, sink), systemd) for name in ground.names()]
    lines = [
        f"{each['name']:<16} {each['version']:<12} {str(each['image'])[:12]} {each['state']:<9} {each['score']:>3} of 100 open"
        + (f"   before: {each['prior']}" if each["prior"] else "")
        for each in found
    ]
    answer("\n".join(lines) or "nothing is installed", json_wanted=arguments.json, installed=found)
    return 0


def _described(installation: Installation, systemd: Systemctl) -> dict[str, str | int]:
    state = installation.state
    image = _image_of(installation)
    running = "command"
    if application_of(image).service is not None:
        found = systemd.look(installation.seat.service).active
        running = _WORDS.get(found, found)
    if state.trial is not None:
        running = "on trial"
    prior = installation.image(state.prior).manifest.version if state.prior else ""
    score = exposure.score(policy_of(image))
    return {
        "name": installation.seat.name,
        "version": image.manifest.version,
        "image": image.id,
        "state": running,
        "score": score,
        "prior": prior,
    }


def _image_of(installation: Installation) -> StoredImage:
    """What is installed or, before anything is, what is tried."""
    state = installation.state
    return installation.image(state.current or (state.trial.image if state.trial is not None else ""))


def _prepare(arguments: Namespace, sink: Sink) -> int:
    ground = _ground(arguments, sink)
    ground.installation(arguments.name, _systemd(ground), sink).prepare()
    return 0


def _tell(arguments: Namespace, installation: Installation, changed: Changed, text: str) -> None:
    answer(
        text,
        json_wanted=arguments.json,
        name=installation.seat.name,
        image=changed.current,
        prior=changed.prior or None,
        data_saved=changed.how.name.lower(),
    )


def _known(arguments: Namespace, sink: Sink) -> Installation:
    ground = _ground(arguments, sink)
    if arguments.name not in (known := ground.names()):
        raise InputError(
            f"{arguments.name} is not installed",
            code="not-installed",
            hint=f"installed are {', '.join(known)}" if known else "nothing is",
        )
    return ground.installation(arguments.name, _systemd(ground), sink)


def _systemd(ground: Ground) -> Systemctl:
    return Systemctl(user=not ground.machine.is_root)


def _ground(arguments: Namespace, sink: Sink) -> Ground:
    ground = Ground.here(this_machine(), os.environ, policy_of=policy_of, room=lambda: tools_room(None, open_store(arguments), sink))
    return replace(ground, home=home_of_user())


_ACTIONS = {"install": _install, "rollback": _rollback, "remove": _remove, "list": _list, "prepare": _prepare}
