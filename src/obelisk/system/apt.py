"""apt(8): resolves packages against archives and downloads them, apart from this machine's own package state.

`Resolver` is a private apt: own lists, own empty dpkg status, own sources; of the machine's configuration it takes only how to reach
the network (`Acquire::*`). Nothing is ever installed here.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from obelisk.errors import CommandError, InputError, TransportError, TrustError
from obelisk.model.lock import Package
from obelisk.system.command import MINIMAL_ENVIRONMENT, NO_SPACE, OnLine, find_program, run

_URI = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+)")
# apt says the first of an archive without a valid signature, the others why.
_UNSIGNED = re.compile(r"is not signed|GPG error|OpenPGP signature verification failed|invalid signature")

# What talks to the network may take long, and ends when we do, even when we are killed.
_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True, slots=True)
class Archive:
    """An apt archive. `origin` names it in locks; `keys` are key files; none means that its content is trusted already."""

    origin: str
    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keys: tuple[Path, ...]

    def stanza(self) -> str:
        """The archive as a deb822 source."""
        trust = f"Signed-By: {','.join(str(key) for key in self.keys)}" if self.keys else "Trusted: yes"
        components = f"Components: {' '.join(self.components)}\n" if self.components else ""
        return f"Types: deb\nURIs: {self.uri}\nSuites: {' '.join(self.suites)}\n{components}{trust}\n"


class Resolver:
    """A private apt in `directory`, over `archives`."""

    def __init__(self, directory: Path, archives: Sequence[Archive], *, architecture: str = "amd64") -> None:
        self.directory = directory
        self.archives = tuple(archives)
        for name in ("lists/partial", "cache/archives/partial", "parts"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "sources.sources").write_text("\n".join(archive.stanza() for archive in archives))
        (directory / "preferences").write_text("")
        (directory / "apt.conf").write_text(_configuration(directory, architecture))
        self._env = {**MINIMAL_ENVIRONMENT, **_network_environment(), "APT_CONFIG": str(directory / "apt.conf"), "TMPDIR": str(directory)}

    def update(self, *, on_line: OnLine | None = None) -> int:
        """Fetch the archives' indexes; returns the newest release date among them in seconds since 1970.

        Raises:
            TrustError: an archive is not signed by its key.
            TransportError: an archive cannot be reached.
            CommandError: there is no room for them.
        """
        try:
            run([*_WITH_US, "apt-get", "update", "--error-on=any"], show="apt-get", env=self._env, on_line=on_line, timeout_s=600)
        except CommandError as error:
            if NO_SPACE in error.output:
                raise
            reason = "\n".join(line for line in error.output.splitlines() if line.startswith(("E:", "W:", "Err:")))
            if _UNSIGNED.search(error.output):
                raise TrustError(
                    f"the signature of a package archive does not hold:\n{reason}",
                    code="archive-signature",
                    hint="check `key` of the source in the spec: if the archive has a new key, get it from a place that you trust",
                ) from error
            raise TransportError(
                f"the package archives cannot be read:\n{reason or error.message}",
                code="archive-unreachable",
                hint="check the network, `mirror` and `[sources]` in the spec, and this machine's apt configuration",
            ) from error
        return max((_release_date(file) for file in (self.directory / "lists").glob("*Release")), default=0)

    def pin(self, versions: Mapping[str, str], *, alone: bool = False) -> None:
        """Hold packages at exactly these versions (name -> version) in later calls; `alone`, there are no others."""
        pins = [f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n" for name, version in versions.items()]
        if alone:
            pins.append("Package: *\nPin: release *\nPin-Priority: -1\n")
        (self.directory / "preferences").write_text("\n".join(pins))

    def resolve(self, packages: Sequence[str], *, recommends: bool) -> tuple[Package, ...]:
        """The complete set of packages that installs `packages` and everything essential, sorted by name.

        Raises:
            InputError: a package does not exist, or the set has no solution.
        """
        return tuple(sorted(self._describe(self._install(packages, recommends=recommends)), key=lambda package: package.name))

    def closure(self, packages: Sequence[str], among: Sequence[Package]) -> tuple[Package, ...]:
        """Those of `among`, a resolved set, without which `packages` and everything essential cannot be installed."""
        self.pin({package.name: package.version for package in among}, alone=True)
        names = {file.split("_", 1)[0] for _, file in self._install(packages, recommends=False)}
        return tuple(package for package in among if package.name in names)

    def _install(self, packages: Sequence[str], *, recommends: bool) -> list[tuple[str, str]]:
        """Address and file name of each package that an installation takes."""
        option = "true" if recommends else "false"
        install = ["apt-get", "install", "--yes", "--print-uris", "-o", f"APT::Install-Recommends={option}", "?essential", *packages]
        try:
            answer = run(install, env=self._env, timeout_s=300).stdout
        except CommandError as error:
            raise _unresolved(error, packages, self._names) from error
        return [(match["uri"], match["file"]) for match in map(_URI.match, answer.splitlines()) if match]

    def _describe(self, wanted: Sequence[tuple[str, str]]) -> Iterable[Package]:
        versions = [tuple(file.removesuffix(".deb").rsplit("_", 2)) for _, file in wanted]
        queries = [f"{name}={unquote(version)}" for name, version, _ in versions]
        shown = run(["apt-cache", "show", *queries], env=self._env).stdout
        stanzas: dict[tuple[str, str], dict[str, str]] = {}
        for text in shown.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
            if fields:
                stanzas.setdefault((fields["Package"], fields["Version"]), fields)
        suites = self._suites(queries)
        for (uri, _), query in zip(wanted, queries, strict=True):
            name, version = query.split("=", 1)
            fields = stanzas[name, version]
            path = fields["Filename"].removeprefix("./")
            base = unquote(uri).removesuffix(fields["Filename"]).rstrip("/")
            archive = next(a for a in self.archives if _same_base(a.uri, base))
            suite = next((s for s in suites.get((name, version), ()) if s in archive.suites), archive.suites[0])
            yield Package(name, version, fields["Architecture"], fields["SHA256"], int(fields["Size"]), f"{archive.origin}/{suite}", path)

    def _suites(self, queries: Sequence[str]) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        names = [query.split("=", 1)[0] for query in queries]
        for line in run(["apt-cache", "madison", *names], env=self._env).stdout.splitlines():
            name, version, where = (part.strip() for part in line.split("|", 2))
            words = where.split()
            if len(words) > 1:
                found.setdefault((name, version), []).append(words[1].rsplit("/", 1)[0])
        return found

    def _names(self) -> list[str]:
        return run(["apt-cache", "pkgnames"], env=self._env).stdout.split()


class DownloadError(TransportError):
    """Some files could not be had; `reasons` has an address and apt's reason for each."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__("download failed:\n" + "\n".join(reasons), code="download-failed", hint="check the network and try again")
        self.reasons = reasons

    @property
    def vanished(self) -> bool:
        """Whether every archive answered, and none has the file any more."""
        return all(re.search(r"  404 |File not found|No such file", reason) for reason in self.reasons)


def download(files: Mapping[str, Path], *, on_line: OnLine | None = None) -> None:
    """Download every address to its path, several at once, resuming nothing and checking nothing: the caller hashes.

    Raises:
        DownloadError: at least one could not be had; those that could are in place, and of others perhaps the beginning.
        CommandError: there is no room for them.
    """
    helper = "/usr/lib/apt/apt-helper"
    words: list[str] = []
    for uri, target in files.items():
        words += [uri, str(target), ""]
    if not files:
        return
    # Beside the files: the one place that has to have room.
    with tempfile.TemporaryDirectory(prefix="apt-", dir=next(iter(files.values())).parent) as scratch:
        directory = Path(scratch)
        configuration = directory / "apt.conf"
        (directory / "lists/partial").mkdir(parents=True)
        (directory / "parts").mkdir()
        (directory / "status").touch()
        configuration.write_text(_configuration(directory, "amd64"))
        env = {**MINIMAL_ENVIRONMENT, **_network_environment(), "APT_CONFIG": str(configuration), "TMPDIR": scratch}
        try:
            run([*_WITH_US, helper, "download-file", *words], show="apt-helper", env=env, on_line=on_line, timeout_s=7200)
        except CommandError as error:
            if NO_SPACE in error.output:
                raise  # no fault of an archive; who owns the place explains it
            reasons = [
                line.removeprefix("E: Failed to fetch ") for line in error.output.splitlines() if line.startswith("E: Failed to fetch")
            ]
            raise DownloadError(tuple(reasons) or (error.message,)) from error
    # For file: addresses apt leaves a link to the original, which is not ours to keep.
    for target in files.values():
        if target.is_symlink():
            original = target.resolve()
            target.unlink()
            shutil.copyfile(original, target)


def machine_archives() -> dict[str, str]:
    """What this machine's own apt uses for Debian's archives: origin (`debian`, `debian-security`) -> base address."""
    if find_program("apt-get") is None:
        return {}
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)", "Created-By: Packages"]).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        uri, _, _suite = line.partition("|")
        name = uri.rstrip("/").rsplit("/", 1)[-1]
        if name in {"debian", "debian-security"}:
            found.setdefault(name, uri.rstrip("/"))
    return found


# apt counts itself as essential, which on a sealed image it is not: ForceEssential.
# apt 2.6 can wait for ever when a file is to be tried again after a delay while others from the same place wait: no delay.
def _configuration(directory: Path, architecture: str) -> str:
    own = f"""
Dir "{directory}";
Dir::State "{directory}";
Dir::State::lists "{directory}/lists";
Dir::State::status "{directory}/status";
Dir::State::extended_states "{directory}/extended_states";
Dir::Cache "{directory}/cache";
Dir::Etc::sourcelist "{directory}/sources.sources";
Dir::Etc::sourceparts "{directory}/parts";
Dir::Etc::main "{directory}/none.conf";
Dir::Etc::parts "{directory}/parts";
Dir::Etc::preferences "{directory}/preferences";
Dir::Etc::preferencesparts "{directory}/parts";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "{directory}/parts";
Dir::Bin::methods "/usr/lib/apt/methods";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
pkgCacheGen::ForceEssential ",";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::Retries::Delay "false";
Debug::NoLocking "true";
"""
    return own + "\n".join(_machine_network_settings()) + "\n"


def _machine_network_settings() -> list[str]:
    if find_program("apt-config") is None:
        return []
    kept = re.compile(r"^Acquire::(http|https|ftp|tor|socks|ForceIPv[46]|Proxy|proxy)", re.IGNORECASE)
    return [line for line in run(["apt-config", "dump"]).stdout.splitlines() if kept.match(line)]


def _network_environment() -> dict[str, str]:
    import os  # noqa: PLC0415 - the one place that reads the caller's environment, kept beside its use

    names = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}


def _release_date(file: Path) -> int:
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - slow to import, used once a lock

    for line in file.read_text(errors="replace").splitlines():
        if line.startswith("Date: "):
            return int(parsedate_to_datetime(line.removeprefix("Date: ").replace("UTC", "+0000")).timestamp())
    return 0


def _same_base(uri: str, base: str) -> bool:
    return uri.rstrip("/") == base or uri.removeprefix("file://").rstrip("/") == base.removeprefix("file:").rstrip("/")


def _unresolved(error: CommandError, packages: Sequence[str], names: "Iterable[str] | object") -> InputError:
    import difflib  # noqa: PLC0415 - only on the way to an error

    missing = re.findall(r"Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation candidate", error.output)
    unknown = sorted({first or second for first, second in missing})
    if unknown and callable(names):
        known = names()
        lines = []
        for name in unknown:
            near = difflib.get_close_matches(name, known, n=3)
            lines.append(f"package {name!r} does not exist in this distribution" + (f"; did you mean {', '.join(near)}?" if near else ""))
        return InputError("\n".join(lines), code="package-unknown", hint="correct `packages` in the spec")
    reason = "\n".join(line for line in error.output.splitlines() if "epends" in line or line.startswith("E:"))
    return InputError(
        f"the packages {' '.join(packages)} cannot be installed together:\n{reason}",
        code="packages-unsolvable",
        hint="remove one of the conflicting packages, or run `obelisk lock --update` when a locked version is in the way",
    )
