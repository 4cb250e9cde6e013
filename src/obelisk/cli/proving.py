"""The command that proves an image: test."""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from obelisk import spec as specs
from obelisk.build.lockfile import read_lock
from obelisk.cli.making import signing_key, tools_room
from obelisk.cli.places import find_image, open_store
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError
from obelisk.events import Sink
from obelisk.model.spec import Spec, TestCase
from obelisk.store import StoredImage
from obelisk.system.bubblewrap import Room
from obelisk.system.files import written_by_name
from obelisk.trial import Maker, as_json, as_junit, proof, to_json
from obelisk.trial import run as run_trial
from obelisk.trial.plan import case, planned_for_application
from obelisk.trial.report import Outcome, Report


def test(arguments: Namespace) -> int:
    """Try an image in VMs, report, and store a signed proof when everything passed."""
    store = open_store(arguments)
    image = find_image(store, arguments.image)
    spec = _spec_of(arguments.image, image.id, [ref.name for ref in store.refs() if ref.image_id == image.id])
    pinned = read_lock(spec.lock_file)
    artefacts = store.root / "trials" / f"{image.id[:12]}-{time.strftime('%Y%m%dT%H%M%S')}"
    artefacts.mkdir(parents=True)
    with reporting(json_wanted=arguments.json) as sink:
        room = tools_room(pinned, store, sink)
        key = signing_key(pinned, store, sink)
        if image.manifest.is_application:
            report = report_on_application(image, spec.tests, room, sink)
        else:
            report = run_trial(image, Maker(spec, pinned, key, store, room), artefacts, sink)
    (artefacts / "report.json").write_text(as_json(report))
    (artefacts / "report.xml").write_text(as_junit(report))
    stored = store.add_proof(image.id, proof(report, key)) if report.passed else None
    for wanted, text in ((arguments.report, as_json(report)), (arguments.junit, as_junit(report))):
        if wanted:
            with written_by_name(Path(wanted)):
                Path(wanted).write_text(text)
    lines = []
    for outcome in report.outcomes:
        lines.append(f"{'pass' if outcome.passed else 'FAIL'}  {outcome.name} ({outcome.duration_ms / 1000:.1f} s)")
        if not outcome.passed:
            lines += [f"      {line}" for line in outcome.detail.splitlines()[-12:]]
    lines += [f"FAIL  {name} (not tried, because an earlier scenario failed)" for name in report.missing]
    if report.history:
        lines += ["what the two hosts said in the end:", *(f"  {line}" for line in report.history)]
    if report.boot:
        lines += ["where the boot's time went:", *(f"  {line}" for line in report.boot)]
    lines.append(f"proof: {stored}" if stored else f"failed; console logs, journal and report are in {artefacts}")
    paths = {"artefacts": str(artefacts), "proof": str(stored) if stored else None}
    answer("\n".join(lines), json_wanted=arguments.json, report=to_json(report), **paths)
    return 0 if report.passed else 8


def report_on_application(image: StoredImage, cases: Sequence[TestCase], room: Room, sink: Sink) -> Report:
    """What came of an application's tests, in the form of a machine's."""
    from obelisk.sandbox.trial import try_application

    found = try_application(image, {case(each.name): each for each in cases}, room, sink)
    outcomes = tuple(Outcome(*each) for each in found)
    return Report(image.id, image.manifest.label, "none", planned_for_application(cases), outcomes)


def _spec_of(name: str, image_id: str, refs: list[str]) -> Spec:
    path = Path(name)
    if path.exists():
        return specs.load(path)
    for ref in refs:
        if Path(ref).exists():
            return specs.load(Path(ref))
    raise InputError(f"the spec of image {image_id[:12]} is not known", code="spec-unknown", hint="name the directory of its spec instead")
