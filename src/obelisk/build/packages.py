"""Brings the packages of a lock into the store and lays them out as a repository that mmdebstrap installs from."""

from collections.abc import Callable, Sequence
from pathlib import Path

from obelisk.errors import InputError, TrustError
from obelisk.events import Sink, task
from obelisk.model.lock import Package, PackageSet
from obelisk.store import Store
from obelisk.system.apt import Archive, DownloadError, download
from obelisk.system.dpkg import DebFile, write_index

SnapshotOf = Callable[[str], str | None]


def nowhere(_origin: str) -> str | None:
    """No archive keeps old packages."""
    return None


def fetch(
    packages: Sequence[Package], archives: Callable[[], Sequence[Archive]], store: Store, sink: Sink, *, snapshot: SnapshotOf = nowhere
) -> None:
    """Have every package in the store, checked against its SHA-256: from the store itself, the archive, or a snapshot archive.

    Which `archives` there are is asked only when something is missing: to find out can take a second.

    Raises:
        TrustError: an archive serves other bytes under the name of a locked package.
        InputError: a package is nowhere to be had any more.
        TransportError: an archive cannot be reached.
    """
    missing = [package for package in packages if store.find_blob(package.sha256) is None]
    if not missing:
        return
    total = sum(package.size_bytes for package in missing)
    bases = {archive.origin: archive.uri for archive in archives()}
    with task(sink, "fetch", f"Fetching {len(missing)} packages", total=total, unit="bytes") as running, store.workspace() as scratch:
        done = 0
        # In parts, so that progress is seen and what has arrived survives an interruption.
        for batch in _batches(missing, total // 12):
            lost = _fetch_batch(batch, bases, store, scratch)
            lost = _fetch_batch(lost, {p.origin: snapshot(_archive(p)) or "" for p in lost}, store, scratch, by_origin=True)
            if lost:
                names = " ".join(package.name for package in lost)
                raise InputError(
                    f"the archive no longer has {', '.join(f'{p.name} {p.version}' for p in lost)}",
                    code="package-vanished",
                    hint=f"run `obelisk lock --update {names}`, or name an archive of old packages as `snapshot` in the spec",
                )
            done += sum(package.size_bytes for package in batch)
            running.progress(done)


def _fetch_batch(
    packages: Sequence[Package], bases: dict[str, str], store: Store, scratch: Path, *, by_origin: bool = False
) -> list[Package]:
    wanted = {}
    for package in packages:
        base = bases.get(package.origin if by_origin else _archive(package), "")
        if base:
            wanted[package.sha256] = f"{base}/{package.path}"
    failure: DownloadError | None = None
    if wanted:
        try:
            download({uri: scratch / sha256 for sha256, uri in wanted.items()})
        except DownloadError as error:
            failure = error
    lost = []
    for package in packages:
        file = scratch / package.sha256
        if failure is not None and file.exists() and file.stat().st_size < package.size_bytes:
            file.unlink()  # the beginning of what did not arrive
        if not file.exists():
            lost.append(package)
            continue
        try:
            store.add_blob(file, sha256=package.sha256, move=True)
        except TrustError as error:
            file.unlink(missing_ok=True)
            raise TrustError(
                f"{package.name} {package.version}: the archive serves other bytes than the lock names ({package.origin}/{package.path})",
                code="package-hash",
                hint="try another mirror; if the archive really replaced the file, run `obelisk lock --update` and find out why",
            ) from error
    if lost and failure is not None and not failure.vanished:
        raise failure
    return lost


def lay_out(packages: PackageSet, store: Store, directory: Path) -> None:
    """Make `directory` a flat apt repository of exactly these packages; the files are links to the store's."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for package in packages.packages:
        name = f"{package.name}_{package.version.replace(':', '%3a')}_{package.architecture}.deb"
        store.link_blob(package.sha256, directory / name)
        files.append(DebFile(directory / name, name, package.sha256, package.size_bytes))
    write_index(files, directory / "Packages")


def _archive(package: Package) -> str:
    return package.origin.split("/", 1)[0]


def _batches(packages: Sequence[Package], part_bytes: int) -> list[list[Package]]:
    batches: list[list[Package]] = [[]]
    size = 0
    for package in packages:
        if batches[-1] and size > part_bytes:
            batches.append([])
            size = 0
        batches[-1].append(package)
        size += package.size_bytes
    return batches
