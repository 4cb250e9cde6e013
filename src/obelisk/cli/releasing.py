"""Commands of a publisher: release, promote, withdraw, retire, and repo …."""

from argparse import Namespace
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from obelisk.cli.places import find_image, open_store
from obelisk.cli.publisher import delivery, duration, lifetimes, looked_at, own_tester, place_of, publishing, repository_at
from obelisk.cli.terminal import answer, reporting, size
from obelisk.errors import TrustError
from obelisk.events import Note
from obelisk.model.publication import Terms
from obelisk.model.release import Hosts
from obelisk.release.checking import Finding, Kind, costs, verify
from obelisk.release.publisher import Founding
from obelisk.release.publishing import Wanted, begin
from obelisk.release.publishing import promote as promote_release
from obelisk.release.publishing import release as release_image
from obelisk.release.publishing import withdraw as withdraw_release
from obelisk.release.repository import GRACE
from obelisk.release.retiring import retire as retire_releases
from obelisk.release.rotating import refresh
from obelisk.release.shelf import FILES, METADATA, TARGETS, Shelf
from obelisk.release.sysupdate import check
from obelisk.system.serving import Site, listening

_AFTERWARDS = ("its metadata expires: run `obelisk repo refresh` daily, where the keys of snapshot and timestamp are",)


def release(arguments: Namespace) -> int:
    """Make an image available in a channel."""
    store = open_store(arguments)
    image = find_image(store, arguments.image)
    proofs = tuple(path.read_bytes() for path in store.proofs(image.id))
    terms = Terms(arguments.minimum, arguments.allow_test_key)
    wanted = Wanted(image, proofs, arguments.channel, terms, arguments.edges, arguments.approve_growth)
    with publishing(arguments, store) as publisher:
        new = publisher.shelf.metadata("timestamp.json") is None
        made = release_image(publisher, wanted, Founding(own_tester(), lifetimes(arguments)))
    place = publisher.shelf.root
    lines = [f"{made.name} {made.version} is in {arguments.channel} of {place}"]
    lines += [f"  from {edge.from_version:<12} {size(edge.file.size_bytes)}" for edge in made.edges]
    if new:
        whom = "machines that install from it" if image.manifest.is_application else "hosts, in their spec,"
        lines.append(f"this is a new repository: give {whom} its root, {place}/metadata/1.root.json")
        lines += _AFTERWARDS
    edges = [{"from": edge.from_version, "size": edge.file.size_bytes} for edge in made.edges]
    answer("\n".join(lines), json_wanted=arguments.json, image=made.image, version=made.version, channel=arguments.channel, edges=edges)
    return 0


def promote(arguments: Namespace) -> int:
    """Make a release available in another channel."""
    with publishing(arguments, open_store(arguments)) as publisher:
        approval, name = arguments.approve_growth, arguments.name
        made = promote_release(
            publisher, arguments.version, arguments.source, arguments.target, name=name, edges=arguments.edges, approval=approval
        )
    text = f"{made.name} {made.version} is in {arguments.target}"
    answer(text, json_wanted=arguments.json, image=made.image, version=made.version, channel=arguments.target)
    return 0


def withdraw(arguments: Namespace) -> int:
    """Take a release back."""
    hosts = Hosts(arguments.hosts)
    with publishing(arguments, open_store(arguments)) as publisher:
        done = withdraw_release(publisher, arguments.version, hosts=hosts, channel=arguments.channel, name=arguments.name)
    lines = [
        f"{arguments.version} is withdrawn from {channel}, which now has {current or 'nothing'}" for channel, current in done.now_current
    ]
    if hosts is Hosts.BACK:
        lines.append("hosts that run it go back to the image before, at their next look")
    channels = {channel: current or None for channel, current in done.now_current}
    answer("\n".join(lines), json_wanted=arguments.json, version=arguments.version, now=channels)
    return 0


def retire(arguments: Namespace) -> int:
    """Discontinue what nothing needs."""
    before = datetime.now(UTC) - duration(arguments.older_than, "--older-than")
    grace = timedelta(0) if arguments.now else GRACE
    with publishing(arguments, open_store(arguments)) as publisher:
        done = retire_releases(publisher, keep=arguments.keep, before=before, dry_run=arguments.dry_run, grace=grace)
    gone = [f"{each.name} {each.version}" for each in done.retirement.gone]
    verb = "would go" if arguments.dry_run else "is gone"
    lines = [f"{each} {verb}" for each in gone]
    freed = f"{'would free' if arguments.dry_run else 'freed'} {size(done.swept.size_bytes)}"
    if done.swept.waiting_bytes:
        freed += f"; {size(done.swept.waiting_bytes)} more in an hour, by the next `obelisk repo refresh`"
    answer(
        "\n".join([*lines, freed]),
        json_wanted=arguments.json,
        gone=gone,
        delisted=[list(each) for each in done.retirement.delisted],
        size=done.swept.size_bytes,
        waiting=done.swept.waiting_bytes,
        dry_run=arguments.dry_run,
    )
    return 0


def repo(arguments: Namespace) -> int:
    """Run one of the commands that look after a repository."""
    actions = {
        "init": _init,
        "list": _list,
        "verify": _verify,
        "sysupdate": _sysupdate,
        "stats": _stats,
        "refresh": _refresh,
        "serve": _serve,
    }
    return actions[arguments.action](arguments)


def _init(arguments: Namespace) -> int:
    with publishing(arguments, open_store(arguments)) as publisher:
        begin(publisher, Founding(own_tester(), lifetimes(arguments)))
    place = publisher.shelf.root
    root = place / "metadata/1.root.json"
    lines = [f"{place} is a repository without releases; images follow it that have {root}", *_AFTERWARDS]
    answer("\n".join(lines), json_wanted=arguments.json, repository=str(place), root=str(root))
    return 0


def _list(arguments: Namespace) -> int:
    there = looked_at(arguments)
    lines, found = [], []
    for channel in there.contents.channels:
        lines.append(f"{channel.name} {channel.channel}")
        for listing in reversed(channel.listings):
            state = f"withdrawn: {listing.withdrawn}" if listing.withdrawn else "current" if listing == channel.current else ""
            source = f" from {listing.source}" if listing.source else ""
            remarks = "; ".join(filter(None, (state, listing.why)))
            lines.append(f"  {listing.version:<12} {listing.image[:12]}  {listing.at}  {listing.by}{source}  {remarks}".rstrip())
            lines += [f"    may also: {line}" for line in listing.growth]
            lines += [f"    approved: {listing.approved}"] if listing.growth else []
        found.append({"name": channel.name, "channel": channel.channel, "releases": [listing.to_json() for listing in channel.listings]})
    answer("\n".join(lines) or "nothing is released", json_wanted=arguments.json, channels=found)
    return 0


def _sysupdate(arguments: Namespace) -> int:
    from obelisk.cli.sysupdate import sysupdate

    return sysupdate(arguments)


def _verify(arguments: Namespace) -> int:
    place = place_of(arguments)
    with suppress(TrustError):  # which is then a finding
        repository_at(str(place), json_wanted=arguments.json)
    with reporting(json_wanted=arguments.json) as sink:
        findings = verify(Shelf(place), delivery(), datetime.now(UTC), sink)
    findings += tuple(Finding(Kind.DAMAGED, str(path.relative_to(place)), problem) for path, problem in check(place))
    damaged = [finding for finding in findings if finding.kind is not Kind.SUPERFLUOUS]
    lines = [f"{finding.kind}: {finding.name}: {finding.problem}" for finding in findings]
    if not damaged:
        lines.append("the repository is sound" + (f"; {len(findings)} files go at the next change" if findings else ""))
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        findings=[{"kind": finding.kind.value, "name": finding.name, "problem": finding.problem} for finding in findings],
    )
    return 3 if damaged else 0


def _stats(arguments: Namespace) -> int:
    there = looked_at(arguments)
    found = costs(there, delivery())
    lines = []
    for cost in found:
        where = ", ".join(cost.channels) or "no channel"
        lines.append(
            f"{cost.name} {cost.version:<12} root {size(cost.root_bytes):>10}  own {size(cost.own_bytes):>10}"
            f"  shared {size(cost.shared_bytes):>10}  {where}"
        )
        lines += [f"  from {version:<12} {size(count):>10}" for version, count in cost.edges]
    total = sum(path.stat().st_size for path in there.shelf.path(FILES).rglob("*") if path.is_file())
    lines.append(f"{size(total)} in all; {size(sum(cost.root_bytes for cost in found))} of images")
    releases = [
        {
            "name": cost.name,
            "version": cost.version,
            "channels": list(cost.channels),
            "root": cost.root_bytes,
            "own": cost.own_bytes,
            "shared": cost.shared_bytes,
            "edges": [{"from": version, "size": count} for version, count in cost.edges],
        }
        for cost in found
    ]
    answer("\n".join(lines), json_wanted=arguments.json, size=total, releases=releases)
    return 0


def _refresh(arguments: Namespace) -> int:
    with publishing(arguments, open_store(arguments)) as publisher:
        done = refresh(publisher, lifetimes(arguments), everything=arguments.all)
    said = {role: "signed anew" if role in done.roles else "as it was" for role, _ in done.expiry}
    lines = [f"{role:<10} {said[role]}, holds until {at:%Y-%m-%d %H:%M} UTC" for role, at in done.expiry]
    expiry = {role.value: at.isoformat() for role, at in done.expiry}
    answer("\n".join(lines), json_wanted=arguments.json, signed=[role.value for role in done.roles], expires=expiry)
    return 0


def _serve(arguments: Namespace) -> int:
    there = looked_at(arguments)

    def immutable(name: str) -> bool:
        return name.startswith((f"{FILES}/", f"{TARGETS}/")) or (name.startswith(f"{METADATA}/") and name != f"{METADATA}/timestamp.json")

    with reporting(json_wanted=arguments.json) as sink:
        site = Site(there.shelf.root, immutable, lambda line: sink(Note(line)))
        with listening(site, bind=arguments.bind, port=arguments.port) as server:
            url = f"http://{f'[{arguments.bind}]' if ':' in arguments.bind else arguments.bind}:{server.port}/"
            answer(f"{there.shelf.root} is at {url}; Ctrl-C ends it", json_wanted=arguments.json, url=url)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return 0
    return 0
