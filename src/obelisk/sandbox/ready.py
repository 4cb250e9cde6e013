"""Makes an application ready to start on this machine: its root checked and in place, its data directories there, its plan written.

    RUN/<image id>/root         the image's root: mounted for root, else a copy of its files
                  /checked      which file it was made from, once every block had been checked against the hash tree
                  /<plan>/start, confine, beside-<helper>, stage/
    DATA/<name>/                what the application keeps

Linux mounts file systems for root alone. An ordinary user gets the files copied out of the image instead, once, after the same check;
nothing guards the copy from that user afterwards, whose own rights the application is kept from anyway.
"""

import os
import pwd
import stat
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from obelisk.errors import InputError, StateError
from obelisk.model.application import Application, parse_application
from obelisk.model.canonical import digest
from obelisk.model.image import PartKind
from obelisk.model.policy import Device, Policy, Read, Use, Write
from obelisk.sandbox.desktop import Session, is_wanted, session_of, sockets
from obelisk.sandbox.machine import Machine
from obelisk.sandbox.plan import Place, Plan, compile_plan, data_directory, host_path
from obelisk.store import StoredImage
from obelisk.system import erofs, verity
from obelisk.system.bubblewrap import Room, read_only
from obelisk.system.confine import Owner
from obelisk.system.files import locked, write_durably
from obelisk.system.mounts import unmount_all
from obelisk.system.namespace import remove_tree

# systemd's own range for users that exist as long as they run: no package and no person has an id there.
_FIRST_UID, _UIDS = 61184, 4336
_NODES = {
    Device.AUDIO: ("snd",),
    Device.CAMERA: ("video*", "media*"),
    Device.GPU: ("dri/renderD*",),  # the nodes of whole cards also set the screens' modes
    Device.KVM: ("kvm",),
}
# What Mesa wants to know of a graphics processor, to choose a driver. Source: libdrm, xf86drm.c.
_ABOUT = ("vendor", "device", "subsystem_vendor", "subsystem_device", "revision", "uevent")


@dataclass(frozen=True, slots=True)
class Directories:
    """Where running applications lie, and where their data does."""

    run: Path
    data: Path

    @classmethod
    def of(cls, environment: Mapping[str, str], *, root: bool) -> "Directories":
        """Those of this user: $OBELISK_RUN and $OBELISK_DATA, or the usual ones."""
        home = Path(environment.get("HOME") or "/")
        if root:
            run, data = Path("/run/obelisk/apps"), Path("/var/lib/obelisk/apps")
        else:
            run = Path(environment.get("XDG_RUNTIME_DIR") or home / ".cache") / "obelisk/apps"
            data = Path(environment.get("XDG_STATE_HOME") or home / ".local/state") / "obelisk/apps"
        return cls(Path(environment.get("OBELISK_RUN") or run), Path(environment.get("OBELISK_DATA") or data))


@dataclass(frozen=True, slots=True)
class Ready:
    """An application that can be started: by its plan's program `start`, as often as wanted, without this program."""

    start: Path
    plan: Plan


def application_of(image: StoredImage) -> Application:
    """What an image says of itself as an application.

    Raises:
        InputError: it is a machine's.
        TrustError: it is damaged.
    """
    if not image.manifest.is_application:
        raise InputError(
            f"{image.manifest.label} is the image of a machine", code="not-application", hint='an application has role = "app" in its spec'
        )
    return parse_application(image.part_path(PartKind.APPLICATION).read_bytes())


def make_ready(  # noqa: PLR0913 - keywords name each
    image: StoredImage,
    policy: Policy,
    machine: Machine,
    *,
    directories: Directories,
    home: Path,
    room: Callable[[], Room],
    command: tuple[str, ...] = (),
    listener: int | None = None,
) -> Ready:
    """Have everything in place, and the plan compiled. May be repeated, and by several processes at once.

    `command` takes the place of the image's own. The desktop session is the one that this process's variables name. `listener` is the
    socket of an observer (see `obelisk.sandbox.observer`).

    Raises:
        TrustError: a block of the root is not what the image's root hash promises.
        MissingFeatureError: the machine lacks a layer of confinement.
        StateError: a path that is granted does not exist, or the desktop session is another user's.
    """
    app = application_of(image)
    app = replace(app, command=command or app.command)
    name = image.manifest.name
    place = directories.run / image.id[:32]
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / "lock"):
        _settle_root(image, place, machine, room)
    owner = _owner(name, machine)
    data = directories.data / name
    for path in app.data:
        _make_data(data_directory(data, path), owner)
    for grant in policy.of(Read) + policy.of(Write):
        if not host_path(grant.path, home).exists():
            raise StateError(f"{host_path(grant.path, home)} is granted and does not exist", code="grant-missing", hint="make it first")
    session = session_of(os.environ, home) if is_wanted(policy) else Session()
    for path in sockets(policy, session):
        _check_admission(Path(path), owner, machine)
    nodes = _nodes(policy)
    system, links = _about(policy)
    groups = tuple(sorted({Path(node).stat().st_gid for node in nodes})) if machine.is_root else ()
    key = digest(
        [policy.to_json(), app.to_json(), repr(machine), str(data), str(home), list(nodes), listener, repr(session), list(system)]
    )[:16]
    names = Path("/etc/resolv.conf")
    directories_of_nodes = tuple(node for node in nodes if Path(node).is_dir())
    seat = Place(
        name,
        place / "root",
        place / key,
        data,
        home,
        owner,
        groups,
        nodes,
        directories_of_nodes,
        resolver=names if names.is_file() else None,
        session=session,
        system=system,
        links=links,
    )
    plan = compile_plan(app, policy, seat, machine, listener=listener)
    (seat.plan / "stage").mkdir(parents=True, exist_ok=True)
    for file, content in (("confine", plan.confine), ("network.nft", plan.rules.encode()), *plan.beside, ("start", plan.start)):
        if not (seat.plan / file).exists() or (seat.plan / file).read_bytes() != content:
            write_durably(seat.plan / file, content, mode=0o755)
    return Ready(seat.plan / "start", plan)


def clear(image: StoredImage, directories: Directories) -> bool:
    """Take away what `make_ready` has put in place, but the data; whether there was something. Running applications go on."""
    place = directories.run / image.id[:32]
    if not place.exists():
        return False
    with locked(place / "lock"):
        unmount_all(place / "root")
        remove_tree(place)
    return True


def _settle_root(image: StoredImage, place: Path, machine: Machine, room: Callable[[], Room]) -> None:
    file, root, note = image.part_path(PartKind.ROOT), place / "root", place / "checked"
    status = file.stat()
    stamp = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
    in_place = root.is_mount() if machine.is_root else root.exists()
    if in_place and note.exists() and note.read_text() == stamp:
        return
    unmount_all(root)
    remove_tree(root)
    note.unlink(missing_ok=True)
    tools = room()
    binds = [read_only(file, "/root.erofs"), read_only(image.part_path(PartKind.VERITY), "/root.verity")]
    verity.verify(tools, Path("/root.erofs"), Path("/root.verity"), image.manifest.root_hash, binds=binds)
    if machine.is_root:
        root.mkdir()
        erofs.mount(file, root)
    else:
        erofs.extract(tools, file, root)
    write_durably(note, stamp.encode())


def _owner(name: str, machine: Machine) -> Owner:
    """Root launches each application as a user of its own; anybody else as themselves."""
    if not machine.is_root:
        return machine.owner
    number = _FIRST_UID + zlib.crc32(name.encode()) % _UIDS
    return Owner(number, number)


def _make_data(directory: Path, owner: Owner) -> None:
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(0o700)
        os.chown(directory, owner.uid, owner.gid)


def _check_admission(socket: Path, owner: Owner, machine: Machine) -> None:
    """Root starts an application as a user whom the session may not let in, and that would then look like a fault of the application's."""
    if machine.is_root and not socket.stat().st_mode & stat.S_IWOTH:
        raise StateError(
            f"{socket} is not open to user {owner.uid}, as whom root starts the application",
            code="session-closed",
            hint="start it as the user whose session it is",
        )


def _nodes(policy: Policy) -> tuple[str, ...]:
    """The device nodes of this machine that are granted."""
    wanted = (pattern for power in policy.of(Use) for pattern in _NODES[power.device])
    return tuple(sorted(str(path) for pattern in wanted for path in Path("/dev").glob(pattern)))


def _about(policy: Policy) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What of /sys tells of the graphics processors that are granted, and the links that lead there: (target, place)."""
    found: list[Path] = []
    links: list[tuple[str, str]] = []
    for node in _nodes(policy) if policy.has(Use(Device.GPU)) else ():
        number = Path(node).stat().st_rdev
        link = Path(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
        if not node.startswith("/dev/dri/") or not link.exists():
            continue
        found.append(link.resolve())
        links.append((str(found[-1]), str(link)))
        card = found[-1] / "device"
        if card.exists():
            card = card.resolve()
            found += [card / name for name in _ABOUT if (card / name).exists()]
            links.append((str((card / "subsystem").resolve()), str(card / "subsystem")))
    return tuple(sorted({str(path) for path in found})), tuple(sorted(set(links)))


def class_of(node: str) -> Device | None:
    """The class of devices to which a path below /dev leads, if it is of one that can be granted."""
    inside = PurePath(node).relative_to("/dev")
    for device, patterns in _NODES.items():
        for pattern in map(PurePath, patterns):
            depth = len(pattern.parts)
            # Below a directory of nodes, or the directory in which they are looked for.
            if PurePath(*inside.parts[:depth]).match(str(pattern)) or (depth > 1 and inside == pattern.parent):
                return device
    return None


def home_of_user() -> Path:
    """The home directory of whoever runs this."""
    return Path(pwd.getpwuid(os.geteuid()).pw_dir)
