"""Policies: what is granted and nothing else, however they are composed, spelled or read."""

import ipaddress
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_samples import NETWORKS, PATHS, policies, powers

from obelisk.errors import InputError, TrustError
from obelisk.model.application import Application, effective, parse_application
from obelisk.model.canonical import canonical
from obelisk.model.exposure import difference, explain, granted, score
from obelisk.model.policy import (
    Ask,
    Call,
    Calls,
    Connect,
    Contact,
    Device,
    Layer,
    Limits,
    Listen,
    Own,
    Policy,
    Portal,
    Power,
    Read,
    Talk,
    Usb,
    Use,
    Wayland,
    Write,
    from_json,
    join,
    meet,
    parse,
    policy,
)

# What a policy is asked: an independent reading of it, which knows nothing of how policies are composed.

Question = Callable[[Policy], bool]


def reads(path: str) -> Question:
    return lambda one: any(isinstance(p, Read | Write) and (path + "/").startswith(p.path + "/") for p in one.powers)


def writes(path: str) -> Question:
    return lambda one: any(isinstance(p, Write) and (path + "/").startswith(p.path + "/") for p in one.powers)


def connects(address: str, port: int) -> Question:
    return lambda one: any(
        isinstance(p, Connect) and ipaddress.ip_address(address) in ipaddress.ip_network(p.network) and p.port in {0, port}
        for p in one.powers
    )


def is_for(pattern: str, name: str) -> bool:
    return name in {pattern, pattern.removesuffix(".*")} or (pattern.endswith(".*") and name.startswith(pattern[:-1]))


def talks(name: str) -> Question:
    return lambda one: any(isinstance(p, Talk | Own) and is_for(p.name, name) for p in one.powers)


def owns(name: str) -> Question:
    return lambda one: any(isinstance(p, Own) and is_for(p.name, name) for p in one.powers)


def holds(power: Power) -> Question:
    return lambda one: power in one.powers


plain = powers.filter(lambda power: not isinstance(power, Read | Write | Connect | Talk | Own))
names = st.sampled_from(("org.example", "org.example.Editor", "org.example.Editor.Tab", "org.example.Other", "org.example2.Editor", "com"))
questions: st.SearchStrategy[Question] = st.one_of(
    st.builds(reads, st.sampled_from((*PATHS, "/data/a/b/c", "~/Music", "/datashop"))),
    st.builds(writes, st.sampled_from((*PATHS, "/data/a/b/c", "~/Music", "/datashop"))),
    st.builds(
        connects,
        st.sampled_from(("10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.1", "8.8.8.8", "2001:db8::1", "fe80::1")),
        st.sampled_from((80, 443, 9999)),
    ),
    st.builds(talks, names),
    st.builds(owns, names),
    st.builds(holds, plain),
)


@given(policies, policies, questions)
def test_of_two_policies_the_stricter_wins(one: Policy, other: Policy, asks: Question) -> None:
    assert asks(meet(one, other)) == (asks(one) and asks(other))


@given(policies, policies, questions)
def test_joined_policies_allow_nothing_that_neither_does(one: Policy, other: Policy, asks: Question) -> None:
    assert asks(join(one, other)) == (asks(one) or asks(other))


@given(policies, policies)
def test_limits_and_missing_layers_compose_the_same_way(one: Policy, other: Policy) -> None:
    both, either = meet(one, other), join(one, other)
    for each in fields(Limits):
        pair = [getattr(p.limits, each.name) for p in (one, other)]
        assert (getattr(both.limits, each.name), getattr(either.limits, each.name)) == (min(pair), max(pair))
    assert both.may_miss == one.may_miss & other.may_miss
    assert either.may_miss == one.may_miss | other.may_miss


@given(policies, policies, policies)
def test_composition_has_one_result_in_any_order(one: Policy, other: Policy, third: Policy) -> None:
    assert meet(one, one) == join(one, one) == one
    assert meet(one, other) == meet(other, one)
    assert meet(meet(one, other), third) == meet(one, meet(other, third))
    assert join(join(one, other), third) == join(one, join(other, third))


@given(policies, policies)
def test_nothing_is_gained_by_narrowing_and_nothing_lost_by_widening(one: Policy, other: Policy) -> None:
    assert difference(one, meet(one, other)).gained == ()
    assert difference(one, join(one, other)).lost == ()
    assert difference(one, one) == difference(other, other)


@given(policies, policies, questions)
def test_a_change_that_gains_nothing_allows_nothing_new(one: Policy, other: Policy, asks: Question) -> None:
    if not difference(one, other).gained:
        assert asks(one) or not asks(other)


@given(policies)
def test_a_stored_policy_reads_back_as_itself(one: Policy) -> None:
    assert parse(one.to_bytes()) == one
    assert parse(one.to_bytes()).digest == one.digest


@given(policies, policies)
def test_an_operator_narrows_what_an_image_asks_for_and_widens_it_only_by_saying_so(asked: Policy, told: Policy) -> None:
    raw: Any = json.loads(told.to_bytes())
    raw["limits"] = {"data_bytes": "none"} | raw["limits"]  # of which a policy without it says nothing
    assert effective(asked, {}) == asked
    assert effective(asked, {"allow": raw}) == meet(asked, told)
    assert effective(asked, {"override": raw}) == join(asked, told)
    del raw["limits"]
    assert effective(asked, {"override": raw}).limits == asked.limits


def test_what_another_power_covers_is_no_second_power() -> None:
    both = policy([Write("/data"), Read("/data/a"), Connect("10.0.0.0/8"), Connect("10.1.0.0/16", 80)])
    assert both == policy([Write("/data"), Connect("10.0.0.0/8")])
    assert policy([Read("/data"), Write("/data/a")]).powers == {Read("/data"), Write("/data/a")}
    named = policy([Talk("org.example.*"), Talk("org.example.Editor.*"), Talk("org.example"), Own("org.example.Editor")])
    assert named.powers == {Talk("org.example.*"), Own("org.example.Editor")}
    assert policy([Own("org.example.Editor"), Talk("org.example.Editor")]).powers == {Own("org.example.Editor")}


def test_nothing_is_granted_by_default() -> None:
    assert Policy().powers == frozenset()
    assert score(Policy()) == 0
    assert from_json({}) == Policy()


@given(policies, powers)
def test_the_score_never_falls_when_more_is_granted(one: Policy, more: Power) -> None:
    assert score(one.with_powers({*one.powers, more})) >= score(one)


@given(powers)
def test_every_power_has_words_of_its_own(one: Power) -> None:
    said = explain(one)
    assert said
    assert said in granted(policy([one]))


def test_a_change_is_told_in_plain_words() -> None:
    old = policy([Read("/data"), Listen(80)], may_miss=[Layer.LANDLOCK])
    new = policy([Write("/data"), Connect("0.0.0.0/0", 443)], Limits(processes=500))
    change = difference(old, new)
    assert change.gained == (
        "reads and changes /data of this machine",
        "opens connections to any address, port 443",
        "processes and threads: 500 where it was 256",
    )
    assert change.lost == (
        "accepts connections at TCP port 80 of this machine",
        "also starts on machines without the layer `landlock`",
    )


@pytest.mark.parametrize(
    ("grants", "said"),
    [
        ({"read": ["/etc"]}, "belongs to the image"),
        ({"read": ["/proc/1"]}, "belongs to the image"),
        ({"write": ["/data/../etc"]}, "no absolute path"),
        ({"write": ["/"]}, "no absolute path"),
        ({"write": ["//data"]}, "no absolute path"),
        ({"write": ["work"]}, "no absolute path"),
        ({"write": ["/home"]}, "belongs to the image"),
        ({"read": "/data"}, "must be a list"),
        ({"read": [7]}, "cannot stand in read"),
        ({"listen": [0]}, "cannot stand in listen"),
        ({"listen": [65536]}, "cannot stand in listen"),
        ({"listen": [True]}, "cannot stand in listen"),
        ({"connect": ["example.org:*"]}, "no destination"),
        ({"connect": ["Example.org:443"]}, "no destination"),
        ({"connect": ["example..org:443"]}, "no destination"),
        ({"connect": ["-a.org:443"]}, "no destination"),
        ({"connect": ["a-.org:443"]}, "no destination"),
        ({"connect": ["a.b.1:443"]}, "no destination"),
        ({"connect": ["10.0.0.256:443"]}, "no destination"),
        ({"connect": ["a.org:0"]}, "no destination"),
        ({"connect": ["10.0.0.1/8:443"]}, "no destination"),
        ({"connect": ["10.0.0.0/8"]}, "no destination"),
        ({"connect": ["10.0.0.0/8:0"]}, "no port"),
        ({"devices": ["disk"]}, "no class of devices"),
        ({"syscalls": ["everything"]}, "no group"),
        ({"dbus_talk": ["org.*"]}, "no name on a bus"),
        ({"dbus_talk": ["*"]}, "no name on a bus"),
        ({"dbus_talk": [":1.42"]}, "no name on a bus"),
        ({"dbus_own": ["org.example.*.Editor"]}, "no name on a bus"),
        ({"dbus_own": ["org.example.Editor=*"]}, "no name on a bus"),
        ({"dbus_talk": ["org.example." + "a" * 250]}, "no name on a bus"),
        ({"dbus_talk": ["org.freedesktop.*"]}, "a name of org.freedesktop.DBus"),
        ({"dbus_talk": ["org.freedesktop.portal.Desktop"]}, "a name of org.freedesktop.portal; `portals` grants"),
        ({"dbus_own": ["org.freedesktop.DBus"]}, "a name of org.freedesktop.DBus"),
        ({"portals": ["camera"]}, "no portal: there are file-chooser"),
        ({"portals": True}, "must be a list"),
        ({"portals": [True]}, "cannot stand in portals"),
        ({"wayland": 1}, "true or false"),
        ({"namespaces": "yes"}, "true or false"),
        ({"host": True}, "no grant"),
    ],
)
def test_what_cannot_be_granted_is_refused_by_name(grants: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_json({"grants": grants})


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"limits": {"memory_bytes": 0}}, "above 0"),
        ({"limits": {"processes": True}}, "above 0"),
        ({"limits": {"cpu": 1}}, "no limit"),
        ({"may_miss": ["seccomp"]}, "seccomp"),
        ({"grant": {}}, "no key `grant`"),
    ],
)
def test_limits_and_layers_that_do_not_exist_are_refused(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_json(raw)


def test_bytes_of_another_schema_are_no_policy() -> None:
    for data in (b"", b"[]", b"{}", b'{"schema":"obelisk.policy/6"}', b'{"schema":["obelisk.policy/1"]}'):
        with pytest.raises(InputError, match="no policy that this version reads"):
            parse(data)


def test_a_policy_names_the_first_schema_that_has_words_for_it() -> None:
    def schema(*granted: Power) -> str:
        stored: dict[str, str] = json.loads(policy(granted).to_bytes())
        return stored["schema"]

    assert schema() == schema(Read("/data"), Use(Device.KVM)) == "obelisk.policy/1"
    for new in (Talk("org.example.Mail"), Own("org.example.Mail"), Wayland(), Use(Device.GPU)):
        assert schema(Read("/data"), new) == "obelisk.policy/2"
    assert schema(Ask(Portal.FILE_CHOOSER)) == schema(Wayland(), Ask(Portal.FILE_CHOOSER)) == "obelisk.policy/3"
    assert schema(Contact("shop")) == "obelisk.policy/4"
    assert schema(Usb("046d", "c31c"), Contact("shop")) == "obelisk.policy/5"


def test_what_is_plugged_in_is_named_by_its_numbers() -> None:
    held = from_json({"grants": {"devices": ["usb:046d:c31c", "audio"]}})
    assert held.powers == {Usb("046d", "c31c"), Use(Device.AUDIO)}
    assert json.loads(held.to_bytes())["grants"] == {"devices": ["audio", "usb:046d:c31c"]}
    for wrong in ("usb:", "usb:046D:C31C", "usb:46d:c31c", "usb:046d:c31c:1", "usb:046d"):
        with pytest.raises(InputError, match="lsusb tells the numbers"):
            from_json({"grants": {"devices": [wrong]}})


def test_every_network_sample_is_spelled_as_policies_spell_it() -> None:
    for network in NETWORKS:
        assert str(ipaddress.ip_network(network)) == network


def test_an_application_reads_back_as_itself_and_damage_is_told() -> None:
    one = Application(
        ("run",), (("A", "b"),), "/srv", ("/var/cache/x",), ("/var/lib/x",), policy([Call(Calls.DEBUG), Use(Device.KVM)]), ("key",)
    )
    assert parse_application(one.to_bytes()) == one
    for key in ("command", "policy", "environment"):
        raw: Any = json.loads(one.to_bytes())
        del raw[key]
        with pytest.raises(TrustError, match="damaged"):
            parse_application(canonical(raw))
    with pytest.raises(TrustError, match="schema"):
        parse_application(b'{"schema":"obelisk.application/9"}')
    later: Any = json.loads(one.to_bytes())
    later["policy"]["schema"] = "obelisk.policy/9"
    with pytest.raises(TrustError, match="no policy that this version reads"):
        parse_application(canonical(later))
