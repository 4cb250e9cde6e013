"""`obelisk instance …` for instances on hosts: made there, moved live, and hosts emptied and filled again."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from obelisk.build import slots
from obelisk.build.image import disk_of
from obelisk.cli.making import tools_room
from obelisk.cli.places import find_machine, instances_directory, open_store
from obelisk.cli.terminal import answer, reporting, size
from obelisk.errors import InputError, ObeliskError, StateError, TransportError
from obelisk.events import Sink
from obelisk.instance import draining, moving
from obelisk.instance.hosts import NETWORK, POOL, Host, Hosts, prepare, survey
from obelisk.instance.moving import Moved, Plan
from obelisk.instance.placement import Placement, Placements
from obelisk.instance.remote import Boot, New, Remote
from obelisk.model import uki
from obelisk.model.draining import Move
from obelisk.model.image import PartKind
from obelisk.model.migration import MIB, Terms
from obelisk.model.state import Encryption
from obelisk.spec.reader import size as bytes_of
from obelisk.system import qemu

_LEAST_MEMORY_BYTES = 64 * MIB


def instance(arguments: Namespace) -> int:
    """Run one of the commands about instances on hosts."""
    actions = {
        "create": _create,
        "show": _show,
        "start": _start,
        "stop": _stop,
        "retire": _retire,
        "migrate": _migrate,
        "hosts": _hosts,
    }
    with reporting(json_wanted=arguments.json) as sink:
        return actions[arguments.action](arguments, sink)


def host(arguments: Namespace) -> int:
    """Have instances leave a host, or come back to it."""
    actions = {"drain": _drain, "undrain": _undrain}
    with reporting(json_wanted=arguments.json) as sink:
        return actions[arguments.action](arguments, sink)


def remote(arguments: Namespace, sink: Sink) -> Remote:
    """The instances and hosts of this user; files of images are taken from the store where that has them."""
    store = open_store(arguments)
    return Remote(Hosts(hosts_file()), Placements(placements_directory()), sink, store.find_blob)


def hosts_file() -> Path:
    """Where the names of hosts are kept."""
    named = os.environ.get("OBELISK_HOSTS")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "obelisk/hosts.json"


def placements_directory() -> Path:
    """Where it is kept which instance is on which host."""
    return instances_directory() / ".placements"


def _create(arguments: Namespace, sink: Sink) -> int:
    store = open_store(arguments)
    image = find_machine(store, arguments.image)
    manifest = image.manifest
    if manifest.state_encryption is not Encryption.NONE:
        raise InputError(
            f"{manifest.label} encrypts its state to the TPM of one machine, which cannot move",
            code="instance-encrypted",
            hint="build the image without [state] encryption",
        )
    known = remote(arguments, sink)
    host = known.hosts.get(arguments.host)
    state = _bytes(arguments.state, "--state", slots.STATE_LEAST_BYTES)
    memory = _bytes(arguments.memory, "--memory", _LEAST_MEMORY_BYTES)
    room = tools_room(None, store, sink)
    with store.workspace() as work:
        sections = uki.sections(image.part_path(PartKind.UKI).read_bytes())
        (work / "linux").write_bytes(sections["linux"])
        (work / "initrd").write_bytes(sections["initrd"])
        boot = Boot(work / "linux", work / "initrd", sections["cmdline"].rstrip(b"\0").decode(), disk_of(image, store, room, work))
        new = New(
            arguments.name,
            image.id,
            boot,
            memory,
            state_bytes=state,
            cpus=arguments.cpus,
            credentials={"system.hostname": arguments.name, **dict(qemu.credential(text) for text in arguments.credential)},
        )
        placement = known.create(new, host)
    answer(
        f"{placement.name} runs {manifest.label} on {placement.host}",
        json_wanted=arguments.json,
        name=placement.name,
        uuid=placement.uuid,
        image=image.id,
        host=placement.host,
    )
    return 0


def listed(arguments: Namespace, sink: Sink) -> tuple[list[str], list[dict[str, str]]]:
    """The instances on hosts: for people, and for programs."""
    known = remote(arguments, sink)
    rows = [(placement, _state(known, placement)) for placement in known.placements.all()]
    lines = [f"{placement.name:<20} {state:<8} on {placement.host}" for placement, state in rows]
    told = [
        {"name": each.name, "uuid": each.uuid, "image": each.image, "host": each.host, "to": each.to, "state": state}
        for each, state in rows
    ]
    return lines, told


def _state(known: Remote, placement: Placement) -> str:
    if placement.coming:
        return "being made"
    if placement.to:
        return f"on its way to {placement.to}"
    try:
        return known.presence(placement, placement.host).value
    except ObeliskError as error:
        return error.code  # one host that is not in order must not hide the others


def _show(arguments: Namespace, sink: Sink) -> int:
    known = remote(arguments, sink)
    placement = known.placements.get(arguments.name)
    if placement.to or placement.coming:
        try:
            with known.placements.owned(arguments.name):
                placement = known.settled(arguments.name)
        except StateError as error:
            if error.code != "instance-busy":  # whoever is at work on it puts it right
                raise
    state = _state(known, placement)
    lines = [f"{placement.name}: {state}, on {placement.host}", f"  image  {placement.image[:12] or '-'}", f"  uuid   {placement.uuid}"]
    lines += [f"  comes back to {placement.home} when that is no longer emptied"] if placement.home else []
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        name=placement.name,
        uuid=placement.uuid,
        image=placement.image,
        host=placement.host,
        to=placement.to,
        home=placement.home,
        state=state,
    )
    return 0


def _start(arguments: Namespace, sink: Sink) -> int:
    remote(arguments, sink).start(arguments.name)
    answer(f"{arguments.name} runs", json_wanted=arguments.json, name=arguments.name)
    return 0


def _stop(arguments: Namespace, sink: Sink) -> int:
    remote(arguments, sink).stop(arguments.name, now=arguments.now)
    answer(f"{arguments.name} is off", json_wanted=arguments.json, name=arguments.name)
    return 0


def _retire(arguments: Namespace, sink: Sink) -> int:
    known = remote(arguments, sink)
    host = known.placements.get(arguments.name).host
    known.retire(arguments.name)
    freed = known.sweep(known.hosts.get(host))
    answer(f"{arguments.name} is gone", json_wanted=arguments.json, name=arguments.name, host=host, freed=list(freed))
    return 0


def _migrate(arguments: Namespace, sink: Sink) -> int:
    known = remote(arguments, sink)
    target = known.hosts.get(arguments.to)
    terms = _terms(arguments)
    rate = arguments.rate * MIB if arguments.rate is not None else None
    if arguments.plan:
        planned = moving.plan(known, arguments.name, target, terms, rate=rate)
        answer("\n".join(_planned(arguments.name, planned)), json_wanted=arguments.json, **_plan_json(planned))
        return 0
    moved = moving.move(known, arguments.name, target, terms, rate=rate)
    answer(_moved(moved), json_wanted=arguments.json, **_moved_json(moved))
    return 0


def _terms(arguments: Namespace) -> Terms:
    if arguments.pause <= 0 or arguments.time <= 0:
        raise InputError(
            "--pause and --time are seconds, more than none", code="migration-terms", hint="for example --pause 1.5 --time 600"
        )
    return Terms(arguments.pause, arguments.time, arguments.post_copy, arguments.slow_down)


def _planned(name: str, planned: Plan) -> list[str]:
    expected = planned.expected
    how = ", by post-copy" if expected.post_copy else ", slowed down" if expected.slowed else ""
    source = "as last seen between them, or given" if planned.measured else "assumed: nothing has moved between them yet"
    return [
        f"{name} from {planned.source} to {planned.target}: about {expected.seconds:.1f} s, stands still for {expected.pause_s:.2f} s{how}",
        f"  moved          {size(expected.moved_bytes)}, in {expected.passes} passes over the memory",
        f"  memory         {size(planned.load.memory_bytes)} in use, {size(planned.load.dirty_rate)} written a second",
        f"  state          {size(planned.load.state_bytes)}",
        f"  image          {size(planned.lacking_bytes)} that {planned.target} does not have yet",
        f"  network        {size(planned.rate)} a second ({source})",
    ]


def _plan_json(planned: Plan) -> dict[str, object]:
    return {
        "source": planned.source,
        "target": planned.target,
        "seconds": planned.expected.seconds,
        "pause_s": planned.expected.pause_s,
        "moved_bytes": planned.expected.moved_bytes,
        "passes": planned.expected.passes,
        "post_copy": planned.expected.post_copy,
        "slowed": planned.expected.slowed,
        "memory_bytes": planned.load.memory_bytes,
        "dirty_rate": planned.load.dirty_rate,
        "state_bytes": planned.load.state_bytes,
        "image_bytes": planned.lacking_bytes,
        "rate": planned.rate,
        "rate_measured": planned.measured,
    }


def _moved(moved: Moved) -> str:
    went = f"{moved.placement.name} runs on {moved.placement.host}: {moved.seconds:.1f} s, {size(moved.moved_bytes)} moved"
    stood = f", stood still for {moved.pause_s:.2f} s" if moved.pause_s is not None else ""
    return f"{went}{stood}" + (", by post-copy" if moved.post_copy else "")


def _moved_json(moved: Moved) -> dict[str, object]:
    return {
        "name": moved.placement.name,
        "host": moved.placement.host,
        "seconds": moved.seconds,
        "pause_s": moved.pause_s,
        "moved_bytes": moved.moved_bytes,
        "post_copy": moved.post_copy,
    }


def _hosts(arguments: Namespace, sink: Sink) -> int:
    known = remote(arguments, sink)
    verbs = {"add": _add_host, "remove": _remove_host, "list": _list_hosts}
    if arguments.verb != "list" and not arguments.host:
        raise InputError(
            f"which host is to be {arguments.verb}ed?", code="host-name", hint=f"obelisk instance hosts {arguments.verb} NAME …"
        )
    return verbs[arguments.verb](arguments, known)


def _add_host(arguments: Namespace, known: Remote) -> int:
    if not arguments.address:
        raise InputError("a host has an address", code="host-address", hint=f"obelisk instance hosts add {arguments.host} ADDRESS")
    certificates = str(Path(arguments.certificates).absolute()) if arguments.certificates else ""
    host = Host(arguments.host, arguments.address, arguments.peer or arguments.address, certificates)
    # Prepared first: a host that is known can be used.
    prepare(host, arguments.bridge)
    known.hosts.put(host)
    answer(
        f"{host.name} is ready: instances lie in libvirt's pool {POOL}, and are on its network {NETWORK}, the bridge {arguments.bridge}",
        json_wanted=arguments.json,
        name=host.name,
        address=host.address,
        peer=host.peer,
    )
    return 0


def _remove_host(arguments: Namespace, known: Remote) -> int:
    host = known.hosts.get(arguments.host)
    there = [each.name for each in known.placements.all() if each.host == host.name]
    if there:
        raise StateError(
            f"{host.name} has {', '.join(there)}",
            code="host-used",
            hint=f"first: obelisk host drain {host.name}, or retire what is there",
        )
    known.hosts.remove(host.name)
    answer(f"{host.name} is forgotten; nothing on it has changed", json_wanted=arguments.json, name=host.name)
    return 0


def _list_hosts(arguments: Namespace, known: Remote) -> int:
    lines, told = [], []
    for host in known.hosts.all():
        count = sum(host.name == each.host for each in known.placements.all())
        try:
            side = survey(host)
            free = {"memory_free": side.memory_free, "room_free": side.room_free, "libvirt": side.libvirt}
            how = f"{size(side.memory_free)} of memory and {size(side.room_free)} of room free"
        except ObeliskError as error:
            free, how = {"error": error.code}, "does not answer" if isinstance(error, TransportError) else error.message
        marked = ", being emptied" if host.draining else ""
        lines.append(f"{host.name:<16} {host.address:<24} {count} instances, {how}{marked}")
        told.append({"name": host.name, "address": host.address, "peer": host.peer, "draining": host.draining, "instances": count, **free})
    answer("\n".join(lines) or "no hosts are known", json_wanted=arguments.json, hosts=told)
    return 0


def _drain(arguments: Namespace, sink: Sink) -> int:
    known = remote(arguments, sink)
    host = known.hosts.get(arguments.host)
    if arguments.plan:
        moves = draining.plan(known, host)
        lines = [f"{move.name} goes to {move.target}" for move in moves]
        answer("\n".join(lines) or f"nothing runs on {host.name}", json_wanted=arguments.json, host=host.name, moves=_moves_json(moves))
        return 0
    return _emptied(arguments, draining.drain(known, host, _terms(arguments)), f"{host.name} is empty, and nothing new comes to it")


def _undrain(arguments: Namespace, sink: Sink) -> int:
    known = remote(arguments, sink)
    host = known.hosts.get(arguments.host)
    return _emptied(arguments, draining.undrain(known, host, _terms(arguments)), f"{host.name} takes instances again")


def _moves_json(moves: Sequence[Move]) -> list[dict[str, str]]:
    return [{"name": move.name, "to": move.target} for move in moves]


def _emptied(arguments: Namespace, emptied: draining.Emptied, well: str) -> int:
    lines = [_moved(moved) for moved in emptied.moved]
    lines += [f"{name} stays where it is: {why}" for name, why in emptied.stayed] or [well]
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        host=arguments.host,
        moved=[_moved_json(moved) for moved in emptied.moved],
        stayed=[{"name": name, "why": why} for name, why in emptied.stayed],
    )
    return 1 if emptied.stayed else 0


def _bytes(text: str, option: str, least: int) -> int:
    try:
        found = bytes_of(text)
    except (ValueError, KeyError, IndexError):
        found = 0
    if found < least:
        raise InputError(f"{option} {text!r} is no size, or less than {size(least)}", code="instance-size", hint="write it like 512M or 2G")
    return found
