"""A service goes from iteration to iteration, with health in charge, wherever a command is cut."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fake_engine import FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from service_samples import SHOP, SICK, STATEFUL, World, in_memory

from obelisk.errors import InputError, MissingFeatureError, ObeliskError, StateError, TrustError
from obelisk.events import silent
from obelisk.instance import traffic
from obelisk.instance.lodging import Lodging
from obelisk.instance.proving import Seen
from obelisk.instance.service import Means, Services
from obelisk.model import rollout
from obelisk.model.instance import Port
from obelisk.model.rollout import wanted
from obelisk.model.service import CUT, REMEMBERED, Phase, Saved, Share, Terms, slots
from obelisk.system.files import locked


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with a service that has no iteration yet."""
    return made(tmp_path, monkeypatch)


@pytest.fixture
def stateful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The same with two instances that have a state."""
    return made(tmp_path, monkeypatch, STATEFUL)


def made(top: Path, monkeypatch: pytest.MonkeyPatch, terms: Terms = SHOP) -> World:
    world = World(top, terms)
    in_memory(monkeypatch, world)
    world.services.create(terms)
    return world


def test_the_next_iteration_takes_connections_and_the_one_before_is_kept(world: World) -> None:
    world.deploy("one")
    assert (world.images_led(), world.image(Phase.KEPT)) == ({"one"}, "")
    world.deploy("two")
    assert (world.images_led(), world.image(Phase.CURRENT), world.image(Phase.KEPT)) == ({"two"}, "two", "one")
    assert world.said == ["create shop-1-1", "lead", "save shop-1-1", "create shop-2-1", "lead"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("bad", "gave no good answer"),
        ("dead", "did not stay up"),
        ("ill", "find shop-2-1 not healthy"),
        ("mute", "said nothing of its checks"),
    ],
)
def test_a_deploy_that_fails_takes_no_connection_is_cleaned_away_and_keeps_its_reason(world: World, image: str, reason: str) -> None:
    world.deploy("one")
    world.said.clear()
    with pytest.raises(StateError, match=reason) as error:
        world.deploy(image)
    assert error.value.code == "service-unhealthy"
    assert (world.images_led(), set(world.there)) == ({"one"}, {"shop-1-1"})
    assert "lead" not in world.said
    assert reason in world.service.find(2).reason
    assert world.service.find(2).phase is Phase.GONE


def test_a_first_deploy_that_fails_leaves_nothing(world: World) -> None:
    with pytest.raises(StateError):
        world.deploy("bad")
    assert (world.there, world.shares) == ({}, ())


def test_an_engine_that_cannot_create_is_the_reason(world: World) -> None:
    world.refusing.add("create")
    with pytest.raises(StateError, match="one took no connection: create is refused"):
        world.deploy("one")


def test_a_canary_has_its_share_then_more_then_all(world: World) -> None:
    world.deploy("one")
    world.deploy("two", percent=10)
    assert [share.percent for share in world.shares] == [10, 90]
    assert (world.image(Phase.CANARY), world.image(Phase.CURRENT)) == ("two", "one")
    world.services.promote("shop", percent=50)
    assert [share.percent for share in world.shares] == [50, 50]
    world.services.promote("shop")
    assert (world.images_led(), world.image(Phase.KEPT), world.image(Phase.CANARY)) == ({"two"}, "one", "")


def test_a_first_iteration_has_all_whatever_its_share(world: World) -> None:
    world.deploy("one", percent=10)
    assert (world.images_led(), world.image(Phase.CURRENT)) == ({"one"}, "one")


@pytest.mark.parametrize("command", ["promote", "tend"])
def test_a_canary_that_is_not_healthy_any_more_is_withdrawn(world: World, command: str) -> None:
    world.deploy("one")
    world.deploy("two", percent=10)
    world.ailing.add("two")
    if command == "tend":
        world.services.tend("shop")
    else:
        with pytest.raises(StateError, match="the canary is withdrawn"):
            world.services.promote("shop")
    assert world.images_led() == {"one"}
    assert "no good answer" in world.service.find(2).reason


def test_while_a_canary_is_under_way_nothing_else_is_deployed(world: World) -> None:
    world.deploy("one")
    world.deploy("two", percent=10)
    with pytest.raises(StateError) as error:
        world.deploy("three")
    assert error.value.code == "service-canary"


def test_a_rollback_withdraws_the_canary(world: World) -> None:
    world.deploy("one")
    world.deploy("two", percent=10)
    world.services.rollback("shop")
    assert (world.images_led(), world.image(Phase.DRAINING)) == ({"one"}, "two")


def test_a_rollback_leads_to_the_kept_iteration_and_keeps_the_other(world: World) -> None:
    world.deploy("one")
    world.deploy("two")
    world.services.rollback("shop")
    assert (world.images_led(), world.image(Phase.KEPT)) == ({"one"}, "two")
    world.services.rollback("shop")
    assert (world.images_led(), world.image(Phase.KEPT)) == ({"two"}, "one")


def test_a_rollback_to_what_is_not_healthy_changes_nothing(world: World) -> None:
    world.deploy("one")
    world.deploy("two")
    world.ailing.add("one")
    with pytest.raises(StateError, match="nothing was rolled back"):
        world.services.rollback("shop")
    assert (world.images_led(), world.image(Phase.KEPT)) == ({"two"}, "one")


def test_the_kept_iteration_goes_when_its_time_is_up_and_its_connections_have_ended(world: World) -> None:
    world.deploy("one")
    address = world.there["shop-1-1"].address
    world.deploy("two")
    world.open[address] = 3
    world.time += SHOP.keep_s - 1
    world.services.tend("shop")
    assert world.image(Phase.KEPT) == "one"
    world.time += 1
    world.services.tend("shop")
    world.time += SHOP.drain_s - 1
    world.services.tend("shop")
    assert world.image(Phase.DRAINING) == "one"
    world.open[address] = 0
    world.services.tend("shop")
    assert set(world.there) == {"shop-2-1"}
    with pytest.raises(StateError) as error:
        world.services.rollback("shop")
    assert error.value.code == "no-kept"


def test_connections_that_do_not_end_are_cut_when_the_time_for_that_is_up(world: World) -> None:
    world.deploy("one")
    world.open[world.there["shop-1-1"].address] = 3
    world.deploy("two")
    world.time += SHOP.keep_s
    world.services.tend("shop")
    world.time += SHOP.drain_s
    world.services.tend("shop")
    assert set(world.there) == {"shop-2-1"}


def test_a_connection_that_was_being_made_during_the_shift_is_waited_for(world: World) -> None:
    world.deploy("one")
    world.deploy("two")
    world.deploy("three")
    world.services.tend("shop")
    assert world.image(Phase.DRAINING) == "one"
    world.time += 2
    world.services.tend("shop")
    assert world.image(Phase.DRAINING) == ""


def test_each_instance_gets_the_state_of_the_one_that_it_replaces(stateful: World) -> None:
    stateful.deploy("one")
    stateful.write("one", "orders")
    stateful.deploy("two")
    assert stateful.state("two") == {"orders"}
    assert len(stateful.led) == 2


def test_a_rollback_brings_the_state_of_before_the_replacement_back_when_told_to(stateful: World) -> None:
    stateful.deploy("one")
    stateful.write("one", "orders")
    stateful.deploy("two")
    stateful.write("one", " late")
    stateful.services.rollback("shop")
    assert (stateful.images_led(), stateful.state("one")) == ({"one"}, {"orders late"})
    stateful.services.rollback("shop")
    stateful.services.rollback("shop", with_state=True)
    assert (stateful.images_led(), stateful.state("one")) == ({"one"}, {"orders"})


def test_the_state_is_saved_anew_when_a_canary_takes_all(stateful: World) -> None:
    stateful.deploy("one")
    stateful.deploy("two", percent=10)
    stateful.write("one", "orders")
    stateful.services.promote("shop")
    stateful.services.rollback("shop", with_state=True)
    assert stateful.state("one") == {"orders"}


def test_no_snapshot_is_left_by_a_deploy_that_failed(stateful: World) -> None:
    stateful.deploy("one")
    with pytest.raises(StateError):
        stateful.deploy("bad")
    assert all(not each.snapshots for each in stateful.there.values())
    with pytest.raises(StateError) as error:
        stateful.services.rollback("shop", with_state=True)
    assert error.value.code == "no-kept"


def test_an_iteration_whose_state_could_not_be_set_back_goes(stateful: World) -> None:
    stateful.deploy("one")
    stateful.deploy("two")
    stateful.refusing.add("restore")
    with pytest.raises(StateError, match="restore is refused"):
        stateful.services.rollback("shop", with_state=True)
    assert (stateful.images_led(), {each.image for each in stateful.there.values()}) == ({"two"}, {"two"})


def test_state_is_brought_back_only_to_what_was_replaced(world: World) -> None:
    world.deploy("one")
    world.deploy("two")
    world.services.rollback("shop")
    with pytest.raises(StateError) as error:
        world.services.rollback("shop", with_state=True)
    assert error.value.code == "no-snapshot"


def test_without_being_told_to_carry_it_an_iteration_begins_with_empty_state(world: World) -> None:
    world.deploy("one")
    world.write("one", "orders")
    world.deploy("two")
    assert world.state("two") == {""}
    world.write("one", " late")
    world.services.rollback("shop", with_state=True)
    assert world.state("one") == {"orders"}


def test_what_cannot_be_removed_holds_nothing_up(world: World) -> None:
    world.refusing.add("retire")
    with pytest.raises(StateError):
        world.deploy("bad")
    world.deploy("one")
    assert set(world.there) == {"shop-1-1", "shop-2-1"}
    world.refusing.clear()
    world.services.tend("shop")
    assert set(world.there) == {"shop-2-1"}


def test_connections_that_cannot_be_led_elsewhere_stay_where_they_are(world: World) -> None:
    world.deploy("one")
    world.refusing.add("lead")
    with pytest.raises(StateError, match="lead is refused"):
        world.deploy("two")
    assert world.images_led() == {"one"}
    world.refusing.clear()
    world.services.tend("shop")
    assert (world.images_led(), set(world.there)) == ({"one"}, {"shop-1-1"})


def test_instances_that_have_fallen_are_started_and_connections_are_led_again(world: World) -> None:
    world.deploy("one")
    world.there["shop-1-1"].running = False
    world.shares = ()
    world.services.tend("shop")
    assert world.there["shop-1-1"].running
    assert world.images_led() == {"one"}
    assert world.image(Phase.CURRENT) == "one"


def test_a_service_is_retired_with_all_that_it_has(world: World) -> None:
    world.deploy("one")
    world.deploy("two")
    world.ending = True
    world.services.retire("shop")
    assert (world.there, world.shares, world.services.names()) == ({}, (), ())
    with pytest.raises(InputError) as error:
        world.services.tend("shop")
    assert error.value.code == "service-missing"
    world.services.create(SHOP)


def test_nobody_is_led_to_an_instance_that_is_gone_by_a_connection_of_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[tuple[str, bool, bool]] = []

    def release(address: str, *, open_too: bool) -> None:
        released.append((address, open_too, "shop-1-1" in world.there))

    monkeypatch.setattr(world, "release", release)
    world.deploy("one")
    address = world.there["shop-1-1"].address
    world.deploy("two")
    for seconds in (SHOP.keep_s, SHOP.drain_s):
        world.time += seconds
        world.services.tend("shop")
    assert released == [(address, False, True), (address, True, False)]


def test_a_retirement_goes_on_where_it_was_cut(world: World) -> None:
    for points in range(40):
        world.deploy("one")
        world.ending = True
        with world.cut_after(points):
            world.services.retire("shop")
        if world.services.names():
            try:
                world.services.tend("shop")
            except InputError:
                assert not world.services.names()
        world.ending = False
        if world.services.names():
            assert world.images_led() == {"one"}
            continue
        assert (world.there, world.shares) == ({}, ())
        world.services.create(SHOP)
    assert points == 39


def test_an_instance_that_cannot_be_removed_keeps_its_service(world: World) -> None:
    world.deploy("one")
    world.ending = True
    world.refusing.add("retire")
    with pytest.raises(StateError) as error:
        world.services.retire("shop")
    assert error.value.code == "service-instances"
    assert world.services.names() == ("shop",)


COMMANDS: dict[str, Callable[[World], object]] = {
    "deploy": lambda world: world.deploy("three"),
    "canary": lambda world: world.deploy("three", percent=30),
    "promote": lambda world: world.services.promote("shop"),
    "rollback": lambda world: world.services.rollback("shop"),
    "back with state": lambda world: world.services.rollback("shop", with_state=True),
}


@pytest.mark.parametrize(
    ("command", "terms"),
    [(command, terms) for command in COMMANDS for terms in (SHOP, STATEFUL)],
    ids=lambda value: value if isinstance(value, str) else "carrying" if value.carries else "bare",
)
def test_a_command_that_is_cut_anywhere_is_undone_or_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, terms: Terms
) -> None:
    """The next command finds one of the two, and nothing else is left."""
    points = 0
    seen: Counter[bool] = Counter()
    while True:
        world = made(tmp_path / str(points), monkeypatch, terms)
        world.deploy("one")
        world.deploy("two", percent=10 if command == "promote" else 100)
        before = world.shares
        with world.cut_after(points):
            COMMANDS[command](world)
            break
        assert world.shares
        world.services.tend("shop")
        seen[world.shares != before] += 1
        settled(world)
        points += 1
    assert seen[True]
    assert seen[False]


def test_connections_that_were_being_led_elsewhere_when_a_command_was_cut_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was proven, and may have connections already: going back would be another change for nothing."""
    finished = 0
    for points in range(30):
        world = made(tmp_path / str(points), monkeypatch)
        world.deploy("one")
        world.said.clear()
        with world.cut_after(points):
            world.deploy("two")
        begun = "lead" in world.said
        world.services.tend("shop")
        assert not begun or world.images_led() == {"two"}
        finished += begun
    assert 0 < finished < 30


def test_what_is_gone_is_forgotten_but_for_the_last_of_it(world: World) -> None:
    for number in range(REMEMBERED + 10):
        world.deploy(f"v{number}")
        world.time += SHOP.keep_s + 2
        world.services.tend("shop")
        world.time += 2
        world.services.tend("shop")
    found = world.service.iterations
    assert [each.phase for each in found] == [Phase.GONE] * REMEMBERED + [Phase.CURRENT]
    assert all(each.saved is Saved.NONE for each in found)


def test_the_same_deploy_goes_on_where_it_was_cut(world: World) -> None:
    world.deploy("one")
    world.said.clear()
    with world.cut_after(12):
        world.deploy("two")
    assert world.said == ["save shop-1-1", "create shop-2-1"]
    world.deploy("two")
    assert world.images_led() == {"two"}
    assert world.service.next_number == 3


def test_another_deploy_undoes_one_that_was_cut(world: World) -> None:
    world.deploy("one")
    with world.cut_after(12):
        world.deploy("two")
    assert "shop-2-1" in world.there
    world.deploy("three")
    assert (set(world.there), world.service.find(2).reason) == ({"shop-1-1", "shop-3-1"}, CUT)


def test_an_interrupted_deploy_is_undone_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy("one")
    answers = iter([KeyboardInterrupt])

    def interrupted(_seconds: float) -> None:
        raise next(answers)

    monkeypatch.setattr("obelisk.instance.proving.time.sleep", interrupted)
    monkeypatch.setattr("obelisk.instance.proving.time.monotonic", lambda: 0.0)
    with pytest.raises(KeyboardInterrupt):
        world.deploy("bad")
    assert set(world.there) == {"shop-1-1"}


def test_two_commands_at_once_have_one_owner(world: World, tmp_path: Path) -> None:
    world.deploy("one")
    with locked(tmp_path / "services/shop/lock"):
        for act in (lambda: world.deploy("two"), lambda: world.services.rollback("shop"), lambda: world.services.tend("shop")):
            with pytest.raises(StateError) as error:
                act()
            assert error.value.code == "service-busy"
        assert world.services.look("shop").standing(Phase.CURRENT) is not None
    world.deploy("two")


def test_a_name_and_a_port_belong_to_one_service(world: World) -> None:
    with pytest.raises(InputError) as taken:
        world.services.create(SHOP)
    with pytest.raises(StateError) as port:
        world.services.create(Terms("other", 8080, 80))
    assert (taken.value.code, port.value.code) == ("service-taken", "port-taken")


def test_nothing_is_made_where_connections_cannot_be_led(world: World) -> None:
    world.refusing.add("require")
    with pytest.raises(StateError):
        world.deploy("one")
    assert world.there == {}


def test_nft_is_wanted_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obelisk.system.nft.find_program", lambda _name: None)
    with pytest.raises(MissingFeatureError) as error:
        traffic.PacketFilter().require(SHOP)
    assert (error.value.code, "nftables" in error.value.hint) == ("program-missing", True)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema":"obelisk.service/2"}', b"[]", b'{"schema":"obelisk.service/1","terms":3}'])
def test_a_damaged_note_is_named(world: World, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "services/shop/service.json").write_bytes(content)
    with pytest.raises(TrustError):
        world.services.tend("shop")


@pytest.mark.parametrize("percent", [0, 101, -1])
def test_a_share_is_between_1_and_100(world: World, percent: int) -> None:
    world.deploy("one")
    with pytest.raises(InputError):
        world.deploy("two", percent=percent)


def test_each_share_is_spread_over_the_connections() -> None:
    chosen = slots((Share("a", 10), Share("b", 90)))
    assert Counter(chosen) == {"a": 10, "b": 90}
    gaps = [index for index, address in enumerate(chosen) if address == "a"]
    assert {after - before for before, after in pairwise(gaps)} == {10}
    assert slots(()) == ()


@given(count=st.integers(1, 12), percent=st.integers(1, 100))
def test_shares_of_instances_add_up(count: int, percent: int) -> None:
    shares = rollout._split(tuple(f"a{index}" for index in range(count)), percent)
    assert sum(share.percent for share in shares) == percent
    assert max(share.percent for share in shares) - min(share.percent for share in shares) <= 1 or len(shares) < count


def test_the_rules_name_each_instance_and_nothing_else() -> None:
    script = traffic.rules(SHOP, (Share("10.0.0.2:80", 50), Share("10.0.0.3:81", 50)), ["10.0.0.0/24", "10.0.0.0/16"])
    assert "0 : 10.0.0.2 . 80, 1 : 10.0.0.3 . 81" in script
    assert "{ 127.0.0.0/8, 10.0.0.0/16 }" in script
    assert "tcp dport 8080 jump turn" in script
    assert traffic.table(Terms("my-shop", 1, 1)) == "obelisk_service_my_shop"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "Shop"}, "service-name"),
        ({"name": ""}, "service-name"),
        ({"port": 0}, "port"),
        ({"guest_port": 70000}, "port"),
        ({"instances": 0}, "service-instances"),
        ({"check": "health"}, "service-check"),
        ({"check": "/a b"}, "service-check"),
    ],
)
def test_terms_that_cannot_be_are_refused(world: World, change: dict[str, Any], code: str) -> None:
    fields: dict[str, Any] = {"name": "other", "port": 8081, "guest_port": 80} | change
    with pytest.raises(InputError) as error:
        world.services.create(Terms(**fields))
    assert error.value.code == code
    assert world.services.names() == ("shop",)


def test_an_engine_gives_the_instances(world: World, tmp_path: Path) -> None:
    """The words of a service, in those of an engine."""
    engine = FakeEngine(images=("one", "two"))
    lodging = Lodging(engine)
    services = Services(tmp_path / "engine", Means(lodging, world, lambda: world.time, lambda _address, _terms: True), silent)
    world.ending = True
    world.terms = replace(SHOP, carries=True)
    services.create(world.terms)
    services.deploy("shop", "one", "one")
    assert engine.instance("shop-1-1").wish.ports == (Port(40000, 80, traffic.HOME),)
    engine._all["shop-1-1"].words.state = "orders"
    services.deploy("shop", "two", "two")
    assert engine._all["shop-2-1"].words.state == "orders"
    engine._all["shop-1-1"].words.state = "late"
    services.rollback("shop", with_state=True)
    assert engine._all["shop-1-1"].words.state == "orders"
    assert lodging.look("shop-1-1") == Seen(running=True, address=f"{traffic.HOME}:40000", healthy=True)
    services.retire("shop")
    assert (engine.instances(), lodging.look("shop-1-1")) == ((), Seen(running=False))
    lodging.retire("shop-1-1")


def settled(world: World) -> None:
    """What holds whenever no command is at work and none was cut since the last one."""
    service = world.service
    assert service.at_work is None
    assert service.applied == wanted(service) == world.shares
    there = {instance for iteration in service.iterations for instance in iteration.made}
    assert there == set(world.there), "an instance that no iteration has, or the reverse"
    assert not any(iteration.phase is Phase.LEAVING for iteration in service.iterations)
    phases = Counter(iteration.phase for iteration in service.iterations)
    assert phases[Phase.CURRENT] == bool(world.shares)
    assert phases[Phase.CANARY] <= 1
    assert phases[Phase.KEPT] <= 1
    known = {rollout._snapshot(iteration) for iteration in service.iterations if iteration.saved is not Saved.NONE}
    assert {name for each in world.there.values() for name in each.snapshots} <= known, "a snapshot that belongs to nothing"


class Life(RuleBasedStateMachine):
    """Commands, cuts, time, and others who break things, in any order."""

    cuts = st.none() | st.integers(0, 60)

    @initialize(terms=st.sampled_from([SHOP, STATEFUL]))
    def begin(self, terms: Terms) -> None:
        self.place = TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.world = made(Path(self.place.name), self.patch, terms)
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.patch.undo()
            self.place.cleanup()

    @rule(kind=st.sampled_from(["good", "good", "good", "good", *SICK]), percent=st.sampled_from([100, 100, 10, 50]), cut=cuts)
    def deploy(self, kind: str, percent: int, cut: int | None) -> None:
        self.number += 1
        self.act(lambda: self.world.deploy(f"{kind}{self.number}", percent), cut)

    @rule(percent=st.sampled_from([100, 30]), cut=cuts)
    def promote(self, percent: int, cut: int | None) -> None:
        self.act(lambda: self.world.services.promote("shop", percent=percent), cut)

    @rule(with_state=st.booleans(), cut=cuts)
    def rollback(self, with_state: bool, cut: int | None) -> None:  # noqa: FBT001 - given by name
        self.act(lambda: self.world.services.rollback("shop", with_state=with_state), cut)

    @rule(cut=cuts)
    def tend(self, cut: int | None) -> None:
        self.act(lambda: self.world.services.tend("shop"), cut)

    @rule(seconds=st.sampled_from([1, 60, 200]))
    def time_goes_by(self, seconds: int) -> None:
        self.world.time += seconds

    @precondition(lambda self: self.world.there)
    @rule(data=st.data(), count=st.integers(0, 2))
    def connections(self, data: st.DataObject, count: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.there)))
        self.world.open[self.world.there[name].address] = count

    @precondition(lambda self: self.world.there)
    @rule(data=st.data())
    def an_instance_falls(self, data: st.DataObject) -> None:
        self.world.there[data.draw(st.sampled_from(sorted(self.world.there)))].running = False

    @rule(what=st.sampled_from(["create", "save", "forget", "restore", "retire", "lead"]))
    def something_refuses(self, what: str) -> None:
        self.world.refusing.add(what)

    @rule()
    def nothing_refuses(self) -> None:
        self.world.refusing.clear()

    def act(self, command: Callable[[], object], cut: int | None) -> None:
        served = bool(self.world.shares)
        try:
            with self.world.cut_after(cut):
                command()
        except ObeliskError:
            pass
        if served:
            assert self.world.shares, "a service that has served ends"

    @invariant()
    def whoever_comes_next_finds_all_in_order(self) -> None:
        """Also after a cut: as `tend` leaves it, as long as nothing refuses."""
        if not hasattr(self, "world") or self.world.refusing:
            return
        self.world.services.tend("shop")
        settled(self.world)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
