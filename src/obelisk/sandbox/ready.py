"""Makes an application ready to start on this machine: its root checked and in place, its data directories there, its plan written.

    RUN/<image id>/root         the image's root: mounted for root, through dm-verity where the machine has it; else a copy of its files
                  /checked      which file it was made from, once every block had been checked against the hash tree
                  /<plan>/start, confine, beside-<helper>, identity, session, stage/
    DATA/<name>/                what the application keeps (`obelisk.sandbox.data`)

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

from obelisk.errors import InputError, StateError, TrustError
from obelisk.model.application import Application, parse_application
from obelisk.model.canonical import digest
from obelisk.model.image import PartKind, parse_manifest
from obelisk.model.policy import NO_LIMIT, Ask, Device, Policy, Reach, Read, Usb, Use, Write
from obelisk.model.service import SERVICES
from obelisk.release.client import hashtree
from obelisk.sandbox import network, services
from obelisk.sandbox.data import Data
from obelisk.sandbox.desktop import NAMED, Session, is_wanted, named, session_of, sockets
from obelisk.sandbox.machine import Machine
from obelisk.sandbox.plan import (
    CREDENTIAL_BYTES,
    IDENTITY,
    Guard,
    Place,
    Plan,
    Top,
    bounds_of,
    compile_plan,
    data_directory,
    host_path,
    is_grouped,
)
from obelisk.store import StoredImage
from obelisk.store.images import MANIFEST
from obelisk.system import cgroups, confine, erofs, resolver, systemd_veritysetup, usb
from obelisk.system.blocks import BLOCK_BYTES, BlockDevice
from obelisk.system.bubblewrap import Room
from obelisk.system.confine import Owner
from obelisk.system.files import hash_file, locked, write_durably
from obelisk.system.mounts import unmount_all
from obelisk.system.namespace import remove_tree

_EVERY_TOP = frozenset(
    (
        "usr",
        "etc",
        "opt",
        "srv",
        "var",
        "proc",
        "dev",
        "sys",
        "run",
        "tmp",
        "home",
        "root",
        "boot",
        "mnt",
        "media",
        "lost+found",
        ".confine",
    )
)
# systemd's own range for users that exist as long as they run: no package and no person has an id there.
_FIRST_UID, _UIDS = 61184, 4336
_CREDENTIALS = Path("/etc/obelisk/credentials")
NODES = {
    Device.AUDIO: ("snd",),
    Device.CAMERA: ("video*", "media*"),
    Device.GPU: ("dri/renderD*",),  # the nodes of whole cards also set the screens' modes
    Device.KVM: ("kvm",),
}
"""Where the nodes of a class are, below /dev."""
# What Mesa wants to know of a graphics processor, to choose a driver. Source: libdrm, xf86drm.c.
_ABOUT = ("vendor", "device", "subsystem_vendor", "subsystem_device", "revision", "uevent")


@dataclass(frozen=True, slots=True)
class Directories:
    """Where running applications lie, where their data does, and where operators put their secrets, in a directory for each application.

    `given` is a directory of secrets for this one start, as systemd makes it for a service; it comes first. `services` has what is known of
    those of instances, `installed` the applications that are.
    """

    run: Path
    data: Path
    credentials: Path = _CREDENTIALS
    given: Path | None = None
    services: Path = SERVICES
    installed: Path = Path("/var/lib/obelisk/installed")

    @classmethod
    def of(cls, environment: Mapping[str, str], *, root: bool) -> "Directories":
        """Those of this user: $OBELISK_RUN and $OBELISK_DATA, or the usual ones; and $CREDENTIALS_DIRECTORY."""
        home = Path(environment.get("HOME") or "/")
        if root:
            run, data = Path("/run/obelisk/apps"), Path("/var/lib/obelisk/apps")
        else:
            run = Path(environment.get("XDG_RUNTIME_DIR") or home / ".cache") / "obelisk/apps"
            data = Path(environment.get("XDG_STATE_HOME") or home / ".local/state") / "obelisk/apps"
        own = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "obelisk/credentials"
        given = environment.get("CREDENTIALS_DIRECTORY")
        kept = Path(environment.get("OBELISK_DATA") or data)
        return cls(
            Path(environment.get("OBELISK_RUN") or run),
            kept,
            _CREDENTIALS if root else own,
            Path(given) if given else None,
            Path(environment.get("OBELISK_SERVICES") or SERVICES),
            kept.parent / "installed",
        )

    def credential(self, app: str, name: str) -> Path:
        """The file that holds a secret of an application, whether it is there or not."""
        if self.given is not None and (self.given / name).is_file():
            return self.given / name
        return self.credentials / app / name


@dataclass(frozen=True, slots=True)
class Ready:
    """An application that can be started: by its plan's program `start`, as often as wanted, without this program.

    `root` is where its checked root lies.
    """

    start: Path
    root: Path
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


def opened(directory: Path) -> StoredImage:
    """The image in a directory, as the builder's store has it; its root is checked when it is made ready.

    Raises:
        InputError: there is none.
        TrustError: a part is not what the manifest says.
    """
    try:
        manifest = parse_manifest((directory / MANIFEST).read_bytes())
    except OSError as error:
        raise InputError(
            f"{directory} has no image: {error.strerror}",
            code="source-missing",
            hint="name a directory with a manifest.json and its parts; or take it from a channel, by --channel",
        ) from error
    for part in manifest.parts:
        path = directory / part.file
        sound = path.is_file() and path.stat().st_size == part.size_bytes
        if not sound or (part.kind is not PartKind.ROOT and hash_file(path) != part.sha256):
            raise TrustError(f"{path} is not what the manifest says", code="part-damaged", hint="copy the image again, whole")
    return StoredImage(manifest.id, manifest, directory, 0)


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
    guard: Guard | None = None,
    in_use: bool = False,
    elsewhere: tuple[tuple[int, int], ...] = (),
) -> Ready:
    """Have everything in place, and the plan compiled. May be repeated, and by several processes at once.

    `command` takes the place of the image's own. The desktop session is the one that this process's variables name. `listener` is the
    socket of an observer (see `obelisk.sandbox.observer`). With `guard`, it is made ready as a service (see `Guard`). Data that is `in_use`
    by another version stays as it is; before this one starts, it is made ready again. `elsewhere` are pairs of a port and where at the
    loopback it is instead.

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
    owner = owner_of(name, machine.owner)
    data = directories.data / name
    if not in_use:
        _settle_data(app, policy, machine, data, owner)
    for grant in policy.of(Read) + policy.of(Write):
        if not host_path(grant.path, home).exists():
            raise StateError(f"{host_path(grant.path, home)} is granted and does not exist", code="grant-missing", hint="make it first")
    credentials = tuple((each, _checked(directories.credential(name, each), each, directories)) for each in sorted(app.credentials))
    session = session_of(os.environ, home) if is_wanted(policy) else Session()
    if machine.is_root:
        _check_admission(policy, session, owner)
        _refuse_closed(policy)
    nodes = nodes_of(policy)
    system, links = _about(policy)
    groups = tuple(sorted({Path(node).stat().st_gid for node in nodes} - {0})) if machine.is_root else ()
    group = group_of(name, place)
    ports = services.ports(policy, directories.services, directories.installed, is_root=machine.is_root)
    looked_up = (listener, credentials, guard, session, system, ports, elsewhere)
    key = digest([policy.to_json(), app.to_json(), repr(machine), str(data), str(home), list(nodes), repr(looked_up)])[:16]
    names = place / key / "resolv.conf" if policy.of(Reach) else Path("/etc/resolv.conf")
    if policy.of(Reach):
        names.parent.mkdir(parents=True, exist_ok=True)
        write_durably(names, network.RESOLVER.encode(), mode=0o644)
        write_durably(place / key / "resolver.py", Path(resolver.__file__).read_bytes(), mode=0o644)
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
        group=group,
        credentials=credentials,
        session=session,
        system=system,
        links=links,
        top=top_of(place / "root"),
        services=ports,
        elsewhere=elsewhere,
    )
    plan = compile_plan(app, policy, seat, machine, listener=listener, guard=guard)
    (seat.plan / "stage").mkdir(parents=True, exist_ok=True)
    if is_grouped(policy, machine, guard):
        cgroups.prepare(machine.groups.way, group, bounds_of(policy), machine.owner)
    files = {"confine": plan.confine, "network.nft": plan.rules.encode(), IDENTITY: plan.identity, **dict(plan.beside)}
    files |= {"launch": plan.launch, "start": plan.start}
    for file, content in files.items():
        if not (seat.plan / file).exists() or (seat.plan / file).read_bytes() != content:
            write_durably(seat.plan / file, content, mode=0o755)
    if is_wanted(policy):
        write_durably(seat.plan / NAMED, named(os.environ).encode())
    return Ready(seat.plan / "start", seat.root, plan)


def clear(image: StoredImage, directories: Directories) -> bool:
    """Take away what `make_ready` has put in place, but the data; whether there was something. Running applications go on."""
    place = directories.run / image.id[:32]
    if not place.exists():
        return False
    with locked(place / "lock"):
        unmount_all(place / "root")
        systemd_veritysetup.detach(_mapping(image, place))
        remove_tree(place)
        owner = confine.myself()
        cgroups.remove(cgroups.here(owner).way, group_of(image.manifest.name, place), owner)
    return True


def group_of(name: str, place: Path) -> str:
    """The control group of what lies at `place`: the same for each start, and another for a trial of the same image."""
    return f"{name}-{zlib.crc32(bytes(place)):08x}"


def _settle_root(image: StoredImage, place: Path, machine: Machine, room: Callable[[], Room]) -> None:
    file, root, note = image.part_path(PartKind.ROOT), place / "root", place / "checked"
    status = file.stat()
    stamp = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
    in_place = root.is_mount() if machine.is_root else root.exists()
    if in_place and note.exists() and note.read_text() == stamp:
        return
    unmount_all(root)
    systemd_veritysetup.detach(_mapping(image, place))
    remove_tree(root)
    note.unlink(missing_ok=True)
    check_root(image)
    if machine.is_root:
        root.mkdir()
        erofs.mount(_verified(image, place, file) if machine.verity else file, root)
    else:
        erofs.extract(room(), file, root)
    write_durably(note, stamp.encode())


def _verified(image: StoredImage, place: Path, file: Path) -> Path:
    """A device that reads the root, and whose blocks the kernel compares with the hash tree each time."""
    tree = image.part_path(PartKind.VERITY)
    return systemd_veritysetup.attach(_mapping(image, place), file, tree, image.manifest.root_hash)


def _mapping(image: StoredImage, place: Path) -> str:
    """The name of that device: another for a trial of the same image."""
    return f"obelisk-{image.id[:16]}-{zlib.crc32(bytes(place)):08x}"


def check_root(image: StoredImage) -> None:
    """Read every block of the root and compare it with its hash tree, and that with the root hash.

    Raises:
        TrustError: a block is not what the root hash promises.
    """
    tree = hashtree.parse(image.part_path(PartKind.VERITY).read_bytes(), image.manifest.root_hash)
    with BlockDevice(image.part_path(PartKind.ROOT)) as root:
        whole = root.size_bytes == tree.data_blocks * BLOCK_BYTES
        if not whole or hashtree.find_wrong(root, tree, on_bytes=lambda _count: None):
            raise TrustError(
                f"the root of {image.manifest.label} is not what the root hash {image.manifest.root_hash[:16]}… promises",
                code="root-damaged",
                hint="run `obelisk verify --repair`, then build or fetch the image again",
            )


def top_of(root: Path) -> Top:
    """What is at the top of an image's root besides what every one has, and what is the kernel's or memory."""
    found = sorted(path for path in root.iterdir() if path.name not in _EVERY_TOP)
    links = tuple((path.name, str(path.readlink())) for path in found if path.is_symlink())
    plain = [path for path in found if not path.is_symlink()]
    home = root / "home"
    if home.is_dir() and {*home.iterdir()} - {home / "app"}:
        plain.append(home)
    return Top(tuple(path.name for path in plain if path.is_dir()), tuple(path.name for path in plain if path.is_file()), links)


def owner_of(name: str, launcher: Owner) -> Owner:
    """Whose rights an application has: root launches each as a user of its own, anybody else as themselves."""
    if launcher.uid != 0:
        return launcher
    number = _FIRST_UID + zlib.crc32(name.encode()) % _UIDS
    return Owner(number, number)


def _checked(file: Path, name: str, directories: Directories) -> Path:
    """A secret's file, of which nobody else may read."""
    if not file.is_file():
        raise StateError(
            f"the credential {name} is not there: {file}", code="credential-missing", hint="put it into that file, with the mode 0600"
        )
    status = file.stat()
    if status.st_size > CREDENTIAL_BYTES:
        raise StateError(f"{file} is larger than a credential can be, {CREDENTIAL_BYTES} bytes", code="credential-size", hint="shorten it")
    shared = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in {0, os.geteuid()}
    if shared and file.parent != directories.given:  # what systemd has made for a service, it looks after by itself
        raise StateError(
            f"{file} is a secret, and others may read or change it", code="credential-open", hint=f"chmod 0600 {file}, and let it be yours"
        )
    return file


def _settle_data(app: Application, policy: Policy, machine: Machine, data: Path, owner: Owner) -> None:
    if machine.is_root:
        limit = policy.limits.data_bytes
        Data(data).bound(None if limit == NO_LIMIT or machine.volumes else limit)
    for path in app.data:
        _make_data(data_directory(data, path), owner)


def _make_data(directory: Path, owner: Owner) -> None:
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(0o700)
        os.chown(directory, owner.uid, owner.gid)


def _check_admission(policy: Policy, session: Session, owner: Owner) -> None:
    """Root starts an application as a user whom the session may not let in, and that would then look like a fault of the application's."""
    closed = [socket for socket in sockets(policy, session) if not Path(socket).stat().st_mode & stat.S_IWOTH]
    closed += ["what a person chooses by a portal"] if policy.of(Ask) else []
    if closed:
        raise StateError(
            f"{closed[0]} is not open to user {owner.uid}, as whom root starts the application",
            code="session-closed",
            hint="start it as the user whose session it is",
        )


def nodes_of(policy: Policy) -> tuple[str, ...]:
    """The device nodes of this machine that are granted."""
    wanted = (pattern for power in policy.of(Use) for pattern in NODES[power.device])
    plugged = (node for power in policy.of(Usb) for node in usb.nodes(power.vendor, power.product))
    return tuple(sorted({*(str(path) for pattern in wanted for path in Path("/dev").glob(pattern)), *plugged}))


def _refuse_closed(policy: Policy) -> None:
    """Root starts an application as another user, who would be let in by the group of root alone. That is nobody's but root's.

    Raises:
        StateError: a USB device is root's.
    """
    for power in policy.of(Usb):
        for node in usb.nodes(power.vendor, power.product):
            status = Path(node).stat()
            if status.st_gid == 0 and not status.st_mode & stat.S_IWOTH:
                rule = f'SUBSYSTEM=="usb", ATTR{{idVendor}}=="{power.vendor}", ATTR{{idProduct}}=="{power.product}", GROUP="plugdev"'
                raise StateError(f"{node}, which is {power}, belongs to root alone", code="device-closed", hint=f"a rule for udev: {rule}")


def _about(policy: Policy) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What of /sys tells of the graphics processors that are granted, and the links that lead there: (target, place)."""
    found: list[Path] = []
    links: list[tuple[str, str]] = []
    for node in nodes_of(policy) if policy.has(Use(Device.GPU)) else ():
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
    """The class of devices to which a path leads, if it is below /dev and of one that can be granted."""
    if not node.startswith("/dev/"):
        return None
    inside = PurePath(node).relative_to("/dev")
    for device, patterns in NODES.items():
        for pattern in map(PurePath, patterns):
            depth = len(pattern.parts)
            # Below a directory of nodes, or the directory in which they are looked for.
            if PurePath(*inside.parts[:depth]).match(str(pattern)) or (depth > 1 and inside == pattern.parent):
                return device
    return None


def device_at(node: str) -> Use | Usb | None:
    """The power to use what a path leads to, if that is a device which can be granted."""
    device = class_of(node)
    if device is not None:
        return Use(device)
    plugged = usb.numbers(node)
    return None if plugged is None else Usb(*plugged)


def home_of_user() -> Path:
    """The home directory of whoever runs this."""
    return Path(pwd.getpwuid(os.geteuid()).pw_dir)
