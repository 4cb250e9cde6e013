"""What a publisher does: release, promote, withdraw. Each is one change of a repository, seen by readers at once or not at all.

Each may be repeated after it was cut: what it had written is written over, found, or swept.
"""

import hashlib
import ssl
from dataclasses import dataclass, replace
from functools import cmp_to_key

from obelisk.errors import InputError, StateError, TrustError
from obelisk.events import task
from obelisk.model import publication
from obelisk.model.application import Application, parse_application
from obelisk.model.exposure import grown
from obelisk.model.image import Manifest, PartKind
from obelisk.model.publication import Approval, Contents, Terms, Withdrawal
from obelisk.model.release import EdgeFile, File, Hosts, Release, Testers
from obelisk.model.version import compare
from obelisk.release.delivery import ImageFiles
from obelisk.release.proofs import counts
from obelisk.release.publisher import Founding, Publisher, refuse_remains
from obelisk.release.repository import Repository
from obelisk.release.shelf import file_of
from obelisk.store import StoredImage
from obelisk.system.efivars import certificates_of

PROVENANCE = "provenance.dsse.json"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to be released: with these proofs (envelopes), and with these edges (`publication.edges_from`).

    `approval` says why an application's powers are to grow; empty: they are not to.
    """

    image: StoredImage
    proofs: tuple[bytes, ...]
    channel: str
    terms: Terms
    edges: str = "previous"
    approval: str = ""


def begin(publisher: Publisher, founding: Founding) -> Repository:
    """Begin a repository without releases: its root metadata goes into the first image that follows it.

    Raises:
        InputError: there is one.
        StateError: keys are missing.
    """
    with publisher.shelf.writing():
        if publisher.shelf.metadata("timestamp.json") is not None:
            raise InputError(
                f"{publisher.shelf.root} is a repository already",
                code="repository-exists",
                hint="its root metadata is metadata/1.root.json; `obelisk release IMAGE --to REPO` adds a release",
            )
        refuse_remains(publisher)
        publisher.ensure_keys(None, founding)
        return publisher.found(Contents(founding.testers), founding)


def release(publisher: Publisher, wanted: Wanted, founding: Founding) -> Release:
    """Make an image available in a channel; makes the repository when there is none. Nothing changes when the channel has it already.

    Raises:
        InputError, StateError: it cannot be released as wanted (`publication.admit`), may do more than what the channel has, or keys are
            missing.
        TrustError: it has no proof that counts, is signed by a test key, or the repository is not to be trusted.
    """
    manifest = wanted.image.manifest
    with publisher.shelf.writing():
        there = publisher.opened() if publisher.shelf.metadata("timestamp.json") is not None else None
        if there is None:
            refuse_remains(publisher)
        contents = there.contents if there else Contents(founding.testers)
        terms = replace(wanted.terms, minimum=_minimum(there, wanted)) if there else wanted.terms
        wanted = replace(wanted, terms=terms)
        new = publication.admit(contents, manifest, wanted.channel, terms)
        app = _application(wanted)
        approval = _approved(there, manifest, app, wanted.channel, wanted.approval) if new else Approval()
        proofs = _proofs_that_count(contents.testers, wanted)
        known = contents.release(manifest.id)
        publisher.ensure_keys(there, founding)
        with task(publisher.sink, "release", f"Release of {manifest.label}") as running:
            made = _with_proofs(publisher, known, proofs) if known else _add(publisher, contents, wanted, proofs)
            made = _with_edges(publisher, contents, made, wanted.channel, wanted.edges)
            if new:
                contents = publication.listed(contents, made, wanted.channel, publisher.act, approval=approval)
            elif made == known:
                running.detail = "already there"
                return made
            else:
                contents = contents.with_release(made)
            if there is None:
                publisher.found(contents, founding)
            else:
                publisher.commit(there, contents)
        return made


def promote(  # noqa: PLR0913 - keywords name the last three
    publisher: Publisher, version: str, source: str, target: str, *, name: str | None = None, edges: str = "previous", approval: str = ""
) -> Release:
    """Make a release of one channel available in another as well: the same bits. `approval` as in `Wanted`.

    Raises:
        InputError, StateError: it cannot be promoted (`publication.promotable`), may do more than what the other channel has, or keys are
            missing.
        TrustError: the repository is not to be trusted.
    """
    with publisher.changing() as there:
        found = publication.promotable(there.contents, version, source, target, name=name)
        approved = _approved(there, there.manifest(found), there.application(found), target, approval)
        with task(publisher.sink, "promote", f"{found.name} {found.version} from {source} to {target}"):
            found = _with_edges(publisher, there.contents, found, target, edges)
            contents = publication.listed(there.contents, found, target, publisher.act, source=source, approval=approved)
            publisher.commit(there, contents)
        return found


def withdraw(publisher: Publisher, version: str, *, hosts: Hosts, channel: str | None = None, name: str | None = None) -> Withdrawal:
    """Take a release back: no host takes it any more, and those that run it do as `hosts` says.

    Raises:
        InputError, StateError: it cannot be withdrawn (`publication.withdraw`), or keys are missing.
        TrustError: the repository is not to be trusted.
    """
    with publisher.changing() as there:
        done = publication.withdraw(there.contents, version, publisher.act, hosts=hosts, channel=channel, name=name)
        with task(publisher.sink, "withdraw", f"Withdrawal of {version}"):
            publisher.commit(there, done.contents)
        return done


def _application(wanted: Wanted) -> Application | None:
    """What the image says of itself as an application; None of a machine's."""
    manifest = wanted.image.manifest
    if not manifest.is_application:
        return None
    return parse_application(wanted.image.part_path(PartKind.APPLICATION).read_bytes())


def _approved(there: Repository | None, manifest: Manifest, app: Application | None, channel: str, why: str) -> Approval:
    """What is to be recorded of an application that may do more than the current release of a channel.

    Raises:
        StateError: it may, and `why` does not say why; or the name is that of another kind of image.
        InputError: a machine's image is approved to do more, which it does not ask for.
    """
    if there is not None:
        _check_kind(there, manifest)
    if app is None:
        if why:
            raise InputError(
                f"{manifest.label} is the image of a machine, which asks for no powers", code="growth-machine", hint="leave it out"
            )
        return Approval()
    here = there.contents.channel(manifest.name, channel) if there is not None else None
    if there is None or here is None or not here.highest:
        return Approval()  # the first release of a channel: nothing is followed yet that could grow
    current = there.contents.release(here.current.image) if here.current else None
    before = (there.application(current) if current else None) or Application(())
    growth = grown((before, before.policy), (app, app.policy))
    return publication.approve(growth, why, label=manifest.label, channel=channel, before=current.version if current else "")


def _check_kind(there: Repository, manifest: Manifest) -> None:
    """A name is a machine's or an application's for ever: whoever follows its channel would take the other for the next version."""
    first = next((each for each in there.contents.releases if each.name == manifest.name), None)  # all others are what it is
    if first is not None and there.manifest(first).is_application != manifest.is_application:
        kinds = ("an application", "a machine") if manifest.is_application else ("a machine", "an application")
        raise StateError(
            f"{manifest.label} is {kinds[0]}, and {first.name} {first.version} of this repository is {kinds[1]}",
            code="release-kind",
            hint="give the spec another name",
        )


def _minimum(there: Repository, wanted: Wanted) -> str:
    """The oldest version whose hosts can take the image, so that none jumps over the one that brings its firmware the key.

    Raises:
        StateError: it is signed by a key that no release has brought to hosts, and the terms name no minimum.
    """
    manifest, minimum = wanted.image.manifest, wanted.terms.minimum
    if minimum or manifest.is_application or there.contents.release(manifest.id) is not None:
        return minimum
    earlier = [each for each in there.contents.releases if each.name == manifest.name and compare(each.version, manifest.version) < 0]
    earlier.sort(key=cmp_to_key(lambda one, other: compare(one.version, other.version)), reverse=True)
    known, bringing = not earlier, ""
    for each in earlier:  # from the newest on
        before = there.manifest(each)
        if before.secure_boot_certificate == manifest.secure_boot_certificate:
            known = True
        elif _brings(there, before, manifest.secure_boot_certificate):
            bringing = each.version
        else:
            break
    if not known and not bringing:
        raise StateError(
            f"{manifest.label} is signed by a key that the firmware of hosts does not know: no release has brought it to them",
            code="release-key-unknown",
            hint="release an image between that was built after `obelisk keys rotate secure-boot` and before its --finish; "
            "or say by --minimum that you have enrolled the key yourself",
        )
    return bringing


def _brings(there: Repository, manifest: Manifest, certificate_sha256: str) -> bool:
    """Whether an image brings the firmware of hosts that certificate."""
    for part in manifest.parts:
        if part.kind is PartKind.UPDATE_DB:
            brought = certificates_of(there.find(File(part.sha256, part.size_bytes)).read_bytes())
            return any(hashlib.sha256(ssl.DER_cert_to_PEM_cert(der).encode()).hexdigest() == certificate_sha256 for der in brought)
    return False


def _proofs_that_count(testers: Testers, wanted: Wanted) -> tuple[bytes, ...]:
    image = wanted.image
    proofs = tuple(each for each in wanted.proofs if counts(testers, each, image.id, application=image.manifest.is_application))
    if not proofs:
        raise TrustError(
            f"{wanted.image.manifest.label} has no proof that counts: {len(wanted.proofs)} proofs, {len(testers.keys)} testers",
            code="release-unproven",
            hint="run `obelisk test` on it with a tester's key; `obelisk keys show REPO` says whose proofs count",
        )
    return proofs


def _add(publisher: Publisher, contents: Contents, wanted: Wanted, proofs: tuple[bytes, ...]) -> Release:
    """Put the files of an image on the shelf. Nothing names them yet."""
    image, shelf = wanted.image, publisher.shelf
    manifest = image.manifest
    for part in manifest.parts:
        if part.kind is not PartKind.ROOT:
            shelf.take(image.part_path(part.kind), File(part.sha256, part.size_bytes))
    packed = publisher.delivery.pack(_files(image), contents.releases, publisher.find, publisher.work, publisher.sink)
    for pack in packed.packs:
        shelf.take(pack, file_of(pack))
    provenance = image.extra(PROVENANCE)
    return Release(
        image=image.id,
        name=manifest.name,
        version=manifest.version,
        root_hash=manifest.root_hash,
        root_bytes=manifest.part(PartKind.ROOT).size_bytes,
        minimum=wanted.terms.minimum,
        manifest=publisher.keep(manifest.to_bytes()),
        proofs=tuple(publisher.keep(each) for each in proofs),
        provenance=publisher.keep(provenance.read_bytes()) if provenance else None,
        index=publisher.take(packed.index),
    )


def _with_proofs(publisher: Publisher, known: Release, proofs: tuple[bytes, ...]) -> Release:
    return replace(known, proofs=tuple(dict.fromkeys((*known.proofs, *(publisher.keep(each) for each in proofs)))))


def _with_edges(publisher: Publisher, contents: Contents, new: Release, channel: str, wish: str) -> Release:
    """The release with what edges are wanted and missing."""
    old = publication.edges_from(contents, new, channel, wish)
    if not old:
        return new
    there = Repository.open(publisher.shelf)
    after = image_files(publisher, there, new)
    edges = []
    for each in old:
        made = publisher.delivery.edge(image_files(publisher, there, each), after, publisher.work, publisher.sink)
        edges.append(EdgeFile(each.image, each.version, publisher.take(made)))
    return publication.with_edges(new, edges)


def image_files(publisher: Publisher, there: Repository, wanted: Release) -> ImageFiles:
    """An image as files: of the store where it is still there, else from the repository."""
    stored = publisher.stored(wanted.image)
    if stored is not None:
        return _files(stored)
    manifest = there.manifest(wanted)
    root = publisher.work / f"{wanted.image}.root"
    if not root.exists():
        with task(publisher.sink, f"restore/{wanted.version}", f"{wanted.version} out of the repository"):
            publisher.delivery.restore(wanted, there.find, root)
    found = {part.kind: there.find(File(part.sha256, part.size_bytes)) for part in manifest.parts}
    return ImageFiles(manifest, root, found[PartKind.VERITY], found.get(PartKind.UKI))


def _files(image: StoredImage) -> ImageFiles:
    kernel = None if image.manifest.is_application else image.part_path(PartKind.UKI)
    return ImageFiles(image.manifest, image.part_path(PartKind.ROOT), image.part_path(PartKind.VERITY), kernel)
