"""Keys and metadata over time: signed anew before it expires, whose proofs count, and one key in the place of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api.metadata import Root

from obelisk.errors import InputError, StateError
from obelisk.events import Note, task
from obelisk.model.release import Testers
from obelisk.release import trust
from obelisk.release.keys import ONLINE, KeyFile, Role, public_key
from obelisk.release.proofs import counts
from obelisk.release.publisher import Publisher
from obelisk.release.repository import Repository, sweep

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The roles that have been signed anew, and until when each holds."""

    roles: tuple[Role, ...]
    expiry: tuple[tuple[Role, datetime], ...]


def refresh(publisher: Publisher, lifetimes: Mapping[Role, timedelta], *, everything: bool = False) -> Refreshed:
    """Sign anew what expires: the timestamp always, of the others those with less than half of their lifetime left, or `everything`.

    Roles in `lifetimes` are signed anew for that long. Keys that are not here are asked for only where `everything` or `lifetimes` does.

    Raises:
        StateError: the key of the timestamp, or one that is asked for, is not here.
        TrustError: the repository is not to be trusted.
    """
    with publisher.changing() as there:
        now = publisher.act.at
        trusted = trust.with_lifetimes(there.trusted, lifetimes)
        half = {role for role in Role if trusted.signed(role).expires - now < trusted.lifetime(role) / 2}
        here = {role for role in Role if publisher.keyring.present(role, trusted.key_ids(role)) >= trusted.threshold(role)}
        asked = set(lifetimes) | (set(ONLINE) if everything else set())
        roles = {Role.TIMESTAMP} | asked | (half & here) | ({Role.ROOT} & here if everything else set())
        for role in sorted(half - here - asked - {Role.TIMESTAMP}):
            publisher.sink(Note(f"{role} expires on {trusted.signed(role).expires:%Y-%m-%d}, and its key is not here"))
        with task(publisher.sink, "refresh", "Signing anew"):
            files: trust.Files = ()
            if Role.ROOT in roles:
                trusted, files = trust.reroot(trusted, lambda _root: None, publisher.keyring.signers, now)
            if Role.TARGETS in roles:
                files += trust.change(trusted, None, publisher.keyring.signers, now)
            elif Role.SNAPSHOT in roles:
                files += trust.renew(trusted, publisher.keyring.signers, now)
            else:
                files += trust.tick(trusted, publisher.keyring.signers, now)
            after = publisher.put({}, files)
            sweep(publisher.shelf, after.trusted, publisher.delivery, now)
        if Role.TARGETS in roles:
            roles |= {Role.SNAPSHOT}
        return Refreshed(tuple(role for role in Role if role in roles), tuple((role, after.trusted.signed(role).expires) for role in Role))


def set_testers(publisher: Publisher, *, add: Sequence[str] = (), drop: Sequence["SSlibKey"] = (), force: bool = False) -> Testers:
    """Change whose proofs count: public keys as PEM that come in, and keys that go.

    Raises:
        StateError: without `force`, when a release that hosts are to run would be left without a proof that counts; or keys are missing.
        TrustError: the repository is not to be trusted.
    """
    with publisher.changing() as there:
        gone = {key.keyid for key in drop}
        stay = [pem for pem in there.contents.testers.keys if public_key(pem.encode(), "testers.json").keyid not in gone]
        testers = Testers(tuple(dict.fromkeys((*stay, *add))))
        unproven = _unproven(there, testers)
        if unproven and not force:
            raise StateError(
                f"without that tester nothing proves {', '.join(unproven)}",
                code="tester-needed",
                hint="test and release them again with another tester's key, which adds a proof; or --force, and hosts refuse them",
            )
        with task(publisher.sink, "testers", "Whose proofs count"):
            publisher.commit(there, replace(there.contents, testers=testers))
        return testers


def _unproven(there: Repository, testers: Testers) -> list[str]:
    unproven = []
    for channel in there.contents.channels:
        current = there.contents.release(channel.current.image) if channel.current else None
        if current is not None:
            envelopes = [there.find(file).read_bytes() for file in current.proofs]
            app = there.manifest(current).is_application
            if not any(counts(testers, envelope, current.image, application=app) for envelope in envelopes):
                unproven.append(f"{current.name} {current.version} in {channel.channel}")
    return unproven


@dataclass(frozen=True, slots=True)
class Rotated:
    """The keys that count for a role now, the ids of those that no longer do, and the files of what was made."""

    key_ids: tuple[str, ...]
    dropped: tuple[str, ...]
    made: tuple[KeyFile, ...]


def rotate(publisher: Publisher, role: Role, *, passphrase: bytes = b"") -> Rotated:
    """Put a new key in the place of the one of targets, snapshot or timestamp, which need not be here. Needs root keys.

    The new key is the newest file of the role, where the repository does not know that one yet: of another repository's rotation, or of
    one that was cut; else it is made. Files of old keys stay, for other repositories.

    Raises:
        StateError: not enough root keys are here.
        TrustError: the repository is not to be trusted.
    """
    with publisher.changing() as there, task(publisher.sink, "rotate", f"A new key for {role}"):
        known = publisher.keyring.publics(role)
        counted = there.trusted.key_ids(role)
        made = (publisher.keyring.new(role, passphrase=passphrase),) if not known or counted == (known[0].keyid,) else ()
        new = made[0].public if made else known[0]
        signers, now = publisher.keyring.signers, publisher.act.at
        trusted = there.trusted
        files: trust.Files = ()
        if new.keyid not in counted:
            trusted, files = trust.reroot(trusted, trust.add_keys(role, [new]), signers, now)
        match role:
            case Role.TARGETS:
                files += trust.change(trusted, None, signers, now)
            case Role.SNAPSHOT:
                files += trust.renew(trusted, signers, now)
            case _:
                files += trust.tick(trusted, signers, now)
        between = publisher.put({}, files)
        old = tuple(key for key in between.trusted.key_ids(role) if key != new.keyid)
        publisher.keyring.drop(old)
        _, files = trust.reroot(between.trusted, trust.drop_keys(role, old), signers, now)
        publisher.put({}, files)
        return Rotated((new.keyid,), old, made)


@dataclass(frozen=True, slots=True)
class RootWish:
    """How the root is to change: which keys go (beginnings of ids; none: all), where new ones are made, how many have to sign."""

    drop: tuple[str, ...] = ()
    place: Path | None = None
    threshold: int | None = None


def rotate_root(publisher: Publisher, wish: RootWish, *, passphrase: bytes = b"") -> Rotated:
    """Put new root keys in the place of some or all, which need not be here as long as enough of the old ones are.

    Raises:
        InputError: a key to be dropped is none of the root's, or the threshold cannot be met.
        StateError: fewer of the old root keys are here than have to sign.
        TrustError: the repository is not to be trusted.
    """
    with publisher.changing() as there, task(publisher.sink, "rotate", "New root keys"):
        counted = there.trusted.key_ids(Role.ROOT)
        dropped = tuple(key for key in counted if not wish.drop or any(key.startswith(begin) for begin in wish.drop))
        if not dropped or any(not any(key.startswith(begin) for key in counted) for begin in wish.drop):
            raise InputError(
                f"{', '.join(wish.drop)} is no key of this root",
                code="key-unknown",
                hint=f"it has: {', '.join(key[:12] for key in counted)}",
            )
        threshold = wish.threshold or there.trusted.threshold(Role.ROOT)
        if not 1 <= threshold <= len(counted):
            raise InputError(f"{threshold} of {len(counted)} root keys cannot sign together", code="keys-threshold", hint="see --threshold")
        signers = publisher.keyring.signers
        if publisher.keyring.present(Role.ROOT, counted) < there.trusted.threshold(Role.ROOT):
            trust.reroot(there.trusted, lambda _root: None, signers, publisher.act.at)  # says which keys are missing, before any is made
        fresh = [key for key in publisher.keyring.publics(Role.ROOT) if key.keyid not in counted][: len(dropped)]
        made = [publisher.keyring.new(Role.ROOT, wish.place, passphrase=passphrase) for _ in range(len(dropped) - len(fresh))]
        fresh += [each.public for each in made]

        def edit(root: Root) -> None:
            trust.add_keys(Role.ROOT, fresh)(root)
            trust.drop_keys(Role.ROOT, dropped)(root)
            root.roles[Role.ROOT.value].threshold = threshold

        _, files = trust.reroot(there.trusted, edit, signers, publisher.act.at)
        publisher.keyring.drop(dropped)
        after = publisher.put({}, files)
        return Rotated(after.trusted.key_ids(Role.ROOT), dropped, tuple(made))
