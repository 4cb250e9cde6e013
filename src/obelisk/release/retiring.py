"""Discontinues releases: what no channel and no supported upgrade needs goes, and its space with it."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from obelisk.events import task
from obelisk.model import publication
from obelisk.model.publication import Contents, Retirement
from obelisk.release.publisher import Publisher
from obelisk.release.repository import GRACE, Repository, Swept, files_of, sweep
from obelisk.release.shelf import file_of


@dataclass(frozen=True, slots=True)
class Retired:
    """What was discontinued, and the space of it."""

    retirement: Retirement
    swept: Swept


def retire(publisher: Publisher, *, keep: int, before: datetime, dry_run: bool = False, grace: timedelta = GRACE) -> Retired:
    """Discontinue what no channel and no supported upgrade needs (`publication.retire`), and free its space after `grace`.

    Raises:
        InputError, StateError: it cannot be done, or keys are missing.
        TrustError: the repository is not to be trusted.
    """
    with publisher.changing() as there:
        plan = publication.retire(there.contents, keep=keep, before=before)
        if dry_run:
            return Retired(plan, _would_free(publisher, plan))
        with task(publisher.sink, "retire", "Discontinuing") as running:
            contents = _repacked(publisher, there, plan.contents)
            after = publisher.commit(there, contents)
            swept = sweep(publisher.shelf, after.trusted, publisher.delivery, publisher.act.at, grace=grace)
            running.detail = f"{len(plan.gone)} releases"
        return Retired(plan, swept)


def _repacked(publisher: Publisher, there: Repository, contents: Contents) -> Contents:
    """The same releases, over packs without what only retired ones needed."""
    done = publisher.delivery.repack(contents.releases, there.find, publisher.work, publisher.sink)
    for pack in done.packs:
        publisher.shelf.take(pack, file_of(pack))
    new = {old: publisher.take(index) for old, index in done.indexes.items()}
    for each in contents.releases:
        if each.index.sha256 in new:
            contents = contents.with_release(replace(each, index=new[each.index.sha256]))
    return contents


def _would_free(publisher: Publisher, plan: Retirement) -> Swept:
    stay = {file for each in plan.contents.releases for file in files_of(publisher.shelf, each, publisher.delivery)}
    go = {file for each in plan.gone for file in files_of(publisher.shelf, each, publisher.delivery)} - stay
    documents = tuple(each.target for each in plan.gone)
    return Swept((*documents, *sorted(file.path for file in go)), sum(file.size_bytes for file in go), 0)
