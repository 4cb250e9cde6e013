"""From a table of the right form to a `Spec`: what the form cannot say.

Files that the spec refers to exist and lie below its directory, ids and places do not clash, nothing breaks the seal. Every rule reports
and goes on. What only the packages can answer (whether a unit, a group or a package exists) is the build's to check.
"""

import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from obelisk.errors import InputError
from obelisk.model.partitions import LABEL_CHARACTERS
from obelisk.model.reference import Reference, is_host
from obelisk.model.spec import (
    Allowed,
    AptSource,
    Boot,
    Check,
    CommandCheck,
    Compression,
    Distribution,
    Hardening,
    HealthCheck,
    Host,
    HttpCheck,
    InlineFile,
    Lockdown,
    Migration,
    Policy,
    Role,
    Script,
    Services,
    Spec,
    State,
    Subscription,
    TcpCheck,
    TestCase,
    UnitCheck,
    Upgrade,
)
from obelisk.model.state import FIRST, Encryption
from obelisk.spec.accounts import accounts
from obelisk.spec.applications import application
from obelisk.spec.cmdline import refused
from obelisk.spec.places import image_path, refusal, undeclarable
from obelisk.spec.positions import KeyPath
from obelisk.spec.problems import Findings, nearest
from obelisk.spec.reader import Table, seconds, size
from obelisk.spec.tree import collisions, scan_tree

_HIGHEST_PORT = 65535
_LARGEST_ROOT_BYTES = 512_000  # more is not read by clients
_SPECIAL_BITS = 0o6000
_NO_RECOVERY_BY_TPM = ("bookworm",)  # their systemd, older than 256, cannot enrol a recovery key by the TPM that opens a volume


def spec_of(root: Table, file: Path, findings: Findings) -> Spec:
    """The spec that `root` means. It may be used only when nothing was reported."""
    beside = _Beside(file.parent, findings)
    users, groups = accounts(root, findings)
    allow = _allowed(root.table("allow"))
    tree = _tree(root, beside, ("app", "root") if root.table("app").find("root", str) else ("tree",))
    files = _files(root, beside, allow)
    entries = scan_tree(tree, allow, path=("tree",), findings=findings) if tree else ()
    for key, reason in collisions(dict(files), entries):
        findings.report(key, reason, code="spec-conflict", hint="keep one of them")
    distribution, _, suite = root.get("distribution", str).partition(":")
    boot = root.table("boot")
    spec = Spec(
        file=file,
        name=_name(root, findings),
        version=root.get("version", str),
        distribution=Distribution(distribution, suite),
        role=Role(root.get("role", str)),
        packages=root.texts("packages"),
        recommends=root.get("recommends", bool),
        tree=tree,
        files=tuple(_file(name, table, beside) for name, table in root.tables("files")),
        users=users,
        groups=groups,
        services=_services(root.table("services"), findings),
        boot=Boot(boot.find("kernel", str), _cmdline(boot, findings)),
        hostname=root.find("hostname", str),
        locale=root.get("locale", str),
        timezone=_timezone(root, findings),
        sources=tuple(_source(name, table, beside) for name, table in root.tables("sources")),
        mirror=root.find("mirror", str),
        snapshot=root.find("snapshot", str),
        scripts=_scripts(root, beside),
        health=tuple(_health(name, table, findings) for name, table in root.tables("health")),
        tests=tuple(_test(name, table) for name, table in root.tables("tests")),
        size_budget_bytes=size(budget) if (budget := root.find("size_budget", str)) else None,
        compression=Compression(root.get("compression", str)),
        upgrade=_upgrade(root.table("upgrade")),
        host=Host(root.table("host").get("applications", bool)),
        release=_release(root.table("release"), beside),
        state=_state(root.table("state"), suite, beside),
        hardening=_hardening(root.table("hardening"), findings),
        allow=allow,
        documentation=root.get("documentation", bool),
        image=_image(root.table("app"), beside),
        bare=root.table("app").find("root", str) is not None,
    )
    return replace(spec, application=application(root, spec, findings))


@dataclass(frozen=True, slots=True)
class _Beside:
    """The spec's directory: finds what keys refer to."""

    directory: Path
    findings: Findings

    def find(self, path: KeyPath, name: str, what: str, is_right: Callable[[Path], bool]) -> Path | None:
        """The path of `name`, or None after reporting why it cannot be used."""
        found = self.directory / name
        try:
            if is_right(found):
                if found.resolve().is_relative_to(self.directory.resolve()):
                    return found
                message, hint = (f"'{name}' is a link that leads out of the spec's directory", "copy what it points to")
            elif found.exists():
                message, hint = f"'{name}' is no {what}", ""
            else:
                near = self.directory / Path(name).parent
                names = [str(Path(name).parent / other.name) for other in near.iterdir()] if near.is_dir() else []
                message, hint = (f"there is no {what} '{name}' beside the spec", nearest(name, names) or f"make it at {found}")
        except OSError as error:
            message, hint = f"'{name}' cannot be looked at: {error.strerror}", ""
        self.findings.report(path, message, code="spec-file", hint=hint)
        return None

    def read(self, path: KeyPath, name: str) -> tuple[Path, bytes] | None:
        """A file and how it begins (one kilobyte)."""
        found = self.find(path, name, "file", Path.is_file)
        if found is None:
            return None
        try:
            with found.open("rb") as file:
                return found, file.read(1024)
        except OSError as error:
            self.findings.report(path, f"'{name}' cannot be read: {error.strerror}", code="spec-file", hint="check its permissions")
            return None


def _name(root: Table, findings: Findings) -> str:
    name, version = root.get("name", str), root.get("version", str)
    if (over := len(f"{name}_{version}_verity") - LABEL_CHARACTERS) > 0:
        message = f"'{name}_{version}_verity' is {over} too long for a partition's label ({LABEL_CHARACTERS} characters)"
        findings.report(("version",), message, code="spec-value", hint="shorten name or version")
    return name


def _cmdline(boot: Table, findings: Findings) -> tuple[str, ...]:
    words = boot.texts("cmdline")
    for number, word in enumerate(words):
        if reason := refused(word):
            findings.report(boot.at("cmdline", number), f"'{word}' is refused: {reason}", code="spec-forbidden", hint="leave it out")
    return words


def _timezone(root: Table, findings: Findings) -> str:
    zone = root.get("timezone", str)
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        # A machine without the tz database cannot tell; the build looks into the image's own.
        if known := zoneinfo.available_timezones():
            findings.report(("timezone",), f"there is no time zone '{zone}'", code="spec-value", hint=nearest(zone, known))
    return zone


def _services(table: Table, findings: Findings) -> Services:
    services = Services(table.texts("enable"), table.texts("disable"), table.texts("mask"))
    for number, unit in enumerate(services.enable):
        for other, units in (("disable", services.disable), ("mask", services.mask)):
            if unit in units:
                message = f"'{unit}' is also listed in services.{other}"
                findings.report(table.at("enable", number), message, code="spec-conflict", hint="keep one of them")
    return services


def _allowed(table: Table) -> Allowed:
    lists = {key: tuple(image_path(path) for path in table.texts(key)) for key in ("setuid", "devices", "replace")}
    return Allowed(**lists)


def _image(app: Table, beside: _Beside) -> Path | Reference | None:
    """What the root of an application comes from: something beside the spec where there is such, else a place in a registry."""
    name = app.find("image", str)
    if name is None:
        return None
    host, slash, _ = name.partition("/")
    if (beside.directory / name).exists() or not slash or host.startswith(".") or not is_host(host):
        return beside.find(app.at("image"), name, "OCI image", lambda path: path.is_file() or (path / "oci-layout").is_file())
    try:
        return Reference.parse(name)
    except InputError as error:
        beside.findings.report(app.at("image"), error.message, code="spec-value", hint=error.hint)
        return None


def _tree(root: Table, beside: _Beside, key: KeyPath) -> Path | None:
    name = root.find("tree", str) if len(key) == 1 else root.table("app").find("root", str)
    found = None if name is None else beside.find(key, name, "directory", Path.is_dir)
    if found is not None and found.resolve() == beside.directory.resolve():
        message = "the spec's own directory would put the spec and its lock into the image"
        beside.findings.report(
            key, message, code="spec-file", hint="move what belongs into the image to a directory of its own, such as tree"
        )
        return None
    return found


def _files(root: Table, beside: _Beside, allow: Allowed) -> dict[str, KeyPath]:
    """The key of each place that `files` names, after reporting places that are closed or named twice."""
    keys: dict[str, KeyPath] = {}
    for name, table in root.tables("files"):
        path = image_path(name)
        if closed := refusal(path):
            beside.findings.report(table.path, f"'{path}' {closed.reason}", code="spec-forbidden", hint=closed.hint)
        if path in keys:
            message = f"'{name}' and '{keys[path][-1]}' are one place: /bin, /sbin and /lib are links into /usr"
            beside.findings.report(table.path, message, code="spec-conflict", hint="keep one of them")
        if int(table.get("mode", str), 8) & _SPECIAL_BITS and path not in allow.setuid:
            message = "setuid and setgid files are refused unless they are listed"
            beside.findings.report(table.at("mode"), message, code="spec-forbidden", hint=f'add "{path}" to allow.setuid')
        keys.setdefault(path, table.path)
    return keys


def _file(name: str, table: Table, beside: _Beside) -> InlineFile:
    source = table.find("source", str)
    read = None if source is None else beside.read(table.at("source"), source)
    return InlineFile(
        path=image_path(name),
        content=table.find("content", str),
        source=None if read is None else read[0],
        mode=int(table.get("mode", str), 8),
        owner=table.get("owner", str),
        group=table.get("group", str),
    )


def _source(name: str, table: Table, beside: _Beside) -> AptSource:
    suites, components = table.texts("suites"), table.texts("components")
    flat = [suite.endswith("/") for suite in suites]
    if any(flat) and (components or not all(flat)):
        message = "a suite ending in a slash is a path of its own, without components or other suites"
        beside.findings.report(table.at("suites"), message, code="spec-conflict", hint="make two sources of it")
    elif not any(flat) and not components:
        message = "`components` is missing"
        beside.findings.report(table.path, message, code="spec-missing", hint='for example: components = ["main"]')
    read = beside.read(table.at("key"), table.get("key", str))
    if read is not None and (reason := _openpgp_fault(read[1])):
        beside.findings.report(
            table.at("key"), f"'{table.get('key', str)}' {reason}", code="spec-file", hint="export the archive's public key"
        )
    return AptSource(name, table.get("uri", str), suites, components, read[0] if read else beside.directory)


def _openpgp_fault(data: bytes) -> str:
    """What is wrong with a key file, or nothing. Source: RFC 9580 sections 4.2 (packet headers) and 6.2 (armour)."""
    if b"PRIVATE KEY BLOCK" in data:
        return "is a private key, which must stay secret"
    armoured = b"-----BEGIN PGP PUBLIC KEY BLOCK-----" in data
    first = data[0] if data else 0
    packet = first & 0x3F if first & 0x40 else (first >> 2) & 0x0F
    public_key = 6
    return "" if armoured or (first & 0x80 and packet == public_key) else "is no OpenPGP public key"


def _scripts(root: Table, beside: _Beside) -> tuple[Script, ...]:
    scripts: list[Script] = []
    for _number, table in root.tables("scripts"):
        name, path = table.get("run", str), table.at("run")
        if name in {script.name for script in scripts}:
            beside.findings.report(path, f"'{name}' is listed twice", code="spec-conflict", hint="remove one of them")
        elif (source := _program(path, name, beside)) is not None:
            scripts.append(Script(name, source))
    return tuple(scripts)


def _program(path: KeyPath, name: str, beside: _Beside) -> Path | None:
    """A file that can be run, or None after reporting why it is none."""
    if (read := beside.read(path, name)) is None:
        return None
    source, begin = read
    if not source.stat().st_mode & 0o100:
        beside.findings.report(path, f"'{name}' is not executable", code="spec-file", hint=f"chmod +x {source}")
    elif not begin.startswith((b"#!", b"\x7fELF")):
        beside.findings.report(path, f"'{name}' does not say what runs it", code="spec-file", hint="begin it with a line such as #!/bin/sh")
    elif begin.startswith(b"#!") and begin.split(b"\n", 1)[0].endswith(b"\r"):
        message = f"'{name}' has DOS line ends, so its first line names no program"
        beside.findings.report(path, message, code="spec-file", hint=f"sed -i 's/\\r$//' {source}")
    else:
        return source
    return None


def _health(name: str, table: Table, findings: Findings) -> HealthCheck:
    check: Check
    if unit := table.find("unit", str):
        check = UnitCheck(unit)
    elif url := table.find("http", str):
        _port(url, table.at("http"), findings)
        check = HttpCheck(url, table.get("status", int), table.get("contains", str))
    elif address := table.find("tcp", str):
        host, _, port = address.rpartition(":")
        _port(f"//{address}", table.at("tcp"), findings)
        check = TcpCheck(host.strip("[]"), int(port))
    else:
        check = CommandCheck(table.get("command", str))
    return HealthCheck(name, check, seconds(table.get("timeout", str)))


def _port(url: str, path: KeyPath, findings: Findings) -> None:
    """Report an address whose host is malformed or whose port cannot be."""
    try:
        wrong = urlsplit(url).port == 0
    except ValueError:
        wrong = True
    if wrong:
        findings.report(path, f"the port must be from 1 to {_HIGHEST_PORT}, the host a name or address", code="spec-value")


def _test(name: str, table: Table) -> TestCase:
    return TestCase(name, table.get("command", str), table.get("expect", str), seconds(table.get("timeout", str)))


def _upgrade(table: Table) -> Upgrade:
    return Upgrade(
        seconds(table.get("soak", str)),
        seconds(table.get("deadline", str)),
        table.get("tries", int),
        table.get("slots", int),
        table.get("rehearse", bool),
    )


def _release(table: Table, beside: _Beside) -> Subscription | None:
    """What hosts follow; None also where the form is wrong, which was reported."""
    name = table.find("root", str)
    if name is None or "repositories" not in table.values:
        return None
    addresses = [(table.at("repositories", number), address) for number, address in enumerate(table.texts("repositories"))]
    if proxy := table.find("proxy", str):
        addresses.append((table.at("proxy"), proxy))
    for path, address in addresses:
        _port(address, path, beside.findings)
    read = beside.read(table.at("root"), name)
    if read is not None and (reason := _root_fault(read[0])):
        hint = "copy metadata/1.root.json of the repository: `obelisk repo init` makes it"
        beside.findings.report(table.at("root"), f"'{name}' {reason}", code="spec-file", hint=hint)
    bandwidth = table.find("bandwidth", str)
    return Subscription(
        table.get("channel", str),
        table.texts("repositories"),
        read[0] if read else beside.directory,
        size(bandwidth) if bandwidth else None,
        proxy or "",
        seconds(follow) if (follow := table.find("follow", str)) else 0,
    )


def _root_fault(file: Path) -> str:
    """What is wrong with root metadata, or nothing."""
    # Slow to import, and few specs have it.
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
    from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

    if file.stat().st_size > _LARGEST_ROOT_BYTES:
        return "is too large to be root metadata"
    try:
        root = Metadata[Root].from_bytes(file.read_bytes())
        if root.signed.type != Root.type:
            return f"is TUF metadata, but that of {root.signed.type}"
        root.verify_delegate(Root.type, root)
    except (RepositoryError, ValueError, OSError) as error:
        return f"is no root metadata of TUF: {error}"
    return ""


def _state(table: Table, suite: str, beside: _Beside) -> State:
    paths = table.texts("declare")
    for number, path in enumerate(paths):
        if closed := undeclarable(path):
            beside.findings.report(table.at("declare", number), f"'{path}' {closed.reason}", code="spec-value", hint=closed.hint)
    version = table.get("version", int)
    policy = Policy(table.get("policy", str))
    encryption = Encryption(table.get("encryption", str))
    if encryption is Encryption.TPM2 and suite in _NO_RECOVERY_BY_TPM:
        message = f"'{encryption}' needs systemd 256 or newer, which '{suite}' does not have"
        beside.findings.report(
            table.at("encryption"), message, code="spec-conflict", hint='distribution = "debian:trixie", or no encryption'
        )
    return State(table.get("snapshots", int), policy, paths, version, _migrations(table, version, beside), encryption)


def _migrations(state: Table, version: int, beside: _Beside) -> tuple[Migration, ...]:
    migrations: list[Migration] = []
    for _number, table in state.tables("migrations"):
        to = table.get("to", int)
        if migrations and to != migrations[-1].to + 1:
            message = f"must be {migrations[-1].to + 1}, one more than that of the migration before it, not {to}"
            beside.findings.report(table.at("to"), message, code="spec-value", hint="each migration is one step")
        up = _program(table.at("up"), table.get("up", str), beside)
        down = _program(table.at("down"), name, beside) if (name := table.find("down", str)) else None
        migrations.append(Migration(to, up or beside.directory, down))
    if (last := migrations[-1].to if migrations else FIRST) != version:
        key = "migrations" if last > version else "version"
        message = f"the last migration leads to version {last}" if migrations else f"no migration leads to version {version}"
        beside.findings.report(state.at(key), message, code="spec-conflict", hint="the last of state.migrations leads to state.version")
    return tuple(migrations)


def _hardening(table: Table, findings: Findings) -> Hardening:
    lockdown, signatures = Lockdown(table.get("lockdown", str)), table.get("module_signatures", bool)
    if lockdown is not Lockdown.NONE and not signatures:
        message = f"lockdown '{lockdown}' takes no unsigned modules either"
        findings.report(table.at("module_signatures"), message, code="spec-conflict", hint='also say lockdown = "none"')
    return Hardening(lockdown, signatures, tuple(sorted(table.texts("state_mounts"))))
