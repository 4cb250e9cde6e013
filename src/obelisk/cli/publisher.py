"""Who publishes what and where, as the command line and the environment say."""

import getpass
import hashlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

from obelisk.cli.places import key_directory, open_store
from obelisk.cli.terminal import reporting
from obelisk.errors import InputError, StateError
from obelisk.events import Note
from obelisk.model.publication import Act
from obelisk.model.release import Testers
from obelisk.release.delivery import Blocks, Delivery
from obelisk.release.keys import Keyring, Role, passphrase_from, public_key
from obelisk.release.mirror import Mirror, is_elsewhere
from obelisk.release.publisher import Publisher, warnings
from obelisk.release.repository import Repository
from obelisk.release.shelf import Shelf
from obelisk.release.sysupdate import kept
from obelisk.store import Store, StoredImage

_TIME = re.compile(r"([0-9]+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def repository_at(place: str, *, json_wanted: bool) -> Repository:
    """The repository in a directory, to be looked at. Warns of what expires.

    Raises:
        InputError: there is none.
        TrustError: it is not to be trusted.
    """
    shelf = Shelf(Path(place))
    if shelf.metadata("timestamp.json") is None:
        raise InputError(f"{place} is no repository", code="repository-missing", hint="`obelisk release IMAGE --to REPO` makes one")
    there = Repository.open(shelf)
    with reporting(json_wanted=json_wanted) as sink:
        for line in warnings(there.trusted, datetime.now(UTC)):
            sink(Note(line))
    return there


def delivery() -> Delivery:
    """How blocks travel."""
    return Blocks()


@contextmanager
def publishing(arguments: Namespace, store: Store) -> Iterator[Publisher]:
    """Who this is, with the repository that was named, and a place for unfinished things."""
    act = Act(_who(arguments), datetime.now(UTC), getattr(arguments, "why", ""))

    def stored(image: str) -> StoredImage | None:
        return next((each for each in store.images() if each.id == image), None)

    place, mirror = _opened(arguments, store)
    with reporting(json_wanted=arguments.json) as sink, store.workspace() as work:
        publisher = Publisher(Shelf(place), keyring_of(arguments), delivery(), act, work, stored, sink)
        with mirror.changing(sink) if mirror else nullcontext():
            yield publisher
            if kept(publisher.shelf.root):
                # Seldom wanted, and it brings the tools tree along.
                from obelisk.cli.sysupdate import keep

                keep(publisher, store)


def _opened(arguments: Namespace, store: Store) -> tuple[Path, Mirror | None]:
    """The directory of the repository, and what it is a working copy of."""
    named = _named(arguments)
    if not is_elsewhere(named) or Path(named).exists():
        return Path(named).absolute(), None
    place = store.root / "repositories" / hashlib.sha256(named.encode()).hexdigest()[:16]
    return place, Mirror(named, place)


def looked_at(arguments: Namespace) -> Repository:
    """The repository that was named, to be looked at. Warns of what expires."""
    return repository_at(str(place_of(arguments)), json_wanted=arguments.json)


def place_of(arguments: Namespace) -> Path:
    """The directory of the repository that was named; of one on another machine its working copy, brought up to date.

    Raises:
        InputError: none is named.
        TransportError: the other machine cannot be reached.
    """
    place, mirror = _opened(arguments, open_store(arguments))
    if mirror is not None:
        with reporting(json_wanted=arguments.json) as sink:
            mirror.update(sink)
    return place


def _named(arguments: Namespace) -> str:
    named = arguments.repo or os.environ.get("OBELISK_REPO")
    if named:
        return str(named)
    if arguments.command == "release" or Path("repo/metadata").is_dir():
        return "repo"
    raise InputError("no repository is named", code="repository-unnamed", hint="name its directory, or set $OBELISK_REPO")


def keyring_of(arguments: Namespace) -> Keyring:
    """The release keys of this user, and the root keys where they were said to be.

    Raises:
        InputError: there is no such place.
    """

    def ask(path: Path) -> bytes:
        if not sys.stdin.isatty():
            raise StateError(f"{path} has a passphrase", code="key-locked", hint="set $OBELISK_PASSPHRASE_FILE or $OBELISK_PASSPHRASE")
        return getpass.getpass(f"passphrase of {path}: ").encode()

    roots = tuple(Path(place).absolute() for place in getattr(arguments, "root", ()))
    for place in roots:
        if not place.is_dir():
            raise InputError(f"{place} is no directory", code="keys-root", hint="mount the stick, or make the directory")
    return Keyring(key_directory() / "release", roots, passphrase_from(os.environ, ask))


def new_passphrase() -> bytes:
    """A passphrase for new keys, asked for twice.

    Raises:
        InputError: the two differ, or there is none.
    """
    if not sys.stdin.isatty():
        return passphrase_from(os.environ, lambda _path: _refuse_empty(b""))(Path())
    first = _refuse_empty(getpass.getpass("new passphrase: ").encode())
    if first != getpass.getpass("once more: ").encode():
        raise InputError("the two passphrases differ", code="passphrase", hint="try again")
    return first


def _refuse_empty(passphrase: bytes) -> bytes:
    if not passphrase:
        raise InputError("there is no passphrase", code="passphrase", hint="set $OBELISK_PASSPHRASE_FILE, or use a terminal")
    return passphrase


def own_tester() -> Testers:
    """The user's attestation key, whose proofs count in a repository that this user begins."""
    return Testers((read_key(key_directory() / "attestation.pub"),))


def read_key(path: Path) -> str:
    """A public key as PEM.

    Raises:
        InputError: the file cannot be read, or is none.
    """
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", code="key-missing", hint="`obelisk keys` makes your keys") from error
    public_key(pem, str(path))
    return pem.decode()


def _who(arguments: Namespace) -> str:
    named = getattr(arguments, "by", None) or os.environ.get("OBELISK_BY")
    if named:
        return str(named)
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise InputError("who does this is not known", code="by-unknown", hint="say so by --by, or set $OBELISK_BY") from error


def lifetimes(arguments: Namespace) -> dict[Role, timedelta]:
    """For how long metadata is to hold, by --expire.

    Raises:
        InputError: a role or a time is none.
    """
    found = {}
    for text in arguments.expire:
        role, _, time = text.partition("=")
        if role not in {each.value for each in Role}:
            raise InputError(
                f"{text!r} is no role and time", code="expire", hint="such as timestamp=7d; the roles: root, targets, snapshot, timestamp"
            )
        found[Role(role)] = duration(time, "--expire")
    return found


def duration(text: str, option: str) -> timedelta:
    """A time such as 90d.

    Raises:
        InputError: it is none; `option` is named.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise InputError(f"{option}: {text!r} is no time", code="time", hint="a number and s, m, h, d or w, such as 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
