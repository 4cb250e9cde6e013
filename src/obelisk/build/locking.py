"""`obelisk lock`: resolves what a spec asks for against what the archives serve today, and pins it.

Locking also installs the packages once (the result is the build's own base tree, so nothing is done twice): only then is it known which
users and groups their scripts create. Where new packages would shift the ids that a former lock recorded, those accounts are pinned.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from obelisk import spec as specs
from obelisk.build import containers, debian
from obelisk.build.graph import execute
from obelisk.build.lockfile import difference, read_lock, write_lock
from obelisk.build.packages import SnapshotOf, fetch, lay_out
from obelisk.build.trees import base_step, foundation_step, tools_step
from obelisk.errors import InputError
from obelisk.events import Sink, task
from obelisk.model.lock import Account, Accounts, ImportedImage, Lock, Package, PackageSet
from obelisk.model.spec import Spec
from obelisk.store import Store
from obelisk.system.apt import Archive, Resolver
from obelisk.system.bubblewrap import Room
from obelisk.system.files import ensure_writable


def lock(spec: Spec, store: Store, sink: Sink, *, update: Sequence[str] | None = None) -> tuple[Lock, tuple[str, ...]]:
    """Write the lock of `spec` and return it with what has changed, a line a package.

    `update` None keeps every version that the present lock names, unless the distribution changed, and adds what is new; an empty list
    takes the newest of everything; names take the newest of these alone, and of what they then need.

    Raises:
        InputError: a package does not exist, cannot be installed with the others, is named for update without being locked, or is
            to stay and nowhere to be had.
        TrustError: an archive is not signed by its key.
        TransportError: an archive cannot be reached.
    """
    old = read_lock(spec.lock_file) if spec.lock_file.exists() else None
    if old is not None and update:
        known = {package.name for package in (*old.system.packages, *old.tools.packages)}
        for name in update:
            if name not in known:
                raise InputError(
                    f"{name} is not in the lock", place=str(spec.lock_file), code="update-unknown", hint="see `obelisk lock` for names"
                )
    if old is None or update is not None or old.request != specs.request(spec):
        ensure_writable(spec.lock_file)
    tools = _resolve_tools(spec, old, store, sink, update=update)
    image = _resolve_image(spec, old, tools, store, sink, update=update)
    if spec.has_packages:
        foundation, base = _resolve_system(spec, old, store, sink, update=update)
    else:
        foundation = base = PackageSet(spec.distribution.suite, tools.epoch, ())
    fresh = Lock(specs.request(spec), foundation, base, tools, image=image)
    if old is not None:
        fresh = replace(fresh, users=old.users, groups=old.groups, pinned=old.pinned)
    fresh = _settle_accounts(spec, fresh, store, sink)
    if fresh != old:
        write_lock(spec.lock_file, fresh)
    return fresh, difference(old, fresh)


def require_lock(spec: Spec) -> Lock:
    """The lock of `spec`, known to answer what the spec asks for now.

    Raises:
        InputError: there is none, or the spec has changed since.
    """
    found = read_lock(spec.lock_file)
    if found.request != specs.request(spec):
        raise InputError(
            "the spec asks for other packages than the lock answers",
            place=str(spec.lock_file),
            code="lock-stale",
            hint=f"run `obelisk lock {spec.directory}`: versions that are locked stay as they are",
        )
    return found


def _resolve_system(
    spec: Spec, old: Lock | None, store: Store, sink: Sink, *, update: Sequence[str] | None
) -> tuple[PackageSet, PackageSet]:
    """The foundation, and what the spec adds."""
    wanted = debian.image_packages(spec)
    if old is not None and update is None and old.request == specs.request(spec) and _holds(old.system, wanted):
        return old.foundation, old.base
    foundation, base = _resolve(
        "resolve",
        f"Resolving packages of {spec.distribution}",
        (debian.foundation_packages(spec), wanted),
        debian.image_archives(spec),
        suite=spec.distribution.suite,
        # Of another release nothing can stay; the ids of accounts do, for state outlives releases.
        old=(old.foundation, old.base) if old and old.foundation.suite == spec.distribution.suite else None,
        update=update,
        recommends=spec.recommends,
        store=store,
        sink=sink,
        snapshot=partial(debian.snapshot_uri, spec),
    )
    return foundation, base


def _resolve_image(
    spec: Spec, old: Lock | None, tools: PackageSet, store: Store, sink: Sink, *, update: Sequence[str] | None
) -> ImportedImage | None:
    if spec.image is None:
        return None
    (tree,) = execute((tools_step(tools, store, sink, spec),), store, sink).values()
    same = old is not None and old.request == specs.request(spec)
    # Names are those of packages: an image is taken anew when everything is.
    return containers.resolve(
        spec, old.image if old and same else None, Room(tree / "tree"), store, sink, update=update is not None and not update
    )


def _resolve_tools(spec: Spec, old: Lock | None, store: Store, sink: Sink, *, update: Sequence[str] | None) -> PackageSet:
    wanted = debian.TOOLS_PACKAGES
    if old is not None and update is None and _holds(old.tools, wanted):
        return old.tools
    (tools,) = _resolve(
        "resolve-tools",
        "Resolving the tools tree",
        (wanted,),
        debian.archives(debian.TOOLS_SUITE, mirror=spec.mirror),
        suite=debian.TOOLS_SUITE,
        old=(old.tools,) if old else None,
        update=update,
        recommends=False,
        store=store,
        sink=sink,
        snapshot=partial(debian.snapshot_uri, spec),
    )
    return tools


def newest_tools(store: Store, sink: Sink) -> PackageSet:
    """The tools tree as this machine's archives have it now: for whoever needs tools and has no lock.

    Raises:
        TransportError, InputError: the archives cannot be read.
    """
    return newest(debian.TOOLS_PACKAGES, store, sink)


def newest(wanted: Sequence[str], store: Store, sink: Sink) -> PackageSet:
    """These packages and what they need, from the suite of the tools tree, as this machine's archives have them now.

    Raises:
        TransportError, InputError: the archives cannot be read, or have no such package.
    """
    (found,) = _resolve(
        "resolve-tools",
        "Resolving the tools tree",
        (wanted,),
        debian.archives(debian.TOOLS_SUITE),
        suite=debian.TOOLS_SUITE,
        old=None,
        update=None,
        recommends=False,
        store=store,
        sink=sink,
        snapshot=lambda _origin: None,
    )
    return found


def _holds(packages: PackageSet, wanted: Sequence[str]) -> bool:
    return {*wanted} <= {package.name for package in packages.packages}


def _resolve(  # noqa: PLR0913 - one call describes one resolution
    name: str,
    title: str,
    layers: Sequence[Sequence[str]],
    archives: Sequence[Archive],
    *,
    suite: str,
    old: Sequence[PackageSet] | None,
    update: Sequence[str] | None,
    recommends: bool,
    store: Store,
    sink: Sink,
    snapshot: SnapshotOf,
) -> tuple[PackageSet, ...]:
    """What the last of `layers` needs, as one set a layer: what an earlier one needs is in that alone."""
    before = () if old is None or (update is not None and not update) else tuple(p for each in old for p in each.packages)
    kept = tuple(package for package in before if package.name not in (update or ()))
    # apt takes no notice of a pin on a version that is nowhere: all that is to stay must be here, whatever the archives have now.
    fetch(kept, lambda: archives, store, sink, snapshot=snapshot)
    with task(sink, name, title) as running, store.workspace() as scratch:
        local = _held_archive(kept, store, scratch / "held") if kept else ()
        resolver = Resolver(scratch / "apt", (*archives, *local))
        epoch = resolver.update(on_line=running.output)
        resolver.pin({package.name: package.version for package in kept})
        found = resolver.resolve(layers[-1], recommends=recommends)
        known = {(package.name, package.version): package for package in kept}
        rest = tuple(known.get((package.name, package.version), package) for package in found)
        running.detail = f"{len(rest)} packages"
        sets = []
        for wanted in layers[:-1]:
            layer = resolver.closure(wanted, rest)
            rest = tuple(package for package in rest if package not in layer)
            sets.append(layer)
    former = old or (None,) * len(layers)
    # Packages that stay keep their date: nothing is made again because an archive has another one.
    return tuple(
        was if was is not None and was.packages == packages else PackageSet(suite, epoch, packages)
        for was, packages in zip(former, (*sets, rest), strict=True)
    )


def _held_archive(held: Sequence[Package], store: Store, directory: Path) -> tuple[Archive, ...]:
    """An archive of what is locked, so that it can be kept although the real one has moved on."""
    lay_out(PackageSet("", 0, tuple(held)), store, directory)
    return (Archive("held", f"file:{directory}", ("./",), (), ()),)


def _settle_accounts(spec: Spec, fresh: Lock, store: Store, sink: Sink) -> Lock:
    """Install the packages, and pin the accounts whose ids would otherwise differ from what `fresh` remembers."""
    while True:
        accounts = _accounts(spec, fresh, store, sink)
        layer, shifted = next(
            ((layer, names) for layer, found in accounts.items() if (names := _unsettled(fresh, layer, found))), ("", set())
        )
        if not shifted:
            break
        # Who is pinned leaves another id to whoever had taken it, which may again be somebody's.
        pinned = tuple(sorted(shifted.union(getattr(fresh.pinned, layer))))
        fresh = replace(fresh, pinned=replace(fresh.pinned, **{layer: pinned}))
    users, groups = accounts["base"]
    # Accounts of packages that are gone stay recorded: their files may still lie in somebody's state.
    return replace(fresh, users=_merged(fresh.users, users), groups=_merged(fresh.groups, groups))


def _unsettled(fresh: Lock, layer: str, found: Accounts) -> set[str]:
    users, groups = found
    return (_shifted(fresh.users, users) | _shifted(fresh.groups, groups)).difference(getattr(fresh.pinned, layer))


def _accounts(spec: Spec, fresh: Lock, store: Store, sink: Sink) -> dict[str, Accounts]:
    """Who is there when the foundation is installed, and who when the base is."""
    tools = tools_step(fresh.tools, store, sink, spec)
    foundation = foundation_step(spec, fresh, tools, store, sink)
    outputs = execute((tools, foundation, base_step(spec, fresh, foundation, tools, store, sink)), store, sink)
    found: dict[str, Accounts] = {}
    for layer in ("foundation", "base"):
        result = json.loads((outputs[layer] / "result.json").read_text())
        users = tuple(_account(name, text) for name, text in result["users"].items())
        found[layer] = users, tuple(Account(name, number) for name, number in result["groups"].items())
    return found


def _account(name: str, text: str) -> Account:
    number, _, entry = text.partition(":")
    return Account(name, int(number), entry)


def _shifted(before: Sequence[Account], after: Sequence[Account]) -> set[str]:
    """Accounts that would get another id than before, or an id that another account had."""
    was = {account.name: account.id for account in before}
    owner = {account.id: account.name for account in before}
    moved = {a.name for a in after if a.name in was and was[a.name] != a.id}
    return moved | {owner[a.id] for a in after if a.name not in was and a.id in owner}


def _merged(before: Sequence[Account], after: Sequence[Account]) -> tuple[Account, ...]:
    merged = {account.name: account for account in before} | {account.name: account for account in after}
    return tuple(sorted(merged.values(), key=lambda account: (account.id, account.name)))
