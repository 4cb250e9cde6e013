"""What this machine ran: the journal folded into iterations, each an image for as long as nothing else was booted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from obelisk.model.canonical import Json
from obelisk.model.host import Event, Phase, Record


@dataclass(frozen=True, slots=True)
class Iteration:
    """One image from its first boot to the next change; or one that never ran here, for its rehearsal failed.

    `healthy_ms` is the time from the kernel's start to healthy (on a trial: to blessed) of the first boot that came so far; `outcome` is
    empty as long as none did and none failed.
    """

    image: str
    since: str
    why: str
    boots: int = 0
    healthy_ms: int | None = None
    outcome: str = ""

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {
            "image": self.image,
            "since": self.since,
            "why": self.why,
            "boots": self.boots,
            "healthy_ms": self.healthy_ms,
            "outcome": self.outcome,
        }


def iterations(records: Iterable[Record]) -> tuple[Iteration, ...]:
    """All iterations, oldest first; what failed a rehearsal comes behind what ran then."""
    given = tuple(records)
    found = _ran(given)
    for index, record in reversed(tuple(enumerate(given))):
        if record.event is Event.UNFIT:
            found.insert(len(_ran(given[:index])), Iteration(record.image, record.at, "rehearsal", outcome=record.detail))
    return tuple(found)


def _ran(records: tuple[Record, ...]) -> list[Iteration]:
    found: list[Iteration] = []
    boots: set[str] = set()
    why = "first boot"
    since = 0  # where iterations of the image begin that was installed last; it may have run here before
    for index, record in enumerate(records):
        match record.event:
            case Event.DONE if record.phase is Phase.PENDING:
                why = (f"upgrade from {found[-1].image}" if found else "upgrade") + (
                    ", rehearsed" if _was_rehearsed(records[:index]) else ""
                )
                since = len(found)
            case Event.ROLLED_BACK:
                why = f"rollback from {record.image}"
            case Event.RESTORED if found:
                found[-1] = replace(found[-1], why=f"{found[-1].why}, {record.detail}")
            case Event.BOOTED if record.boot not in boots:
                boots.add(record.boot)
                if not found or found[-1].image != record.image:
                    found.append(Iteration(record.image, record.at, why or "unknown"))
                    why = ""
                found[-1] = replace(found[-1], boots=found[-1].boots + 1)
            case Event.HEALTHY | Event.BLESSED if found and found[-1].image == record.image:
                outcome = "blessed" if record.event is Event.BLESSED else found[-1].outcome or "healthy"
                found[-1] = replace(found[-1], outcome=outcome, healthy_ms=found[-1].healthy_ms or record.duration_ms)
            case Event.UNHEALTHY if found and found[-1].image == record.image:
                found[-1] = replace(found[-1], outcome=record.detail)
            case Event.FELL_BACK:
                why = ""
                _fall_back(found, record, since)
            case _:
                pass
    return found


def _was_rehearsed(before: tuple[Record, ...]) -> bool:
    """Whether the upgrade that the last of these records belongs to had a rehearsal."""
    last = max((index for index, record in enumerate(before) if record.event is Event.BEGUN), default=0)
    return any(record.event is Event.REHEARSED for record in before[last:])


def _fall_back(found: list[Iteration], record: Record, since: int) -> None:
    """`record` names an image that was tried and does not run: its iteration failed, and the present one is what it fell back to."""
    places = [index for index, each in enumerate(found) if index >= since and each.image == record.image]
    if places:
        failed = found[places[-1]]
        found[places[-1]] = replace(failed, outcome=failed.outcome or f"failed: {record.detail}")
        if found[-1].image != record.image:
            found[-1] = replace(found[-1], why=f"fell back from {record.image}")
        return
    failed = Iteration(record.image, record.at, "upgrade", outcome=f"failed: {record.detail}")
    if not found:
        found.append(failed)
        return
    # It never came so far as to say that it was booted; the image before it went on.
    now = found.pop()
    if now.boots > 1:
        found.append(replace(now, boots=now.boots - 1))
    found.append(failed)
    found.append(Iteration(now.image, record.at, f"fell back from {record.image}", 1, now.healthy_ms, "healthy"))
