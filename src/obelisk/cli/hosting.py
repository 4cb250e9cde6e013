"""`obelisk host …`: commands on a machine whose operating system is an image."""

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from obelisk.cli.terminal import answer, reporting, size
from obelisk.errors import InputError, StateError
from obelisk.host import journal, snapshots
from obelisk.host import settings as sealed
from obelisk.host.here import Here, here
from obelisk.system import console, power

if TYPE_CHECKING:
    from obelisk.events import Sink
    from obelisk.host.channel import Offer
    from obelisk.host.source import Source


_OF_INSTANCES = ("history", "drift", "snapshot", "reset", "migrate")
"""What needs neither slots nor an ESP."""


def host(arguments: Namespace) -> int:
    """Run one of the host commands."""
    if os.geteuid() != 0:
        raise StateError("this takes root rights", code="not-root", hint=f"sudo obelisk host {arguments.action}")
    actions = {
        "status": _status,
        "upgrade": _upgrade,
        "rollback": _rollback,
        "history": _history,
        "verify": _verify,
        "drift": _drift,
        "snapshot": _snapshot,
        "reset": _reset,
        "recovery-key": _recovery_key,
        "enrol-tpm": _enrol_tpm,
        "firmware": _firmware,
        "settle": _settle,
        "condemn": _condemn,
        "follow": _upgrade,
        "damaged": _damaged,
        "migrate": _migrate,
    }
    found = here()
    if found.own_state() is not None and arguments.action not in _OF_INSTANCES:
        raise StateError(
            f"this machine is an instance of {found.label}: another takes its place, it is not upgraded",
            code="host-instance",
            hint="where it was made: obelisk instance, obelisk service",
        )
    return actions[arguments.action](found, arguments)


def install(arguments: Namespace) -> int:
    """Write the running image onto another disk."""
    from obelisk.host.install import install as write_disk

    if os.geteuid() != 0:
        raise StateError("this takes root rights", code="not-root", hint=f"sudo obelisk install {arguments.image} {arguments.target}")
    this = here()
    target = Path(arguments.target).absolute()
    with reporting(json_wanted=arguments.json) as sink:
        written = write_disk(this, arguments.image, target, erase=arguments.erase, sink=sink)
    text = f"{this.label} is on {target}; its first boot, without the disk that runs now, completes it"
    answer(text, json_wanted=arguments.json, target=str(target), image=this.label, written=written)
    return 0


def _status(this: Here, arguments: Namespace) -> int:
    from obelisk.host.status import status

    found = status(this)
    exposed = "off: any system that starts here can open the state" if found.state_keys else "off"
    lines = [
        f"image     {this.name} {this.version}" + (f" ({found.image_id[:12]})" if found.image_id else ""),
        f"slot      {found.booted} on {this.disk}" + (", on trial: not blessed yet" if found.on_trial else ""),
        f"fallback  {found.fallback or 'none'}",
        f"health    {found.health}" + (f": {', '.join(found.failing)}" if found.failing else ""),
        f"state     {size(found.state_free_bytes)} free of {size(found.state_total_bytes)}, version {found.state_version}",
        *([f"          {found.state_keys}"] if found.state_keys else []),
        f"boot      Secure Boot {'on' if found.secure_boot else exposed}"
        + (f"; waits: {', '.join(found.brought)}" if found.brought else ""),
        f"upgrade   {found.upgrade}",
    ]
    if found.followed is not None:
        lines.append(f"channel   {found.followed}")
        if found.followed.withdrawn:
            lines.append(f"          {this.version} was withdrawn: {found.followed.withdrawn}")
    if found.last is not None:
        lines.append(f"last      {found.last.image} {found.last.event}, {found.last.at}")
    entries = {entry.label: entry for entry in found.entries}
    for slot in found.slots:
        entry = entries.get(slot.label or "")
        lines.append(f"  slot {slot.letter}  {slot.label or 'empty'}" + (f"  {entry.file}" if entry else ""))
    answer("\n".join(lines), json_wanted=arguments.json, status=found.to_json())
    return 0 if found.health != "unhealthy" else 8


def _upgrade(this: Here, arguments: Namespace) -> int:
    from obelisk.host.source import open_source

    given: str | None = arguments.source
    if given is not None and _is_directory(given):
        if arguments.mirrors or arguments.check:
            raise InputError(
                "--from and --check are for channels, and the source is a directory",
                code="source-directory",
                hint="name a channel, such as stable; one that has the name of a file here is meant where you are somewhere else",
            )
        with reporting(json_wanted=arguments.json) as sink:
            return _install(this, open_source(Path(given)), arguments, sink)
    return _follow(this, given, arguments)


def _is_directory(source: str) -> bool:
    """Whether a source is meant to be a directory; else it is a channel."""
    return "/" in source or Path(source).exists()


def _mend(this: Here, channel: str, labels: tuple[str, ...], asked: list[str], sink: "Sink") -> int:
    """Write again what is damaged of these images, out of the repository; how many bytes that were."""
    from obelisk.host import channel as channels
    from obelisk.host import subscription
    from obelisk.host.delivery import mending
    from obelisk.host.inspection import repair

    followed = subscription.require(asked)
    written = 0
    with channels.mirrors(followed, sink) as mirrors:
        wish = channels.Wish(channel, mirrors, followed.root)
        for label in labels:
            written += repair(this, channels.restore(this, wish, label, sink, way=mending), sink)
            channels.discard(this)
    return written


def _follow(this: Here, channel: str | None, arguments: Namespace) -> int:
    """Do what the channel asks of this host."""
    from obelisk.host import channel as channels
    from obelisk.host import subscription
    from obelisk.host.delivery import ways
    from obelisk.model.following import GoBack, Refuse, Stay

    followed = subscription.require(arguments.mirrors)
    name = channel or followed.channel
    with reporting(json_wanted=arguments.json) as sink, channels.mirrors(followed, sink) as mirrors:
        wish = channels.Wish(name, mirrors, followed.root, arguments.retry or "")
        if arguments.check:
            return _tell(channels.look(this, wish, sink), arguments)
        match channels.obtain(this, wish, sink, ways=ways):
            case GoBack(_, reason):
                return _go_back(this, reason, arguments, sink)
            case Refuse(code, reason, remedy):
                raise StateError(reason, code=code, hint=remedy)
            case Stay(reason, withdrawn):
                channels.discard(this)
                answer(reason, json_wanted=arguments.json, image=this.label, channel=name, changed=False, withdrawn=withdrawn)
                return 0
            case source:
                status = _install(this, source, arguments, sink)
                channels.discard(this)
                return status


def _tell(offer: "Offer", arguments: Namespace) -> int:
    """What a channel has for this host, and that nothing was done about it."""
    from obelisk.model.following import GoBack, Refuse, Take

    version = ""
    match offer.decision:
        case Take(listing, reason):
            version, what = listing.version, "take"
            text = f"would upgrade to {version}: {reason}"
        case GoBack(version, reason):
            text, what = f"would go back to {version}: {reason}", "back"
        case Refuse(_, reason, remedy):
            text, what = f"{reason}; {remedy}", "refuse"
        case stay:
            text, what = f"would stay: {stay.reason}", "stay"
    current = offer.channel.current
    answer(
        text,
        json_wanted=arguments.json,
        channel=offer.channel.channel,
        newest=current.version if current else None,
        decision=what,
        version=version or None,
        why=text,
    )
    return 0


def _go_back(this: Here, reason: str, arguments: Namespace, sink: "Sink") -> int:
    from obelisk.host.rollback import rollback

    way = rollback(this, sealed.read(), sink, with_state=False)
    then = "restarting now" if arguments.reboot else "the next boot starts it"
    if arguments.action == "follow":
        console.say(f"obelisk: {reason}; going back to {way.entry.label}")
    answer(
        f"{reason}; going back to {way.entry.label}: {then}",
        json_wanted=arguments.json,
        image=way.entry.label,
        changed=True,
        withdrawn=True,
    )
    if arguments.reboot:
        power.reboot()
    return 0


def _install(this: Here, source: "Source", arguments: Namespace, sink: "Sink") -> int:
    from obelisk.host.upgrade import Wish, upgrade

    retry = arguments.retry is not None
    if retry and arguments.retry != source.manifest.version:
        raise InputError(f"--retry names {arguments.retry}, the source has {source.manifest.version}", code="retry-other")
    outcome = upgrade(this, source, sink, Wish(retry, arguments.rehearse, sealed.read().tries))
    label = outcome.entry.label
    if outcome.changed:
        written = f"{size(outcome.written_bytes)} of {size(outcome.image_bytes)} written"
        text = f"{label} is ready in slot {outcome.slot}, {written}; the next boot tries it"
    elif label == this.label:
        text = f"{label} runs already"
    else:
        text = f"{label} is installed already; the next boot tries it"
    if arguments.action == "follow" and label != this.label:
        console.say(f"obelisk: {text}")
    answer(
        text,
        json_wanted=arguments.json,
        image=label,
        id=source.manifest.id,
        slot=outcome.slot,
        changed=outcome.changed,
        written=outcome.written_bytes,
        size=outcome.image_bytes,
    )
    if arguments.reboot and label != this.label:
        power.reboot()
    return 0


def _rollback(this: Here, arguments: Namespace) -> int:
    from obelisk.host.rollback import rollback

    with reporting(json_wanted=arguments.json) as sink:
        way = rollback(this, sealed.read(), sink, with_state=arguments.with_state)
    state = f", with the state of {way.snapshot.directory}" if way.snapshot else ""
    if way.steps:
        state = f", with the state taken back to version {way.steps[-1] - 1}"
    then = "the next boot starts it" if arguments.no_reboot else "restarting now"
    snapshot = way.snapshot.directory if way.snapshot else None
    answer(f"going back to {way.entry.label}{state}: {then}", json_wanted=arguments.json, image=way.entry.label, snapshot=snapshot)
    if not arguments.no_reboot:
        power.reboot()
    return 0


def _history(this: Here, arguments: Namespace) -> int:
    from obelisk.host.history import iterations

    found = iterations(journal.read(this.keep))
    lines = []
    for each in found:
        took = f"healthy after {each.healthy_ms / 1000:.1f} s" if each.healthy_ms else ""
        boots = f"{each.boots} boot{'s' if each.boots != 1 else ''}"
        lines.append(
            f"{each.since}  {each.image:<20} {each.why}; {boots}; " + "; ".join(filter(None, (each.outcome or "no word from it", took)))
        )
    answer("\n".join(lines) or "nothing was recorded yet", json_wanted=arguments.json, history=[each.to_json() for each in found])
    return 0


def _verify(this: Here, arguments: Namespace) -> int:
    from obelisk.host.inspection import repair, verify
    from obelisk.host.source import open_source

    written = 0
    given: str | None = arguments.repair
    if arguments.mirrors and (given is None or _is_directory(given)):
        raise InputError("--from names mirrors of a channel, and none is named", code="channel-unnamed", hint="add --repair CHANNEL")
    with reporting(json_wanted=arguments.json) as sink:
        if given is not None and _is_directory(given):
            written = repair(this, open_source(Path(given)), sink)
        findings = verify(this, sink)
        if given is not None and not _is_directory(given) and findings:
            labels = tuple(dict.fromkeys(finding.image for finding in findings if finding.image))
            written = _mend(this, given, labels, arguments.mirrors, sink)
            findings = verify(this, sink)
    lines = [f"{finding.image or 'ESP'}: {finding.what}" for finding in findings]
    if findings and arguments.repair is None:
        lines.append("write what is damaged again: obelisk host verify --repair CHANNEL, or the directory of the image")
    answer(
        "\n".join(lines) or "all slots, their kernel images and entries are sound",
        json_wanted=arguments.json,
        findings=[{"image": finding.image, "what": finding.what, "blocks": finding.blocks} for finding in findings],
        written=written,
    )
    return 3 if findings else 0


def _drift(_this: Here, arguments: Namespace) -> int:
    from obelisk.host.drift import drift

    found = drift()
    lines = [f"{size(each.size_bytes):>10}  {each.files:>6} files  {each.since}  {each.owner:<16} {each.path}" for each in found]
    answer(
        "\n".join(lines) or "nothing in the state that the image does not declare",
        json_wanted=arguments.json,
        drift=[e.to_json() for e in found],
    )
    return 1 if found else 0


def _snapshot(this: Here, arguments: Namespace) -> int:
    from obelisk.host.migration import require_usable
    from obelisk.host.upgrade import now

    with this.alone(), this.top() as top:
        verb: str = arguments.verb
        match verb:
            case "create":
                made = snapshots.create(
                    top, arguments.name or "manual", at=now(), image=this.label, reason=arguments.why or "by hand", automatic=False
                )
                answer(made.directory, json_wanted=arguments.json, snapshot=made.directory)
            case "list":
                known = snapshots.snapshots(top)
                lines = [f"{each.at}  {each.directory:<32} {each.image:<20} {each.reason}" for each in known]
                listed = [{"name": each.directory, "at": each.at, "image": each.image, "reason": each.reason} for each in known]
                answer("\n".join(lines) or "there are no snapshots", json_wanted=arguments.json, snapshots=listed)
            case "restore":
                chosen = snapshots.find(top, _named(arguments))
                require_usable(snapshots.tree(top, chosen), sealed.read())
                about = f"the state that restoring {chosen.directory} replaced"
                replaced = snapshots.replaced_state(top, at=now(), image=this.label, reason=about)
                snapshots.order_restore(top, this.keep, chosen.directory, image=None, replaced=replaced)
                answer(f"the next boot restores {chosen.directory}", json_wanted=arguments.json, snapshot=chosen.directory)
            case "delete":
                chosen = snapshots.find(top, _named(arguments))
                snapshots.delete(top, chosen)
                answer(f"{chosen.directory} is deleted", json_wanted=arguments.json, snapshot=chosen.directory)
            case _:
                pass
    if arguments.verb == "restore" and arguments.reboot:
        power.reboot()
    return 0


def _named(arguments: Namespace) -> str:
    if not arguments.name:
        raise InputError("name the snapshot", code="snapshot-unnamed", hint="obelisk host snapshot list")
    return str(arguments.name)


def _reset(this: Here, arguments: Namespace) -> int:
    from obelisk.host.reset import reset

    if not arguments.yes:
        raise InputError(
            "a reset deletes the whole state of this machine, snapshots included",
            code="reset-unconfirmed",
            hint="say --yes, and --keep PATH for what is to stay",
        )
    kept = reset(this, tuple(arguments.keep or ()))
    answer(f"the next boot starts with fresh state; kept: {', '.join(kept) or 'nothing'}", json_wanted=arguments.json, kept=list(kept))
    if arguments.reboot:
        power.reboot()
    return 0


def _recovery_key(this: Here, arguments: Namespace) -> int:
    from obelisk.host.encryption import renew_recovery_key

    key = renew_recovery_key(this)
    said = "the recovery key of this host's state, shown this once; any before it opens nothing any more"
    answer(f"{said}:\n\n    {key}\n\nkeep it where this host is not", json_wanted=arguments.json, recovery_key=key)
    return 0


def _enrol_tpm(this: Here, arguments: Namespace) -> int:
    from obelisk.host.encryption import enrol_tpm

    enrol_tpm(this, console.ask_secret("recovery key: "))
    answer("this machine's TPM opens the state from now on", json_wanted=arguments.json)
    return 0


def _firmware(this: Here, arguments: Namespace) -> int:
    from obelisk.host import encryption, esp, firmware

    with this.alone(), this.esp() as place:
        entry = esp.find(place, this.label)
        if entry is not None and entry.counted:
            raise StateError(
                f"{this.label} is still on trial", code="on-trial", hint="wait until `obelisk host status` says that it is healthy"
            )
        keys = encryption.keys(this)
        if esp.brought(place, this.label) and keys is not None:
            if not keys.recovery:
                raise StateError(
                    "the TPM will not open the state after this, and there is no recovery key",
                    code="recovery-missing",
                    hint="obelisk host recovery-key",
                )
            if not arguments.yes:
                raise InputError(
                    "the TPM will not open the state after this: the next boot asks for the recovery key",
                    code="firmware-unconfirmed",
                    hint="say --yes, and then `obelisk host enrol-tpm`",
                )
        done = firmware.apply(place, this.label)
    answer("\n".join(done) or "nothing waits", json_wanted=arguments.json, done=done)
    return 0


def _settle(this: Here, arguments: Namespace) -> int:
    from obelisk.host.settle import settle

    said = settle(this, sealed.read())
    console.say(f"obelisk: {said}")
    answer(said, json_wanted=arguments.json)
    return 0


def _condemn(this: Here, arguments: Namespace) -> int:
    from obelisk.host.settle import condemn

    restarting = condemn(this)
    what = "on trial and not healthy: restarting into its fallback" if restarting else "not healthy, and nobody's trial: it stays up"
    console.say(f"obelisk: {this.label} is {what}")
    answer(f"{this.label} is {what}", json_wanted=arguments.json, restarting=restarting)
    if restarting:
        power.reboot()
    return 0


def _damaged(this: Here, arguments: Namespace) -> int:
    from obelisk.events import silent
    from obelisk.host.rollback import leave_damaged

    other = leave_damaged(this, sealed.read(), silent)
    what = f"restarting into {other}" if other else "there is no other that is whole; `obelisk host verify --repair` mends it"
    console.say(f"obelisk: {this.label} is damaged on the disk: {what}")
    answer(f"{this.label} is damaged: {what}", json_wanted=arguments.json, next=other)
    if other:
        power.reboot()
    return 0


def _migrate(this: Here, arguments: Namespace) -> int:
    from obelisk.host.migration import migrate
    from obelisk.host.settle import condemn

    try:
        migrate(this, sealed.read())
    except StateError as error:
        console.say(f"obelisk: {this.label} cannot use the state: {error.message}")
        condemn(this)
        raise
    answer("the state is ready", json_wanted=arguments.json)
    return 0
