"""The part of Obelisk that goes into every image: `obelisk host`, as the very files that this installation runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from obelisk.model.spec import Policy, Spec, State
from obelisk.model.state import Encryption

PACKAGE = Path(__file__).parents[1]
_MODULES = (
    "__init__.py",
    "errors.py",
    "events.py",
    "cli/__init__.py",
    "cli/hosting.py",
    "cli/main.py",
    "cli/terminal.py",
    "host/*.py",
    "model/*.py",
    "release/__init__.py",
    "release/client/*.py",
    "system/__init__.py",
    "system/blocks.py",
    "system/btrfs.py",
    "system/command.py",
    "system/console.py",
    "system/cryptenroll.py",
    "system/efivars.py",
    "system/files.py",
    "system/filesystem.py",
    "system/forked.py",
    "system/loops.py",
    "system/mounts.py",
    "system/overwriting.py",
    "system/power.py",
    "system/qemu.py",
    "system/sbverify.py",
    "system/sfdisk.py",
    "system/vfat.py",
    "system/zstd.py",
)
_OWN = ("/var/lib/obelisk", "/var/lib/systemd", "/var/log/journal")
"""What every host keeps: identity; the random seed and the stamps of timers; the journal."""
_MEMORY = {"/var": "mode=0755,size=25%", "/home": "mode=0755,size=10%", "/root": "mode=0700,size=5%"}
_ESCAPES = {ord(character): f"\\{ord(character):03o}" for character in " #\\"}


def modules() -> Iterator[Path]:
    """The files of the part, relative to `PACKAGE`, sorted."""
    for pattern in _MODULES:
        yield from (path.relative_to(PACKAGE) for path in sorted(PACKAGE.glob(pattern)))


def settings(spec: Spec) -> str:
    """What /usr/lib/obelisk/host.conf says; see `obelisk.host.settings`."""
    upgrade, state = spec.upgrade, spec.state
    trials = f"soak={upgrade.soak_s}\ndeadline={upgrade.deadline_s}\ntries={upgrade.tries}\n"
    options = ",".join(("noatime", *spec.hardening.state_mounts))
    encryption = "" if state.encryption is Encryption.NONE else f"state_encryption={state.encryption}\n"
    return f"{trials}snapshots={state.snapshots}\nstate_version={state.version}\nstate_options={options}\n{encryption}"


def kept(state: State) -> tuple[str, ...]:
    """The directories that outlive a boot, parents first and without what is below another; none when all of the state does."""
    if state.policy is Policy.ALL:
        return ()
    wanted = {*_OWN, *state.declare}
    return tuple(sorted(path for path in wanted if not any(path.startswith(f"{other}/") for other in wanted)))


def mounts(state: State, options: Sequence[str]) -> str:
    """The lines of fstab(5) that put memory, and in it what is kept, in the place of the state; none when all of it is kept."""
    paths, flags = kept(state), "".join(f",{word}" for word in options)
    lines = [f"tmpfs {place} tmpfs {options}{flags}" for place, options in _MEMORY.items() if paths and place not in paths]
    names = (path.translate(_ESCAPES) for path in paths)
    lines += [f"/run/obelisk/state{name} {name} none bind{flags},X-mount.mkdir" for name in names]
    return "".join(f"{line}\n" for line in lines)
