"""Applications to write down in the formats of others, and a reading of OCI's filters that knows nothing of how ours are written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from policy_samples import policies

from obelisk.model.application import Application
from obelisk.model.policy import Device, Policy, Use
from obelisk.sandbox.formats import Subject
from obelisk.sandbox.formats.foreign import Node, Root
from obelisk.system.confine import Owner

HOME = Path("/home/jo")
_NODES = {
    Device.AUDIO: (Node("/dev/snd/controlC0", 116, 0, 29), Node("/dev/snd/timer", 116, 33, 29)),
    Device.CAMERA: (Node("/dev/video0", 81, 0, 44),),
    Device.GPU: (Node("/dev/dri/renderD128", 226, 128, 106),),
    Device.KVM: (Node("/dev/kvm", 10, 232, 107),),
}


def subject(held: Policy, app: Application | None = None) -> Subject:
    """An application under a policy, on a machine that has every device."""
    app = app or Application(("/usr/bin/app", "-x"), (("MODE", "a=b"),), "/srv", ("/var/cache/app",), ("/var/lib/app", "/home/app/.app"))
    app = Application(app.command, app.environment, app.directory, app.scratch, app.data, held)
    root = Root(Path("/store/root.erofs"), Path("/store/root.verity"), "ab" * 32)
    nodes = tuple(node for power in held.of(Use) for node in _NODES[power.device])
    return Subject("app", app, root, Path("/data/app"), HOME, Owner(61200, 61200), nodes)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5) | st.sampled_from(
    ("a:b", "a b", "a;b", "a\\b", " a ", "%h", '"')
)
places = st.builds("/".join, st.tuples(st.sampled_from(("/var/lib", "/srv", "/opt", "/home/app", "/run")), _names)).filter(str.isprintable)
applications = st.builds(
    Application,
    st.builds(lambda first, rest: (f"/usr/bin/{first or 'x'}", *rest), words, st.lists(words, max_size=3)),
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), words, max_size=3).map(
        lambda found: tuple(sorted(found.items()))
    ),
    st.sampled_from(("/", "/srv/x")),
    st.lists(places, max_size=2, unique=True).map(tuple),
    st.just(()),
)
subjects = st.builds(
    lambda held, app, data: subject(held, Application(app.command, app.environment, app.directory, app.scratch, data)),
    policies,
    applications,
    st.lists(places.map(lambda path: f"{path}.kept"), max_size=2, unique=True).map(tuple),
)


def fate(seccomp: Any, name: str, arguments: Sequence[int]) -> int:  # noqa: ANN401 - JSON
    """The error that a filter of OCI's gives a call, 0 where it passes: rules that match have to agree."""
    found = {
        0 if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"]
        for rule in seccomp["syscalls"]
        if name in rule["names"] and all(_matches(test, arguments) for test in rule.get("args", ()))
    }
    assert len(found) <= 1, (name, arguments)
    return int(found.pop() if found else seccomp["defaultErrnoRet"])


def _matches(test: Any, arguments: Sequence[int]) -> bool:  # noqa: ANN401
    assert test["op"] == "SCMP_CMP_MASKED_EQ"
    return bool((arguments[test["index"]] & test["value"]) == test["valueTwo"])
