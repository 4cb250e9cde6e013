"""Applications start confined, from a root that was checked, with what the operator leaves them."""

import errno
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ordinary import UID, ordinary_user
from sandboxes import PRIVATE, WITH_TUNNEL, application, places, told
from tool import Tool

SHELL = """
[app]
command = ["/bin/sh", "-c"]
environment = ["GREETING=hello there"]
directory = "/srv"
data = ["/var/lib/shell"]
scratch = ["/var/cache/shell", "/run/shell"]
"""


@pytest.fixture(scope="module")
def shell(applications: Tool) -> Iterator[Tool]:
    """A shell as an application."""
    with places():
        yield application(applications, "shell", SHELL)


def said(tool: Tool, command: str, *, status: int = 0) -> str:
    """What the shell says."""
    return tool.run("app", "run", str(tool.spec), "--", command, status=status)


def test_it_gets_its_words_its_directory_and_its_environment_and_gives_its_status(shell: Tool) -> None:
    assert said(shell, 'pwd; echo "$GREETING"; env | wc -l') == "/srv\nhello there\n6\n"
    assert "no" in said(shell, "echo no; exit 42", status=42)
    assert shell.run("app", "run", str(shell.spec), "--", 'echo "$0-$1"', "a b", "--") == "a b---\n"


def test_it_reads_what_is_piped_to_it(shell: Tool) -> None:
    words = [*shell.prefix, str(shell.checkout / "obelisk"), "app", "run", str(shell.spec), "--", "cat"]
    done = subprocess.run(words, env=shell.environment, input=b"through\n", capture_output=True, check=True)
    assert done.stdout == b"through\n"


def test_data_outlives_a_run_and_memory_does_not(shell: Tool) -> None:
    said(shell, "for place in /var/lib/shell /var/cache/shell /run/shell /tmp /home/app /var/tmp /dev/shm; do echo kept >$place/file; done")
    assert (
        said(shell, "cat /var/*/shell/file /run/shell/file /tmp/file /home/app/file /var/tmp/file /dev/shm/file 2>&1 | grep -c kept")
        == "1\n"
    )
    assert said(shell, "cat /var/lib/shell/file") == "kept\n"
    assert said(shell, "ls -ld /var/lib/shell | cut -c 1-10; id -un") == "drwx------\napp\n"


def test_what_it_keeps_has_no_parts_that_snapshots_leave_out(shell: Tool) -> None:
    ask = "my $b = chr(0) x 4096; ioctl $d, $_, $b and die; print $!+0, ' '"
    asks = f"open my $d, '<', '/var/lib/shell' or die; for (@ARGV) {{ {ask} }}"
    numbers = " ".join(map(str, (0x50009401, 0x5000940E, 0x50009417, 0x50009418, 0x50009419)))
    assert said(shell, f'perl -e "{asks}" {numbers}'.replace("$", "\\$")).split() == [*[str(errno.EPERM)] * 4, str(errno.ENOTTY)]


def test_nothing_of_the_image_can_be_changed(shell: Tool) -> None:
    for place in ("/", "/usr/bin", "/etc", "/var/lib", "/srv", "/opt", "/home"):
        assert "Read-only file system" in said(shell, f"touch {place}/file 2>&1; true")


def test_what_started_it_can_be_started_again_without_obelisk(shell: Tool) -> None:
    """By a program that is no script, in one mount namespace with what made it ready."""
    script = f'start=$("$0" app ready {shell.spec}) && head -c 4 "$start" && "$start" "echo again"'
    words = [*PRIVATE, "sh", "-euc", script, str(shell.checkout / "obelisk")]
    done = subprocess.run(words, env=shell.environment, capture_output=True, check=True)
    assert done.stdout == b"\x7fELFagain\n"


def test_a_block_that_was_changed_is_found_before_anything_starts(shell: Tool, tmp_path: Path) -> None:
    copy = replace(shell, prefix=()).copied_to(tmp_path)
    image = shell.run("show", str(shell.spec), "--json")
    root = tmp_path / "store/images" / json.loads(image)["id"] / "root.erofs"
    content = bytearray(root.read_bytes())
    content[len(content) // 2] ^= 1
    root.unlink()
    root.write_bytes(content)
    damaged = replace(copy, prefix=PRIVATE, spec=shell.spec)
    error = damaged.refused("app", "ready", "shell", status=3)
    assert error["code"] == "root-damaged"
    assert "obelisk verify --repair" in error["hint"]


def test_show_tells_what_it_may_do_and_what_holds_here(shell: Tool) -> None:
    text = shell.run("app", "show", str(shell.spec))
    assert "does nothing else" in text
    assert "0 of 100 is open" in text
    result = json.loads(shell.run("app", "show", str(shell.spec), "--json"))
    assert result["score"] == 0
    assert result["granted"] == result["missing"] == []
    assert {"namespaces", "files", "blocks", "seccomp", "landlock", "nesting", "write-execute", "limits", "rights"} == set(result["layers"])


def test_an_operator_narrows_what_an_image_asks_for_and_widens_it_by_saying_so(applications: Tool) -> None:
    with places() as place:
        app = application(
            applications, "asks", '[app]\ncommand = ["/bin/sh", "-c"]\n[grants]\nread = ["/mnt/a", "/mnt/b"]\n[limits]\nprocesses = 50\n'
        )
        setup = "mount -t tmpfs tmpfs /mnt; for name in a b c; do echo $name >/mnt/$name; done; exec"
        app = replace(app, prefix=(*PRIVATE, "sh", "-euc", f'{setup} "$@"', "sh"))
        seen = "cat /mnt/a /mnt/b /mnt/c 2>/dev/null; grep processes /proc/self/limits | tr -s ' ' | cut -d ' ' -f 3"

        assert said(app, seen) == "a\nb\n50\n"
        told(place, "asks", '[allow.grants]\nread = ["/mnt/b", "/mnt/c"]\nlisten = [8080]\n[allow.limits]\nprocesses = 70\n')
        assert said(app, seen) == "b\n50\n"
        assert "given although" not in app.run("app", "show", str(app.spec))
        told(place, "asks", '[override.grants]\nread = ["/mnt/c"]\n[override.limits]\nprocesses = 70\n')
        assert said(app, seen) == "a\nb\nc\n70\n"
        assert "reads /mnt/c of this machine" in app.run("app", "show", str(app.spec)).partition("given although the image")[2]

        for text, code in (
            ("[allow", "policy-syntax"),
            ("[grants]", "policy-value"),
            ('[override.grants]\nread = ["/etc"]', "policy-value"),
        ):
            told(place, "asks", text)
            assert app.refused("app", "show", str(app.spec), status=2)["code"] == code
        told(place, "asks", '[override.grants]\nread = ["/mnt/missing"]\n')
        assert app.refused("app", "ready", str(app.spec), status=5)["code"] == "grant-missing"


# A machine of its own devices, with two more: 1-1 is everybody's, 1-2 is root's alone.
_PLUGGED = """\
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/dev /mnt/sys
for each in /dev/*; do
    if [ -L "$each" ]; then cp -P "$each" /mnt/dev; continue; fi
    if [ -d "$each" ]; then mkdir "/mnt$each"; else touch "/mnt$each"; fi
    mount --rbind "$each" "/mnt$each"
done
mkdir -p /mnt/dev/bus/usb/001
plug() {
    mkdir -p "/mnt/sys/usb/devices/$1"
    for each in "idVendor $2" "idProduct $3" "busnum 1" "devnum $4"; do echo "${each#* }" >"/mnt/sys/usb/devices/$1/${each% *}"; done
    mknod -m "$5" "/mnt/dev/bus/usb/001/00$4" c 1 5
}
plug 1-1 046d c31c 4 666
plug 1-2 1d6b 0003 5 660
mount --rbind /mnt/dev /dev
mount --bind /mnt/sys /sys/bus
exec "$@"
"""


def test_of_what_is_plugged_in_it_has_the_products_that_are_granted(applications: Tool) -> None:
    with places() as place:
        app = application(
            applications, "plugs", '[app]\ncommand = ["/bin/sh", "-c"]\n[grants]\ndevices = ["usb:046d:c31c", "usb:ffff:ffff"]\n'
        )
        app = replace(app, prefix=(*PRIVATE, "sh", "-euc", _PLUGGED, "sh"))
        seen = "ls /dev/bus/usb/001 2>&1 | tail -n 1; head -c 3 /dev/bus/usb/001/004 2>/dev/null | wc -c"
        assert said(app, seen) == "004\n3\n"
        assert "uses what is plugged in by USB as 046d:c31c" in app.run("app", "show", str(app.spec))
        told(place, "plugs", '[allow.grants]\ndevices = ["usb:ffff:ffff"]\n')
        assert said(app, seen).endswith("No such file or directory\n0\n")
        assert "usb:046d:c31c" in app.run("app", "audit", str(app.spec), "--", "cat /dev/bus/usb/001/004", status=1)
        told(place, "plugs", '[override.grants]\ndevices = ["usb:1d6b:0003"]\n')
        refused = app.refused("app", "ready", str(app.spec), status=5)
        assert (refused["code"], "ATTR{idProduct}==" in refused["hint"]) == ("device-closed", True)


def test_secrets_come_from_the_operator_and_one_that_is_missing_is_named(applications: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    with places() as place:
        text = '[app]\ncommand = ["/bin/sh", "-c"]\n'
        without = application(applications, "secretive", f'version = "1"\n{text}')
        app = application(applications, "secretive", f'version = "2"\n{text}credentials = ["key"]\n')
        assert app.run("app", "diff", "secretive@1", "secretive@2", status=1) == "+ reads the credential key\n"
        assert without.run("app", "diff", "secretive@2", "secretive@1") == "- reads the credential key\n"
        assert "which is missing" in app.run("app", "show", str(app.spec))
        given = place / "given"
        given.mkdir()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
        error = app.refused("app", "ready", str(app.spec), status=5)
        assert error["code"] == "credential-missing"
        assert "credential key is not there" in error["message"]
        (given / "key").write_text("open sesame")
        assert said(app, "cat /run/credentials/key") == "open sesame"
        assert f"{given}/key" in app.run("app", "show", str(app.spec))


def test_a_limit_of_all_processes_wants_control_groups_or_the_operators_word(applications: Tool) -> None:
    """This passes on machines with and without them: what is asked is that the limit is there or that its layer is named."""
    with places() as place:
        app = application(applications, "bounded", '[app]\ncommand = ["/bin/sh", "-c"]\n[limits]\ntotal_memory = "64M"\n')
        layers = json.loads(app.run("app", "show", str(app.spec), "--json"))["layers"]
        if layers["cgroup"] == "missing on this machine":
            error = app.refused("app", "ready", str(app.spec), status=7)
            assert (error["code"], "`cgroup`" in error["message"], error["hint"] != "") == ("layer-missing", True, True)
            told(place, "bounded", '[override]\nmay_miss = ["cgroup"]\n')
            assert said(app, "echo started") == "started\n"
        else:
            each = "fork or do { $x = chr(65 + $_) x (32 << 20); sleep 2; exit 0 }"
            hog = f"perl -e 'for (1..8) {{ {each} }} $n += wait > 0 && !$? for 1..8; print $n'"
            assert int(said(app, hog)) < 8
        app.run("app", "clear", str(app.spec))


def test_what_it_keeps_has_a_bound_that_can_be_moved_and_lifted(applications: Tool) -> None:
    text = '[app]\ncommand = ["/bin/sh", "-c"]\ndata = ["/var/lib/kept"]\n'
    with places() as place:
        app = application(applications, "keeping", text)
        said(app, "echo one >/var/lib/kept/one")
        app = application(applications, "keeping", f'{text}[limits]\ndata = "32M"\n')
        assert "its directories of data hold, all together: 32 MiB" in " ".join(app.run("app", "show", str(app.spec)).split())
        # What was there has moved, and another 32 MiB have no room beside it.
        fill = "head -c 32M /dev/zero >/var/lib/kept/more"
        assert "No space left on device" in said(app, f"cat /var/lib/kept/one; {fill}", status=1)
        assert said(app, "cat /var/lib/kept/one; ls /var/lib/kept; stat -c %U /var/lib/kept/one") == "one\nmore\none\napp\n"
        told(place, "keeping", "[allow]\nlimits = { data_bytes = 16777216 }\n")
        assert app.refused("app", "ready", str(app.spec), status=5)["code"] == "volume-full"
        told(place, "keeping", "[override]\nlimits = { data_bytes = 67108864 }\n")
        assert said(app, f"{fill} && cat /var/lib/kept/one") == "one\n"
        told(place, "keeping", '[override]\nlimits = { data_bytes = "none" }\n')
        assert said(app, "cat /var/lib/kept/one && wc -c </var/lib/kept/more") == f"one\n{32 << 20}\n"
        assert not list((place / "data/.volumes").glob("[!.]*"))


def test_a_difference_is_told_in_words_and_growth_by_the_status(applications: Tool) -> None:
    plain = '[app]\ncommand = ["/bin/true"]\n'
    first = application(applications, "grows", f'version = "1"\n{plain}')
    application(applications, "grows", f'version = "2"\n{plain}[grants]\nlisten = [8080]\n')
    assert first.run("app", "diff", "grows@1", "grows@2", status=1).startswith("+ accepts connections at TCP port 8080 of this machine\n")
    assert first.run("app", "diff", "grows@2", "grows@1") == "- accepts connections at TCP port 8080 of this machine\n"
    assert first.run("app", "diff", "grows@2", "grows@2") == "both may do the same\n"


def test_machines_and_applications_are_not_taken_for_each_other(applications: Tool, shell: Tool) -> None:
    assert applications.refused("app", "show", str(applications.spec), status=2)["code"] == "not-application"
    assert shell.refused("run", str(shell.spec), status=2)["code"] == "image-application"
    assert shell.refused("install", str(shell.spec), "/dev/null", status=2)["code"] == "image-application"
    assert shell.refused("export", str(shell.spec), "--output", "/nowhere", status=2)["code"] == "image-application"


def test_an_image_of_an_application_is_the_same_to_the_bit_and_its_proof_names_its_tests(applications: Tool) -> None:
    with places():
        tests = '[tests.says]\ncommand = "echo it works"\nexpect = "works"\n[tests.sealed]\ncommand = "! touch /usr/x"\n'
        app = application(applications, "proven", f'[app]\ncommand = ["/bin/true"]\n{tests}')
        assert app.run("build", str(app.spec), "--reproduce").strip()
        result = json.loads(app.run("test", str(app.spec), "--json").splitlines()[-1])
        assert result["report"]["passed"]
        envelope = json.loads(Path(result["proof"]).read_text())
        assert envelope["payloadType"] == "application/vnd.in-toto+json"
        names = [scenario["name"] for scenario in result["report"]["scenarios"]]
        assert names == ["every block of the root is what its hash tree says", "starts in its sandbox", "test says", "test sealed"]

        failing = application(applications, "failing", '[app]\ncommand = ["/bin/true"]\n[tests.no]\ncommand = "false"\n')
        assert "FAIL  test no" in failing.run("test", str(failing.spec), status=8)


def test_an_ordinary_user_runs_it_with_the_same_confinement(shell: Tool, tmp_path: Path) -> None:
    user = ordinary_user(shell, tmp_path)
    user = replace(user, prefix=(*user.prefix, "env", "-u", "OBELISK_RUN", "-u", "OBELISK_DATA", "-u", "XDG_CONFIG_HOME"))
    user.build()
    status = said(user, "id -u; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; touch /usr/x 2>&1; echo kept >/var/lib/shell/file")
    assert status.startswith("1000\n")
    assert status.count("0000000000000000") == 5
    assert "NoNewPrivs:\t1" in status
    assert "Read-only file system" in status
    assert said(user, "cat /var/lib/shell/file; cat /mnt/home/keys/* 2>&1 | head -n 1").startswith("kept\ncat: ")
    file = tmp_path / "home/.config/obelisk/apps/shell.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[override.grants]\nlisten = [18099]\nread = ["~/keys"]\n')
    subprocess.run(["chown", "--recursive", f"{UID}:{UID}", tmp_path / "home/.config"], check=True)
    networked = replace(user, prefix=(*WITH_TUNNEL, *user.prefix))
    seen = said(networked, "ls /home/app/keys; grep -c : /proc/net/dev; perl -e 'print socket(S, 2, 1, 0) ? 1 : 0'")
    assert "attestation.key\n" in seen
    assert seen.endswith("2\n1"), seen
    assert "was not in place" not in user.run("app", "clear", str(user.spec))
    shutil.rmtree(tmp_path / "home")
