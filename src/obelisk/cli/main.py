"""The words of the command line. Commands are imported only when they run, so that `--help` answers at once."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from obelisk import __version__
from obelisk.errors import ObeliskError

_IMAGE = "directory of a spec, image id or its beginning, name, or name@version"
_JSON = "events and results as JSON lines, for programs"

_EPILOG = """\
from one file to a running machine:
  obelisk new shop --role server     write shop/obelisk.toml and what it refers to
  obelisk lock shop                  pin every package by version and SHA-256
  obelisk build shop                 assemble, seal and sign the image
  obelisk test shop                  prove it in a VM and sign the proof
  obelisk run shop --port 8080:80    look at it in a VM

The store is at $OBELISK_STORE (default ~/.local/share/obelisk), keys at $OBELISK_KEYS (default ~/.config/obelisk/keys).
"""


_HOST_EPILOG = """\
on this machine:
  obelisk host status                what runs here, and what it would fall back to
  obelisk host upgrade /mnt/shop-2   install an image beside the running one
  obelisk host rollback              go back to the one before
  obelisk install shop /dev/sdb --erase sdb   the running image onto another disk
"""


@dataclass(frozen=True, slots=True)
class _Command:
    """One command: the function of `module` that runs it, and how it is explained."""

    module: str
    summary: str
    example: str


_COMMANDS = {
    "new": _Command("making", "write a new spec", "obelisk new shop --role server"),
    "lock": _Command("making", "pin every package of a spec", "obelisk lock shop --update nginx"),
    "build": _Command("making", "build the image of a spec", "obelisk build shop --reproduce"),
    "keys": _Command("making", "make or show the keys that sign images", "obelisk keys"),
    "test": _Command("proving", "boot an image in a VM, try it, sign a proof", "obelisk test shop --junit report.xml"),
    "run": _Command("running", "boot an image in a VM to look at it", "obelisk run shop --port 8080:80"),
    "images": _Command("showing", "list the images in the store", "obelisk images --json"),
    "show": _Command("showing", "tell what an image is and holds", "obelisk show shop"),
    "diff": _Command("showing", "tell two images apart", "obelisk diff shop@1 shop@2"),
    "export": _Command("showing", "write an image to a file", "obelisk export shop --format qcow2 --output shop.qcow2"),
    "install": _Command("showing", "write an image onto a disk", "obelisk install shop /dev/sdb --erase sdb"),
    "gc": _Command("showing", "free the space of what nothing needs", "obelisk gc --dry-run"),
    "verify": _Command("showing", "read the whole store and name what is damaged", "obelisk verify --repair"),
    "app": _Command("sandboxing", "run applications in sandboxes", "obelisk app run calc -- '6 * 7'"),
    "host": _Command("hosting", "look after a machine that runs an image", "obelisk host upgrade /mnt/shop-2 --reboot"),
}

# On a machine that runs an image, and on which nothing is built.
_HOST_ONLY = {
    "install": _Command("hosting", "write the running image onto another disk", "obelisk install shop /dev/sdb --erase sdb"),
    "host": _COMMANDS["host"],
}

_HOST_COMMANDS = {
    "status": ("what runs here, what it would fall back to, and how it is", "obelisk host status --json"),
    "upgrade": ("install an image beside the running one; the next boot tries it", "obelisk host upgrade /mnt/shop-2 --reboot"),
    "rollback": ("restart into the prior image that was healthy", "obelisk host rollback --with-state"),
    "history": ("every image that this machine ran, why, and how it went", "obelisk host history"),
    "verify": ("read every block of the slots and name what is damaged", "obelisk host verify --repair /mnt/shop-2"),
    "drift": ("every path in the state that nothing declares", "obelisk host drift"),
    "snapshot": ("snapshots of the state: create, list, restore, delete", "obelisk host snapshot create before-import"),
    "reset": ("start the next boot with fresh state", "obelisk host reset --yes --keep /var/lib/obelisk --reboot"),
    "recovery-key": ("make the key that opens the encrypted state when the TPM does not; it is shown once", "obelisk host recovery-key"),
    "enrol-tpm": ("have this machine's TPM open the encrypted state again; asks for the recovery key", "obelisk host enrol-tpm"),
    "settle": ("bless the running image, which is healthy; the machine itself runs this", "obelisk host settle"),
    "condemn": ("note that the running image is not healthy; the machine itself runs this", "obelisk host condemn"),
    "damaged": ("leave the running image, of which a block is damaged; the machine itself runs this", "obelisk host damaged"),
    "migrate": ("bring the state to the version of the image; the machine itself runs this before systemd", "obelisk host migrate"),
}

_APP_COMMANDS = {
    "run": ("start an application, confined to what it is granted", "obelisk app run calc -- '6 * 7'"),
    "ready": ("check and compile it; prints a program that starts it without Obelisk", "obelisk app ready calc"),
    "show": ("what it may do, and which layers of confinement hold on this machine", "obelisk app show calc"),
    "diff": ("what the second of two images may do that the first may not, and the reverse", "obelisk app diff calc@1 calc@2"),
    "audit": (
        "start it, and tell what it was refused, by which layer, and the grant that would allow it",
        "obelisk app audit calc -- '6 * 7'",
    ),
    "learn": ("the fewest grants with which its tests pass, each shown to be needed", "obelisk app learn calc"),
    "clear": ("undo `ready`; data is kept", "obelisk app clear calc"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.command is None:
        parser.print_help()
        return 2
    if "action" in arguments and arguments.action is None:
        arguments.explain.print_help()
        return 2
    command = importlib.import_module(f"obelisk.cli.{_commands()[arguments.command].module}")
    try:
        status: int = getattr(command, arguments.command)(arguments)
    except ObeliskError as error:
        _explain(error, json_wanted=arguments.json)
        return error.exit_status
    except KeyboardInterrupt:
        print("\nobelisk: interrupted; what was finished is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    return status


def _commands() -> dict[str, _Command]:
    return _COMMANDS if find_spec("obelisk.cli.making") is not None else _HOST_ONLY


def _explain(error: ObeliskError, *, json_wanted: bool) -> None:
    if json_wanted:
        import json

        print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}), file=sys.stderr)
        return
    colour = sys.stderr.isatty()
    name = "\033[1;31merror\033[0m" if colour else "error"
    print(f"{name}: {error.message}", file=sys.stderr)
    if error.hint:
        print(f" hint: {error.hint}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    builder = _commands() is _COMMANDS
    parser = argparse.ArgumentParser(
        prog="obelisk",
        description="Immutable operating-system images, described in one file.",
        epilog=_EPILOG if builder else _HOST_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"obelisk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {}
    for name, command in _commands().items():
        parsers[name] = commands.add_parser(
            name, help=command.summary, description=f"{command.summary}.", epilog=f"example: {command.example}", formatter_class=formatter
        )
        if name not in {"app", "host"}:
            parsers[name].add_argument("--json", action="store_true", help=_JSON)
            if builder:
                parsers[name].add_argument("--store", metavar="DIR", help="use this store")
    _host_arguments(parsers["host"])
    install = parsers["install"]
    install.add_argument("image", metavar="IMAGE", help=_IMAGE if builder else "the running image: its name, or name_version")
    install.add_argument("target", metavar="DEVICE|FILE", help="a whole disk, or a file to make one in")
    install.add_argument("--erase", metavar="NAME", help="the name of the disk or file (sdb for /dev/sdb), all of which goes")
    if builder:
        _builder_arguments(parsers)
    return parser


def _host_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    parser.set_defaults(explain=parser)
    parsers = {}
    for name, (summary, example) in _HOST_COMMANDS.items():
        parsers[name] = actions.add_parser(
            name,
            help=summary,
            description=f"{summary}.",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parsers[name].add_argument("--json", action="store_true", help=_JSON)
    for name in ("upgrade", "snapshot", "reset"):
        parsers[name].add_argument("--reboot", action="store_true", help="restart as soon as everything is ready")
    parsers["upgrade"].add_argument("source", metavar="SOURCE", help="a directory with an image's manifest.json and parts")
    parsers["upgrade"].add_argument("--retry", metavar="VERSION", help="try this version again, although it failed here before")
    parsers["upgrade"].add_argument(
        "--rehearse", action="store_true", help="first boot it in a VM over a copy of the state, and go on only when it is healthy there"
    )
    parsers["rollback"].add_argument("--with-state", action="store_true", help="also bring back the state as that image left it")
    parsers["rollback"].add_argument("--no-reboot", action="store_true", help="leave the restart to you")
    parsers["verify"].add_argument("--repair", metavar="SOURCE", help="write what is damaged again, from the directory of that image")
    parsers["snapshot"].add_argument("verb", choices=("create", "list", "restore", "delete"))
    parsers["snapshot"].add_argument("name", nargs="?", metavar="NAME", help="its number, its name, or both as `list` shows them")
    parsers["snapshot"].add_argument("--why", metavar="TEXT", help="a note for `list`")
    parsers["reset"].add_argument("--keep", action="append", metavar="PATH", help="keep this file or directory")
    parsers["reset"].add_argument("--yes", action="store_true", help="delete the state of this machine")


def _app_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    parsers = {}
    for name, (summary, example) in _APP_COMMANDS.items():
        parsers[name] = actions.add_parser(
            name,
            help=summary,
            description=f"{summary}.",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parsers[name].add_argument("--json", action="store_true", help=_JSON)
        parsers[name].add_argument("--store", metavar="DIR", help="use this store")
        parsers[name].add_argument("image", metavar="OLD" if name == "diff" else "IMAGE", help=_IMAGE)
    for name in ("run", "audit"):
        parsers[name].add_argument("words", nargs=argparse.REMAINDER, metavar="-- WORDS", help="what the application is told")
    parsers["diff"].add_argument("other", metavar="NEW")


def _builder_arguments(parsers: dict[str, argparse.ArgumentParser]) -> None:
    def spec_argument(name: str) -> None:
        parsers[name].add_argument("spec", nargs="?", default=".", metavar="SPEC", help="directory of an obelisk.toml (default: this one)")

    def image_argument(name: str) -> None:
        parsers[name].add_argument("image", metavar="IMAGE", help=_IMAGE)

    _app_arguments(parsers["app"])
    parsers["new"].add_argument("directory", metavar="DIRECTORY", help="is made; its name becomes the image's")
    parsers["new"].add_argument("--role", choices=("server", "workstation", "app"), default="server")
    for name in ("lock", "build"):
        spec_argument(name)
    parsers["lock"].add_argument(
        "--update", nargs="*", metavar="PACKAGE", help="take the newest of these packages (of all, when none is named); others stay"
    )
    parsers["build"].add_argument("--reproduce", action="store_true", help="build once more in a fresh place and compare bit by bit")
    for name in ("test", "run", "show", "export"):
        image_argument(name)
    parsers["test"].add_argument("--report", metavar="FILE", help="write the report as JSON")
    parsers["test"].add_argument("--junit", metavar="FILE", help="write the report as JUnit XML")
    parsers["run"].add_argument("--port", action="append", default=[], metavar="HOST:GUEST", help="forward a TCP port of 127.0.0.1")
    parsers["run"].add_argument(
        "--credential", action="append", default=[], metavar="NAME=VALUE", help="give the machine a credential, such as system.hostname"
    )
    parsers["run"].add_argument("--memory", type=int, default=1024, metavar="MIB")
    parsers["run"].add_argument(
        "--disk",
        metavar="FILE",
        help="keep the machine's disk, state included, in this qcow2 file, and beside it the firmware's variables and the TPM, if any",
    )
    parsers["run"].add_argument(
        "--site", metavar="DIR", help="serve this directory, such as a repository, to the machine: http://10.0.2.80/"
    )
    ways = parsers["run"].add_mutually_exclusive_group()
    ways.add_argument("--command", dest="inside", metavar="COMMAND", help="run this in the machine, print what it says, and switch off")
    ways.add_argument(
        "--firmware", action="store_true", help="start it as a machine does, by its firmware and boot loader, without a shell of ours"
    )
    for side in ("before", "after"):
        parsers["diff"].add_argument(side, metavar=side.upper())
    parsers["export"].add_argument("--format", choices=("raw", "qcow2", "erofs", "oci"), default="raw")
    parsers["export"].add_argument("--output", required=True, metavar="FILE")
    parsers["gc"].add_argument("--dry-run", action="store_true", help="only say what would go")
    parsers["gc"].add_argument("--all", action="store_true", help="keep nothing that can be made again")
    parsers["gc"].add_argument("--keep-days", type=int, metavar="DAYS")
    parsers["verify"].add_argument("--repair", action="store_true", help="move damaged files away, so that they are made again")
