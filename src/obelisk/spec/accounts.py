"""Users and groups of a spec: fixed ids that neither clash with each other nor with what every system has."""

import base64
import binascii
import re

from obelisk.model.spec import Group, User
from obelisk.spec.positions import KeyPath
from obelisk.spec.problems import Findings
from obelisk.spec.reader import Table

# Accounts that Debian's base system brings; source: base-passwd and systemd.
_SYSTEM_USERS = frozenset(
    "root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc _apt nobody"
    " systemd-network systemd-resolve systemd-timesync messagebus sshd".split()
)
_SYSTEM_GROUPS = _SYSTEM_USERS - {"sync", "nobody", "sshd"} | frozenset(
    "adm tty disk dialout fax voice cdrom floppy tape sudo audio dip operator src shadow utmp video sasl plugdev staff users"
    " nogroup kmem input sgx kvm render crontab systemd-journal".split()
)

_SSH_KEY = re.compile(
    r"""(?:^|[ \t])(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"""
    r"""[ \t]+([A-Za-z0-9+/]+=*)(?:[ \t]|$)"""
)


def accounts(root: Table, findings: Findings) -> tuple[tuple[User, ...], tuple[Group, ...]]:
    """The users and groups that the spec declares."""
    groups = tuple(Group(name, table.get("gid", int)) for name, table in root.tables("groups"))
    users = tuple(_user(name, table, findings) for name, table in root.tables("users"))
    for name, table in root.tables("users"):
        _refuse_system(name, _SYSTEM_USERS, "user", table.path, findings)
    for name, table in root.tables("groups"):
        _refuse_system(name, _SYSTEM_GROUPS, "group", table.path, findings)

    names_by_uid: dict[int, str] = {}
    names_by_gid: dict[int, str] = {}
    for group in groups:
        _claim(names_by_gid, group.gid, group.name, ("groups", group.name, "gid"), "group", findings)
    declared = {group.name: group.gid for group in groups}
    for user in users:
        key = ("users", user.name)
        _claim(names_by_uid, user.uid, user.name, (*key, "uid"), "user", findings)
        if user.gid is None and user.name not in declared:
            _claim(names_by_gid, user.uid, user.name, (*key, "uid"), "group", findings)
        elif user.gid is None and declared[user.name] != user.uid:
            message = f"the user's own group '{user.name}' is declared with another id, {declared[user.name]}"
            findings.report((*key, "uid"), "spec-conflict", message, f"say `gid = {declared[user.name]}` for the user, or make the ids equal")
    for user in users:
        if user.gid is not None and user.gid >= 1000 and user.gid not in names_by_gid:  # noqa: PLR2004 - lower ids belong to packages
            message = f"no group of the spec has the id {user.gid}"
            findings.report(("users", user.name, "gid"), "spec-conflict", message, f"declare it: [groups.NAME] gid = {user.gid}")
    return users, groups


def _claim(taken: dict[int, str], number: int, name: str, path: KeyPath, what: str, findings: Findings) -> None:
    other = taken.setdefault(number, name)
    if other != name:
        findings.report(path, "spec-conflict", f"the {what} '{other}' has the id {number} already", "give each its own id")


def _refuse_system(name: str, known: frozenset[str], what: str, path: KeyPath, findings: Findings) -> None:
    if name in known:
        message = f"the {what} '{name}' belongs to the system"
        hint = "declare a user of your own with groups = [\"sudo\"]" if name == "root" else "choose another name"
        findings.report(path, "spec-conflict", message, hint)


def _user(name: str, table: Table, findings: Findings) -> User:
    keys = table.texts("ssh_keys")
    for number, key in enumerate(keys):
        if reason := _ssh_key_fault(key):
            hint = "give the one line of the .pub file"
            findings.report(table.at("ssh_keys", number), "spec-value", reason, hint)
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
