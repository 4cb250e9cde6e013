"""Applies a spec to a base tree: files, accounts, services, state, scripts; then refuses what must not be in an image.

Input: see `configured_step` in `obelisk.build.trees`, which writes it. Output: {"setuid": [paths], "os_release": text}.
The tree is an overlay: what is written here becomes the step's result, the base below stays as it is.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

NOLOGIN_DAYS = "1"
SECRET_BYTES = 1 << 16  # no key is larger
SIGNED = b"~Module signature appended~\n"
UNIT_PLACES = ("usr/lib/systemd/system", "etc/systemd/system")
# Of Python's library, what is left out of images that have no Python of their own.
UNUSED_PYTHON = (
    "_pydecimal.py",
    "_pyrepl",
    "asyncio",
    "ctypes/test",
    "curses",
    "dbm",
    "doctest.py",
    "ensurepip",
    "html",
    "idlelib",
    "lib2to3",
    "multiprocessing",
    "pdb.py",
    "pydoc.py",
    "pydoc_data",
    "sqlite3",
    "test",
    "tkinter",
    "turtle.py",
    "turtledemo",
    "unittest",
    "venv",
    "wsgiref",
    "xml",
    "xmlrpc",
    "_codecs_*",
    "_curses*",
    "_dbm*",
    "_decimal*",
    "_sqlite3*",
    "_test*",
    "readline*",
)
# The account that an application has, and places that are memory when it runs.
APP_ID = "1000"
VOLATILE = ("/run/", "/tmp/", "/var/tmp/", "/home/app/")  # noqa: S108 - paths inside the image
# Generators of systemd, and the file without which they have nothing to do. Those of fstab and cryptsetup also read the command line and
# credentials, which may bring something at any boot.
GENERATORS = {
    "hibernate-resume": "",  # an affair of initrds
    "integritysetup": "etc/integritytab",
    "rc-local": "etc/rc.local",
    "sysv": "etc/init.d",
    "system-update": "system-update",
    "veritysetup": "etc/veritytab",
}


def main() -> None:
    request = json.load(sys.stdin)
    tree = Path(request["tree"])
    if "application" in request:
        json.dump(application(tree, request), sys.stdout, sort_keys=True)
        return
    owned = package_files(tree)
    before = special_files(tree)
    for guest in request["guest"]:
        overlay(Path(guest), tree)
    identify(tree, request)
    add_accounts(tree / "etc", request)
    place_files(tree, request, owned)
    keep_tmp_in_memory(tree / "usr")
    default = tree / "etc/systemd/system/default.target"
    default.unlink(missing_ok=True)
    default.symlink_to(f"/usr/lib/systemd/system/{request['default_target']}")
    settle_services(tree, request["services"])
    for script in request["scripts"]:
        run_script(tree, script)
    settle_host(tree, request)
    spare_generators(tree)
    empty_devices(tree / "dev")
    seed_state(tree, request)
    refresh(tree, request)
    setuid, devices = special_files(tree)
    inspect(tree, request, {*setuid} - {*before[0]}, {*devices} - {*before[1]})
    json.dump({"setuid": setuid, "os_release": (tree / "usr/lib/os-release").read_text()}, sys.stdout, sort_keys=True)


def application(tree: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The root of an application: nothing boots or is set-id in it, and every place that is mounted over exists."""
    owned = package_files(tree)
    if "foreign" in request:
        make_familiar(tree)
    identify(tree, request)
    for name, entry in (("passwd", ["app", "x", APP_ID, APP_ID, "", "/home/app", "/bin/sh"]), ("group", ["app", "x", APP_ID, ""])):
        entries = table(tree / "etc" / name)
        if "foreign" in request:  # whoever has that name or id there, here it is the application
            entries = {key: fields for key, fields in entries.items() if key != "app" and fields[2:3] != [APP_ID]}
        if "app" in entries or any(fields[2] == APP_ID for fields in entries.values()):
            refuse("uid-taken", f"a package has the account 'app' or the id {APP_ID}, which are the application's")
        write(tree / "etc" / name, "".join(":".join(fields) + "\n" for fields in [*entries.values(), entry]).encode())
    place_files(tree, request, owned)
    for script in request["scripts"]:
        run_script(tree, script)
    empty_devices(tree / "dev")
    for name in ("home", "var/tmp", "tmp", "run", "proc", "dev", "srv", "opt"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    write(tree / "etc/resolv.conf", b"")  # a run with a network has its own there
    for place in (*request["application"]["scratch"], *request["application"]["data"]):
        if not place.startswith(VOLATILE):
            (tree / settle(tree, place).lstrip("/")).mkdir(parents=True, exist_ok=True)
    for path in special_files(tree)[0]:
        program = tree / path.lstrip("/")
        program.chmod(stat.S_IMODE(program.stat().st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
    if (tree / "etc/ld.so.conf").exists():  # other libraries of C have no such cache
        subprocess.run(["ldconfig", "-r", str(tree)], check=True)
    (tree / "var/cache/ldconfig/aux-cache").unlink(missing_ok=True)  # inode numbers and times, to make the cache anew sooner
    setuid, devices = special_files(tree)
    inspect(tree, {**request, "module_signatures": False}, {*setuid}, {*devices})
    return {"setuid": setuid, "os_release": (tree / "usr/lib/os-release").read_text()}


def make_familiar(tree: Path) -> None:
    """What is expected of a root, where one comes from elsewhere: a place for programs, who there is, and what it is called."""
    for name in ("usr", "etc", "var", "opt", "srv", "dev", "home/app"):
        place = tree / name
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            place.unlink()
        place.mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (tree / name).is_symlink() and not (tree / name).exists():
            (tree / name).symlink_to(f"usr/{name}")
    for name, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")):
        if not (tree / "etc" / name).is_file():
            write(tree / "etc" / name, text.encode())
    release, other = tree / "usr/lib/os-release", tree / "etc/os-release"
    if not release.is_file():
        write(release, other.read_bytes() if other.is_file() else b'ID="none"\n')


def overlay(source: Path, tree: Path) -> None:
    """Copy a directory of data files over the tree, as root's."""
    for path in sorted(source.rglob("*")):
        target = tree / path.relative_to(source)
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target, path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file of the tree; a link there is replaced, not followed."""
    if path.is_symlink() or path.exists():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def identify(tree: Path, request: dict[str, Any]) -> None:
    """os-release names the image; host name, locale and time zone are as the spec says."""
    release = tree / "usr/lib/os-release"
    lines = [line for line in release.read_text().splitlines() if not line.startswith(("IMAGE_ID=", "IMAGE_VERSION="))]
    lines += [f'IMAGE_ID="{request["name"]}"', f'IMAGE_VERSION="{request["version"]}"']
    write(release, ("\n".join(lines) + "\n").encode())
    if request["hostname"] is not None:
        write(tree / "etc/hostname", f"{request['hostname']}\n".encode())
    names = f" {request['hostname']}" if request["hostname"] else ""
    write(tree / "etc/hosts", f"127.0.0.1 localhost{names}\n::1 localhost ip6-localhost ip6-loopback\n".encode())
    write(tree / "etc/locale.conf", f"LANG={request['locale']}\n".encode())
    zone = tree / "usr/share/zoneinfo" / request["timezone"]
    local = tree / "etc/localtime"
    if zone.is_file():
        local.unlink(missing_ok=True)
        local.symlink_to(f"/usr/share/zoneinfo/{request['timezone']}")
    elif "foreign" not in request or request["timezone"] != "UTC":  # without any, it is UTC
        refuse("timezone-unknown", f"timezone {request['timezone']!r} is not in the image: correct `timezone` in the spec")
    (tree / "etc/fstab").unlink(missing_ok=True)  # mounts come from the image itself; see `start`
    if (tree / "usr/lib/systemd/system/systemd-resolved.service").exists():
        resolv = tree / "etc/resolv.conf"
        resolv.unlink(missing_ok=True)
        resolv.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    write(tree / "usr/share/obelisk/canary", request["canary"].encode() * (65536 // len(request["canary"])))


def add_accounts(etc: Path, request: dict[str, Any]) -> None:
    """Users and groups of the spec, with their fixed ids."""
    passwd = table(etc / "passwd")
    group = table(etc / "group")
    shadow = table(etc / "shadow")
    gshadow = table(etc / "gshadow")
    tmpfiles = []
    wanted = [(g["name"], g["gid"]) for g in request["groups"]]
    wanted += [(u["name"], u["uid"]) for u in request["users"] if u["gid"] is None]
    for name, gid in wanted:
        taken = next((n for n, fields in group.items() if int(fields[2]) == gid and n != name), None)
        if taken is not None or (name in group and int(group[name][2]) != gid):
            refuse("gid-taken", f"group {name!r} cannot have the id {gid}: {taken or name} of a package has {group[taken or name][2]}")
        group.setdefault(name, [name, "x", str(gid), ""])
        gshadow.setdefault(name, [name, "!", "", ""])
    for user in request["users"]:
        name, uid = user["name"], user["uid"]
        taken = next((n for n, fields in passwd.items() if int(fields[2]) == uid and n != name), None)
        if taken is not None or name in passwd:
            refuse("uid-taken", f"user {name!r} cannot have the id {uid}: {taken or name} of a package has {passwd[taken or name][2]}")
        gid = uid if user["gid"] is None else user["gid"]
        home = user["home"] or f"/home/{name}"
        shell = user["shell"]
        if not (etc.parent / shell.lstrip("/")).exists():
            refuse("shell-missing", f"the shell {shell!r} of user {name!r} is not in the image: add its package or correct `shell`")
        passwd[name] = [name, "x", str(uid), str(gid), user["comment"], home, shell]
        shadow[name] = [name, user["password"] or "!", NOLOGIN_DAYS, "0", "99999", "7", "", "", ""]
        for extra in user["groups"]:
            if extra not in group:
                refuse("group-unknown", f"user {name!r} is in group {extra!r}, which no package and no [groups] entry makes")
            for entry, column in ((group, 3), (gshadow, 3)):
                members = [*filter(None, entry[extra][column].split(",")), name] if extra in entry else [name]
                if extra in entry:
                    entry[extra][column] = ",".join(sorted(set(members)))
        if home.startswith("/home/") or home == "/root":
            tmpfiles.append(f'd "{home}" 0700 {uid} {gid}\n')
        if user["ssh_keys"]:
            write(etc / "ssh/authorized_keys.d" / name, ("\n".join(user["ssh_keys"]) + "\n").encode())
    for name, entries, mode in (("passwd", passwd, 0o644), ("group", group, 0o644), ("shadow", shadow, 0o640), ("gshadow", gshadow, 0o640)):
        owner = (etc / name).stat()
        write(etc / name, "".join(":".join(fields) + "\n" for fields in entries.values()).encode(), mode)
        os.chown(etc / name, owner.st_uid, owner.st_gid)
    if tmpfiles:
        write(etc.parent / "usr/lib/tmpfiles.d/obelisk-homes.conf", "".join(tmpfiles).encode())
    if (etc / "ssh/sshd_config").exists():
        settings = "AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/authorized_keys.d/%u\n"
        settings += "".join(f"HostKey /var/lib/obelisk/ssh/ssh_host_{kind}_key\n" for kind in ("ed25519", "ecdsa"))
        write(etc / "ssh/sshd_config.d/10-obelisk.conf", settings.encode())


def table(path: Path) -> dict[str, list[str]]:
    return {line.split(":")[0]: line.split(":") for line in path.read_text().splitlines() if line}


def place_files(tree: Path, request: dict[str, Any], owned: dict[str, str]) -> None:
    """The spec's tree and inline files, checked against what packages own."""
    allowed = set(request["allow"]["replace"])
    users = {name: int(fields[2]) for name, fields in table(tree / "etc/passwd").items()}
    groups = {name: int(fields[2]) for name, fields in table(tree / "etc/group").items()}
    for entry in request["files"]:
        path = entry["path"]
        target = tree / path.lstrip("/")
        settled = settle(tree, path)
        if settled != path:
            target = tree / settled.lstrip("/")
        if entry["kind"] == "directory":
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                refuse("collision", f"{path} is a directory in the spec and something else in the packages")
            target.mkdir(parents=True, exist_ok=True)
            if not entry["implicit"]:
                target.chmod(entry["mode"])
            continue
        if target.is_dir() and not target.is_symlink():
            refuse("collision", f"{path} is a file in the spec and a directory in the packages")
        owner = owned.get(settled) or owned.get(path)
        if owner and not path.startswith("/etc/") and path not in allowed:
            refuse("collision", f"{path} belongs to the package {owner}: list it in [allow] replace if you mean to replace it")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or target.exists():
            target.unlink()
        if entry["kind"] in {"character", "block"}:
            kind = stat.S_IFCHR if entry["kind"] == "character" else stat.S_IFBLK
            os.mknod(target, kind | entry["mode"], os.makedev(*entry["device"]))
            continue
        if entry["kind"] == "symlink":
            target.symlink_to(entry["target"])
            continue
        if entry["source"] is not None:
            shutil.copyfile(entry["source"], target)
        else:
            target.write_text(entry["content"])
        for what, names in (("owner", users), ("group", groups)):
            if not entry[what].isdigit() and entry[what] not in names:
                refuse("owner-unknown", f"{path} has the {what} {entry[what]!r}, which does not exist in the image")
        uid = int(entry["owner"]) if entry["owner"].isdigit() else users[entry["owner"]]
        gid = int(entry["group"]) if entry["group"].isdigit() else groups[entry["group"]]
        os.chown(target, uid, gid)
        target.chmod(entry["mode"])


def settle(tree: Path, path: str) -> str:
    """The path with links of its parent directories followed inside the tree (`/lib/x` is `/usr/lib/x`)."""
    done = ""
    for part in path.strip("/").split("/")[:-1]:
        step = tree / f"{done}/{part}".lstrip("/")
        hops = 0
        while step.is_symlink() and hops < 40:  # noqa: PLR2004 - the kernel's own limit
            link = str(step.readlink())
            done = os.path.normpath(link if link.startswith("/") else f"{done}/{link}")
            step = tree / done.lstrip("/")
            hops += 1
            part = ""  # noqa: PLW2901 - `done` names the target now
        if part:
            done = f"{done}/{part}"
    return f"{done}/{path.rsplit('/', 1)[1]}"


def package_files(tree: Path) -> dict[str, str]:
    """Which package owns each path, under its canonical name; of a directory, one of the packages that have it."""
    owned: dict[str, str] = {}
    for listing in (tree / "usr/lib/sysimage/dpkg/info").glob("*.list"):
        package = listing.name.removesuffix(".list").split(":")[0]
        for line in listing.read_text().splitlines():
            owned[f"/usr{line}" if line.startswith(("/bin/", "/sbin/", "/lib/", "/lib64/")) else line] = package
    return owned


def keep_tmp_in_memory(usr: Path) -> None:
    """The root cannot be written, so /tmp has to be a tmpfs; Debian 12 has the unit for it, as an example."""
    unit = usr / "lib/systemd/system/tmp.mount"
    if not unit.exists():
        shutil.copyfile(usr / "share/systemd/tmp.mount", unit)
        wanted = usr / "lib/systemd/system/local-fs.target.wants/tmp.mount"
        wanted.parent.mkdir(exist_ok=True)
        wanted.symlink_to("../tmp.mount")


def settle_services(tree: Path, services: dict[str, list[str]]) -> None:
    """Enable, disable and mask, by systemctl itself on the tree."""
    for verb in ("enable", "disable", "mask"):
        for unit in services[verb]:
            finished = subprocess.run(
                ["systemctl", f"--root={tree}", verb, "--", unit],
                capture_output=True,
                text=True,
                check=False,
            )
            if finished.returncode != 0:
                reason = finished.stderr.strip().splitlines()[-1:] or ["no reason given"]
                refuse("service", f"cannot {verb} {unit}: {reason[0]}")


def run_script(tree: Path, script: dict[str, str]) -> None:
    """Run one build script inside the tree: as its root, without network, without sight of anything else."""
    words = in_tree(tree, "/run/script", script=script["source"])
    finished = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if finished.returncode != 0:
        refuse("script-failed", f"the build script {script['name']} failed with status {finished.returncode}; scripts have no network")


def in_tree(tree: Path, *command: str, script: str = "/dev/null") -> list[str]:
    """The command line that runs a program of the tree with the tree as its root; it sees `script` as /run/script."""
    words = ["bwrap", "--die-with-parent", "--cap-add", "ALL", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--bind", str(tree), "/"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--ro-bind", script, "/run/script"]  # noqa: S108
    for name, value in {"PATH": "/usr/sbin:/usr/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}.items():
        words += ["--setenv", name, value]
    return [*words, *command]


def empty_devices(dev: Path) -> None:
    """Leave out the nodes that mmdebstrap makes as root and cannot make otherwise: the kernel mounts its own over them."""
    for path in dev.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def spare_generators(tree: Path) -> None:
    """Mask the generators of systemd that have nothing to do on this image, and never will: they would run at each boot."""
    scripts = tree / "etc/init.d"
    native = {path.name for place in UNIT_PLACES for path in (tree / place).glob("*.service")}
    unmatched = scripts.is_dir() and any(f"{path.name.removesuffix('.sh')}.service" not in native for path in scripts.iterdir())
    for name, reason in GENERATORS.items():
        generator = f"systemd-{name}-generator"
        wanted = unmatched if name == "sysv" else bool(reason) and (tree / reason).exists()
        if not wanted and (tree / "usr/lib/systemd/system-generators" / generator).exists():
            mask = tree / "etc/systemd/system-generators" / generator
            mask.parent.mkdir(parents=True, exist_ok=True)
            if not mask.exists():
                mask.symlink_to("/dev/null")


def settle_host(tree: Path, request: dict[str, Any]) -> None:
    """`obelisk host`, and of Python what it needs where nothing else in the image uses it."""
    write(tree / "usr/lib/obelisk/host.conf", request["host"].encode())
    write(tree / "usr/lib/obelisk/state.declared", "".join(f"{path}\n" for path in request["declared"]).encode())
    for name in request["migrations"]:
        write(tree / "usr/lib/obelisk/migrations" / name, Path("/migrations", name).read_bytes(), 0o755)
    if request["kept"]:
        keep_declared(tree, request)
    for name, source in request["modules"].items():
        write(tree / "usr/lib/obelisk/python" / name, Path(source).read_bytes())
    for name, text in request["release"].items():
        write(tree / "usr/lib/obelisk/release" / name, text.encode())
    if request["timer"]:
        units = tree / "usr/lib/systemd/system"
        write(units / "obelisk-follow.timer", request["timer"].encode())
        wanted = units / "timers.target.wants/obelisk-follow.timer"
        wanted.parent.mkdir(exist_ok=True)
        wanted.symlink_to("../obelisk-follow.timer")
    # The root cannot be written later, and without its compiled form each start would compile anew. What is checked by its hash
    # alone is the same in every build.
    words = ["python3", "-IS", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "/usr/lib/obelisk/python"]
    finished = subprocess.run(in_tree(tree, *words), capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        refuse("host-part", f"the image's Python cannot compile `obelisk host`: {' '.join(f'{finished.stdout} {finished.stderr}'.split())}")
    if not request["python"]:
        for library in (tree / "usr/lib").glob("python3.*"):
            for name in UNUSED_PYTHON:
                for path in (
                    *library.glob(name),
                    *library.glob(f"__pycache__/{name.removesuffix('.py')}.*"),
                    *library.glob(f"lib-dynload/{name}"),
                ):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()


def keep_declared(tree: Path, request: dict[str, Any]) -> None:
    """Only these directories outlive a boot; see `start`."""
    for path in request["kept"]:
        place = tree / path.lstrip("/")
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            refuse("declared-file", f"{path} is a file or link of a package, and only directories can be kept: declare the one it lies in")
    write(tree / "usr/lib/obelisk/state.kept", "".join(f"{path}\n" for path in request["kept"]).encode())
    table = tree / "usr/lib/obelisk/state.fstab"
    places = ("/var ", "/home ", "/root ")
    others = [line for line in table.read_text().splitlines() if not line.removeprefix("/run/obelisk/state").startswith(places)]
    write(table, (request["mounts"] + "\n".join(others) + "\n").encode())


def seed_state(tree: Path, request: dict[str, Any]) -> None:
    """/var is state: what packages ship there becomes a template from which each boot makes what is missing."""
    sys.path.insert(0, request["code"])
    from state import seed  # type: ignore[import-not-found]  # noqa: PLC0415 - beside this file, found by the path just added

    seed(tree)
    for name in ("home", "root", "var", "tmp", "run", "proc", "sys", "dev", "boot", "efi", "mnt", "media", "srv", "opt"):
        (tree / name).mkdir(exist_ok=True)
    for name, text in request["repart"].items():
        write(tree / "usr/lib/repart.d" / name, text.encode())
    write(tree / "usr/lib/obelisk/health.conf", request["health"].encode())


def refresh(tree: Path, request: dict[str, Any]) -> None:
    """Caches that systems otherwise make at their first boot, where the root cannot be written."""
    subprocess.run(["ldconfig", "-r", str(tree)], check=True)
    compile_hardware(tree, request)
    (tree / "etc/.updated").touch()


def compile_hardware(tree: Path, request: dict[str, Any]) -> None:
    """Compile what the spec adds to udev's hardware database, and leave out its ten megabytes of text, which nothing reads any more."""
    sources = tree / "usr/lib/udev/hwdb.d"
    if not (tree / "usr/lib/udev/hwdb.bin").exists() or not sources.is_dir():
        return
    own = tuple(entry["path"] for entry in request["files"] if "/udev/hwdb.d/" in entry["path"])
    if own or request["scripts"]:
        words = in_tree(tree, "systemd-hwdb", "update", "--usr")
        finished = subprocess.run(words, capture_output=True, text=True, check=False)
        said = finished.stderr.strip().splitlines()
        # It goes on after an error; what packages have wrong is nothing that the spec's author could mend.
        wrong = [line for line in said if line.startswith(own)] or (said[-1:] or ["no reason given"]) * (finished.returncode != 0)
        if wrong:
            refuse("hwdb", f"the hardware database cannot be made: {wrong[0]}")
    shutil.rmtree(sources)


def special_files(tree: Path) -> tuple[list[str], list[str]]:
    """Set-id programs and device nodes, sockets and pipes in the tree."""
    setuid: list[str] = []
    devices: list[str] = []
    pending = [str(tree)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                name = entry.path.removeprefix(str(tree))
                if stat.S_ISDIR(mode):
                    pending.append(entry.path)
                elif stat.S_ISREG(mode):
                    if mode & (stat.S_ISUID | stat.S_ISGID):
                        setuid.append(name)
                elif not stat.S_ISLNK(mode) and not name.startswith("/dev/"):
                    devices.append(name)
    return sorted(setuid), sorted(devices)


def inspect(tree: Path, request: dict[str, Any], setuid: set[str], devices: set[str]) -> None:
    """The last look: nothing set-id or special that the spec did not allow, and no secret."""
    for path in sorted(setuid - set(request["allow"]["setuid"])):
        refuse("setuid", f"{path} has a set-id bit that no package gave it: list it in [allow] setuid if you mean it")
    for path in sorted(devices - set(request["allow"]["devices"])):
        refuse("device", f"{path} is a device node, socket or pipe: list it in [allow] devices if you mean it")
    if request["module_signatures"]:
        for file in sorted((tree / "usr/lib/modules").rglob("*.ko")):
            if not is_signed(file):
                name = str(file).removeprefix(str(tree))
                refuse("module-unsigned", f"{name} is not signed, and the kernel will not load it: sign it, or say so under [hardening]")
    own = {tree / settle(tree, entry["path"]).lstrip("/") for entry in request["files"]}
    for file in sorted({*(tree / "etc").rglob("*"), *own}):
        if file.is_file() and not file.is_symlink() and file.stat().st_size < SECRET_BYTES and b"PRIVATE KEY-----" in file.read_bytes():
            name = str(file).removeprefix(str(tree))
            refuse(
                "secret", f"{name} holds a private key, and every copy of the image would share it: keep secrets in state or credentials"
            )


def is_signed(module: Path) -> bool:
    """Whether a kernel module ends in a signature, by whomever. Source: Linux, Documentation/admin-guide/module-signing.rst."""
    with module.open("rb") as file:
        file.seek(-min(len(SIGNED), module.stat().st_size), os.SEEK_END)
        return file.read() == SIGNED


def refuse(code: str, message: str) -> NoReturn:
    print(f"refused: {code}: {message}", file=sys.stderr)
    sys.exit(3)


if __name__ == "__main__":
    main()
