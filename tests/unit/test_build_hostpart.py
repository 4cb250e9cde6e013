"""The part of Obelisk that images carry stands on its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lying_server import LyingServer, serving
from spec_samples import EVERYTHING, load_text, root_metadata
from trust_samples import Authority, Publisher

from obelisk.build import hostpart
from obelisk.build.inside import configure
from obelisk.build.inside.configure import UNUSED_PYTHON
from obelisk.errors import MissingFeatureError, StateError
from obelisk.host import subscription
from obelisk.model.spec import Policy, State


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return laid(tmp_path, applications=False)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The part of a host that has applications."""
    return laid(tmp_path, applications=True)


def laid(tmp_path: Path, *, applications: bool) -> Path:
    for module in hostpart.modules(applications=applications):
        target = tmp_path / "obelisk" / module
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(hostpart.PACKAGE / module, target)
    for name, file in hostpart.libraries().items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return tmp_path


ALONE = """
import sys
from importlib.util import find_spec

assert not any(map(find_spec, ("cryptography", "urllib3", "requests", "rich"))), sys.path
"""
FOLLOW = """
import json
from pathlib import Path
from obelisk.release.client import proof, trust
from obelisk.release.client.remote import Mirrors, mirror
from obelisk.system.http import Client

with Client() as client:
    for number, address in enumerate(sys.argv[2:]):
        mirrors = Mirrors([mirror(address, client)])
        repository = trust.refresh(Path(sys.argv[1], str(number)), Path(sys.argv[1], "root.json").read_bytes(), mirrors)
        current = repository.channel("shop", "stable").current
        release = repository.release(current.image)
        proof.accept([mirrors.read_file(file) for file in release.proofs], repository.testers(), release.image)
        print(release.version)
"""


def run(part: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program as on a host: with the part, Python's own library, and nothing else."""
    text = f"import sys; sys.path.insert(0, {str(part)!r})\n{program}"
    return subprocess.run([sys.executable, "-IS", "-c", text, *words], check=False, capture_output=True, text=True)


def test_a_host_believes_a_repository_with_what_it_has(part: Path, tmp_path: Path) -> None:
    publisher = Publisher()
    publisher.release("1")
    publisher.release("2")
    repository = tmp_path / "repository"
    for name, data in publisher.authority.files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(data)
    (tmp_path / "root.json").write_bytes(publisher.authority.first_root)
    with serving(LyingServer(directory=repository)) as server:
        told = run(part, ALONE + FOLLOW + _UNUSED, str(tmp_path), server.address, str(repository))
    assert told.stdout.split() == ["2", "2"], told.stderr
    publisher.authority.signers["timestamp"] = Authority().signers["timestamp"]
    publisher.release("3")
    (repository / "metadata/timestamp.json").write_bytes(publisher.authority.files["metadata/timestamp.json"])
    refused = run(part, ALONE + FOLLOW, str(tmp_path), str(repository))
    assert "TrustError" in refused.stderr
    assert "was signed by 0/1 keys" in refused.stderr


# Nothing that was loaded is what images without Python packages of their own lack.
_UNUSED = f"""
import fnmatch
for name, module in tuple(sys.modules.items()):
    file = getattr(module, "__file__", None) or ""
    inner = file.partition("/python3.")[2].partition("/")[2].removeprefix("lib-dynload/")
    for pattern in {UNUSED_PYTHON!r}:
        assert not fnmatch.fnmatch(inner, pattern) and not inner.startswith(pattern.removesuffix("*") + "/"), (name, file, pattern)
"""


def test_nothing_of_the_libraries_is_left_out_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(hostpart.libraries())
    assert {"tuf/ngclient/updater.py", "securesystemslib/signer/__init__.py", "licences/tuf/LICENSE"} <= names
    assert not any("test" in name or name.endswith(("_hsm_signer.py", "requests_fetcher.py")) for name in names)
    before = hostpart.digest()
    monkeypatch.setitem(hostpart._STAND_INS, "tuf/ngclient/urllib3_fetcher.py", "signer.py")
    assert hostpart.digest() != before
    monkeypatch.setitem(hostpart._LIBRARIES, "tuf", ("tuf/none.py",))
    with pytest.raises(MissingFeatureError, match=r"lacks tuf/none\.py"):
        hostpart.libraries()


def test_what_a_host_follows_is_written_as_it_reads_it(tmp_path: Path) -> None:
    spec = load_text(tmp_path / "spec", EVERYTHING)
    for name, text in hostpart.release(spec).items():
        (tmp_path / name).write_text(text)
    assert subscription.read(tmp_path) == subscription.Subscription(
        "testing",
        ("https://releases.example/os", "http://mirror.example:8080/os"),
        root_metadata().encode(),
        2 << 20,
        "http://proxy.example:3128",
    )
    assert subscription.require(["/mnt"], tmp_path).repositories == ("/mnt",)
    assert hostpart.release(load_text(tmp_path / "plain", 'name = "a"')) == {}
    assert subscription.read(tmp_path / "none") is None
    with pytest.raises(StateError, match=r"without a \[release\] table"):
        subscription.require((), tmp_path / "none")


def test_every_module_of_the_part_can_be_imported_without_anything_else(part: Path) -> None:
    names = [".".join(("obelisk", *module.with_suffix("").parts)).removesuffix(".__init__") for module in hostpart.modules()]
    program = f"import sys; sys.path.insert(0, {str(part)!r})\n" + "".join(f"import {name}\n" for name in names)
    subprocess.run([sys.executable, "-IS", "-c", ALONE + program], check=True)


def test_its_command_line_offers_what_a_host_can_do(part: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(part)!r}); from obelisk.cli import main; main(['--help'])"
    said = subprocess.run([sys.executable, "-IS", "-c", program], check=False, capture_output=True, text=True).stdout
    assert "host " in said
    assert "build " not in said


def test_what_only_some_commands_need_is_not_loaded_for_all(part: Path) -> None:
    loaded = ["upgrade", "migration", "settle", "status", "rollback"]
    dear = {"obelisk.host.rehearsal", "obelisk.system.qemu", "asyncio", "tuf", "http.client", "obelisk.host.channel"}
    program = (
        f"import sys; sys.path.insert(0, {str(part)!r}); import obelisk.cli.hosting\n"
        + "".join(f"import obelisk.host.{name}\n" for name in loaded)
        + f"assert not {dear!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-IS", "-c", program], check=True)


def test_a_host_that_has_applications_looks_after_them_with_nothing_else(whole: Path) -> None:
    names = [".".join(("obelisk", *module.with_suffix("").parts)) for module in hostpart.modules(applications=True)]
    program = "".join(f"import {name.removesuffix('.__init__')}\n" for name in names)
    told = run(whole, ALONE + program + _UNUSED)
    assert told.returncode == 0, told.stderr
    said = run(whole, "from obelisk.cli import main; main(['app', '--help'])").stdout
    for word in ("install", "upgrade", "rollback", "remove", "list"):
        assert f"  {word} " in said
    assert "learn" not in said
    refused = run(whole, "from obelisk.cli import main; raise SystemExit(main(['app', 'install', '/none']))")
    assert (refused.returncode, "/none has no image" in refused.stderr) == (2, True)


def test_other_hosts_offer_nothing_of_applications(part: Path) -> None:
    assert " app " not in run(part, "from obelisk.cli import main; main(['--help'])").stdout
    assert not (part / "obelisk/sandbox").exists()


def test_an_upgrade_can_be_rehearsed(part: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(part)!r}); from obelisk.cli import main; main(['host', 'upgrade', '--help'])"
    said = subprocess.run([sys.executable, "-IS", "-c", program], check=False, capture_output=True, text=True).stdout
    assert "--rehearse" in said


def test_what_it_is_in_git_is_what_it_is_in_the_list() -> None:
    listed = {str(module) for module in hostpart.modules()}
    assert {"cli/hosting.py", "host/upgrade.py", "model/host.py", "system/blocks.py"} <= listed
    assert not any(name.startswith(("build/", "spec/", "store/")) for name in listed)


def test_all_state_is_kept_without_a_list() -> None:
    assert hostpart.kept(State(declare=("/var/lib/shop",))) == ()
    assert hostpart.mounts(State(declare=("/var/lib/shop",)), ("nodev",)) == ""


def test_memory_comes_first_and_a_place_that_is_kept_has_none() -> None:
    lines = hostpart.mounts(State(policy=Policy.DECLARED, declare=("/home", "/var/lib/my shop")), ("nodev", "nosuid")).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("tmpfs")] == ["/var", "/root"]
    assert [line.split()[1] for line in lines[2:]] == [
        *("/home", "/var/lib/my\\040shop", "/var/lib/obelisk", "/var/lib/systemd", "/var/log/journal")
    ]
    assert lines[3].split()[0] == "/run/obelisk/state/var/lib/my\\040shop"


PATHS = st.lists(st.lists(st.sampled_from(["a", "ab", "b", "lib", "obelisk"]), min_size=1, max_size=4).map(lambda p: "/var/" + "/".join(p)))


@given(PATHS)
def test_everything_declared_is_kept_once(paths: list[str]) -> None:
    found = hostpart.kept(State(policy=Policy.DECLARED, declare=tuple(paths)))
    for path in (*paths, "/var/lib/obelisk"):
        assert sum(path == place or path.startswith(f"{place}/") for place in found) == 1


@pytest.mark.parametrize(("follow", "line"), [("6h", "OnUnitInactiveSec=21600s"), ("30s", "OnBootSec=30s")])
def test_hosts_ask_by_themselves_as_often_as_the_spec_says(tmp_path: Path, follow: str, line: str) -> None:
    table = f'name = "a"\n[release]\nrepositories = ["https://releases.example"]\nroot = "root.json"\nfollow = "{follow}"\n'
    (tmp_path / "root.json").write_text(root_metadata())
    assert line in hostpart.timer(load_text(tmp_path, table)).splitlines()


def test_hosts_of_a_spec_that_says_nothing_of_it_take_nothing_by_themselves(tmp_path: Path) -> None:
    assert hostpart.timer(load_text(tmp_path, 'name = "a"')) == ""


def test_the_build_lays_the_part_and_what_is_followed_where_hosts_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(tree: Path, *command: str, script: str = "") -> list[str]:
        assert script == ""
        return [word.replace("/usr/lib/obelisk", f"{tree}/usr/lib/obelisk") for word in command]

    monkeypatch.setattr(configure, "in_tree", outside)
    tree = tmp_path / "tree"
    spec = load_text(tmp_path / "spec", EVERYTHING)
    modules = {f"obelisk/{path}": str(hostpart.PACKAGE / path) for path in hostpart.modules()}
    modules |= {name: str(file) for name, file in hostpart.libraries().items()}
    release = hostpart.release(spec)
    request = {
        "host": "",
        "timer": hostpart.timer(spec),
        "declared": [],
        "migrations": [],
        "kept": [],
        "modules": modules,
        "release": release,
        "python": True,
    }
    configure.settle_host(tree, request)
    place = tree / "usr/lib/obelisk"
    assert (place / "release/root.json").read_text() == root_metadata()
    assert (place / "python/tuf/ngclient/urllib3_fetcher.py").read_text() == (hostpart.PACKAGE / "build/standin/fetcher.py").read_text()
    assert list((place / "python/tuf/ngclient/__pycache__").glob("updater.*.pyc"))
    assert (tree / "usr/lib/systemd/system/timers.target.wants/obelisk-follow.timer").resolve().exists()
    told = run(place / "python", "from obelisk.host import channel, delivery, subscription\nprint(subscription.PLACE)")
    assert told.stdout == "/usr/lib/obelisk/release\n", told.stderr
