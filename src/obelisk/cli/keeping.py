"""Commands for the keys that sign releases: keys init, rotate, show and trust."""

from argparse import Namespace
from pathlib import Path

from obelisk.build import keys as secure_boot
from obelisk.cli.making import tools_room
from obelisk.cli.places import key_directory, open_store
from obelisk.cli.publisher import keyring_of, looked_at, new_passphrase, own_tester, publishing, read_key
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError
from obelisk.release.keys import Role, Wish, create, public_key
from obelisk.release.known import Known
from obelisk.release.publisher import Publisher
from obelisk.release.rotating import RootWish, Rotated, rotate, rotate_root, set_testers


def keys(arguments: Namespace) -> int:
    """Run one of the commands for release keys."""
    actions = {"init": _init, "rotate": _rotate, "token": _token, "show": _show, "trust": _trust}
    return actions[arguments.action](arguments)


def _init(arguments: Namespace) -> int:
    keyring = keyring_of(arguments)
    wish = Wish(arguments.root_keys, arguments.threshold, keyring.roots)
    made = create(keyring, wish, passphrase=new_passphrase() if arguments.passphrase else b"")
    lines = [f"made {file.path} ({file.public.keyid[:12]})" for file in made] or ["every key is there already"]
    if any(file.role is Role.ROOT and file.path.parent == keyring.directory for file in made):
        lines.append("move the private root keys (root-*.key) to where daily work does not see them, and name that place by --root")
    lines.append(
        f"a repository needs {keyring.threshold} of {len(keyring.publics(Role.ROOT))} root keys to begin and to change keys; copy them now"
    )
    found = [{"role": file.role.value, "file": str(file.path), "id": file.public.keyid} for file in made]
    answer("\n".join(lines), json_wanted=arguments.json, made=found, threshold=keyring.threshold)
    return 0


def _rotate(arguments: Namespace) -> int:
    if arguments.role == "secure-boot":
        return _rotate_secure_boot(arguments)
    if arguments.role == "platform" and not (arguments.finish or arguments.revoke):
        return _rotate_platform(arguments)
    if arguments.finish or arguments.revoke:
        raise InputError("--finish and --revoke are steps of `keys rotate secure-boot`", code="role-other", hint="leave them out")
    passphrase = new_passphrase() if arguments.passphrase else b""
    with publishing(arguments, open_store(arguments)) as publisher:
        if arguments.role == "tester":
            return _rotate_tester(arguments, publisher)
        if arguments.role == "root":
            place = Path(arguments.new_root).absolute() if arguments.new_root else next(iter(publisher.keyring.roots), None)
            wish = RootWish(tuple(arguments.drop), place, arguments.threshold)
            done = rotate_root(publisher, wish, passphrase=passphrase)
        else:
            done = rotate(publisher, Role(arguments.role), passphrase=passphrase)
    _tell_rotated(arguments, done)
    return 0


def _rotate_secure_boot(arguments: Namespace) -> int:
    directory = key_directory()
    if arguments.finish:
        found = secure_boot.finish(directory)
        lines = [f"{found.certificate_sha256[:12]} signs images from now on; hosts take them from the version on that brought them its key"]
    else:
        store = open_store(arguments)
        with reporting(json_wanted=arguments.json) as sink:
            room = tools_room(None, store, sink)
            found = (secure_boot.revoke if arguments.revoke else secure_boot.rotate)(directory, room)
        if arguments.revoke:
            lines = [
                "images from now on tell hosts to refuse what the key before signed; each does when it starts nothing of that any more"
            ]
        else:
            lines = [
                f"made {found.coming_sha256[:12]}; {found.certificate_sha256[:12]} goes on signing",
                "build and release an image now, which brings it to hosts; when they run that: `obelisk keys rotate secure-boot --finish`",
            ]
    answer(
        "\n".join(lines),
        json_wanted=arguments.json,
        signs=found.certificate_sha256,
        coming=found.coming_sha256 or None,
        revokes=found.revoke is not None,
    )
    return 0


def _rotate_platform(arguments: Namespace) -> int:
    directory, store = key_directory(), open_store(arguments)
    with reporting(json_wanted=arguments.json) as sink:
        found = secure_boot.rotate_platform(directory, tools_room(None, store, sink))
    lines = [
        f"made another PK and KEK in {found.owner}; keep PK.key and KEK.key offline",
        "build and release an image now, which brings them to hosts; rotate again only when every host runs that or a later one",
    ]
    answer("\n".join(lines), json_wanted=arguments.json, directory=str(found.owner))
    return 0


def _tell_rotated(arguments: Namespace, done: Rotated) -> None:
    lines = [f"made {file.path} ({file.public.keyid[:12]})" for file in done.made]
    lines.append(f"{arguments.role} is signed by {', '.join(key[:12] for key in done.key_ids)}")
    lines += [f"{key[:12]} counts no more here; remove its files when no other repository needs it" for key in done.dropped]
    made = [str(file.path) for file in done.made]
    answer("\n".join(lines), json_wanted=arguments.json, keys=list(done.key_ids), dropped=list(done.dropped), made=made)


def _rotate_tester(arguments: Namespace, publisher: Publisher) -> int:
    add = [read_key(Path(name)) for name in arguments.add] or list(own_tester().keys)
    known = {public_key(pem.encode(), "testers.json").keyid: pem for pem in publisher.opened().contents.testers.keys}
    drop = [key for key in known if any(key.startswith(begin) for begin in arguments.drop)]
    if any(not any(key.startswith(begin) for key in known) for begin in arguments.drop):
        raise InputError(
            f"{', '.join(arguments.drop)} is no tester", code="key-unknown", hint=f"testers: {', '.join(key[:12] for key in known)}"
        )
    gone = [public_key(known[key].encode(), "testers.json") for key in drop]
    testers = set_testers(publisher, add=add, drop=gone, force=arguments.force)
    ids = [public_key(pem.encode(), "testers.json").keyid for pem in testers.keys]
    answer(f"proofs count by {', '.join(key[:12] for key in ids) or 'nobody'}", json_wanted=arguments.json, keys=ids, dropped=drop)
    return 0


def _token(arguments: Namespace) -> int:
    keyring = keyring_of(arguments)
    role = Role(arguments.role)
    made = keyring.adopt(role, arguments.key, next(iter(keyring.roots), None) if role is Role.ROOT else None)
    what = f"{made.path} ({made.public.keyid[:12]}) is the key for {role} of new repositories"
    text = f"{what}; for one that is there already: `obelisk keys rotate {role}`"
    answer(text, json_wanted=arguments.json, file=str(made.path), id=made.public.keyid)
    return 0


def _show(arguments: Namespace) -> int:
    keyring = keyring_of(arguments)
    here = {file.public.keyid: file for role in Role for file in keyring.files(role)}
    lines = [f"{file.path}  {file.role}  {key[:12]}" for key, file in here.items()] or [f"there are no release keys in {keyring.directory}"]
    # Whoever keeps a repository fresh need not have the keys of images.
    if (key_directory() / "db.crt").exists() and (boot := secure_boot.load(key_directory())) is not None:
        coming = f"; {boot.coming_sha256[:12]} is coming, and hosts learn of it by images built now" if boot.coming_sha256 else ""
        revoked = "; images revoke the key before it" if boot.revoke else ""
        lines.append(f"{boot.signing / 'db.key'}  secure-boot  {boot.certificate_sha256[:12]}{coming}{revoked}")
        away = " and ".join(name for name in ("PK", "KEK") if not (boot.owner / f"{name}.key").exists())
        lines.append(f"{boot.owner}  platform  PK and KEK{f'; {away} elsewhere' if away else ''}")
    result: dict[str, object] = {"here": [{"role": file.role.value, "file": str(file.path), "id": key} for key, file in here.items()]}
    if arguments.repo is not None:
        there = looked_at(arguments)
        roles = {}
        for role in Role:
            ids = there.trusted.key_ids(role)
            at = there.trusted.signed(role).expires
            listed = ", ".join(key[:12] + (" (here)" if key in here else "") for key in ids)
            lines.append(f"{role:<10} {there.trusted.threshold(role)} of {listed}; holds until {at:%Y-%m-%d %H:%M} UTC")
            roles[role.value] = {"keys": list(ids), "threshold": there.trusted.threshold(role), "expires": at.isoformat()}
        testers = [public_key(pem.encode(), "testers.json").keyid for pem in there.contents.testers.keys]
        lines.append(f"{'tester':<10} {', '.join(key[:12] for key in testers) or 'nobody'}")
        result |= {"roles": roles, "testers": testers}
    answer("\n".join(lines), json_wanted=arguments.json, **result)
    return 0


def _trust(arguments: Namespace) -> int:
    there = looked_at(arguments)
    keyring = keyring_of(arguments)
    Known(keyring.directory / "known.json").accept(there.first_root, there.trusted.timestamp.signed.version)
    answer(f"the keys in {keyring.directory} sign {there.shelf.root} from now on", json_wanted=arguments.json, repo=str(there.shelf.root))
    return 0
