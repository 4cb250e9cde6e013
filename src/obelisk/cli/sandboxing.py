"""`obelisk app …`: applications in sandboxes."""

import os
import shlex
import sys
import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from obelisk import spec as specs
from obelisk.cli import exchanging
from obelisk.cli.making import tools_room
from obelisk.cli.places import find_image, open_store
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError
from obelisk.model import exposure
from obelisk.model.exposure import grown, sorted_powers
from obelisk.model.policy import spelled
from obelisk.model.spec import TestCase
from obelisk.sandbox.learning import learn
from obelisk.sandbox.machine import Machine, this_machine
from obelisk.sandbox.observer import NETWORK, SESSION_BUS, Observer, Refusal, Times
from obelisk.sandbox.operator import policy_of
from obelisk.sandbox.plan import layers_of
from obelisk.sandbox.ready import Directories, Ready, application_of, clear, home_of_user, make_ready
from obelisk.store import Store, StoredImage
from obelisk.system.command import go_on_as
from obelisk.system.notices import Channel, run_observed


def app(arguments: Namespace) -> int:
    """Run one of the commands about applications."""
    if arguments.action == "import":
        return exchanging.bring_in(arguments)
    if arguments.action == "export":
        return exchanging.export(open_store(arguments), arguments, policy_of)
    actions = {"run": _run, "ready": _ready, "show": _show, "diff": _diff, "audit": _audit, "learn": _learn, "clear": _clear}
    if arguments.action not in actions:
        from obelisk.cli import installing

        return installing.app(arguments)
    return actions[arguments.action](open_store(arguments), arguments)


def _run(store: Store, arguments: Namespace) -> int:
    ready = _made_ready(store, find_image(store, arguments.image), arguments)
    go_on_as(ready.start, _words(arguments))


def _ready(store: Store, arguments: Namespace) -> int:
    ready = _made_ready(store, find_image(store, arguments.image), arguments)
    answer(str(ready.start), json_wanted=arguments.json, start=str(ready.start), layers=dict(ready.plan.layers))
    return 0


def _show(store: Store, arguments: Namespace) -> int:
    image = find_image(store, arguments.image)
    asked = application_of(image).policy
    held = policy_of(image)
    machine = this_machine()
    layers = layers_of(held, machine)
    exposed = exposure.score(held)
    lines = [
        f"{image.manifest.label}: {exposed} of 100 is open",
        "it",
        *(f"  {line}" for line in exposure.granted(held) or ("does nothing else",)),
    ]
    narrowed = exposure.difference(held, asked).gained
    lines += ["the image also asks, and is not given:", *(f"  {line}" for line in narrowed)] if narrowed else []
    widened = exposure.difference(asked, held).gained
    lines += ["given although the image does not ask:", *(f"  {line}" for line in widened)] if widened else []
    secrets = {name: _directories(machine).credential(image.manifest.name, name) for name in application_of(image).credentials}
    lines += ["credentials, below /run/credentials"] if secrets else []
    lines += [f"  {name:<14} {file}{'' if file.is_file() else ', which is missing'}" for name, file in secrets.items()]
    lines += ["at most", *(f"  {line}" for line in exposure.limits(held)), "layers on this machine"]
    lines += [f"  {layer:<14} {text}" for layer, text in layers]
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        id=image.id,
        policy=held.to_json(),
        asked=asked.to_json(),
        granted=list(exposure.granted(held)),
        credentials={name: str(file) for name, file in secrets.items()},
        score=exposed,
        layers=dict(layers),
        missing=sorted(machine.missing),
    )
    return 0


def _diff(store: Store, arguments: Namespace) -> int:
    old, new = (application_of(find_image(store, name)) for name in (arguments.image, arguments.other))
    before, after = old.policy, new.policy
    gained, lost = grown((old, before), (new, after)), grown((new, after), (old, before))
    lines = [*(f"+ {line}" for line in gained), *(f"- {line}" for line in lost)]
    answer(
        "\n".join(lines) or "both may do the same",
        json_wanted=arguments.json,
        gained=list(gained),
        lost=list(lost),
        score=[exposure.score(before), exposure.score(after)],
    )
    return 1 if gained else 0


def _audit(store: Store, arguments: Namespace) -> int:
    image = find_image(store, arguments.image)
    application, held = application_of(image), policy_of(image)
    observer = Observer(application, held, home_of_user())
    channel = Channel.open()
    ready = _made_ready(store, image, arguments, listener=channel.theirs.fileno())
    began = time.time()
    status = run_observed([ready.start, *_words(arguments)], channel, observer)
    refusals = sorted(observer.refusals.items(), key=lambda each: (each[0].layer, each[1].first))
    ended = f"it ended with status {status} after {time.time() - began:.2f} s"
    lines = [f"{ended}; refused were", *(_refused(refusal, times, began) for refusal, times in refusals)]
    if not refusals:
        lines = [f"{ended}; nothing was refused"]
    found = [
        {
            "layer": refusal.layer,
            "what": refusal.what,
            "count": times.count,
            "first": _moment(times.first),
            "last": _moment(times.last),
            "grant": None if refusal.power is None else spelled(refusal.power),
        }
        for refusal, times in refusals
    ]
    if arguments.json:
        answer(json_wanted=True, status=status, refused=found)
    else:
        sys.stdout.flush()
        print("\n".join(lines), file=sys.stderr)
    return status


def _moment(seconds: float) -> str:
    """A time as programs read it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _refused(refusal: Refusal, times: Times, began: float) -> str:
    """A line on what was refused; when is told in seconds since the start."""
    remedy = "no grant allows it" if refusal.power is None else f"allowed by {spelled(refusal.power)}"
    if refusal.what == NETWORK:
        remedy = "allowed by any grant of `connect` or `listen`"
    if refusal.what == SESSION_BUS:
        remedy = "allowed by any grant of `dbus_talk`, `dbus_own` or `portals`"
    first, last = f"{times.first - began:.2f}", f"{times.last - began:.2f}"
    when = f"after {first} s" if first == last else f"after {first} to {last} s"
    return f"  {times.count:>5}  {refusal.layer:<8} {when:<22} {refusal.what}: {remedy}"


def _learn(store: Store, arguments: Namespace) -> int:
    image = find_image(store, arguments.image)
    file = next((Path(ref.name) for ref in store.refs() if ref.image_id == image.id), None)
    cases: tuple[TestCase, ...] = ()
    if arguments.words:
        words = _words(arguments)
        cases = (TestCase(f"-- {shlex.join(words)}".rstrip(), shlex.join((*application_of(image).command, *words))),)
    if file is not None and file.exists():
        cases = (*specs.load(file).tests, *cases)
    elif not cases:
        raise InputError("the spec of the image is not known", code="spec-unknown", hint="name the directory of its spec")
    with reporting(json_wanted=arguments.json) as sink:
        room = tools_room(None, store, sink)
        learnt = learn(image, cases, room, sink)
    lines = ["[grants]", *(spelled(power) for power in sorted_powers(learnt.policy))]
    if not learnt.policy.powers:
        lines = ["# its tests need no grant"]
    lines += [f"# without {spelled(power)}: {why}" for power, why in learnt.needed]
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        policy=learnt.policy.to_json(),
        needed=[{"grant": spelled(power), "without": why} for power, why in learnt.needed],
    )
    return 0


def _words(arguments: Namespace) -> list[str]:
    words: list[str] = arguments.words
    return words[1:] if words[:1] == ["--"] else words


def _clear(store: Store, arguments: Namespace) -> int:
    image = find_image(store, arguments.image)
    machine = this_machine()
    cleared = clear(image, _directories(machine))
    text = f"{image.manifest.label} is no longer in place; its data is kept" if cleared else f"{image.manifest.label} was not in place"
    answer(text, json_wanted=arguments.json, cleared=cleared)
    return 0


def _made_ready(store: Store, image: StoredImage, arguments: Namespace, *, listener: int | None = None) -> Ready:
    machine = this_machine()
    with reporting(json_wanted=arguments.json) as sink:
        return make_ready(
            image,
            policy_of(image),
            machine,
            directories=_directories(machine),
            home=home_of_user(),
            room=lambda: tools_room(None, store, sink),
            listener=listener,
        )


def _directories(machine: Machine) -> Directories:
    return Directories.of(os.environ, root=machine.is_root)
