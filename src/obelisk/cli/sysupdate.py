"""What `obelisk repo` does for hosts that follow a channel with a stock systemd-sysupdate."""

from argparse import Namespace
from pathlib import Path

from obelisk.cli.making import tools_room
from obelisk.cli.places import key_directory, open_store
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError
from obelisk.events import Sink
from obelisk.model.release import is_channel
from obelisk.release import sysupdate
from obelisk.release.sysupdate import Signer
from obelisk.store import Store
from obelisk.system.files import write_durably, written_by_name

KEYRING = "import-pubring.gpg"


def signer(store: Store, sink: Sink) -> Signer:
    """Who signs listings for systemd-sysupdate: `release/sysupdate.key` among the user's keys, made when it is first wanted."""
    return Signer.of(tools_room(None, store, sink), key_directory() / "release/sysupdate.key")


def transfers(arguments: Namespace) -> int:
    """Write into the directory `arguments.transfers` what a host needs to follow `name` `channel` at `url`, the repository's address.

    `slots` and `tries` are how many versions the host's disk holds, and how many boots a new one gets.
    """
    directory = Path(arguments.transfers)
    if not is_channel(arguments.channel):
        raise InputError(f"{arguments.channel!r} is no channel's name", code="channel-name", hint="small letters, digits and hyphens")
    if not arguments.url.startswith(("https://", "http://")):
        raise InputError(f"{arguments.url!r} is no address", code="sysupdate-url", hint="name where hosts reach the repository: https://…")
    url = f"{arguments.url.rstrip('/')}/{sysupdate.DIRECTORY}/{arguments.name}/{arguments.channel}"
    files = {
        name: text.encode() for name, text in sysupdate.transfers(arguments.name, url, slots=arguments.slots, tries=arguments.tries).items()
    }
    store = open_store(arguments)
    with reporting(json_wanted=arguments.json) as sink:
        files[KEYRING] = signer(store, sink).keyring()
    with written_by_name(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with written_by_name(directory / name):
            write_durably(directory / name, data)
    lines = [f"wrote {directory / name}" for name in files]
    lines.append(f"on the host: *.transfer to /usr/lib/sysupdate.d/, {KEYRING} to /etc/systemd/; its image needs systemd-container and gpg")
    answer("\n".join(lines), json_wanted=arguments.json, written=[str(directory / name) for name in files])
    return 0
