"""The part of Obelisk that goes into every image: `obelisk host`, as the very files that this installation runs.

Into an image whose spec says so goes `obelisk app` as well.

With it goes what of python-tuf and securesystemslib a host needs to verify releases: also this installation's files, but for two modules
that would bring urllib3 and all ways to sign with them. Signatures are checked by libcrypto, which images have, and not by cryptography.
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from obelisk.errors import MissingFeatureError
from obelisk.model.spec import Policy, Spec, State
from obelisk.model.state import Encryption

PACKAGE = Path(__file__).parents[1]
_MODULES = (
    "__init__.py",
    "errors.py",
    "events.py",
    "cli/__init__.py",
    "cli/grammar.py",
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
    "system/http.py",
    "system/libcrypto.py",
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
_APPLICATIONS = (
    "cli/installing.py",
    "sandbox/__init__.py",
    "sandbox/calls.py",
    "sandbox/channel.py",
    "sandbox/data.py",
    "sandbox/desktop.py",
    "sandbox/entries.py",
    "sandbox/health.py",
    "sandbox/installed.py",
    "sandbox/keyfile.py",
    "sandbox/machine.py",
    "sandbox/network.py",
    "sandbox/operator.py",
    "sandbox/place.py",
    "sandbox/plan.py",
    "sandbox/ready.py",
    "sandbox/rehearsal.py",
    "sandbox/services.py",
    "sandbox/units.py",
    "store/*.py",
    "system/bubblewrap.py",
    "system/cgroups.py",
    "system/confine.py",
    "system/erofs.py",
    "system/landlock.py",
    "system/namespace.py",
    "system/ports.py",
    "system/program.py",
    "system/resolver.py",
    "system/seccomp.py",
    "system/syscalls.py",
    "system/systemctl.py",
    "system/systemd_veritysetup.py",
    "system/usb.py",
    "system/volumes.py",
)
"""What goes with it where the spec says that hosts have applications."""
_LIBRARIES = {
    "tuf": (
        "tuf/__init__.py",
        "tuf/api/__init__.py",
        "tuf/api/_payload.py",
        "tuf/api/dsse.py",
        "tuf/api/exceptions.py",
        "tuf/api/metadata.py",
        "tuf/api/serialization/__init__.py",
        "tuf/api/serialization/json.py",
        "tuf/ngclient/__init__.py",
        "tuf/ngclient/_internal/__init__.py",
        "tuf/ngclient/_internal/trusted_metadata_set.py",
        "tuf/ngclient/config.py",
        "tuf/ngclient/fetcher.py",
        "tuf/ngclient/updater.py",
    ),
    "securesystemslib": (
        "securesystemslib/__init__.py",
        "securesystemslib/_internal/utils.py",
        "securesystemslib/_vendor/__init__.py",
        "securesystemslib/_vendor/ed25519/LICENSE",
        "securesystemslib/_vendor/ed25519/__init__.py",
        "securesystemslib/_vendor/ed25519/ed25519.py",
        "securesystemslib/dsse.py",
        "securesystemslib/exceptions.py",
        "securesystemslib/formats.py",
        "securesystemslib/signer/_constants.py",
        "securesystemslib/signer/_key.py",
        "securesystemslib/signer/_signature.py",
        "securesystemslib/signer/_signer.py",
        "securesystemslib/signer/_utils.py",
        "securesystemslib/storage.py",
    ),
}
_STAND_INS = {"tuf/ngclient/urllib3_fetcher.py": "fetcher.py", "securesystemslib/signer/__init__.py": "signer.py"}
_OWN = ("/var/lib/obelisk", "/var/lib/systemd", "/var/log/journal")
"""What every host keeps: identity; the random seed and the stamps of timers; the journal."""
_MEMORY = {"/var": "mode=0755,size=25%", "/home": "mode=0755,size=10%", "/root": "mode=0700,size=5%"}
_ESCAPES = {ord(character): f"\\{ord(character):03o}" for character in " #\\"}


def modules(*, applications: bool = False) -> Iterator[Path]:
    """The files of the part, relative to `PACKAGE`, sorted; with `applications` also what hosts need to have such."""
    for pattern in (*_MODULES, *(_APPLICATIONS if applications else ())):
        yield from (path.relative_to(PACKAGE) for path in sorted(PACKAGE.glob(pattern)))


def libraries() -> dict[str, Path]:
    """What of other projects goes with the part, and their licences: the path below its directory -> the file, sorted.

    Raises:
        MissingFeatureError: this installation does not have them, or not as they are known here.
    """
    found: dict[str, Path] = {}
    for name, paths in _LIBRARIES.items():
        try:
            listed = {str(path): Path(str(path.locate())) for path in distribution(name).files or ()}
        except PackageNotFoundError:
            listed = {}
        if missing := [path for path in paths if path not in listed]:
            raise MissingFeatureError(
                f"this installation lacks {missing[0]}, which hosts need",
                code="library-missing",
                hint=f"install {name} in a version that this one of obelisk names",
            )
        found |= {path: listed[path] for path in paths}
        found |= {f"licences/{name}/{Path(path).name}": file for path, file in listed.items() if ".dist-info/licenses/" in path}
    found |= {path: PACKAGE / "build/standin" / name for path, name in _STAND_INS.items()}
    return dict(sorted(found.items()))


def digest() -> str:
    """SHA-256 of all files of the part: another version of them makes another image."""
    hasher = hashlib.sha256()
    for name, file in (*((f"obelisk/{module}", PACKAGE / module) for module in modules(applications=True)), *libraries().items()):
        content = file.read_bytes()
        hasher.update(f"{name}\0{len(content)}\0".encode() + content)
    return hasher.hexdigest()


def settings(spec: Spec) -> str:
    """What /usr/lib/obelisk/host.conf says; see `obelisk.host.settings`."""
    upgrade, state = spec.upgrade, spec.state
    trials = f"soak={upgrade.soak_s}\ndeadline={upgrade.deadline_s}\ntries={upgrade.tries}\n"
    options = ",".join(("noatime", *spec.hardening.state_mounts))
    encryption = "" if state.encryption is Encryption.NONE else f"state_encryption={state.encryption}\n"
    return f"{trials}snapshots={state.snapshots}\nstate_version={state.version}\nstate_options={options}\n{encryption}"


def release(spec: Spec) -> dict[str, str]:
    """The files of /usr/lib/obelisk/release/, by their names; see `obelisk.host.subscription`. None where hosts follow no channel."""
    if spec.release is None:
        return {}
    lines = [f"channel={spec.release.channel}", *(f"repository={address}" for address in spec.release.repositories)]
    if spec.release.bandwidth_bytes_s is not None:
        lines.append(f"bandwidth={spec.release.bandwidth_bytes_s}")
    if spec.release.proxy:
        lines.append(f"proxy={spec.release.proxy}")
    return {"conf": "".join(f"{line}\n" for line in lines), "root.json": spec.release.root.read_text()}


def timer(spec: Spec) -> str:
    """The unit by which hosts follow their channel; empty where they do not do so by themselves."""
    if spec.release is None or not spec.release.follow_s:
        return ""
    # Not all hosts of a fleet at the same instant.
    spread_s = spec.release.follow_s // 10
    return f"""\
[Unit]
Description=Ask {spec.release.channel} what to run

[Timer]
OnBootSec={spec.release.follow_s}s
OnUnitInactiveSec={spec.release.follow_s}s
RandomizedDelaySec={spread_s}s
AccuracySec=1s
"""


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
