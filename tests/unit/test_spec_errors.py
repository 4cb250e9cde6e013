"""What a wrong spec is answered with: every problem, at its place, with its reason and remedy."""

from pathlib import Path

import pytest
from spec_samples import EVERYTHING, load_text, problems, refused, ssh_key, write

from obelisk.errors import InputError
from obelisk.spec import load

N = 'name = "a"\n'
R = '[release]\nroot = "keys/root.json"\n'
H = 'repositories = ["http://a/"]\n'

# What the spec says after its name; the place within the file; the code; words of the message; words of the hint.
RULES = [
    # keys and values
    ('pakages = ["x"]', "2:pakages", "spec-key", "no such key", "did you mean `packages`?"),
    ("[boot]\npackages = []", "3:boot.packages", "spec-key", "no such key", "belongs above the first [table]"),
    ('kernel = "linux"', "2:kernel", "spec-key", "no such key", "did you mean `boot.kernel`?"),
    ("xyzzy = 1", "2:xyzzy", "spec-key", "no such key", "known here: name, version"),
    ("[health.x]\nunti = 1", "3:health.x.unti", "spec-key", "no such key", "did you mean `unit`?"),
    ("version = 1.5", "2:version", "spec-value", "must be text, not a number with a fraction", 'write it in quotes: "1.5"'),
    ("version = 2026-01-01", "2:version", "spec-value", "not a date or time", ""),
    ('packages = "nginx"', "2:packages", "spec-value", "must be a list, not text", '["nginx"]'),
    ('recommends = "yes"', "2:recommends", "spec-value", "true or false, not text", "without quotes"),
    ('users.x.uid = "1000"', "2:users.x.uid", "spec-value", "a whole number, not text", "without quotes: 1000"),
    ("users.root.uid = 0", "2:users.root.uid", "spec-value", "from 1000 to 59999, not 0", "give yourself an id of your own"),
    ('distribution = "trixie"', "2:distribution", "spec-value", "debian:trixie, debian:bookworm, debian:forky", "`debian:trixie`"),
    ('distribution = "debian:bokworm"', "2:distribution", "spec-value", "not 'debian:bokworm'", "did you mean `debian:bookworm`?"),
    ('role = "desktop"', "2:role", "spec-value", "one of server, workstation", ""),
    ('packages = [\n  "a1",\n  "b=1",\n]', "4:packages[1]", "spec-value", "the lock holds its version, not 'b=1'", ""),
    ('packages = ["nginx", "nginx"]', "2:packages[1]", "spec-conflict", "'nginx' is listed twice", "remove"),
    ('services.enable = ["nginx"]', "2:services.enable[0]", "spec-value", "a unit with its suffix, such as nginx.service", ""),
    ('files."/etc/x" = {content = "", mode = 0o644}', '2:files."/etc/x".mode', "spec-value", "must be text", "digits that chmod takes"),
    ('files."etc/x".content = ""', '2:files."etc/x"', "spec-value", "an absolute path inside the image", ""),
    ("[users.x]", "2:users.x", "spec-missing", "`uid` is missing", "uid = 1000"),
    ('[files."/etc/x"]', '2:files."/etc/x"', "spec-missing", "exactly one of `content`, `source`", ""),
    ('health.x = {unit = "a.service", status = 200}', "2:health.x.status", "spec-conflict", "`status` goes with `http` only", ""),
    # release
    (f"[release]\n{H}", "2:release", "spec-missing", "`root` is missing", 'root = "root.json"'),
    ('release.root = "keys/root.json"', "2:release", "spec-missing", "`repositories` is missing", ""),
    (f"{R}repositories = []", "4:release.repositories", "spec-value", "at least 1 element", "leave out [release]"),
    (f'{R}repositories = ["file:/srv"]', "4:release.repositories[0]", "spec-value", "starting with http:// or https://", ""),
    (f'{R}repositories = ["http://a:b@c/"]', "4:release.repositories[0]", "spec-value", "without a password", ""),
    (f'{R}repositories = ["http://a:0/"]', "4:release.repositories[0]", "spec-value", "the port must be from 1 to 65535", ""),
    (f'{R}{H}channel = "Stable"', "5:release.channel", "spec-value", "1 to 31 small letters", ""),
    (f'{R}{H}bandwidth = "2MB"', "5:release.bandwidth", "spec-value", "one of K, M, G", ""),
    (f'{R}{H}proxy = "http://a:b"', "5:release.proxy", "spec-value", "the port must be", ""),
    (f'[release]\nroot = "keys/none.json"\n{H}', "3:release.root", "spec-file", "there is no file 'keys/none.json'", ""),
    (f'[release]\nroot = "files/motd"\n{H}', "3:release.root", "spec-file", "is no root metadata of TUF", "1.root.json"),
    (f'[release]\nroot = "keys/timestamp.json"\n{H}', "3:release.root", "spec-file", "root", "1.root.json"),
    # state
    ('state.policy = "some"', "2:state.policy", "spec-value", "one of all, declared", ""),
    ('state.encryption = "luks"', "2:state.encryption", "spec-value", "one of none, tpm2", ""),
    (
        'distribution = "debian:bookworm"\nstate.encryption = "tpm2"',
        "3:state.encryption",
        "spec-conflict",
        "systemd 256 or newer, which 'bookworm' does not have",
        "debian:trixie",
    ),
    ('state.declare = ["/srv/x"]', "2:state.declare[0]", "spec-value", "part of the image", "/var, /home and /root"),
    ('state.declare = ["/var/x", "/var"]', "2:state.declare[1]", "spec-value", "is all of it", 'policy = "all"'),
    ('state.declare = ["/var/lib/dpkg/info"]', "2:state.declare[0]", "spec-value", "a link out of the state", "leave it out"),
    ('state.declare = ["/var/lib/x/"]', "2:state.declare[0]", "spec-value", "trailing slashes", ""),
    ("state.version = 2", "2:state.version", "spec-conflict", "no migration leads to version 2", "the last of state.migrations"),
    (
        'state.migrations = [{to = 2, up = "scripts/build.sh"}]',
        "2:state.migrations",
        "spec-conflict",
        "the last migration leads to version 2",
        "",
    ),
    (
        '[state]\nversion = 4\n[[state.migrations]]\nto = 2\nup = "scripts/build.sh"\n[[state.migrations]]\nto = 4\nup = "scripts/up-3"',
        "8:state.migrations[1].to",
        "spec-value",
        "must be 3, one more than that of the migration before it, not 4",
        "one step",
    ),
    (
        '[state]\nversion = 2\n[[state.migrations]]\nto = 2\nup = "scripts/build.sh"\ndown = "scripts/plain.sh"',
        "7:state.migrations[0].down",
        "spec-file",
        "is not executable",
        "chmod",
    ),
    ("[[state.migrations]]\nto = 2", "2:state.migrations[0]", "spec-missing", "`up` is missing", "scripts/up-2"),
    # name, version, time zone, services, ports
    ('timezone = "Europe/Berln"', "2:timezone", "spec-value", "no time zone 'Europe/Berln'", "`Europe/Berlin`"),
    ('services = {enable = ["a.service"], mask = ["a.service"]}', "2:services.enable[0]", "spec-conflict", "services.mask", "keep one"),
    ('services = {enable = ["a.timer"], disable = ["a.timer"]}', "2:services.enable[0]", "spec-conflict", "services.disable", "keep one"),
    ('health.x.tcp = "localhost:65536"', "2:health.x.tcp", "spec-value", "from 1 to 65535", ""),
    ('health.x.tcp = "localhost:0"', "2:health.x.tcp", "spec-value", "from 1 to 65535", ""),
    ('health.x.http = "http://localhost:99999/"', "2:health.x.http", "spec-value", "from 1 to 65535", ""),
    ('health.x.http = "http://[::zz]/"', "2:health.x.http", "spec-value", "plain http address", ""),
    ('health.x.http = "http://[:::1]/"', "2:health.x.http", "spec-value", "host a name or address", ""),
    # accounts
    ("users = {x = {uid = 1000}, y = {uid = 1000}}", "2:users.y.uid", "spec-conflict", "'x' has the id 1000 already", "own id"),
    ("users.x.uid = 2000\ngroups.y.gid = 2000", "2:users.x.uid", "spec-conflict", "'y' has the id 2000 already", "own id"),
    ("groups.x.gid = 2000\ngroups.y.gid = 2000", "3:groups.y.gid", "spec-conflict", "'x' has the id 2000 already", "own id"),
    ("users.x.uid = 1000\ngroups.x.gid = 1001", "2:users.x.uid", "spec-conflict", "another id, 1001", "gid = 1001"),
    ("users.x = {uid = 1000, gid = 1001}", "2:users.x.gid", "spec-conflict", "no group of the spec has the id 1001", "[groups.NAME]"),
    ("users.root.uid = 1000", "2:users.root", "spec-conflict", "belongs to the system", "another name"),
    ("users.www-data.uid = 1000", "2:users.www-data", "spec-conflict", "belongs to the system", "another name"),
    ("groups.sudo.gid = 1000", "2:groups.sudo", "spec-conflict", "belongs to the system", "another name"),
    ('users.x = {uid = 1000, ssh_keys = ["hello"]}', "2:users.x.ssh_keys[0]", "spec-value", "no SSH public key", ".pub"),
    (
        'users.x = {uid = 1000, ssh_keys = ["-----BEGIN OPENSSH PRIVATE KEY-----"]}',
        "2:users.x.ssh_keys[0]",
        "spec-value",
        "private",
        ".pub",
    ),
    (f'users.x = {{uid = 1000, ssh_keys = ["{ssh_key()[:40]}"]}}', "2:users.x.ssh_keys[0]", "spec-value", "a part missing", ".pub"),
    ('users.x = {uid = 1000, ssh_keys = ["ssh-rsa AAAAB3NzaC1yc2E="]}', "2:users.x.ssh_keys[0]", "spec-value", "a part missing", ".pub"),
    (f'users.x = {{uid = 1000, ssh_keys = ["{ssh_key()[:37]}"]}}', "2:users.x.ssh_keys[0]", "spec-value", "a part missing", ".pub"),
    (
        f'users.x = {{uid = 1000, ssh_keys = ["{ssh_key("ssh-rsa", inner="ssh-ed25519")}"]}}',
        "2:users.x.ssh_keys[0]",
        "spec-value",
        "says ssh-rsa",
        ".pub",
    ),
    # files beside the spec
    ('tree = "tre"', "2:tree", "spec-file", "no directory 'tre' beside the spec", "did you mean `tree`?"),
    ('tree = "files/motd"', "2:tree", "spec-file", "'files/motd' is no directory", ""),
    ('tree = "."', "2:tree", "spec-file", "the spec's own directory", "such as tree"),
    ('files."/etc/x".source = "files/mtd"', '2:files."/etc/x".source', "spec-file", "no file 'files/mtd'", "`files/motd`"),
    ('files."/etc/x".source = "nowhere/x"', '2:files."/etc/x".source', "spec-file", "no file 'nowhere/x'", "make it at"),
    ('files."/etc/x".source = "files"', '2:files."/etc/x".source', "spec-file", "'files' is no file", ""),
    ('files."/etc/x".source = "outside"', '2:files."/etc/x".source', "spec-file", "leads out of the spec's directory", "copy"),
    (f'files."/etc/x".source = "{"x" * 300}"', '2:files."/etc/x".source', "spec-file", "", ""),
    ('[[scripts]]\nrun = "scripts/plain.sh"', "3:scripts[0].run", "spec-file", "not executable", "chmod +x"),
    ('[[scripts]]\nrun = "scripts/nothing"', "3:scripts[0].run", "spec-file", "does not say what runs it", "#!/bin/sh"),
    ('[[scripts]]\nrun = "scripts/dos.sh"', "3:scripts[0].run", "spec-file", "DOS line ends", "sed -i"),
    (
        '[[scripts]]\nrun = "scripts/build.sh"\n[[scripts]]\nrun = "scripts/build.sh"',
        "5:scripts[1].run",
        "spec-conflict",
        "listed twice",
        "remove",
    ),
    (
        '[sources.x]\nuri = "http://a/"\nsuites = ["s"]\ncomponents = ["main"]\nkey = "files/motd"',
        "6:sources.x.key",
        "spec-file",
        "no OpenPGP public key",
        "export",
    ),
    (
        '[sources.x]\nuri = "http://a/"\nsuites = ["s"]\ncomponents = ["main"]\nkey = "keys/secret.asc"',
        "6:sources.x.key",
        "spec-file",
        "a private key",
        "export",
    ),
    ('[sources.x]\nuri = "http://a/"\nsuites = ["s"]\nkey = "keys/good.asc"', "2:sources.x", "spec-missing", "`components`", '["main"]'),
    (
        '[sources.x]\nuri = "http://a/"\nsuites = ["s/"]\ncomponents = ["main"]\nkey = "keys/good.asc"',
        "4:sources.x.suites",
        "spec-conflict",
        "without components",
        "two sources",
    ),
    # places and collisions
    *[
        (f'files."{path}".content = ""', f'2:files."{path}"', "spec-forbidden", reason, hint)
        for path, reason, hint in [
            ("/proc/x", "filled by the kernel", "leave it out"),
            ("/sys/x", "filled by the kernel", "leave it out"),
            ("/dev/x", "filled by the kernel", "leave it out"),
            ("/run/x", "in memory", "tmpfiles.d"),
            ("/tmp/x", "in memory", "tmpfiles.d"),  # noqa: S108 - inside the image
            ("/tmp", "in memory", "tmpfiles.d"),  # noqa: S108 - inside the image
            ("/var/lib/x", "the machine's state", "/srv"),
            ("/home/x/.profile", "the machine's state", "/etc/skel"),
            ("/root/.ssh/authorized_keys", "the machine's state", "ssh_keys"),
            ("/boot/x", "boot partition", "boot.kernel"),
            ("/efi/x", "boot partition", "boot.kernel"),
            ("/etc/hostname", "written from `hostname`", "set `hostname`"),
            ("/etc/machine-id", "differs from machine to machine", "first boot"),
            ("/etc/ssh/ssh_host_rsa_key", "differs from machine to machine", "first boot"),
            ("/etc/ssh/ssh_host_ed25519_key.pub", "differs from machine to machine", "first boot"),
            ("/etc/shadow", "written from the accounts", "`users`"),
            ("/etc/localtime", "written from `timezone`", "`timezone`"),
            ("/etc/locale.conf", "written from `locale`", "`locale`"),
            ("/lib/os-release", "written from `name`", "leave it out"),
        ]
    ],
    (
        'files."/bin/x".content = ""\nfiles."/usr/bin/x".content = ""',
        '3:files."/usr/bin/x"',
        "spec-conflict",
        "'/bin/x' are one place",
        "keep one",
    ),
    ('files."/etc/x".content = ""\nfiles."/etc/x/y".content = ""', '3:files."/etc/x/y"', "spec-conflict", "'/etc/x' is a file", "keep one"),
    ('tree = "tree"\nfiles."/etc/motd.d/hello".content = ""', '3:files."/etc/motd.d/hello"', "spec-conflict", "has the file hello", "keep"),
    ('tree = "tree"\nfiles."/etc/motd.d".content = ""', '3:files."/etc/motd.d"', "spec-conflict", "has the directory motd.d", "keep one"),
    ('tree = "tree"\nfiles."/etc/motd.d/hello/x".content = ""', '3:files."/etc/motd.d/hello/x"', "spec-conflict", "is a file in", "keep"),
    (
        'files."/usr/bin/x" = {content = "", mode = "2755"}',
        '2:files."/usr/bin/x".mode',
        "spec-forbidden",
        "setuid and setgid",
        "allow.setuid",
    ),
    # hardening
    ("[hardening]\nmodule_signatures = false", "3:hardening.module_signatures", "spec-conflict", "no unsigned modules either", "lockdown"),
    ('hardening.lockdown = "on"', "2:hardening.lockdown", "spec-value", "one of integrity, confidentiality, none", ""),
    ('hardening.state_mounts = ["ro"]', "2:hardening.state_mounts[0]", "spec-value", "one of nodev, noexec, nosuid", ""),
    # the kernel's command line
    *[
        (f'boot.cmdline = ["quiet", "{word}"]', "2:boot.cmdline[1]", "spec-forbidden", reason, "leave it out")
        for word, reason in [
            ("root=/dev/sda1", "verified hash"),
            ("rw", "verified hash"),
            ("rootfstype=ext4", "verified hash"),
            ("rootflags=x", "verified hash"),
            ("mount.usr=/dev/sda", "verified hash"),
            ("roothash=00", "verified hash"),
            ("usrhash=00", "verified hash"),
            ("systemd.verity=0", "verified hash"),
            ("systemd.verity_root_data=/dev/sda", "verified hash"),
            ("rd.systemd.verity=no", "verified hash"),
            ("systemd.gpt-auto=0", "verified hash"),
            ("systemd.image_policy=root=unprotected", "verified hash"),
            ("dm-mod.create=x", "verified hash"),
            ("dm_verity.error_behavior=0", "damaged"),
            ("systemd.set_credential=a:b", "everybody can read it"),
            ("lockdown=none", "under `hardening`"),
            ("module.sig-enforce=0", "under `hardening`"),
            ("init=/bin/sh", "own system"),
            ("rdinit=/bin/sh", "own system"),
            ("initrd=/x", "own system"),
            ("--", "own system"),
            ("systemd.unit=rescue.target", "own system"),
            ("rd.systemd.unit=emergency.target", "own system"),
            ("systemd.run=/bin/sh", "own system"),
            ("systemd.volatile=overlay", "over the verified root"),
            ("systemd.mount-extra=/dev/sda:/usr", "over the verified root"),
            ("systemd.debug-shell=1", "root shell"),
            ("rd.systemd.debug_shell", "root shell"),
            ("rd.break", "root shell"),
            ("single", "root shell"),
            ("1", "root shell"),
            ("emergency", "root shell"),
            ("systemd.setenv=SYSTEMD_SULOGIN_FORCE=1", "root shell"),
        ]
    ],
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule[1]}-{rule[0][:40]}")
def test_each_rule_is_told_at_its_place_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: tuple[str, str, str, str, str]
) -> None:
    text, place, code, message, hint = rule
    spec = tmp_path / "shop"
    spec.mkdir()
    (tmp_path / "outside").write_text("")
    (spec / "outside").symlink_to(tmp_path / "outside")
    write(spec, N + text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load(Path("shop"))
    error = caught.value
    assert error.place == f"shop/obelisk.toml:{place}", error
    assert error.code == code
    assert str(error).startswith(f"{error.place}: ")
    assert message in str(error)
    assert hint in error.hint
    assert "\n" not in str(error), "one fault is one problem"
    assert error.exit_status == 2


@pytest.mark.parametrize(
    "word", ["console=ttyS0", "rootwait", "quiet", "systemd.show_status=1", "initcall_debug", "rd.udev.log_level=3", "10"]
)
def test_words_that_leave_the_seal_whole_are_taken(tmp_path: Path, word: str) -> None:
    assert load_text(tmp_path, f'{N}boot.cmdline = ["{word}"]').boot.cmdline == (word,)


def test_every_problem_is_told_in_one_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
pakages = []
tree = "nowhere"
size_budget = "2GB"
timezone = "Mars/Base"

[services]
enable = ["nginx"]

[[scripts]]
run = "gone.sh"
[[scripts]]
run = "scripts/build.sh"
[[scripts]]
run = "scripts/plain.sh"

[users.a]
uid = 1000
[users.b]
uid = 1000
[users.c]
id = 1002
"""
    error = refused(tmp_path, text)
    lines = str(error).splitlines()
    file = tmp_path / "obelisk.toml"
    assert [line.removeprefix(f"{file}:").split(": ")[0] for line in lines] == [
        "1:pakages",
        "1",
        "2:tree",
        "3:size_budget",
        "4:timezone",
        "7:services.enable[0]",
        "10:scripts[0].run",
        "14:scripts[2].run",
        "19:users.b.uid",
        "21:users.c.id",
    ]
    assert lines[0].endswith("there is no such key (did you mean `packages`?)")
    assert lines[1].endswith('`name` is missing (for example: name = "shop")')
    assert error.code == "spec-key"
    assert error.hint == "fix these 10 places"


def test_name_and_version_fit_into_a_partitions_label(tmp_path: Path) -> None:
    name = "a" * 24
    assert load_text(tmp_path, f'name = "{name}"\nversion = "1234"').version == "1234"
    (problem,) = problems(tmp_path, f'name = "{name}"\nversion = "12345"')
    assert problem.path == ("version",)
    assert "is 1 too long" in problem.message


def test_a_password_is_never_repeated_in_a_message(tmp_path: Path) -> None:
    error = refused(tmp_path, f'{N}users.x = {{uid = 1000, password = "correct horse"}}')
    assert "correct horse" not in str(error) + error.hint
    assert "must be a hash" in str(error)
    assert "mkpasswd" in error.hint


def test_long_and_unprintable_values_are_shown_short_and_printable(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f'{N}locale = "\\u001b[31m{"x" * 500}"')
    assert problem.message.isprintable()
    assert len(problem.message) < 200


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('name = "a\n', "1:10", "this is no TOML: illegal character '\\n'"),
        ('name = "a"\nb c = 1', "2:3", "expected '=' after a key"),
        ('name = "a"\nname = "b"', "2:11", "cannot overwrite a value"),
        ("[a]\n[a]\n", "2:3", "cannot declare ('a',) twice"),
        ("a = [1,\n2", "2:2", "unclosed array"),
        ("a = " + "[" * 9999, "", "nested too deeply"),
    ],
)
def test_what_is_no_toml_is_told_with_line_and_column(tmp_path: Path, text: str, place: str, message: str) -> None:
    error = refused(tmp_path, text)
    assert error.code == "spec-syntax"
    assert error.place == f"{tmp_path / 'obelisk.toml'}{':' * bool(place)}{place}"
    assert message in str(error)
    assert error.hint


def test_the_place_of_a_syntax_error_is_shown(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "a"\n\tb c = 1\n')
    assert str(error).splitlines()[1:] == ["   b c = 1", "     ^"]


def test_a_spec_that_is_not_there_or_not_text_is_told_as_such(tmp_path: Path) -> None:
    def error_of(path: Path) -> InputError:
        with pytest.raises(InputError) as caught:
            load(path)
        return caught.value

    assert error_of(tmp_path).code == "spec-not-found"
    assert error_of(tmp_path).place == str(tmp_path / "obelisk.toml")
    assert "obelisk new" in error_of(tmp_path / "nowhere").hint
    assert "is no file" in str(error_of(Path("/dev/null")))
    file = tmp_path / "obelisk.toml"
    file.write_bytes(b'name = "a"\n# \xff\n')
    assert error_of(tmp_path).place == f"{file}:2"
    file.write_bytes(b"#" * (5 << 20))
    assert "larger than 4 MiB" in str(error_of(tmp_path))


def test_byte_order_marks_and_dos_line_ends_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "obelisk.toml").write_bytes(b'\xef\xbb\xbfname = "a"\r\n\r\npakages = []\r\n')
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert caught.value.place.endswith(":3:pakages")


def test_everything_means_what_it_says(tmp_path: Path) -> None:
    spec = load_text(tmp_path, EVERYTHING)
    assert spec.size_budget_bytes == 2 << 30
    assert str(spec.distribution) == "debian:trixie"
    assert spec.files[1].path == "/usr/bin/spool"
    assert spec.files[1].mode == 0o4755
    assert spec.files[0].content == ""
    assert spec.allow.setuid == ("/usr/bin/spool",)
    assert [(check.name, type(check.check).__name__, check.timeout_s) for check in spec.health] == [
        ("web", "HttpCheck", 3600),
        ("unit", "UnitCheck", 120),
        ("port", "TcpCheck", 120),
        ("own", "CommandCheck", 30),
    ]
    port = spec.health[2].check
    assert (port.host, port.port) == ("::1", 5432)  # type: ignore[union-attr]
    assert [script.name for script in spec.scripts] == ["scripts/build.sh"]
    assert spec.users[1].home == "/home/guest"
    assert spec.sources[1].components == ()
