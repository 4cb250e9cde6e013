"""What an image brings to the machine's firmware and boot loader, once it is blessed: keys that are coming, the loader, keys that go.

    EFI/obelisk/<label>.loader   on the ESP, beside the image's entry: systemd-boot, in the place of an older one
    EFI/obelisk/<label>.pk       another PK for the firmware, signed by the one before it
    EFI/obelisk/<label>.kek      another KEK, signed by that PK
    EFI/obelisk/<label>.db       a certificate more for the firmware's db, signed by its KEK
    EFI/obelisk/<label>.dbx      one for its dbx

Each goes away when it is done, so a cut is made good at the next boot. The order is what keeps the machine bootable: who may sign updates
comes before them, then the new key is known, then the loader is one that it may have signed, and a key is revoked only when nothing that
this machine starts is signed by it, the fallback included. Until then, that waits.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obelisk.errors import StateError, TrustError
from obelisk.host import esp
from obelisk.host.source import Source
from obelisk.model.image import Manifest, PartKind
from obelisk.system import efivars, sbverify
from obelisk.system.files import hash_file, sync_file

_KINDS = dict(
    zip(
        (PartKind.UPDATE_PK, PartKind.UPDATE_KEK, PartKind.UPDATE_DB, PartKind.LOADER, PartKind.UPDATE_DBX),
        esp.BROUGHT,
        strict=True,
    )
)
"""Parts of an image that are for the firmware, in the order in which they are applied, and the endings of their files on the ESP."""
_VARIABLES = {PartKind.UPDATE_PK: "PK", PartKind.UPDATE_KEK: "KEK", PartKind.UPDATE_DB: "db", PartKind.UPDATE_DBX: "dbx"}
_GROWING = ("db", "dbx")
_LOADERS = (Path("EFI/systemd/systemd-bootx64.efi"), Path("EFI/BOOT/BOOTX64.EFI"))


def wanted(place: Path, manifest: Manifest) -> list[PartKind]:
    """The parts that this machine may not have yet. `place` is the ESP."""
    kinds = [part.kind for part in manifest.parts if part.kind in _KINDS]
    return [kind for kind in _KINDS if kind in kinds and not (kind is PartKind.LOADER and _has_loader(place, manifest))]


def lay(place: Path, manifest: Manifest, source: Source) -> None:
    """Put what the image brings beside its entry, which is not there yet. May be repeated.

    Raises:
        TrustError: a file is not what the manifest says.
    """
    (place / esp.MANIFESTS).mkdir(exist_ok=True)
    for kind in wanted(place, manifest):
        path = source.path(kind)
        if not path.exists():  # a source of an older form
            continue
        target = _file(place, manifest.label, kind)
        shutil.copyfile(path, target)
        sync_file(target)
        if hash_file(target) != manifest.part(kind).sha256:
            target.unlink()
            raise TrustError(f"{path} is not what the manifest says", code="part-damaged", hint="copy or fetch the image again")
        if kind in _VARIABLES and efivars.secure_boot() and _knows(_VARIABLES[kind], target.read_bytes()):
            target.unlink()
    esp.flush(place)


def apply(place: Path, label: str) -> list[str]:
    """Apply what the running image, which is blessed, has brought; what was done, in words.

    Raises:
        StateError: the firmware refuses something, or a key is still needed. What was done stays done.
        TrustError: the loader that was brought would not be started.
    """
    said = []
    for kind in _KINDS:
        file = _file(place, label, kind)
        if not file.exists():
            continue
        match kind:
            case PartKind.UPDATE_PK | PartKind.UPDATE_KEK:
                _give(_VARIABLES[kind], file.read_bytes())
                said.append(f"the firmware has another {_VARIABLES[kind]}")
            case PartKind.UPDATE_DB:
                _give("db", file.read_bytes())
                said.append("the firmware knows the key that is coming")
            case PartKind.LOADER:
                _replace_loader(place, file)
                said.append("the boot loader is that of the image")
            case _:
                _require_unneeded(place, efivars.certificates_of(file.read_bytes()))
                _give("dbx", file.read_bytes())
                said.append("the firmware starts nothing any more that the old key signed")
        file.unlink()
        esp.flush(place)
    return said


def _file(place: Path, label: str, kind: PartKind) -> Path:
    return place / esp.MANIFESTS / f"{label}.{_KINDS[kind]}"


def _has_loader(place: Path, manifest: Manifest) -> bool:
    sha256 = manifest.part(PartKind.LOADER).sha256
    return all((place / each).is_file() and hash_file(place / each) == sha256 for each in _LOADERS)


def _knows(variable: str, update: bytes) -> bool:
    """Whether the firmware's variable is as the update leaves it."""
    brought, there = set(efivars.certificates_of(update)), set(efivars.certificates(variable))
    return bool(brought) and (brought <= there if variable in _GROWING else brought == there)


def _give(variable: str, update: bytes) -> None:
    """The firmware's variable has what the update brings. Where the firmware checks nothing, nothing is brought to it."""
    if not efivars.secure_boot() or _knows(variable, update):
        return
    try:
        efivars.update(variable, update, append=variable in _GROWING)
    except OSError as error:
        raise StateError(
            f"the firmware does not take the update of {variable}: {error.strerror}",
            code="firmware-refuses",
            hint="is it signed by this machine's KEK, or PK? It is tried again at the next boot",
        ) from error
    if not _knows(variable, update):
        raise StateError(
            f"the firmware took the update of {variable}, and does not show it",
            code="firmware-refuses",
            hint="it is tried again at the next boot",
        )


def _replace_loader(place: Path, file: Path) -> None:
    """Each of the loader's two places has the old or the new one at every instant; the firmware starts the second, so that comes last."""
    if efivars.secure_boot() and not sbverify.is_signed_by(file, efivars.trusted_certificates()):
        raise TrustError(
            "the firmware would refuse the boot loader that the image brings; the one that is there stays",
            code="loader-unsigned",
            hint="the key that signed it has to be known first: take an image between that brings it",
        )
    for name in _LOADERS:
        with _draft(place / name) as draft:
            shutil.copyfile(file, draft)
            sync_file(draft)
            draft.replace(place / name)
        esp.flush(place)


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    draft = path.with_name("loader.new")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _require_unneeded(place: Path, going: tuple[bytes, ...]) -> None:
    """Everything that this machine may start is signed by another key than those that go."""
    if not efivars.secure_boot():
        return
    left = [each for each in efivars.trusted_certificates() if each not in going]
    programs = {entry.label: esp.path_of(place, entry) for entry in esp.entries(place)}
    programs |= {"the boot loader": place / _LOADERS[1]}
    needing = sorted(name for name, path in programs.items() if not sbverify.is_signed_by(path, left))
    if needing:
        raise StateError(
            f"the old key is not revoked yet: {', '.join(needing)} is signed by nothing else",
            code="key-needed",
            hint="it is when the next upgrade has taken its place",
        )
