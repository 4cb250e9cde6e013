"""What `obelisk repo` does for hosts that follow a channel with a stock systemd-sysupdate."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from obelisk.cli.making import tools_room
from obelisk.cli.places import key_directory, open_store
from obelisk.cli.publisher import publishing
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError
from obelisk.events import Sink
from obelisk.model.image import Manifest
from obelisk.model.release import Channel
from obelisk.release import sysupdate as made
from obelisk.release.delivery import ImageFiles
from obelisk.release.keys import Role
from obelisk.release.publisher import Publisher
from obelisk.release.publishing import image_files
from obelisk.release.repository import Repository
from obelisk.release.sysupdate import Signer
from obelisk.store import Store
from obelisk.system.files import write_durably, written_by_name

KEYRING = "import-pubring.gpg"


def signer(store: Store, sink: Sink) -> Signer:
    """Who signs listings for systemd-sysupdate: `release/sysupdate.key` among the user's keys, made when it is first wanted."""
    return Signer.of(tools_room(None, store, sink), key_directory() / "release/sysupdate.key")


def keep(publisher: Publisher, store: Store) -> None:
    """Let systemd-sysupdate see what those channels say that it can follow."""
    with publisher.shelf.writing():
        there = Repository.open(publisher.shelf)
        for name, channel in made.kept(publisher.shelf.root):
            _sync(publisher, store, there, there.contents.channel(name, channel))


def sysupdate(arguments: Namespace) -> int:
    """Begin or end to offer a channel to systemd-sysupdate, and write what hosts need for it."""
    store = open_store(arguments)
    with publishing(arguments, store) as publisher, publisher.changing() as there:
        place = publisher.shelf.root
        if place.is_relative_to(store.root):
            raise InputError(
                "what systemd-sysupdate follows changes as a whole, which only a directory of this machine can",
                code="sysupdate-remote",
                hint="say it where the repository's directory lies",
            )
        channel = _named(there, arguments)
        if arguments.stop:
            made.remove(place, channel.name, channel.channel)
            answer(f"{channel.name} {channel.channel} is not offered to systemd-sysupdate any more", json_wanted=arguments.json)
            return 0
        if any(there.manifest(each).is_application for each in there.contents.releases if each.name == channel.name):
            raise InputError(
                f"{channel.name} is an application, and systemd-sysupdate brings machines their next image",
                code="sysupdate-application",
                hint="machines install it by `obelisk app install`",
            )
        _sync(publisher, store, there, channel)
    directory = made.place(place, channel.name, channel.channel)
    lines, written = [f"{directory} is what systemd-sysupdate follows; it changes with the channel from now on"], list[str]()
    if arguments.transfers:
        written = _transfers(arguments, channel, store)
        lines += [f"wrote {file}" for file in written]
        lines.append(
            f"on the host: *.transfer to /usr/lib/sysupdate.d/, {KEYRING} to /etc/systemd/; its image needs systemd-container and gpg"
        )
    answer("\n".join(lines), json_wanted=arguments.json, directory=str(directory), written=written)
    return 0


def _sync(publisher: Publisher, store: Store, there: Repository, channel: Channel) -> None:
    releases = {release.image: release for release in there.contents.releases}
    expires = min(there.trusted.signed(role).expires for role in (Role.TARGETS, Role.SNAPSHOT)).date()
    made.sync(
        publisher.shelf.root,
        channel,
        lambda image: _bootable(image_files(publisher, there, releases[image])),
        signer=signer(store, publisher.sink),
        expires=expires,
        sink=publisher.sink,
    )


@dataclass(frozen=True, slots=True)
class _Bootable:
    """The files of a machine's image; see `obelisk.release.sysupdate.Image`."""

    manifest: Manifest
    root: Path
    tree: Path
    uki: Path


def _bootable(files: ImageFiles) -> _Bootable:
    if files.uki is None:  # its channel was never begun; see above
        message = f"{files.manifest.label} has no kernel image"
        raise AssertionError(message)
    return _Bootable(files.manifest, files.root, files.tree, files.uki)


def _named(there: Repository, arguments: Namespace) -> Channel:
    channels = there.contents.channels
    found = [each for each in channels if each.channel == arguments.channel and arguments.name in {None, each.name}]
    if len(found) != 1:
        known = ", ".join(f"{each.name} {each.channel}" for each in channels) or "none"
        raise InputError(
            f"{arguments.channel!r} is not one channel of this repository",
            code="channel-unknown",
            hint=f"name one, and --name where several images have it; there are: {known}",
        )
    return found[0]


def _transfers(arguments: Namespace, channel: Channel, store: Store) -> list[str]:
    """Write into `arguments.transfers` what a host needs to follow the channel at `url`, the repository's address; the files' names."""
    directory = Path(arguments.transfers)
    if not (arguments.url or "").startswith(("https://", "http://")):
        raise InputError("--transfers goes with --url", code="sysupdate-url", hint="name where hosts reach the repository: https://…")
    url = f"{arguments.url.rstrip('/')}/{made.DIRECTORY}/{channel.name}/{channel.channel}"
    texts = made.transfers(channel.name, url, slots=arguments.slots, tries=arguments.tries)
    files = {name: text.encode() for name, text in texts.items()}
    with reporting(json_wanted=arguments.json) as sink:
        files[KEYRING] = signer(store, sink).keyring()
    with written_by_name(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with written_by_name(directory / name):
            write_durably(directory / name, data)
    return [str(directory / name) for name in files]
