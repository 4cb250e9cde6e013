"""Specs to test with: a directory with everything that a spec can refer to, and short ways to write and load one."""

import base64
import struct
from functools import cache
from pathlib import Path

from trust_samples import Authority

from obelisk.errors import InputError
from obelisk.model.spec import Spec
from obelisk.spec import Problem, SpecError, load


def ssh_key(kind: str = "ssh-ed25519", inner: str = "") -> str:
    """A line of authorized_keys; `inner` is the kind that the key itself says, when it differs."""
    blob = b"".join(struct.pack(">I", len(part)) + part for part in ((inner or kind).encode(), bytes(range(32))))
    return f"{kind} {base64.b64encode(blob).decode()} somebody"


@cache
def _authority() -> Authority:
    return Authority()


def root_metadata() -> str:
    """With what trust in a repository begins."""
    return _authority().first_root.decode()


def timestamp_metadata() -> str:
    """Metadata of the same repository that is no root."""
    return _authority().files["metadata/timestamp.json"].decode()


def write(directory: Path, text: str) -> Path:
    """A directory with the spec `text` and files to refer to; gives the directory."""
    for name, content, mode in (
        ("tree/etc/motd.d/hello", "hello\n", 0o644),
        ("tree/usr/local/bin/greet", "#!/bin/sh\necho hello\n", 0o755),
        ("files/motd", "welcome\n", 0o644),
        ("keys/good.asc", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n", 0o644),
        ("keys/secret.asc", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n", 0o600),
        ("keys/root.json", root_metadata(), 0o644),
        ("keys/timestamp.json", timestamp_metadata(), 0o644),
        ("scripts/build.sh", "#!/bin/sh\n", 0o755),
        ("scripts/up-3", "#!/bin/sh\n", 0o755),
        ("scripts/down-3", "#!/bin/sh\n", 0o755),
        ("scripts/plain.sh", "#!/bin/sh\n", 0o644),
        ("scripts/nothing", "echo\n", 0o755),
        ("scripts/dos.sh", "#!/bin/sh\r\necho\r\n", 0o755),
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
        path.chmod(mode)
        for above in path.relative_to(directory).parents:
            (directory / above).chmod(0o755)
    (directory / "obelisk.toml").write_text(text, encoding="utf-8")
    return directory


def load_text(directory: Path, text: str) -> Spec:
    """The spec that `text` means, with the files of `write` beside it."""
    return load(write(directory, text))


def refused(directory: Path, text: str) -> InputError:
    """The error that loading `text` gives."""
    try:
        load_text(directory, text)
    except InputError as error:
        return error
    message = f"was accepted: {text}"
    raise AssertionError(message)


def problems(directory: Path, text: str) -> tuple[Problem, ...]:
    """Everything that is wrong with `text`, in the order of the file."""
    error = refused(directory, text)
    assert isinstance(error, SpecError), error
    return error.problems


EVERYTHING = f"""
name = "shop"
version = "2026.1"
distribution = "debian:trixie"
role = "workstation"
packages = ["nginx-light", "g++", "libstdc++-12-dev"]
recommends = true
tree = "tree"
hostname = "shop.example"
locale = "de_DE.UTF-8"
timezone = "Europe/Berlin"
size_budget = "2G"
compression = "zstd"
documentation = true
mirror = "http://mirror.example:8080/debian/"
snapshot = "file:/srv/archive"

[boot]
kernel = "linux-image-cloud-amd64"
cmdline = ["console=ttyS0", "rootwait", "systemd.journald.forward_to_console=1"]

[services]
enable = ["nginx.service", "serial-getty@ttyS0.service"]
disable = ["apt-daily.timer"]
mask = ['dev-disk-by\\x2dlabel-x.swap']

[users.deploy]
uid = 1000
gid = 2000
groups = ["sudo", "app"]
ssh_keys = ["{ssh_key()}", 'from="10.0.0.0/8",no-pty {ssh_key("ssh-rsa")}']
shell = "/bin/sh"
home = "/var/lib/deploy"
comment = "Deployment, Ä"
password = "$6$VGEvgHiF4Ee0pWeI$GfrDgvbYmq9JSyOmVDjzjGqRsp/e7BXFOSGrNChIrdJs2DVqBYLVFvYLEPVh.hHkmxOMeIHtJ7rNEJ0LQnf1q/"
[users.guest]
uid = 1001

[groups.app]
gid = 2000

[files."/etc/motd"]
content = ""
[files."/bin/spool"]
source = "files/motd"
mode = "4755"
owner = "deploy"
group = "app"

[hardening]
lockdown = "confidentiality"
state_mounts = ["nosuid"]

[sources.pgdg]
uri = "https://apt.example/debian"
suites = ["trixie-pgdg"]
components = ["main"]
key = "keys/good.asc"
[sources.flat]
uri = "file:/srv/flat"
suites = ["./"]
key = "./keys/good.asc"

[[scripts]]
run = "scripts/build.sh"

[upgrade]
rehearse = true

[host]
applications = true

[release]
channel = "testing"
repositories = ["https://releases.example/os", "http://mirror.example:8080/os"]
root = "keys/root.json"
follow = "6h"
bandwidth = "2M"
proxy = "http://proxy.example:3128"

[state]
policy = "declared"
encryption = "tpm2"
declare = ["/var/lib/shop"]
version = 3
[[state.migrations]]
to = 3
up = "scripts/up-3"
down = "scripts/down-3"

[health.web]
http = "http://localhost:8080/a?b=c"
status = 204
contains = "Hello"
timeout = "1h"
[health.unit]
unit = "nginx.service"
[health.port]
tcp = "[::1]:5432"
[health.own]
command = "true"
timeout = "30s"

[tests.greets]
command = '''
greet
'''
expect = "hello"

[allow]
setuid = ["/bin/spool"]
devices = ["/srv/null"]
replace = ["/usr/share/x"]
"""
