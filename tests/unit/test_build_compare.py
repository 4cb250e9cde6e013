"""What differs between two images, as far as manifests and listings tell."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from host_samples import manifest

from obelisk.build.compare import Change, Side, compare, started
from obelisk.model.image import ImagePackage
from obelisk.system import erofs


def test_equal_images_do_not_differ() -> None:
    assert compare(Side(manifest()), Side(manifest()), None) == ()


def test_manifests_tell_of_packages_programs_sizes_and_settings() -> None:
    bash, dash = ImagePackage("bash", "5.2", "amd64", ""), ImagePackage("dash", "0.5", "amd64", "")
    before = replace(manifest("1"), packages=(bash, dash), setuid=("/usr/bin/su",), cmdline="roothash=aa quiet")
    after = replace(
        manifest("2", root_mib=200, root_hash="cd" * 32),
        packages=(replace(bash, version="5.3"),),
        kernel="6.13",
        cmdline="roothash=bb quiet",
    )
    assert compare(Side(before), Side(after), None) == (
        Change("setting", "version", "1", "2"),
        Change("setting", "kernel", "6.12", "6.13"),
        Change("setting", "root bytes", str(100 << 20), str(200 << 20)),
        Change("setting", "packages", "2", "1"),
        Change("package", "bash", "5.2", "5.3"),
        Change("package", "dash", "0.5", ""),
        Change("set-id", "/usr/bin/su", "yes", ""),
    )


def test_what_is_started_is_named_with_what_wants_it() -> None:
    listing = {
        "etc/systemd/system/multi-user.target.wants/nginx.service": "l",
        "usr/lib/systemd/system/graphical.target.requires/nginx.service": "l",
        "usr/lib/systemd/system/nginx.service": "-",
        "etc/systemd/system/multi-user.target.wants": "d",
    }
    assert started(listing) == {"nginx.service": "graphical.target, multi-user.target"}


def test_a_listing_has_files_users_and_where_enabled_sockets_listen(tmp_path: Path) -> None:
    units = tmp_path / "usr/lib/systemd/system"
    (units / "sockets.target.wants").mkdir(parents=True)
    (units / "ssh.socket").write_text("[Socket]\nListenStream=22\nListenDatagram=514\n")
    (units / "off.socket").write_text("[Socket]\nListenStream=1\n")
    (units / "sockets.target.wants/ssh.socket").symlink_to("../ssh.socket")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("web:x:33:34:comment:/srv:/bin/false\n")
    said = subprocess.run([sys.executable, "-I", "-c", erofs._LISTING, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = dict(line.split("\t", 1) for line in said.splitlines())
    assert {name: what for name, what in found.items() if name.startswith("//")} == {
        "//user/web": "33:34 /srv /bin/false",
        "//socket/ssh.socket": "22 514",
    }
    assert found["usr/lib/systemd/system/sockets.target.wants/ssh.socket"].endswith("-> ../ssh.socket")
