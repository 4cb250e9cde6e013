"""What TUF says about a repository: read and checked, and its next version signed. Values only; nothing is written here.

    metadata/<n>.root.json         whose keys count; each is signed by the keys of the one before as well
            /<n>.targets.json      every document, by digest
            /<n>.snapshot.json     the version of targets
            /timestamp.json        the version of snapshot; replacing it is what makes a change visible

How long a role's metadata holds is part of it (`x-obelisk-lifetime-s`), so that it is renewed for the same time.

A key is replaced in two steps, so that readers find a signature that counts whenever they look: root n+1 lists the old key and the new
one; metadata is signed by the new key, and by the old one where it is here; root n+2 lists the new key alone.

Source: the TUF specification 1.0.34, sections 4 (formats), 5.3 (roots), 6.1 (key management).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from securesystemslib.signer import Signature
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from obelisk.errors import StateError, TrustError
from obelisk.release.keys import ONLINE, Role

if TYPE_CHECKING:
    from securesystemslib.signer import Signer, SSlibKey

LIFETIMES: Mapping[Role, timedelta] = {
    Role.ROOT: timedelta(days=365),
    Role.TARGETS: timedelta(days=90),
    Role.SNAPSHOT: timedelta(days=14),
    Role.TIMESTAMP: timedelta(days=3),
}
_LIFETIME = "x-obelisk-lifetime-s"
_IDENTITY = "x-obelisk-repository"
_WARN_AT = 4  # when less than a quarter of the lifetime is left

Read = Callable[[str], bytes | None]
"""The bytes of a file of metadata/ by its name, or None."""

Files = tuple[tuple[str, bytes], ...]
"""Files of metadata/ in the order in which they have to be written."""

_T = TypeVar("_T", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class Trusted:
    """The newest metadata of a repository, each found right by what vouches for it."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def signed(self, role: Role) -> Root | Targets | Snapshot | Timestamp:
        """What a role says."""
        metadata: Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp] = getattr(self, role.value)
        return metadata.signed

    def key_ids(self, role: Role) -> tuple[str, ...]:
        """The keys that may sign for a role."""
        return tuple(self.root.signed.get_delegated_role(role.value).keyids)

    def threshold(self, role: Role) -> int:
        """How many of them have to."""
        threshold: int = self.root.signed.get_delegated_role(role.value).threshold
        return threshold

    def lifetime(self, role: Role) -> timedelta:
        """For how long a role's metadata is signed."""
        seconds = self.signed(role).unrecognized_fields.get(_LIFETIME)
        return timedelta(seconds=seconds) if isinstance(seconds, int) and seconds > 0 else LIFETIMES[role]

    def expiring(self, now: datetime) -> tuple[tuple[Role, datetime], ...]:
        """The roles whose metadata has expired or soon will, and when."""
        expiry = [(role, self.signed(role).expires) for role in Role]
        return tuple((role, at) for role, at in expiry if at - now < self.lifetime(role) / _WARN_AT)


def load(read: Read) -> Trusted:
    """The newest metadata that `read` finds. Expiry is not looked at: see `Trusted.expiring`.

    Raises:
        StateError: there is no repository.
        TrustError: a file is missing or damaged, or its signatures are not those that it must have.
    """
    first = read("1.root.json")
    if first is None:
        raise StateError("there is no repository", code="repository-missing", hint="`obelisk release IMAGE --to REPO` makes one")
    root = _parse(first, Root, "1.root.json")
    _verify(root, root, Role.ROOT, "1.root.json")
    while (data := read(name := f"{root.signed.version + 1}.root.json")) is not None:
        following = _parse(data, Root, name)
        _verify(root, following, Role.ROOT, name)
        _verify(following, following, Role.ROOT, name)
        if following.signed.version != root.signed.version + 1:
            raise _damaged(name, "it has another version than its name")
        root = following
    timestamp = _parse(_must(read, "timestamp.json"), Timestamp, "timestamp.json")
    _verify(root, timestamp, Role.TIMESTAMP, "timestamp.json")
    name = f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
    snapshot = _parse(_vouched(read, name, timestamp.signed.snapshot_meta), Snapshot, name)
    _verify(root, snapshot, Role.SNAPSHOT, name)
    if snapshot.signed.version != timestamp.signed.snapshot_meta.version:
        raise _damaged(name, "it has another version than its name")
    targets = targets_of(read, snapshot)
    _verify(root, targets, Role.TARGETS, f"{targets.signed.version}.targets.json")
    return Trusted(root, targets, snapshot, timestamp)


def targets_of(read: Read, snapshot: Metadata[Snapshot]) -> Metadata[Targets]:
    """The targets that a snapshot names, by its digest.

    Raises:
        TrustError: they are missing or damaged.
    """
    meta = snapshot.signed.meta.get("targets.json")
    if meta is None:
        raise _damaged(f"{snapshot.signed.version}.snapshot.json", "it names no targets")
    name = f"{meta.version}.targets.json"
    targets = _parse(_vouched(read, name, meta), Targets, name)
    if targets.signed.version != meta.version:
        raise _damaged(name, "it has another version than its name")
    return targets


def snapshot_of(data: bytes, name: str) -> Metadata[Snapshot]:
    """An older snapshot, whose signature no longer matters.

    Raises:
        TrustError: it is damaged.
    """
    return _parse(data, Snapshot, name)


Signers = Callable[[Role, Sequence[str]], tuple["Signer", ...]]
"""Those of the keys with these ids that are at hand."""


def found(keys: Mapping[Role, Sequence["SSlibKey"]], threshold: int, lifetime: timedelta, now: datetime, *, identity: str) -> Root:
    """The first root of a repository, unsigned: one key of each role, and so many of the root's that have to sign together.

    `identity` is what no other repository of these keys has.

    Raises:
        StateError: there are fewer root keys than the threshold, or a role has none.
    """
    if not 1 <= threshold <= len(keys[Role.ROOT]) or not all(keys[role] for role in ONLINE):
        raise StateError(
            f"a repository needs {threshold} root keys and one of targets, snapshot and timestamp each",
            code="keys-missing",
            hint="make them by `obelisk keys init`; name the directory of the root keys by --root",
        )
    root = Root(expires=_until(now, lifetime), consistent_snapshot=True)
    root.unrecognized_fields |= {_LIFETIME: int(lifetime.total_seconds()), _IDENTITY: identity}
    for role, each in keys.items():
        for key in each:
            root.add_key(key, role.value)
    root.roles[Role.ROOT.value].threshold = threshold
    return root


def first(root: Root, documents: Mapping[str, bytes], lifetimes: Mapping[Role, timedelta], signers: Signers, now: datetime) -> Files:
    """The first metadata of a repository.

    Raises:
        StateError: not enough keys are at hand.
    """
    signed_root = Metadata(root)
    _sign(signed_root, signed_root, Role.ROOT, signers)
    targets, snapshot, timestamp = Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp())
    for metadata, role in ((targets, Role.TARGETS), (snapshot, Role.SNAPSHOT), (timestamp, Role.TIMESTAMP)):
        metadata.signed.version = 0
        metadata.signed.unrecognized_fields[_LIFETIME] = int(lifetimes[role].total_seconds())
    empty = Trusted(signed_root, targets, snapshot, timestamp)
    return ((f"{root.version}.root.json", _bytes(signed_root)), *change(empty, documents, signers, now))


def change(trusted: Trusted, documents: Mapping[str, bytes] | None, signers: Signers, now: datetime) -> Files:
    """The metadata that says what `documents` say; None: what is said already, signed anew for its whole lifetime.

    Raises:
        StateError: not enough keys are at hand.
    """
    targets = _next(trusted.targets, trusted.lifetime(Role.TARGETS), now)
    if documents is not None:
        targets.signed.targets = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in documents.items()}
    _sign(trusted.root, targets, Role.TARGETS, signers)
    data = _bytes(targets)
    return ((f"{targets.signed.version}.targets.json", data), *renew(trusted, signers, now, targets=(targets.signed.version, data)))


def renew(trusted: Trusted, signers: Signers, now: datetime, *, targets: tuple[int, bytes] | None = None) -> Files:
    """Snapshot and timestamp for these targets (version and bytes; None: the same as now).

    Raises:
        StateError: not enough keys are at hand.
    """
    snapshot = _next(trusted.snapshot, trusted.lifetime(Role.SNAPSHOT), now)
    if targets is not None:
        snapshot.signed.meta["targets.json"] = MetaFile.from_data(targets[0], targets[1], ["sha256"])
    _sign(trusted.root, snapshot, Role.SNAPSHOT, signers)
    data = _bytes(snapshot)
    return ((f"{snapshot.signed.version}.snapshot.json", data), *tick(trusted, signers, now, snapshot=(snapshot.signed.version, data)))


def tick(trusted: Trusted, signers: Signers, now: datetime, *, snapshot: tuple[int, bytes] | None = None) -> Files:
    """A timestamp for this snapshot (version and bytes; None: the same as now).

    Raises:
        StateError: not enough keys are at hand.
    """
    timestamp = _next(trusted.timestamp, trusted.lifetime(Role.TIMESTAMP), now)
    if snapshot is not None:
        timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot[0], snapshot[1], ["sha256"])
    _sign(trusted.root, timestamp, Role.TIMESTAMP, signers)
    return (("timestamp.json", _bytes(timestamp)),)


def reroot(trusted: Trusted, edit: Callable[[Root], None], signers: Signers, now: datetime) -> tuple[Trusted, Files]:
    """The next root, as `edit` changes it, signed by as many keys as the old one and the new one ask for.

    Raises:
        StateError: not enough keys are at hand.
    """
    root = _next(trusted.root, trusted.lifetime(Role.ROOT), now)
    edit(root.signed)
    _sign(trusted.root, root, Role.ROOT, signers)
    _sign(root, root, Role.ROOT, signers, more=True)
    return replace(trusted, root=root), ((f"{root.signed.version}.root.json", _bytes(root)),)


def with_lifetimes(trusted: Trusted, lifetimes: Mapping[Role, timedelta]) -> Trusted:
    """The same metadata, whose next versions hold for so long."""
    changed = deepcopy(trusted)
    for role, lifetime in lifetimes.items():
        changed.signed(role).unrecognized_fields[_LIFETIME] = int(lifetime.total_seconds())
    return changed


def add_keys(role: Role, keys: Iterable["SSlibKey"]) -> Callable[[Root], None]:
    """The edit of a root by which these keys count for a role as well."""
    new = tuple(keys)

    def edit(root: Root) -> None:
        for key in new:
            root.add_key(key, role.value)

    return edit


def drop_keys(role: Role, key_ids: Iterable[str]) -> Callable[[Root], None]:
    """The edit of a root by which these keys no longer count for a role."""
    old = tuple(key_ids)

    def edit(root: Root) -> None:
        for key_id in old:
            root.revoke_key(key_id, role.value)

    return edit


def _until(now: datetime, lifetime: timedelta) -> datetime:
    return (now.astimezone(UTC) + lifetime).replace(microsecond=0)


def _next(metadata: "Metadata[_T]", lifetime: timedelta, now: datetime) -> "Metadata[_T]":
    following = deepcopy(metadata)
    following.signatures.clear()
    following.signed.version += 1
    following.signed.expires = _until(now, lifetime)
    return following


def _sign(root: Metadata[Root], metadata: "Metadata[_T]", role: Role, signers: Signers, *, more: bool = False) -> None:
    wanted = root.signed.get_delegated_role(role.value)
    for signer in signers(role, tuple(wanted.keyids)):
        if not (more and signer.public_key.keyid in metadata.signatures):
            _sign_by(metadata, role, signer)
    try:
        root.signed.verify_delegate(role.value, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        here = len([key for key in wanted.keyids if isinstance(metadata.signatures.get(key), Signature)])
        listed = ", ".join(key[:12] for key in wanted.keyids)
        raise StateError(
            f"{role} has to be signed by {wanted.threshold} of the keys {listed}; {here} of them are here",
            code="keys-missing",
            hint="name the directory of the root keys by --root"
            if role is Role.ROOT
            else "use the key directory that has them ($OBELISK_KEYS)",
        ) from error


def _sign_by(metadata: "Metadata[_T]", role: Role, signer: "Signer") -> None:
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        cause = error.__cause__ or error
        raise StateError(
            f"the key {signer.public_key.keyid[:12]} of {role} does not sign: {str(cause) or type(cause).__name__}",
            code="key-locked",
            hint="is its token there, $PYKCS11LIB its module, and the PIN right?",
        ) from error


def _bytes(metadata: "Metadata[_T]") -> bytes:
    return metadata.to_bytes(JSONSerializer(compact=True))


def _parse(data: bytes, kind: type[_T], name: str) -> "Metadata[_T]":
    try:
        metadata: Metadata[_T] = Metadata.from_bytes(data)
    except DeserializationError as error:
        raise _damaged(name, str(error)) from error
    if not isinstance(metadata.signed, kind):
        raise _damaged(name, f"it is metadata of {metadata.signed.type}")
    return metadata


def _verify(root: Metadata[Root], metadata: "Metadata[_T]", role: Role, name: str) -> None:
    try:
        root.signed.verify_delegate(role.value, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise _damaged(name, "it is not signed by the keys that root asks for") from error


def _vouched(read: Read, name: str, meta: MetaFile) -> bytes:
    data = _must(read, name)
    try:
        meta.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise _damaged(name, "it is not the file that was signed for") from error
    return data


def _must(read: Read, name: str) -> bytes:
    data = read(name)
    if data is None:
        raise _damaged(name, "it is missing")
    return data


def _damaged(name: str, why: str) -> TrustError:
    return TrustError(
        f"metadata/{name} is not to be trusted: {why}",
        code="metadata-damaged",
        hint="restore it from a copy of the repository; `obelisk repo verify` says what else is wrong",
    )
