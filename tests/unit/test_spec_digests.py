"""What changes an image, what changes a lock, and what changes neither."""

import shutil
from pathlib import Path

import pytest
from spec_samples import EVERYTHING, load_text, ssh_key

from obelisk.errors import InputError
from obelisk.spec import digest_inputs, load, request

NEITHER = [
    ('uri = "https://apt.example/debian"', 'uri = "https://apt.example/other"'),
    ('mirror = "http://mirror.example:8080/debian/"', 'mirror = "http://other.example/"'),
    ('snapshot = "file:/srv/archive"\n', ""),
    ('size_budget = "2G"', 'size_budget = "3G"'),
    ('expect = "hello"', 'expect = "good day"'),
    ('packages = ["nginx-light", "g++", "libstdc++-12-dev"]', 'packages = ["libstdc++-12-dev", "g++", "nginx-light"]'),
    ('groups = ["sudo", "app"]', 'groups = ["app", "sudo"]'),
    ('enable = ["nginx.service", "serial-getty@ttyS0.service"]', 'enable = ["serial-getty@ttyS0.service", "nginx.service"]'),
    ('[files."/bin/spool"]', '[files."/usr/bin/spool"]'),
    ('mode = "4755"', 'mode = "04755"'),
    ('timeout = "1h"', 'timeout = "60min"'),
    ('name = "shop"', '# a remark\nname    =    "shop"'),
]

IMAGE_ONLY = [
    ('name = "shop"', 'name = "shop2"'),
    ('version = "2026.1"', 'version = "2026.2"'),
    ('tree = "tree"\n', ""),
    ('hostname = "shop.example"', 'hostname = "shop"'),
    ('locale = "de_DE.UTF-8"', 'locale = "C.UTF-8"'),
    ('timezone = "Europe/Berlin"', 'timezone = "UTC"'),
    ('compression = "zstd"', 'compression = "lz4"'),
    ('lockdown = "confidentiality"', 'lockdown = "integrity"'),
    ('state_mounts = ["nosuid"]', "state_mounts = []"),
    ("documentation = true", "documentation = false"),
    ('"console=ttyS0", "rootwait"', '"rootwait", "console=ttyS0"'),
    ('disable = ["apt-daily.timer"]', "disable = []"),
    ("mask = ['dev-disk-by\\x2dlabel-x.swap']", "mask = []"),
    ("uid = 1001", "uid = 1002"),
    ('shell = "/bin/sh"', 'shell = "/bin/bash"'),
    ('home = "/var/lib/deploy"\n', ""),
    ('comment = "Deployment, Ä"', 'comment = "Deployment"'),
    ("$6$VGEv", "$6$vGEv"),
    (ssh_key(), f"{ssh_key()}x"),
    ('content = ""', 'content = "x"'),
    ('mode = "4755"', 'mode = "0755"'),
    ('owner = "deploy"', 'owner = "root"'),
    ('group = "app"', 'group = "root"'),
    ('[[scripts]]\nrun = "scripts/build.sh"\n', ""),
    ('channel = "testing"\n', ""),
    ('"http://mirror.example:8080/os"', '"http://mirror.example/os"'),
    ('bandwidth = "2M"\n', ""),
    ('proxy = "http://proxy.example:3128"\n', ""),
    ('policy = "declared"', 'policy = "all"'),
    ('declare = ["/var/lib/shop"]', "declare = []"),
    ('down = "scripts/down-3"\n', ""),
    ("status = 204", "status = 200"),
    ('contains = "Hello"\n', ""),
    ('timeout = "30s"', 'timeout = "31s"'),
    ('tcp = "[::1]:5432"', 'tcp = "[::1]:5433"'),
    ('replace = ["/usr/share/x"]', "replace = []"),
    ('devices = ["/srv/null"]', "devices = []"),
]

LOCK_TOO = [
    ('distribution = "debian:trixie"', 'distribution = "debian:forky"'),
    ('role = "workstation"', 'role = "server"'),
    ('"nginx-light"', '"nginx"'),
    ("recommends = true", "recommends = false"),
    ('kernel = "linux-image-cloud-amd64"\n', ""),
    ("rehearse = true", "rehearse = false"),
    ('suites = ["trixie-pgdg"]', 'suites = ["forky-pgdg"]'),
    ('components = ["main"]', 'components = ["main", "17"]'),
    ("[sources.flat]", "[sources.other]"),
    ('encryption = "tpm2"\n', ""),
]


@pytest.mark.parametrize(
    ("old", "new", "image_changes", "lock_changes"),
    [
        *((*pair, False, False) for pair in NEITHER),
        *((*pair, True, False) for pair in IMAGE_ONLY),
        *((*pair, True, True) for pair in LOCK_TOO),
    ],
)
def test_a_changed_key_changes_what_it_must_and_no_more(
    tmp_path: Path, old: str, new: str, *, image_changes: bool, lock_changes: bool
) -> None:
    assert EVERYTHING.count(old) == 1
    before = load_text(tmp_path, EVERYTHING)
    inputs, wanted = digest_inputs(before), request(before)
    after = load_text(tmp_path, EVERYTHING.replace(old, new))
    assert (digest_inputs(after) != inputs) is image_changes
    assert (request(after) != wanted) is lock_changes


@pytest.mark.parametrize(
    ("file", "lock_changes"),
    [
        ("tree/etc/motd.d/hello", False),
        ("files/motd", False),
        ("scripts/build.sh", False),
        ("scripts/down-3", False),
        ("keys/root.json", False),
        ("keys/good.asc", True),
    ],
)
def test_a_changed_file_changes_the_image_and_only_a_key_the_lock(tmp_path: Path, file: str, *, lock_changes: bool) -> None:
    spec = load_text(tmp_path, EVERYTHING)
    inputs, wanted = digest_inputs(spec), request(spec)
    path = tmp_path / file
    path.write_bytes(path.read_bytes() + b"# more\n")
    assert digest_inputs(spec) != inputs
    assert (request(spec) != wanted) is lock_changes


def test_the_executable_bit_link_targets_and_names_in_the_tree_count_and_group_write_does_not(tmp_path: Path) -> None:
    spec = load_text(tmp_path, 'name = "a"\ntree = "tree"')
    hello = tmp_path / "tree/etc/motd.d/hello"
    seen = [digest_inputs(spec)]
    hello.chmod(0o664)
    assert digest_inputs(spec) == seen[0]
    hello.chmod(0o755)
    seen.append(digest_inputs(spec))
    hello.rename(hello.with_name("hallo"))
    seen.append(digest_inputs(spec))
    hello.symlink_to("hallo")
    seen.append(digest_inputs(spec))
    hello.unlink()
    hello.symlink_to("other")
    seen.append(digest_inputs(spec))
    (tmp_path / "tree/etc/empty").mkdir(mode=0o755)
    (tmp_path / "tree/etc/empty").chmod(0o755)
    seen.append(digest_inputs(spec))
    assert len(set(seen)) == len(seen)


def test_the_place_on_disk_does_not_count(tmp_path: Path) -> None:
    here = load_text(tmp_path / "here", EVERYTHING)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = load(tmp_path / "there")
    assert (digest_inputs(here), request(here)) == (digest_inputs(there), request(there))


def test_content_given_inline_or_beside_the_spec_is_one_content(tmp_path: Path) -> None:
    inline = load_text(tmp_path, 'name = "a"\nfiles."/etc/x".content = "welcome\\n"')
    beside = load_text(tmp_path, 'name = "a"\nfiles."/etc/x".source = "files/motd"')
    assert digest_inputs(inline) == digest_inputs(beside)


def test_a_file_that_vanished_is_told(tmp_path: Path) -> None:
    spec = load_text(tmp_path, EVERYTHING)
    (tmp_path / "files/motd").unlink()
    with pytest.raises(InputError, match=r"files/motd: cannot be read any more") as caught:
        digest_inputs(spec)
    assert caught.value.code == "spec-file"
