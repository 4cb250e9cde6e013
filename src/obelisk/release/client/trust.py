"""What a repository says, once it is known that its owners say it: TUF, by python-tuf's own client.

Trust begins with the root metadata that is sealed in the image. What was learned since is kept, so that nobody can show a host an older
repository than it has seen. A mirror that is stale or lies is passed over like one that is down.

    trust/root.json, root_history/, timestamp.json, snapshot.json, targets.json   TUF's metadata, as far as it was verified
    trust/timestamp.etag    by which a mirror says that its timestamp is still this one
    trust/channel.json      see `obelisk.release.client.seen`

Source: The Update Framework, specification 1.0, section 5.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.ngclient import FetcherInterface, Updater

from obelisk.errors import TrustError
from obelisk.model.canonical import canonical
from obelisk.model.release import TESTERS_TARGET, Channel, Release, Testers, channel_target
from obelisk.release.client import keys, seen
from obelisk.release.client.remote import Mirror, Mirrors, MissingError, WebMirror
from obelisk.system.files import sync_directory, sync_file, write_durably, written_by_name

_LARGEST_DOCUMENT_BYTES = 16 << 20
_METADATA = "metadata/"
_ETAG = "timestamp.etag"
_TELL = "tell whoever runs the repository"
_ROLES = ("root", "timestamp", "snapshot", "targets")
_LIFETIME = "x-obelisk-lifetime-s"
"""In signed metadata: for how long a version of it is signed."""
_LONG_S = 365 * 86400
_SOON = {"root": timedelta(days=30), "timestamp": timedelta(days=1), "snapshot": timedelta(days=3), "targets": timedelta(days=14)}
_REFRESH = "whoever runs the repository renews it with `obelisk repo refresh`"


@dataclass(frozen=True, slots=True)
class Expiry:
    """When the metadata of a role ends to be valid, and how long before that is `soon`."""

    role: str
    at: datetime
    soon: timedelta

    def warning(self, now: datetime) -> str:
        """What to say of it some days before; empty when there is time."""
        if self.at - now > self.soon:
            return ""
        return f"the repository's {self.role} metadata expires at {_said(self.at)}, and then no release is taken: {_REFRESH}"


class Repository:
    """A repository's documents, as `refresh` found them. `expiries` are those of its metadata, the next one first."""

    def __init__(self, updater: Updater, told: Callable[[], AbstractContextManager[None]], mirrors: Mirrors, keep: Path) -> None:
        self._updater = updater
        self._told = told
        self._mirrors = mirrors
        self._keep = keep
        self.expiries = tuple(sorted(_expiries(keep), key=lambda expiry: expiry.at))

    def channel(self, name: str, channel: str) -> Channel:
        """The channel of an image's name; also noted for those who ask `seen`.

        Raises:
            TrustError: there is none, or the document is damaged.
            TransportError: no mirror has it.
        """
        data = self._document(channel_target(name, channel), f"channel {channel!r} for {name}")
        found = Channel.parse(data)
        if (found.name, found.channel) != (name, channel):
            raise _mixed(f"{channel} of {name}", f"{found.channel} of {found.name}")
        with written_by_name(self._keep):
            seen.note(self._keep, found, datetime.now(UTC))
        return found

    def release(self, image: str) -> Release:
        """The release of an image, by its id.

        Raises:
            TrustError: there is none, or the document is damaged.
            TransportError: no mirror has it.
        """
        found = Release.parse(self._document(f"releases/{image}.json", f"release of image {image[:12]}"))
        if found.image != image:
            raise _mixed(image[:12], found.image[:12])
        return found

    def testers(self) -> Testers:
        """Whose proofs count.

        Raises:
            TrustError: nobody's do, or the document is damaged.
            TransportError: no mirror has it.
        """
        return Testers.parse(self._document(TESTERS_TARGET, "list of testers"))

    def _document(self, target: str, what: str) -> bytes:
        with self._told():  # roles that targets delegates to are fetched only now
            found = self._updater.get_targetinfo(target)
        if found is None:
            raise TrustError(
                f"the repository has no {what}", code="target-missing", hint="is that the right repository, and the right name?"
            )
        if "sha256" not in found.hashes or found.length > _LARGEST_DOCUMENT_BYTES:
            raise TrustError(f"the repository's {what} cannot be: it has no SHA-256, or is too large", code="target-wrong", hint=_TELL)
        directory, slash, name = target.rpartition("/")

        def is_right(data: bytes) -> bool:
            with suppress(LengthOrHashMismatchError):
                found.verify_length_and_hashes(data)
                return True
            return False

        path = f"targets/{directory}{slash}{found.hashes['sha256']}.{name}"
        return self._mirrors.read(path, most_bytes=found.length, is_right=is_right)


def refresh(keep: Path, root: bytes, mirrors: Mirrors) -> Repository:
    """The repository as it is now, by the metadata in `keep` and the sealed `root`. What is learned is kept, durably.

    Raises:
        TrustError: no mirror has metadata that is signed by whom it must be, is valid now and not older than what was seen before.
        TransportError: no mirror has any.
        StateError: `keep` cannot be written.
    """
    if find_spec("cryptography") is None:  # as in images
        keys.register()
    with written_by_name(keep):
        keep.mkdir(parents=True, exist_ok=True)
        try:
            return mirrors.ask(lambda source: _refresh_from(source, mirrors, keep, root))
        finally:
            for path in (*keep.glob("*.json"), *keep.glob("root_history/*.json")):
                with suppress(FileNotFoundError):
                    sync_file(path)
            sync_directory(keep)


def _refresh_from(source: Mirror, mirrors: Mirrors, keep: Path, root: bytes) -> Repository:
    fetcher = _Fetcher(source, keep)
    told = partial(_told, source.name, fetcher.given, keep)
    with told():
        updater = Updater(str(keep), _METADATA, fetcher=fetcher, bootstrap=root)
        updater.refresh()
    fetcher.note_etag()
    return Repository(updater, told, mirrors, keep)


@contextmanager
def _told(mirror: str, given: Mapping[str, bytes], keep: Path) -> Iterator[None]:
    """Say of what python-tuf refuses what it means, and what to do."""
    try:
        yield
    except DownloadHTTPError as error:
        raise MissingError(str(error)) from error
    except ExpiredMetadataError as error:
        now = datetime.now(UTC)
        old = [f"{e.role} at {_said(e.at)}" for e in _expiries(keep, given) if e.at <= now]
        raise TrustError(
            f"{mirror}: the repository's metadata has expired: {', '.join(old) or error}; this machine's clock says {_said(now)}",
            code="metadata-expired",
            hint=f"if that clock is wrong, set it (timedatectl); if it is right, {_REFRESH}",
        ) from error
    except UnsignedMetadataError as error:
        raise TrustError(
            f"{mirror}: metadata without the signatures that it takes: {error}",
            code="metadata-unsigned",
            hint="is that the repository whose root.json the image was built with? Else it was tampered with",
        ) from error
    except BadVersionNumberError as error:
        raise TrustError(
            f"{mirror}: metadata of another version than it must be: {error}",
            code="metadata-version",
            hint="the mirror is stale, or somebody shows an old repository; try another mirror",
        ) from error
    except RepositoryError as error:
        raise TrustError(f"{mirror}: the metadata is damaged: {error}", code="metadata-damaged", hint="try another mirror") from error


def _expiries(keep: Path, given: Mapping[str, bytes] = MappingProxyType({})) -> Iterator[Expiry]:
    """Of the metadata that is kept, or that was just given where it is another."""
    for role in _ROLES:
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, AttributeError):
            data = given[role] if role in given else (keep / f"{role}.json").read_bytes()
            signed = json.loads(data)["signed"]
            # Who signs for hours only does so often, and a day before is no time to warn.
            lifetime = timedelta(seconds=signed.get(_LIFETIME, _LONG_S))
            yield Expiry(role, datetime.fromisoformat(signed["expires"]), min(_SOON[role], lifetime / 4))


def _said(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _mixed(wanted: str, found: str) -> TrustError:
    return TrustError(f"the repository's document of {wanted} is that of {found}", code="target-mixed", hint=_TELL)


class _Fetcher(FetcherInterface):
    """Brings metadata from one mirror to python-tuf. `given` is what came last, by the name of its role."""

    def __init__(self, source: Mirror, keep: Path) -> None:
        self._source = source
        self._keep = keep
        self._etag = ""
        self.given: dict[str, bytes] = {}

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """See `FetcherInterface`: all that python-tuf asks for on the way of `refresh`."""
        try:
            data = self._read(url, max_length)
        except MissingError as error:
            raise DownloadHTTPError(error.message, 404) from error
        self.given[url.rsplit("/", 1)[1].removesuffix(".json").split(".")[-1]] = data
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise DownloadError(url)  # `download_bytes` is all there is

    def _read(self, path: str, most_bytes: int) -> bytes:
        if path == f"{_METADATA}timestamp.json" and isinstance(self._source, WebMirror):
            known, etag = self._known()
            data, self._etag = self._source.unchanged(path, etag, most_bytes=most_bytes)
            return known if data is None else data
        return b"".join(data for _, data in self._source.stream(path, start=0, most_bytes=most_bytes))

    def _known(self) -> tuple[bytes, str]:
        """The timestamp that is kept, and the ETag by which this mirror calls it; empty when it has none."""
        try:
            data = (self._keep / "timestamp.json").read_bytes()
            noted = json.loads((self._keep / _ETAG).read_bytes())
            if (noted["mirror"], noted["sha256"]) == (self._source.name, sha256(data).hexdigest()):
                return data, str(noted["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return b"", ""

    def note_etag(self) -> None:
        """Note by which ETag the mirror calls the timestamp that was found to be good."""
        data = self.given.get("timestamp", b"")
        if self._etag and data == (self._keep / "timestamp.json").read_bytes():
            noted = {"mirror": self._source.name, "etag": self._etag, "sha256": sha256(data).hexdigest()}
            write_durably(self._keep / _ETAG, canonical(noted))
