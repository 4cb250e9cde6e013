"""mmdebstrap(1): unpacks and configures Debian packages into a new root tree."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from obelisk.errors import CommandError
from obelisk.system import seccomp
from obelisk.system.command import MINIMAL_ENVIRONMENT, OnLine, run
from obelisk.system.namespace import as_root


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Packages to install: from `repository` (a directory with .deb files and their `Packages` index) into `tree`.

    Paths are as the program sees them. The tree is new, unless it is `extended`: then it has the essential packages already. `hook` is
    a script that runs when the essential packages are there, and the others not yet.
    """

    repository: Path
    packages: tuple[str, ...]
    hook: Path | None
    tree: Path
    epoch: int
    documentation: bool
    extended: bool = False

    def argv(self) -> list[str]:
        """The argument list; mode root, so the caller gives it root rights, real or namespaced."""
        words = [
            "mmdebstrap",
            "--mode=root",
            "--format=directory",
            f"--variant={'custom' if self.extended else 'essential'}",
            f"--include={','.join(self.packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            "--aptopt=APT::Get::Allow-Downgrades true",
            # The tree is published only when complete and synchronised as a whole: dpkg need not wait for the disk file by file.
            "--dpkgopt=force-unsafe-io",
            "--skip=check/empty,cleanup/reproducible",
            "--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount",
        ]
        if not self.documentation:
            # Written with a space, which dpkg reads as well: at "path-exclude=" mmdebstrap would take its slow filter for the essential
            # packages' first unpacking. What that leaves behind is removed with the other traces of the installation.
            words += [f"--dpkgopt=path-exclude /usr/share/{name}/*" for name in ("man", "doc", "info", "locale", "gtk-doc", "lintian")]
            words += ["--dpkgopt=path-include /usr/share/doc/*/copyright", "--dpkgopt=path-include /usr/share/locale/locale.alias"]
        if self.hook is not None:
            words.append(f"--{'extract' if self.extended else 'essential'}-hook={self.hook}")
        return [*words, "", str(self.tree), f"deb [trusted=yes] file://{self.repository} ./"]

    def environment(self) -> dict[str, str]:
        """What the program and the packages' scripts see."""
        return {
            **MINIMAL_ENVIRONMENT,
            "SOURCE_DATE_EPOCH": str(self.epoch),
            "DEBIAN_FRONTEND": "noninteractive",
            # Read by the kernel's package scripts: the image brings its own initrd.
            "INITRD": "No",
        }


def bootstrap_here(request: Bootstrap, *, on_line: OnLine | None = None) -> None:
    """Run this machine's own mmdebstrap: only the tools tree is made so."""
    # All this is for: what mmdebstrap starts dies with it, and it dies with us.
    alone = ["--die-with-parent", "--cap-add", "ALL", "--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc", "--"]
    with seccomp.as_file(seccomp.without_synchronising()) as quick:
        words = [*as_root(), "bwrap", "--seccomp", str(quick), *alone, *request.argv()]
        run(words, env=request.environment(), on_line=on_line, timeout_s=3600, show="mmdebstrap", inherited=[quick])


def default_archive(suite: str) -> str:
    """The address that mmdebstrap takes for Debian when it is given none.

    Raises:
        CommandError: mmdebstrap did not say.
    """
    with tempfile.TemporaryDirectory(prefix="obelisk-mirror-") as scratch:
        hook = 'cat "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/* 2>/dev/null; exit 1'
        argv = [*as_root(), "mmdebstrap", "--mode=root", "--variant=custom", f"--setup-hook={hook}", suite, f"{scratch}/tree"]
        try:
            run(argv, timeout_s=60)
        except CommandError as error:
            found = re.search(r"^(?:deb (?:\[.*?\] )?|URIs: )(\S+)", error.output, re.MULTILINE)
            if found:
                return found[1].rstrip("/")
            raise
    raise CommandError(tuple(argv), 0, "mmdebstrap named no archive")
