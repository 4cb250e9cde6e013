"""Policies to test with: strategies that make every kind of power, few enough values that they meet."""

from hypothesis import strategies as st

from obelisk.model.policy import (
    LEAST_DATA_BYTES,
    NO_LIMIT,
    X11,
    Ask,
    Call,
    Calls,
    Connect,
    Contact,
    Device,
    Layer,
    Limits,
    Listen,
    Nest,
    Own,
    Policy,
    Portal,
    Power,
    Reach,
    Read,
    Talk,
    Terminal,
    Usb,
    Use,
    Wayland,
    Write,
    WriteExecute,
    policy,
)

PATHS = ("~", "~/Documents", "~/Documents/a", "/data", "/data/a", "/data/a/b", "/data/ab", "/mnt/disk")
NETWORKS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "::/0", "2001:db8::/32")
PORTS = (0, 80, 443)
NAMES = ("org.example.*", "org.example.Editor", "org.example.Editor.*", "org.example.Editor.Tab", "org.example2.Editor", "com.example.Mail")

powers: st.SearchStrategy[Power] = st.one_of(
    st.builds(Read, st.sampled_from(PATHS)),
    st.builds(Write, st.sampled_from(PATHS)),
    st.builds(Use, st.sampled_from(Device)),
    st.builds(Usb, st.sampled_from(("046d", "1d6b")), st.sampled_from(("0002", "c31c"))),
    st.builds(Listen, st.sampled_from((80, 8080, 65535))),
    st.builds(Connect, st.sampled_from(NETWORKS), st.sampled_from(PORTS)),
    st.builds(Reach, st.sampled_from(("example.org", "a.example.org", "db")), st.sampled_from((80, 443))),
    st.builds(Contact, st.sampled_from(("shop", "db-2"))),
    st.builds(Call, st.sampled_from(Calls)),
    st.builds(Talk, st.sampled_from(NAMES)),
    st.builds(Own, st.sampled_from(NAMES)),
    st.builds(Ask, st.sampled_from(Portal)),
    st.sampled_from((X11(), Wayland(), WriteExecute(), Nest(), Terminal())),
)
totals = st.just(NO_LIMIT) | st.integers(1, 1 << 40)
volumes = st.just(NO_LIMIT) | st.integers(LEAST_DATA_BYTES, 1 << 40)
limits = st.builds(Limits, *(st.integers(1, 1 << 40) for _ in range(4)), totals, totals, volumes)
policies: st.SearchStrategy[Policy] = st.builds(policy, st.frozensets(powers, max_size=8), limits, st.frozensets(st.sampled_from(Layer)))
