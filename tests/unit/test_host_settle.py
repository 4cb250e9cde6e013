"""What a host says of an image that it left."""

import pytest
from host_samples import record

from obelisk.host.settle import has_fallen, reason_of
from obelisk.model.host import Event, Idle, Pending, Progress, Record, Trying, Underway

PENDING = Pending("shop_2", "id", "boot-1")
TRIED = Trying("shop_2", "id", ("boot-2", "boot-3"))


@pytest.mark.parametrize(
    ("state", "records", "reason"),
    [
        (TRIED, (record(Event.UNHEALTHY, boot="boot-3", detail="failed: page"),), "failed: page"),
        (TRIED, (record(Event.UNHEALTHY, boot="boot-1", detail="failed: before"),), "started 2 times and never became healthy"),
        (TRIED, (record(Event.UNHEALTHY, "shop_1", boot="boot-3", detail="failed: other"),), "started 2 times and never became healthy"),
        (Trying("shop_2", "id", ("boot-2",)), (), "started 1 time and never became healthy"),
        (PENDING, (), "never came as far as its state volume"),
    ],
    ids=["it said so", "that was an earlier trial", "that was another image", "it said nothing", "it never came up"],
)
def test_the_reason_is_what_the_failed_boots_said_or_did_not_say(state: Pending | Trying, records: tuple[Record, ...], reason: str) -> None:
    assert reason_of(state, records).startswith(reason)


@pytest.mark.parametrize(
    ("state", "running", "boot", "fallen"),
    [
        (Idle(), "shop_1", "boot-1", False),
        (Underway("shop_2", "id"), "shop_1", "boot-9", False),
        (PENDING, "shop_1", "boot-1", False),
        (PENDING, "shop_1", "boot-2", True),
        (PENDING, "shop_2", "boot-2", False),
        (TRIED, "shop_2", "boot-3", False),
        (TRIED, "shop_1", "boot-4", True),
    ],
    ids=["nothing", "not complete", "not started yet", "started, and it is not there", "it runs", "it is on trial", "it was tried"],
)
def test_an_image_has_fallen_when_it_was_to_run_and_another_does(state: Progress, running: str, boot: str, *, fallen: bool) -> None:
    assert has_fallen(state, running=running, boot=boot) is fallen
