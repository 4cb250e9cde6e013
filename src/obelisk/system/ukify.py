"""ukify(1): a kernel, its initrds and its command line as one signed EFI program."""

from dataclasses import dataclass
from pathlib import Path

from obelisk.system import faketime


@dataclass(frozen=True, slots=True)
class Build:
    """One Unified Kernel Image to make. Paths are as the tools tree sees them; `epoch` is the time that its signature names."""

    kernel: Path
    initrds: tuple[Path, ...]
    cmdline: Path
    os_release: Path
    uname: str
    out: Path
    key: Path
    certificate: Path
    epoch: int

    def argv(self) -> list[str]:
        """The argument list."""
        words = [
            "ukify",
            "build",
            f"--linux={self.kernel}",
            *(f"--initrd={initrd}" for initrd in self.initrds),
            f"--cmdline=@{self.cmdline}",
            f"--os-release=@{self.os_release}",
            f"--uname={self.uname}",
            f"--output={self.out}",
            "--signtool=systemd-sbsign",
            f"--secureboot-private-key={self.key}",
            f"--secureboot-certificate={self.certificate}",
            # The kernel inside is covered by the signature around it.
            "--no-sign-kernel",
        ]
        return faketime.at(self.epoch, words)
