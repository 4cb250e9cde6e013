"""`obelisk instance …`: machines that run from images, on this machine and on hosts; a name leads to where its instance is."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

from obelisk.build.image import disk_of
from obelisk.cli import migrating
from obelisk.cli.making import tools_room
from obelisk.cli.places import find_machine, instances_directory, open_store
from obelisk.cli.terminal import answer, reporting, size
from obelisk.errors import InputError, ObeliskError, StateError
from obelisk.events import Note, Sink
from obelisk.instance.embedded import Embedded
from obelisk.instance.placement import Placements
from obelisk.instance.records import Bootable, Records
from obelisk.model import uki
from obelisk.model.image import PartKind
from obelisk.model.instance import HOST_NAME, Copy, Instance, Kind, Port, Snapshot, Status, Wanted, Wish, copies_of, parse_port, parse_size
from obelisk.model.state import Encryption
from obelisk.store import Store, StoredImage
from obelisk.system import qemu
from obelisk.system.bubblewrap import Room
from obelisk.system.console import raw_terminal
from obelisk.system.resident import attach_console

_ON_HOSTS = {"migrate", "hosts"}
_EITHER = {"show", "start", "stop", "retire"}


def instance(arguments: Namespace) -> int:
    """Run one of the commands about instances."""
    action = arguments.action
    if action in _ALL:
        if bool(arguments.name) is arguments.all:
            raise InputError("name one instance, or say --all", code="instance-which", hint="obelisk instance list names them")
        if arguments.all:
            with reporting(json_wanted=arguments.json) as sink:
                return _ALL[action](arguments, engine(arguments, sink))
    if action in _ON_HOSTS or (action == "create" and arguments.host) or (action in _EITHER and _is_on_host(arguments.name)):
        return migrating.instance(arguments)
    with reporting(json_wanted=arguments.json) as sink:
        return _ACTIONS[action](arguments, engine(arguments, sink))


def engine(arguments: Namespace, sink: Sink) -> Embedded:
    """The instances of this machine and user."""
    store = open_store(arguments)

    @cache
    def room() -> Room:
        return tools_room(None, store, sink)

    def bootable(image_id: str) -> Bootable:
        image = find_machine(store, image_id)
        refuse_encrypted(image)
        sections = uki.sections(image.part_path(PartKind.UKI).read_bytes())
        words = sections["cmdline"].rstrip(b"\0").decode()
        return Bootable(image.id, image.manifest.label, sections["linux"], sections["initrd"], words, lambda: _disk(image, store, room()))

    return Embedded(Records(instances_directory()), room, bootable, sink)


@contextmanager
def _disk(image: StoredImage, store: Store, room: Room) -> Iterator[Path]:
    with store.workspace() as work:
        yield disk_of(image, store, room, work)


def refuse_encrypted(image: StoredImage) -> None:
    """Refuse an image whose state only one TPM opens.

    Raises:
        InputError: it is one.
    """
    if image.manifest.state_encryption is not Encryption.NONE:
        raise InputError(
            f"{image.manifest.label} encrypts its state to the TPM of one machine, which instances do not have",
            code="instance-encrypted",
            hint="build the image without [state] encryption",
        )


def _is_on_host(name: str) -> bool:
    return Placements(migrating.placements_directory()).find(name) is not None


def _create(arguments: Namespace, instances: Embedded) -> int:
    if _is_on_host(arguments.name):
        raise InputError(f"there is an instance {arguments.name} already, on a host", code="name-taken", hint="choose another name")
    given = dict(qemu.credential(text) for text in arguments.credential)
    wish = Wish(
        arguments.name,
        find_machine(open_store(arguments), arguments.image).id,
        memory_bytes=parse_size(arguments.memory),
        cpus=arguments.cpus,
        state_bytes=parse_size(arguments.state),
        ports=tuple(parse_port(text) for text in arguments.port),
        credentials=tuple(sorted({HOST_NAME: arguments.name, **given}.items())),
        keep=arguments.keep,
    )
    made = instances.create(wish)
    if not arguments.off:
        instances.start(made.name)
    status = instances.status(made.name)
    what = "is there, switched off" if arguments.off else f"boots by {made.accel}"
    return _tell(arguments, f"{made.name} {what}: {made.label}{_reached(made)}", made, status)


def _list(arguments: Namespace, instances: Embedded) -> int:
    found = [(each, instances.status(each.name)) for each in instances.instances()]
    lines = [
        f"{each.name:<20} {status.phase.value:<8} {_health(status):<11} {each.label:<20} {size(each.wish.memory_bytes):>9}{_reached(each)}"
        for each, status in found
    ]
    on_hosts, elsewhere = migrating.listed(arguments, instances.sink)
    answer(
        "\n".join([*lines, *on_hosts]) or "there are no instances",
        json_wanted=arguments.json,
        instances=[_plain(each, status) for each, status in found],
        on_hosts=elsewhere,
    )
    return 0


def _show(arguments: Namespace, instances: Embedded) -> int:
    found = instances.instance(arguments.name)
    status = instances.status(arguments.name)
    kept = instances.snapshots(arguments.name)
    wish = found.wish
    lines = [
        f"{found.name}: {status.phase.value}, {_health(status)}{_reached(found)}",
        f"  image      {found.label} {wish.image[:12]}",
        f"  made       {found.created:%Y-%m-%d %H:%M:%S} UTC{f', a copy of {found.origin}' if found.origin else ''}",
        f"  machine    {found.machine}, {wish.cpus} of {found.processor} by {found.accel}, {size(wish.memory_bytes)} of memory",
        f"  state      {size(wish.state_bytes)} at most",
        f"  identity   {found.uuid}, {found.mac}",
        f"  files      {instances.records.root / found.name}",
        f"  snapshots  {len(kept)}",
    ]
    return _tell(arguments, "\n".join(lines), found, status)


def _start(arguments: Namespace, instances: Embedded) -> int:
    status = instances.start(arguments.name)
    found = instances.instance(arguments.name)
    return _tell(arguments, f"{found.name} runs{_reached(found)}", found, status)


def _stop(arguments: Namespace, instances: Embedded) -> int:
    by_itself = instances.stop(arguments.name, timeout_s=0 if arguments.now else arguments.timeout)
    how = "" if by_itself else "; it did not go down by itself"
    answer(f"{arguments.name} is off{how}", json_wanted=arguments.json, name=arguments.name, by_itself=by_itself)
    return 0


def _start_all(arguments: Namespace, instances: Embedded) -> int:
    due = [each.name for each in instances.instances() if each.on and not instances.status(each.name).running]
    return _each(arguments, instances.sink, due, instances.start, "started", at_once=1)


def _stop_all(arguments: Namespace, instances: Embedded) -> int:
    running = [each.name for each in instances.instances() if instances.status(each.name).running]
    stop = partial(instances.stop, timeout_s=0 if arguments.now else arguments.timeout, to_return=True)
    return _each(arguments, instances.sink, running, stop, "stopped", at_once=max(len(running), 1))


def _each(arguments: Namespace, sink: Sink, names: Sequence[str], do: Callable[[str], object], word: str, *, at_once: int) -> int:
    """Do it to each of them, whatever becomes of the others.

    Raises:
        StateError: `instances-failed`: it could not be done to some.
    """

    def tried(name: str) -> bool:
        try:
            do(name)
        except ObeliskError as error:
            sink(Note(f"{name}: {error.message}"))
            return False
        return True

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        done = dict(zip(names, pool.map(tried, names), strict=True))
    if failed := [name for name, well in done.items() if not well]:
        raise StateError(
            f"of {len(names)} instances, {len(failed)} could not be {word}: {', '.join(failed)}",
            code="instances-failed",
            hint="why is said above, of each; the others are done",
        )
    answer("\n".join(f"{name} is {word}" for name in names) or f"nothing is to be {word}", json_wanted=arguments.json, **{word: names})
    return 0


def _retire(arguments: Namespace, instances: Embedded) -> int:
    if instances.status(arguments.name).running and not arguments.now:
        instances.stop(arguments.name)
    instances.retire(arguments.name)
    answer(f"{arguments.name} is gone, with its state and its snapshots", json_wanted=arguments.json, name=arguments.name)
    return 0


def _console(arguments: Namespace, instances: Embedded) -> int:
    if not instances.status(arguments.name).running:
        raise StateError(f"{arguments.name} does not run", code="not-running", hint=f"obelisk instance start {arguments.name}")
    print("leave with Ctrl-]", file=sys.stderr)
    with raw_terminal():
        attach_console(instances.records.root / arguments.name, sys.stdin.fileno(), sys.stdout.fileno())
    return 0


def _snapshot(arguments: Namespace, instances: Embedded) -> int:
    kind = Kind.STATE if arguments.state_only else Kind.MEMORY
    made = instances.snapshot(arguments.name, Wanted(kind, arguments.as_name or "", arguments.why or ""))
    answer(f"{made.name or made.id}: {_described(made)}", json_wanted=arguments.json, **_plain_snapshot(made))
    return 0


def _snapshots(arguments: Namespace, instances: Embedded) -> int:
    kept = instances.snapshots(arguments.name)
    lines = [f"{each.id}  {each.name:<20} {each.at:%Y-%m-%d %H:%M:%S}  {_described(each)}  {each.description}".rstrip() for each in kept]
    answer("\n".join(lines) or "there are none", json_wanted=arguments.json, snapshots=[_plain_snapshot(each) for each in kept])
    return 0


def _restore(arguments: Namespace, instances: Embedded) -> int:
    if arguments.to is None:
        status = instances.restore(arguments.name, arguments.snapshot)
        found = instances.instance(arguments.name)
        return _tell(arguments, f"{found.name} is as it was at {arguments.snapshot}{_reached(found)}", found, status)
    original = instances.instance(arguments.name)
    ports = tuple(parse_port(text) for text in arguments.port) or _other_ports(original)
    made = instances.restore_as(arguments.name, arguments.snapshot, Copy(arguments.to, ports))
    status = instances.status(made.name)
    return _tell(arguments, f"{made.name} goes on from {arguments.snapshot} of {arguments.name}{_reached(made)}", made, status)


def _delete(arguments: Namespace, instances: Embedded) -> int:
    instances.delete(arguments.name, arguments.snapshot)
    answer(
        f"{arguments.snapshot} of {arguments.name} is gone", json_wanted=arguments.json, name=arguments.name, snapshot=arguments.snapshot
    )
    return 0


def _verify(arguments: Namespace, instances: Embedded) -> int:
    found = instances.verify(arguments.name)
    lines = [f"{each.snapshot}: {each.file} {each.what}" for each in found]
    answer(
        "\n".join(lines) or f"all snapshots of {arguments.name} are as they were",
        json_wanted=arguments.json,
        damaged=[asdict(each) for each in found],
    )
    return 3 if found else 0


def _fork(arguments: Namespace, instances: Embedded) -> int:
    if arguments.count < 1:
        raise InputError("a fork makes one copy at least", code="fork-count", hint="give --count 1 or more")
    original = instances.instance(arguments.name)
    names = copies_of(arguments.name, arguments.count, [each.name for each in instances.instances()])
    made = instances.fork(arguments.name, [Copy(name, _other_ports(original)) for name in names])
    answer(
        "\n".join(f"{each.name} runs{_reached(each)}" for each in made),
        json_wanted=arguments.json,
        instances=[_plain(each, instances.status(each.name)) for each in made],
    )
    return 0


def _other_ports(original: Instance) -> tuple[Port, ...]:
    """The same ports of a copy, at free ones of this machine."""
    return tuple(replace(port, host=0) for port in original.wish.ports)


def _tell(arguments: Namespace, text: str, found: Instance, status: Status) -> int:
    answer(text, json_wanted=arguments.json, **_plain(found, status))
    return 0


def _reached(found: Instance) -> str:
    return "".join(f"  {port.address}:{port.host} -> {port.guest}" for port in found.wish.ports)


def _health(status: Status) -> str:
    if not status.running:
        return "-"
    return {None: "not yet said", True: "healthy", False: "unhealthy"}[status.healthy]


def _plain(found: Instance, status: Status) -> dict[str, object]:
    return {
        "name": found.name,
        "image": found.wish.image,
        "label": found.label,
        "phase": status.phase.value,
        "healthy": status.healthy,
        "address": status.address,
        "process": status.process or None,
        "ports": [asdict(port) for port in found.wish.ports],
        "memory": found.wish.memory_bytes,
        "cpus": found.wish.cpus,
        "state": found.wish.state_bytes,
        "uuid": found.uuid,
        "mac": found.mac,
        "origin": found.origin,
        "created": found.created.isoformat(),
    }


def _described(made: Snapshot) -> str:
    paused = f", stood still for {made.paused_ms} ms" if made.paused_ms else ""
    return f"{made.kind.value}, {made.consistency.value}, {size(made.size_bytes)}{paused}"


def _plain_snapshot(made: Snapshot) -> dict[str, object]:
    return {
        "id": made.id,
        "name": made.name,
        "description": made.description,
        "at": made.at.isoformat(),
        "kind": made.kind.value,
        "consistency": made.consistency.value,
        "parent": made.parent,
        "size": made.size_bytes,
        "paused_ms": made.paused_ms,
    }


_ALL = {"start": _start_all, "stop": _stop_all}
_ACTIONS = {
    "create": _create,
    "list": _list,
    "show": _show,
    "start": _start,
    "stop": _stop,
    "retire": _retire,
    "console": _console,
    "snapshot": _snapshot,
    "snapshots": _snapshots,
    "restore": _restore,
    "delete": _delete,
    "verify": _verify,
    "fork": _fork,
}
