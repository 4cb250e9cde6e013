"""The words of the command line. Commands are imported only when they run, so that `--help` answers at once."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from obelisk import __version__
from obelisk.errors import ObeliskError

_EPILOG = """\
from one file to a running machine:
  obelisk new shop --role server     write shop/obelisk.toml and what it refers to
  obelisk lock shop                  pin every package by version and SHA-256
  obelisk build shop                 assemble, seal and sign the image
  obelisk test shop                  prove it in a VM and sign the proof
  obelisk run shop --port 8080:80    look at it in a VM

The store is at $OBELISK_STORE (default ~/.local/share/obelisk), keys at $OBELISK_KEYS (default ~/.config/obelisk/keys).
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
    "run": _Command("proving", "boot an image in a VM to look at it", "obelisk run shop --port 8080:80"),
    "images": _Command("showing", "list the images in the store", "obelisk images --json"),
    "show": _Command("showing", "tell what an image is and holds", "obelisk show shop"),
    "diff": _Command("showing", "tell two images apart", "obelisk diff shop@1 shop@2"),
    "export": _Command("showing", "write an image to a file", "obelisk export shop --format qcow2 --output shop.qcow2"),
    "gc": _Command("showing", "free the space of what nothing needs", "obelisk gc --dry-run"),
    "verify": _Command("showing", "read the whole store and name what is damaged", "obelisk verify --repair"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(words)
    if arguments.command is None:
        _parser().print_help()
        return 2
    command = importlib.import_module(f"obelisk.cli.{_COMMANDS[arguments.command].module}")
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
    parser = argparse.ArgumentParser(
        prog="obelisk", description="Immutable operating-system images, described in one file.", epilog=_EPILOG, formatter_class=formatter
    )
    parser.add_argument("--version", action="version", version=f"obelisk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {}
    for name, command in _COMMANDS.items():
        parsers[name] = commands.add_parser(
            name, help=command.summary, description=f"{command.summary}.", epilog=f"example: {command.example}", formatter_class=formatter
        )
        parsers[name].add_argument("--json", action="store_true", help="events and results as JSON lines, for programs")
        parsers[name].add_argument("--store", metavar="DIR", help="use this store")

    def spec_argument(name: str) -> None:
        parsers[name].add_argument("spec", nargs="?", default=".", metavar="SPEC", help="directory of an obelisk.toml (default: this one)")

    def image_argument(name: str) -> None:
        parsers[name].add_argument("image", metavar="IMAGE", help="directory of a spec, image id or its beginning, name, or name@version")

    parsers["new"].add_argument("directory", metavar="DIRECTORY", help="is made; its name becomes the image's")
    parsers["new"].add_argument("--role", choices=("server", "workstation"), default="server")
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
    parsers["run"].add_argument("--memory", type=int, default=1024, metavar="MIB")
    parsers["run"].add_argument("--disk", metavar="FILE", help="keep the machine's disk, state included, in this qcow2 file")
    for side in ("before", "after"):
        parsers["diff"].add_argument(side, metavar=side.upper())
    parsers["export"].add_argument("--format", choices=("raw", "qcow2", "erofs", "oci"), default="raw")
    parsers["export"].add_argument("--output", required=True, metavar="FILE")
    parsers["gc"].add_argument("--dry-run", action="store_true", help="only say what would go")
    parsers["gc"].add_argument("--all", action="store_true", help="keep nothing that can be made again")
    parsers["gc"].add_argument("--keep-days", type=int, metavar="DAYS")
    parsers["verify"].add_argument("--repair", action="store_true", help="move damaged files away, so that they are made again")
    return parser
