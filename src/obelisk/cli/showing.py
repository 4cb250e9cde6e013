"""Commands that show what is there, and that look after the store: images, show, diff, export, install, gc, verify."""

from argparse import Namespace
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from obelisk.build.compare import Side, compare
from obelisk.build.export import export as write_export
from obelisk.build.install import install as write_disk
from obelisk.cli.making import lock_at_hand, tools_room
from obelisk.cli.places import find_image, find_machine, open_store
from obelisk.cli.terminal import answer, reporting, size
from obelisk.events import Note
from obelisk.model.application import parse_application
from obelisk.model.image import PartKind
from obelisk.store import Store, StoredImage

if TYPE_CHECKING:
    from obelisk.model.release import Release
    from obelisk.release.repository import Repository


def images(arguments: Namespace) -> int:
    """List the images, newest first."""
    store = open_store(arguments)
    lines: list[str] = []
    found = []
    for image in store.images():
        manifest = image.manifest
        total = sum(part.size_bytes for part in manifest.parts)
        proofs = len(store.proofs(image.id))
        found.append({"id": image.id, "name": manifest.name, "version": manifest.version, "size": total, "proofs": proofs})
        when = datetime.fromtimestamp(image.added, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        proven = f"{proofs} proof{'s' * (proofs != 1)}" if proofs else "unproven"
        lines.append(f"{image.id[:12]}  {manifest.label:<24} {manifest.distribution:<16} {size(total):>10}  {when}  {proven}")
    answer("\n".join(lines), json_wanted=arguments.json, images=found)
    return 0


def show(arguments: Namespace) -> int:
    """Tell what an image is."""
    store = open_store(arguments)
    image = find_image(store, arguments.image)
    manifest = image.manifest
    rows = {
        "id": image.id,
        "name": manifest.label,
        "distribution": manifest.distribution,
        "role": manifest.role,
        "kernel": manifest.kernel,
        "command line": manifest.cmdline,
        "packages": str(len(manifest.packages)),
        "set-id programs": " ".join(manifest.setuid) or "none",
        "signed by": manifest.secure_boot_certificate[:16] + (" (test key)" if manifest.test_key else ""),
        "slot": f"{size(manifest.root_slot_bytes)} + {size(manifest.verity_slot_bytes)}",
        "proofs": " ".join(str(path) for path in store.proofs(image.id)) or "none",
        "directory": str(image.directory),
    }
    lines = [f"{name:<16} {value}" for name, value in rows.items()]
    lines += [f"  {part.kind.value:<16} {part.file:<22} {size(part.size_bytes):>10}  {part.sha256}" for part in manifest.parts]
    answer("\n".join(lines), json_wanted=arguments.json, id=image.id, directory=str(image.directory), manifest=manifest.to_json())
    return 0


def diff(arguments: Namespace) -> int:
    """Tell two images apart, of the store or of a repository; status 1 when they differ."""
    store = open_store(arguments)
    with reporting(json_wanted=arguments.json) as sink, store.workspace() as work:
        before, after = (_side(store, name, work, json_wanted=arguments.json) for name in (arguments.before, arguments.after))
        room = None
        if before.manifest.root_hash != after.manifest.root_hash:
            if pinned := lock_at_hand(store):
                room = tools_room(pinned, store, sink)
            else:
                sink(Note("files, services, users and sockets are left out: no tools are locked here yet"))
        changes = compare(before, after, room)
    lines = [f"{change.kind:<9} {change.name}: {change.before or '-'} -> {change.after or '-'}" for change in changes]
    approvals = _approvals(arguments.after, json_wanted=arguments.json)
    lines += [f"approved  in {each['channel']}, by {each['by']}: {each['approved']}" for each in approvals]
    answer(
        "\n".join(lines) or "the images are the same",
        json_wanted=arguments.json,
        changes=[asdict(change) for change in changes],
        approvals=approvals,
    )
    return 1 if changes else 0


def _side(store: Store, name: str, work: Path, *, json_wanted: bool) -> Side:
    """What REPO@VERSION, REPO@CHANNEL, or a name of the store means."""
    released = _released(name, json_wanted=json_wanted)
    if released is None:
        return _stored(find_image(store, name))
    from obelisk.cli.publisher import delivery

    there, release = released
    stored = next((image for image in store.images() if image.id == release.image), None)
    if stored is not None:
        return _stored(stored)
    root = work / f"{release.image}.root"
    if not root.exists():
        delivery().restore(release, there.find, root)
    return Side(there.manifest(release), root, there.application(release))


def _stored(image: StoredImage) -> Side:
    app = image.part_path(PartKind.APPLICATION).read_bytes() if image.manifest.is_application else None
    return Side(image.manifest, image.part_path(PartKind.ROOT), parse_application(app) if app is not None else None)


def _released(name: str, *, json_wanted: bool) -> "tuple[Repository, Release] | None":
    """What REPO@VERSION or REPO@CHANNEL means; None for the name of an image of the store."""
    place, at, wanted = name.rpartition("@")
    if not (at and (Path(place) / "metadata").is_dir()):
        return None
    from obelisk.cli.publisher import repository_at

    there = repository_at(place, json_wanted=json_wanted)
    return there, there.contents.find(wanted)


def _approvals(name: str, *, json_wanted: bool) -> list[dict[str, object]]:
    """Where, by whom and why it was approved that a release may do more than the one before it."""
    released = _released(name, json_wanted=json_wanted)
    if released is None:
        return []
    there, release = released
    return [
        {"channel": channel.channel, "by": listing.by, "growth": list(listing.growth), "approved": listing.approved}
        for channel in there.contents.of(release.name)
        for listing in channel.listings
        if listing.image == release.image and listing.growth
    ]


def export(arguments: Namespace) -> int:
    """Write an image to a file in a format of others."""
    store = open_store(arguments)
    image = (find_image if arguments.format in {"erofs", "oci"} else find_machine)(store, arguments.image)
    with reporting(json_wanted=arguments.json) as sink:
        room = tools_room(None, store, sink)
        write_export(image, store, room, arguments.format, Path(arguments.output).absolute(), sink)
    answer(arguments.output, json_wanted=arguments.json, output=arguments.output, format=arguments.format)
    return 0


def install(arguments: Namespace) -> int:
    """Write an image onto a disk."""
    store = open_store(arguments)
    image = find_machine(store, arguments.image)
    target = Path(arguments.target).absolute()
    with reporting(json_wanted=arguments.json) as sink:
        room = tools_room(None, store, sink)
        written = write_disk(image, target, erase=arguments.erase, store=store, room=room, sink=sink)
    text = f"{image.manifest.label} is on {target}; its first boot completes the disk"
    answer(text, json_wanted=arguments.json, target=str(target), id=image.id, written=written)
    return 0


def gc(arguments: Namespace) -> int:
    """Free the space of what nothing needs."""
    store = open_store(arguments)
    with reporting(json_wanted=arguments.json) as sink:
        found = store.collect(keep_days=arguments.keep_days, everything=arguments.all, dry_run=arguments.dry_run, sink=sink)
    verb = "would free" if arguments.dry_run else "freed"
    categories = {name: getattr(found, name) for name in ("images", "proofs", "steps", "blobs", "damaged")}
    lines = [f"{verb} {size(freed.size_bytes)} of {freed.count} {name}" for name, freed in categories.items() if freed.count]
    lines.append(f"{verb} {size(found.size_bytes)} in all")
    counts = {name: {"count": freed.count, "size": freed.size_bytes} for name, freed in categories.items()}
    answer("\n".join(lines), json_wanted=arguments.json, size=found.size_bytes, dry_run=arguments.dry_run, **counts)
    return 0


def verify(arguments: Namespace) -> int:
    """Read the whole store; status 3 when something is damaged."""
    store = open_store(arguments)
    with reporting(json_wanted=arguments.json) as sink:
        damages = store.verify(repair=arguments.repair, sink=sink)
    lines = [f"damaged: {damage.path} ({damage.belongs_to}): {damage.problem}" for damage in damages]
    if not damages:
        lines.append("the store is sound")
    elif arguments.repair:
        lines.append(f"moved {len(damages)} damaged items away; the next build makes them anew")
    found = [{"path": str(d.path), "belongs_to": d.belongs_to, "problem": d.problem} for d in damages]
    answer("\n".join(lines), json_wanted=arguments.json, damaged=found, repaired=bool(damages) and arguments.repair)
    return 3 if damages and not arguments.repair else 0
