"""What `obelisk host history` makes of a journal."""

from host_samples import record

from obelisk.host.history import iterations
from obelisk.model.host import Event, Phase, Record


def boot(image: str, number: int) -> Record:
    """A boot of that image."""
    return record(Event.BOOTED, image, boot=f"boot-{number}")


def told(*records: Record) -> list[tuple[str, str, int, str]]:
    """Image, why, boots and outcome of each iteration."""
    return [(each.image, each.why, each.boots, each.outcome) for each in iterations(records)]


INSTALLED = record(Event.DONE, "shop_2", phase=Phase.PENDING)


def test_boots_of_one_image_are_one_iteration() -> None:
    healthy = record(Event.HEALTHY, "shop_1")
    assert told(boot("shop_1", 1), healthy, boot("shop_1", 2), healthy) == [("shop_1", "first boot", 2, "healthy")]


def test_an_upgrade_that_is_blessed() -> None:
    assert told(boot("shop_1", 1), INSTALLED, boot("shop_2", 2), record(Event.HEALTHY), record(Event.BLESSED)) == [
        ("shop_1", "first boot", 1, ""),
        ("shop_2", "upgrade from shop_1", 1, "blessed"),
    ]


def test_a_failed_check_and_the_way_back() -> None:
    failed = record(Event.UNHEALTHY, detail="failed: page")
    back = record(Event.FELL_BACK, detail="failed: page")
    assert told(boot("shop_1", 1), INSTALLED, boot("shop_2", 2), failed, boot("shop_1", 3), back) == [
        ("shop_1", "first boot", 1, ""),
        ("shop_2", "upgrade from shop_1", 1, "failed: page"),
        ("shop_1", "fell back from shop_2", 1, ""),
    ]


def test_an_image_that_never_came_up_has_its_place_too() -> None:
    back = record(Event.FELL_BACK, detail="refused")
    assert told(boot("shop_1", 1), INSTALLED, boot("shop_1", 2), record(Event.HEALTHY, "shop_1"), back) == [
        ("shop_1", "first boot", 1, "healthy"),
        ("shop_2", "upgrade", 0, "failed: refused"),
        ("shop_1", "fell back from shop_2", 1, "healthy"),
    ]


def test_an_image_that_ran_before_and_does_not_come_up_again_has_two_places() -> None:
    before = (boot("shop_1", 1), INSTALLED, boot("shop_2", 2), record(Event.BLESSED), record(Event.ROLLED_BACK), boot("shop_1", 3))
    assert told(*before, INSTALLED, boot("shop_1", 4), record(Event.FELL_BACK, detail="refused"))[1:] == [
        ("shop_2", "upgrade from shop_1", 1, "blessed"),
        ("shop_1", "rollback from shop_2", 1, ""),
        ("shop_2", "upgrade", 0, "failed: refused"),
        ("shop_1", "fell back from shop_2", 1, "healthy"),
    ]


def test_a_rollback_says_from_what() -> None:
    assert told(boot("shop_2", 1), record(Event.ROLLED_BACK), boot("shop_1", 2))[-1] == ("shop_1", "rollback from shop_2", 1, "")


def test_a_journal_without_a_beginning_is_told_as_far_as_it_goes() -> None:
    assert told(record(Event.BLESSED), record(Event.HEALTHY), boot("shop_2", 1)) == [("shop_2", "first boot", 1, "")]
    assert told(record(Event.FELL_BACK, detail="lost")) == [("shop_2", "upgrade", 0, "failed: lost")]


def test_an_image_that_failed_its_rehearsal_has_its_place_behind_what_ran_then() -> None:
    begun, unfit = record(Event.BEGUN), record(Event.UNFIT, detail="failed: page")
    begin = (boot("shop_1", 1), record(Event.HEALTHY, "shop_1"), begun, unfit)
    assert told(*begin, boot("shop_1", 2)) == [
        ("shop_1", "first boot", 2, "healthy"),
        ("shop_2", "rehearsal", 0, "failed: page"),
    ]
    rehearsed = (begun, record(Event.REHEARSED), INSTALLED, boot("shop_2", 3), record(Event.BLESSED))
    assert told(*begin, *rehearsed) == [
        ("shop_1", "first boot", 1, "healthy"),
        ("shop_2", "rehearsal", 0, "failed: page"),
        ("shop_2", "upgrade from shop_1, rehearsed", 1, "blessed"),
    ]
    assert told(*begin, *rehearsed, begun, INSTALLED, boot("shop_3", 4))[-1] == ("shop_3", "upgrade from shop_2", 1, "")
