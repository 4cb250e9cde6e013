"""What a spec contributes to an image, and what it asks of a lock, as digests.

Both are the same from any directory and in any order of keys: they hold contents and modes, never paths of this machine or times.

- `digest_inputs` holds what can change a byte of the image, and what is permitted in it (`allow`), so that a narrower permission is never
  answered from a cache. Not in it: `mirror` and `snapshot` (where bytes come from), `tests` (run beside the image), `size_budget` (a
  limit on the result). `health` is in it: a machine judges itself by these checks.
- `request` holds what decides which packages are chosen; not the addresses of archives, so that a lock moves between mirrors.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path

from obelisk.errors import InputError
from obelisk.model.canonical import Json, digest
from obelisk.model.reference import Reference
from obelisk.model.spec import Check, InlineFile, Spec, State, Subscription
from obelisk.model.state import Encryption
from obelisk.spec.loading import tree_entries
from obelisk.spec.tree import EntryKind, TreeEntry
from obelisk.system.files import hash_file

_INPUTS = "obelisk.spec-inputs/1"
_REQUEST = "obelisk.request/1"


def digest_inputs(spec: Spec) -> str:
    """SHA-256 over all that the spec puts into the image: 64 hexadecimal digits. Reads every file that the spec refers to.

    Raises:
        InputError: a file changed in a way that `load` would have refused, or can no longer be read.
    """
    boot, services, allow = spec.boot, spec.services, spec.allow
    # Left out where it says nothing, so that the ids of older images stay.
    release: dict[str, Json] = {"release": _release(spec.release)} if spec.release else {}
    return digest(
        release
        | {
            "schema": _INPUTS,
            "request": request(spec),
            "name": spec.name,
            "version": spec.version,
            "tree": [_tree_entry(entry) for entry in tree_entries(spec)],
            "files": {file.path: _inline_file(file) for file in spec.files},
            "users": {user.name: asdict(user) | {"groups": sorted(user.groups)} for user in spec.users},
            "groups": {group.name: group.gid for group in spec.groups},
            "services": {"enable": sorted(services.enable), "disable": sorted(services.disable), "mask": sorted(services.mask)},
            "cmdline": boot.cmdline,
            "hostname": spec.hostname,
            "locale": spec.locale,
            "timezone": spec.timezone,
            "scripts": [[script.name, _sha256(script.source)] for script in spec.scripts],
            "health": {check.name: [_check(check.check), check.timeout_s] for check in spec.health},
            "upgrade": asdict(spec.upgrade),
            "state": _state(spec.state),
            "hardening": asdict(spec.hardening),
            "compression": spec.compression.value,
            "allow": {"setuid": sorted(allow.setuid), "devices": sorted(allow.devices), "replace": sorted(allow.replace)},
            "documentation": spec.documentation,
        }
        | ({} if spec.application is None else {"application": spec.application.to_json()})
    )


def request(spec: Spec) -> str:
    """SHA-256 over what a lock of this spec answers: 64 hexadecimal digits. A lock with another request is out of date.

    Raises:
        InputError: the key of a source can no longer be read.
    """
    # What came later is left out where it asks for nothing, so that the locks of older specs stay.
    encryption: dict[str, Json] = {} if spec.state.encryption is Encryption.NONE else {"encryption": spec.state.encryption.value}
    return digest(
        encryption
        | {
            "schema": _REQUEST,
            "distribution": str(spec.distribution),
            "role": spec.role.value,
            "packages": sorted(spec.packages),
            "recommends": spec.recommends,
            "kernel": spec.boot.kernel,
            "sources": {source.name: [sorted(source.suites), sorted(source.components), _sha256(source.key)] for source in spec.sources},
        }
        # Left out where it asks for nothing, so that locks from before there was such a key stay valid.
        | ({"rehearse": True} if spec.upgrade.rehearse else {})
        | ({"applications": True} if spec.host.applications else {})
        | ({} if spec.image is None else {"image": _image(spec.image, spec.directory)})
        | ({"bare": True} if spec.bare else {})
    )


def _image(image: Path | Reference, directory: Path) -> str:
    """Where it comes from; what it is, the lock says."""
    return str(image.relative_to(directory)) if isinstance(image, Path) else str(image)


def _tree_entry(entry: TreeEntry) -> Json:
    content = _sha256(entry.source) if entry.kind is EntryKind.FILE else entry.target
    return [entry.path, entry.kind.value, entry.mode, content, entry.device]


def _inline_file(file: InlineFile) -> Json:
    content = hashlib.sha256((file.content or "").encode()).hexdigest() if file.source is None else _sha256(file.source)
    return [content, file.mode, file.owner, file.group]


def _state(state: State) -> Json:
    return {
        "snapshots": state.snapshots,
        "policy": state.policy.value,
        "declare": sorted(state.declare),
        "version": state.version,
        "migrations": [[each.to, _sha256(each.up), _sha256(each.down) if each.down else None] for each in state.migrations],
    }


def _release(release: Subscription) -> Json:
    return {
        "channel": release.channel,
        "repositories": list(release.repositories),  # their order counts
        "root": _sha256(release.root),
        "bandwidth": release.bandwidth_bytes_s,
        "proxy": release.proxy,
        "follow": release.follow_s,
    }


def _check(check: Check) -> Json:
    return {"kind": type(check).__name__, **asdict(check)}


def _sha256(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        message = f"cannot be read any more: {error.strerror}"
        raise InputError(message, code="spec-file", hint="put it back, or take it out of the spec", place=str(path)) from error
