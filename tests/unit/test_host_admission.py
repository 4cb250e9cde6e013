"""Which images a host takes, and where it puts them."""

from dataclasses import replace

import pytest
from host_samples import facts, manifest, slot

from obelisk.errors import StateError, TrustError
from obelisk.host.admission import Facts, choose_slot, refusal, require_trusted
from obelisk.model.host import Entry, Pending, Trying
from obelisk.model.image import Manifest
from obelisk.model.state import Encryption

FAILED = manifest("2")


@pytest.mark.parametrize(
    ("given", "image", "code"),
    [
        (facts(), manifest("2", architecture="arm64"), "architecture"),
        (facts(), manifest("2", name="other"), "other-image"),
        (facts(), replace(manifest("2"), role="app"), "application"),
        (facts(), manifest("1"), "same-version"),
        (facts("2"), manifest("1.9"), "downgrade"),
        (facts("10"), manifest("9"), "downgrade"),
        (facts(entries=(Entry("shop", "1", 2, 1),)), manifest("2"), "on-trial"),
        (facts(entries=(Entry("shop", "1", 0, 3),)), manifest("2"), "on-trial"),
        (facts(failed=frozenset({FAILED.id})), FAILED, "failed-before"),
        (replace(facts(), unfit=frozenset({FAILED.id})), FAILED, "unfit-before"),
        (replace(facts(), state_version=2), manifest("2"), "state-older"),
        (facts(), replace(manifest("2"), state_version=3, state_oldest=2), "state-gap"),
        (facts(), replace(manifest("2"), state_encryption=Encryption.TPM2), "state-encryption"),
        (replace(facts(), encryption=Encryption.TPM2), manifest("2"), "state-encryption"),
    ],
)
def test_what_must_not_be_installed_is_refused_with_a_reason_and_a_remedy(given: Facts, image: Manifest, code: str) -> None:
    error = refusal(given, image, retry=False)
    assert error is not None
    assert error.code == code
    assert error.hint or code == "architecture"


@pytest.mark.parametrize(
    "given",
    [
        facts(),
        facts(entries=(Entry("shop", "1"), Entry("shop", "2", 3))),
        facts(progress=Pending("shop_2", "id", "boot")),
        facts(progress=Trying("shop_2", "id", ("boot",))),
    ],
    ids=["plain", "another has an entry", "another is pending", "another was tried and nobody has noted yet that it failed"],
)
def test_a_newer_image_is_taken(given: Facts) -> None:
    assert refusal(given, manifest("3"), retry=False) is None


def test_an_image_that_migrates_the_state_from_where_it_is_is_taken() -> None:
    given = replace(facts(), state_version=2)
    for version, oldest in ((2, 2), (2, 1), (3, 2), (4, 1)):
        assert refusal(given, replace(manifest("2"), state_version=version, state_oldest=oldest), retry=False) is None


def test_an_image_that_failed_is_taken_when_it_is_named() -> None:
    assert refusal(facts(failed=frozenset({FAILED.id})), FAILED, retry=True) is None
    assert refusal(replace(facts(), unfit=frozenset({FAILED.id})), FAILED, retry=True) is None


def test_retry_opens_no_other_door() -> None:
    error = refusal(facts("3", failed=frozenset({FAILED.id})), FAILED, retry=True)
    assert error is not None
    assert error.code == "downgrade"


A, EMPTY, HALF = slot("a", "shop_1"), slot("b", "_empty"), slot("c", "PRT#shop_2")


@pytest.mark.parametrize(
    ("slots", "good", "letter"),
    [
        ((A, EMPTY), {"shop_1"}, "b"),
        ((A, slot("b", "shop_0")), {"shop_1", "shop_0"}, "b"),
        ((A, slot("b", "shop_0"), slot("c", "_empty")), {"shop_1", "shop_0"}, "c"),
        ((A, slot("b", "shop_0"), slot("c", "shop_2")), {"shop_1", "shop_0"}, "c"),
        ((A, slot("b", "shop_0.9"), slot("c", "shop_0.10")), {"shop_1", "shop_0.9", "shop_0.10"}, "b"),
        ((A, EMPTY, HALF), {"shop_1"}, "c"),
        ((A, slot("b", "_empty", root_mib=50), slot("c", "shop_0")), {"shop_1", "shop_0"}, "c"),
    ],
    ids=["the empty one", "the only other", "empty before good", "bad before good", "the older", "where it was begun", "where it fits"],
)
def test_the_slot_that_is_needed_least_is_written(slots: tuple[object, ...], good: set[str], letter: str) -> None:
    given = facts(slots=slots, good=frozenset(good))  # type: ignore[arg-type]
    assert choose_slot(given, manifest("2")).letter == letter


@pytest.mark.parametrize(
    ("slots", "code"), [((A,), "slot-missing"), ((A, slot("b", "_empty", root_mib=99)), "slot-small")], ids=["one slot", "too small"]
)
def test_without_a_slot_nothing_is_written(slots: tuple[object, ...], code: str) -> None:
    with pytest.raises(StateError) as caught:
        choose_slot(facts(slots=slots), manifest("2"))  # type: ignore[arg-type]
    assert caught.value.code == code


def test_the_booted_slot_is_never_chosen() -> None:
    given = facts(slots=(slot("a", "_empty"), slot("b", "shop_1")))
    given = replace(given, booted=given.slots[1])
    assert choose_slot(given, manifest("2")).letter == "a"


def test_a_kernel_that_the_firmware_would_refuse_is_not_installed() -> None:
    with pytest.raises(TrustError):
        require_trusted(manifest(), secure_boot=True, signed=False)
    require_trusted(manifest(), secure_boot=True, signed=True)
    require_trusted(manifest(), secure_boot=False, signed=False)
