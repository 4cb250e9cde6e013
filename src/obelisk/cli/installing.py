"""`obelisk app install|upgrade|rollback|remove|list|prepare`: applications that this machine has."""

import os
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError, MissingFeatureError, ObeliskError, StateError
from obelisk.events import Note, Sink
from obelisk.host import subscription
from obelisk.model import exposure
from obelisk.model.exposure import grown
from obelisk.model.following import Decision, Follower, GoBack, Refuse, Stay, Take
from obelisk.release.client.remote import Mirrors, mirror
from obelisk.sandbox import channel as channels
from obelisk.sandbox.channel import Following
from obelisk.sandbox.installed import Changed, Installation, State
from obelisk.sandbox.machine import this_machine
from obelisk.sandbox.operator import policy_of
from obelisk.sandbox.place import Ground
from obelisk.sandbox.ready import application_of, home_of_user, opened
from obelisk.store import StoredImage
from obelisk.store.images import MANIFEST
from obelisk.system.bubblewrap import Room
from obelisk.system.http import Client, Limits, Proxies
from obelisk.system.systemctl import Generated, Systemctl

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORDS = {"active": "running", "activating": "starting", "inactive": "stopped", "deactivating": "stopping"}


def app(arguments: Namespace) -> int:
    """Run one of the commands about installed applications."""
    with reporting(json_wanted=arguments.json) as sink:
        return _ACTIONS[arguments.action](arguments, sink)


def _install(arguments: Namespace, sink: Sink) -> int:
    if arguments.channel is not None:
        return _install_from_channel(arguments, sink)
    if arguments.mirrors or arguments.root:
        raise InputError("--from and --root are for channels, and none is named", code="channel-unnamed", hint="add --channel NAME")
    image = _image(arguments)
    ground = _ground(arguments, sink)
    installation = ground.installation(image.manifest.name, _systemd(ground), sink)
    application_of(image)  # a machine's is refused before anything is done
    with installation.changing() as state:
        _require_approved(installation, state, image, arguments)
        changed = installation.install(image, state, rehearsed=not arguments.in_place)
    _tell(arguments, installation, changed, _installed(image))
    return 0


def _image(arguments: Namespace) -> StoredImage:
    """The image that is meant: in a directory that has its manifest; of the store, where there is one."""
    if (Path(arguments.image) / MANIFEST).is_file() or not _has_store():
        return opened(Path(arguments.image))
    from obelisk.cli.places import find_image, open_store

    return find_image(open_store(arguments), arguments.image)


def _has_store() -> bool:
    """Whether this is where images are built; a host only runs them."""
    return find_spec("obelisk.cli.making") is not None


def _install_from_channel(arguments: Namespace, sink: Sink) -> int:
    name: str = arguments.image
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of an application", code="app-name", hint="--channel goes with the name in its spec")
    ground = _ground(arguments, sink)
    installation = ground.installation(name, _systemd(ground), sink)
    kept = installation.places.kept
    known = channels.following(kept)
    root = _read_root(arguments.root) if arguments.root else known.root if known else b""
    repositories = tuple(_absolute(each) for each in arguments.mirrors) or (known.repositories if known else ())
    followed = Following(arguments.channel, repositories, root)
    with _asked(followed, sink) as wish:
        offer = _offered(installation, wish, sink)
        match offer.decision:
            case Take():
                changed = _take(installation, offer, arguments, sink)
                followed.keep(kept)
            case decision:
                current = installation.state.current
                if not current:
                    raise StateError(decision.reason, code="nothing-released", hint="name another channel")
                followed.keep(kept)
                if offer.channel.current is None or offer.channel.current.image != current:
                    _stay(installation, decision, arguments)
                    return 0
                with installation.changing() as state:  # the same once more: what the operator's files say takes effect
                    changed = installation.install(installation.image(state.current), state)
    image = installation.image(changed.current)
    _tell(arguments, installation, changed, _installed(image))
    return 0


def _upgrade(arguments: Namespace, sink: Sink) -> int:
    ground = _ground(arguments, sink)
    systemd = _systemd(ground)
    if arguments.name is not None:
        return _upgrade_one(_known(arguments, sink), arguments, sink)
    if arguments.retry:
        raise InputError("--retry is for one application", code="retry-which", hint="name it")
    found = [ground.installation(name, systemd, sink) for name in ground.names()]
    following = [each for each in found if channels.following(each.places.kept) is not None]
    if not following:
        answer("nothing that is installed follows a channel", json_wanted=arguments.json)
    faults = []
    for each in following:
        try:
            _upgrade_one(each, arguments, sink)
        except ObeliskError as error:
            faults.append(error)
            sink(Note(f"{each.seat.name}: {error.message}"))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        message = "; ".join(error.message for error in faults)
        raise StateError(f"{len(faults)} applications were not upgraded: {message}", code=faults[0].code, hint=faults[0].hint)
    return 0


def _upgrade_one(installation: Installation, arguments: Namespace, sink: Sink) -> int:
    followed = channels.following(installation.places.kept)
    if followed is None:
        raise StateError(
            f"{installation.seat.name} follows no channel",
            code="no-channel",
            hint=f"obelisk app install {installation.seat.name} --channel NAME --from REPO",
        )
    with _asked(followed, sink, retry=bool(arguments.retry)) as wish:
        offer = _offered(installation, wish, sink)
        decision = offer.decision
        if isinstance(decision, Take) and arguments.retry not in {None, decision.listing.version}:
            has = f"{wish.channel} has {decision.listing.version}"
            raise InputError(f"--retry names {arguments.retry}, {has}", code="retry-other", hint="name that, or none")
        if arguments.check:
            return _say(installation, offer, arguments)
        match decision:
            case Take():
                changed = _take(installation, offer, arguments, sink)
                _tell(arguments, installation, changed, f"{installation.image(changed.current).manifest.label} is installed")
            case GoBack(_, reason):
                with installation.changing() as state:
                    changed = installation.rollback(state, with_data=False)
                label = installation.image(changed.current).manifest.label
                _tell(arguments, installation, changed, f"{reason}; {label} is installed again")
            case _:
                _stay(installation, decision, arguments)
    return 0


def _offered(installation: Installation, wish: channels.Wish, sink: Sink) -> channels.Offer:
    """What the channel has for what is installed, once a change that was cut is settled."""
    follower = None
    with installation.changing() as state:
        if state.current:
            current = installation.image(state.current)
            prior = installation.image(state.prior).manifest.version if state.prior and state.prior not in state.failed else ""
            follower = Follower(current.manifest.version, current.id, frozenset(state.failed), prior)
    return channels.look(installation.places.kept, installation.seat.name, wish, follower, sink)


def _take(installation: Installation, offer: channels.Offer, arguments: Namespace, sink: Sink) -> Changed:
    """Bring what is offered, and put it in the place of what is installed. More powers are refused before its blocks are fetched.

    Raises:
        StateError: they are more; or it did not become healthy.
    """
    kept, name = installation.places.kept, installation.seat.name
    with channels.coming(kept):
        image = channels.accept(kept, name, offer, sink)
        state = installation.state
        _require_approved(installation, state, image, arguments)
        there = [installation.image(each) for each in (state.current, state.prior) if each]
        channels.bring(image, offer, there, sink)
        with installation.changing() as state:
            _require_approved(installation, state, image, arguments)
            changed = installation.install(image, state, rehearsed=not arguments.in_place)
        channels.discard(kept)
    return changed


def _require_approved(installation: Installation, state: State, image: StoredImage, arguments: Namespace) -> None:
    if not state.current or arguments.approve:
        return
    there = installation.image(state.current)
    more = grown((application_of(there), policy_of(there)), (application_of(image), policy_of(image)))
    if more:
        raise StateError(
            f"{image.manifest.label} may do more than the {image.manifest.name} that is installed:\n"
            + "\n".join(f"  {line}" for line in more),
            code="app-growth",
            hint="say --approve when it is to, or narrow it in the operator's file (docs/sandbox.md)",
        )


def _stay(installation: Installation, decision: Decision, arguments: Namespace) -> None:
    """Say why nothing is to be done; or that nothing can be.

    Raises:
        StateError: there is a release, and it cannot be taken.
    """
    channels.discard(installation.places.kept)
    if isinstance(decision, Refuse):
        reason, remedy = _refused(installation, decision)
        raise StateError(reason, code=decision.code, hint=remedy)
    withdrawn = isinstance(decision, Stay) and decision.withdrawn
    name = installation.seat.name
    answer(f"{name}: {decision.reason}", json_wanted=arguments.json, name=name, changed=False, why=decision.reason, withdrawn=withdrawn)


def _refused(installation: Installation, decision: Refuse) -> tuple[str, str]:
    """Why a release is not taken, and the remedy: of what failed here, in words that fit an application."""
    if decision.code != "failed-before":
        return decision.reason, decision.remedy
    name = installation.seat.name
    why = f"`journalctl --unit {installation.seat.service} --unit {installation.next.service}` may say why"
    reason = f"what the channel has of {name} did not become healthy here, or was gone back from"
    return reason, f"it waits for a newer one; {why}. To try it again: obelisk app upgrade {name} --retry VERSION"


def _say(installation: Installation, offer: channels.Offer, arguments: Namespace) -> int:
    """What would be done."""
    name, version = installation.seat.name, ""
    match offer.decision:
        case Take(listing, reason):
            version, what = listing.version, "take"
            text = f"would take {version}: {reason}"
        case GoBack(version, reason):
            text, what = f"would go back to {version}: {reason}", "back"
        case Refuse() as refusal:
            text, what = "; ".join(_refused(installation, refusal)), "refuse"
        case stay:
            text, what = f"would stay: {stay.reason}", "stay"
    answer(f"{name}: {text}", json_wanted=arguments.json, name=name, decision=what, version=version or None, why=text)
    return 0


@contextmanager
def _asked(followed: Following, sink: Sink, *, retry: bool = False) -> Iterator[channels.Wish]:
    """The mirrors of what an application follows; where it names none, those that the running image follows.

    Raises:
        InputError: nothing says where to ask, or with which root trust begins.
    """
    own = subscription.read()
    addresses = followed.repositories or (own.repositories if own else ())
    root = followed.root or (own.root if own else b"")
    if not addresses:
        raise InputError("it is not known where that channel is", code="mirror-unnamed", hint="add --from with the address of a repository")
    if not root:
        raise InputError(
            "nothing vouches for that repository yet",
            code="root-unnamed",
            hint="add --root with its metadata/1.root.json, as you have it from whoever runs it",
        )
    limits = Limits(bandwidth_bytes_s=own.bandwidth_bytes_s if own else None)
    with Client(limits, proxies=Proxies(own.proxy if own else "")) as client:
        found = Mirrors([mirror(address, client) for address in addresses], say=lambda message: sink(Note(message)))
        yield channels.Wish(followed.channel, found, root, retry)


def _read_root(place: str) -> bytes:
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}", code="root-missing", hint="name a root.json") from error


def _absolute(address: str) -> str:
    """An address, or a directory by its whole path, as it is to be noted."""
    return str(Path(address).absolute()) if Path(address).is_dir() else address


def _installed(image: StoredImage) -> str:
    """What has been installed, and what it may do here."""
    app, held = application_of(image), policy_of(image)
    kind = "a command" if app.service is None else "a service"
    secrets = [f"reads the credential {name}" for name in sorted(app.credentials)]
    lines = [f"  {line}" for line in (*exposure.granted(held), *secrets)]
    return "\n".join([f"{image.manifest.label} is installed as {kind}" + (", which" if lines else ", without any grant"), *lines])


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
        + (f"   follows {each['channel']}" if each["channel"] else "")
        for each in found
    ]
    answer("\n".join(lines) or "nothing is installed", json_wanted=arguments.json, installed=found)
    return 0


def _described(installation: Installation, systemd: Systemctl) -> dict[str, str | int | None]:
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
    followed = channels.following(installation.places.kept)
    return {
        "name": installation.seat.name,
        "version": image.manifest.version,
        "image": image.id,
        "state": running,
        "score": score,
        "prior": prior,
        "channel": followed.channel if followed else None,
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
    return Generated() if ground.generated else Systemctl(user=not ground.machine.is_root)


def _ground(arguments: Namespace, sink: Sink) -> Ground:
    def room() -> Room:
        if not _has_store():
            raise MissingFeatureError(
                "an ordinary user has the files of an application copied, by tools that this host does not have",
                code="tools-missing",
                hint="install it as root",
            )
        from obelisk.cli.making import tools_room
        from obelisk.cli.places import open_store

        return tools_room(None, open_store(arguments), sink)

    ground = Ground.here(this_machine(), os.environ, policy_of=policy_of, room=room)
    return replace(ground, home=home_of_user())


_ACTIONS = {"install": _install, "upgrade": _upgrade, "rollback": _rollback, "remove": _remove, "list": _list, "prepare": _prepare}
