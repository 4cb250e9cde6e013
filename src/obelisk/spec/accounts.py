"""Users and groups of a spec: fixed ids that neither clash with each other nor with what every system has."""

import base64
import binascii
import re

from obelisk.model.spec import Group, User
from obelisk.spec.positions import KeyPath
from obelisk.spec.problems import Findings
from obelisk.spec.reader import Table


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Accounts that Debian's base system brings; source: base-passwd and systemd.
_SYSTEM_USERS = _names(
    "root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc _apt nobody systemd-network "
    "systemd-resolve systemd-timesync messagebus sshd"
)
_SYSTEM_GROUPS = _SYSTEM_USERS - {"sync", "nobody", "sshd"} | _names(
    "adm tty disk dialout fax voice cdrom floppy tape sudo audio dip operator src shadow utmp video sasl plugdev staff users "
    "nogroup kmem input sgx kvm render crontab systemd-journal"
)

_FIRST_OWN_ID = 1000  # lower ids belong to packages
_SSH_KEY = re.compile(
    r"""(?:^|[ \t])(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"""
    r"""[ \t]+([A-Za-z0-9+/]+=*)(?:[ \t]|$)"""
)


def accounts(root: Table, findings: Findings) -> tuple[tuple[User, ...], tuple[Group, ...]]:
    """The users and groups that the spec declares."""
    groups = tuple(Group(name, table.get("gid", int)) for name, table in root.tables("groups"))
    users = tuple(_user(name, table, findings) for name, table in root.tables("users"))
    for key, known in (("users", _SYSTEM_USERS), ("groups", _SYSTEM_GROUPS)):
        for name, table in root.tables(key):
            if name in known:
                findings.report(table.path, f"'{name}' belongs to the system", code="spec-conflict", hint="choose another name")

    names_by_uid: dict[int, str] = {}
    names_by_gid: dict[int, str] = {}
    for group in groups:
        _claim(names_by_gid, group.gid, by=group.name, path=("groups", group.name, "gid"), findings=findings)
    declared = {group.name: group.gid for group in groups}
    for user in users:
        uid = ("users", user.name, "uid")
        _claim(names_by_uid, user.uid, by=user.name, path=uid, findings=findings)
        if user.gid is None and user.name not in declared:
            _claim(names_by_gid, user.uid, by=user.name, path=uid, findings=findings)
        elif user.gid is None and declared[user.name] != user.uid:
            message = f"the user's own group '{user.name}' is declared with another id, {declared[user.name]}"
            findings.report(
                uid, message, code="spec-conflict", hint=f"say `gid = {declared[user.name]}` for the user, or make the ids equal"
            )
    for user in users:
        if user.gid is not None and user.gid >= _FIRST_OWN_ID and user.gid not in names_by_gid:
            message = f"no group of the spec has the id {user.gid}"
            findings.report(("users", user.name, "gid"), message, code="spec-conflict", hint=f"declare it: [groups.NAME] gid = {user.gid}")
    return users, groups


def _claim(ids: dict[int, str], number: int, *, by: str, path: KeyPath, findings: Findings) -> None:
    """Note that `by` has an id, or report who has it already."""
    other = ids.setdefault(number, by)
    if other != by:
        findings.report(path, f"'{other}' has the id {number} already", code="spec-conflict", hint="give each its own id")


def _user(name: str, table: Table, findings: Findings) -> User:
    keys = table.texts("ssh_keys")
    for number, key in enumerate(keys):
        if reason := _ssh_key_fault(key):
            hint = "give the one line of the .pub file"
            findings.report(table.at("ssh_keys", number), reason, code="spec-value", hint=hint)
    return User(
        name=name,
        uid=table.get("uid", int),
        gid=table.find("gid", int),
        groups=table.texts("groups"),
        home=table.find("home", str) or f"/home/{name}",
        shell=table.get("shell", str),
        comment=table.get("comment", str),
        password=table.find("password", str),
        ssh_keys=keys,
    )


def _ssh_key_fault(line: str) -> str:
    """What is wrong with a line of authorized_keys, or nothing. Source: sshd(8); RFC 4253 section 6.6 for the blob."""
    if "PRIVATE KEY" in line:
        return "is a private key, which must stay secret"
    match = _SSH_KEY.search(line)
    if match is None:
        return "is no SSH public key of a kind that OpenSSH accepts"
    kind, blob = match.groups()
    try:
        data = base64.b64decode(blob, validate=True)
    except binascii.Error:
        return "is an SSH public key with a part missing"
    length = int.from_bytes(data[:4])
    if data[4 : 4 + length] != kind.encode():
        return f"says {kind}, but the key itself is of another kind"
    fields = 0
    position = 0
    while position + 4 <= len(data):
        position += 4 + int.from_bytes(data[position : position + 4])
        fields += 1
    return "" if position == len(data) and fields > 1 else "is an SSH public key with a part missing"
